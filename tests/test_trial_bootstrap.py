"""Intervals of detection figures, drawn by speaker on both sides of a trial."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from speech_adapters.errors import ConfigError, InputError
from speech_adapters.metrics import trial_bootstrap
from speech_adapters.metrics.detection import eer
from speech_adapters.metrics.trial_bootstrap import bootstrap_trials
from speech_adapters.metrics.verification import verification_result


def world(speakers: int, seed: int, spread: float = 0.7, utterances: int = 3):
    """All pairs of utterances of speakers each of whom is easier or harder to tell, as people are."""
    rng = np.random.default_rng(seed)
    luck = rng.normal(0, spread, speakers)
    who = np.repeat(np.arange(speakers), utterances)
    enrol, test = np.triu_indices(len(who), 1)
    enrol, test = who[enrol], who[test]
    labels = enrol == test
    scores = rng.normal(0, 0.6, len(labels)) + np.where(labels, 2 + luck[enrol], luck[enrol] / 2 + luck[test] / 2)
    return scores, labels, (enrol, test)


def test_weights_follow_the_speakers_drawn():
    enrol, test = np.array([5, 5, 5, 8]), np.array([5, 8, 9, 9])
    labels = enrol == test
    seen = []

    def statistics(weights):
        if weights is not None:
            seen.append(weights)
        return {"x": 0.0}

    bootstrap_trials(statistics, labels, (enrol, test), n=300)
    assert len(seen) == 300
    total = np.zeros(4)
    for target, *others in seen:
        # Speakers 5, 8, 9 were drawn a, b, c times of 3: weights a, ab, ac, bc.
        options = [(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)]
        assert (target, *others) in [(a, a * b, a * c, b * c) for a, b, c in options]
        total += [target, *others]
    # E c = 1, and E c_i c_j = 1 - 1 / S.
    np.testing.assert_allclose(total / 300, [1, 2 / 3, 2 / 3, 2 / 3], atol=0.15)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # Scores are normal: targets around 2 with variance 0.7^2 + 0.6^2, others around 0 with 0.7^2 / 2 + 0.6^2.
    truth = norm.cdf(-2 / (np.sqrt(0.49 + 0.36) + np.sqrt(0.245 + 0.36)))
    covered = {"speaker": 0, "trial": 0}
    for seed in range(40):
        scores, labels, speakers = world(30, seed + 1, utterances=5)
        for who in (speakers, None):
            interval = verification_result(scores, labels, who, draws=60, p_targets=()).metrics["eer"]
            covered[interval.resampled] += interval.low <= truth <= interval.high
    assert covered["speaker"] / 40 > 0.8  # percentiles of 30 speakers are a little too narrow
    assert covered["trial"] < covered["speaker"] - 5


def test_same_seed_same_interval_whatever_the_order():
    scores, labels, speakers = world(8, 0)
    result = verification_result(scores, labels, speakers, draws=50)
    order = np.random.default_rng(0).permutation(len(scores))
    shuffled = verification_result(scores[order], labels[order], tuple(s[order] for s in speakers), draws=50)
    assert result.metrics == shuffled.metrics
    assert result.metrics != verification_result(scores, labels, speakers, draws=50, seed=1).metrics
    assert result.metrics["eer"].resampled == "speaker"
    assert result.metrics["eer"].value == eer(scores, labels)


@pytest.mark.parametrize("speakers", [None, "one", "two"])
def test_without_speakers_trials_are_drawn_and_it_says_so(speakers):
    scores, labels, _ = world(8, 0)
    numbers = {"one": (np.zeros(len(labels), int),) * 2, "two": (np.zeros(len(labels), int), 1 - labels)}.get(speakers)
    interval = verification_result(scores, labels, numbers, draws=50).metrics["eer"]
    assert interval.resampled == "trial" and "by trial" in str(interval)
    assert interval.low < interval.value < interval.high


def test_long_lists_get_fewer_draws(monkeypatch):
    monkeypatch.setattr(trial_bootstrap, "MOST_WORK", 4000)
    calls = []

    def statistics(weights):
        calls.append(weights)
        return {"x": 1.0}

    bootstrap_trials(statistics, np.array([True, False] * 10), None, n=1000)
    assert len(calls) == 1 + 200
    calls.clear()
    bootstrap_trials(statistics, np.array([True, False] * 1000), None, n=1000)
    assert len(calls) == 1 + 100


def test_draws_without_one_kind_are_left_out():
    result = verification_result(np.array([2.0, 1.0, 0.0]), np.array([1, 0, 1]), draws=200)
    assert 0 <= result.metrics["eer"].low <= result.metrics["eer"].high <= 1
    with pytest.raises(InputError, match="no bootstrap draw"):
        bootstrap_trials(lambda w: {"x": 1.0} if w is None else None, np.array([True, False]), None, n=5)
    with pytest.raises(ConfigError, match="draws=0"):
        verification_result(np.array([2.0, 1.0]), np.array([1, 0]), draws=0)
