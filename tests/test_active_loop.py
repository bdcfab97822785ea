"""The labelling loop: budgets, logging, resuming, stop rules, sheets, curves; on a pool that needs no audio."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speech_adapters.active.curves import Curve, area_difference, over_seeds
from speech_adapters.active.loop import ActiveLearner, LabellingConfig
from speech_adapters.active.pool_predictions import Observation
from speech_adapters.active.sheet import Row, read_sheet, sheet_rows, write_sheet
from speech_adapters.active.strategies import STRATEGIES, PoolView
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, InputError, ManifestError

LABELS = ("angry", "calm")


def make_pool(durations) -> Manifest:
    return Manifest(
        [
            Utterance(f"u{i}", Path(f"/audio/u{i}.wav"), float(d), emotion=LABELS[i % 2])
            for i, d in enumerate(durations)
        ],
        "pool",
    )


def observation(manifest: Manifest) -> Observation:
    """What a model might say, a function of the ids alone."""
    rows = [np.random.default_rng(int(u.id[1:])).random(8) for u in manifest]
    table = np.array(rows, dtype=np.float32).reshape(-1, 8)
    unsure = {"entropy": table[:, 0], "margin": table[:, 1], "least_confidence": table[:, 2]}
    return Observation(table, tuple(LABELS[int(r > 0.5)] for r in table[:, 3]), unsure, None, table)


def view_of(learner: ActiveLearner) -> PoolView:
    pool, labelled = learner.unlabelled, learner.labelled
    return PoolView(
        len(pool),
        lambda gradients: observation(pool),
        (lambda: observation(labelled)) if len(labelled) else None,
        lambda: observation(pool).embeddings[:, 4],
        lambda: observation(pool).embeddings[:, 5],
        clusters=3,
    )


def oracle(turn) -> dict:
    return {u.id: {"emotion": u.emotion} for u in turn.picks}


def drive(learner: ActiveLearner, score=lambda done: float(done), until: int = 10**6) -> ActiveLearner:
    """Run the loop; raise after ``until`` decisions, as a kill would."""
    steps = 0

    def step():
        nonlocal steps
        steps += 1
        if steps > until:
            raise KeyboardInterrupt

    while True:
        step()
        if learner.waits_for_score:
            learner.report(score(learner.rounds_done))
            continue
        turn = learner.next_round(lambda: view_of(learner))
        if turn is None:
            return learner
        step()
        learner.label(oracle(turn))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    durations=st.lists(st.floats(0.5, 9.0), min_size=1, max_size=40),
    strategy=st.sampled_from([name for name in STRATEGIES if name != "cluster"]),
    cold=st.sampled_from(["random", "cluster", "k_center"]),
    unit=st.sampled_from(["utterances", "seconds"]),
    budget=st.floats(1, 80),
    shares=st.sampled_from([(0.2, 0.0), (0.3, 0.3), (1.0, 0.0), (0.5, 0.5)]),
    rounds=st.integers(3, 6),
    seed=st.integers(0, 5),
)
def test_budgets_hold_for_every_strategy(tmp_path, durations, strategy, cold, unit, budget, shares, rounds, seed):
    pool = make_pool(durations)
    config = LabellingConfig(strategy=strategy, cold_start=cold, unit=unit, budget=budget, initial=shares[0],
                        reserve=shares[1], rounds=rounds, seed=seed)  # fmt: skip
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    learner = drive(ActiveLearner(pool, config, folder))
    picked = learner.picked
    assert learner.spent <= budget + 1e-6
    assert len(set(picked)) == len(picked) and set(picked) <= {u.id for u in pool}
    assert {u.id for u in learner.labelled} == set(picked)
    assert len([e for e in learner.events if e["event"] == "picks"]) <= rounds
    left = [learner.cost(utterance) for utterance in learner.unlabelled]
    assert not left or learner.spent + min(left) > budget  # all of it that can be


@pytest.mark.parametrize(
    ("settings", "spent"),
    [
        ({"budget": 60, "unit": "seconds", "rounds": 10}, [10] * 6),
        ({"budget": 10, "rounds": 12}, [2, *[1] * 8]),
        ({"budget": 4, "rounds": 3}, [1, 1, 2]),
        ({"budget": 4, "initial": 0.5, "reserve": 0.5, "rounds": 4}, [2, 2]),
    ],
)
def test_a_round_takes_one_label_where_its_share_is_less(tmp_path, settings, spent):
    learner = drive(ActiveLearner(make_pool([10.0] * 20), LabellingConfig(strategy="random", **settings), tmp_path))
    assert [event["cost"] for event in learner.events if event["event"] == "picks"] == spent


def test_a_budget_of_the_whole_pool_takes_the_whole_pool(tmp_path):
    pool = make_pool(np.random.default_rng(0).uniform(1, 20, 20_000).round(3))
    budget = sum(utterance.duration for utterance in pool)
    config = LabellingConfig(
        strategy="random", budget=budget, unit="seconds", initial=1.0, cold_start="random", rounds=1, seed=2
    )
    turn = ActiveLearner(pool, config, tmp_path).next_round(lambda: PoolView(len(pool), lambda gradients: None))
    assert len(turn.picks) == len(pool)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_killed_anywhere_it_goes_on_with_the_same_picks(tmp_path, strategy):
    pool = make_pool(np.random.default_rng(1).uniform(1, 6, 30))
    config = LabellingConfig(strategy=strategy, budget=60, unit="seconds", rounds=4, reserve=0.2, seed=3)
    expected = drive(ActiveLearner(pool, config, tmp_path / "whole"))
    for kill in range(1, 12):
        folder = tmp_path / f"kill{kill}"
        with pytest.raises(KeyboardInterrupt):
            drive(ActiveLearner(pool, config, folder), until=kill)
        if kill % 2:  # the kill may also tear the line that was being written
            with (folder / "decisions.jsonl").open("a") as file:
                file.write('{"event": "pic')
        again = drive(ActiveLearner(pool, config, folder))
        assert again.events == expected.events
        lines = (folder / "decisions.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == expected.events


def test_the_strategy_decides_after_the_start_and_the_reserve_goes_to_doubt(tmp_path):
    pool = make_pool([1.0] * 40)
    learner = drive(
        ActiveLearner(pool, LabellingConfig(strategy="margin", budget=20, rounds=4, reserve=0.25), tmp_path)
    )
    picks = [e for e in learner.events if e["event"] == "picks"]
    assert [e["stage"] for e in picks] == ["start", "choose", "choose", "polish"]
    assert [e["strategy"] for e in picks] == ["cluster", "margin", "margin", "least_confidence"]
    assert [len(e["ids"]) for e in picks] == [4, 5, 6, 5]
    rest = [u for u in pool if u.id not in picks[0]["ids"]]
    unsure = observation(Manifest(rest)).uncertainty["margin"]
    assert picks[1]["ids"] == [rest[i].id for i in np.argsort(-unsure)[:5]]


def test_stop_rules(tmp_path):
    pool, scores = make_pool([1.0] * 60), [0.2, 0.5, 0.501, 0.9, 0.9, 0.9]
    config = LabellingConfig(strategy="entropy", budget=50, rounds=6, stop_gain=0.05)
    learner = drive(ActiveLearner(pool, config, tmp_path / "gain"), lambda done: scores[done])
    assert len(learner.scores) == 3 and "gain of" in learner.events[-1]["reason"]
    again = drive(ActiveLearner(pool, config, tmp_path / "gain"), lambda done: scores[done])
    assert again.events == learner.events  # stopped stays stopped
    reserved = replace(config, reserve=0.2)
    learner = drive(ActiveLearner(pool, reserved, tmp_path / "reserve"), lambda done: scores[done])
    assert [e["stage"] for e in learner.events if e["event"] == "picks"][-1] == "polish"
    assert [len(e["ids"]) for e in learner.events if e["event"] == "picks"][-1] == 10
    for threshold, rounds in ((0.0, 1), (1.0, 6)):
        config = LabellingConfig(strategy="entropy", budget=50, rounds=6, stop_agreement=threshold)
        learner = drive(ActiveLearner(pool, config, tmp_path / f"agree{threshold}"))
        assert len(learner.scores) == rounds


def test_another_pool_or_configuration_is_refused(tmp_path):
    config = LabellingConfig(budget=5)
    ActiveLearner(make_pool([1, 2, 3]), config, tmp_path)
    with pytest.raises(ConfigError, match="another pool"):
        ActiveLearner(make_pool([1, 2]), config, tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        ActiveLearner(make_pool([1, 2, 3]), LabellingConfig(budget=5, seed=1), tmp_path)
    for bad in ({"strategy": "best"}, {"budget": 0}, {"initial": 0}, {"reserve": 0.9}, {"rounds": 1}):
        with pytest.raises(ConfigError):
            LabellingConfig(**bad)
    with pytest.raises(ConfigError, match="empty"):
        ActiveLearner(make_pool([]), config, tmp_path / "x")


def test_labels_must_be_those_of_the_picks(tmp_path):
    learner = ActiveLearner(make_pool([1] * 9), LabellingConfig(budget=9, initial=0.3), tmp_path)
    with pytest.raises(ConfigError, match="no round waits"):
        learner.label({})
    turn = learner.next_round(lambda: view_of(learner))
    labels = oracle(turn)
    with pytest.raises(ConfigError, match="label exactly the picks"):
        learner.label({**labels, "u99": {"emotion": "calm"}})
    assert learner.next_round(lambda: pytest.fail("logged picks are not drawn again")) == turn
    learner.label(labels)
    with pytest.raises(ConfigError, match="report the score"):
        learner.next_round(lambda: view_of(learner))
    assert [u.emotion for u in learner.labelled] == [u.emotion for u in turn.picks]


def test_labels_may_come_again_as_they_were_or_corrected(tmp_path):
    learner = ActiveLearner(make_pool([1] * 12), LabellingConfig(budget=8, initial=0.5, rounds=2), tmp_path)
    turn = learner.next_round(lambda: view_of(learner))
    labels = {u.id: {"emotion": "calm"} for u in turn.picks}
    assert learner.label(labels) is None
    again = ActiveLearner(learner.pool, learner.config, tmp_path)
    assert again.label(labels) == set() and len(again.labelled) == len(turn.picks)
    first = turn.picks[0].id
    corrected = {**labels, first: {"emotion": "angry"}}
    with pytest.raises(ConfigError, match="other labels already; report its score, then correct them"):
        again.label(corrected)
    again.report(0.5)
    assert again.label(labels) == set() and not again.corrected
    assert again.label(corrected) == {first} and again.corrected
    second = again.next_round(lambda: view_of(again))
    assert again.label(corrected) == set() and again.pending == second and again.rounds == (turn, second)
    again.label({u.id: {"emotion": "calm"} for u in second.picks})
    again.report(0.5)
    assert not again.corrected  # its model has learnt from them
    once_more = ActiveLearner(learner.pool, learner.config, tmp_path)
    assert once_more.said == {**corrected, **{u.id: {"emotion": "calm"} for u in second.picks}}
    assert [u.emotion for u in once_more.labelled].count("angry") == 1
    with pytest.raises(ConfigError, match="no round waits"):
        once_more.label({first: {"emotion": "calm"}})


def test_what_is_skipped_costs_nothing_and_is_not_picked_again(tmp_path):
    config = LabellingConfig(strategy="random", cold_start="random", budget=6, initial=0.5, rounds=3)
    learner = ActiveLearner(make_pool([1] * 9), config, tmp_path)
    picked = []
    while (turn := learner.next_round(lambda: view_of(learner))) is not None:
        picked += [u.id for u in turn.picks]
        learner.label({u.id: {"emotion": "calm"} if place else None for place, u in enumerate(turn.picks)})
        learner.report(0.5)
    costs = [event["cost"] for event in learner.events if event["event"] == "picks"]
    assert costs == [3, 2, 3]  # 3 + 3 of the budget, and what the first pick of each round before gave back
    assert len(set(picked)) == len(picked) == 8 and len(learner.labelled) == learner.spent == 5
    assert not {u.id for u in learner.unlabelled} & set(picked)


def test_a_round_that_was_skipped_stops_no_loop(tmp_path):
    config = LabellingConfig(strategy="random", cold_start="random", budget=9, rounds=4, stop_gain=0.1)
    learner = ActiveLearner(make_pool([1] * 20), config, tmp_path)
    for number in range(4):
        turn = learner.next_round(lambda: view_of(learner))
        learner.label({u.id: None if number == 1 else {"emotion": "calm"} for u in turn.picks})
        learner.report((0.2, 0.2, 0.9, 0.95)[number])
    assert not [event for event in learner.events if event["event"] == "stop"]


# ---------------------------------------------------------------------- sheets


@pytest.fixture
def sheet(tmp_path):
    """A written sheet of three picks with sound and two labelled neighbours; (folder, picks)."""
    utterances = []
    for i in range(5):
        write_audio(tmp_path / f"u{i}.wav", torch.sin(torch.arange(8000) * (0.05 + 0.02 * i)) * 0.3)
        utterances.append(
            Utterance(f"u{i}", tmp_path / f"u{i}.wav", 0.5, emotion="calm" if i > 2 else None, text="A <b> & C")
        )
    pool, labelled = Manifest(utterances[:3]), Manifest(utterances[3:])
    rows = sheet_rows(utterances[:3], pool, observation(pool), labelled, observation(labelled), "emotion")
    write_sheet(tmp_path / "round", rows, "emotion", LABELS)
    return tmp_path / "round", utterances[:3]


def test_sheet_shows_guess_doubt_neighbours_and_sound(sheet):
    folder, picks = sheet
    entries = [json.loads(line) for line in (folder / "sheet.jsonl").read_text().splitlines()]
    expected = observation(Manifest(picks))
    assert [e["guess"] for e in entries] == list(expected.guesses)
    assert entries[0]["uncertainty"] == pytest.approx(float(expected.uncertainty["entropy"][0]), abs=1e-4)
    assert {name.split(":")[0] for name in entries[0]["nearest"]} == {"u3", "u4"}
    assert entries[0]["nearest"][0].endswith(": calm")
    page = (folder / "sheet.html").read_text()
    assert page.count("data:audio/flac;base64,") == 3 and page.count("<option>angry</option>") == 3
    assert str(folder.parent) not in "".join(
        (folder / f"sheet.{kind}").read_text() for kind in ("html", "csv", "jsonl")
    )
    assert [e["audio_filepath"] for e in entries] == ["u0.wav", "u1.wav", "u2.wav"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_filled_sheet_comes_back_as_labels(sheet, kind):
    folder, picks = sheet
    path = folder / f"filled.{kind}"
    if kind == "jsonl":
        rows = [{**json.loads(line), "emotion": "angry"} for line in (folder / "sheet.jsonl").read_text().splitlines()]
        path.write_text("\n".join(map(json.dumps, reversed(rows))))
    else:
        text = (folder / "sheet.csv").read_text()
        for pick in picks:
            text = text.replace(f"{pick.id},,", f"{pick.id},angry,")
        path.write_text(text)
    assert read_sheet(path, picks, "emotion", LABELS) == {pick.id: {"emotion": "angry"} for pick in picks}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "\ufeffID;Emotion;guess\nu0;calm;x\nu1;calm\nu2;angry;x\n;;\n;;\n"),
        ("b.csv", "sep=;\r\nid;emotion\r\nu0;calm\r\nu1; calm \r\nu2;angry\r\n"),
        ("c.tsv", "Id\tEMOTION\nu0\tcalm\nu1\tcalm\nu2\tangry\n\t\n"),
    ],
)
def test_a_sheet_is_read_as_spreadsheets_save_it(sheet, name, text):
    folder, picks = sheet
    (folder / name).write_text(text)
    labels = {"u0": {"emotion": "calm"}, "u1": {"emotion": "calm"}, "u2": {"emotion": "angry"}}
    assert read_sheet(folder / name, picks, "emotion", LABELS) == labels
    (folder / name).write_text(text.replace("angry", "ngry"))
    line = text[: text.index("angry")].count("\n") + 1
    with pytest.raises(ManifestError, match=f"{name}:{line}: emotion 'ngry' is not one of"):
        read_sheet(folder / name, picks, "emotion", LABELS)
    (folder / name).write_text(text.lower().replace("emotion", "felt"))
    with pytest.raises(InputError, match="no column 'emotion'; there are id, felt.*: rename the one it is"):
        read_sheet(folder / name, picks, "emotion", LABELS)


def test_no_text_is_a_formula_a_tag_or_a_line(tmp_path):
    """What a spreadsheet, a browser or a line reader might take for its own comes back as it was."""
    evil = "</script><script>alert('x')</script>"
    names = ["=1+1", "+1", "-1", "@a", "\tb", "'=c", "''-d", "'tis", "plain", evil, 'q"uote,', "two\u2028lines\x85"]
    picks = [Utterance(name, tmp_path / f"{evil[2:8]}{i}.wav", 0.5) for i, name in enumerate(names)]
    rows = [Row(pick, guess=pick.id, nearest=(f"{pick.id}: x",)) for pick in picks]
    page = write_sheet(tmp_path / "round", rows, "text").read_text()
    assert page.count("<script>") == page.count("</script>") == 1 and "no audio" in page and str(tmp_path) not in page
    assert re.search(r"script-src &#39;sha256-[\w+/=]{44}&#39;", page)
    assert (tmp_path / "round" / "sheet.csv").read_bytes().startswith(codecs.BOM_UTF8)  # Excel reads UTF-8 by it alone
    table = (tmp_path / "round" / "sheet.csv").read_text(encoding="utf-8-sig")
    cells = [cell for line in csv.reader(io.StringIO(table, newline="")) for cell in line]
    assert len(cells) == 8 * (len(names) + 1) and not [
        cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t")
    ]
    filled = io.StringIO()
    writer = csv.writer(filled)
    writer.writerow(["id", "text"])
    writer.writerows([line[0], line[0]] for line in [*csv.reader(io.StringIO(table, newline=""))][1:])
    (tmp_path / "filled.csv").write_bytes(filled.getvalue().encode())
    expected = {name: {"text": name.strip()} for name in names}
    assert read_sheet(tmp_path / "filled.csv", picks, "text") == expected
    lines = [json.dumps({"id": name, "text": name}, ensure_ascii=False) for name in names]
    (tmp_path / "filled.jsonl").write_text("\n".join(lines))
    assert read_sheet(tmp_path / "filled.jsonl", picks, "text") == expected
    (tmp_path / "filled.jsonl").write_text('{"id": "=1+1", "text": "\\ud800"}')
    with pytest.raises(ManifestError, match="half a character"):
        read_sheet(tmp_path / "filled.jsonl", picks, "text")
    (tmp_path / "filled.csv").write_text("id,text\n" + "x" * 200_000)
    with pytest.raises(InputError, match=r"filled.csv:\d+: not a table"):
        read_sheet(tmp_path / "filled.csv", picks, "text")


@pytest.mark.parametrize(("key", "labels"), [("emotion", LABELS), ("text", ())])
def test_a_sheet_may_skip_and_come_again(sheet, key, labels):
    folder, picks = sheet
    page = (folder / "sheet.html").read_text()
    assert "Choose <q>-</q> for what cannot be labelled" in page and page.count("<option>-</option>") == 3
    (folder / "f.csv").write_text(f"id,{key}\nu0,calm\nu1, - \nu2,angry\n")
    said = {"u0": {key: "calm"}, "u1": None, "u2": {key: "angry"}}
    assert read_sheet(folder / "f.csv", picks, key, labels) == said
    following = [replace(pick, id=f"next-{pick.id}") for pick in picks]
    assert read_sheet(folder / "f.csv", following, key, labels, [picks]) == said
    (folder / "f.csv").write_text(f"id,{key}\nu0,calm\nnext-u1,calm\nu2,angry\n")
    with pytest.raises(ManifestError, match="f.csv:3: id 'next-u1' is not in this round; give this round's sheet"):
        read_sheet(folder / "f.csv", following, key, labels, [picks])


GOOD = [{"id": "u0", "emotion": "calm"}, {"id": "u1", "emotion": "calm"}, {"id": "u2", "emotion": "angry"}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD[0], "{"], ":2: not JSON"),
        ([GOOD[0], "[1]"], ":2: expected a JSON object"),
        ([GOOD[0], {"id": "u1"}], ":2: 'emotion' is missing"),
        ([{"emotion": "calm"}], ":1: 'id' is missing"),
        ([*GOOD, {"id": "u7", "emotion": "calm"}], ":4: id 'u7' is not in this round"),
        ([GOOD[0], GOOD[0]], ":2: id 'u0' stands here a second time"),
        ([GOOD[0], {"id": "u1", "emotion": "  "}], ":2: 'emotion' of 'u1' is empty"),
        ([GOOD[0], {"id": "u1", "emotion": "clam"}], ":2: emotion 'clam' is not one of angry, calm"),
        (GOOD[:2], "1 of the round's picks have no line: 'u2'"),
    ],
)
def test_a_bad_sheet_says_where(sheet, lines, message):
    folder, picks = sheet
    path = folder / "bad.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    with pytest.raises(InputError) as caught:
        read_sheet(path, picks, "emotion", LABELS)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_bad_table_says_where(sheet):
    folder, picks = sheet
    with pytest.raises(ManifestError, match=r"sheet\.csv:2: 'emotion' of 'u0' is empty"):
        read_sheet(folder / "sheet.csv", picks, "emotion", LABELS)
    with pytest.raises(InputError, match="cannot be read"):
        read_sheet(folder / "none.csv", picks, "emotion", LABELS)
    for name, content, message in (
        ("latin.csv", "id,emotion\nu0,schön\n".encode("cp1252"), "not UTF-8 text .*; convert the sheet to UTF-8"),
        ("sheet.xlsx", b"PK\x03\x04\xff", "the sheet, a workbook, cannot be read; save its sheet as CSV"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: {message}"):
            read_sheet(folder / name, picks, "emotion", LABELS)


def test_a_sheet_that_a_spreadsheet_has_changed(sheet):
    folder, picks = sheet
    numbered = [replace(pick, id=f"00{number}") for number, pick in enumerate(picks, 1)]
    (folder / "t.csv").write_text("id;text\r\n1;A\r\n2;B\r\n3;C\r\n")
    with pytest.raises(InputError, match=r"t\.csv:2: id '1' is not in this round \('001' is there: .*zeros"):
        read_sheet(folder / "t.csv", numbered, "text")
    (folder / "t.csv").write_text('id;text\r\n001;"A \nB"\r\n002;B\r\n003;C\r\n')
    assert read_sheet(folder / "t.csv", numbered, "text")["001"] == {"text": "A B"}


# ---------------------------------------------------------------------- curves


def test_curves():
    runs = [[(10, 0.2), (20, 0.4), (40, 0.6)], [(10, 0.4), (20, 0.6), (40, 0.8)]]
    curve = Curve.of(runs)
    assert curve.labels.tolist() == [10, 20, 40]
    assert curve.area().value == pytest.approx((0.4 * 10 + 0.6 * 20) / 30)
    assert curve.labels_to_reach(0.4) == pytest.approx(15)  # the mean rises from 0.3 to 0.5
    assert curve.labels_to_reach(0.3) == 10 and curve.labels_to_reach(0.71) is None
    shifted = Curve.of([[(x, y - 0.1) for x, y in run] for run in runs])
    gain = area_difference(curve, shifted)
    assert gain.value == pytest.approx(0.1) and gain.low == pytest.approx(0.1)  # paired: seeds share their luck
    with pytest.raises(InputError, match="one scored round"):
        Curve.of([[]])


def test_seeds_that_spend_other_seconds_share_a_grid():
    curve = Curve.of([[(9.5, 0.0), (20.5, 1.1)], [(10, 0.5), (20, 1.5)]])
    assert curve.labels.tolist() == [10, 20]
    np.testing.assert_allclose(curve.scores, [[0.05, 1.05], [0.5, 1.5]])


def test_interval_over_seeds_is_students():
    values = [0.1, 0.2, 0.4]
    found = over_seeds(values)
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    assert (found.value, found.high) == (pytest.approx(0.7 / 3), pytest.approx(0.7 / 3 + half, rel=1e-5))
    assert over_seeds([0.3]).low == 0.3


def test_one_process_labels_in_a_folder_at_a_time(tmp_path):
    (tmp_path / "decisions.jsonl").write_text('{"event": "sta')  # torn by a kill before the first line was whole
    ActiveLearner(make_pool([1.0] * 4), LabellingConfig(), tmp_path)
    assert len((tmp_path / "decisions.jsonl").read_text().splitlines()) == 1
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_active_loop import *\n"
        "try: ActiveLearner(make_pool([1.0] * 4), LabellingConfig(), sys.argv[2])\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "another process writes to this folder" in done.stdout


@pytest.mark.parametrize(
    ("strategy", "missing"), [("entropy", "a trained model"), ("dropout", "dropout"), ("badge", "gradients")]
)
def test_a_strategy_says_what_its_view_lacks(strategy: str, missing: str) -> None:
    view = PoolView(2, lambda gradients: Observation(np.zeros((2, 3), dtype=np.float32)))
    with pytest.raises(ConfigError, match=rf"strategy '{strategy}' needs .*{missing}"):
        list(STRATEGIES[strategy](view, np.random.default_rng(0)))
