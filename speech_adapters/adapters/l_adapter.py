"""L-adapters: a path from every encoder layer straight to the head.

    a_l = LN(act(W_l h_l + b_l))          h_l the output of layer l, W_l: D -> size
    z   = sum_l softmax(s)_l a_l          the head reads z alone

Parameters: ``L (D size + 3 size) + L``. Use them for tasks whose information lies in lower layers (speakers,
emotion), and where training must be cheap: nothing is computed backwards through the encoder. In a pre-norm encoder
``h_l`` is taken through the encoder's (frozen) final LayerNorm, since the raw residual stream has no fixed scale.

Source: Otake et al., "Parameter Efficient Transfer Learning for Various Speech Processing Tasks" (ICASSP 2023), and
its official code: size 512, s starting at 1/L, weights N(0, 1e-3), no up-projection and no residual.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, activation, choose_layers
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.ranges import NotNegative, Size


@dataclass(frozen=True, kw_only=True)
class LAdapter(AdapterConfig):
    """L-adapters from the chosen layers; the defaults are those of the official code."""

    method: ClassVar[str] = "l"
    group: ClassVar[str] = "l"

    size: Size = 512
    """Width that the head reads."""
    activation: str = "gelu"
    init_std: NotNegative = 1e-3
    layers: Layers = None
    """Layers with a path; None means all."""

    def build(self, encoder: Encoder) -> LayerPaths:
        return LAdapterModule(self, encoder)


class LayerPaths(AdapterModule):
    """A linear map and a LayerNorm from each chosen layer to the head; how they are weighed is the subclass's.

    Attributes:
        layer_indices: the layers, lowest first.
    """

    config: LAdapter

    def __init__(self, config: LAdapter, encoder: Encoder) -> None:
        super().__init__(config)
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        eps = encoder.layer_norm_eps
        paths = [nn.Linear(encoder.hidden_size, config.size) for _ in self.layer_indices]
        self.paths = nn.ModuleList(paths)
        self.norms = nn.ModuleList(nn.LayerNorm(config.size, eps=eps) for _ in self.layer_indices)
        self.activation = activation(config.activation)
        self.output_size, self.first_layer = config.size, self.layer_indices[0]
        self.states = [index + 1 for index in self.layer_indices]
        for path in paths:
            nn.init.normal_(path.weight, std=config.init_std)
            nn.init.zeros_(path.bias)

    def heard(self, encoder: Encoder, output: EncoderOutput) -> Iterator[Tensor]:
        """``h_l`` (B, T, D) of each chosen layer."""
        for index in self.layer_indices:
            hidden = output.hidden_states[index - encoder.num_layers]  # from the top: the run may start above layer 0
            yield hidden if encoder.final_norm is None else encoder.final_norm(hidden)

    def describe(self) -> list[str]:
        path = f"{self.paths[0].in_features} -> {self.paths[0].out_features} {self.config.activation} + LayerNorm"
        return [f"{self.config.method}: {len(self.paths)} paths from layers to the head, {path}"]


class LAdapterModule(LayerPaths):
    """The paths and the layer weights."""

    def __init__(self, config: LAdapter, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        count = len(self.layer_indices)
        self.layer_weights = nn.Parameter(torch.full((count,), 1.0 / count))

    @property
    def indifferent(self) -> tuple[nn.Parameter, ...]:
        return (self.layer_weights,) if len(self.layer_weights) == 1 else ()

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor:
        # Of one dimension each: numbers of none would leave sum and gradient in bf16, too coarse to tell layers apart.
        weights = self.layer_weights.softmax(0).split(1)
        total: Tensor | None = None
        for weight, hidden, path, norm in zip(
            weights, self.heard(encoder, output), self.paths, self.norms, strict=True
        ):
            assert isinstance(norm, nn.LayerNorm)
            # The weight scales the LayerNorm's own factors rather than every frame.
            factor, shift = norm.weight * weight, norm.bias * weight
            part = layer_norm(self.activation(path(hidden)), [self.config.size], factor, shift, norm.eps)
            total = part.float() if total is None else total + part
        assert total is not None  # an adapter has at least one layer
        return total
