"""Adapters in folders: ``adapter.json``, ``adapter_model.safetensors``, and what ``peft`` needs to load them.

The file knows its base: an adapter loads onto the encoder that it was made on and onto no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, adapter_config
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import CheckpointError, InputError, first_line
from speech_adapters.saving.base import Base, read_description
from speech_adapters.saving.basis import read_basis, save_basis
from speech_adapters.saving.parts import check_fit, load_part, save_part
from speech_adapters.saving.peft_import import CONFIG_FILE, import_lora, is_peft_folder
from speech_adapters.saving.places import folder_of


@dataclass(frozen=True, kw_only=True)
class SavedAdapter:
    """An adapter as it lies in its folder; its tensors fit its configuration on the encoder it was read for."""

    name: str
    config: AdapterConfig
    tensors: dict[str, Tensor]
    card: dict[str, Any]
    base: Base


@dataclass(frozen=True, kw_only=True)
class _Description:
    name: str
    config: dict[str, Any]
    base: Base
    card: dict[str, Any] = field(default_factory=dict)


def save_adapter(
    folder: str | Path, name: str, module: AdapterModule, encoder: Encoder, card: Mapping[str, Any]
) -> Path:
    """Save an adapter with the identity of its base; ``card`` (metrics, data) stays in its description.

    Returns: the folder.

    Raises:
        CheckpointError: a tensor that is not finite, a card that JSON cannot hold.
        InputError: a folder that cannot be written.
    """
    base = Base.of(encoder)
    description = {"name": name, "config": module.config.to_dict(), "base": vars(base), "card": dict(card)}
    peft_config = module.config.peft_config(encoder)
    extra = {CONFIG_FILE: None if peft_config is None else peft_text(peft_config)}
    save_basis(folder, module.config)
    return save_part(folder, "adapter", description, module.tensors(), extra)


def read_adapter(folder: str | Path, encoder: Encoder) -> SavedAdapter:
    """Read an adapter that was made on ``encoder``, or a LoRA that ``peft`` made; nothing is built before its tensors
    fit its configuration.

    Raises:
        CheckpointError: no such adapter, a damaged file, another base, tensors that the configuration does not have.
    """
    folder = folder_of(folder)
    if is_peft_folder(folder):
        lora, tensors = import_lora(folder, encoder)
        check_fit(tensors, lora.blueprint(encoder), str(folder))
        name = re.sub(r"[^A-Za-z0-9_-]", "-", Path(folder).resolve().name) or "peft"
        return SavedAdapter(name=name, config=lora, tensors=tensors, card={}, base=Base.of(encoder))
    values, tensors = load_part(folder, "adapter")
    described = read_description(_Description, values, folder, "adapter")
    described.base.check(Base.of(encoder), f"{folder}: this adapter")
    try:
        config = adapter_config(described.config)
        read_basis(folder, config)
        blueprint = config.blueprint(encoder)
    except (InputError, RuntimeError, OverflowError, TypeError) as error:  # the last three: sizes beyond all memory
        raise CheckpointError(f"{folder}: its configuration cannot be used ({first_line(error)}).") from error
    check_fit(tensors, blueprint, str(folder))
    return SavedAdapter(name=described.name, config=config, tensors=tensors, card=described.card, base=described.base)


def read_base(folder: str | Path) -> tuple[Base, dict[str, Tensor]]:
    """The base that a saved adapter was made on, and its tensors; without that base at hand.

    Raises:
        CheckpointError: no such adapter, a damaged file.
    """
    folder = folder_of(folder)
    values, tensors = load_part(folder, "adapter")
    return read_description(_Description, values, folder, "adapter").base, tensors


def named_method(config: Mapping[str, Any]) -> str:
    """The method of a saved configuration, such as "lora" or "e+l+p"."""
    parts = config.get("parts") or ()
    return "+".join(named_method(part) for part in parts) or str(config.get("method"))


def peft_text(peft_config: Any) -> str:
    """``adapter_config.json``."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in peft_config.to_dict().items()}
    return json.dumps({**values, "inference_mode": True}, indent=2, default=str) + "\n"
