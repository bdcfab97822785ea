"""Write and read one saved part (an adapter or a head): a folder with a description and a weights file.

``<kind>.json`` holds the configuration, what the part was made on, and the SHA-256 of the weights file and of itself
(of its bytes with that one value left empty);
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
    """Save one part. ``extra_files`` are texts for other tools, by file name. Returns the folder.

    Raises:
        CheckpointError: a folder that is a file, or a description that JSON cannot hold.
    """
    from safetensors.torch import save

    folder = Path(folder)
    weights = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    described = {"format": FORMAT, **description, "weights_sha256": _sha256(weights)}
    try:
        text = _text(described, _sha256(_text(described, "")))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: its description does not fit JSON ({error}); give plain values.") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder}: a file is in the way; choose another folder.") from error
    _replace(folder / f"{kind}_model.safetensors", weights)
    for name, content in (extra_files or {}).items():
        _replace(folder / name, content.encode())
    _replace(folder / f"{kind}.json", text)
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
    text, weights = path.read_bytes(), weights_path.read_bytes()
    try:
        described = json.loads(text.decode("utf-8"))
        version, recorded = int(described["format"]), described.pop("sha256").encode()
        expected = described["weights_sha256"]
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(path) from error
    if version > FORMAT:
        raise CheckpointError(f"{path}: format {version} is newer than this version reads; update the package.")
    if _sha256(text.replace(recorded, b"", 1)).encode() != recorded:
        raise _damaged(path)
    if _sha256(weights) != expected:
        raise _damaged(weights_path)
    return described, load(weights)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: cut short or changed since it was saved; take it from its source again.")


def _text(described: dict[str, Any], digest: str) -> bytes:
    return (json.dumps({**described, "sha256": digest}, indent=2) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
