"""Averages of weights: one adapter, or head, out of the weights of several of the same configuration.

With ``t_n`` a tensor of member n and ``w_n`` its weight::

    linear            sum_n w_n t_n                          plain averaging; task arithmetic with negative weights
    svd               LoRA only: the best rank-r A, B of     sum_n w_n B_n A_n  (in units of the scaled update)
    ties              trim to the largest ``density``, elect a sign by the sum, add what agrees
    dare_linear       drop at random, rescale by 1 / density, then linear
    dare_ties         drop at random, rescale, then ties
    magnitude_prune   trim to the largest ``density``, then linear
    tsv               singular vectors made orthogonal (``composition.task_singular_vectors``); vectors are averaged

``linear`` of LoRA averages A and B one by one, which is not the average of the updates; ``svd`` is, and ``tsv`` too
merges the updates. Tensors that start elsewhere than at zero (copies of the base's LayerNorms, DoRA's magnitudes, or
everything, when the members were trained on from one adapter) are averaged as differences from that start: what is
pruned or subtracted is a change, not a weight.

Sources: Ilharco et al., "Editing Models with Task Arithmetic" (ICLR 2023); Yadav et al., "TIES-Merging" (NeurIPS
2023); Yu et al., "Language Models are Super Mario" (DARE, ICML 2024). The functions are those of ``peft``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.composition import task_singular_vectors
from speech_adapters.errors import ConfigError, shown
from speech_adapters.heads.base import HeadModule

Member = AdapterModule | HeadModule

PRUNING_METHODS = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
AVERAGING_METHODS = ("linear", "svd", *PRUNING_METHODS, "tsv")


@dataclass(frozen=True)
class Averaged:
    """The members' configuration, and the averaged tensors."""

    config: Any
    tensors: dict[str, Tensor]


def average(
    members: Mapping[str, Member],
    weights: Mapping[str, float],
    method: str = "linear",
    *,
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    base: Mapping[str, Tensor] | None = None,
) -> Averaged:
    """Average adapters, or heads, by their weights.

    Args:
        members: modules by name, all of the same configuration (learning rates may differ).
        weights: a weight for each; nothing is normalised.
        method: "linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune" or "tsv".
        density: share of values kept by the pruning methods, above 0 and at most 1.
        rank: of the new adapter, for "svd" by default that of the members, for "tsv" of LoRA that of all of them
            together, which loses nothing of what is merged.
        seed: of what DARE drops.
        base: the tensors that members started from, by name, where these are not zero.

    Raises:
        ConfigError: different configurations or shapes, an unknown method, a missing or misplaced option.
    """
    if method not in AVERAGING_METHODS:
        raise ConfigError(f"average: method {method!r} is unknown; choose from {', '.join(AVERAGING_METHODS)}.")
    if not isinstance(weights, Mapping):
        raise ConfigError(
            f"average: {shown(weights)} has no weights; give names with them, as in {{'a': 0.5, 'b': 0.5}}."
        )
    if not members:
        raise ConfigError("average: give at least one name with its weight.")
    for name in members:
        if not math.isfinite(float(weights[name])):
            raise ConfigError(f"average: the weight of {name!r} is {weights[name]}; give a finite number.")
    if not any(weights[name] for name in members):
        raise ConfigError("average: all weights are 0, which leaves nothing of any of them; give one that is not.")
    if (density is not None) != (method in PRUNING_METHODS) or (density is not None and not 0 < density <= 1):
        raise ConfigError(
            f"average: {', '.join(PRUNING_METHODS)} need density, a share above 0 and up to 1; the others take none."
        )
    config = shared_config(members)
    lora = getattr(config, "method", None) == "lora"
    if rank is not None and not (rank > 0 and (method == "svd" or (method == "tsv" and lora))):
        raise ConfigError(f"average: rank={rank}; it belongs to 'svd', and to 'tsv' of LoRA, and is at least 1.")
    factors = torch.tensor([float(weights[name]) for name in members])
    tensors = [_tensors(module) for module in members.values()]
    if method in ("linear", "svd") and abs(float(factors.sum()) - 1) < 1e-6:
        base = None  # it cancels; without it a weight of one gives the member's own bits
    if method == "svd" or (method == "tsv" and any("lora_A" in key for key in tensors[0])):
        return _of_updates(method, config, tensors, factors, rank, base or {})
    combine = _function(method, density)
    averaged = {}
    with torch.random.fork_rng():  # peft's functions draw from the global generator
        torch.manual_seed(seed)
        for key, first in tensors[0].items():
            start = torch.zeros_like(first) if base is None or key not in base else base[key].to(first)
            parts = [(own[key] - start).float() for own in tensors]
            averaged[key] = (start.float() + combine(parts, factors.to(first.device))).to(first.dtype)
    return Averaged(config, averaged)


