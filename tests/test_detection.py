"""Detection metrics against a second implementation that tries every threshold, and against scikit-learn."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss, roc_curve

from speech_adapters.errors import ConfigError, InputError
from speech_adapters.metrics.detection import (
    RankedTrials,
    actual_dcf,
    cllr,
    cllr_losses,
    dcf_losses,
    detection_curve,
    eer,
    mean_loss,
    min_cllr,
    min_dcf,
)


@st.composite
def trials(draw):
    """Scores and labels with both classes: free, heavily tied, constant or two trials only."""
    size = draw(st.integers(2, 40))
    values = draw(
        st.sampled_from([st.floats(-50, 50, allow_subnormal=False), st.integers(-3, 3).map(float), st.just(0.25)])
    )
    scores = draw(st.lists(values, min_size=size, max_size=size))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    labels[0], labels[1] = 1, 0
    order = draw(st.permutations(range(size)))
    return np.array(scores)[order], np.array(labels)[order]


def every_threshold(scores, labels):
    """(p_fa, p_miss) of every decision that a threshold can make, by counting: O(n^2)."""
    points = []
    for threshold in [*sorted(set(scores)), math.inf]:
        misses = sum(1 for s, y in zip(scores, labels, strict=True) if y == 1 and s < threshold)
        alarms = sum(1 for s, y in zip(scores, labels, strict=True) if y == 0 and s >= threshold)
        points.append((alarms / list(labels).count(0), misses / list(labels).count(1)))
    return points


def reference_eer(scores, labels):
    points = every_threshold(scores, labels)
    for (fa, miss), (next_fa, next_miss) in pairwise(points):
        # On the segment, p_miss - p_fa is linear: solve for 0 where its ends have different signs.
        low, high = miss - fa, next_miss - next_fa
        if low <= 0 <= high:
            part = 0.0 if low == high else -low / (high - low)
            return miss + part * (next_miss - miss)
    raise AssertionError("the ROC crosses the diagonal")


def reference_min_cllr(scores, labels):
    """Cllr of the best monotone posteriors, by minimax: the isotonic fit is the max over left ends of the min over
    right ends of the block means."""
    distinct = sorted(set(scores))
    groups = [[y for s, y in zip(scores, labels, strict=True) if s == value] for value in distinct]
    count, total = len(groups), len(labels)
    targets = int(sum(labels))
    prior_odds = targets / (total - targets)
    costs = {1: 0.0, 0: 0.0}

    def mean(i, j):
        block = [label for group in groups[i : j + 1] for label in group]
        return sum(block) / len(block)

    for k in range(count):
        p = max(min(mean(i, j) for j in range(k, count)) for i in range(k + 1))
        for label in groups[k]:
            if label == 1:
                costs[1] += math.log2(1 + (1 - p) / p * prior_odds)
            else:
                costs[0] += math.log2(1 + p / (1 - p) / prior_odds)
    return (costs[1] / targets + costs[0] / (total - targets)) / 2


@settings(max_examples=100, deadline=None)
@given(trials())
def test_eer_and_dcf_equal_the_search_over_every_threshold(case):
    scores, labels = case
    assert eer(scores, labels) == pytest.approx(reference_eer(scores, labels), abs=1e-12)
    for p, c_miss, c_fa in ((0.01, 1, 1), (0.05, 1, 1), (0.5, 1, 1), (0.9, 2, 5)):
        costs = [c_miss * p * miss + c_fa * (1 - p) * fa for fa, miss in every_threshold(scores, labels)]
        expected = min(costs) / min(c_miss * p, c_fa * (1 - p))
        assert min_dcf(scores, labels, p, c_miss, c_fa) == pytest.approx(expected, rel=1e-9)
        assert 0 <= expected <= 1
        threshold = math.log(c_fa * (1 - p) / (c_miss * p))
        miss = np.mean([s < threshold for s, y in zip(scores, labels, strict=True) if y == 1])
        fa = np.mean([s >= threshold for s, y in zip(scores, labels, strict=True) if y == 0])
        expected = (c_miss * p * miss + c_fa * (1 - p) * fa) / min(c_miss * p, c_fa * (1 - p))
        assert actual_dcf(scores, labels, p, c_miss, c_fa) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(trials())
def test_eer_lies_on_the_roc_of_scikit_learn(case):
    scores, labels = case
    p_fa, p_hit, _ = roc_curve(labels, scores, drop_intermediate=False)
    rate = eer(scores, labels)
    # The crossing of the polyline with the diagonal p_hit = 1 - p_fa.
    gaps = p_fa - (1 - p_hit)
    at = int(np.argmax(gaps >= 0))
    part = -gaps[at - 1] / (gaps[at] - gaps[at - 1])
    assert rate == pytest.approx(p_fa[at - 1] + part * (p_fa[at] - p_fa[at - 1]), abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(trials())
def test_cllr_and_min_cllr_equal_their_definitions(case):
    scores, labels = case
    balanced = np.where(labels == 1, 1 / labels.sum(), 1 / (len(labels) - labels.sum()))
    llrs = scores / 4  # small enough for the probabilities of log_loss to stay off 1
    posterior = 1 / (1 + np.exp(-llrs))
    expected = log_loss(labels, np.column_stack([1 - posterior, posterior]), sample_weight=balanced) / math.log(2)
    assert cllr(llrs, labels) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert min_cllr(scores, labels) == pytest.approx(reference_min_cllr(scores, labels), abs=1e-9)
    assert min_cllr(scores, labels) <= cllr(scores, labels) + 1e-9
    assert min_cllr(scores, labels) <= 1 + 1e-9


def test_min_cllr_is_the_cllr_of_pav_calibrated_scores():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 3000)
    scores = np.round(rng.normal(labels, 1.0), 2)
    fit = IsotonicRegression(y_min=0, y_max=1).fit(scores, labels).predict(scores)
    with np.errstate(divide="ignore"):
        llrs = np.log(fit / (1 - fit)) - math.log(labels.sum() / (len(labels) - labels.sum()))
    assert min_cllr(scores, labels) == pytest.approx(cllr(llrs, labels), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(trials(), st.randoms(use_true_random=False))
def test_order_and_monotone_transforms_change_nothing(case, random):
    scores, labels = case
    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled = detection_curve(scores[order], labels[order])
    stretched = detection_curve(np.round(scores, 6) * 3 + 1, labels)  # rounded: the sum must not merge scores
    curve, rounded = detection_curve(scores, labels), detection_curve(np.round(scores, 6), labels)
    assert shuffled.eer() == curve.eer() and shuffled.min_dcf(0.05) == curve.min_dcf(0.05)
    assert stretched.eer().value == pytest.approx(rounded.eer().value)
    assert stretched.min_cllr() == pytest.approx(rounded.min_cllr())


@settings(max_examples=60, deadline=None)
@given(trials(), st.integers(0, 2**31))
def test_weights_are_repetitions(case, seed):
    scores, labels = case
    weights = np.random.default_rng(seed).integers(0, 4, len(scores))
    weights[[int(labels.argmax()), int(labels.argmin())]] = 2
    repeated = np.repeat(np.arange(len(scores)), weights)
    weighted, plain = RankedTrials(scores, labels).curve(weights), detection_curve(scores[repeated], labels[repeated])
    assert weighted.eer().value == pytest.approx(plain.eer().value, abs=1e-12)
    assert weighted.min_dcf(0.01).value == pytest.approx(plain.min_dcf(0.01).value, abs=1e-12)
    assert weighted.min_cllr() == pytest.approx(plain.min_cllr(), abs=1e-9)
    for losses in (cllr_losses, lambda llrs, is_target: dcf_losses(llrs, is_target, 0.2)):
        found = mean_loss(losses(scores, labels == 1), labels == 1, weights)
        expected = mean_loss(losses(scores[repeated], labels[repeated] == 1), labels[repeated] == 1)
        assert found == pytest.approx(expected)


def test_known_values():
    assert eer([0.9, 0.1], [1, 0]) == 0 and eer([0.1, 0.9], [1, 0]) == 1
    assert eer([3, 3, 3, 3], [1, 1, 1, 0]) == 0.5 and min_cllr([3, 3, 3, 3], [1, 1, 1, 0]) == pytest.approx(1)
    assert cllr([0, 0, 0], [1, 0, 0]) == 1
    # One of four targets below one of five non-targets: the ROC falls from p_miss 1/4 to 0 at p_fa 1/5.
    assert eer([5, 4, 3, 1, 2, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0]) == pytest.approx(0.2)
    point = detection_curve([4, 3, 2, 1], [1, 0, 1, 0]).min_dcf(0.5)
    assert (point.value, point.threshold, point.p_miss, point.p_fa) == (0.5, 2, 0, 0.5)
    nothing = detection_curve([1, 2], [1, 0]).min_dcf(0.01)
    assert nothing.value == 1 and nothing.threshold == math.inf and nothing.p_miss == 1
    assert math.isinf(cllr([-math.inf, 0], [1, 0])) and eer([-math.inf, math.inf], [0, 1]) == 0


def test_a_draw_without_a_class_has_no_curve():
    assert RankedTrials([1, 2, 3], [1, 0, 0]).curve(np.array([0, 1, 1])) is None


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "no trials"),
        ([1.0, 2.0], [1], r"scores \(2,\) and labels \(1,\)"),
        ([1.0, math.nan], [1, 0], "score 1 is NaN"),
        ([1.0, 2.0, 3.0], [1, 0, 2], "label 2 is .*2.*expected 1"),
        ([1.0, 2.0], [1, 1], "all 2 trials are targets"),
        ([1.0, 2.0], [False, False], "all 2 trials are non-targets"),
        ([[1.0, 2.0]], [[1, 0]], "same length"),
    ],
)
def test_unusable_trials_are_named(scores, labels, message):
    for metric in (eer, min_dcf, min_cllr, cllr, actual_dcf):
        with pytest.raises(InputError, match=message):
            metric(scores, labels)


def test_unusable_costs_are_named():
    with pytest.raises(ConfigError, match="p_target=1"):
        min_dcf([1, 2], [1, 0], 1.0)
    with pytest.raises(ConfigError, match="c_fa=0"):
        actual_dcf([1, 2], [1, 0], 0.5, c_fa=0)
