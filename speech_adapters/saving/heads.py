"""A head's folder: its configuration (vocabulary and normaliser included), its tensors, the width that it reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_adapters.heads.base import HeadConfig, HeadModule, head_from_dict
from speech_adapters.saving.parts import load_part, save_part


@dataclass(frozen=True)
class SavedHead:
    """What a folder holds of a head; ``features`` says which features it was trained on, where that is known."""

    name: str
    config: HeadConfig
    input_size: int
    tensors: dict[str, Tensor]
    features: Any = None


def save_head(folder: str | os.PathLike[str], name: str, head: HeadModule, features: Any = None) -> Path:
    """Save a head; returns the folder."""
    description = {"name": name, "config": head.config.to_dict(), "input_size": head.input_size}
    description |= {} if features is None else {"features": features}
    return save_part(Path(folder), "head", description, head.state_dict())


def read_head(folder: str | os.PathLike[str]) -> SavedHead:
    """Read a saved head. Raises CheckpointError for a damaged file."""
    description, tensors = load_part(Path(folder), "head")
    config = head_from_dict(description["config"])
    return SavedHead(description["name"], config, description["input_size"], tensors, description.get("features"))
