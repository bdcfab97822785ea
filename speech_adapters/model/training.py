"""``model.train_adapter``: what trains, and how fast."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Self

from torch import nn

from speech_adapters.adapters.base import DEFAULT_LEARNING_RATE
from speech_adapters.composition.blocks import Composition, TrainableComposition
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.model.members import Members


class Training(Members):
    """Which parameters train, in which groups, and whether each of them learns."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.train_head = True
        self._to_train: tuple[str | Composition | None, str | None] | None = None  # of the last train_adapter

    def train_adapter(self, *names: str | Composition, head: str | None = None, train_head: bool = True) -> None:
        """Activate adapters and a head, and let exactly their parameters train; everything else needs no gradient.

        ``train_adapter(head="asr")`` trains the head alone on the frozen base; ``train_head=False`` keeps a head that
        several adapters share as it is. Adapters under Fuse and Route stay frozen.

        Raises:
            ConfigError: no such adapter, fusion or head; a head of another width; a Fuse or Route of one member, which
                has nothing to choose between.
        """
        self._check_unfolded()
        before = self.active, self.skip_layers, self.active_head
        try:
            self.set_active(*names)
            for fusion in self.registry.fusions_in(self.active):
                fusion.check_trainable()
            self.set_head(head if head is not None else self.active_head)
            self._check_widths()
        except ConfigError:
            self.active, self.skip_layers, self.active_head = before
            raise
        self.train_head = train_head
        self._to_train = self.active, self.active_head
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for parameters in self.parameter_groups().values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.train()

    def train_fusion(
        self, composition: str | TrainableComposition, head: str | None = None, train_head: bool = True
    ) -> None:
        """The second stage: activate a fusion or router and let its parameters, and the head's, train.

        Its adapters stay frozen. Arguments: the composition or its name; see :meth:`train_adapter` for the others.
        """
        if isinstance(composition, str):
            composition = self.registry.fusion(composition).composition
        self.train_adapter(composition, head=head, train_head=train_head)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that train, by group ("e", "l", "lora", "fusion", "head", ...), under the active composition."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name in self.trained_adapters:
            for group, parameters in self.registry.adapter(name).groups().items():
                if parameters:
                    groups.setdefault(group, []).extend(parameters)
        for module in self.registry.fusions_in(self.active):
            groups.setdefault(module.group, []).extend(module.parameters())
        if self.head is not None and self.train_head:
            groups["head"] = list(self.head.parameters())
        return groups

    def learning_rates(self, overrides: dict[str, float] | None = None) -> dict[str, float]:
        """Learning rate of each group of :meth:`parameter_groups`: override, else the adapter's own, else 1e-3."""
        groups = self.parameter_groups()
        rates = dict.fromkeys(groups, DEFAULT_LEARNING_RATE)
        for name in self.trained_adapters:
            rates.update({k: v for k, v in self.registry.adapter(name).learning_rates().items() if k in groups})
        for module in self.registry.fusions_in(self.active):
            if module.config.learning_rate is not None:
                rates[module.group] = module.config.learning_rate
        unknown = sorted(set(overrides or {}) - set(groups))
        if unknown:
            raise ConfigError(f"learning rate for unknown group {unknown[0]!r}; this model has {', '.join(groups)}.")
        return {**rates, **(overrides or {})}

    def train(self, mode: bool = True) -> Self:
        """Dropout works in active adapters and the active head only; the encoder stays in eval mode."""
        super().train(False)
        self.training = mode
        if mode and not any(parameter.requires_grad for parameter in self.parameters()):
            warnings.warn(
                "train(): nothing of this model is trainable; call train_adapter(name, head=...) first.", stacklevel=2
            )
        if mode:
            for name in self.trained_adapters:
                self.adapters[name].train()
            for module in self.registry.fusions_in(self.active):
                module.train()
            if self.head is not None:
                self.head.train()
        return self

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers in the backward pass, for memory: torch's non-reentrant way, in every layer.

        Raises:
            ConfigError: another way that ``transformers`` knows.
        """
        asked = {**(gradient_checkpointing_kwargs or {}), **options}
        for key, value in asked.items():
            if (key, value) not in (("use_reentrant", False), ("every_n_layers", 1), ("offload", False)):
                raise ConfigError(f"gradient checkpointing: {key}={value!r} is not supported here; leave it out.")
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations."""
        self.gradient_checkpointing = False

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """The name of :meth:`gradient_checkpointing_enable` since transformers 5."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    activation_checkpointing_disable = gradient_checkpointing_disable

    def check_trained(self) -> None:
        """Raise a ConfigError where something else has become active since :meth:`train_adapter`: a new adapter or
        head, which an optimizer would be given and would not move."""
        if self._to_train is None or self._to_train == (self.active, self.active_head):
            return
        adapters, head = self._to_train
        raise ConfigError(
            f"{self.active!r} under the head {self.active_head!r} is active, and train_adapter was called for "
            f"{adapters!r} under {head!r}; call it again with all that shall train."
        )

    def check_alive(self) -> None:
        """Raise if a trainable tensor has no gradient, a zero one or a non-finite one; call it after ``backward``.

        In a fresh adapter some gradients are zero in the first step by design (behind a zero-initialised projection):
        check after the second. A module's ``indifferent`` parameters may have a zero gradient always.
        """
        indifferent = {id(parameter) for module in self.modules() for parameter in getattr(module, "indifferent", ())}
        own = {id(parameter) for parameters in self.parameter_groups().values() for parameter in parameters}
        own -= indifferent
        dead = [
            f"{name} ({'no gradient' if p.grad is None else 'zero' if p.grad.isfinite().all() else 'not finite'})"
            for name, p in self.named_parameters()
            if id(p) in own and p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or not p.grad.any())
        ]
        if dead:
            remedy = "check that the adapter is active and that nothing bypasses its place in the encoder"
            if self.skip_layers:
                remedy = f"skip_layers={self.skip_layers} leaves adapters out of the lowest layers; train without"
            raise RuntimeError(
                f"{len(dead)} trainable tensor(s) learn nothing: {', '.join(dead[:5])}. An adapter must be alive: "
                f"{remedy}."
            )
