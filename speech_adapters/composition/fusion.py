"""AdapterFusion: attention over trained adapters, at every site where they act.

With ``x`` what the adapters read there, ``f`` the sub-layer's output and ``u_n`` what adapter n adds to it::

    q = W_q x + b_q        k_n = W_k u_n + b_k        v_n = W_v u_n
    a = softmax_n(q . k_n)                             (no 1 / sqrt(D), as in the official code; an option)
    f + sum_n a_n v_n

Start: ``W_q, W_k ~ N(0, 0.02)``, zero biases, ``W_v = I + 1e-6`` off the diagonal, drawn to the identity by
``0.01 ||I - W_v||_F^2`` per site in the loss. Parameters per site: ``3 D^2 + 2 D``, 21,252,096 for 12 layers of 768:
more than the adapters themselves, hence the low-rank variant (``W_q, W_k: D -> r``; ``W_v = I + U V`` with U zero at
the start): ``4 D r + 2 r``.

Two stages: first the adapters, each on its own domain; then, with them frozen, the fusion on all domains' data.

A LayerNorm that the adapters tune is a site too, with ``u_n = LN_n(x) - LN(x)`` and ``f = LN(x)``; so are features
for the head, with ``u_n`` the features, ``f = 0`` and ``x`` the last hidden state. Pseudo frames and prefixes of all
members stand side by side: the encoder's own attention weighs them. An adapter that does not act at a site adds 0.

Sources: Pfeiffer et al., "AdapterFusion" (EACL 2021, section 3.2) and its official code; the expert that adds nothing
and the guide loss: Hou et al., "Exploiting Adapters for Cross-lingual Low-resource Speech Recognition" (SimAdapter,
TASLP 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.adapters.hooks import Hooks, StackedHooks
from speech_adapters.composition.average import check_members
from speech_adapters.composition.blocks import TrainableComposition
from speech_adapters.composition.fusion_base import (
    CompositionConfig,
    CompositionModule,
    TrainableHooks,
    guide_loss,
)
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.encoders.plan import Frames, Norm, Plan, Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Dropout, NotNegative, Rate, Size


@dataclass(frozen=True, kw_only=True)
class FusionConfig(CompositionConfig):
    """The defaults are the library's "dynamic" configuration."""

    value: bool = True
    """Whether there is a W_v; False is the "static" variant, which only weighs what the members add."""
    rank: Size | None = None
    """Rank r of the low-rank variant; None for full matrices, as published."""
    scaled: bool = False
    """Divide the scores by sqrt(D), or sqrt(r), as later attention does."""
    none_expert: bool = False
    """One more expert that adds nothing, so that a frame may choose the base (SimAdapter)."""
    dropout: Dropout = 0.0
    """On the scores."""
    regularization: NotNegative = 0.01
    """Weight of ``||I - W_v||^2`` in the loss."""
    learning_rate: Rate | None = 5e-5
    """As in the library's documentation; SimAdapter uses 1e-3."""

    def build(self, composition: TrainableComposition, members: Sequence[Hooks], encoder: Encoder) -> FusionModule:
        return FusionModule(self, composition, members, encoder)


