"""What the adapters of a mixed batch do in one forward, each to its own samples.

The batch is sorted by adapter. Adapters of one configuration are a *kind*: their weights are stacked into tensors
(n, ...), and at each site the kind's samples, viewed as (blocks, samples, T, D), go through one batched call
(``torch.func.vmap`` over the blocks), whatever the number of adapters: the linear maps become ``bmm``. A block holds
``gcd`` of the adapters' numbers of samples, so that blocks are a view of the sorted batch and nothing is padded.

Prefixes and pseudo frames of different lengths are padded and masked. Every sample gets what it gets alone, to
rounding, on encoders whose CNN does not normalise over time. Grouping follows Punica's segmented gather (Chen et al.,
MLSys 2024) with whole utterances in place of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.adapters.hooks import Hooks, StackedHooks
from speech_adapters.encoders.attention import AttentionPrefix
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.encoders.plan import Frames, Norm, Projection, Site

#: A hook and where it is called.
Key = tuple[str | int | bool, ...]


class Kind:
    """Adapters (or stacks) of one configuration: their weights by name, each (n, ...), and a module to run them in.

    Stacked weights are kept between forwards until a weight changes (by way of ``.data`` unseen); with gradients, and
    of tensors of inference mode, which do not tell changes, they are stacked anew.
    """

    def __init__(self, stacks: Sequence[Sequence[AdapterModule]]) -> None:
        self.stacks = [nn.ModuleList(modules) for modules in stacks]
        self.first_layer = min(module.first_layer for module in stacks[0])
        self.template = _Call(self.stacks[0])
        self.nothing: set[Key] = set()  # sites where this kind has nothing to add
        self._stacked: dict[str, Tensor] = {}
        self._versions: list[int] = []

    def stacked(self) -> dict[str, Tensor]:
        """Parameters and buffers of all adapters by name, each (n, ...)."""
        own = [{**dict(stack.named_parameters()), **dict(stack.named_buffers())} for stack in self.stacks]
        every = [tensor for tensors in own for tensor in tensors.values()]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in every):
            return self._stack(own)
        if any(tensor.is_inference() for tensor in every):
            return self._stack(own)
        versions = [part for t in every for part in (id(t), t.data_ptr(), t._version)]
        if versions != self._versions:
            with torch.inference_mode(False), torch.no_grad():  # for forwards of any mode
                self._stacked, self._versions = self._stack(own), versions
        return self._stacked

    @staticmethod
    def _stack(own: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {f"modules_.{name}": torch.stack([tensors[name] for tensors in own]) for name in own[0]}


class _Call(nn.Module):
    """``forward(method, ...)`` of a stack of adapters, so that ``functional_call`` can lend it other weights."""

    def __init__(self, modules: nn.ModuleList) -> None:
        super().__init__()
        self.modules_ = modules

    def forward(self, run: Callable[[Hooks], Any]) -> Any:
        return run(StackedHooks(cast(Iterable[Hooks], self.modules_)))


class _Nothing(Exception):
    """Raised out of ``vmap``, which cannot hand back None."""


class Group:
    """The samples ``start`` to ``stop`` of the sorted batch, which take adapters of one kind."""

    def __init__(self, kind: Kind, start: int, counts: Sequence[int]) -> None:
        self.kind, self.start, self.stop = kind, start, start + sum(counts)
        self.size = gcd(*counts)
        blocks = [number for number, count in enumerate(counts) for _ in range(count // self.size)]
        weights = kind.stacked()
        if len(blocks) > len(counts):  # an adapter of several blocks lends its weights to each
            index = torch.tensor(blocks, device=next(iter(weights.values())).device) if weights else None
            weights = {name: tensor[index] for name, tensor in weights.items()}
        self.weights, self.blocks = weights, len(blocks)

    def run(self, key: Key, method: Callable[..., Any], *inputs: Tensor | None) -> Any:
        """``method(hooks, *inputs)`` with each block's weights; inputs (B, ...) of the whole batch.

        Returns: what the method returns, tensors (samples, ...) or (blocks, 1, ...) spread to the samples; None for
        nothing, remembered under ``key``.
        """
        if key in self.kind.nothing:
            return None
        rows = [
            None if x is None else x[self.start : self.stop].unflatten(0, (self.blocks, self.size)) for x in inputs
        ]

        def one(weights: dict[str, Tensor], *row: Tensor | None) -> Any:
            result = functional_call(self.kind.template, weights, (lambda hooks: method(hooks, *row),))
            if result is None:
                raise _Nothing
            return result

        dims = (0, *(None if row is None else 0 for row in rows))
        try:
            if not self.weights:  # adapters without parameters (the head alone)
                raise _Nothing
            result = vmap(one, in_dims=dims, randomness="different")(self.weights, *rows)
        except _Nothing:
            self.kind.nothing.add(key)
            return None
        if isinstance(result, tuple):
            return tuple(self._flat(part) for part in result)
        return self._flat(result)

    def _flat(self, result: Tensor) -> Tensor:
        return result.expand(-1, self.size, *result.shape[2:]).flatten(0, 1)


class MixedHooks(Hooks):
    """The groups of one sorted batch; samples behind the last group take the base alone."""

    def __init__(self, groups: Sequence[Group], batch: int) -> None:
        self.groups, self.batch = groups, batch
        self.within: Hooks | None = None
        self.first_layer = min((group.kind.first_layer for group in groups), default=0)

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames | None:
        made: list[Frames | None] = []
        for group in self.groups:
            before: int | Tensor = 0

            def add(hooks: Hooks, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, ...] | None:
                nonlocal before
                added = hooks.pseudo_frames(where, frames, mask)
                if added is None:
                    return None
                before = added.before  # a number that the configuration fixes
                return (added.frames,) if added.mask is None else (added.frames, added.mask)

            found = group.run(("pseudo_frames", where, mask is None), add, frames, mask)
            made.append(None if found is None else Frames(found[0], found[1] if len(found) > 1 else None, before))
        if all(one is None for one in made):
            return None
        slices = [slice(group.start, group.stop) for group in self.groups] + [slice(self._used, self.batch)]
        parts = [
            one or Frames(frames[where_], None if mask is None else mask[where_])
            for one, where_ in zip([*made, None], slices, strict=True)
        ]
        return _join_frames([part for part in parts if len(part.frames)])

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        return _MixedNorm(self, index, name, norm)

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        found = []
        for group in self.groups:

            def of(hooks: Hooks) -> tuple[Tensor, ...] | None:
                self.within = hooks  # whose norms and projections its prompts pass
                try:
                    prefix = hooks.prefix(index, project)
                finally:
                    self.within = None
                return None if prefix is None else tuple(prefix[:2])

            found.append(group.run(("prefix", index), of))
        if all(one is None for one in found):
            return None
        longest = max(one[0].shape[1] for one in found if one is not None)
        some = next(one[0] for one in found if one is not None)
        keys, values = (some.new_zeros(self.batch, longest, some.shape[-1]) for _ in range(2))
        mask = torch.zeros(self.batch, longest, dtype=torch.bool, device=some.device)
        for group, one in zip(self.groups, found, strict=True):
            if one is not None:
                where = slice(group.start, group.stop), slice(0, one[0].shape[1])
                keys[where], values[where], mask[where] = one[0], one[1], True
        return AttentionPrefix(keys, values, mask)

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        if self.within is not None:
            return self.within.delta(name, index, site)
        found = self._deltas(name, index, site)
        if all(one is None for one in found):
            return None
        return self.joined(found, lambda where: torch.zeros_like(site.output[where]))

    def added(self, name: str, index: int, site: Site) -> Tensor:
        """Without gradients each group's delta goes into its own rows of the output: nothing is joined."""
        if self.within is not None or torch.is_grad_enabled():
            return super().added(name, index, site)
        handed_on = site.output is site.input or site.output is site.residual  # by a module that does nothing
        output = site.output.clone() if handed_on else site.output
        for group, one in zip(self.groups, self._deltas(name, index, site), strict=True):
            if one is not None:
                output[group.start : group.stop] += one.to(output.dtype)
        return output

    def _deltas(self, name: str, index: int, site: Site) -> list[Tensor | None]:
        """What each group adds to its rows of a site."""
        base_norm = site.norm.norm if isinstance(site.norm, _MixedNorm) else site.norm
        norm_name = {"attention": "layer_norm", "feed_forward": "final_layer_norm"}.get(name, "")

        def add(
            hooks: Hooks, read: Tensor, output: Tensor, mask: Tensor | None, residual: Tensor | None
        ) -> Tensor | None:
            own = base_norm if base_norm is None else (hooks.norm(index, norm_name, base_norm) or base_norm)
            return hooks.delta(name, index, Site(read, output, mask, residual, own))

        tensors = (site.input, site.output, site.mask, site.residual)
        return [group.run((name, index, site.mask is None), add, *tensors) for group in self.groups]

    def joined(self, found: Sequence[Tensor | None], rest: Callable[[slice], Tensor]) -> Tensor:
        """The groups' results in the batch's order, and ``rest`` of the samples that have none."""
        ends = [*((group.start, group.stop) for group in self.groups), (self._used, self.batch)]
        parts = [
            rest(slice(*ends_)) if one is None else one
            for ends_, one in zip(ends, [*found, None], strict=True)
            if ends_[0] < ends_[1]
        ]
        dtype = next(one.dtype for one in found if one is not None)
        return parts[0] if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])

    @property
    def _used(self) -> int:
        return self.groups[-1].stop if self.groups else 0

    def features(self, encoder: Encoder, output: EncoderOutput) -> list[Tensor]:
        """What each sample's head reads, (T, F) with F its adapter's."""
        rows: list[Tensor] = []
        for group in self.groups:

            def read(hooks: Hooks, last: Tensor, mask: Tensor | None, *states: Tensor) -> Tensor | None:
                return hooks.read(encoder, EncoderOutput(last, states, None, mask, None))

            inputs = (output.last_hidden_state, output.mask, *output.hidden_states)
            found = group.run(("read", output.mask is None), read, *inputs)
            rows.extend(output.last_hidden_state[group.start : group.stop] if found is None else found)
        return [*rows, *output.last_hidden_state[self._used :]]


