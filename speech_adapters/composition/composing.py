"""What a model can do with several adapters: fuse, route, merge them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speech_adapters.adapters.hooks import Places, Stacked
from speech_adapters.composition.average import Weighted
from speech_adapters.composition.blocks import (
    Average,
    Composition,
    Fuse,
    Learned,
    Parallel,
    Route,
    learned_in,
    names_of,
)
from speech_adapters.composition.fusion import FusionConfig
from speech_adapters.composition.fusion_base import LearnedConfig, LearnedModule
from speech_adapters.composition.routing import RouterConfig
from speech_adapters.composition.weight_averaging import fixed_start, merge
from speech_adapters.errors import ConfigError

CONFIGS: dict[type[Learned], type[LearnedConfig]] = {Fuse: FusionConfig, Route: RouterConfig}


class Composing:
    """The part of :class:`~speech_adapters.model.SpeechAdapterModel` that composes its adapters."""

    def add_fusion(self, value: Learned, config: LearnedConfig | None = None) -> str:
        """Give ``Fuse(...)`` or ``Route(...)`` its weights, and make it the active composition; returns its name.

        Args:
            config: :class:`~speech_adapters.composition.FusionConfig` for Fuse, ``RouterConfig`` for Route.

        Raises:
            ConfigError: no such adapters, members that cannot be composed so, a name that is taken.
        """
        if type(value) not in CONFIGS:
            raise ConfigError(f"add_fusion: Fuse and Route have weights of their own, {value!r} has none.")
        expected = CONFIGS[type(value)]
        config = expected() if config is None else config
        if not isinstance(config, expected):
            raise ConfigError(f"{value!r} takes a {expected.__name__}, not {config!r}.")
        self._check_new(value.name, self.fusions, "fusion")
        members = [self.places(member) for member in value.members]
        with self._precision():
            module = config.build(value, members, self.encoder)
        self.fusions[value.name] = module.to(self._device).requires_grad_(False).eval()
        self.set_active(value)
        return value.name

    def delete_fusion(self, name: str) -> None:
        """Remove the weights of a Fuse or Route; nothing is active afterwards if it was."""
        module: LearnedModule = self._get(name, self.fusions, "fusion")
        users = [other for other, used in self.fusions.items() if module.value in used.value.members]
        if users:
            raise ConfigError(f"fusion {name!r} is a member of {users[0]!r}; delete that first.")
        if module.value in self.active_fusions:
            self.set_active()
        del self.fusions[name]

    def train_fusion(self, value: str | Learned, head: str | None = None, train_head: bool = True) -> None:
        """The second stage: activate a fusion or router and let its parameters, and the head's, train.

        Its adapters stay frozen. Arguments: ``value`` or its name; see :meth:`train_adapter` for the others.
        """
        if isinstance(value, str):
            value = self._get(value, self.fusions, "fusion").value
        self.train_adapter(value, head=head, train_head=train_head)

    def merge_adapters(
        self, name: str, weights: Mapping[str, float], method: str = "linear", base: str | None = None, **options: Any
    ) -> None:
        """Make a new adapter out of the weights of others of the same configuration, and make it active.

        Args:
            weights: the adapters and their weights, such as ``{"a": 0.5, "b": 0.5}``; negative ones subtract.
            base: the adapter that they all started from: their changes are merged, and added to it. By default the
                start of a fresh adapter, where that is not random.
            method, options: see :func:`speech_adapters.composition.weight_averaging.merge`.

        Raises:
            ConfigError: adapters of different configurations, an unknown method or option.
        """
        members = {key: self._get(key, self.adapters, "adapter") for key in weights}
        if base is not None:
            start = self._get(base, self.adapters, "adapter").tensors()
        else:
            start = fixed_start(next(iter(members.values())).config, self.encoder) if members else {}
        merged = merge(members, weights, method, base=start, **options)
        self.add_adapter(name, merged.config)
        self.adapters[name].load_tensors(merged.tensors)

    def merge_heads(self, name: str, weights: Mapping[str, float], method: str = "linear", **options: Any) -> None:
        """Make a new head out of the weights of others of the same configuration, and make it active."""
        merged = merge({key: self._get(key, self.heads, "head") for key in weights}, weights, method, **options)
        size = self.heads[next(iter(weights))].input_size
        self._check_new(name, self.heads, "head")
        head = merged.config.build(size)
        head.load_state_dict(merged.tensors)
        self.heads[name] = head.to(self._device).requires_grad_(False).eval()
        self.active_head = name

    def places(self, value: str | Composition) -> Places:
        """What a composition of this model's adapters does in one forward.

        Raises:
            ConfigError: an adapter or fusion that is not there, members that cannot be composed so.
        """
        if isinstance(value, str):
            return self._get(value, self.adapters, "adapter")
        if isinstance(value, Parallel):
            raise ConfigError(f"{value!r} has several outputs; it can only be active by itself.")
        members = [self.places(member) for member in value.members]
        if isinstance(value, Average):
            return Weighted(members, value.weights, repr(value), self.encoder.num_layers)
        if not isinstance(value, Learned):
            return Stacked(members)
        if value.name not in self.fusions or self.fusions[value.name].value != value:
            known = ", ".join(repr(module.value) for module in self.fusions.values()) or "none"
            raise ConfigError(f"{value!r} has no weights in this model; call add_fusion first (there are: {known}).")
        return self.fusions[value.name].places(members, self.encoder.num_layers)

    @property
    def active_fusions(self) -> list[Learned]:
        """The active Fuse and Route values, inner ones first."""
        return list(learned_in(self.active)) if self.active is not None else []

    def _check_unused(self, name: str) -> None:
        users = [fusion for fusion, module in self.fusions.items() if name in names_of(module.value)]
        if users:
            raise ConfigError(
                f"adapter {name!r} is part of {self.fusions[users[0]].value!r}; delete that fusion first."
            )