class FusionLayer(nn.Module):
    """One site: what the adapters read (B, T, Q) and what they add (B, T, N, D) -> (B, T, D), attention (B, T, N).

    ``query``, ``key`` and ``value`` are W_q, W_k and W_v; ``value_up`` is U where W_v is of low rank.
    """

    def __init__(self, query_size: int, size: int, config: FusionConfig) -> None:
        super().__init__()
        inner = config.rank or size
        self.query, self.key = nn.Linear(query_size, inner), nn.Linear(size, inner)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = inner**-0.5 if config.scaled else 1.0
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.value: nn.Linear | None = None
        self.value_up: nn.Linear | None = None
        if config.value and config.rank is None:
            self.value = nn.Linear(size, size, bias=False)
            nn.init.constant_(self.value.weight, 1e-6)
            self.value.weight.data.fill_diagonal_(1.0)
        elif config.value:
            self.value, self.value_up = nn.Linear(size, inner, bias=False), nn.Linear(inner, size, bias=False)
            nn.init.zeros_(self.value_up.weight)

    @property
    def indifferent(self) -> tuple[nn.Parameter, ...]:
        """b_k, published all the same: it moves the scores of all members alike, which their softmax does not see. Its
        gradient is rounding, and of two members exactly zero."""
        return (self.key.bias,)

    def forward(self, read: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        # W_k and W_v are linear: applied to the query and to the weighted sum they cost the same for any number of
        # members, q . (W_k u_n + b_k) = (W_k' q) . u_n + q . b_k.
        query = self.query(read)
        scores = torch.einsum("btd,btnd->btn", query @ self.key.weight, added)
        scores = (scores + (query @ self.key.bias).unsqueeze(-1)) * self.scale
        attention = self.dropout(scores).softmax(-1)
        fused = torch.einsum("btn,btnd->btd", attention, added)
        if self.value is not None and self.value_up is not None:
            fused = fused + self.value_up(self.value(fused))
        elif self.value is not None:
            fused = self.value(fused)
        return fused, attention

    def regularizer(self) -> Tensor:
        """``||I - W_v||_F^2``."""
        if self.value is None:
            return self.query.weight.new_zeros(())
        if self.value_up is not None:
            up, down = self.value_up.weight, self.value.weight
            return ((up.T @ up) * (down @ down.T)).sum()  # of an r x r trace, not of a D x D matrix
        return (torch.eye(len(self.value.weight), device=self.value.weight.device) - self.value.weight).square().sum()


class FusionModule(CompositionModule):
    """One :class:`FusionLayer` per site; the sites are found by one pass of silence through the encoder."""

    group = "fusion"

    config: FusionConfig

    def __init__(
        self, config: FusionConfig, composition: TrainableComposition, members: Sequence[Hooks], encoder: Encoder
    ) -> None:
        super().__init__(config, composition)
        check_members(members, repr(composition), encoder.num_layers)
        finder = _Finder(members)
        with torch.no_grad():
            silence = torch.zeros(1, 2 * encoder.receptive_field, device=encoder.device)
            encoder(silence, plan=finder)
        width, read = encoder.hidden_size, members[0].output_size
        if finder.elsewhere is not None:
            number, site = finder.elsewhere
            member = members[number]
            method = f" ({member.config.method})" if isinstance(member, AdapterModule) else ""
            where, others = ("in the CNN", "") if site == "cnn" else (f"on {site}", ", Route")
            raise ConfigError(
                f"{composition!r}: {composition.members[number]!r}{method} acts {where}, where AdapterFusion is not "
                f"defined: it weighs additions to sub-layers and layers; use Average{others} or "
                "model.average_adapters."
            )
        if not finder.sites and read is None:
            raise ConfigError(
                f"{composition!r}: no member adds to a sub-layer's output, so there is nothing to attend to."
            )
        self.layers = nn.ModuleDict({site: FusionLayer(width, width, config) for site in finder.sites})
        if read is not None:
            self.layers["read"] = FusionLayer(width, read, config)

    @property
    def choices(self) -> int:
        return super().choices + self.config.none_expert

    def hooks(self, members: Sequence[Hooks], layers: int) -> FusedHooks:
        return FusedHooks(members, self)

    def regularizer(self) -> Tensor:
        """``0.01 sum ||I - W_v||_F^2`` over all sites."""
        terms = [cast(FusionLayer, layer).regularizer() for layer in self.layers.values()]
        return self.config.regularization * reduce(torch.add, terms)

    def describe(self) -> list[str]:
        rank = "" if self.config.rank is None else f" of rank {self.config.rank}"
        return [f"{'dynamic' if self.config.value else 'static'} fusion{rank} at {len(self.layers)} sites"]


class FusedHooks(StackedHooks, TrainableHooks):
    """The members under one forward's attention, kept in ``attention`` by site, each (B, T, N)."""

    def __init__(self, members: Sequence[Hooks], module: FusionModule) -> None:
        super().__init__(members)
        self.module, self.name = module, module.composition.name
        self.attention = {}

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        found = [member.delta(name, index, site) for member in self.members]
        if all(one is None for one in found):
            return None
        source = self.source(name, index, site)
        return self._fuse(f"{name}_{index}", site.output if source is None else source, found)

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        found = [member.norm(index, name, norm) for member in self.members]
        if all(one is None for one in found):
            return None

        def fused(hidden: Tensor) -> Tensor:
            own = norm(hidden)
            added = [None if one is None else one(hidden) - own for one in found]
            return own + self._fuse(f"{name}_{index}", own, added)

        return fused

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor | None:
        if self.output_size is None:
            return None
        top = output.hidden_states[-1]
        query = top if encoder.final_norm is None else encoder.final_norm(top)
        return self._fuse("read", query, [m.read(encoder, output) for m in self.members])

    def loss(self, guide: Tensor | None, lengths: Tensor, before: int | Tensor) -> Tensor:
        weights = [found if site == "read" else found[:, before:] for site, found in self.attention.items()]
        return self.module.regularizer() + guide_loss(self.module.config, weights, guide, lengths)

    def _fuse(self, site: str, read: Tensor, found: Sequence[Tensor | None]) -> Tensor:
        some = next(one for one in found if one is not None)
        added = [torch.zeros_like(some) if one is None else one for one in found]
        if self.module.config.none_expert:
            added.append(torch.zeros_like(some))
        fused: Tensor
        fused, self.attention[site] = self.module.layers[site](read, torch.stack(added, dim=2))
        return fused


SUBLAYERS = ("attention", "feed_forward", "layer")
"""Parts whose outputs members may add to; LayerNorms and features for the head are the other sites of a fusion."""


class _Finder(Plan):
    """Runs the frozen base, and notes the sites where members would act.

    Attributes:
        elsewhere: the first member that acts where no fusion is defined, its number and the site's name.
    """

    def __init__(self, members: Sequence[Hooks]) -> None:
        self.members = members
        self.sites: list[str] = []
        self.elsewhere: tuple[int, str] | None = None

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames:
        for member in self.members:  # a gate among them reads the frames here
            member.pseudo_frames(where, frames, mask)
        return Frames(frames, mask)

    def norm(self, index: int, name: str, norm: Norm) -> Norm:
        self._note(f"{name}_{index}", [member.norm(index, name, norm) for member in self.members])
        return norm

    def site(self, name: str, index: int, site: Site) -> Tensor:
        found = [member.delta(name, index, site) for member in self.members]
        self._note(f"{name}_{index}", found)
        if name not in SUBLAYERS and self.elsewhere is None:
            self.elsewhere = next(((number, name) for number, one in enumerate(found) if one is not None), None)
        return site.output

    def _note(self, site: str, found: Sequence[Any]) -> None:
        if any(one is not None for one in found):
            self.sites.append(site)
