"""Intervals of corpus figures: by speaker, in any order, as wide as they must be."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_adapters.errors import InputError
from speech_adapters.metrics.bootstrap import Interval, _draws, bootstrap, bootstrap_statistic, bootstrap_sums

CORPORA = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 20), st.sampled_from("abcdef")), min_size=1, max_size=30
)


@settings(max_examples=50, deadline=None)
@given(CORPORA, st.randoms())
def test_interval_holds_the_ratio_of_sums_and_ignores_order(corpus, random):
    interval = bootstrap(*zip(*corpus, strict=True), n=50)
    assert interval.value == pytest.approx(sum(e for e, _, _ in corpus) / sum(w for _, w, _ in corpus))
    assert interval.low <= interval.value <= interval.high
    assert interval.resampled == ("speaker" if len({s for _, _, s in corpus}) > 1 else "utterance")
    random.shuffle(corpus)
    shuffled = bootstrap(*zip(*corpus, strict=True), n=50)
    assert (shuffled.low, shuffled.high) == pytest.approx((interval.low, interval.high))


def test_interval_is_the_normal_one_for_many_independent_speakers():
    rng = np.random.default_rng(1)
    errors = rng.poisson(10, size=2000)
    interval = bootstrap(errors, np.ones(2000), [f"s{i}" for i in range(2000)], n=4000)
    half = 1.96 * errors.std() / np.sqrt(2000)
    assert interval.value - interval.low == pytest.approx(half, rel=0.06)
    assert interval.high - interval.value == pytest.approx(half, rel=0.06)


def test_draws_in_blocks_are_the_draws_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    errors, words = rng.random(50), rng.random(50)
    for groups in (None, [f"s{i % 7}" for i in range(50)]):

        def intervals(groups=groups):
            sums = bootstrap_sums(lambda s: s[:, :1] / s[:, 1:], np.stack([errors, words], 1), groups, n=100)
            of_items = bootstrap_statistic(lambda index: errors[index].mean(), groups or [None] * 50, n=100)
            return *sums, of_items, bootstrap(errors, words, groups, n=100)

        at_once = intervals()
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[bootstrap.__module__], "MOST_COUNTS", 350)
            assert [str(i) for i in intervals()] == [str(i) for i in at_once]
            blocks, *_ = _draws(50, groups, np.arange(50), 100, 0)
            blocks = list(blocks)
        (whole,), *_ = _draws(50, groups, np.arange(50), 100, 0)
        assert len(blocks) > 1 and np.array_equal(np.concatenate(blocks), whole)


def test_two_speakers_span_both_rates():
    # Half the draws take one speaker twice, so the 95 % interval reaches from one's rate to the other's.
    interval = bootstrap([1, 1, 6, 2], [10, 10, 10, 10], ["a", "a", "b", "b"])
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.25, 0.1, 0.4))


def test_speakers_widen_the_interval():
    errors = np.repeat([0, 10], 500)  # two kinds of speakers, each consistent
    speakers = [f"s{i // 100}" for i in range(1000)]
    by_speaker = bootstrap(errors, np.full(1000, 10), speakers)
    by_utterance = bootstrap(errors, np.full(1000, 10))
    assert by_speaker.high - by_speaker.low > 5 * (by_utterance.high - by_utterance.low)


@pytest.mark.parametrize("groups", [None, ["a"] * 4, ["a", "b", "b", None]])
def test_without_two_known_speakers_utterances_are_drawn_and_it_says_so(groups):
    interval = bootstrap([0, 1, 2, 9], [10] * 4, groups)
    assert interval.resampled == "utterance" and interval.low < interval.value < interval.high
    assert "by utterance" in str(interval) and interval.to_dict()["resampled"] == "utterance"


def test_same_seed_same_interval_and_level_widens_it():
    arguments = [[3, 0, 1, 7, 2], [10] * 5, list("abcde")]
    assert bootstrap(*arguments) == bootstrap(*arguments) != bootstrap(*arguments, seed=1)
    assert bootstrap(*arguments, level=0.5).high < bootstrap(*arguments, level=0.99).high


def test_statistic_agrees_with_the_ratio():
    errors, words = np.array([3, 0, 1, 7, 2, 4]), np.array([10, 8, 9, 12, 3, 7])
    speakers = list("aabbcd")
    general = bootstrap_statistic(lambda index: errors[index].sum() / words[index].sum(), speakers, n=200)
    ratio = bootstrap(errors, words, speakers, n=200)
    assert (general.value, general.low, general.high) == pytest.approx((ratio.value, ratio.low, ratio.high))


def test_statistic_leaves_out_undefined_draws():
    values = np.array([1.0, 2.0, np.nan])

    def only_complete(index: np.ndarray) -> float:
        return float("nan") if len(set(index)) < 2 else float(np.nanmean(values[index]))

    assert np.isfinite(bootstrap_statistic(only_complete, list("abc"), n=100).low)
    with pytest.raises(InputError, match="NaN"):
        bootstrap_statistic(lambda index: float("nan"), list("abc"), n=10)


def test_unusable_input_is_named():
    with pytest.raises(InputError, match="not defined"):
        bootstrap([], [])
    with pytest.raises(InputError, match="groups: 1 entries for 2"):
        bootstrap([1, 2], [3, 4], ["a"])


def test_interval_prints_and_round_trips():
    interval = Interval(0.1234, 0.1, 0.15)
    assert str(interval) == "0.123 [0.100, 0.150]"
    assert interval.percent() == "12.3 % [10.0, 15.0]"
    assert interval.to_dict() == {"value": 0.1234, "low": 0.1, "high": 0.15}
    assert Interval.from_dict(json.loads(json.dumps(interval.to_dict()))) == interval


@pytest.mark.parametrize("speakers", [None, ["a", "a", "b", "c", "c", "c"]])
def test_more_runs_of_an_utterance_make_no_narrower_interval(speakers):
    errors, words, ids = [0, 3, 1, 9, 2, 5], [10, 12, 8, 20, 9, 11], list("uvwxyz")
    once = bootstrap(errors, words, speakers)
    four = bootstrap(errors * 4, words * 4, None if speakers is None else speakers * 4, ids=ids * 4)
    assert four == once and once.low < once.high
    unknown = bootstrap(errors * 4, words * 4, None if speakers is None else speakers * 4)
    assert (unknown == once) == (speakers is not None), "whole speakers hold all their runs anyway"


def test_utterances_of_one_id_and_two_speakers_are_two():
    apart = bootstrap([0, 3, 1, 9], [10] * 4, ["a", "b", "c", "d"], ids=["u", "u", "v", "v"])
    assert apart == bootstrap([0, 3, 1, 9], [10] * 4, ["a", "b", "c", "d"])
