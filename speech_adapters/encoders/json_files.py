"""The JSON files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speech_adapters import files
from speech_adapters.errors import CheckpointError, InputError


def is_there(path: Path) -> bool:
    """Whether a file is there. Raises CheckpointError for a link to what is not, as a tidied cache leaves them."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path}: a link to what is not there; download the folder again.")
    return path.is_file()


def read_json(path: Path) -> dict[str, Any]:
    """The keys and values in a file. Raises CheckpointError where there are none."""
    try:
        content = files.read_json(path)
    except InputError as error:
        raise CheckpointError(f"{error}; download the folder again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no keys with values; download the folder again.")
    return content