def _function(method: str, density: float | None) -> Callable[[list[Tensor], Tensor], Tensor]:
    from peft.utils import merge_utils

    if method == "linear":
        return merge_utils.task_arithmetic
    if method == "tsv":
        return _tsv
    function = getattr(merge_utils, method)
    if density == 1:  # peft warns that nothing is pruned, which is what was asked for
        return merge_utils.task_arithmetic if method in ("dare_linear", "magnitude_prune") else _ties_of_all
    return lambda parts, factors: function(parts, factors, density)


def _ties_of_all(parts: list[Tensor], factors: Tensor) -> Tensor:
    from peft.utils import merge_utils

    stacked = torch.stack(parts)
    mask = merge_utils.calculate_majority_sign_mask(stacked)
    return merge_utils.disjoint_merge(stacked * merge_utils.reshape_weight_task_tensors(stacked, factors), mask)


def _tensors(module: Member) -> dict[str, Tensor]:
    tensors = module.tensors() if isinstance(module, AdapterModule) else module.state_dict()
    return {key: tensor.detach() for key, tensor in tensors.items()}


def shared_config(members: Mapping[str, Member]) -> Any:
    """The configuration of all members. Raises a ConfigError where they differ in it, or in the shapes of tensors."""
    first, *others = members
    for other in others:
        one, two = (shape_of(members[name].config.to_dict()) for name in (first, other))
        if one != two:
            differing = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
            raise ConfigError(
                f"average: {first!r} and {other!r} have different configurations ({', '.join(differing)}); only "
                "weights of the same method and shape can be averaged."
            )
        shapes = [{key: tensor.shape for key, tensor in _tensors(members[name]).items()} for name in (first, other)]
        if shapes[0] != shapes[1]:
            raise ConfigError(f"average: the tensors of {first!r} and {other!r} differ in shape.")
    return members[first].config


def shape_of(config: Any, dropout: bool = False) -> Any:
    """A config's plain values without its learning rates and dropout, which do not shape weights. With
    ``dropout=True`` dropouts above 0 are kept."""
    if isinstance(config, dict):
        dropped = {key for key, value in config.items() if key == "dropout" and not (dropout and value)}
        kept = {key: value for key, value in config.items() if "learning_rate" not in key and key not in dropped}
        return {key: shape_of(value, dropout) for key, value in kept.items()}
    return [shape_of(item, dropout) for item in config] if isinstance(config, list) else config


def _tsv(parts: list[Tensor], factors: Tensor) -> Tensor:
    if parts[0].dim() != 2:
        return sum((factor * part for factor, part in zip(factors, parts, strict=True)), torch.zeros_like(parts[0]))
    return task_singular_vectors.merge(parts, factors.tolist())


def _of_updates(
    method: str,
    config: Any,
    tensors: list[dict[str, Tensor]],
    factors: Tensor,
    rank: int | None,
    base: Mapping[str, Tensor],
) -> Averaged:
    """LoRA by its updates ``B_n A_n``: what each differs from the start's is summed (``svd``) or merged (``tsv``), and
    added to that; ``U S V'`` of the whole, cut to rank r, is ``A = sqrt(S) V'``, ``B = U sqrt(S)``."""
    if getattr(config, "method", None) != "lora" or config.variant == "dora":
        raise ConfigError(
            f"average: method={method!r} is for LoRA and rsLoRA, whose update is a product B A; use 'linear'."
        )
    averaged: dict[str, Tensor] = {}
    pairs = [(key, key.replace(".lora_A.", ".lora_B.")) for key in tensors[0] if ".lora_A." in key]
    started = any(a in base for a, _ in pairs)  # a fresh A is drawn at random, and so no fixed start
    ranks = 2 * len(tensors) + 1 if started else len(tensors)  # of each a change and what it started from, and that
    smallest = min(min(tensors[0][b].shape[0], tensors[0][a].shape[1]) for a, b in pairs)
    if rank is None:
        rank = config.rank if method == "svd" else min(ranks * config.rank, smallest)
    if rank > smallest:
        raise ConfigError(f"average: rank={rank} is above the projections' own {smallest}.")
    for a, b in pairs:
        updates = [own[b].float() @ own[a].float() for own in tensors]
        start = torch.zeros_like(updates[0])
        if started:
            start = base[b].to(start) @ base[a].to(start)
        changes = [update - start for update in updates]
        if method == "svd":
            change = sum((w * one for w, one in zip(factors, changes, strict=True)), torch.zeros_like(start))
        else:
            change = task_singular_vectors.merge(changes, factors.tolist()).float()
        left, values, right = torch.linalg.svd(start + change, full_matrices=False)
        root = values[:rank].sqrt()
        averaged[a], averaged[b] = root[:, None] * right[:rank], left[:, :rank] * root
    scale = (rank / config.rank) ** (0.5 if config.variant == "rslora" else 1.0)
    return Averaged(replace(config, rank=rank, alpha=config.alpha * scale), averaged)
