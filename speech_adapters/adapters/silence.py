"""Where learnt frames begin: as silence, a context that every speech encoder knows.

Frames that begin around zero are nothing that an encoder has heard: a LayerNorm makes large random vectors of them, or
they stand out among the frames, and the attention follows them.
"""

from __future__ import annotations

import torch

from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput

_MIDDLE = 4
"""Frames on each side of the one that is taken: convolutions that see the edge (Whisper's front-end, the positional
one of wav2vec 2.0's kin) make something else of the first and the last."""


def silence(encoder: Encoder, stop_layer: int | None = None) -> EncoderOutput:
    """What an encoder makes of nine frames of digital silence, a batch of one; up to ``stop_layer``, or all layers."""
    samples = encoder.receptive_field + 2 * _MIDDLE * encoder.stride
    with torch.no_grad():
        return encoder(torch.zeros(1, samples, device=encoder.device), stop_layer=stop_layer)


def middle(frames: torch.Tensor) -> torch.Tensor:
    """(C,), the frame of (1, T, C) that has silence on both sides."""
    return frames[0, _MIDDLE]
