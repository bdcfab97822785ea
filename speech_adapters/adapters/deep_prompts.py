"""Deep prompts: learnt frames put before the utterance inside every layer, and taken out again after it.

    layer([P_l; X])[length:]        P_l (length, D) a layer

Within one layer, other frames meet a prompt only as a key and a value of the attention. So the layer is not run on a
longer sequence: the prompts go through its key and value projections (and, in pre-norm layers, its LayerNorm) and
stand there as a prefix, which is the same function at a part of the cost. WavLM's position bias is 0 on them.

Parameters: ``length D`` a layer. Use them as PEFT-SER does for emotion (5), or with parallel adapters for speakers
(IPET, 64). Prompts take part in the attention from the first step on: step 0 is the frozen encoder on speech with
``length`` frames of silence beside it. Around zero they changed the last states of WavLM and Whisper encoders by 25 to
130 % of their norm, as silence by 1 to 14 % (5 prompts).

Sources: Feng and Narayanan, "PEFT-SER" (ACII 2023, code: 5 prompts a layer, put in and taken out in every layer);
IPET (arXiv 2211.02227, code: 64). The start is ours: the silent frame that a layer reads, and N(0, 0.02) beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers
from speech_adapters.adapters.silence import middle, silence
from speech_adapters.encoders.attention import AttentionPrefix
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Projection
from speech_adapters.ranges import NotNegative, Size


@dataclass(frozen=True, kw_only=True)
class DeepPrompts(AdapterConfig):
    """Prompts in the chosen layers."""

    method: ClassVar[str] = "deep_prompts"
    group: ClassVar[str] = "prompts"

    length: Size = 5
    init_std: NotNegative = 0.02
    """Deviation of the first values from silence, which tells the prompts apart."""
    layers: Layers = None
    """Layers with prompts: None for all, indices (negative ones from the top), "top-4" or "every-2"."""

    def build(self, encoder: Encoder) -> DeepPromptsModule:
        return DeepPromptsModule(self, encoder)


class DeepPromptsModule(AdapterModule):
    """Prompts by layer, (length, D)."""

    config: DeepPrompts

    def __init__(self, config: DeepPrompts, encoder: Encoder) -> None:
        super().__init__(config)
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        self.first_layer = self.layer_indices[0]
        starts = {i: config.init_std * torch.randn(config.length, encoder.hidden_size) for i in self.layer_indices}
        if not starts[self.first_layer].is_meta:  # a blueprint holds no values
            states = silence(encoder, stop_layer=self.layer_indices[-1]).hidden_states
            starts = {index: start + middle(states[index]).to(start) for index, start in starts.items()}
        self.prompts = nn.ParameterDict({str(index): start for index, start in starts.items()})

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        if str(index) not in self.prompts:
            return None
        return AttentionPrefix(*project(self.prompts[str(index)].unsqueeze(0)))

    def describe(self) -> list[str]:
        return [f"prompts: {self.config.length} in each of {len(self.layer_indices)} layers"]
