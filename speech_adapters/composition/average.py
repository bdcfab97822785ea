"""Members side by side, summed with weights at every site: what Average and Route share.

With weights that sum to one, the weighted sum of the members' outputs at a site is what is written here, whichever
the site: additions to a sub-layer or a projection, LayerNorms (``LN`` is linear in its gain and bias, so this equals
one LayerNorm with averaged ones), features for the head. Pseudo frames, attention keys and values are averaged
themselves, as attentional mixtures of prompts are (Asai et al., "ATTEMPT", EMNLP 2022); they must be of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from speech_adapters.adapters.hooks import Hooks
from speech_adapters.encoders.attention import AttentionPrefix
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.encoders.plan import Frames, Norm, Projection, Site
from speech_adapters.errors import ConfigError

Weights = Sequence[float | Tensor]


class WeightedHooks(Hooks):
    """Fixed weights, one per member.

    Raises:
        ConfigError: members that replace whole layers, or that differ in what they give the head.
    """

    def __init__(self, members: Sequence[Hooks], weights: Weights, label: str, layers: int) -> None:
        self.members, self._weights, self.label = tuple(members), weights, label
        self.output_size = check_members(members, label, layers)
        self.first_layer = min(member.first_layer for member in members)

    def weights(self, frames: int | None = None) -> Weights:
        """One factor per member, to multiply (B, T, D) with; ``frames`` is that T, None where T is not time."""
        return self._weights

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames | None:
        made = [member.pseudo_frames(where, frames, mask) for member in self.members]
        found = [one for one in made if one is not None]
        if not found:
            return None
        if len(found) < len(made) or len({(one.frames.shape, one.before) for one in found}) > 1:
            raise ConfigError(
                f"{self.label}: the members add different numbers of pseudo frames, or only some do or add a code; "
                "combine members that change the frames before the layers alike."
            )
        total = self._sum([one.frames for one in found], None)
        return found[0]._replace(frames=total)

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        found = [member.norm(index, name, norm) for member in self.members]
        if all(one is None for one in found):
            return None
        return lambda hidden: self._sum([(one or norm)(hidden) for one in found], hidden.shape[1])

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        made = [member.prefix(index, project) for member in self.members]
        found = [AttentionPrefix(*one) for one in made if one is not None]
        if not found:
            return None
        if len(found) < len(made) or len({one.keys.shape for one in found}) > 1:
            raise ConfigError(f"{self.label}: layer {index} has prefixes of different lengths, or only some have one.")
        return AttentionPrefix(
            self._sum([one.keys for one in found], None), self._sum([one.values for one in found], None)
        )

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        found = [member.delta(name, index, site) for member in self.members]
        return None if all(one is None for one in found) else self._sum(found, site.output.shape[1])

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor | None:
        if self.output_size is None:
            return None
        found = [member.read(encoder, output) for member in self.members]
        return self._sum(found, next(one.shape[1] for one in found if one is not None))

    def _sum(self, found: Sequence[Tensor | None], frames: int | None) -> Tensor:
        parts = zip(self.weights(frames), found, strict=True)
        return reduce(torch.add, [one * weight for weight, one in parts if one is not None])


def check_members(members: Sequence[Hooks], label: str, layers: int) -> int | None:
    """The width of what all members give the head; see :class:`WeightedHooks` for the errors."""
    if any(member.layer(index) is not None for member in members for index in range(layers)):
        raise ConfigError(
            f"{label}: fine-tuned layers stand in place of the base's and have no output to combine; "
            "model.average_adapters averages their weights."
        )
    sizes = list(dict.fromkeys(member.output_size for member in members))
    if len(sizes) > 1:
        words = " and ".join("the last hidden state" if size is None else f"features of {size}" for size in sizes)
        raise ConfigError(f"{label}: the members give the head {words}; combine adapters that feed it alike.")
    return sizes[0]
