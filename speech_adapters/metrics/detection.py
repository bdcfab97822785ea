"""Exact detection metrics from scores and labels: EER, DCF, Cllr, and the curves behind them, in O(n log n).

A trial is accepted where its score is at least the threshold. Trials of equal scores are accepted together, so that
the result does not depend on their order: K distinct scores give K + 1 operating points, joined by straight lines
(the empirical ROC; a randomised decision reaches every point of such a line).

    EER      where that line crosses p_miss = p_fa; no threshold grid, no averaging of two rates. This is the figure of
             scikit-learn's ``roc_curve`` with linear interpolation. The EER of the ROC's convex hull is never higher.
    DCF      [c_miss P p_miss + c_fa (1 - P) p_fa] / min(c_miss P, c_fa (1 - P)): 1 is what a system gets that accepts
             nothing, or everything (NIST SRE evaluation plans; VoxSRC). minDCF is the least over all
             operating points; the actual DCF takes the Bayes threshold, log(c_fa (1 - P) / (c_miss P)), which is
             meaningful for log-likelihood ratios only.
    Cllr     [mean over targets of log2(1 + exp(-s)) + mean over non-targets of log2(1 + exp(s))] / 2, in bits, for
             s natural log-likelihood ratios (Brümmer and du Preez, "Application-independent evaluation of speaker
             detection", Computer Speech and Language 2006). minCllr is what remains of it after the best monotone
             recalibration, by pooling adjacent violators.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import ArrayLike

from speech_adapters.errors import ConfigError, InputError


@dataclass(frozen=True)
class OperatingPoint:
    """A figure (EER or DCF) and where it is reached: the trials with a score of at least ``threshold`` accepted."""

    value: float
    threshold: float
    p_miss: float
    p_fa: float


@dataclass(frozen=True)
class DetectionCurve:
    """The empirical ROC. Point k of K + 1 accepts the scores from ``thresholds[k]`` up; the last accepts nothing.

    Attributes:
        thresholds: (K,) distinct scores, ascending.
        targets, nontargets: (K,) how many trials of each kind (or what weight of them) have that score.
        p_miss, p_fa: (K + 1,) share of targets rejected, rising from 0 to 1, and of non-targets accepted, falling
            from 1 to 0.
    """

    thresholds: np.ndarray
    targets: np.ndarray
    nontargets: np.ndarray
    p_miss: np.ndarray
    p_fa: np.ndarray

    def eer(self) -> OperatingPoint:
        """The equal error rate, where the ROC crosses p_miss = p_fa."""
        # p_miss - p_fa rises from -1 to 1, so the first point that is not below 0 ends the segment that crosses it.
        after = int(np.argmax(self.p_miss >= self.p_fa))
        gap_before = self.p_fa[after - 1] - self.p_miss[after - 1]
        gap_after = self.p_miss[after] - self.p_fa[after]
        along = gap_before / (gap_before + gap_after)
        rate = float(self.p_miss[after - 1] + along * (self.p_miss[after] - self.p_miss[after - 1]))
        return OperatingPoint(rate, float(self.thresholds[min(after, len(self.thresholds) - 1)]), rate, rate)

    def min_dcf(self, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> OperatingPoint:
        """The least normalised detection cost; its threshold is infinite where accepting nothing costs least."""
        miss, fa = _costs(p_target, c_miss, c_fa)
        costs = self.p_miss * miss
        costs += self.p_fa * fa
        best = int(np.argmin(costs))
        threshold = self.thresholds[best] if best < len(self.thresholds) else np.inf
        return OperatingPoint(float(costs[best]), float(threshold), float(self.p_miss[best]), float(self.p_fa[best]))

    def min_cllr(self) -> float:
        """Cllr, in bits, after the best monotone recalibration of the scores (PAV)."""
        targets, nontargets = _pool_adjacent_violators(self.targets, self.nontargets)
        total, other = targets.sum(), nontargets.sum()
        # exp(LLR) is a block's odds over the test set's. A block of one kind only costs nothing.
        hit, false = targets > 0, nontargets > 0
        against = nontargets[hit] / targets[hit] * (total / other)
        towards = targets[false] / nontargets[false] * (other / total)
        cost = targets[hit] @ np.log1p(against) / total + nontargets[false] @ np.log1p(towards) / other
        return float(cost / (2 * log(2)))


class RankedTrials:
    """Trials sorted by score, once, for any number of weightings (the draws of a bootstrap).

    Raises:
        InputError: no trials, lists of different lengths, a NaN, a label other than 0 and 1, one class only.
    """

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        scores, is_target = check_trials(scores, labels)
        self.order = np.argsort(scores)
        """(n,) the trial at each rank, lowest score first."""
        scores = scores[self.order]
        self.is_target = is_target[self.order]
        """(n,) by rank."""
        first = np.empty(len(scores), dtype=bool)
        first[0] = True
        np.not_equal(scores[1:], scores[:-1], out=first[1:])
        self._starts = None if first.all() else np.flatnonzero(first)
        self.thresholds = scores if self._starts is None else scores[self._starts]

    def curve(self, weights: np.ndarray | None = None) -> DetectionCurve | None:
        """The ROC of the trials, each counted as often as ``weights`` (n,), by trial, says: once by default.

        Whole numbers keep the rates exact. None where no target or no non-target has a weight.
        """
        if weights is None:
            targets, nontargets = self.is_target.astype(np.int64), (~self.is_target).astype(np.int64)
        else:
            weights = weights[self.order]
            targets = weights * self.is_target
            nontargets = weights - targets
        if self._starts is not None:
            targets, nontargets = (np.add.reduceat(kind, self._starts) for kind in (targets, nontargets))
        p_miss, p_fa = _cumulated(targets), _cumulated(nontargets)
        if not p_miss[-1] > 0 or not p_fa[-1] > 0:
            return None
        p_miss /= p_miss[-1]
        p_fa = np.subtract(p_fa[-1], p_fa) / p_fa[-1]
        return DetectionCurve(self.thresholds, targets, nontargets, p_miss, p_fa)


def detection_curve(scores: ArrayLike, labels: ArrayLike) -> DetectionCurve:
    """The empirical ROC of trials: ``scores`` (n,), higher for targets, and ``labels`` (n,), 1 for targets, else 0.

    Raises:
        InputError: see :class:`RankedTrials`.
    """
    curve = RankedTrials(scores, labels).curve()
    assert curve is not None  # the trials were checked: both kinds are there, each counted once
    return curve


def eer(scores: ArrayLike, labels: ArrayLike) -> float:
    """The equal error rate, a fraction. Arguments and errors of :func:`detection_curve`."""
    return detection_curve(scores, labels).eer().value


def min_dcf(
    scores: ArrayLike, labels: ArrayLike, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """The least normalised detection cost over all thresholds. Arguments and errors of :func:`detection_curve`."""
    return detection_curve(scores, labels).min_dcf(p_target, c_miss, c_fa).value


def min_cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Cllr after the best monotone recalibration, in bits. Arguments and errors of :func:`detection_curve`."""
    return detection_curve(scores, labels).min_cllr()


