"""An adapter's folder: its configuration, its tensors, and the base that it was made on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, adapter_config
from speech_adapters.encoders.loading import Encoder
from speech_adapters.errors import CheckpointError
from speech_adapters.saving.parts import load_part, save_part


@dataclass(frozen=True)
class SavedAdapter:
    """What a folder holds of an adapter; ``card`` is what was said of it when it was saved (metrics, data)."""

    name: str
    config: AdapterConfig
    tensors: dict[str, Tensor]
    card: dict[str, Any]


def save_adapter(
    folder: str | os.PathLike[str], name: str, module: AdapterModule, encoder: Encoder, card: Mapping[str, Any]
) -> Path:
    """Save an adapter with the identity of its base; returns the folder.

    Raises:
        CheckpointError: a folder that is a file, or a card that JSON cannot hold.
    """
    description = {
        "name": name,
        "config": module.config.to_dict(),
        "base": {
            "name": encoder.name,
            "revision": encoder.revision,
            "family": encoder.family,
            "fingerprint": encoder.fingerprint,
        },
        "card": dict(card),
    }
    extra = {}
    if (peft_config := module.config.peft_config(encoder)) is not None:  # readable by peft itself
        extra["adapter_config.json"] = _peft_config_text(peft_config)
    return save_part(Path(folder), "adapter", description, module.tensors(), extra)


def read_adapter(folder: str | os.PathLike[str], encoder: Encoder) -> SavedAdapter:
    """Read a saved adapter for ``encoder``.

    Raises:
        CheckpointError: a damaged file, or an adapter made on another base.
    """
    description, tensors = load_part(Path(folder), "adapter")
    base = description["base"]
    if base["fingerprint"] != encoder.fingerprint:
        raise CheckpointError(
            f"{folder}: this adapter was trained on {base['name']!r} ({base['family']}), whose frozen weights are "
            f"not those of {encoder.name!r} ({encoder.family}); load it onto its own base."
        )
    return SavedAdapter(
        description["name"], adapter_config(description["config"]), tensors, description.get("card", {})
    )


def _peft_config_text(peft_config: Any) -> str:
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in peft_config.to_dict().items()}
    return json.dumps({**values, "inference_mode": True}, indent=2, default=str) + "\n"