class _MixedNorm:
    """A LayerNorm that differs from group to group."""

    def __init__(self, mixed: MixedHooks, index: int, name: str, norm: Norm) -> None:
        self.mixed, self.index, self.name, self.norm = mixed, index, name, norm

    def __call__(self, hidden: Tensor) -> Tensor:
        if self.mixed.within is not None:
            return (self.mixed.within.norm(self.index, self.name, self.norm) or self.norm)(hidden)

        def run(hooks: Hooks, row: Tensor) -> Tensor | None:
            own = hooks.norm(self.index, self.name, self.norm)
            return None if own is None else own(row)

        found = [group.run((self.name, self.index), run, hidden) for group in self.mixed.groups]
        if all(one is None for one in found):
            return self.norm(hidden)
        return self.mixed.joined(found, lambda where: self.norm(hidden[where]))


def _join_frames(parts: Sequence[Frames]) -> Frames:
    """Parts of a batch with different numbers of frames, padded to the longest; ``before`` has one number each."""
    longest = max(part.frames.shape[1] for part in parts)
    frames, masks, before = [], [], []
    for part in parts:
        batch, time = part.frames.shape[:2]
        mask = part.mask if part.mask is not None else part.frames.new_ones(batch, time, dtype=torch.bool)
        frames.append(nn.functional.pad(part.frames, (0, 0, 0, longest - time)))
        masks.append(nn.functional.pad(mask, (0, longest - time), value=False))
        own = part.before if isinstance(part.before, Tensor) else torch.full((batch,), part.before)
        before.append(own.to(mask.device))
    mask = torch.cat(masks)
    return Frames(torch.cat(frames), None if bool(mask.all()) else mask, torch.cat(before))
