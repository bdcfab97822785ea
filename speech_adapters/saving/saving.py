"""Saving, loading and merging of a model's adapters and heads: the part of the model that knows about files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speech_adapters.adapters.base import AdapterModule, adapter_config
from speech_adapters.composition.blocks import Learned, composition, learned_in, names_of
from speech_adapters.composition.composing import CONFIGS
from speech_adapters.composition.fusion_base import LearnedModule
from speech_adapters.encoders.loading import fingerprint
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads.base import HeadModule, head_from_dict
from speech_adapters.saving.folding import fold, merged_weights, save_stock
from speech_adapters.saving.parts import load_part, save_part


class Saving:
    """What :class:`~speech_adapters.model.SpeechAdapterModel` can write to a folder and read back."""

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
        before = self.active
        self.add_adapter(name, adapter_config(description["config"]))
        try:
            self.adapters[name].load_tensors(tensors)
        except (RuntimeError, CheckpointError) as error:
            self.delete_adapter(name)
            self.set_active(before)
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

    def save_fusion(self, name: str, folder: str | Path, **card: Any) -> Path:
        """Save the weights of a Fuse or Route, which adapters they are of, and a checksum of each of those.

        The adapters and the head are parts of their own: save them too.
        """
        module: LearnedModule = self._get(name, self.fusions, "fusion")
        description = {
            "composition": module.value.to_dict(),
            "config": module.config.to_dict(),
            "base": {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint},
            "parts": self._checksums(module.value),
            "card": card,
        }
        return save_part(folder, "fusion", description, module.state_dict())

    def load_fusion(self, folder: str | Path) -> str:
        """Load a saved Fuse or Route onto the adapters it was trained with, and make it active; returns its name.

        Raises:
            CheckpointError: a damaged file, another base, an adapter that is missing or has changed since.
        """
        description, tensors = load_part(folder, "fusion")
        if description["base"]["fingerprint"] != self.encoder.fingerprint:
            raise CheckpointError(
                f"{folder}: this fusion was trained on {description['base']['name']!r}, whose frozen weights are not "
                f"those of {self.encoder.name!r}; load it onto its own base."
            )
        value = composition(description["composition"])
        for part in description["parts"]:
            if part not in self.adapters and part not in self.fusions:
                raise CheckpointError(f"{folder}: {value!r} needs {part!r}, which is not loaded; load it first.")
        for part, now in self._checksums(value).items():
            if now != description["parts"].get(part):
                raise CheckpointError(
                    f"{folder}: {part!r} is not the one that {value!r} was trained with, or has changed since; load "
                    "the one saved beside it, or train the fusion anew."
                )
        before = self.active
        self.add_fusion(value, CONFIGS[type(value)](**description["config"]))
        try:
            self.fusions[value.name].load_state_dict(tensors)
        except RuntimeError as error:
            self.delete_fusion(value.name)
            self.set_active(before)
            raise CheckpointError(f"{folder}: its tensors do not fit its configuration ({error}).") from error
        return value.name

    def _checksums(self, value: Learned) -> dict[str, str]:
        inner = [fusion.name for fusion in learned_in(value) if fusion is not value]
        adapters = {name: fingerprint(self.adapters[name].tensors()) for name in names_of(value)}
        return adapters | {name: fingerprint(self.fusions[name].state_dict()) for name in inner}

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


def _peft_config_text(peft_config: Any) -> str:
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in peft_config.to_dict().items()}
    return json.dumps({**values, "inference_mode": True}, indent=2, default=str) + "\n"
