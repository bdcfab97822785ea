"""What Fuse and Route share: a config, a module that the model keeps by name, its hooks, and the guide loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.hooks import Hooks
from speech_adapters.composition.blocks import TrainableComposition
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import NotNegative, Rate, check_values
from speech_adapters.schema import Configuration


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompositionConfig(Configuration):
    """Settings of a composition with weights of its own."""

    guide_weight: NotNegative = 0.0
    """Weight of the guide loss: cross-entropy between the members' weights, averaged over an utterance, and the member
    of the utterance's domain (``model(..., guide=...)``); 1.0 in SimAdapter."""
    learning_rate: Rate | None = None

    def __post_init__(self) -> None:
        check_values(self, f"{type(self).__name__}: ")

    def build(
        self, composition: TrainableComposition, members: Sequence[Hooks], encoder: Encoder
    ) -> CompositionModule:
        """Make the module. Raises ConfigError for members that cannot be composed in this way."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return dataclasses.asdict(self)


class CompositionModule(nn.Module):
    """The trainable part; ``group`` names its parameters for learning rates."""

    group: ClassVar[str]

    def __init__(self, config: CompositionConfig, composition: TrainableComposition) -> None:
        super().__init__()
        self.config, self.composition = config, composition

    def hooks(self, members: Sequence[Hooks], layers: int) -> TrainableHooks:
        """The members under this module, for one forward."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        """What it chooses from: the members, and whatever else is weighed with them."""
        return len(self.composition.members)

    def check_trainable(self) -> None:
        """Raise a ConfigError for one member alone: its weight is always 1, whatever is learnt."""
        if self.choices == 1:
            (member,) = self.composition.members
            raise ConfigError(
                f"{self.composition!r}: one member alone always weighs 1, so there is nothing to train; use it as it "
                f"is, train {member!r} itself, or give it more members."
            )

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it: its state, without what is as it was made."""
        return self.state_dict()

    def describe(self) -> list[str]:
        """One line per part, for ``print(model)``."""
        raise NotImplementedError


class TrainableHooks(Hooks):
    """The members of a Fuse or Route in one forward.

    Attributes:
        name: of the composition.
        attention: what the members were weighed with, by site: (B, T, N), or (B, 1, N) of one gate per utterance.
    """

    name: str
    attention: dict[str, Tensor]

    def loss(self, guide: Tensor | None, lengths: Tensor, before: int | Tensor) -> Tensor:
        """What is added to the loss: regularisers, and the guide loss of ``guide`` (B,), each utterance's member.

        Args:
            lengths: (B,) real frames, which begin behind ``before`` pseudo frames.
        """
        raise NotImplementedError


def guide_loss(
    config: CompositionConfig, weights: Sequence[Tensor], guide: Tensor | None, lengths: Tensor | None
) -> Tensor | float:
    """``guide_weight`` times the cross-entropy of the members' mean weights over an utterance's real frames.

    Args:
        weights: of each site, (B, T, N) or (B, 1, N), summing to one over N; the loss is their mean.
        guide: (B,) index of the member that belongs to each utterance, -100 where none does.
        lengths: (B,) real frames; None for all.

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
    total = reduce(torch.add, [_guided(site, guide, lengths) for site in weights])
    return config.guide_weight * total / len(weights)


def _guided(weights: Tensor, guide: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is not None and weights.shape[1] > 1:
        real = torch.arange(weights.shape[1], device=weights.device) < lengths.unsqueeze(1)
        mean = (weights * real.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)
    else:
        mean = weights.mean(1)
    with torch.autocast(mean.device.type, enabled=False):
        lost = nn.functional.nll_loss(mean.float().clamp_min(1e-8).log(), guide, ignore_index=-100, reduction="sum")
    return lost / (guide != -100).sum().clamp_min(1)  # a batch of strangers loses nothing
