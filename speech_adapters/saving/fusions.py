"""A fusion's or router's folder: its composition and tensors, and a checksum of each part that it was trained over.

The adapters and the head are parts of their own: save them too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_adapters.composition.blocks import TrainableComposition, composition_from_dict, names_of, trainable_in
from speech_adapters.composition.fusion_base import CompositionConfig, CompositionModule
from speech_adapters.composition.registry import CONFIGS, Registry
from speech_adapters.encoders.loading import fingerprint
from speech_adapters.errors import CheckpointError
from speech_adapters.saving.parts import load_part, save_part


@dataclass(frozen=True)
class SavedFusion:
    """What a folder holds of a Fuse or Route."""

    composition: TrainableComposition
    config: CompositionConfig
    tensors: dict[str, Tensor]
    card: dict[str, Any]


def save_fusion(
    folder: str | os.PathLike[str], module: CompositionModule, registry: Registry, card: Mapping[str, Any]
) -> Path:
    """Save the weights of a Fuse or Route, which adapters they are of, and a checksum of each of those."""
    description = {
        "composition": module.composition.to_dict(),
        "config": module.config.to_dict(),
        "base": {"name": registry.encoder.name, "fingerprint": registry.encoder.fingerprint},
        "parts": _checksums(module.composition, registry),
        "card": dict(card),
    }
    return save_part(Path(folder), "fusion", description, module.state_dict())


def read_fusion(folder: str | os.PathLike[str], registry: Registry) -> SavedFusion:
    """Read a saved Fuse or Route for the adapters that it was trained with.

    Raises:
        CheckpointError: a damaged file, another base, an adapter that is missing or has changed since.
    """
    description, tensors = load_part(Path(folder), "fusion")
    base, encoder = description["base"], registry.encoder
    if base["fingerprint"] != encoder.fingerprint:
        raise CheckpointError(
            f"{folder}: this fusion was trained on {base['name']!r}, whose frozen weights are not those of "
            f"{encoder.name!r}; load it onto its own base."
        )
    composition = composition_from_dict(description["composition"])
    if not isinstance(composition, TrainableComposition):
        raise CheckpointError(f"{folder}: {composition!r} has no weights of its own; the file is not a fusion's.")
    for part in description["parts"]:
        if part not in registry.adapters and part not in registry.fusions:
            raise CheckpointError(f"{folder}: {composition!r} needs {part!r}, which is not loaded; load it first.")
    for part, now in _checksums(composition, registry).items():
        if now != description["parts"].get(part):
            raise CheckpointError(
                f"{folder}: {part!r} is not the one that {composition!r} was trained with, or has changed since; load "
                "the one saved beside it, or train the fusion anew."
            )
    config = CONFIGS[type(composition)](**description["config"])
    return SavedFusion(composition, config, tensors, description.get("card", {}))


def _checksums(composition: TrainableComposition, registry: Registry) -> dict[str, str]:
    inner = [fusion.name for fusion in trainable_in(composition) if fusion is not composition]
    adapters = {name: fingerprint(registry.adapter(name).tensors()) for name in names_of(composition)}
    return adapters | {name: fingerprint(registry.fusion(name).state_dict()) for name in inner}
