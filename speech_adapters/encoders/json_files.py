"""The JSON files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speech_adapters import files
from speech_adapters.errors import CheckpointError, InputError


def read_json(path: Path) -> dict[str, Any]:
    """The keys and values in a file. Raises CheckpointError where there are none."""
    try:
        content = files.read_json(path)
    except InputError as error:
        raise CheckpointError(f"{error}; download the folder again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no keys with values; download the folder again.")
    return content
