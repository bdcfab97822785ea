"""Fusions and routers in folders: ``fusion.json`` and ``fusion_model.safetensors``.

A fusion is saved without its adapters, which are parts of their own; it keeps the checksum of each and loads beside
exactly those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_adapters import schema
from speech_adapters.composition.blocks import (
    Fuse,
    Route,
    TrainableComposition,
    composition_from_dict,
    names_of,
    trainable_in,
)
from speech_adapters.composition.fusion import FusionConfig
from speech_adapters.composition.fusion_base import CompositionConfig, CompositionModule
from speech_adapters.composition.registry import Tensors
from speech_adapters.composition.routing import RouterConfig
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.tensors import fingerprint
from speech_adapters.errors import CheckpointError, ConfigError, first_line
from speech_adapters.saving.base import Base, read_description
from speech_adapters.saving.parts import check_fit, load_part, save_part
from speech_adapters.saving.places import folder_of


@dataclass(frozen=True, kw_only=True)
class SavedFusion:
    """A fusion as it lies in its folder: its composition, settings and tensors."""

    composition: TrainableComposition
    config: CompositionConfig
    tensors: dict[str, Tensor]
    card: dict[str, Any]
    base: Base
    folder: Path

    def load_into(self, module: CompositionModule) -> None:
        """Fill the module that ``config.build`` made. Raises CheckpointError where the tensors do not fit it."""
        tensors, own = self.tensors, module.state_dict()
        unsaid = {name: own[name] for name in own.keys() - module.tensors().keys()}  # by older files, too
        if not unsaid.keys() & tensors.keys():
            tensors = tensors | unsaid
        check_fit(tensors, own, str(self.folder))
        module.load_state_dict(tensors)


@dataclass(frozen=True, kw_only=True)
class _Description:
    composition: dict[str, Any]
    config: dict[str, Any]
    base: Base
    parts: dict[str, str]
    card: dict[str, Any] = field(default_factory=dict)


def save_fusion(
    folder: str | Path,
    module: CompositionModule,
    encoder: Encoder,
    adapters: Tensors,
    fusions: Tensors,
    card: Mapping[str, Any],
) -> Path:
    """Save the weights of a Fuse or Route, and a checksum of each adapter and inner fusion that it weighs.

    Args:
        adapters, fusions: those of the model, by name.

    Returns: the folder.

    Raises:
        CheckpointError: a tensor that is not finite, a card that JSON cannot hold.
        InputError: a folder that cannot be written.
    """
    description = {
        "composition": module.composition.to_dict(),
        "config": schema.to_dict(module.config),
        "base": vars(Base.of(encoder)),
        "parts": _checksums(module.composition, adapters, fusions),
        "card": dict(card),
    }
    return save_part(folder, "fusion", description, module.tensors())


def read_fusion(folder: str | Path, encoder: Encoder, adapters: Tensors, fusions: Tensors) -> SavedFusion:
    """Read a Fuse or Route that was trained on ``encoder`` with these adapters and inner fusions.

    Raises:
        CheckpointError: no such fusion, a damaged file, another base, an adapter that is missing or has changed since.
    """
    folder = folder_of(folder)
    values, tensors = load_part(folder, "fusion")
    described = read_description(_Description, values, folder, "fusion")
    described.base.check(Base.of(encoder), f"{folder}: this fusion")
    try:
        composition = composition_from_dict(described.composition)
        if not isinstance(composition, Fuse | Route) or not isinstance(composition.name, str):
            raise ConfigError(f"{composition!r} has no weights of its own")
        settings = FusionConfig if isinstance(composition, Fuse) else RouterConfig
        config = schema.from_dict(settings, described.config, settings.__name__)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # not what Composition.to_dict writes
        raise CheckpointError(f"{folder}: its configuration cannot be used ({first_line(error)}).") from error
    _check_sizes(config, tensors, folder)
    for part in described.parts:
        if part not in adapters and part not in fusions:
            raise CheckpointError(f"{folder}: {composition!r} needs {part!r}, which is not loaded; load it first.")
    try:
        now = _checksums(composition, adapters, fusions)
    except KeyError as error:
        raise CheckpointError(
            f"{folder}: {composition!r} needs {error}, which is not loaded; load it first."
        ) from None
    for part, checksum in now.items():
        if checksum != described.parts.get(part):
            raise CheckpointError(
                f"{folder}: {part!r} is not the one that {composition!r} was trained with, or has changed since; load "
                "the one saved beside it, or train the fusion anew."
            )
    return SavedFusion(
        composition=composition,
        config=config,
        tensors=tensors,
        card=described.card,
        base=described.base,
        folder=Path(folder),
    )


def _check_sizes(config: CompositionConfig, tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    """No size of the settings is above all sizes of the weights: nothing huge is made before the weights are tried."""
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for key, size in vars(config).items():
        if type(size) is int and size > largest:
            raise CheckpointError(f"{folder}: its tensors do not fit its configuration ({key}={size}).")


def _checksums(composition: TrainableComposition, adapters: Tensors, fusions: Tensors) -> dict[str, str]:
    inner = [fusion.name for fusion in trainable_in(composition) if fusion is not composition]
    own = {name: fingerprint(adapters[name]()) for name in names_of(composition)}
    return own | {name: fingerprint(fusions[name]()) for name in inner}
