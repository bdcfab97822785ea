"""One frozen encoder with named adapters and named heads."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import (
    DEFAULT_LEARNING_RATE,
    AdapterConfig,
    AdapterModule,
    AdapterPlan,
    adapter_config,
)
from speech_adapters.adapters.presets import Task, preset
from speech_adapters.bank.merging import fold, merged_weights, save_stock
from speech_adapters.bank.storage import load_part, save_part
from speech_adapters.encoders.loading import Encoder, load_encoder
from speech_adapters.errors import AudioError, CheckpointError, ConfigError
from speech_adapters.heads.base import HeadConfig, HeadModule, head_from_dict

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
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    features: Tensor
    frame_lengths: Tensor
    mask: Tensor | None
    logits: Tensor | None = None
    loss: Tensor | None = None
    embedding: Tensor | None = None


class SpeechAdapterModel(nn.Module):
    """A frozen encoder, adapters and heads by name. At any time one adapter, or a stack, and one head are active.

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
        self.active_adapters: tuple[str, ...] = ()
        self.skip_layers = 0
        self.merged_adapter: str | None = None
        self._unmerged: dict[str, Tensor] = {}
        self.active_head: str | None = None
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
        if name == self.merged_adapter:
            self.unmerge_adapter()
        self.set_active(*[active for active in self.active_adapters if active != name])
        module.detach(self.encoder)
        del self.adapters[name]

    def set_active(self, *names: str | None, skip_layers: int = 0) -> None:
        """Choose the active adapter; several form a stack, applied in order; none leaves the frozen base.

        Args:
            skip_layers: leave the adapters of so many lowest layers out, for speed (Rücklé et al., "AdapterDrop",
                EMNLP 2021).
        """
        chosen = tuple(name for name in names if name is not None)
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"active adapters {list(chosen)}: each name may stand there once.")
        for name in chosen:
            self._get(name, self.adapters, "adapter")
        if not 0 <= skip_layers <= self.encoder.num_layers:
            raise ConfigError(f"skip_layers={skip_layers}: the encoder has {self.encoder.num_layers} layers.")
        self.active_adapters, self.skip_layers = chosen, skip_layers
        for name, module in self.adapters.items():
            module.set_enabled(name in chosen, skip_layers)

    @property
    def feature_size(self) -> int:
        """Width of what a head reads under the active adapters."""
        sizes = [self.adapters[name].output_size for name in self.active_adapters]
        return next((size for size in reversed(sizes) if size is not None), self.encoder.hidden_size)

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

    def train_adapter(self, *names: str, head: str | None = None) -> None:
        """Activate adapters and a head, and let exactly their parameters train; everything else needs no gradient.

        ``train_adapter(head="asr")`` trains the head alone on the frozen base.
        """
        self._check_unmerged()
        self.set_active(*names)
        self.set_head(head if head is not None else self.active_head)
        self._check_widths()
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for parameters in self.parameter_groups().values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.train()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the active adapters and head by group ("e", "l", "lora", "head", ...)."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name in self.active_adapters:
            for group, parameters in self.adapters[name].groups().items():
                if parameters:
                    groups.setdefault(group, []).extend(parameters)
        if self.head is not None:
            groups["head"] = list(self.head.parameters())
        return groups

    def learning_rates(self, overrides: dict[str, float] | None = None) -> dict[str, float]:
        """Learning rate of each group of :meth:`parameter_groups`: override, else the adapter's own, else 1e-3."""
        groups = self.parameter_groups()
        rates = dict.fromkeys(groups, DEFAULT_LEARNING_RATE)
        for name in self.active_adapters:
            rates.update({k: v for k, v in self.adapters[name].learning_rates().items() if k in groups})
        unknown = sorted(set(overrides or {}) - set(groups))
        if unknown:
            raise ConfigError(f"learning rate for unknown group {unknown[0]!r}; this model has {', '.join(groups)}.")
        return {**rates, **(overrides or {})}

    def train(self, mode: bool = True) -> SpeechAdapterModel:
        """Dropout works in active adapters and the active head only; the encoder stays in eval mode."""
        super().train(False)
        self.training = mode
        if mode:
            for name in self.active_adapters:
                self.adapters[name].train()
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
        **cached: Any,
    ) -> ModelOutput:
        """Waveforms (B, samples) at 16 kHz, lengths (B,) in samples -> :class:`ModelOutput`.

        Args:
            targets: what the active head's loss wants, e.g. (B, U) token ids padded with -100 for CTC.
            time_mask: (B, T) boolean frames to hide (SpecAugment).
            cached: ``cnn_output`` or ``hidden`` with ``frames`` and ``start_layer`` in place of waveforms; see
                :func:`~speech_adapters.encoders.encode`.

        A half-precision encoder (``dtype=torch.bfloat16``) runs under autocast: adapters and heads stay in float32.

        Raises:
            AudioError: an utterance shorter than the encoder's receptive field; lengths that do not fit the waveforms.
            ConfigError: a head of another width than the features, or a start above a layer that an adapter changes.
        """
        self._check_widths()
        self._check_start(**cached)
        if waveforms is not None:
            self._check_audio(waveforms, lengths)
            if lengths is not None and bool((lengths == waveforms.shape[1]).all()):
                lengths = None
        plan = AdapterPlan((self.adapters[name] for name in self.active_adapters), self.skip_layers)
        with self._precision():
            output = self.encoder(
                waveforms,
                lengths,
                plan=plan,
                time_mask=time_mask,
                gradient_checkpointing=self.gradient_checkpointing and self.training,
                **cached,
            )
            features = plan.read(self.encoder, output)
            frames = output.frame_lengths
            if frames is None:
                frames = torch.full((features.shape[0],), features.shape[1], device=features.device)
            result = ModelOutput(output.last_hidden_state, output.hidden_states, features, frames, output.mask)
            if self.head is not None:
                scored = self.head(features, frames)
                result.logits = scored.logits
                result.embedding = getattr(scored, "embedding", None)
                if targets is not None:
                    result.loss = self.head.loss(scored, targets)
                    if self.training and (penalty := plan.penalty()) is not None:
                        result.loss = result.loss + penalty
            elif targets is not None:
                raise ConfigError("targets were given but no head is active; call set_head or add_head.")
        return result

    # ------------------------------------------------------------------ saving

    def save_adapter(self, name: str, folder: str | Path, **card: Any) -> Path:
        """Save an adapter with the identity of its base; ``card`` entries (metrics, data) stay in its description."""
        module: AdapterModule = self._get(name, self.adapters, "adapter")
        encoder = self.encoder
        description = {
            "name": name,
            "config": module.config.to_dict(),
            "base": {
                "name": encoder.name,
                "revision": encoder.revision,
                "family": encoder.family,
                "fingerprint": encoder.fingerprint,
            },
            "card": card,
        }
        extra = {}
        if (peft_config := module.config.peft_config(encoder)) is not None:  # readable by peft itself
            extra["adapter_config.json"] = _peft_config_text(peft_config)
        return save_part(folder, "adapter", description, module.tensors(), extra)

    def load_adapter(self, folder: str | Path, name: str | None = None) -> str:
        """Load a saved adapter and make it active; returns its name (the saved one unless given).

        Raises:
            CheckpointError: a damaged file, or an adapter made on another base.
        """
        description, tensors = load_part(folder, "adapter")
        base = description["base"]
        if base["fingerprint"] != self.encoder.fingerprint:
            raise CheckpointError(
                f"{folder}: this adapter was trained on {base['name']!r} ({base['family']}), whose frozen weights are "
                f"not those of {self.encoder.name!r} ({self.encoder.family}); load it onto its own base."
            )
        name = name or description["name"]
        before = self.active_adapters
        self.add_adapter(name, adapter_config(description["config"]))
        try:
            self.adapters[name].load_tensors(tensors)
        except (RuntimeError, CheckpointError) as error:
            self.delete_adapter(name)
            self.set_active(*before)
            raise CheckpointError(f"{folder}: its tensors do not fit its configuration ({error}).") from error
        return name

    def save_head(self, name: str, folder: str | Path) -> Path:
        """Save a head: its config (vocabulary and normaliser included) and weights."""
        head: HeadModule = self._get(name, self.heads, "head")
        description = {"name": name, "config": head.config.to_dict(), "input_size": head.input_size}
        return save_part(folder, "head", description, head.state_dict())

    def load_head(self, folder: str | Path, name: str | None = None) -> str:
        """Load a saved head and make it active; returns its name."""
        description, tensors = load_part(folder, "head")
        name = name or description["name"]
        self._check_new(name, self.heads, "head")
        head = head_from_dict(description["config"]).build(description["input_size"])
        try:
            head.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: its tensors do not fit its configuration ({error}).") from error
        self.heads[name] = head.to(self._device).requires_grad_(False).eval()
        self.active_head = name
        return name

    # ------------------------------------------------------------------ merging

    def merge_adapter(self, name: str) -> None:
        """Fold an adapter into the base's weights, in place: it then costs nothing at run time.

        No adapter is active afterwards. :meth:`unmerge_adapter` puts the base's own weights back, bit for bit (they
        are kept, so the changed matrices take twice their memory).

        Raises:
            ConfigError: a method that a change of weights cannot stand for, a base in 8 or 4 bits, or an adapter that
                is merged already.
        """
        module = self._get(name, self.adapters, "adapter")
        self._check_unmerged()
        weights = merged_weights(self.encoder, module)
        self.set_active()
        self._unmerged, self.merged_adapter = fold(self.encoder, weights), name

    def unmerge_adapter(self) -> None:
        """Take the merged adapter out of the base again and make it the active one."""
        if self.merged_adapter is None:
            raise ConfigError("no adapter is merged; nothing to take out.")
        fold(self.encoder, self._unmerged)
        name, self._unmerged, self.merged_adapter = self.merged_adapter, {}, None
        self.set_active(name)

    def save_merged(self, name: str, folder: str | Path) -> Path:
        """Save the base with an adapter folded in as a stock checkpoint, which ``AutoModel.from_pretrained`` loads.

        The model itself stays as it is. Raises ConfigError as :meth:`merge_adapter`, or for a folder that is taken.
        """
        module = self._get(name, self.adapters, "adapter")
        self._check_unmerged()
        return save_stock(self.encoder, merged_weights(self.encoder, module), folder)

    # ------------------------------------------------------------------ what it is

    def count_parameters(self) -> dict[str, float]:
        """``trainable`` (active adapters and head), ``total`` (of all that a forward uses) and ``percent``."""
        trainable = sum(p.numel() for group in self.parameter_groups().values() for p in group)
        parts = [self.adapters[name] for name in self.active_adapters]
        added = sum(sum(p.numel() for p in part.parameters()) - part.replaced() for part in parts)
        total = (
            self.encoder.num_parameters
            + added
            + (0 if self.head is None else sum(p.numel() for p in self.head.parameters()))
        )
        return {"trainable": trainable, "total": total, "percent": 100 * trainable / total}

    def __repr__(self) -> str:
        lines = [f"SpeechAdapterModel on {self.encoder!r}"]
        for name, module in self.adapters.items():
            mark = "*" if name in self.active_adapters else " "
            count = sum(p.numel() for p in module.parameters())
            lines.append(f" {mark} adapter {name!r}: {count:,} parameters")
            lines += [f"     {line}" for line in module.describe()]
        for name, head in self.heads.items():
            mark = "*" if name == self.active_head else " "
            count = sum(p.numel() for p in head.parameters())
            lines.append(f" {mark} head {name!r}: {count:,} parameters, reads {head.input_size}")
        active = self.count_parameters()
        lines.append("   active: {trainable:,} trainable of {total:,} ({percent:.2f} %)".format(**active))
        return "\n".join(lines)

    # ------------------------------------------------------------------ inner

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.model.parameters()).device

    @property
    def first_layer(self) -> int:
        """The highest layer whose cached input a forward may start from under the active adapters; -1: only the CNN's
        output, -2: not even that."""
        return self._lowest()[1]

    def _lowest(self) -> tuple[str, int]:
        found = [(name, self.adapters[name].first_layer) for name in self.active_adapters]
        return min(found, key=lambda item: item[1], default=("", self.encoder.num_layers))

    def _precision(self) -> AbstractContextManager:
        dtype = self.encoder.model.dtype
        return torch.autocast(self._device.type, dtype) if dtype.itemsize == 2 else nullcontext()

    def _check_start(self, hidden: Tensor | None = None, start_layer: int = 0, **others: Any) -> None:
        lowest, first = self._lowest()
        if first < -1 and (hidden is not None or others.get("cnn_output") is not None):
            raise ConfigError(f"adapter {lowest!r} acts inside the CNN; start from waveforms.")
        if hidden is not None and start_layer > first:
            where = "before the layers; start" if first < 0 else f"from layer {first} on; start there, below, or"
            raise ConfigError(f"start_layer={start_layer}: adapter {lowest!r} acts {where} from cnn_output.")

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


def _peft_config_text(peft_config: Any) -> str:
    import json

    values = {key: sorted(value) if isinstance(value, set) else value for key, value in peft_config.to_dict().items()}
    return json.dumps({**values, "inference_mode": True}, indent=2, default=str) + "\n"
