"""WER and CER, their intervals, the comparison of two systems, and trn files."""

from __future__ import annotations

import json
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_adapters.errors import InputError
from speech_adapters.metrics import compare, word_error_rate, write_trn
from speech_adapters.metrics.slots import SlotsResult, SlotsUtterance
from speech_adapters.metrics.wer import pooled_metrics

WORDS = st.lists(st.sampled_from(["A", "B", "CAT", "CAR"]), max_size=8)
PAIRS = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=5)


def edit_distance(a: list[str] | str, b: list[str] | str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_rates_are_edit_distances(pairs):
    references, hypotheses = ([" ".join(words) for words in side] for side in zip(*pairs, strict=True))
    result = word_error_rate(references, hypotheses, n=10)
    errors = [edit_distance(reference, hypothesis) for reference, hypothesis in pairs]
    assert [score.errors for score in result.utterances] == errors
    assert result.words == sum(len(reference) for reference, _ in pairs)
    assert result.wer.value == pytest.approx(sum(errors) / result.words)
    characters = sum(edit_distance(r, h) for r, h in zip(references, hypotheses, strict=True))
    assert result.cer.value == pytest.approx(characters / sum(map(len, references)))
    for score, (reference, hypothesis) in zip(result.utterances, pairs, strict=True):
        assert score.insertions - score.deletions == len(hypothesis) - len(reference)


def example():
    return word_error_rate(
        ["the black cat sat down here", "a b", "yes", "no"],
        ["The cat sat very, down there!", "", "yes", "oh no no"],
        speakers=["s1", "s1", "s2", "s3"],
        ids=["u1", "u2", "u3", "u4"],
    )


def test_errors_are_told_apart():
    result = example()
    assert (result.substitutions, result.deletions, result.insertions, result.words) == (1, 3, 3, 10)
    assert result.wer.value == 7 / 10 and result.wer.resampled == "speaker"
    assert [score.wer for score in result.utterances] == [3 / 6, 1.0, 0.0, 2.0]
    assert str(result).startswith("WER 70.0 % [")
    values = json.loads(json.dumps(result.to_dict()))
    assert values["wer"]["value"] == 0.7 and (values["utterances"], values["normalizer"]) == (4, "librispeech")


def test_worst_utterances_show_their_alignment():
    first, second, third = example().worst(3)
    assert (first.id, second.id, third.id) == ("u1", "u4", "u2")
    reference, hypothesis, marks = first.alignment().split("\n")
    assert reference.split() == ["REF:", *"THE BLACK CAT SAT **** DOWN HERE".split()]
    assert hypothesis.split() == ["HYP:", *"THE ***** CAT SAT VERY DOWN THERE".split()]
    assert marks.split() == ["D", "I", "S"]
    assert "D" in third.alignment()  # an empty hypothesis


def test_normalizer_is_applied_to_both_sides():
    assert word_error_rate(["It's well-known"], ["IT’S WELL KNOWN."]).wer.value == 0
    assert word_error_rate(["a\tb"], ["A b"], normalizer="none").wer.value == 0.5


def test_compare_is_paired_and_far_narrower_than_the_rates():
    references = ["A B C D"] * 60
    speakers = [f"s{i % 12}" for i in range(60)]
    hard = ["X X X X" if i % 12 < 6 else "A B C D" for i in range(60)]  # half the speakers are hopeless for both
    worse = [h.rsplit(" ", 1)[0] if i % 5 == 0 else h for i, h in enumerate(hard)]  # and one word in twenty is lost
    b = word_error_rate(references, hard, speakers)
    a = word_error_rate(references, worse, speakers)
    difference = compare(a, b)
    assert difference.value == pytest.approx(a.wer.value - b.wer.value)
    assert 0 < difference.low < difference.high
    assert difference.high - difference.low < 0.5 * (b.wer.high - b.wer.low)
    assert compare(b, a).value == -difference.value
    same = compare(a, a)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_runs_of_one_test_set_are_pooled_without_a_narrower_interval():
    texts = (["A B", "CAT", "B B A", "CAR A"], ["A B", "CAR", "B A", "A"])
    once = word_error_rate(*texts)
    four = pooled_metrics([once] * 4)
    assert four == pooled_metrics([once])
    assert four["wer"] == once.wer.to_dict() and four["wer"]["low"] < four["wer"]["high"]


def test_runs_of_slots_are_pooled_alike():
    rows = [("u", ("on",)), ("v", ("off",)), ("w", ("on",))]
    once = SlotsResult(("action",), tuple(SlotsUtterance(id_, None, ("on",), said) for id_, said in rows))
    assert (once + once + once + once).accuracy == once.accuracy and once.accuracy.low < once.accuracy.high


def test_compare_refuses_different_test_sets():
    a = word_error_rate(["A"], ["A"], ids=["x"])
    with pytest.raises(InputError, match="different or repeated"):
        compare(a, word_error_rate(["A"], ["A"], ids=["y"]))
    with pytest.raises(InputError, match="reference of 'x' differs"):
        compare(a, word_error_rate(["B"], ["A"], ids=["x"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"references": ["a", " ?! "], "hypotheses": ["a", "b"], "ids": ["u1", "u2"]}, "'u2'.*no words"),
        ({"references": ["a"], "hypotheses": []}, "hypotheses: 0 entries for 1"),
        ({"references": ["a"], "hypotheses": ["a"], "speakers": ["s", "t"]}, "speakers: 2 entries for 1"),
        ({"references": [], "hypotheses": []}, "none given"),
    ],
)
def test_unusable_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        word_error_rate(**arguments)


def test_trn_files(tmp_path):
    example().save_trn(tmp_path / "trn")
    assert (tmp_path / "trn" / "ref.trn").read_text().splitlines()[0] == "THE BLACK CAT SAT DOWN HERE (s1-u1)"
    assert (tmp_path / "trn" / "hyp.trn").read_text().splitlines()[1] == " (s1-u2)"
    assert sorted(file.name for file in (tmp_path / "trn").iterdir()) == ["hyp.trn", "ref.trn"]
    write_trn(tmp_path / "x.trn", ["A"], ["u1"])
    assert (tmp_path / "x.trn").read_text() == "A (unknown-u1)\n"
    write_trn(tmp_path / "y.trn", ["A", "B"], ["call (2).wav", "50%"], ["Speaker 1", None])
    names = ["Speaker%201-call%20%282%29.wav", "unknown-50%25"]
    assert (tmp_path / "y.trn").read_text() == f"A ({names[0]})\nB ({names[1]})\n"
    assert unquote(names[0]) == "Speaker 1-call (2).wav" and unquote(names[1]) == "unknown-50%"
