"""Label-against-score curves over seeds: mean with an interval, the area below, and the labels that a score needs.

Intervals are Student's t over seeds at 95 %: what another seed of the same loop would give, not other speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech_adapters.errors import InputError
from speech_adapters.metrics.bootstrap import Interval


def over_seeds(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """Mean of one value per seed and its t interval; with one seed the interval is the value."""
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if len(values) < 2 or np.ptp(values) == 0:
        mean = float(values.mean())
        return Interval(mean, mean, mean, "seed")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), "seed")


@dataclass(frozen=True)
class Curve:
    """Scores (S, K) of S seeds at ``labels`` (K,), which grow."""

    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[Sequence[tuple[float, float]]]) -> Curve:
        """From each seed's (labels spent, score) after each round; between rounds the curve is linear.

        Seeds that spend slightly different seconds share the grid of all their points, over the range all cover.
        """
        if not runs or any(not run for run in runs):
            raise InputError("a curve needs one scored round or more of every seed.")
        low, high = max(run[0][0] for run in runs), min(run[-1][0] for run in runs)
        grid = np.unique([x for run in runs for x, _ in run if low <= x <= high] or [high])
        rows = [np.interp(grid, *np.array(run, dtype=float).T) for run in runs]
        return cls(grid, np.array(rows))

    @property
    def points(self) -> list[tuple[float, Interval]]:
        """Mean and interval at each number of labels."""
        return [(float(x), over_seeds(self.scores[:, i])) for i, x in enumerate(self.labels)]

    def between(self, low: float, high: float) -> Curve:
        """The part from ``low`` to ``high`` labels, its ends interpolated."""
        grid = np.unique([low, *(x for x in self.labels if low < x < high), high])
        return Curve(grid, np.array([np.interp(grid, self.labels, row) for row in self.scores]))

    def area(self) -> Interval:
        """Mean score over the range of labels (the area below the curve by its width), over seeds."""
        if len(self.labels) < 2:
            return over_seeds(self.scores[:, 0])
        width = self.labels[-1] - self.labels[0]
        return over_seeds(np.trapezoid(self.scores, self.labels, axis=1) / width)

    def labels_to_reach(self, score: float) -> float | None:
        """Labels at which the mean curve first reaches a score; None where it never does."""
        mean = self.scores.mean(0)
        reached = np.flatnonzero(mean >= score)
        if not len(reached):
            return None
        i = int(reached[0])
        if i == 0 or mean[i] == mean[i - 1]:
            return float(self.labels[i])
        share = (score - mean[i - 1]) / (mean[i] - mean[i - 1])
        return float(self.labels[i - 1] + share * (self.labels[i] - self.labels[i - 1]))


def area_difference(one: Curve, other: Curve) -> Interval:
    """Area of one curve minus another's over the labels both cover, paired by seed."""
    low, high = max(one.labels[0], other.labels[0]), min(one.labels[-1], other.labels[-1])
    if low > high:
        raise InputError("the curves share no number of labels; give them the same budget.")
    if low == high:
        pairs = [c.between(low, high).scores[:, 0] for c in (one, other)]
    else:
        cut = [curve.between(low, high) for curve in (one, other)]
        pairs = [np.trapezoid(c.scores, c.labels, axis=1) / (high - low) for c in cut]
    return over_seeds(pairs[0] - pairs[1])
