"""Code: one vector that is added to every frame of the CNN's output.

    X' = X + c        c in R^C, 0 at the start

Parameters: ``C``, the CNN's width. The smallest adapter there is: use it for a speaker or a channel of which there is
a minute, since so few numbers need little data. It learns from labels like any other, from speech alone as a speaker
code, or without gradients as a prompt: see docs/unlabelled.md.

Sources: speaker codes, Abdel-Hamid and Jiang (ICASSP 2013) and van Dalen et al., "Robust Unsupervised Adaptation of a
Speech Recogniser Using Entropy Minimisation and Speaker Codes" (Interspeech 2025), who train the recogniser together
with the codes of its training speakers, which is not done here; the place is that of Dong et al., "E-BATS" (NeurIPS
2025), where a change of acoustics shifts the frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Frames


@dataclass(frozen=True, kw_only=True)
class CodeAdapter(AdapterConfig):
    """A vector on the CNN's output."""

    method: ClassVar[str] = "code"
    group: ClassVar[str] = "code"

    def build(self, encoder: Encoder) -> CodeAdapterModule:
        return CodeAdapterModule(self, encoder)


class CodeAdapterModule(AdapterModule):
    """The vector, (C,)."""

    config: CodeAdapter
    first_layer = -1

    def __init__(self, config: CodeAdapter, encoder: Encoder) -> None:
        super().__init__(config)
        self.code = nn.Parameter(torch.zeros(encoder.cnn_width))

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames | None:
        return Frames(frames + self.code.to(frames.dtype), mask) if where == "cnn_out" else None

    def describe(self) -> list[str]:
        return [f"code: {len(self.code)} numbers, added to each frame of the CNN's output"]
