"""What Fuse and Route share: a config, a module that the model keeps by name, and the guide loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.places import Places
from speech_adapters.composition.values import Learned
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


def guide_loss(weights: Tensor, guide: Tensor, mask: Tensor | None) -> Tensor:
    """Cross-entropy of the members' mean weights over an utterance's real frames.

    Args:
        weights: (B, T, N) or (B, 1, N), summing to one over N.
        guide: (B,) index of the member that belongs to each utterance, -100 where none does.
        mask: (B, T) True on real frames.
    """
    if mask is not None and weights.shape[1] > 1:
        weights = weights[:, : mask.shape[1]] * mask.unsqueeze(-1)
        mean = weights.sum(1) / mask.sum(1, keepdim=True)
    else:
        mean = weights.mean(1)
    with torch.autocast(mean.device.type, enabled=False):
        return nn.functional.nll_loss(mean.float().clamp_min(1e-8).log(), guide, ignore_index=-100)
