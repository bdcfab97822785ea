"""Routing: a mixture of experts whose gate weighs whole adapters by what the CNN heard, or by what a layer made of it.

    s = [mean_t c_t; std_t c_t]  (a gate per utterance)   or   s_t = c_t  (per frame)     c the CNN's output, (T, C)
    g = softmax(W LN(z(s)) + b)     z: zero mean, unit variance over all of its training (composition.standardization)

and at every site ``sum_n g_n d_n`` (see ``composition.average``): the same gate in all layers, so that a gate of one
member alone is that adapter, exactly. W starts at zero, the uniform average. With ``top_k`` the k largest weights are
kept and renormalised; for k = 1 the gradient passes straight through. At the start all weights tie, and the k that are
kept are the same for every input, until the gates have learnt to differ.

With ``layer`` the gate is the model's own posterior, read in the same pass where layer k begins::

    p_t = softmax(W LN(h_t) + b)     h the input of layer k, (T, D)      g = mean_t p_t  (utterance)  or  g_t = p_t

The guide loss makes it the posterior of domains (languages in the paper). Layers below k are shared: there the members
act in equal parts, which is the one adapter that they have in common where they were trained so, as in
``Stack("shared", Route("a", "b"))`` with members that act from layer k on, the published form.
``train_adapter(Stack(...))`` trains the shared adapter with the gate; members were trained before (in the paper all
are trained together).

The load-balance loss of Fedus et al., "Switch Transformers" (JMLR 2022, equation 4), ``N sum_n f_n p_n`` with ``f_n``
the share of inputs whose largest weight is n and ``p_n`` the mean weight, keeps all experts in use. Experts: adapters
trained before, as in fusion. Parameters: ``2 C N + 4 C + N`` (utterance), ``C N + 2 C + N`` (frame), ``D N + 2 D + N``
(with ``layer``).

Source of ``layer``: Zheng et al., "A Language-Agnostic Hierarchical LoRA-MoE Architecture for CTC-based Multilingual
ASR" (HLoRA, arXiv 2601.00557): lower layers with a shared LoRA, a classifier behind them, and above them one LoRA a
language, weighed by its posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speech_adapters.adapters.hooks import Hooks
from speech_adapters.composition.average import WeightedHooks, Weights, check_members
from speech_adapters.composition.blocks import TrainableComposition
from speech_adapters.composition.fusion_base import (
    CompositionConfig,
    CompositionModule,
    TrainableHooks,
    guide_loss,
)
from speech_adapters.composition.standardization import Standardization
from speech_adapters.encoders.attention import AttentionPrefix
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Frames, Norm, Projection, Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Count, NotNegative, Rate


@dataclass(frozen=True, kw_only=True)
class RouterConfig(CompositionConfig):
    """A gate per utterance over all members; ours, where the papers differ among themselves."""

    per: Literal["utterance", "frame"] = "utterance"
    """A recording has one channel and one speaker: one decision for all its frames is steadier than one per frame."""
    layer: Count | None = None
    """The layer whose input the gate reads, 1 for the second; None reads the CNN's output."""
    top_k: Count | None = None
    """Members kept for each decision; None keeps all."""
    balance: NotNegative = 0.01
    """Weight of the load-balance loss, that of Switch Transformers."""
    learning_rate: Rate | None = 1e-3

    def build(self, composition: TrainableComposition, members: Sequence[Hooks], encoder: Encoder) -> RouterModule:
        return RouterModule(self, composition, members, encoder)


