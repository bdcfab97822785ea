"""Every strategy by name: a function of what is known about the pool that yields its indices, best first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TypeVar

import numpy as np

from speech_adapters.active.acquisition import UNCERTAINTIES
from speech_adapters.active.diversity import badge, cluster_start, cluster_then_uncertain, k_center_greedy
from speech_adapters.active.pool_predictions import Observation
from speech_adapters.errors import ConfigError


@dataclass
class PoolView:
    """What the last model says of the pool and of what is labelled; the costly parts are asked for when needed.

    Attributes:
        size: N, unlabelled utterances.
        observe: the pool's observation; with True its gradients too.
        observe_labelled: that of the labelled utterances.
        dropout, committee: (N,) disagreement, where the strategy needs it.
        clusters: of the cold start and the hybrid.
    """

    size: int
    observe: Callable[[bool], Observation]
    observe_labelled: Callable[[], Observation] | None = None
    dropout: Callable[[], np.ndarray] | None = None
    committee: Callable[[], np.ndarray] | None = None
    clusters: int = 20
    _kept: dict[bool, Observation] = field(default_factory=dict, repr=False)

    def pool(self, gradients: bool = False) -> Observation:
        """The pool's observation, made once."""
        if gradients not in self._kept:
            self._kept[gradients] = self.observe(gradients)
        return self._kept[gradients]

    @cached_property
    def labelled(self) -> Observation | None:
        """The observation of the labelled utterances, made once; None where the view knows of none."""
        return None if self.observe_labelled is None else self.observe_labelled()

    def uncertainty(self, name: str) -> np.ndarray:
        """(N,) by name; see :mod:`~speech_adapters.active.acquisition`."""
        known = self.pool().uncertainty
        if not known:
            raise ConfigError(f"strategy {name!r} needs a trained model; begin with random, cluster or k_center.")
        return known[name]


T = TypeVar("T")
Strategy = Callable[[PoolView, np.random.Generator], Iterator[int]]


def _most(name: str) -> Strategy:
    return lambda view, rng: _descending(view.uncertainty(name), rng)


def _descending(scores: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Highest first; ties in random order, since a pool's order often means something."""
    return iter(np.lexsort((rng.random(len(scores)), -np.asarray(scores))).tolist())


def _random(view: PoolView, rng: np.random.Generator) -> Iterator[int]:
    return iter(rng.permutation(view.size).tolist())


def _k_center(view: PoolView, rng: np.random.Generator) -> Iterator[int]:
    return k_center_greedy(view.pool().embeddings, None if view.labelled is None else view.labelled.embeddings)


def _cluster(view: PoolView, rng: np.random.Generator) -> Iterator[int]:
    return cluster_start(view.pool().embeddings, view.clusters, int(rng.integers(2**31)))


def _hybrid(view: PoolView, rng: np.random.Generator) -> Iterator[int]:
    scores = view.uncertainty("entropy")
    return cluster_then_uncertain(view.pool().embeddings, scores, view.clusters, int(rng.integers(2**31)))


def _badge(view: PoolView, rng: np.random.Generator) -> Iterator[int]:
    return badge(_known(view.pool(gradients=True).gradients, "badge", "gradients"), rng)


def _known(part: T | None, strategy: str, what: str) -> T:
    """What a strategy asks of a view, where the view has it."""
    if part is None:
        raise ConfigError(f"strategy {strategy!r} needs a PoolView with {what}.")
    return part


STRATEGIES: dict[str, Strategy] = {
    "random": _random,
    **{name: _most(name) for name in UNCERTAINTIES},
    "dropout": lambda view, rng: _descending(_known(view.dropout, "dropout", "dropout")(), rng),
    "committee": lambda view, rng: _descending(_known(view.committee, "committee", "committee")(), rng),
    "k_center": _k_center,
    "cluster": _cluster,
    "hybrid": _hybrid,
    "badge": _badge,
}


def agreement(view: PoolView, size: int) -> float:
    """Mean Jaccard overlap of the ``size`` least certain utterances by entropy, margin and least confidence."""
    tops = [set(np.argsort(-view.uncertainty(name), kind="stable")[:size].tolist()) for name in UNCERTAINTIES]
    return float(np.mean([len(a & b) / len(a | b) for a, b in combinations(tops, 2)]))