def actual_dcf(
    llrs: ArrayLike, labels: ArrayLike, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """The normalised detection cost of log-likelihood ratios (n,) at the Bayes threshold of ``p_target``.

    Raises:
        InputError: see :class:`RankedTrials`.
    """
    llrs, is_target = check_trials(llrs, labels)
    return mean_loss(dcf_losses(llrs, is_target, p_target, c_miss, c_fa), is_target)


def cllr(llrs: ArrayLike, labels: ArrayLike) -> float:
    """The cost of log-likelihood ratios (n,), in bits: 0 is perfect, 1 is what knowing nothing (LLR 0) costs.

    Raises:
        InputError: see :class:`RankedTrials`.
    """
    llrs, is_target = check_trials(llrs, labels)
    return mean_loss(cllr_losses(llrs, is_target), is_target)


def dcf_losses(
    llrs: np.ndarray, is_target: np.ndarray, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0
) -> np.ndarray:
    """(n,) what each trial's decision costs; :func:`mean_loss` of it is the actual DCF."""
    miss, fa = _costs(p_target, c_miss, c_fa)
    accepted = llrs >= log(c_fa * (1 - p_target) / (c_miss * p_target))
    return np.where(is_target, miss * ~accepted, fa * accepted)


def cllr_losses(llrs: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """(n,) what each trial's ratio costs, in bits; :func:`mean_loss` of it is Cllr."""
    losses = np.where(is_target, -llrs, llrs)
    np.logaddexp(0.0, losses, out=losses)
    losses /= 2 * log(2)
    return losses


def mean_loss(losses: np.ndarray, is_target: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The mean of ``losses`` (n,) over targets plus that over non-targets, each counted ``weights`` (n,) times."""
    if weights is None:
        return float(losses[is_target].mean(dtype=float) + losses[~is_target].mean(dtype=float))
    on_targets = np.multiply(weights, is_target, dtype=float)
    on_others = weights - on_targets
    return float(losses @ on_targets / on_targets.sum() + losses @ on_others / on_others.sum())


def check_trials(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) as floats and labels (n,) as booleans, or a clear error; see :class:`RankedTrials`."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(f"scores {scores.shape} and labels {labels.shape}: give two lists of the same length.")
    if not len(scores):
        raise InputError("no trials; give scores and labels of at least one target and one non-target.")
    scores = scores if scores.dtype in (np.float32, np.float64) else scores.astype(float)
    if np.isnan(scores.min()):  # the minimum of anything with a NaN is NaN
        raise InputError(f"score {int(np.isnan(scores).argmax())} is NaN; find out why the system gave it no number.")
    if labels.dtype != bool:
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(f"label {at} is {labels[at]!r}; expected 1 (target) or 0 (non-target).")
        labels = labels.astype(bool)
    count = int(np.count_nonzero(labels))
    if count in (0, len(labels)):
        kind, other = ("targets", "non-target") if count else ("non-targets", "target")
        raise InputError(f"all {len(labels)} trials are {kind}: error rates need at least one {other} trial as well.")
    return scores, labels


def _pool_adjacent_violators(targets: np.ndarray, nontargets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The counts of the blocks whose shares of targets are the isotonic fit: they rise from block to block.

    Neighbours whose shares do not rise belong to one block of the fit, so that all of them can be pooled at once, over
    and over until none is left: a few passes over arrays that shrink fast. Products of counts keep it exact.
    """
    drawn = targets + nontargets > 0  # a bootstrap draw may leave a score without trials
    targets, nontargets = targets[drawn], nontargets[drawn]
    while True:
        rises = targets[:-1] * nontargets[1:] < targets[1:] * nontargets[:-1]
        if rises.all():
            return targets, nontargets
        starts = np.concatenate([[0], np.flatnonzero(rises) + 1])
        targets, nontargets = np.add.reduceat(targets, starts), np.add.reduceat(nontargets, starts)


def _costs(p_target: float, c_miss: float, c_fa: float) -> tuple[float, float]:
    """What a miss and a false alarm weigh in the normalised cost."""
    if not 0 < p_target < 1:
        raise ConfigError(f"p_target={p_target}: a target's prior must lie between 0 and 1.")
    if not c_miss > 0 or not c_fa > 0:
        raise ConfigError(f"c_miss={c_miss}, c_fa={c_fa}: costs must be above 0.")
    miss, fa = c_miss * p_target, c_fa * (1 - p_target)
    return miss / min(miss, fa), fa / min(miss, fa)


def _cumulated(counts: np.ndarray) -> np.ndarray:
    """(K + 1,) sums of the first 0, 1, ..., K counts, exact for whole numbers below 2^53."""
    sums = np.empty(len(counts) + 1)
    sums[0] = 0
    np.cumsum(counts, out=sums[1:])
    return sums
