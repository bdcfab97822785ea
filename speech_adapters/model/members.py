"""What a model has by name, and what of it is active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig
from speech_adapters.adapters.hooks import Hooks
from speech_adapters.adapters.presets import preset
from speech_adapters.composition import weight_averaging
from speech_adapters.composition.blocks import (
    Composition,
    Parallel,
    Stack,
    TrainableComposition,
    names_of,
    trainable_in,
    trained_names,
)
from speech_adapters.composition.fusion_base import CompositionConfig
from speech_adapters.composition.mixed_batch import Choice, Mixer
from speech_adapters.composition.registry import Registry, check_new
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import Checkpointing
from speech_adapters.errors import ConfigError, shown
from speech_adapters.heads.base import HeadConfig, HeadModule
from speech_adapters.inference.hearing import Frames
from speech_adapters.saving.folding import fold, folded_weights
from speech_adapters.saving.heads import Features, features_of


class Members(nn.Module):
    """The encoder, and the adapters, fusions and heads that stand on it: which there are, and which are active."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapters = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        self.active: str | Composition | None = None
        self.skip_layers = 0
        self.folded_adapter: str | None = None
        self._unfolded: dict[str, Tensor] = {}
        self.active_head: str | None = None
        self.mixer = Mixer()
        self.gradient_checkpointing: Checkpointing = False
        self.register_state_dict_post_hook(_apart)  # type: ignore[no-untyped-call]  # torch has no types for it

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.device

    @property
    def config(self) -> Any:
        """The encoder's ``transformers`` configuration."""
        return self.encoder.config

    @property
    def registry(self) -> Registry:
        """The encoder and all that stands on it, by name."""
        return Registry(self.encoder, self.adapters, self.heads, self.fusions)

    # ------------------------------------------------------------------ adapters

    def add_adapter(self, name: str, config: str | AdapterConfig, task: str = "asr") -> None:
        """Add an adapter and make it the active one.

        Args:
            name: letters, digits, "_" and "-", the first a letter or a digit.
            config: a preset's name ("elp", "lora", "houlsby", ...) or a config (``EL(...)``, ``LoRA(rank=16)``).
            task: which task's published settings a preset takes (activation, learning rates).

        Raises:
            ConfigError: a name that is taken or not allowed, an unknown preset, settings that do not fit the encoder.
        """
        check_new(name, self.adapters, "adapter")
        self._check_unfolded()
        if isinstance(config, str):
            config = preset(config, task)
        if not isinstance(config, AdapterConfig):
            made = f"; write {config.__name__}()" if isinstance(config, type) else ""
            raise ConfigError(
                f"adapter {name!r}: give a preset's name or an adapter config, not {shown(config)}{made}."
            )
        module = config.build(self.encoder).to(self.device)
        module.attach(self.encoder, name)
        module.requires_grad_(False).eval()
        self.adapters[name] = module
        self.set_active(name)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter; the base is left as it was before the adapter came."""
        module = self.registry.adapter(name)
        self.registry.check_unused(name)
        if name == self.folded_adapter:
            before = self.active, self.skip_layers
            self.unfold_adapter()
            self.active, self.skip_layers = before
        if name in self.active_adapters:
            members = self.active.members if isinstance(self.active, Stack) else ()
            rest = [member for member in members if name not in names_of(member)]
            self.set_active(*rest, skip_layers=self.skip_layers if rest else 0)
        module.detach(self.encoder)
        self.mixer.clear()
        del self.adapters[name]

    def set_active(self, *members: str | Composition | None, skip_layers: int = 0) -> None:
        """Choose what acts: an adapter's name or a composition; several form a stack, none leaves the frozen base.

        Args:
            skip_layers: how many of the lowest layers go without their adapters, for speed (Rücklé et al.,
                "AdapterDrop", EMNLP 2021).
        """
        chosen = tuple(member for member in members if member is not None)
        composition = Stack(*chosen) if len(chosen) > 1 else next(iter(chosen), None)
        self.hooks(composition)
        self._check_beside_folded(() if composition is None else names_of(composition))
        if not 0 <= skip_layers <= self.encoder.num_layers:
            raise ConfigError(f"skip_layers={skip_layers}: the encoder has {self.encoder.num_layers} layers.")
        self.active, self.skip_layers = composition, skip_layers

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """Names of the adapters in the active composition."""
        return () if self.active is None else names_of(self.active)

    @property
    def trained_adapters(self) -> tuple[str, ...]:
        """Names of the active adapters that train: those outside of Fuse and Route."""
        return () if self.active is None else trained_names(self.active)

    def hooks(self, composition: str | Composition | None) -> Hooks:
        """What a composition of this model's adapters does in one forward.

        Raises:
            ConfigError: an adapter or fusion that is not there, members that cannot be composed so.
        """
        return self.registry.hooks(composition)

    @property
    def feature_size(self) -> int:
        """Width of what a head reads under the active composition."""
        return self.hooks(self.active).output_size or self.encoder.output_size

    @property
    def feature_stride(self) -> int:
        """Samples from one frame of what a head reads to the next."""
        return self.frames(self.active).feature_stride

    def feature_lengths(self, samples: int) -> int:
        """How many frames a head reads of this many samples."""
        return self.frames(self.active).feature_lengths(samples)

    def frames(self, choice: str | Composition | None) -> Frames:
        """The frames that a head reads under an adapter or composition: the layers' where that hands on what it read
        from them, in place of the last hidden state."""
        return Frames(self.encoder, of_layers=self.hooks(choice).output_size is not None)

    @property
    def first_layer(self) -> int:
        """The highest layer whose cached input a forward may start from under the active adapters; -1: only the CNN's
        output, -2: not even that."""
        return self.encoder.num_layers if self.active is None else self.hooks(self.active).first_layer

    @property
    def read_states(self) -> Sequence[int] | None:
        """Hidden states that the active adapters read, where they change nothing in the encoder: given these and the
        last, it need not run. None where they do. State ``l`` is the input of layer ``l``."""
        return self.hooks(self.active).states

    def lowest_layer(self, choices: Sequence[Choice] | None = None) -> int:
        """:attr:`first_layer` under these adapters, one per sample, or under the active ones."""
        if choices is None:
            return self.first_layer
        hooks = (self.hooks(choice) for choice in dict.fromkeys(choices) if choice is not None)
        return min((one.first_layer for one in hooks), default=self.encoder.num_layers)

    def average_adapters(
        self, name: str, weights: Mapping[str, float], method: str = "linear", base: str | None = None, **options: Any
    ) -> None:
        """Make a new adapter out of the weights of others of the same configuration, and make it active.

        Args:
            weights: the adapters and their weights, such as ``{"a": 0.5, "b": 0.5}``; negative ones subtract.
            base: the adapter that they all started from: their changes are averaged, and added to it. By default the
                start of a fresh adapter, where that is not random.
            method, options: see :func:`speech_adapters.composition.weight_averaging.average`.

        Raises:
            ConfigError: adapters of different configurations, an unknown method or option.
        """
        members = {key: self.registry.adapter(key) for key in weights}
        if base is not None:
            weight_averaging.shared_config({**members, base: self.registry.adapter(base)})
            start = self.registry.adapter(base).tensors()
        else:
            start = next(iter(members.values())).config.fixed_start(self.encoder) if members else {}
        averaged = weight_averaging.average(members, weights, method, base=start, **options)
        self.add_adapter(name, averaged.config)
        self.registry.adapter(name).load_tensors(averaged.tensors)

    def fold_adapter(self, name: str) -> None:
        """Fold an adapter into the base's weights, in place and in all its layers: it then costs nothing at run time.

        No adapter is active afterwards. :meth:`unfold_adapter` puts the base's own weights back, bit for bit (they
        are kept, so the changed matrices take twice their memory).

        Raises:
            ConfigError: a method that a change of weights cannot stand for, a base in 8 or 4 bits, or an adapter that
                is folded in already.
        """
        module = self.registry.adapter(name)
        self._check_unfolded()
        weights = folded_weights(self.encoder, module)
        self.set_active(skip_layers=self.skip_layers)
        self._unfolded, self.folded_adapter = fold(self.encoder, weights), name

    def _check_beside_folded(self, names: Iterable[str]) -> None:
        """Raise a ConfigError for adapters that cannot act on a base into which one is folded: that one again, and
        copies of what it has changed."""
        for name in () if self.folded_adapter is None else names:
            if name == self.folded_adapter:
                raise ConfigError(f"adapter {name!r} is folded into the base and acts; call unfold_adapter first.")
            if self.registry.adapter(name).replaced():
                raise ConfigError(
                    f"adapter {name!r} puts copies in the place of parts of the base, into which "
                    f"{self.folded_adapter!r} is folded; call unfold_adapter first."
                )

    def unfold_adapter(self) -> None:
        """Take the folded adapter out of the base again and make it the active one."""
        if self.folded_adapter is None:
            raise ConfigError("no adapter is folded into the base; nothing to take out.")
        fold(self.encoder, self._unfolded)
        name, self._unfolded, self.folded_adapter = self.folded_adapter, {}, None
        self.set_active(name, skip_layers=self.skip_layers)

    # ------------------------------------------------------------------ fusions

    def add_fusion(self, composition: TrainableComposition, config: CompositionConfig | None = None) -> str:
        """Give ``Fuse(...)`` or ``Route(...)`` its weights, and make it the active composition; returns its name.

        Args:
            config: :class:`~speech_adapters.composition.FusionConfig` for Fuse, ``RouterConfig`` for Route.

        Raises:
            ConfigError: no such adapters, members that cannot be composed so, a name that is taken.
        """
        with self._precision():
            module = self.registry.build_fusion(composition, config)
        self.fusions[composition.name] = module.to(self.device).requires_grad_(False).eval()
        self.set_active(composition)
        return composition.name

    def delete_fusion(self, name: str) -> None:
        """Remove the weights of a Fuse or Route; nothing is active afterwards if it was."""
        composition = self.registry.fusion(name).composition
        self.registry.check_unused(composition)
        if composition in self.active_fusions:
            self.set_active()
        del self.fusions[name]

    @property
    def active_fusions(self) -> list[TrainableComposition]:
        """The active Fuse and Route, inner ones first."""
        return [] if self.active is None else list(trainable_in(self.active))

    # ------------------------------------------------------------------ heads

    def add_head(self, name: str, config: HeadConfig) -> None:
        """Add a head for the features of the active adapter, and make it the active head."""
        check_new(name, self.heads, "head")
        if not isinstance(config, HeadConfig):
            made = f"; write {config.__name__}(...)" if isinstance(config, type) else ""
            raise ConfigError(
                f"head {name!r}: give a head config such as CTCHead(vocabulary), not {shown(config)}{made}."
            )
        branches = self.active.members if isinstance(self.active, Parallel) else ()
        sizes = {self.hooks(branch).output_size or self.encoder.output_size for branch in branches}
        if len(sizes) > 1:
            widths = " and ".join(map(str, sorted(sizes)))
            raise ConfigError(
                f"head {name!r}: the branches of {self.active!r} give features of {widths}; add a head for each while "
                "it alone is active."
            )
        self._keep_head(name, config.build(self.feature_size))

    def delete_head(self, name: str) -> None:
        """Remove a head."""
        self.registry.head(name)
        del self.heads[name]
        self.active_head = None if self.active_head == name else self.active_head

    def set_head(self, name: str | None) -> None:
        """Choose the active head; None for none."""
        if name is not None:
            self.registry.head(name)
        self.active_head = name

    @property
    def head(self) -> HeadModule | None:
        """The active head."""
        return None if self.active_head is None else self.registry.head(self.active_head)

    def average_heads(self, name: str, weights: Mapping[str, float], method: str = "linear", **options: Any) -> None:
        """Make a new head out of the weights of others of the same configuration, and make it active."""
        check_new(name, self.heads, "head")
        members = {key: self.registry.head(key) for key in weights}
        averaged = weight_averaging.average(members, weights, method, **options)
        head = averaged.config.build(next(iter(members.values())).input_size)
        head.load_state_dict(averaged.tensors)
        self._keep_head(name, head)

    def _features(self) -> Features | None:
        """What a head reads under the active composition, above the adapter that is folded in."""
        acting = self.active
        if self.folded_adapter is not None and not isinstance(acting, Parallel):
            above = acting.members if isinstance(acting, Stack) else () if acting is None else (acting,)
            acting = Stack(self.folded_adapter, *above) if above else self.folded_adapter
        return features_of(self.encoder, acting, self.registry.adapters_by_name)

    def _keep_head(self, name: str, head: HeadModule) -> None:
        self.heads[name] = head.to(self.device).requires_grad_(False).eval()
        self.active_head = name

    # ------------------------------------------------------------------ inner

    def _precision(self) -> AbstractContextManager[Any]:
        dtype = self.encoder.model.dtype
        return torch.autocast(self.device.type, dtype) if dtype.itemsize == 2 else nullcontext()

    def _check_widths(self) -> None:
        if isinstance(self.active, Parallel):  # each branch by itself
            return
        if self.head is not None and self.head.input_size != self.feature_size:
            raise ConfigError(
                f"head {self.active_head!r} reads features of {self.head.input_size}, but the active adapters "
                f"{list(self.active_adapters)} give {self.feature_size}; add a head while the adapter is active."
            )

    def _check_unfolded(self) -> None:
        if self.folded_adapter is not None:
            raise ConfigError(f"adapter {self.folded_adapter!r} is folded into the base; call unfold_adapter first.")


def _apart(module: nn.Module, tensors: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Safetensors can write a state dict: what two names share (an adapter's LoRA matrices stand in the base's
    projections too) becomes a tensor for each, and all are contiguous."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.numel():
            shared = tensor.data_ptr() in seen
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
