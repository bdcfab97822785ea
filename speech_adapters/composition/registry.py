"""Adapters, heads and fusions by name, on their encoder, and what a composition of them does in a forward."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.adapters.hooks import Hooks, StackedHooks
from speech_adapters.composition.average import WeightedHooks
from speech_adapters.composition.blocks import (
    Average,
    Composition,
    Fuse,
    Route,
    TrainableComposition,
    names_of,
    trainable_in,
)
from speech_adapters.composition.fusion import FusionConfig
from speech_adapters.composition.fusion_base import CompositionConfig, CompositionModule
from speech_adapters.composition.routing import RouterConfig
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError, shown
from speech_adapters.heads.base import HeadModule

Tensors = Mapping[str, Callable[[], Mapping[str, Tensor]]]
"""Name -> what gives the tensors of an adapter or fusion: ``AdapterModule.tensors``."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

CONFIGS: dict[type[Composition], type[CompositionConfig]] = {Fuse: FusionConfig, Route: RouterConfig}


@dataclass(frozen=True)
class Registry:
    """What a model holds, by name. Looking up a name that is not there is a ConfigError that lists those that are."""

    encoder: Encoder
    adapters: nn.ModuleDict
    heads: nn.ModuleDict
    fusions: nn.ModuleDict

    def adapter(self, name: str) -> AdapterModule:
        """The adapter of that name."""
        return cast(AdapterModule, _get(name, self.adapters, "adapter"))

    def head(self, name: str) -> HeadModule:
        """The head of that name."""
        return cast(HeadModule, _get(name, self.heads, "head"))

    def fusion(self, name: str) -> CompositionModule:
        """The weights of the Fuse or Route of that name."""
        return cast(CompositionModule, _get(name, self.fusions, "fusion"))

    @property
    def adapters_by_name(self) -> dict[str, AdapterModule]:
        """All adapters, in the order in which they were added."""
        return {name: self.adapter(name) for name in self.adapters}

    def tensors(self) -> tuple[Tensors, Tensors]:
        """By name, what gives the tensors of each adapter and of each fusion."""
        adapters = {name: module.tensors for name, module in self.adapters_by_name.items()}
        return adapters, {name: module.tensors for name, module in self.fusions_by_name.items()}

    @property
    def fusions_by_name(self) -> dict[str, CompositionModule]:
        """All fusions and routers, in the order in which they were added."""
        return {name: self.fusion(name) for name in self.fusions}

    def fusions_in(self, composition: str | Composition | None) -> Iterator[CompositionModule]:
        """The modules of the Fuse and Route in a composition, inner ones first."""
        if composition is not None:
            yield from (self.fusion(inner.name) for inner in trainable_in(composition))

    def hooks(self, composition: str | Composition | None) -> Hooks:
        """What a composition does in one forward; of Parallel, what its branches do together.

        Raises:
            ConfigError: an adapter or fusion that is not there, members that cannot be composed so.
        """
        if isinstance(composition, str):
            return self.adapter(composition)
        if composition is None:
            return StackedHooks(())
        if not isinstance(composition, Composition):
            raise ConfigError(
                f"{shown(composition)} is neither an adapter's name nor a composition; give several names one by one, "
                "as in set_active('a', 'b'), or as a Stack, Average, Fuse or Route of them."
            )
        members = [self.hooks(member) for member in composition.members]
        if isinstance(composition, Average):
            return WeightedHooks(members, composition.weights, repr(composition), self.encoder.num_layers)
        if not isinstance(composition, TrainableComposition):
            return StackedHooks(members)
        if composition.name not in self.fusions or self.fusion(composition.name).composition != composition:
            known = ", ".join(repr(module.composition) for module in self.fusions_by_name.values()) or "none"
            raise ConfigError(
                f"{composition!r} has no weights in this model; call add_fusion first (there are: {known})."
            )
        return self.fusion(composition.name).hooks(members, self.encoder.num_layers)

    def build_fusion(self, composition: TrainableComposition, config: CompositionConfig | None) -> CompositionModule:
        """The module of a new ``Fuse(...)`` or ``Route(...)``; ``config`` by default that of its kind."""
        expected = CONFIGS.get(type(composition))
        if expected is None:
            raise ConfigError(f"add_fusion: Fuse and Route have weights of their own, {composition!r} has none.")
        config = expected() if config is None else config
        if not isinstance(config, expected):
            raise ConfigError(f"{composition!r} takes a {expected.__name__}, not {config!r}.")
        check_new(composition.name, self.fusions, "fusion")
        return config.build(composition, [self.hooks(member) for member in composition.members], self.encoder)

    def check_unused(self, member: str | Composition) -> None:
        """Raise a ConfigError for an adapter or composition that a fusion stands on."""
        for module in self.fusions_by_name.values():
            if isinstance(member, str) and member in names_of(module.composition):
                raise ConfigError(f"adapter {member!r} is part of {module.composition!r}; delete that fusion first.")
            inside = (part for part in trainable_in(module.composition) if part != module.composition)
            if isinstance(member, TrainableComposition) and member in inside:
                raise ConfigError(
                    f"fusion {member.name!r} is a member of {module.composition.name!r}; delete that first."
                )


def check_new(name: str, existing: nn.ModuleDict, kind: str) -> None:
    """Raise a ConfigError for a name that is taken or cannot be one."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"{kind} name {name!r}: use letters, digits, '_' and '-', first a letter or a digit.")
    if name in existing:
        raise ConfigError(f"{kind} {name!r} exists already; delete it first or choose another name.")
    if hasattr(existing, name):
        raise ConfigError(f"{kind} name {name!r} is reserved by torch; choose another name.")


def _get(name: str, existing: nn.ModuleDict, kind: str) -> nn.Module:
    if name not in existing:
        raise ConfigError(f"no {kind} {name!r}; there are: {', '.join(existing) or 'none'}.")
    return existing[name]
