"""BitFit: only biases train.

    y = W x + b + d        LN(x) + d        d starts at 0

The shifts d stand beside the base's own biases, which stay as they are. Biases of queries, values, the attention's and
the feed-forward's outputs, its hidden layer, and both LayerNorms: ``6 D + D_ff`` a layer (a conformer layer has two
feed-forwards and six LayerNorms: ``11 D + 2 D_ff``). The bias of the keys is left
out, since softmax takes it out again: it could learn nothing.

Use it as the smallest sensible change of a whole encoder (0.1 % of a Base one). Source: Ben Zaken et al., "BitFit"
(ACL 2022); on speech encoders: Chen et al. (SLT 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Norm, Site


@dataclass(frozen=True, kw_only=True)
class BitFit(AdapterConfig):
    """The layers' biases."""

    method: ClassVar[str] = "bitfit"
    group: ClassVar[str] = "bias"

    layers: Layers = None
    """Layers whose biases train: None for all, indices (negative ones from the top), "top-4" or "every-2"."""

    def build(self, encoder: Encoder) -> BitFitModule:
        return BitFitModule(self, encoder)


class BitFitModule(AdapterModule):
    """Shifts of the biases, by layer and place."""

    def __init__(self, config: BitFit, encoder: Encoder) -> None:
        super().__init__(config)
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        self.first_layer = self.layer_indices[0]
        family = encoder.architecture
        places = [*(name for name in family.projections if name != "k_proj"), *family.norms]
        self.shifts = nn.ParameterDict(
            {
                f"{i}_{name}": torch.zeros(len(cast(Tensor, encoder.part(i, name).bias)))
                for i in self.layer_indices
                for name in places
            }
        )

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        key = f"{index}_{name}"
        return self.shifts[key].expand_as(site.output) if key in self.shifts else None

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        key = f"{index}_{name}"
        return partial(_shifted, norm, self.shifts[key]) if key in self.shifts else None

    def folded_weights(self, encoder: Encoder) -> dict[str, Tensor]:
        folded = {}
        for key, shift in self.shifts.items():
            index, name = key.split("_", 1)
            bias = cast(Tensor, encoder.part(int(index), name).bias)
            folded[f"{encoder.part_name(int(index), name)}.bias"] = bias.float() + shift.detach()
        return folded


def _shifted(norm: Norm, shift: Tensor, hidden: Tensor) -> Tensor:
    hidden = norm(hidden)
    return hidden + shift.to(hidden.dtype)
