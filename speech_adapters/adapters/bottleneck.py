"""Bottleneck adapters: a narrow two-layer network beside the attention or the feed-forward sub-layer.

With ``f`` the sub-layer's output and ``x`` its input::

    serial     f + s * W_up act(W_down f)
    parallel   f + s * W_up act(W_down x)
    pfeiffer   f + s * W_up act(W_down LN(f + residual))      (LN is the layer's own; the layer's residual follows)

Parameters at one site: ``2 D b + b + D`` (D encoder width, b bottleneck). Use the serial form as the default adapter
of any task, the parallel one for a wide bottleneck, and the Pfeiffer form for adapters that AdapterFusion will
combine. At the site "layer", ``f`` is a whole layer's output: the place of residual adapters between layers, and the
one where NVIDIA NeMo puts its adapters in a conformer.

Sources: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP" (ICML 2019, section 2.1); Pfeiffer et al.,
"AdapterFusion" (EACL 2021, section 4); He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning"
(ICLR 2022, section 3.2, parallel); between layers: Bapna and Firat, "Simple, Scalable Adaptation for Neural Machine
Translation" (EMNLP 2019), on conformers Tomanek et al., "Residual Adapters for Parameter-Efficient ASR Adaptation to
Atypical and Accented Speech" (EMNLP 2021). Defaults: the configurations of the `adapters` library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, activation, choose_layers
from speech_adapters.adapters.module_dict import ModuleDict
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import CountOrNone, Dropout, Finite, NotNegative, Size

SITES = ("attention", "feed_forward")


@dataclass(frozen=True, kw_only=True)
class Bottleneck(AdapterConfig):
    """Bottleneck adapters in the chosen layers. The defaults are Pfeiffer's width in the serial place."""

    method: ClassVar[str] = "bottleneck"
    group: ClassVar[str] = "bottleneck"

    size: Size | tuple[Size, ...] | None = None
    """Bottleneck width b, one for all layers or one for each that gets an adapter, from the lowest up; None takes the
    encoder's width divided by ``reduction_factor``."""
    reduction_factor: Size = 16
    """As in Pfeiffer et al. and Houlsby et al. in the `adapters` library."""
    sites: tuple[str, ...] = ("feed_forward",)
    """"attention" and "feed_forward" (the sub-layers), "layer" (a layer's output), or several."""
    placement: Literal["serial", "parallel", "pfeiffer"] = "serial"
    """Which signal is read; see the module's formulas."""
    activation: str = "relu"
    scale: Finite = 1.0
    """Factor s on what is added; 4.0 in He et al. for the parallel form."""
    dropout: Dropout = 0.0
    layer_norm: bool = False
    """A LayerNorm after the up-projection, as in the E-adapter."""
    init_std: NotNegative | None = None
    """None starts exactly at the frozen encoder (up-projection zero); a number draws both projections N(0, std), the
    published start of the E-adapter (1e-3)."""
    layers: Layers = None
    """Layers that get an adapter; None means all, negative numbers count from the top."""
    skip_top: CountOrNone = 0
    """So many layers at the encoder's top go without, whatever its depth."""

    def build(self, encoder: Encoder) -> BottleneckModule:
        return BottleneckModule(self, encoder)

    def widths(self, encoder: Encoder, layers: Sequence[int]) -> tuple[int, ...]:
        """The bottleneck b of each of these layers. Raises ConfigError for another number of sizes than of layers."""
        if not isinstance(self.size, tuple):
            one = self.size if self.size is not None else max(1, encoder.hidden_size // self.reduction_factor)
            return (one,) * len(layers)
        if len(self.size) != len(layers):
            raise ConfigError(
                f"{self.method}: size={self.size} has {len(self.size)} sizes for {len(layers)} layers; give one for "
                "each, or one number for all."
            )
        return self.size


class BottleneckLayer(nn.Module):
    """(B, T, D) -> (B, T, D): what is added at one site."""

    def __init__(self, width: int, config: Bottleneck, size: int, eps: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.activation = activation(config.activation)
        self.up = nn.Linear(size, width)
        self.norm = nn.LayerNorm(width, eps=eps) if config.layer_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.scale
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if config.init_std is None:
            nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.normal_(self.down.weight, std=config.init_std)
            nn.init.normal_(self.up.weight, std=config.init_std)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.up(self.dropout(self.activation(self.down(hidden))))
        if self.norm is not None:
            hidden = self.norm(hidden)
        return hidden if self.scale == 1.0 else hidden * self.scale


class BottleneckModule(AdapterModule):
    """Bottleneck layers by site and layer."""

    config: Bottleneck
    sites: ModuleDict[ModuleDict[BottleneckLayer]]

    def __init__(self, config: Bottleneck, encoder: Encoder) -> None:
        super().__init__(config)
        known = (*SITES, "layer")
        if not config.sites or any(site not in known for site in config.sites):
            raise ConfigError(f"sites={config.sites}: choose from {', '.join(known)}.")
        if config.layer_norm and config.init_std is None:
            raise ConfigError(
                "layer_norm=True needs init_std (1e-3 as published): a LayerNorm after a zero up-projection gets no "
                "gradient through it, and one after a larger start replaces the pre-trained representation."
            )
        if config.placement == "pfeiffer" and config.sites != ("feed_forward",):
            raise ConfigError("placement='pfeiffer' belongs to the feed-forward alone; use sites=('feed_forward',).")
        eps, top = encoder.layer_norm_eps, encoder.num_layers - config.skip_top
        self.layer_indices = [i for i in choose_layers(config.layers, encoder.num_layers, config.method) if i < top]
        if not self.layer_indices:
            raise ConfigError(f"{config.method}: skip_top={config.skip_top} leaves none of the chosen layers.")
        self.first_layer = self.layer_indices[0]
        widths = dict(zip(self.layer_indices, config.widths(encoder, self.layer_indices), strict=True))
        self.sites = ModuleDict(
            {
                site: ModuleDict(
                    {str(i): BottleneckLayer(encoder.hidden_size, config, b, eps) for i, b in widths.items()}
                )
                for site in config.sites
            }
        )
        self.pre_norm = encoder.pre_norm

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        source = self.source(name, index, site)
        return None if source is None else self.sites[name][str(index)](source)

    def source(self, name: str, index: int, site: Site) -> Tensor | None:
        if name not in self.sites or str(index) not in self.sites[name]:
            return None
        if self.config.placement == "parallel":
            return site.input
        if self.config.placement == "pfeiffer":
            # Pre-norm layers have no LayerNorm after the addition: there the adapter reads the plain sum.
            assert site.residual is not None and site.norm is not None  # the feed-forward comes with both
            total = site.output + site.residual
            return total if self.pre_norm else site.norm(total)
        return site.output

    def describe(self) -> list[str]:
        layers = list(next(iter(self.sites.values())).values())
        width = layers[0].down.in_features
        inner = "/".join(map(str, dict.fromkeys(layer.down.out_features for layer in layers)))
        norm = " + LayerNorm" if self.config.layer_norm else ""
        return [
            f"{self.config.group}: {self.config.placement} after {site}, layers {_span(self.layer_indices)}: "
            f"{width} -> {inner} -> {width} {self.config.activation}{norm}"
            for site in self.sites
        ]


def _span(layers: list[int]) -> str:
    whole = layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 2
    return f"{layers[0]}-{layers[-1]}" if whole else ", ".join(map(str, layers))


@dataclass(frozen=True, kw_only=True)
class EAdapter(Bottleneck):
    """E-adapter: a bottleneck with a LayerNorm of its own on the feed-forward's output, before the residual.

    ``e(f) = f + LN(W_up act(W_down f + b) + b')``. Start: projections N(0, 1e-3), so that the LayerNorm's epsilon
    keeps the added part at about 7 % of the input's scale (a wider start, or a zero one, would put it at 100 % or
    leave it without gradient). Source: Otake et al., "Parameter Efficient Transfer Learning for Various Speech
    Processing Tasks" (ICASSP 2023) and its official code; activation GELU for ASR and intent, ReLU for speaker and
    emotion.
    """

    method: ClassVar[str] = "e"
    group: ClassVar[str] = "e"

    size: Size | tuple[Size, ...] | None = 256
    activation: str = "gelu"
    layer_norm: bool = True
    init_std: NotNegative | None = 1e-3
