"""Saving, loading and merging of a model's adapters and heads: the part of the model that knows about files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.saving.adapters import read_adapter, save_adapter
from speech_adapters.saving.folding import fold, folded_weights, save_folded
from speech_adapters.saving.fusions import read_fusion, save_fusion
from speech_adapters.saving.heads import features_of, read_head, save_head


class Saving:
    """What :class:`~speech_adapters.model.SpeechAdapterModel` can write to a folder and read back."""

    def save_adapter(self, name: str, folder: str | Path, **card: Any) -> Path:
        return save_adapter(folder, name, self._get(name, self.adapters, "adapter"), self.encoder, card)

    def load_adapter(self, folder: str | Path, name: str | None = None) -> str:
        saved = read_adapter(folder, self.encoder)
        name = name or saved.name
        before = self.active
        self.add_adapter(name, saved.config)
        try:
            self.adapters[name].load_tensors(saved.tensors)
        except (RuntimeError, CheckpointError) as error:
            self.delete_adapter(name)
            self.set_active(before)
            raise CheckpointError(f"{folder}: its tensors do not fit its configuration ({error}).") from error
        return name

    def save_head(self, name: str, folder: str | Path) -> Path:
        features = features_of(self.encoder, self.active, self.adapters)
        return save_head(folder, name, self._get(name, self.heads, "head"), features)

    def load_head(self, folder: str | Path, name: str | None = None) -> str:
        saved = read_head(folder)
        name = name or saved.name
        self._check_new(name, self.heads, "head")
        saved.check(features_of(self.encoder, self.active, self.adapters))
        head = saved.config.build(saved.input_size)
        head.load_state_dict(saved.tensors)
        self.heads[name] = head.to(self._device).requires_grad_(False).eval()
        self.active_head = name
        return name

    def save_fusion(self, name: str, folder: str | Path, **card: Any) -> Path:
        module = self._get(name, self.fusions, "fusion")
        return save_fusion(folder, module, self.encoder, self.adapters, self.fusions, card)

    def load_fusion(self, folder: str | Path) -> str:
        saved = read_fusion(folder, self.encoder, self.adapters, self.fusions)
        before = self.active
        name = self.add_fusion(saved.value, saved.config)
        try:
            saved.load_into(self.fusions[name])
        except CheckpointError:
            self.delete_fusion(name)
            self.set_active(before)
            raise
        return name

    def merge_adapter(self, name: str) -> None:
        module = self._get(name, self.adapters, "adapter")
        self._check_unmerged()
        weights = folded_weights(self.encoder, module)
        self.set_active()
        self._unmerged, self.merged_adapter = fold(self.encoder, weights), name

    def unmerge_adapter(self) -> None:
        if self.merged_adapter is None:
            raise ConfigError("no adapter is merged; nothing to take out.")
        fold(self.encoder, self._unmerged)
        name, self._unmerged, self.merged_adapter = self.merged_adapter, {}, None
        self.set_active(name)

    def save_merged(self, name: str, folder: str | Path) -> Path:
        module = self._get(name, self.adapters, "adapter")
        self._check_unmerged()
        return save_folded(self.encoder, folded_weights(self.encoder, module), folder)
