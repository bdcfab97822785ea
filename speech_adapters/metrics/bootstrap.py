"""Bootstrap intervals for corpus figures (Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR
performance evaluation", ICASSP 2004).

The test set is drawn anew ``n`` times with replacement and the figure computed on each draw; the interval spans the
middle 95 % of those figures. Whole speakers are drawn, since one speaker's utterances share their luck: drawing
utterances would give intervals that are too narrow. With a single speaker only utterances can be drawn; the interval
then says nothing about other speakers, and says that it was made so (``resampled="utterance"``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array, sparray

from speech_adapters.errors import InputError

MOST_COUNTS = 1 << 24
"""Numbers that are drawn at once, 128 MB: a thousand draws of a million utterances would take 8 GB."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % (or other) interval, ``low <= value <= high``; rates are fractions."""

    value: float
    low: float
    high: float
    resampled: str = "speaker"
    """What was drawn: ``speaker``, or ``utterance`` where fewer than two speakers are known; of trials, ``trial``
    where fewer than three are."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; ``resampled`` stands in it where speakers were not drawn."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return values if self.resampled == "speaker" else {**values, "resampled": self.resampled}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Interval:
        """The interval that :meth:`to_dict` described."""
        return cls(**values)

    def percent(self, digits: int = 1) -> str:
        """``12.3 % [10.9, 13.8]``, to ``digits`` decimal places."""
        value, low, high = (f"{100 * figure:.{digits}f}" for figure in (self.value, self.low, self.high))
        return f"{value} % [{low}, {high}]{self._note}"

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{self._note}"

    @property
    def _note(self) -> str:
        return "" if self.resampled == "speaker" else f" (by {self.resampled})"


def bootstrap(
    numerators: ArrayLike,
    denominators: ArrayLike,
    groups: Sequence[str | None] | None = None,
    *,
    ids: Sequence[str] | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The ratio of sums, such as errors by words, of utterances that belong to ``groups`` (their speakers).

    All arguments hold one entry per utterance; with ``ids``, one per utterance and run: what several runs made of an
    utterance is drawn together, and more runs make no narrower interval. The order does not change the interval.
    """
    numerators = np.asarray(numerators, dtype=float)
    denominators = np.asarray(denominators, dtype=float)
    if ids is not None:
        places: dict[tuple[str | None, str], int] = {}
        owners = [None] * len(ids) if groups is None else groups
        runs = [places.setdefault(key, len(places)) for key in zip(owners, ids, strict=True)]
        numerators, denominators = (np.bincount(runs, weights=sums) for sums in (numerators, denominators))
        groups = [owner for owner, _ in places]
    if not denominators.sum() > 0:
        raise InputError("a rate over no words, frames or utterances is not defined; give a non-empty test set")
    order = np.lexsort((numerators, denominators))
    draws, member, resampled = _draws(len(order), groups, order, n, seed)
    top = np.bincount(member, weights=numerators)
    bottom = np.bincount(member, weights=denominators)
    value = numerators.sum() / denominators.sum()
    sums = [(block @ top, block @ bottom) for block in draws]
    drawn_top, drawn_bottom = (np.concatenate(drawn) for drawn in zip(*sums, strict=True))
    valid = drawn_bottom > 0
    return percentile_interval(value, drawn_top[valid] / drawn_bottom[valid], level, resampled)


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[str | None],
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Any other figure: ``statistic(index)`` computes it on the utterances ``index`` (integers, drawn with repeats).

    Draws on which it is NaN (a class is missing from them) are left out. The same ``groups`` and ``seed`` give the
    same draws, so a difference of two systems is one ``statistic`` that computes both.
    """
    items = np.arange(len(groups))
    value = float(statistic(items))
    draws, member, resampled = _draws(len(items), groups, items, n, seed)
    figures = np.array([statistic(np.repeat(items, draw[member])) for block in draws for draw in block], dtype=float)
    return _interval_of_defined(value, figures, level, resampled)


def bootstrap_sums(
    statistic: Callable[[np.ndarray], np.ndarray],
    counts: ArrayLike | sparray,
    groups: Sequence[str | None] | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """Several figures at once that depend on sums over the utterances only, such as those of a confusion matrix.

    ``counts`` (N, K), dense or sparse, is what each utterance adds; ``statistic`` turns sums (D, K) of D draws into M
    figures each (D, M). Draws on which a figure is NaN are left out of its interval. The draws are those of
    :func:`bootstrap_statistic`, at the cost of a matrix product.
    """
    counts = csr_array(counts)
    items = np.arange(counts.shape[0])
    draws, member, resampled = _draws(len(items), groups, items, n, seed)
    membership = csr_array((np.ones(len(items)), (member, items)), shape=(int(member.max()) + 1, len(items)))
    added = membership @ counts
    values = statistic(np.asarray(counts.sum(axis=0), dtype=float)[None])[0]
    figures = statistic(np.concatenate([block @ added for block in draws]))
    intervals = []
    for value, column in zip(values, figures.T, strict=True):
        intervals.append(_interval_of_defined(value, column, level, resampled))
    return intervals


def _interval_of_defined(value: float, figures: np.ndarray, level: float, resampled: str) -> Interval:
    """The interval over the draws on which a figure is defined.

    A draw that misses a class (one spoken by a single speaker is missing from a third of the draws) says nothing about
    it. Where none of the draws is left, the interval would claim a certainty that nothing shows: an error.
    """
    if np.isnan(value):
        raise InputError("the statistic is NaN on the whole test set; give one on which it is defined")
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        raise InputError("the statistic is NaN on every draw; make more draws (n)")
    return percentile_interval(value, figures, level, resampled)


def _draws(
    size: int, groups: Sequence[str | None] | None, order: np.ndarray, n: int, seed: int
) -> tuple[Iterator[np.ndarray], np.ndarray, str]:
    """How often each of ``n`` draws takes each group, in blocks (draws, G) of :data:`MOST_COUNTS` numbers or one draw;
    the group of each item (size,); and what a group is.

    Without two known groups every item is its own, numbered by its place in ``order``.
    """
    if groups is not None and len(groups) != size:
        raise InputError(f"groups: {len(groups)} entries for {size} utterances; give one each")
    known = groups is not None and all(group is not None for group in groups)
    names, member = np.unique(np.asarray(groups if known else [], dtype=str), return_inverse=True)
    resampled = "speaker"
    if len(names) < 2:
        member, resampled = np.argsort(order), "utterance"
    count = int(member.max()) + 1
    rng, shares, at_once = np.random.default_rng(seed), np.full(count, 1 / count), max(1, MOST_COUNTS // count)
    blocks = (rng.multinomial(count, shares, size=min(at_once, n - done)) for done in range(0, n, at_once))
    return blocks, member, resampled


def percentile_interval(value: float, figures: np.ndarray, level: float, resampled: str) -> Interval:
    """The middle part, ``level`` of it, of the figures of all draws."""
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    # On a handful of skewed groups the value itself can fall outside; an interval that excludes it would mislead.
    return Interval(float(value), float(min(low, value)), float(max(high, value)), resampled)
