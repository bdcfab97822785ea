"""One self-attention for every family.

It is given a way to run the projections of the stock modules, each as a module of its own, so that whatever acts on
them (LoRA and its kin) is really run. Stock ``WavLMAttention`` hands the raw ``.weight`` tensors to one fused call
instead: adapters on its projections then train nothing, without a word.

A relative position bias (WavLM's gated one, that of relative keys) enters as the additive mask of
``scaled_dot_product_attention``; on CPUs, whose fused kernel trains no such mask, of two products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""PyTorch's own. cuDNN's, which Hopper and Blackwell cards prefer, is planned anew for each shape of a batch, 0.2 to
0.5 s forward and as much backward, and batches of speech seldom have the same shape twice."""

#: Queries (B, heads, T, D / heads) -> the position bias (B, heads, T, T) of the scaled products.
Relative = Callable[[Tensor], Tensor]


class AttentionPrefix(NamedTuple):
    """Extra keys and values, each (B or 1, P, D), and a mask (B, P), True on those that stand, or None for all."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None


def self_attention(
    hidden: Tensor,
    project: Callable[[str, Tensor], Tensor],
    heads: int,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    prefix: AttentionPrefix | None = None,
    dropout: float = 0.0,
    relative: Relative | None = None,
) -> Tensor:
    """Multi-head self-attention over a layer's projections.

    Args:
        hidden: (B, T, D).
        project: ``project(name, frames)`` runs the projection "q_proj", "k_proj", "v_proj" or "out_proj".
        mask: (B, 1, 1, T) boolean, True on frames that may be attended to; None when nothing is padded.
        bias: (1, heads, T, T), a relative position bias shared by all layers; gate: (B, heads, T, 1), its factor.
        prefix: put before the frames' own keys and values; every frame sees it, with position bias 0 (it stands at no
            position).
        relative: makes the position bias, in place of ``bias``, of the layer's queries.

    Returns: (B, T, D), after ``out_proj``.
    """
    batch, frames, width = hidden.shape

    def split(projected: Tensor) -> Tensor:
        return projected.view(projected.shape[0], projected.shape[1], heads, -1).transpose(1, 2)

    query = split(project("q_proj", hidden))
    key, value = project("k_proj", hidden), project("v_proj", hidden)
    if relative is not None:
        bias = relative(query)

    if prefix is not None:
        extra = prefix.keys.shape[1]
        key = torch.cat([prefix.keys.to(key.dtype).expand(batch, -1, -1), key], dim=1)
        value = torch.cat([prefix.values.to(value.dtype).expand(batch, -1, -1), value], dim=1)
        if bias is not None:
            bias = nn.functional.pad(bias, (extra, 0))
        if mask is not None or prefix.mask is not None:
            seen = hidden.new_ones(1, extra, dtype=torch.bool) if prefix.mask is None else prefix.mask
            real = hidden.new_ones(1, 1, 1, frames, dtype=torch.bool) if mask is None else mask
            parts = (seen[:, None, None, :].expand(batch, -1, -1, -1), real.expand(batch, -1, -1, -1))
            mask = torch.cat(parts, dim=-1)

    if gate is not None:
        gate = gate.to(query.dtype)
    products = hidden.device.type == "cpu" and (bias is not None or query.dtype == torch.bfloat16)
    attend = _by_products if products else _fused
    context = attend(query, split(key), split(value), mask, gate, bias, dropout)
    return project("out_proj", context.transpose(1, 2).reshape(batch, frames, width))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    gate: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """PyTorch's fused attention (B, heads, T, D / heads), with the bias as its additive mask."""
    if bias is not None:
        bias = bias.to(query.dtype)  # before it is multiplied: (B, heads, T, T) numbers are written once
        additive = bias if gate is None else gate * bias
        mask = additive if mask is None else additive.masked_fill(~mask, float("-inf"))
    if query.device.type != "cuda":
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    with sdpa_kernel(KERNELS):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def _by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    gate: Tensor | None,
    bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """The same as two matrix products, for CPUs.

    There the fused kernel takes no mask that has a gradient, and this one has: PyTorch then falls back to products in
    fp32 over a checked softmax. Products in the tensors' own precision take half its time in bf16, also without a
    bias, and a tenth less in fp32.
    """
    batch, heads, frames, width = query.shape
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (part.reshape(batch * heads, -1, width) for part in (query, key, value))
        if mask is None:
            scores = torch.bmm(query * width**-0.5, key.transpose(1, 2))
        else:
            start = query.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
            start = start.expand(batch, heads, 1, -1).reshape(batch * heads, 1, -1)
            scores = torch.baddbmm(start, query, key.transpose(1, 2), alpha=width**-0.5)
        if bias is not None:
            each, bias = scores.view(batch, heads, frames, -1), bias.to(scores.dtype)
            each.add_(bias) if gate is None else each.addcmul_(gate, bias)
        weights = nn.functional.dropout(scores.softmax(dim=-1), dropout)
        return torch.bmm(weights, value).view(batch, heads, frames, width)
