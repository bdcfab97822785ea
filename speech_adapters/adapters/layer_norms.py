"""LayerNorm tuning: the encoder layers' LayerNorms train, as the adapter's own copies.

The base keeps its values; switching the adapter off restores them exactly. Parameters: ``4 D`` a layer (``12 D`` in a
conformer layer, which has six). Use it beside other methods, or alone for a change of channel or loudness.

Where something has changed the base's LayerNorm before (BitFit, other copies, a fine-tuned layer), a copy adds its own
change to that: ``norm(x) + LN_copy(x) - LN_base(x)``.

Trained beside E-, L- and Houlsby adapters in Otake et al. (ICASSP 2023, official code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers, trainable_copy
from speech_adapters.adapters.module_dict import ModuleDict
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Norm


@dataclass(frozen=True, kw_only=True)
class LayerNorms(AdapterConfig):
    """The LayerNorms of the chosen layers."""

    method: ClassVar[str] = "layer_norms"
    group: ClassVar[str] = "norm"

    layers: Layers = None

    def build(self, encoder: Encoder) -> LayerNormsModule:
        return LayerNormsModule(self, encoder)


class LayerNormsModule(AdapterModule):
    """Copies of the base's LayerNorms."""

    def __init__(self, config: LayerNorms, encoder: Encoder) -> None:
        super().__init__(config)
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        self.base = {  # a plain dict: they are the encoder's, and no part of this module
            f"{index}_{name}": encoder.part(index, name)
            for index in self.layer_indices
            for name in encoder.architecture.norms
        }
        self.norms = ModuleDict({key: trainable_copy(norm) for key, norm in self.base.items()})
        self.first_layer = self.layer_indices[0]

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        key = f"{index}_{name}"
        if key not in self.norms:
            return None
        own, base = self.norms[key], self.base[key]
        return own if norm is base else lambda hidden: norm(hidden) + (own(hidden) - base(hidden))

    def folded_weights(self, encoder: Encoder) -> dict[str, Tensor]:
        folded: dict[str, Tensor] = {}
        for key, norm in self.norms.items():
            index, name = key.split("_", 1)
            place = encoder.part_name(int(index), name)
            folded |= {f"{place}.{tensor}": value for tensor, value in norm.state_dict().items()}
        return folded

    def replaced(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def describe(self) -> list[str]:
        return [f"norm: {len(self.norms)} LayerNorms of {len(self.layer_indices)} layers"]
