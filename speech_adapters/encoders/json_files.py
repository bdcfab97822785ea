"""The JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speech_adapters.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The keys and values in a file. Raises CheckpointError where there are none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download the folder again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no keys with values; download the folder again.")
    return content
