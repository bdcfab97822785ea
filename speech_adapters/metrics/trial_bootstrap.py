"""Bootstrap intervals for the figures of verification trials, by speaker.

A trial joins two speakers, so that trials are not independent: one speaker with an odd voice spoils many of them.
Speakers are drawn with replacement, S of S, and the trials follow them: a non-target trial of speakers i and j counts
c_i * c_j times where i was drawn c_i and j c_j times, a target trial of speaker i counts c_i times. (Two copies of one
speaker would be two people in the new world; pairs between the copies are left out. This is the vertex bootstrap of
Snijders and Borgatti, "Non-parametric standard errors and tests for network statistics", Connections 1999, which fills
such pairs at random.) The interval spans the middle
95 % of the figures. Like all such intervals it is too narrow for few speakers: where they differ much, those of 12 or
24 speakers hold the truth four times in five, those of 60 as often as they say (simulated; drawing single trials does
worse, and the worse the more utterances a speaker has).

Where speakers are not known, or fewer than three, single trials are drawn, and the interval says that it was made so
(``resampled="trial"``). Of two speakers the one draw that holds non-targets is the trials as they are: its interval
would have no width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from speech_adapters.errors import ConfigError, InputError
from speech_adapters.metrics.bootstrap import Interval, percentile_interval

MOST_WORK = 500_000_000
"""Trials times draws, under a minute: longer lists get fewer draws, which their narrow intervals can bear."""

FEWEST_DRAWS = 100


def bootstrap_trials(
    statistics: Callable[[np.ndarray | None], Mapping[str, float] | None],
    labels: np.ndarray,
    speakers: tuple[np.ndarray, np.ndarray] | None,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """The interval of every figure that ``statistics(weights)`` computes from trials counted ``weights`` (T,) times.

    Args:
        statistics: figures by name, with every trial counted once for None; None for a draw without one of the kinds.
        labels: (T,) true for targets. speakers: (T,) numbers of both speakers of each trial, or None.
        n: draws; fewer, but no fewer than 100, where draws times trials exceed :data:`MOST_WORK`.

    Raises:
        ConfigError: no draws.
        InputError: draws that all lack targets or non-targets.
    """
    if n < 1:
        raise ConfigError(f"draws={n}: a bootstrap needs at least one draw.")
    value = statistics(None)
    if value is None:
        raise InputError("the trials lack targets or non-targets; give a list that holds both.")
    n = min(n, max(FEWEST_DRAWS, MOST_WORK // len(labels)))
    draws, resampled = _draws(labels, speakers, n, np.random.default_rng(seed))
    figures = [found for weights in draws if (found := statistics(weights)) is not None]
    if not figures:
        raise InputError("no bootstrap draw holds targets and non-targets; give trials of more speakers.")
    return {
        name: percentile_interval(value[name], np.array([found[name] for found in figures]), level, resampled)
        for name in value
    }


def _draws(
    labels: np.ndarray, speakers: tuple[np.ndarray, np.ndarray] | None, n: int, rng: np.random.Generator
) -> tuple[Iterator[np.ndarray], str]:
    """``n`` times how often each trial counts, and what is drawn."""
    if speakers is not None:
        names, numbers = np.unique(np.concatenate(speakers), return_inverse=True)
        if len(names) > 2:
            enrol, test = np.split(numbers.astype(np.int32), 2)
            # A speaker of its own for the second side of target trials, who is always drawn once.
            test = np.where(labels, len(names), test)
            return (_trial_weights(len(names), enrol, test, rng) for _ in range(n)), "speaker"
    size = len(labels)
    return (np.bincount(rng.integers(0, size, size), minlength=size) for _ in range(n)), "trial"


def _trial_weights(count: int, enrol: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drawn = np.append(np.bincount(rng.integers(0, count, count), minlength=count), 1)
    return drawn[enrol] * drawn[test]
