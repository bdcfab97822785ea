"""From frames to one vector per utterance; frames behind an utterance's length never count.

    mean         mu = 1/T sum_t x_t
    statistics   [mu, sigma],  sigma^2 = 1/T sum_t x_t^2 - mu^2       (Snyder et al., "X-vectors", ICASSP 2018)
    attentive    the same with weights a_t = softmax_t(v . tanh(W x_t + b)) in place of 1/T
                 (Okabe et al., "Attentive statistics pooling for deep speaker embedding", Interspeech 2018)

All compute in float32 under any autocast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.encoders.plan import frame_mask
from speech_adapters.errors import ConfigError

EPSILON = 1e-8
"""Floor of a variance: its square root has no gradient at zero (a single frame, a constant feature)."""


class Pooling(nn.Module, ABC):
    """Features (B, T, D) with lengths (B,) to (B, ``factor`` D); made for features of width ``size``."""

    factor: ClassVar[int]

    def __init__(self, size: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor: ...


class MeanPooling(Pooling):
    """(B, T, D), (B,) -> (B, D)."""

    factor = 1

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, weights = _uniform(features, lengths)
        return (weights * features).sum(1)


class StatisticsPooling(Pooling):
    """(B, T, D), (B,) -> (B, 2 D): means, then standard deviations."""

    factor = 2

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return _statistics(*_uniform(features, lengths))


class AttentiveStatisticsPooling(Pooling):
    """(B, T, D), (B,) -> (B, 2 D), each frame weighted by an attention of 128 hidden units."""

    factor = 2

    def __init__(self, size: int, hidden_size: int = 128) -> None:
        super().__init__(size)
        # A bias behind v would shift all frames alike: softmax takes it out again, and it would never learn.
        self.score = nn.Sequential(nn.Linear(size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1, bias=False))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        mask = frame_mask(lengths, features.shape[1]).unsqueeze(2)
        features = features.float().masked_fill(~mask, 0.0)
        scores = self.score(features).float().masked_fill(~mask, -torch.inf)
        return _statistics(features, scores.softmax(1))


POOLINGS: dict[str, type[Pooling]] = {
    "mean": MeanPooling,
    "statistics": StatisticsPooling,
    "attentive": AttentiveStatisticsPooling,
}
"""Poolings by name; ``factor`` times the input's width is the output's."""


def pooling(name: str, size: int) -> Pooling:
    """A pooling for features of width ``size``. Raises ConfigError for an unknown name."""
    if name not in POOLINGS:
        raise ConfigError(f"pooling={name!r} is unknown: choose {', '.join(POOLINGS)}.")
    return POOLINGS[name](size)


def _uniform(features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Features with zeros on padding, and weights (B, T, 1) that sum to one over the real frames."""
    mask = frame_mask(lengths, features.shape[1]).unsqueeze(2)
    return features.float().masked_fill(~mask, 0.0), mask / lengths.view(-1, 1, 1)


def _statistics(features: Tensor, weights: Tensor) -> Tensor:
    mean = (weights * features).sum(1)
    variance = (weights * (features - mean.unsqueeze(1)).square()).sum(1)  # E[x^2] - mu^2 would cancel in float32
    return torch.cat([mean, variance.clamp(min=EPSILON).sqrt()], dim=1)
