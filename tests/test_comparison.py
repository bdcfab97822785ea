"""Two systems compared: the interval and the p-value are those of plain loops, and equal systems are called equal."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_adapters.cli import main
from speech_adapters.data.score_files import write_scores
from speech_adapters.data.transcripts import write_transcripts
from speech_adapters.data.trials import read_speakers, read_trials, write_trials
from speech_adapters.errors import ConfigError
from speech_adapters.metrics.bootstrap import Interval
from speech_adapters.metrics.classification import score_classification
from speech_adapters.metrics.comparison import (
    LEVEL,
    Comparison,
    TrialScores,
    compare_classes,
    compare_transcripts,
    compare_trials,
    correct,
    sign_flip_test,
)
from speech_adapters.metrics.detection import eer
from speech_adapters.metrics.wer import UtteranceScore, WERResult, word_error_rate
from speech_adapters.reports.comparison import compare_runs, read_runs, write_comparison
from speech_adapters.runs.results import MethodResults, Results

WORDS = "ALPHA BRAVO CHARLIE DELTA ECHO FOXTROT GOLF HOTEL".split()


def heard(errors: list[int], lengths: list[int], speakers: list[str | None]) -> WERResult:
    """A system that gets the first so many words of each utterance wrong."""
    references = [" ".join(WORDS[i % len(WORDS)] for i in range(length)) for length in lengths]
    hypotheses = [
        " ".join(["WRONG"] * wrong + text.split()[wrong:]) for text, wrong in zip(references, errors, strict=True)
    ]
    ids = [f"u{i}" for i in range(len(lengths))]
    return word_error_rate(references, hypotheses, speakers, ids, normalizer="none")


def test_the_interval_is_that_of_plain_loops_over_the_same_draws() -> None:
    draw = random.Random(0)
    speakers = [f"s{draw.randrange(9)}" for _ in range(80)]
    lengths = [draw.randint(1, 8) for _ in speakers]
    one, other = ([min(n, draw.randrange(4)) for n in lengths] for _ in "ab")
    found = compare_transcripts(heard(one, lengths, speakers), heard(other, lengths, speakers), n=500, seed=3)

    names = sorted(set(speakers))
    rates = []
    for draws in np.random.default_rng(3).multinomial(len(names), [1 / len(names)] * len(names), size=500):
        times = dict(zip(names, draws.tolist(), strict=True))
        difference = words = 0
        for i, speaker in enumerate(speakers):
            difference += times[speaker] * (one[i] - other[i])
            words += times[speaker] * lengths[i]
        rates.append(difference / words)
    rates.sort()

    def quantile(share: float) -> float:
        place = share * (len(rates) - 1)
        below = int(place)
        return rates[below] + (place - below) * (rates[min(below + 1, len(rates) - 1)] - rates[below])

    assert found.difference.low == pytest.approx(quantile(0.025))
    assert found.difference.high == pytest.approx(quantile(0.975))
    assert found.difference.value == pytest.approx((sum(one) - sum(other)) / sum(lengths))
    assert (found.wins, found.ties, found.losses) == tuple(
        sum(keep(a, b) for a, b in zip(one, other, strict=True))
        for keep in (lambda a, b: a < b, lambda a, b: a == b, lambda a, b: a > b)
    )


def plain_p(sums: list[float]) -> float:
    reached = abs(sum(sums))
    far = [
        abs(sum(s * x for s, x in zip(signs, sums, strict=True))) >= reached - 1e-9
        for signs in product((-1, 1), repeat=len(sums))
    ]
    return sum(far) / len(far)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.sampled_from("abcdef")), min_size=1, max_size=20))
def test_the_p_value_of_few_speakers_counts_all_signs(items: list[tuple[int, str]]) -> None:
    values, groups = zip(*items, strict=True)
    if len(set(groups)) < 2:
        sums = [float(v) for v in values if v]
        if len(sums) > 12:
            return
    else:
        sums = [float(sum(v for v, g in items if g == group)) for group in sorted(set(groups))]
    assert sign_flip_test(values, groups) == pytest.approx(plain_p(sums))


def test_random_signs_of_many_speakers_come_near_all_signs() -> None:
    draw = random.Random(1)
    sums = [draw.gauss(0.35, 1) for _ in range(16)]
    found = sign_flip_test(sums, [f"s{i:02d}" for i in range(16)], n=20_000)
    assert found == pytest.approx(plain_p(sums), abs=0.015)


def scored(errors: list[int], lengths: list[int], speakers: list[str]) -> WERResult:
    """As :func:`heard`, without texts to align: for many systems."""
    rows = zip(errors, lengths, speakers, strict=True)
    scores = [UtteranceScore(f"u{i}", s, "", str(e), n, e, 0, 0, n, 0) for i, (e, n, s) in enumerate(rows)]
    return replace(heard([0], [1], ["s"]), utterances=tuple(scores))


def equal_systems(seed: int, speakers: int = 24) -> tuple[WERResult, WERResult]:
    """Two lists of errors of which a coin gives, speaker by speaker, one to each system: neither is better."""
    draw = random.Random(seed)
    names = [f"s{i % speakers}" for i in range(120)]
    ease = {name: draw.random() for name in names}
    swapped = {name: draw.random() < 0.5 for name in names}
    lengths, pairs = [draw.randint(3, 8) for _ in names], []
    for name, length in zip(names, lengths, strict=True):
        pair = [sum(draw.random() < 0.5 * ease[name] for _ in range(length)) for _ in "ab"]
        pairs.append(pair[::-1] if swapped[name] else pair)
    one, other = zip(*pairs, strict=True)
    return scored(list(one), lengths, names), scored(list(other), lengths, names)


def test_equal_systems_are_called_different_no_more_often_than_the_level_says() -> None:
    shuffles = 400
    found = [compare_transcripts(*equal_systems(seed), n=400) for seed in range(shuffles)]
    wrong = sum(one.differs for one in found)
    print(f"{wrong} of {shuffles}")
    assert wrong / shuffles <= LEVEL + 2 * (LEVEL * (1 - LEVEL) / shuffles) ** 0.5
    assert wrong > 0  # a test that never errs would find nothing either


def test_a_run_against_itself_in_any_order_is_no_difference() -> None:
    one, _ = equal_systems(0)
    for seed in range(100):
        order = list(one.utterances)
        random.Random(seed).shuffle(order)
        found = compare_transcripts(one, replace(one, utterances=tuple(order)), n=20)
        assert not found.differs and found.p_value == 1 and found.difference.value == 0 and not found.changes


def test_a_better_system_is_found_and_its_changes_come_first() -> None:
    speakers = [f"s{i % 8}" for i in range(40)]
    lengths, one = [6] * 40, [i % 3 for i in range(40)]
    other = [errors + 1 for errors in one]
    other[7] = 6
    found = compare_transcripts(heard(one, lengths, speakers), heard(other, lengths, speakers))
    assert found.differs and found.a_is_better and found.p_value == pytest.approx(2 / 2**8)
    assert (found.wins, found.ties, found.losses) == (40, 0, 0)
    assert found.changes[0].id == "u7" and found.changes[0].gain == 5
    back = compare_transcripts(heard(other, lengths, speakers), heard(one, lengths, speakers))
    assert back.differs and not back.a_is_better


def test_few_speakers_are_warned_of_and_cannot_make_a_difference() -> None:
    speakers = [f"s{i % 4}" for i in range(40)]
    found = compare_transcripts(heard([0] * 40, [6] * 40, speakers), heard([5] * 40, [6] * 40, speakers))
    assert found.p_value == pytest.approx(0.125) and not found.differs
    assert found.warning is not None and found.warning.startswith("4 speakers: fewer than 6")
    found = compare_transcripts(heard([0], [6], [None]), heard([5], [6], [None]))
    assert found.speakers == 0 and "the speakers are not known" in found.warning


def test_classes_are_compared_by_their_unweighted_recall() -> None:
    labels = ["a", "a", "a", "b"] * 10
    speakers, ids = [f"s{i % 8}" for i in range(40)], [f"u{i}" for i in range(40)]
    right = score_classification(labels, labels, speakers, ids, labels=["a", "b"])
    wrong = score_classification(labels, ["a"] * 40, speakers, ids, labels=["a", "b"])
    found = compare_classes(right, wrong)
    assert found.metric == "ua" and found.difference.value == pytest.approx(0.5)
    assert (found.wins, found.ties, found.losses) == (10, 30, 0)
    # only the two speakers of class b have a sum that is not zero
    assert found.p_value == pytest.approx(0.5) and not found.differs
    assert {change.reference for change in found.changes} == {"b"} and found.changes[0].b == "a"


def test_many_comparisons_are_corrected() -> None:
    made = [Comparison("wer", Interval(0.1, 0.05, 0.2), p, 0, 0, 0, 9, ()) for p in (0.04, 0.01, 0.03)]
    assert [one.p_value for one in correct(made)] == pytest.approx([0.06, 0.03, 0.06])
    assert [one.differs for one in correct(made)] == [False, True, False]


def run_of(folder: Path, result: WERResult, sha256: str = "ab", adapter: str = "lora") -> Path:
    write_transcripts(folder / "predictions" / f"{adapter}.jsonl", result)
    own = MethodResults(metrics={"wer": Interval(0.2, 0.1, 0.3)})
    data = {"test": {"name": "test", "sha256": sha256, "hours": 1.0, "speakers": 8}}
    Results(task="asr", encoder="tiny", adapter=adapter, data=data, own=own).write(folder / "results.json")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    speakers = [f"s{i % 8}" for i in range(40)]
    systems = {"good": [0, 1] * 20, "same": [1, 0] * 20, "bad": [3, 4] * 20}
    return [run_of(tmp_path / name, heard(errors, [6] * 40, speakers)) for name, errors in systems.items()]


def test_the_verb_says_which_is_better_and_what_to_listen_to(runs, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, runs), "--listen", "1", "--report", str(tmp_path / "page.html")])
    assert not ended.value.code
    said = capsys.readouterr().out
    good, same, bad = (f"{run}: lora" for run in runs)
    assert f"A  {good}\nB  {same}\n  = no difference beyond chance" in said
    assert f"A  {good}\nC  {bad}\n  = {good} is better" in said
    assert f"B  {same}\nC  {bad}\n  = {same} is better" in said
    assert re.search(r"u0 \(3 better\)\n +said  ALPHA BRAVO.*\n +A     .*\n +C     ", said)
    page = (tmp_path / "page.html").read_text()
    assert (
        page.count("<article>") > 20 and "A better" in page and "A is better" in page and "warning" not in page.lower()
    )


def test_a_single_run_is_compared_with_its_own_baselines(tmp_path, capsys) -> None:
    speakers = [f"s{i % 8}" for i in range(40)]
    for name, errors in (("lora+l", [0, 1] * 20), ("head-only", [3, 4] * 20), ("unkept", None)):
        if errors is not None:
            file = tmp_path / "predictions" / f"{name.replace('+', '-')}.jsonl"
            write_transcripts(file, heard(errors, [6] * 40, speakers))
    figures = {name: MethodResults(metrics={"wer": Interval(0.2, 0.1, 0.3)}) for name in ("head-only", "unkept")}
    own = MethodResults(metrics={"wer": Interval(0.1, 0.0, 0.2)})
    results = Results(task="asr", encoder="tiny", adapter="lora+l", data={}, own=own, baselines=figures)
    results.write(tmp_path / "results.json")
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(tmp_path), "--listen", "0"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "A  lora+l\nB  head-only\n  = lora+l is better" in said
    assert "lora+l with unkept: not paired, look at the intervals above" in said


def test_many_methods_are_each_compared_with_one_and_what_cannot_be_is_said_once(tmp_path, capsys) -> None:
    speakers = [f"s{i % 8}" for i in range(40)]
    kept = ["own", *(f"m{i}" for i in range(6))]
    for errors, name in enumerate(kept):
        write_transcripts(tmp_path / "predictions" / f"{name}.jsonl", heard([errors] * 40, [6] * 40, speakers))
    one = MethodResults(metrics={"wer": Interval(0.2, 0.1, 0.3)})
    figures = dict.fromkeys([*kept[1:], "unkept"], one)
    Results(task="asr", adapter="own", data={}, own=one, baselines=figures).write(tmp_path / "results.json")

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(tmp_path), *arguments])
        captured = capsys.readouterr()
        return captured.err if ended.value.code else captured.out

    page = tmp_path / "page.html"
    shown = said("--report", str(page))
    assert shown.count("  = ") == shown.count("A  own\n") == 6  # each with the run's own adapter, not 105 pairs
    assert "u0 (" not in shown and "what changed: --listen 5" in shown and "u0 (1 better)" in said("--listen", "1")
    assert said("--against", "m0").count("A  own\n") == 1
    nothing = said("--against", "unkept", "--report", str(page), "--overwrite")
    assert nothing.count("not paired") == page.read_text().count("not paired") == 1
    assert f"unkept with {', '.join(kept)}: not paired" in nothing and "H minus A, B, C" in page.read_text()
    assert "no method 'm9' in it; choose from own, m0" in said("--against", "m9")
    with pytest.raises(ConfigError, match="against own: it names a method of one run"):
        compare_runs(read_runs([run_of(tmp_path / name, heard([0], [6], ["s"])) for name in "ab"]), against="own")


def test_a_page_plays_what_changed(tmp_path) -> None:
    import torch

    from speech_adapters.data.audio import write_audio
    from speech_adapters.data.manifest import Manifest, Utterance

    utterances = []
    for i in range(4):
        write_audio(tmp_path / f"u{i}.wav", 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(i)))
        utterances.append(Utterance(f"u{i}", tmp_path / f"u{i}.wav", 0.5, text="ALPHA", speaker=f"s{i}"))
    Manifest(utterances, "test").write(tmp_path / "test.jsonl")
    speakers = [f"s{i}" for i in range(4)]
    folders = [run_of(tmp_path / n, heard(e, [3] * 4, speakers)) for n, e in (("a", [0] * 4), ("b", [1] * 4))]
    (folders[0] / "config.yaml").write_text(json.dumps({"test": str(tmp_path / "test.jsonl")}))
    found = read_runs(folders)
    page = write_comparison(tmp_path / "page.html", found, compare_runs(found)).read_text()
    assert page.count("<audio") == 4 and "fewer than 6" in page
    names = [f"interview {i}" for i in range(4)]
    Manifest(
        [Utterance(name, u.audio_filepath, 0.5, text="ALPHA") for name, u in zip(names, utterances, strict=True)], "t"
    ).write(tmp_path / "test.jsonl")
    for number, file in enumerate((folders[0], folders[1])):
        result = heard([number] * 4, [3] * 4, speakers)
        told = [replace(score, id=name) for score, name in zip(result.utterances, names, strict=True)]
        write_transcripts(file / "predictions" / "lora.jsonl", replace(result, utterances=tuple(told)))
    page = write_comparison(tmp_path / "page.html", found, compare_runs(found)).read_text()
    assert page.count("<audio") == 4


def test_a_page_replaces_nothing_unless_asked(runs, tmp_path, capsys) -> None:
    page = tmp_path / "train.jsonl"
    page.write_text("{}")
    command = ["compare", *map(str, runs), "--report", str(page)]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "train.jsonl is there already; choose another --report, or --overwrite" in capsys.readouterr().err
    assert page.read_text() == "{}"
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--overwrite"])
    assert "<html" in page.read_text()


def test_runs_that_cannot_be_compared_are_named(runs, tmp_path, capsys) -> None:
    with pytest.raises(ConfigError, match="lora is its only method; give two runs or more"):
        read_runs(runs[:1])
    with pytest.raises(ConfigError, match="give a run whose methods"):
        read_runs([])
    other = run_of(tmp_path / "other", heard([0], [6], ["s"]), sha256="cd")
    with pytest.raises(SystemExit):
        main(["compare", str(runs[0]), str(other)])
    assert "scored on different test sets" in capsys.readouterr().out
    fewer = run_of(tmp_path / "fewer", heard([0] * 39, [6] * 39, [f"s{i % 8}" for i in range(39)]))
    (pair,) = compare_runs(read_runs([runs[0], fewer]))
    assert pair.found is None and "different or repeated utterance ids" in pair.verdict


def trials_of(speakers: int, draw: np.random.Generator, *systems: float) -> list[TrialScores]:
    """All pairs of two utterances of each speaker, scored by systems that hear targets so far above other trials,
    speakers and pairs of them more or less easy alike."""
    ends = [(i, j) for i in range(2 * speakers) for j in range(i + 1, 2 * speakers)]
    first, second = (np.array(side) // 2 for side in zip(*ends, strict=True))
    labels = first == second
    ease = draw.normal(0, 0.7, (speakers, speakers))
    found = []
    for gap in systems:
        own = ease[first, second] + draw.normal(0, 0.5, speakers)[first] + draw.normal(0, 1, len(labels))
        scores = (own + gap * labels)[None]
        found.append(TrialScores(scores, labels, tuple(f"{i} {j}" for i, j in ends), (first, second)))
    return found


def test_trials_are_compared_by_their_equal_error_rates() -> None:
    good, bad = trials_of(24, np.random.default_rng(0), 4.0, 1.0)
    found = compare_trials(good, bad, n=200)
    rates = [eer(one.scores[0], one.labels) for one in (good, bad)]
    assert found.metric == "eer" and found.difference.value == pytest.approx(rates[0] - rates[1])
    assert found.differs and found.a_is_better and found.speakers == 24 and found.wins > found.losses
    assert found.wins + found.ties + found.losses == len(good.labels)
    assert {found.changes[0].a, found.changes[0].b} == {"accepted", "refused"} and found.changes[0].speaker is None
    back = compare_trials(bad, good, n=200)
    assert back.differs and not back.a_is_better and back.difference.value == -found.difference.value

    def differences() -> Iterator[float]:  # the same draws of speakers, in plain loops
        for _ in range(200):
            times = np.bincount(random_speakers.integers(0, 24, 24), minlength=24)
            weights = np.where(good.labels, times[good.speakers[0]], times[good.speakers[0]] * times[good.speakers[1]])
            repeated = [np.repeat(part, weights) for part in (good.scores[0], bad.scores[0], good.labels)]
            yield eer(repeated[0], repeated[2]) - eer(repeated[1], repeated[2])

    random_speakers = np.random.default_rng(0)
    low, high = np.quantile(list(differences()), [0.025, 0.975])
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))


def test_equal_verification_systems_are_called_different_no_more_often_than_the_level_says() -> None:
    found = [compare_trials(*trials_of(12, np.random.default_rng(seed), 2.0, 2.0), n=100) for seed in range(100)]
    assert sum(one.differs for one in found) <= 100 * LEVEL + 2 * (100 * LEVEL * (1 - LEVEL)) ** 0.5
    one, _ = trials_of(12, np.random.default_rng(0), 2.0, 2.0)
    same = compare_trials(one, one, n=100)
    assert (
        not same.differs and same.p_value == 1 and not same.changes and same.difference == Interval(0, 0, 0, "speaker")
    )


def test_runs_of_verification_are_paired_by_trial(tmp_path, capsys) -> None:
    systems = dict(zip(("good", "bad", "other"), trials_of(12, np.random.default_rng(0), 5.0, 0.5, 2.0), strict=True))
    lines = [f"{int(label)} {name}" for label, name in zip(systems["good"].labels, systems["good"].names, strict=True)]
    (tmp_path / "trials.txt").write_text("\n".join(lines))
    trials = read_trials(tmp_path / "trials.txt")
    for name, one in systems.items():
        folder = tmp_path / name
        for seed in (0, 1) if name == "good" else (0,):
            write_scores(folder / "scores" / f"l-seed{seed}.txt", trials, one.scores[0] + seed)
        if name != "other":
            write_trials(folder / "trials.tsv", trials, one.speakers)
        own, data = MethodResults(metrics={"eer": Interval(0.2, 0.1, 0.3)}), {"test": {"name": "t", "sha256": "ab"}}
        Results(task="speaker", encoder="tiny", adapter="l", data=data, own=own).write(folder / "results.json")
    with pytest.raises(SystemExit) as ended:
        main(["compare", *(str(tmp_path / name) for name in systems), "--report", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    assert not ended.value.code and f"= {tmp_path / 'good'}: l is better\n    EER -" in said and "trials won" in said
    assert re.search(r"said  (same speaker|two speakers)\n +A     (accepted|refused)\n", said)
    assert f"{tmp_path / 'other'}: from before runs kept their trials; score them again" in said
    assert "<dt>truth</dt>" in (tmp_path / "page.html").read_text()
    assert read_speakers(tmp_path / "good" / "trials.tsv")[1].tolist() == systems["good"].speakers[1].tolist()
    unknown = tmp_path / "unknown.tsv"
    write_trials(unknown, trials)
    assert read_speakers(unknown) is None and list(read_trials(unknown)) == list(trials)
