"""What may be plugged into the encoder's forward, and where: the :class:`Plan`, and what it is handed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speech_adapters.encoders.attention import AttentionPrefix

#: Frames (B, T, D) -> frames of the same shape.
Norm = Callable[[Tensor], Tensor]

#: Frames (B, T, D) -> the keys and values (B, T, D) that a layer's attention makes of them.
Projection = Callable[[Tensor], tuple[Tensor, Tensor]]


class Site(NamedTuple):
    """What a part of the encoder hands to the adapters beside it; tensors are (B, T, width) unless said otherwise.

    The parts by name, with their index:

    - "cnn", a block: ``input`` and ``output`` are (B, channels, time), and no mask is known yet;
    - "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "intermediate_act", "output_dense" of a layer:
      what goes into the projection (or activation) and what comes out of it;
    - "attention" and "feed_forward" of a layer: ``residual`` is what the output will be added to, and ``norm`` the
      LayerNorm that follows the addition (post-norm layers) or precedes the sub-layer (pre-norm layers);
    - "layer": the input and output of the whole layer.

    ``mask`` (B, T) is True on real and pseudo frames, None when nothing is padded.
    """

    input: Tensor
    output: Tensor
    mask: Tensor | None = None
    residual: Tensor | None = None
    norm: Norm | None = None


class Frames(NamedTuple):
    """Frames (B, T, D), their mask (B, T) or None, and how many pseudo frames stand before them, in all or (B,)."""

    frames: Tensor
    mask: Tensor | None
    before: int | Tensor = 0

    def real(self, frames: Tensor, count: int) -> Tensor:
        """``count`` frames behind the pseudo frames, of ``frames`` (B, T, ...)."""
        if isinstance(self.before, int):
            return frames[:, self.before : self.before + count]
        index = self.before[:, None] + torch.arange(count, device=frames.device)
        return frames[torch.arange(frames.shape[0], device=frames.device)[:, None], index]


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B,) lengths -> (B, frames) boolean, True on real frames."""
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


class Plan:
    """What adapters may change on the way through the encoder. This one changes nothing: the frozen base."""

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames:
        """Add pseudo frames at ``where``: "cnn_out" and "proj_out" (before and after the feature projection), or
        "layers_in" (after the positions, right before the first layer)."""
        return Frames(frames, mask)

    def layer(self, index: int, layer: nn.Module) -> nn.Module:
        """The transformer layer to run in place of the base's."""
        return layer

    def norm(self, index: int, name: str, norm: Norm) -> Norm:
        """What to run in place of LayerNorm ``name`` ("layer_norm" or "final_layer_norm") of a layer."""
        return norm

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        """Extra attention keys and values for a layer; ``project`` gives those of frames."""
        return None

    def site(self, name: str, index: int, site: Site) -> Tensor:
        """The output of the part ``name`` (see :class:`Site`), adapters included."""
        return site.output


BASE = Plan()