class RouterModule(CompositionModule):
    """The CNN's or a layer's frames (B, T, C) and their mask -> weights (B, 1 or T, N)."""

    group = "router"

    config: RouterConfig

    def __init__(
        self, config: RouterConfig, composition: TrainableComposition, members: Sequence[Hooks], encoder: Encoder
    ) -> None:
        super().__init__(config, composition)
        if config.top_k is not None and config.top_k > len(members):
            raise ConfigError(f"{composition!r}: top_k={config.top_k} of {len(members)} members; choose fewer.")
        check_members(members, repr(composition), encoder.num_layers)
        if config.layer is not None and config.layer >= encoder.num_layers:
            raise ConfigError(
                f"{composition!r}: layer={config.layer}, but the encoder's layers are 0 to {encoder.num_layers - 1}; "
                "read the input of one of them."
            )
        if config.layer is None and min(member.first_layer for member in members) < -1:
            raise ConfigError(
                f"{composition!r}: a member acts inside the CNN, whose output the gate reads; use Average."
            )
        if config.layer is not None:
            size = encoder.hidden_size
        else:
            size = encoder.cnn_width * (2 if config.per == "utterance" else 1)
        # A layer's input, which is read where gradient checkpointing may compute it twice, has a LayerNorm alone.
        self.heard = Standardization(size) if config.layer is None else None
        self.norm, self.gate = nn.LayerNorm(size), nn.Linear(size, len(members))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        frames, utterance = frames.float(), self.config.per == "utterance"
        if utterance and self.config.layer is None:
            frames = statistics(frames, mask).unsqueeze(1)
        if self.heard is not None:
            if self.training and torch.is_grad_enabled() and self.gate.weight.requires_grad:
                self.heard.learn(frames.flatten(0, 1) if utterance or mask is None else frames[mask])
            frames = self.heard(frames)
        posterior = self.gate(self.norm(frames)).softmax(-1)
        if utterance and self.config.layer is not None:
            real = torch.ones_like(posterior[..., :1]) if mask is None else mask.unsqueeze(-1).to(posterior.dtype)
            posterior = (posterior * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return posterior

    def tensors(self) -> dict[str, Tensor]:
        own = super().tensors()
        if self.heard is None or self.heard.count:
            return own
        return {name: tensor for name, tensor in own.items() if not name.startswith("heard.")}

    def kept(self, gate: Tensor) -> Tensor:
        """The ``top_k`` largest weights, renormalised; the others zero."""
        if self.config.top_k is None or self.config.top_k == gate.shape[-1]:
            return gate
        top = gate.topk(self.config.top_k, dim=-1).indices
        kept = gate * torch.zeros_like(gate).scatter(-1, top, 1.0)
        weights = kept / kept.sum(-1, keepdim=True)
        return weights + kept - kept.detach() if self.config.top_k == 1 else weights

    def hooks(self, members: Sequence[Hooks], layers: int) -> RoutedHooks:
        return RoutedHooks(members, self, layers)

    def describe(self) -> list[str]:
        top = "" if self.config.top_k is None else f", top {self.config.top_k}"
        place = "the CNN's output" if self.config.layer is None else f"the input of layer {self.config.layer}"
        return [f"router: one gate per {self.config.per}{top}, reads {place}"]


class RoutedHooks(WeightedHooks, TrainableHooks):
    """The members under the gate (B, 1 or T, N) of one forward; ``attention`` has it as it weighs them."""

    def __init__(self, members: Sequence[Hooks], module: RouterModule, layers: int) -> None:
        super().__init__(members, (), repr(module.composition), layers)
        self.module, self.name, self.layer_read = module, module.composition.name, module.config.layer
        self.shared = WeightedHooks(members, [1 / len(members)] * len(members), self.label, layers)
        self.first_layer = -1 if self.layer_read is None else min(self.first_layer, self.layer_read - 1)
        self.attention = {}
        self.gate: Tensor | None = None
        self.mask: Tensor | None = None

    def _undecided(self, index: int) -> bool:
        return self.layer_read is not None and index < self.layer_read

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames | None:
        if self.layer_read is not None:
            return self.shared.pseudo_frames(where, frames, mask)
        if where == "cnn_out":
            self._decide(frames, mask)
        return super().pseudo_frames(where, frames, mask)

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        return self.shared.norm(index, name, norm) if self._undecided(index) else super().norm(index, name, norm)

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        return self.shared.prefix(index, project) if self._undecided(index) else super().prefix(index, project)

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        if self.layer_read is None or (name != "cnn" and index >= self.layer_read):  # CNN blocks are numbered too
            return super().delta(name, index, site)
        added = self.shared.delta(name, index, site)
        if name == "layer" and index + 1 == self.layer_read:  # what enters the next one
            self._decide(site.output if added is None else site.output + added.to(site.output.dtype), site.mask)
        return added

    def _decide(self, frames: Tensor, mask: Tensor | None) -> None:
        self.gate, self.mask = self.module(frames, mask), mask
        self.attention = {"gate": self.module.kept(self.gate)}

    def weights(self, frames: int | None = None) -> Weights:
        if self.gate is None:
            raise ConfigError(
                f"{self.label}: its gate reads the input of layer {self.layer_read}, which skip_layers leaves out; "
                "skip fewer layers."
            )
        gate = self.attention["gate"]
        if gate.shape[1] not in (1, frames):
            raise ConfigError(
                f"{self.label}: a gate per frame cannot weigh pseudo frames or prefixes; use per='utterance'."
            )
        return gate.unsqueeze(-1).unbind(2)

    def loss(self, guide: Tensor | None, lengths: Tensor, before: int | Tensor) -> Tensor:
        assert self.gate is not None
        real = self.gate if self.mask is None or self.gate.shape[1] == 1 else self.gate[self.mask].unsqueeze(1)
        decided = nn.functional.one_hot(real.argmax(-1), real.shape[-1]).float().mean((0, 1))
        total = self.module.config.balance * real.shape[-1] * (decided * real.mean((0, 1))).sum()
        heard = None if self.mask is None else self.mask.sum(1)
        return total + guide_loss(self.module.config, [self.gate], guide, heard)


def statistics(frames: Tensor, mask: Tensor | None) -> Tensor:
    """Mean and standard deviation over the real frames: (B, T, C) -> (B, 2 C)."""
    real = torch.ones_like(frames[..., :1]) if mask is None else mask.unsqueeze(-1).to(frames.dtype)
    count = real.sum(1)
    mean = (frames * real).sum(1) / count
    variance = ((frames - mean.unsqueeze(1)).square() * real).sum(1) / count
    return torch.cat([mean, (variance + 1e-7).sqrt()], dim=-1)
