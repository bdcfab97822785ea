"""Learnable weighted sum of all layers: the frozen-encoder baseline of SUPERB.

    z = sum_l softmax(w)_l h_l,   l = 0 (the first layer's input) to L

Parameters: L + 1. Use it as the baseline that an adapter must beat, and to see which layers a task needs. In a
pre-norm encoder each ``h_l`` passes the encoder's final LayerNorm first. Source: Yang et al., "SUPERB" (Interspeech
2021, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput


@dataclass(frozen=True, kw_only=True)
class WeightedSum(AdapterConfig):
    """One weight a hidden state, equal at the start."""

    method: ClassVar[str] = "weighted_sum"
    group: ClassVar[str] = "weights"

    layers: Layers = None
    """Layers whose outputs are summed; None takes all, and the first layer's input as SUPERB does."""

    def build(self, encoder: Encoder) -> WeightedSumModule:
        return WeightedSumModule(self, encoder)


class WeightedSumModule(AdapterModule):
    """The layer weights."""

    def __init__(self, config: WeightedSum, encoder: Encoder) -> None:
        super().__init__(config)
        layers = choose_layers(config.layers, encoder.num_layers, config.method)
        self.states: Sequence[int] = [*([0] if config.layers is None else []), *(index + 1 for index in layers)]
        self.layer_weights = nn.Parameter(torch.zeros(len(self.states)))
        self.first_layer = self.states[0] - 1 if config.layers is not None else 0
        self.output_size = encoder.hidden_size

    @property
    def indifferent(self) -> tuple[nn.Parameter, ...]:
        return (self.layer_weights,) if len(self.layer_weights) == 1 else ()

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor:
        total = encoder.num_layers + 1  # counted from the top: the run may start above layer 0
        states = torch.stack([output.hidden_states[state - total] for state in self.states])
        if encoder.final_norm is not None:
            states = encoder.final_norm(states)
        return torch.einsum("l,lbtd->btd", self.layer_weights.softmax(0).to(states.dtype), states)

    def describe(self) -> list[str]:
        return [f"weights: softmax-weighted sum of {len(self.layer_weights)} hidden states"]
