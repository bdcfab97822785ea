"""CNN adapters: a trainable twin beside each block of the convolutional feature extractor.

    x' = conv(x) + scale * twin(x)        twin: a copy of the block whose convolution starts at zero

Parameters: those of the chosen blocks (4.2 M for all of a Base encoder). They are the one published adapter inside the
feature extractor; use them beside adapters in the layers (preset "chapter") when the sound itself is foreign:
speakers, emotion, noise, another channel. Where the block has a LayerNorm or GroupNorm, its bias makes the start near
the frozen encoder rather than exactly it.

Source: Chen et al., "CHAPTER: Exploiting Convolutional Neural Network Adapters for Self-supervised Speech Models"
(ICASSP 2023 workshops) and the authors' code: scale 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers, trainable_copy
from speech_adapters.adapters.module_dict import ModuleDict
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Finite


@dataclass(frozen=True, kw_only=True)
class CNNAdapter(AdapterConfig):
    """Twins of the feature extractor's blocks."""

    method: ClassVar[str] = "cnn_adapter"
    group: ClassVar[str] = "cnn"

    scale: Finite = 0.01
    blocks: Layers = None
    """Blocks with a twin: None for all, indices (negative ones from the last), "top-2" or "every-2"."""

    def build(self, encoder: Encoder) -> CNNAdapterModule:
        return CNNAdapterModule(self, encoder)


class CNNAdapterModule(AdapterModule):
    """Twins by block."""

    config: CNNAdapter
    twins: ModuleDict[nn.Module]
    first_layer = -2

    def __init__(self, config: CNNAdapter, encoder: Encoder) -> None:
        super().__init__(config)
        blocks, self.architecture = encoder.cnn_blocks, encoder.architecture
        if not blocks:
            raise ConfigError(
                f"{config.method}: {encoder.name} hears {encoder.architecture.front_end_name(encoder.config)} and has "
                "no convolutions before its layers, so there is nothing to set a twin beside; adapt its layers."
            )
        chosen = choose_layers(config.blocks, len(blocks), config.method)
        self.twins = ModuleDict({str(index): trainable_copy(blocks[index]) for index in chosen})
        for twin in self.twins.values():
            conv = self.architecture.convolution(twin)
            nn.init.zeros_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        if name != "cnn" or str(index) not in self.twins:
            return None
        twin = self.twins[str(index)]
        hidden = site.input.to(self.architecture.convolution(twin).weight.dtype)
        return self.config.scale * self.architecture.run_block(twin, hidden)

    def describe(self) -> list[str]:
        return [f"cnn: twins of blocks {', '.join(self.twins)} of the feature extractor, scale {self.config.scale:g}"]
