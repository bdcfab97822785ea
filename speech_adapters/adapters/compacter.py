"""Compacter: a bottleneck adapter whose matrices are sums of Kronecker products.

    f + W_up act(W_down f),   W = sum_i A_i (x) (s_i t_i'),   i = 1 .. n

The n matrices A_i (n, n) are shared by all layers; s_i and t_i' are rank-one factors of each projection.

Parameters: ``n^3`` shared by all, and ``2 (D + b) + b + D`` at one site. Use it for a bottleneck at LoRA's size and
below. Source: Karimi Mahabadi et al., "Compacter" (NeurIPS 2021, sections 3 and 4); n = 4 and D / 32 as there. The
up-projection's s starts at zero, so that step 0 is the frozen encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, activation, choose_layers
from speech_adapters.adapters.bottleneck import SITES
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Size


@dataclass(frozen=True, kw_only=True)
class Compacter(AdapterConfig):
    """Kronecker-product bottlenecks; the default sites are Compacter's, the feed-forward alone is Compacter++."""

    method: ClassVar[str] = "compacter"
    group: ClassVar[str] = "compacter"

    reduction_factor: Size = 32
    terms: Size = 4
    """Kronecker products n; it divides the width and the bottleneck."""
    sites: tuple[str, ...] = SITES
    activation: str = "gelu"
    layers: Layers = None
    """Layers that get one: None for all, indices (negative ones from the top), "top-4" or "every-2"."""

    def build(self, encoder: Encoder) -> CompacterModule:
        return CompacterModule(self, encoder)


class KroneckerLinear(nn.Module):
    """(..., D_in) -> (..., D_out) with ``terms`` shared matrices (n, n, n) given at the call."""

    def __init__(self, inputs: int, outputs: int, terms: int, zero: bool) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.zeros(terms, inputs // terms, 1))
        self.right = nn.Parameter(torch.empty(terms, 1, outputs // terms))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.right)
        if not zero:
            nn.init.xavier_uniform_(self.left)

    def forward(self, hidden: Tensor, shared: Tensor) -> Tensor:
        weight = torch.einsum("nab,nij->aibj", shared, self.left @ self.right)
        return hidden @ weight.flatten(2).flatten(0, 1) + self.bias


class CompacterModule(AdapterModule):
    """Projections by site and layer, and the shared matrices."""

    def __init__(self, config: Compacter, encoder: Encoder) -> None:
        super().__init__(config)
        width, terms = encoder.hidden_size, config.terms
        size = max(terms, width // config.reduction_factor)
        if terms < 1 or width % terms or size % terms:
            raise ConfigError(f"compacter: terms={terms} must divide the width {width} and the bottleneck {size}.")
        unknown = [site for site in config.sites if site not in SITES]
        if unknown or not config.sites:
            raise ConfigError(f"compacter: sites={config.sites}; choose from {', '.join(SITES)}.")
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        self.first_layer = self.layer_indices[0]
        self.shared = nn.Parameter(torch.randn(terms, terms, terms) / terms**0.5)
        self.activation = activation(config.activation)
        self.down, self.up = (
            nn.ModuleDict(
                {
                    f"{index}_{site}": KroneckerLinear(inputs, outputs, terms, zero)
                    for index in self.layer_indices
                    for site in config.sites
                }
            )
            for inputs, outputs, zero in ((width, size, False), (size, width, True))
        )

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        key = f"{index}_{name}"
        if key not in self.down:
            return None
        hidden = self.activation(self.down[key](site.output, self.shared))
        return self.up[key](hidden, self.shared)
