"""ConvAdapter: light convolutions over time on a layer's output, with a squeeze-and-excitation gate.

    y = x + SE(C3(C2(act(C1(LN x)))))

C1 (kernel 3, D -> b), C2 (kernel 5, b) and C3 (kernel 3, b -> D) are grouped by bottleneck channel and have no biases;
``SE(c) = c * sigmoid(W2 relu(W1 mean_t c))`` with W1: D -> D / 16. Padding is zeroed before each convolution and left
out of the mean, so that an utterance gives the same alone and in a batch (the original code averages over padding).

Parameters at b = D / 2: ``2 D + 6 b + 5 b + 3 D + D^2 / 8`` a layer (141,824 at D = 1024). Use it for recognition from
few parameters (about 1 % of a Large encoder).

Source: Li et al., "Evaluating Parameter-Efficient Transfer Learning Approaches on SURE Benchmark for Speech
Understanding" (ICASSP 2023) and its official code. C3 starts at zero here, so that step 0 is the frozen encoder; the
original draws it at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, activation, choose_layers
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Size


@dataclass(frozen=True, kw_only=True)
class ConvAdapter(AdapterConfig):
    """Convolutional adapters on the output of the chosen layers."""

    method: ClassVar[str] = "conv_adapter"
    group: ClassVar[str] = "conv"

    size: Size | None = None
    """Bottleneck channels b, a divisor of the encoder's width; None takes half of the width, as published."""
    squeeze: Size = 16
    """Reduction of the gate's hidden layer, which has 8 units or more: fewer ReLUs may all start dead."""
    activation: str = "relu"
    layers: Layers = None
    """Layers that get one: None for all, indices (negative ones from the top), "top-4" or "every-2"."""

    def build(self, encoder: Encoder) -> ConvAdapterModule:
        return ConvAdapterModule(self, encoder)


class ConvLayer(nn.Module):
    """(B, T, D) with mask (B, T) or None -> (B, T, D): what is added to a layer's output."""

    def __init__(self, width: int, size: int, config: ConvAdapter, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.first = nn.Conv1d(width, size, 3, padding=1, groups=size, bias=False)
        self.second = nn.Conv1d(size, size, 5, padding=2, groups=size, bias=False)
        self.third = nn.Conv1d(size, width, 3, padding=1, groups=size, bias=False)
        self.activation = activation(config.activation)
        units = max(8, width // config.squeeze)
        self.squeeze = nn.Linear(width, units, bias=False)
        self.excite = nn.Linear(units, width, bias=False)
        nn.init.zeros_(self.third.weight)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        real = None if mask is None else mask.unsqueeze(1).to(hidden.dtype)

        def masked(frames: Tensor) -> Tensor:
            return frames if real is None else frames * real

        hidden = masked(self.norm(hidden).transpose(1, 2))
        hidden = masked(self.activation(self.first(hidden)))
        hidden = masked(self.third(masked(self.second(hidden))))
        frames = hidden.shape[-1] if real is None else real.sum(-1)
        mean = hidden.sum(-1) / frames
        gate = self.excite(self.squeeze(mean).relu()).sigmoid()
        return hidden.transpose(1, 2) * gate.unsqueeze(1)


class ConvAdapterModule(AdapterModule):
    """Convolutional adapters by layer."""

    def __init__(self, config: ConvAdapter, encoder: Encoder) -> None:
        super().__init__(config)
        width, eps = encoder.hidden_size, encoder.layer_norm_eps
        size = width // 2 if config.size is None else config.size
        if width % size or not 1 <= config.squeeze <= width:
            raise ConfigError(
                f"conv_adapter: size={size} must divide the encoder's width {width}, and squeeze={config.squeeze} lie "
                f"between 1 and {width}."
            )
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        self.first_layer = self.layer_indices[0]
        self.convs = nn.ModuleDict({str(i): ConvLayer(width, size, config, eps) for i in self.layer_indices})

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        if name != "layer" or str(index) not in self.convs:
            return None
        return self.convs[str(index)](site.output, site.mask)
