"""Prefix tuning: learnt keys and values that every frame of a layer may attend to.

    attention(Q, [P_K; K], [P_V; V])        P_K, P_V (length, D) a layer; WavLM's position bias is 0 on them

With ``hidden`` they come from one table through a small network, which steadies training and can be left out of a
served copy: ``[P_K; P_V] = W2 tanh(W1 P)``, P (length, D), W1: D -> hidden, W2: hidden -> 2 D a layer.

Parameters: ``2 length D`` a layer when flat; ``length D + (D + 1) hidden + L (hidden + 1) 2 D`` with the network. Use
it where a few extra positions are wanted rather than changed weights; it does not start at the frozen encoder exactly,
since the prefix takes part in the attention from the first step on.

Source: Li and Liang, "Prefix-Tuning" (ACL 2021, sections 4.2 and 4.3). Length 30 and hidden 512: the `adapters`
library; flat, length 30: the SURE benchmark (Li et al., ICASSP 2023). The flat start N(0, 0.02) is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers
from speech_adapters.encoders.attention import AttentionPrefix
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Projection
from speech_adapters.ranges import Dropout, NotNegative, Size


@dataclass(frozen=True, kw_only=True)
class Prefix(AdapterConfig):
    """Key and value prefixes in the chosen layers."""

    method: ClassVar[str] = "prefix"
    group: ClassVar[str] = "prefix"

    length: Size = 30
    hidden: Size | None = None
    """Width of the re-parametrising network; None trains keys and values as they are (flat)."""
    init_std: NotNegative = 0.02
    dropout: Dropout = 0.0
    """On the prefixes; 0.1 in SURE."""
    layers: Layers = None
    """Layers with a prefix: None for all, indices (negative ones from the top), "top-4" or "every-2"."""

    def build(self, encoder: Encoder) -> PrefixModule:
        return PrefixModule(self, encoder)


class PrefixModule(AdapterModule):
    """Prefixes by layer, (length, 2 D): keys, then values."""

    config: Prefix

    def __init__(self, config: Prefix, encoder: Encoder) -> None:
        super().__init__(config)
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        self.first_layer = self.layer_indices[0]
        width = encoder.hidden_size
        self.dropout = nn.Dropout(config.dropout)
        names = [str(index) for index in self.layer_indices]
        if config.hidden is None:
            self.flat = nn.ParameterDict(
                {name: config.init_std * torch.randn(config.length, 2 * width) for name in names}
            )
        else:
            self.table = nn.Parameter(torch.randn(config.length, width))
            self.inner = nn.Linear(width, config.hidden)
            self.outer = nn.ModuleDict({name: nn.Linear(config.hidden, 2 * width) for name in names})

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        if index not in self.layer_indices:
            return None
        if self.config.hidden is None:
            both = self.flat[str(index)]
        else:
            both = self.outer[str(index)](torch.tanh(self.inner(self.table)))
        keys, values = self.dropout(both).unsqueeze(0).chunk(2, dim=-1)
        return AttentionPrefix(keys, values)

    def describe(self) -> list[str]:
        form = "flat" if self.config.hidden is None else f"through {self.config.hidden} tanh"
        return [f"prefix: {self.config.length} keys and values in {len(self.layer_indices)} layers, {form}"]
