"""How unsure one prediction is (Settles, "Active Learning Literature Survey", 2009, section 3.1); higher is less sure.

    entropy           - sum_c p_c log p_c                     in nats
    margin            1 - (p_1 - p_2)                         the two most probable classes
    least confidence  1 - p_1

For CTC the same is taken of each frame's posterior and averaged over the frames whose best symbol is not blank, over
all frames where there is none: that normalises for length, and nine frames in ten are blank and sure of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from speech_adapters.encoders.plan import frame_mask


def entropy(probabilities: Tensor) -> Tensor:
    """(..., C) -> (...) in nats."""
    return torch.special.entr(probabilities).sum(-1)


def margin(probabilities: Tensor) -> Tensor:
    """(..., C) -> (...) from 0 (certain) to 1 (two classes tie)."""
    best = probabilities.topk(2, dim=-1).values
    return 1 - (best[..., 0] - best[..., 1])


def least_confidence(probabilities: Tensor) -> Tensor:
    """(..., C) -> (...) from 0 (certain) to 1 - 1/C."""
    return 1 - probabilities.amax(-1)


UNCERTAINTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": entropy,
    "margin": margin,
    "least_confidence": least_confidence,
}


def ctc_uncertainty(name: str, probabilities: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """Posteriors (B, T, V) with ``lengths`` (B,) valid frames -> (B,), see the module."""
    frames = UNCERTAINTIES[name](probabilities)
    real = frame_mask(lengths, frames.shape[1])
    spoken = real & (probabilities.argmax(-1) != blank)
    counted = torch.where(spoken.any(1, keepdim=True), spoken, real)
    return (frames * counted).sum(1) / counted.sum(1)
