"""Hooks: where an adapter may act in the encoder's forward, and how several act together in a stack.

What acts is one :class:`Hooks`: an adapter, a stack of them, or another composition
(``speech_adapters.composition``); :class:`AdapterPlan` calls its hooks on the way through the encoder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from speech_adapters.encoders.attention import AttentionPrefix
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.encoders.plan import Frames, Norm, Plan, Projection, Site
from speech_adapters.errors import ConfigError


class Hooks:
    """Every hook is optional: None means that nothing happens there (see ``encoders.forward.Plan``).

    Attributes:
        output_size: width of what :meth:`read` gives the head, None when the head reads the last hidden state.
        first_layer: the lowest layer it changes or reads; a forward may start at that layer's cached input or below,
            not above. -1 when it acts before the layers, -2 when it acts in the CNN.
        states: the hidden states that are all it reads, where it changes nothing on the way; None where it does. State
            ``l`` is the input of layer ``l``, the highest one the last layer's output.
    """

    output_size: int | None = None
    first_layer: int = 0
    states: Sequence[int] | None = None

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames | None:
        """The frames with pseudo frames put to them."""
        return None

    def layer(self, index: int) -> nn.Module | None:
        """A layer to run in place of the base's."""
        return None

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        """A LayerNorm to run in place of ``norm``, the base's."""
        return None

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        """Extra attention keys and values."""
        return None

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        """What to add to the output of a part; of the output's shape."""
        return None

    def added(self, name: str, index: int, site: Site) -> Tensor:
        """The output of a part with its delta."""
        delta = self.delta(name, index, site)
        return site.output if delta is None else site.output + delta.to(site.output.dtype)

    def source(self, name: str, index: int, site: Site) -> Tensor | None:
        """What the adapter reads at a site where it acts, if not the sub-layer's output: AdapterFusion's query."""
        return None

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor | None:
        """What the head reads, (B, T, output_size), from all layers' hidden states."""
        return None


class StackedHooks(Hooks):
    """Members in order: each sees what the ones before it made of a site; the last reader feeds the head."""

    def __init__(self, members: Iterable[Hooks]) -> None:
        self.members: Sequence[Hooks] = tuple(members)
        sizes = [member.output_size for member in self.members if member.output_size is not None]
        self.output_size = sizes[-1] if sizes else None
        self.first_layer = min((member.first_layer for member in self.members), default=sys.maxsize)
        read = [member.states for member in self.members]
        changing = any(states is None for states in read)
        self.states = None if changing else sorted({state for states in read if states for state in states})

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames | None:
        result = None
        for member in self.members:
            seen = (frames, mask) if result is None else (result.frames, result.mask)
            added = member.pseudo_frames(where, *seen)
            if added is not None:
                result = added._replace(before=added.before + (0 if result is None else result.before))
        return result

    def layer(self, index: int) -> nn.Module | None:
        return next((found for m in reversed(self.members) if (found := m.layer(index)) is not None), None)

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        result = None
        for member in self.members:
            result = member.norm(index, name, result or norm) or result
        return result

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        found = [
            AttentionPrefix(*prefix)
            for member in self.members
            if (prefix := member.prefix(index, project)) is not None
        ]
        return join_prefixes(found) if found else None

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        total: Tensor | None = None
        unseen: Tensor | None = None  # the total, until there is another member to see it
        seen = site
        for member in self.members:
            if unseen is not None:
                seen, unseen = site._replace(output=site.output + unseen), None
            added = member.delta(name, index, seen)
            if added is not None:
                added = added.to(site.output.dtype)  # adapters compute in float32 on a half-precision base
                total = unseen = added if total is None else total + added
        return total

    def source(self, name: str, index: int, site: Site) -> Tensor | None:
        found = (member.source(name, index, site) for member in reversed(self.members))
        return next((source for source in found if source is not None), None)

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor | None:
        found = (member.read(encoder, output) for member in reversed(self.members))
        return next((features for features in found if features is not None), None)


def join_prefixes(prefixes: Sequence[AttentionPrefix]) -> AttentionPrefix:
    """One prefix after the other."""
    if any(prefix.mask is not None for prefix in prefixes):
        raise ConfigError("prefixes chosen per sample cannot be joined to others.")
    batch = max(len(prefix.keys) for prefix in prefixes)
    keys = torch.cat([prefix.keys.expand(batch, -1, -1) for prefix in prefixes], dim=1)
    return AttentionPrefix(keys, torch.cat([prefix.values.expand(batch, -1, -1) for prefix in prefixes], dim=1))


def walk(hooks: Hooks) -> Iterator[Hooks]:
    """A composition's hooks and those of all its members, outer ones first."""
    yield hooks
    for member in getattr(hooks, "members", ()):
        yield from walk(member)


class AdapterPlan(Plan):
    """The encoder's forward with ``root`` in it; the lowest ``skip_layers`` layers run as the frozen base does.

    Attributes:
        before: pseudo frames before the real ones, known once the forward has passed the front-end.
    """

    def __init__(self, root: Hooks, skip_layers: int = 0) -> None:
        self.root, self.skip_layers = root, skip_layers
        self.before: int | Tensor = 0

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames:
        added = self.root.pseudo_frames(where, frames, mask)
        if added is None:
            return Frames(frames, mask)
        self.before = self.before + added.before
        return added

    def layer(self, index: int, layer: nn.Module) -> nn.Module:
        return layer if index < self.skip_layers else self.root.layer(index) or layer

    def norm(self, index: int, name: str, norm: Norm) -> Norm:
        return norm if index < self.skip_layers else self.root.norm(index, name, norm) or norm

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        return None if index < self.skip_layers else self.root.prefix(index, project)

    def site(self, name: str, index: int, site: Site) -> Tensor:
        skipped = name != "cnn" and index < self.skip_layers
        return site.output if skipped else self.root.added(name, index, site)

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor:
        """What the head reads: the composition's own features if it gives any, else the last hidden state."""
        features = self.root.read(encoder, output)
        return output.last_hidden_state if features is None else features
