"""What Fuse and Route share: a config, a module that the model keeps by name, and the guide loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.hooks import Places
from speech_adapters.composition.blocks import Learned
from speech_adapters.encoders.loading import Encoder
from speech_adapters.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """Settings of a composition with weights of its own."""

    guide_weight: float = 0.0
    """Weight of the guide loss: cross-entropy between the members' weights, averaged over an utterance, and the member
    of the utterance's domain (``model(..., guide=...)``); 1.0 in SimAdapter."""
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.guide_weight < 0:
            raise ConfigError(f"{type(self).__name__}: guide_weight={self.guide_weight}; it must not be negative.")

    def build(self, value: Learned, members: Sequence[Places], encoder: Encoder) -> LearnedModule:
        """Make the module. Raises ConfigError for members that cannot be composed in this way."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return dataclasses.asdict(self)


class LearnedModule(nn.Module):
    """The trainable part; ``group`` names its parameters for learning rates."""

    group: ClassVar[str]

    def __init__(self, config: LearnedConfig, value: Learned) -> None:
        super().__init__()
        self.config, self.value = config, value

    def places(self, members: Sequence[Places], layers: int) -> Places:
        """The members under this module, for one forward."""
        raise NotImplementedError

    def describe(self) -> list[str]:
        raise NotImplementedError


def guide_loss(
    config: LearnedConfig, weights: Sequence[Tensor], guide: Tensor | None, mask: Tensor | None
) -> Tensor | float:
    """``guide_weight`` times the cross-entropy of the members' mean weights over an utterance's real frames.

    Args:
        weights: of each place, (B, T, N) or (B, 1, N), summing to one over N; the loss is their mean.
        guide: (B,) index of the member that belongs to each utterance, -100 where none does.
        mask: (B, T) True on real frames.

    Raises:
        ConfigError: a weight above 0 and no guide.
    """
    if not config.guide_weight:
        return 0.0
    if guide is None:
        raise ConfigError(
            f"{type(config).__name__}: guide_weight={config.guide_weight} needs each utterance's member: train on a "
            "GuidedDataset (or pass guide=..., -100 for unknown), or set it to 0."
        )
    return config.guide_weight * sum(_guided(place, guide, mask) for place in weights) / len(weights)


def _guided(weights: Tensor, guide: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None and weights.shape[1] > 1:
        weights = weights[:, : mask.shape[1]] * mask.unsqueeze(-1)
        mean = weights.sum(1) / mask.sum(1, keepdim=True)
    else:
        mean = weights.mean(1)
    with torch.autocast(mean.device.type, enabled=False):
        lost = nn.functional.nll_loss(mean.float().clamp_min(1e-8).log(), guide, ignore_index=-100, reduction="sum")
    return lost / (guide != -100).sum().clamp_min(1)  # a batch of strangers loses nothing
