"""One frozen encoder with named adapters and named heads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import (
    DEFAULT_LEARNING_RATE,
    AdapterConfig,
)
from speech_adapters.adapters.hooks import AdapterPlan, Places, Stacked, walk
from speech_adapters.adapters.presets import Task, preset
from speech_adapters.composition.blocks import Composition, Parallel, Stack, names_of, trained_names
from speech_adapters.composition.composing import Composing
from speech_adapters.composition.mixed_batch import Choice, Mixer
from speech_adapters.composition.parallel import mixed_forward, parallel_forward
from speech_adapters.encoders.loading import Encoder, load_encoder
from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.heads.base import HeadConfig, HeadModule
from speech_adapters.saving.saving import Saving

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass
class ModelOutput:
    """What the model returns.

    Attributes:
        last_hidden_state: (B, T, D) of the encoder; hidden_states: L + 1 tensors (B, T, D).
        features: (B, T, F), what the head reads (the L-adapters' sum, or the last hidden state).
        frame_lengths: (B,) real frames; mask: (B, T) True on real frames, or None when nothing is padded.
        logits: the active head's output, None without a head. loss: scalar, when targets were given.
        embedding: (B, E) of a speaker head, else None.
        cnn_output: (B, T, C) before the feature projection; None when the run started later.
        attention: what Fuse and Route weighed their members with, by "name.place": (B, T, N), or (B, 1, N) of a gate
            an utterance; T includes pseudo frames, of which ``pseudo_frames`` stand before the real ones.

    With one adapter a sample, ``features`` is a list of (T, F) where adapters differ in F, and with one head a sample
    ``logits`` is a list.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    features: Tensor | list[Tensor]
    frame_lengths: Tensor
    mask: Tensor | None
    logits: Tensor | list[Tensor | None] | None = None
    loss: Tensor | None = None
    embedding: Tensor | None = None
    cnn_output: Tensor | None = None
    attention: dict[str, Tensor] = field(default_factory=dict)
    pseudo_frames: int = 0


class SpeechAdapterModel(Composing, Saving, nn.Module):
    """A frozen encoder, adapters and heads by name. At any time one adapter or composition and one head are active.

    >>> model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    >>> model.add_adapter("telephone", "elp")
    >>> model.add_head("asr", CTCHead(vocabulary))
    >>> model.train_adapter("telephone", head="asr")
    >>> model(waveforms, lengths=lengths).logits
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapters = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        self.active: str | Composition | None = None
        self.skip_layers = 0
        self.merged_adapter: str | None = None
        self._unmerged: dict[str, Tensor] = {}
        self.active_head: str | None = None
        self.train_head = True
        self.mixer = Mixer()
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> SpeechAdapterModel:
        """Load and freeze an encoder; arguments and errors of :func:`~speech_adapters.encoders.load_encoder`."""
        return cls(load_encoder(name_or_path, **options))

    # ------------------------------------------------------------------ adapters

    def add_adapter(self, name: str, config: str | AdapterConfig, task: Task = "asr") -> None:
        """Add an adapter and make it the active one.

        Args:
            name: letters, digits, "_" and "-".
            config: a preset's name ("elp", "lora", "houlsby", ...) or a config (``EL(...)``, ``LoRA(rank=16)``).
            task: which task's published settings a preset takes (activation, learning rates).

        Raises:
            ConfigError: a name that is taken or not allowed, an unknown preset, settings that do not fit the encoder.
        """
        self._check_new(name, self.adapters, "adapter")
        self._check_unmerged()
        if isinstance(config, str):
            config = preset(config, task)
        if not isinstance(config, AdapterConfig):
            raise ConfigError(f"adapter {name!r}: give a preset's name or an adapter config, not {config!r}.")
        module = config.build(self.encoder).to(self._device)
        module.attach(self.encoder, name)
        module.requires_grad_(False).eval()
        self.adapters[name] = module
        self.set_active(name)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter; the base is left as it was before the adapter came."""
        module = self._get(name, self.adapters, "adapter")
        self._check_unused(name)
        if name == self.merged_adapter:
            self.unmerge_adapter()
        if name in self.active_adapters:
            rest = self.active.members if isinstance(self.active, Stack) else ()
            self.set_active(*(member for member in rest if name not in names_of(member)))
        module.detach(self.encoder)
        self.mixer.clear()
        del self.adapters[name]

    def set_active(self, *members: str | Composition | None, skip_layers: int = 0) -> None:
        """Choose what acts: an adapter's name or a composition; several form a stack, none leaves the frozen base.

        Args:
            skip_layers: leave the adapters of so many lowest layers out, for speed (Rücklé et al., "AdapterDrop",
                EMNLP 2021).
        """
        chosen = tuple(member for member in members if member is not None)
        value = Stack(*chosen) if len(chosen) > 1 else next(iter(chosen), None)
        for branch in value.members if isinstance(value, Parallel) else chosen:
            self.places(branch)
        if not 0 <= skip_layers <= self.encoder.num_layers:
            raise ConfigError(f"skip_layers={skip_layers}: the encoder has {self.encoder.num_layers} layers.")
        self.active, self.skip_layers = value, skip_layers

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """Names of the adapters in the active composition."""
        return () if self.active is None else names_of(self.active)

    @property
    def feature_size(self) -> int:
        """Width of what a head reads under the active composition."""
        return self._root().output_size or self.encoder.hidden_size

    # ------------------------------------------------------------------ heads

    def add_head(self, name: str, config: HeadConfig) -> None:
        """Add a head for the features of the active adapter, and make it the active head."""
        self._check_new(name, self.heads, "head")
        if not isinstance(config, HeadConfig):
            raise ConfigError(f"head {name!r}: give a head config such as CTCHead(vocabulary), not {config!r}.")
        self.heads[name] = config.build(self.feature_size).to(self._device).requires_grad_(False).eval()
        self.active_head = name

    def delete_head(self, name: str) -> None:
        """Remove a head."""
        self._get(name, self.heads, "head")
        del self.heads[name]
        self.active_head = None if self.active_head == name else self.active_head

    def set_head(self, name: str | None) -> None:
        """Choose the active head; None for none."""
        if name is not None:
            self._get(name, self.heads, "head")
        self.active_head = name

    @property
    def head(self) -> HeadModule | None:
        """The active head."""
        return None if self.active_head is None else self.heads[self.active_head]

    # ------------------------------------------------------------------ training

    def train_adapter(self, *names: str | Composition, head: str | None = None, train_head: bool = True) -> None:
        """Activate adapters and a head, and let exactly their parameters train; everything else needs no gradient.

        ``train_adapter(head="asr")`` trains the head alone on the frozen base; ``train_head=False`` keeps a head that
        several adapters share as it is. Adapters under Fuse and Route stay frozen.
        """
        self._check_unmerged()
        self.set_active(*names)
        self.set_head(head if head is not None else self.active_head)
        self.train_head = train_head
        self._check_widths()
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for parameters in self.parameter_groups().values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.train()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that train, by group ("e", "l", "lora", "fusion", "head", ...), under the active composition."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name in self.trained_adapters:
            for group, parameters in self.adapters[name].groups().items():
                if parameters:
                    groups.setdefault(group, []).extend(parameters)
        for value in self.active_fusions:
            module = self.fusions[value.name]
            groups.setdefault(module.group, []).extend(module.parameters())
        if self.head is not None and self.train_head:
            groups["head"] = list(self.head.parameters())
        return groups

    def learning_rates(self, overrides: dict[str, float] | None = None) -> dict[str, float]:
        """Learning rate of each group of :meth:`parameter_groups`: override, else the adapter's own, else 1e-3."""
        groups = self.parameter_groups()
        rates = dict.fromkeys(groups, DEFAULT_LEARNING_RATE)
        for name in self.trained_adapters:
            rates.update({k: v for k, v in self.adapters[name].learning_rates().items() if k in groups})
        for module in (self.fusions[value.name] for value in self.active_fusions):
            if module.config.learning_rate is not None:
                rates[module.group] = module.config.learning_rate
        unknown = sorted(set(overrides or {}) - set(groups))
        if unknown:
            raise ConfigError(f"learning rate for unknown group {unknown[0]!r}; this model has {', '.join(groups)}.")
        return {**rates, **(overrides or {})}

    def train(self, mode: bool = True) -> SpeechAdapterModel:
        """Dropout works in active adapters and the active head only; the encoder stays in eval mode."""
        super().train(False)
        self.training = mode
        if mode:
            for name in self.trained_adapters:
                self.adapters[name].train()
            for value in self.active_fusions:
                self.fusions[value.name].train()
            if self.head is not None:
                self.head.train()
        return self

    def check_alive(self) -> None:
        """Raise if a trainable tensor has no gradient, a zero one or a non-finite one; call it after ``backward``.

        In a fresh adapter some gradients are zero in the first step by design (behind a zero-initialised projection):
        check after the second.
        """
        dead = [
            f"{name} ({'no gradient' if p.grad is None else 'zero' if p.grad.isfinite().all() else 'not finite'})"
            for name, p in self.named_parameters()
            if p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or not p.grad.any())
        ]
        if dead:
            raise RuntimeError(
                f"{len(dead)} trainable tensor(s) learn nothing: {', '.join(dead[:5])}. An adapter must be alive: "
                "check that the adapter is active and that nothing bypasses its place in the encoder."
            )

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        waveforms: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        time_mask: Tensor | None = None,
        adapter: Sequence[Choice] | None = None,
        head: Sequence[str | None] | None = None,
        guide: Tensor | None = None,
        **cached: Any,
    ) -> ModelOutput | dict[str, ModelOutput]:
        """Waveforms (B, samples) at 16 kHz, lengths (B,) in samples -> :class:`ModelOutput`.

        Args:
            targets: what the active head's loss wants, e.g. (B, U) token ids padded with -100 for CTC.
            time_mask: (B, T) boolean frames to hide (SpecAugment).
            adapter: one choice a sample, in place of the active composition: names, ``Stack(...)``, None for the base.
            head: one head a sample, or one a branch of Parallel, in place of the active head; None for none.
            guide: (B,) the member of a Fuse or Route that belongs to each utterance, -100 for unknown: its guide loss.
            cached: ``cnn_output`` or ``hidden`` with ``frames`` and ``start_layer`` in place of waveforms; see
                :func:`~speech_adapters.encoders.encode`.

        Under ``Parallel`` the result is a dict of outputs by branch.

        A half-precision encoder (``dtype=torch.bfloat16``) runs under autocast: adapters and heads stay in float32.

        Raises:
            AudioError: an utterance shorter than the encoder's receptive field; lengths that do not fit the waveforms.
            ConfigError: a head of another width than the features, or a start above a layer that an adapter changes.
        """
        if waveforms is not None:
            self._check_audio(waveforms, lengths)
            if lengths is not None and bool((lengths == waveforms.shape[1]).all()):
                lengths = None
        inputs = {"waveforms": waveforms, "lengths": lengths, "time_mask": time_mask, **cached}
        with self._precision():
            if adapter is not None:
                return mixed_forward(self, inputs, adapter, head, targets)
            if isinstance(self.active, Parallel):
                return parallel_forward(self, inputs, self.active, head, targets)
            if head is not None:
                raise ConfigError("head=[...] goes with adapter=[...] or Parallel; choose one head with set_head.")
            self._check_widths()
            root = self._root()
            result, plan = self.run(root, **inputs)
            result.features = plan.read(self.encoder, result)
            self.score(result, targets)
            nodes, result.pseudo_frames = [node for node in walk(root) if hasattr(node, "attention")], plan.before
            result.attention = {f"{n.name}.{place}": a for n in nodes for place, a in n.attention.items()}
            if result.loss is not None and self.training:
                result.loss = result.loss + sum(node.loss(guide, result.mask, plan.before) for node in nodes)
                penalties = (self.adapters[name].penalty() for name in self.trained_adapters)
                result.loss = result.loss + sum(penalty for penalty in penalties if penalty is not None)
        return result

    def run(self, root: Places, **inputs: Any) -> tuple[ModelOutput, AdapterPlan]:
        """The encoder under ``root``; ``features`` are the last hidden state still."""
        self._check_start(root, **inputs)
        plan = AdapterPlan(root, self.skip_layers)
        checkpointing = self.gradient_checkpointing and self.training
        output = self.encoder(**inputs, plan=plan, gradient_checkpointing=checkpointing)
        last, frames = output.last_hidden_state, output.frame_lengths
        if frames is None:
            frames = torch.full((last.shape[0],), last.shape[1], device=last.device)
        return ModelOutput(last, output.hidden_states, last, frames, output.mask, cnn_output=output.cnn_output), plan

    def score(self, result: ModelOutput, targets: Tensor | None) -> None:
        """Fill in the active head's logits, and its loss where there are targets."""
        if self.head is not None:
            scored = self.head(result.features, result.frame_lengths)
            result.logits, result.embedding = scored.logits, getattr(scored, "embedding", None)
            if targets is not None:
                result.loss = self.head.loss(scored, targets)
        elif targets is not None:
            raise ConfigError("targets were given but no head is active; call set_head or add_head.")

    # ------------------------------------------------------------------ what it is

    def count_parameters(self) -> dict[str, float]:
        """``trainable`` (active adapters and head), ``total`` (of all that a forward uses) and ``percent``."""
        trainable = sum(p.numel() for group in self.parameter_groups().values() for p in group)
        parts = [self.adapters[name] for name in self.active_adapters]
        added = sum(sum(p.numel() for p in part.parameters()) - part.replaced() for part in parts)
        fusions = [self.fusions[value.name] for value in self.active_fusions]
        added += sum(p.numel() for fusion in fusions for p in fusion.parameters())
        head = 0 if self.head is None else sum(p.numel() for p in self.head.parameters())
        total = self.encoder.num_parameters + added + head
        return {"trainable": trainable, "total": total, "percent": 100 * trainable / total}

    def __repr__(self) -> str:
        lines = [f"SpeechAdapterModel on {self.encoder!r}"]
        for name, module in self.adapters.items():
            mark = "*" if name in self.active_adapters else " "
            count = sum(p.numel() for p in module.parameters())
            lines.append(f" {mark} adapter {name!r}: {count:,} parameters")
            lines += [f"     {line}" for line in module.describe()]
        for module in self.fusions.values():
            mark = "*" if module.value in self.active_fusions else " "
            count = sum(p.numel() for p in module.parameters())
            lines.append(f" {mark} {module.value!r}: {count:,} parameters")
            lines += [f"     {line}" for line in module.describe()]
        for name, head in self.heads.items():
            mark = "*" if name == self.active_head else " "
            count = sum(p.numel() for p in head.parameters())
            lines.append(f" {mark} head {name!r}: {count:,} parameters, reads {head.input_size}")
        active = self.count_parameters()
        if isinstance(self.active, Composition):
            lines.append(f"   active: {self.active!r}")
        lines.append("   active: {trainable:,} trainable of {total:,} ({percent:.2f} %)".format(**active))
        return "\n".join(lines)

    # ------------------------------------------------------------------ inner

    @property
    def _device(self) -> torch.device:
        return self.encoder.device

    @property
    def trained_adapters(self) -> tuple[str, ...]:
        """Names of the active adapters that train: those outside of Fuse and Route."""
        return () if self.active is None else trained_names(self.active)

    def _root(self) -> Places:
        if isinstance(self.active, Parallel):
            return Stacked(self.places(branch) for branch in self.active.members)
        return Stacked(()) if self.active is None else self.places(self.active)

    @property
    def first_layer(self) -> int:
        """The highest layer whose cached input a forward may start from under the active adapters; -1: only the CNN's
        output, -2: not even that."""
        return self.encoder.num_layers if self.active is None else self._root().first_layer

    def _precision(self) -> AbstractContextManager:
        dtype = self.encoder.model.dtype
        return torch.autocast(self._device.type, dtype) if dtype.itemsize == 2 else nullcontext()

    def _check_start(
        self,
        root: Places,
        hidden: Tensor | None = None,
        cnn_output: Tensor | None = None,
        start_layer: int = 0,
        **others,
    ) -> None:
        first = root.first_layer
        lowest = next((name for name in self.active_adapters if self.adapters[name].first_layer == first), None)
        who = repr(self.active) if lowest is None else f"adapter {lowest!r}"
        if first < -1 and (hidden is not None or cnn_output is not None):
            raise ConfigError(f"{who} acts inside the CNN; start from waveforms.")
        if hidden is not None and start_layer > first:
            where = "before the layers; start" if first < 0 else f"from layer {first} on; start there, below, or"
            raise ConfigError(f"start_layer={start_layer}: {who} acts {where} from cnn_output.")

    def _check_audio(self, waveforms: Tensor, lengths: Tensor | None) -> None:
        if waveforms.dim() != 2 or not waveforms.is_floating_point():
            raise AudioError(
                f"waveforms: expected a float tensor (batch, samples), got {tuple(waveforms.shape)} {waveforms.dtype}."
            )
        if lengths is not None and (lengths.shape != waveforms.shape[:1] or int(lengths.max()) > waveforms.shape[1]):
            raise AudioError(
                f"lengths: expected {len(waveforms)} numbers of samples, none above {waveforms.shape[1]}, "
                f"got {lengths.tolist()}."
            )
        shortest = int(waveforms.shape[1] if lengths is None else lengths.min())
        if shortest < self.encoder.receptive_field:
            raise AudioError(
                f"an utterance of {shortest} samples is shorter than the encoder's receptive field of "
                f"{self.encoder.receptive_field} samples ({self.encoder.receptive_field / 16:.0f} ms); drop or pad it."
            )

    def _check_widths(self) -> None:
        if isinstance(self.active, Parallel):  # each branch by itself
            return
        if self.head is not None and self.head.input_size != self.feature_size:
            raise ConfigError(
                f"head {self.active_head!r} reads features of {self.head.input_size}, but the active adapters "
                f"{list(self.active_adapters)} give {self.feature_size}; add a head while the adapter is active."
            )

    def _check_unmerged(self) -> None:
        if self.merged_adapter is not None:
            raise ConfigError(f"adapter {self.merged_adapter!r} is merged into the base; call unmerge_adapter first.")

    @staticmethod
    def _check_new(name: str, existing: nn.ModuleDict, kind: str) -> None:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{kind} name {name!r}: use letters, digits, '_' and '-'.")
        if name in existing:
            raise ConfigError(f"{kind} {name!r} exists already; delete it first or choose another name.")
        if hasattr(existing, name):
            raise ConfigError(f"{kind} name {name!r} is a word of torch's own; choose another name.")

    @staticmethod
    def _get(name: str, existing: nn.ModuleDict, kind: str) -> Any:
        if name not in existing:
            raise ConfigError(f"no {kind} {name!r}; there are: {', '.join(existing) or 'none'}.")
        return existing[name]
