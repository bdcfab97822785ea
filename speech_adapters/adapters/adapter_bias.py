"""AdapterBias: one learnt vector per layer, shifted by a learnt weight per frame.

    FFN(x) + (w . h + b) v        h (D_ff) the feed-forward's hidden layer, v (D) starts at 0

Parameters: ``D + D_ff + 1`` a layer. Use it where BitFit's fixed shift is too little and a bottleneck too much.

Source: Fu et al., "AdapterBias" (Findings of NAACL 2022, section 3); on speech encoders: Chen et al., "Exploring
efficient-tuning methods in self-supervised speech models" (SLT 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site


@dataclass(frozen=True, kw_only=True)
class AdapterBias(AdapterConfig):
    """A weighted shift of the feed-forward's output."""

    method: ClassVar[str] = "adapter_bias"
    group: ClassVar[str] = "adapter_bias"

    layers: Layers = None
    """Layers that are shifted: None for all, indices (negative ones from the top), "top-4" or "every-2"."""

    def build(self, encoder: Encoder) -> AdapterBiasModule:
        return AdapterBiasModule(self, encoder)


class Shift(nn.Module):
    """(B, T, D_ff) -> (B, T, D)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(hidden, 1)
        self.vector = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight(hidden) * self.vector


class AdapterBiasModule(AdapterModule):
    """Shifts by layer."""

    def __init__(self, config: AdapterBias, encoder: Encoder) -> None:
        super().__init__(config)
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        self.first_layer = self.layer_indices[0]
        hidden = encoder.intermediate_size
        self.shifts = nn.ModuleDict({str(i): Shift(hidden, encoder.hidden_size) for i in self.layer_indices})

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        if name != "output_dense" or str(index) not in self.shifts:
            return None
        return self.shifts[str(index)](site.input)
