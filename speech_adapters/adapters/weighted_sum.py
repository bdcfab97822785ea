"""Learnable weighted sum of all layers: the frozen-encoder baseline of SUPERB.

    z = sum_l softmax(w)_l h_l,   l = 0 (the first layer's input) to L

Parameters: L + 1. In a pre-norm encoder each ``h_l`` passes the encoder's final LayerNorm first. Source: Yang et al.,
"SUPERB" (Interspeech 2021, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.encoders.loading import Encoder


@dataclass(frozen=True, kw_only=True)
class WeightedSum(AdapterConfig):
    """One weight a hidden state, equal at the start."""

    method: ClassVar[str] = "weighted_sum"
    group: ClassVar[str] = "weights"

    def build(self, encoder: Encoder) -> WeightedSumModule:
        return WeightedSumModule(self, encoder)


class WeightedSumModule(AdapterModule):
    """The layer weights."""

    def __init__(self, config: WeightedSum, encoder: Encoder) -> None:
        super().__init__(config)
        self.layer_weights = nn.Parameter(torch.zeros(encoder.num_layers + 1))
        self.output_size = encoder.hidden_size

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor:
        states = torch.stack(output.hidden_states)
        if encoder.pre_norm:
            states = encoder.model.encoder.layer_norm(states)
        return torch.einsum("l,lbtd->btd", self.layer_weights.softmax(0).to(states.dtype), states)

    def describe(self) -> list[str]:
        return [f"weights: softmax-weighted sum of {len(self.layer_weights)} hidden states"]
