"""Write and read one saved part (an adapter or a head): a folder with a description and a weights file.

``<kind>.json`` holds the configuration, what the part was made on, and the SHA-256 of the weights file and of itself;
``<kind>_model.safetensors`` holds the tensors. Both are written beside their place and renamed into it, so that a
half-written part never looks like a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_adapters.errors import CheckpointError

FORMAT = 1


def save_part(
    folder: str | Path,
    kind: str,
    description: dict[str, Any],
    tensors: dict[str, Tensor],
    extra_files: dict[str, str] | None = None,
) -> Path:
    """Save one part. ``extra_files`` are texts for other tools, by file name. Returns the folder."""
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    described = {"format": FORMAT, **description, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    described["sha256"] = _digest(described)
    _replace(folder / f"{kind}_model.safetensors", weights)
    for name, text in (extra_files or {}).items():
        _replace(folder / name, text.encode())
    _replace(folder / f"{kind}.json", (json.dumps(described, indent=2) + "\n").encode())
    return folder


def load_part(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a saved part.

    Raises:
        CheckpointError: no such part, or a file that is cut short, changed, or of a newer format.
    """
    from safetensors.torch import load

    folder = Path(folder)
    path, weights_path = folder / f"{kind}.json", folder / f"{kind}_model.safetensors"
    for needed in (path, weights_path):
        if not needed.is_file():
            raise CheckpointError(f"{needed}: no such file; give a folder that holds a saved {kind}.")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        recorded = described.pop("sha256")
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: cut short or changed since it was saved; take it from its source again.") from error
    if described.get("format", 0) > FORMAT:
        raise CheckpointError(f"{path}: format {described['format']} is newer than this version reads; update the package.")
    weights = weights_path.read_bytes()
    for file, found, expected in (
        (path, _digest(described), recorded),
        (weights_path, hashlib.sha256(weights).hexdigest(), described.get("weights_sha256")),
    ):
        if found != expected:
            raise CheckpointError(f"{file}: cut short or changed since it was saved; take it from its source again.")
    return described, load(weights)


def _digest(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
