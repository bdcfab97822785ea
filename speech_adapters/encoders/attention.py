"""One self-attention for wav2vec 2.0, HuBERT, WavLM and their relatives.

It works on the stock attention modules and calls ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` as modules, so
that whatever wraps them (LoRA and its kin) is really run. Stock ``WavLMAttention`` hands the raw ``.weight`` tensors
to one fused call instead: adapters on its projections then train nothing, without a word.

WavLM's gated relative position bias (Chen et al., "WavLM", 2022, section III-B; gate of Chi et al., XLM-E) enters as
the additive mask of ``scaled_dot_product_attention``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class AttentionPrefix(NamedTuple):
    """Extra keys and values, each (B or 1, P, D), and a mask (B, P), True on those that stand, or None for all."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None


def has_position_bias(attention: nn.Module) -> bool:
    """True for WavLM's attention, whose gates scale a relative position bias shared by all layers."""
    return hasattr(attention, "gru_rel_pos_linear")


def position_bias(attention: nn.Module, frames: int) -> Tensor:
    """The relative position bias (1, heads, frames, frames) of the first WavLM layer, shared by all layers."""
    return attention.compute_bias(frames, frames).unsqueeze(0)


def position_gate(attention: nn.Module, hidden: Tensor) -> Tensor:
    """WavLM's gate (B, heads, T, 1) on the position bias, read from the attention's input (B, T, D)."""
    batch, frames, _ = hidden.shape
    heads = hidden.view(batch, frames, attention.num_heads, -1).transpose(1, 2)
    projected = attention.gru_rel_pos_linear(heads).view(batch, attention.num_heads, frames, 2, 4).sum(-1)
    gate_a, gate_b = torch.sigmoid(projected).chunk(2, dim=-1)
    return gate_a * (gate_b * attention.gru_rel_pos_const - 1.0) + 2.0


def self_attention(
    attention: nn.Module,
    hidden: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    prefix: tuple[Tensor, ...] | None = None,
    run: Callable[[str, nn.Module, Tensor], Tensor] | None = None,
) -> Tensor:
    """Multi-head self-attention over the stock module's projections.

    Args:
        attention: a stock attention module of one of the families.
        hidden: (B, T, D).
        mask: (B, 1, 1, T) boolean, True on frames that may be attended to; None when nothing is padded.
        bias: (1, heads, T, T), WavLM's shared relative position bias before gating.
        prefix: an :class:`AttentionPrefix`, or its keys and values, put before the frames' own; every frame sees them,
            with position bias 0 (they stand at no position).
        run: ``run(name, module, input) -> output`` in place of a plain call of each projection.

    Returns: (B, T, D), after ``out_proj``.
    """
    batch, frames, width = hidden.shape
    heads = attention.num_heads

    def split(projected: Tensor) -> Tensor:
        return projected.view(projected.shape[0], projected.shape[1], heads, -1).transpose(1, 2)

    def project(name: str, frames: Tensor) -> Tensor:
        module = getattr(attention, name)
        return module(frames) if run is None else run(name, module, frames)

    query = split(project("q_proj", hidden))
    key, value = project("k_proj", hidden), project("v_proj", hidden)

    additive = None
    if bias is not None:
        additive = (position_gate(attention, hidden) * bias).to(query.dtype)
        if mask is not None:
            additive = additive.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        additive = mask
    if prefix is not None:
        prefix = AttentionPrefix(*prefix)
        key = torch.cat([prefix.keys.to(key.dtype).expand(batch, -1, -1), key], dim=1)
        value = torch.cat([prefix.values.to(value.dtype).expand(batch, -1, -1), value], dim=1)
        additive = _with_prefix(additive, prefix, batch, frames)

    dropout = attention.dropout if attention.training else 0.0
    context = scaled_dot_product_attention(query, split(key), split(value), attn_mask=additive, dropout_p=dropout)
    return project("out_proj", context.transpose(1, 2).reshape(batch, frames, width))


def _with_prefix(additive: Tensor | None, prefix: AttentionPrefix, batch: int, frames: int) -> Tensor | None:
    """The mask (B, 1 or heads, 1 or T, T), boolean or additive, with the prefix's columns in front."""
    extra = prefix.keys.shape[1]
    if prefix.mask is None:
        if additive is None:
            return None
        return nn.functional.pad(additive, (extra, 0), value=True if additive.dtype == torch.bool else 0.0)
    seen = prefix.mask[:, None, None, :]
    if additive is None:
        return nn.functional.pad(seen, (0, frames), value=True)
    if additive.dtype != torch.bool:
        seen = torch.zeros_like(seen, dtype=additive.dtype).masked_fill(~seen, float("-inf"))
    return torch.cat([seen.expand(batch, *additive.shape[1:3], extra), additive.expand(batch, -1, -1, -1)], dim=-1)
