"""Write and read one saved part (an adapter, a head, a fusion): a folder with a description and a weights file.

``<kind>.json`` holds the configuration, what the part was made on, and two checksums (SHA-256): that of the weights
file and its own, which is taken over its content (keys, their order, values) and not over how it is spaced.
``<kind>_model.safetensors`` holds the tensors.

Saving over a part is safe against a kill at any instant. The new weights come to lie beside the old ones under a name
made of their checksum, then the description is renamed into place, then the weights are. A reader takes whichever
weights file has the checksum that the description names: between the last two renames that is the one beside. Of two
that save at once the later one wins, whole: each waits for the other. One that reads meanwhile looks again.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech_adapters.encoders.tensors import check_finite
from speech_adapters.errors import CheckpointError, InputError
from speech_adapters.files import atomic
from speech_adapters.locks import is_locked, locked

FORMAT = 1


def save_part(
    folder: str | Path,
    kind: str,
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    extra_files: Mapping[str, str | None] | None = None,
) -> Path:
    """Save one part; what the folder held of it before stays loadable until the new one is.

    Args:
        folder: made where it is missing; parts of several kinds may share one.
        kind: "adapter", "head" or "fusion".
        extra_files: texts for other tools, by file name; None removes the file.

    Returns: the folder.

    Raises:
        CheckpointError: a tensor with values that are not finite, a description that JSON cannot hold.
        InputError: a folder or disk that cannot be written.
    """
    folder = Path(folder)
    check_finite(tensors, f"{folder}: not saved")
    weights = _serialised(tensors, {"description": f"{kind}.json", "format": "pt"})
    described = {"format": FORMAT, **description, "weights_sha256": _sha256(weights)}
    try:
        text = _text(described, _sha256(_text(described, "")))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: its description does not fit JSON ({error}); give plain values.") from error
    beside = _beside(folder, kind, described["weights_sha256"])
    with locked(folder / f"{kind}.json", seconds=60):
        try:
            _write(beside, weights)
            for name, content in (extra_files or {}).items():
                if content is None:
                    (folder / name).unlink(missing_ok=True)
                else:
                    _write(folder / name, content.encode())
            _write(folder / f"{kind}.json", text)
            beside.replace(folder / f"{kind}_model.safetensors")
            for left in (*folder.glob(f"{kind}_model-*.safetensors"), *folder.glob(f".{kind}_model-*.tmp")):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written ({error.strerror or error}); choose another place."
            ) from error
    return folder


def _serialised(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file: the same for the same part. safetensors writes metadata of more than one key in
    a random order, which checksums and copies would take for other weights; they are put in the order given."""
    from safetensors.torch import save

    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")  # the file: the header's length, the header in JSON, the tensors
    header = {**json.loads(data[8:end]), "__metadata__": dict(metadata)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return data[:8] + text.ljust(end - 8) + data[end:]


def load_part(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description (without its checksums) and tensors of a saved part.

    Raises:
        CheckpointError: no such part, a file that is cut short, changed or of a newer format, a value that is not
            finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    described, _, weights = _read_pair(folder, kind)
    try:
        tensors = load(weights)
    except (SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: its weights file is not one of safetensors ({error}).") from error
    check_finite(tensors, str(folder))
    return described, tensors


def _read_pair(folder: Path, kind: str) -> tuple[dict[str, Any], bytes, bytes]:
    """Description, its file's content, and weights that belong together. Between the reading of one and the other
    somebody may have saved over both: what does not fit is read once more, and again while it is being written."""
    for attempt in itertools.count():
        described, text = _read_description(folder / f"{kind}.json", kind)
        try:
            return described, text, _read_weights(folder, kind, described.pop("weights_sha256"))
        except CheckpointError:
            writing = is_locked(folder / f"{kind}.json")
            if attempt == 20 or (attempt and not writing):
                raise
            time.sleep(0.05 * writing)
    raise AssertionError("counts without end")


def part_files(folder: str | Path, kind: str) -> dict[str, bytes]:
    """The content of a saved part's files by name, held against its checksums: what a copy of it is made of.

    Raises:
        CheckpointError: no such part, or a file that is cut short, changed or of a newer format.
    """
    _, text, weights = _read_pair(Path(folder), kind)
    return {f"{kind}.json": text, f"{kind}_model.safetensors": weights}


def check_fit(tensors: Mapping[str, Tensor], blueprint: Mapping[str, Tensor], where: str) -> None:
    """Hold the names, shapes and types of tensors against those that a configuration asks for.

    Floating-point tensors may have any precision, since a copy of an adapter in half precision is that adapter still.

    Raises:
        CheckpointError: a tensor that is missing, unexpected, or of another shape or type; it is named.
    """
    for name in sorted(blueprint.keys() | tensors.keys()):
        if name not in tensors or name not in blueprint:
            fault = f"{name!r} is {'unexpected' if name in tensors else 'missing'}"
        elif (found := tensors[name]).shape != (wanted := blueprint[name]).shape:
            fault = f"{name!r} is of {tuple(found.shape)} in place of {tuple(wanted.shape)}"
        elif found.dtype != wanted.dtype and not _both_float(found, wanted):
            fault = f"{name!r} is of type {_type(found)} in place of {_type(wanted)}"
        else:
            continue
        raise CheckpointError(f"{where}: its tensors do not fit its configuration (tensor {fault}).")


def _both_float(*tensors: Tensor) -> bool:
    return all(t.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64) for t in tensors)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_description(path: Path, kind: str) -> tuple[dict[str, Any], bytes]:
    try:
        text = _content(path)
        described = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once)
        version, recorded, weights = described["format"], described.pop("sha256"), described["weights_sha256"]
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path, kind) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(path) from error
    if (
        type(version) is not int
        or version < 1
        or not isinstance(weights, str)
        or not re.fullmatch("[0-9a-f]{64}", weights)
    ):
        raise _damaged(path)
    if version > FORMAT:
        raise CheckpointError(f"{path}: format {version} is newer than this version reads; update the package.")
    try:
        own = _sha256(_text(described, ""))
    except (ValueError, RecursionError) as error:  # numbers and nesting beyond what JSON was written with
        raise _damaged(path) from error
    if own != recorded:
        raise _damaged(path)
    del described["format"]
    _check_numbers({key: value for key, value in described.items() if key != "card"}, path)
    return described, text


def _missing(path: Path, kind: str) -> CheckpointError:
    """What is said of a part's file that is not there; of a run's folder, which parts it holds."""
    held = " or ".join(str(file.parent) for file in sorted(path.parent.glob(f"{kind}s/*/{kind}.json")))
    return CheckpointError(f"{path}: no such file; give {held or f'a folder that holds a saved {kind}'}.")


def _read_weights(folder: Path, kind: str, expected: str) -> bytes:
    path = folder / f"{kind}_model.safetensors"
    found = False
    for candidate in (path, _beside(folder, kind, expected)):
        try:
            weights = _content(candidate)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{candidate}: cannot be read ({error.strerror or error}).") from error
        found = True
        if _sha256(weights) == expected:
            return weights
    if not found:
        raise _missing(path, kind)
    raise _damaged(path)


def _content(path: Path) -> bytes:
    """The bytes of a file; pipes and devices, which may have no end, are refused."""
    if path.exists() and not path.is_file():
        raise IsADirectoryError(errno.EISDIR, "not a regular file")
    return path.read_bytes()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand there once."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key stands there twice")
    return mapping


def _check_numbers(value: Any, path: Path) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"{path}: holds the number {value}, which no configuration can have.")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(item, path)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: cut short or changed since it was saved; take it from its source again.")


def _text(described: Mapping[str, Any], digest: str) -> bytes:
    return (json.dumps({**described, "sha256": digest}, indent=2) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _beside(folder: Path, kind: str, digest: str) -> Path:
    """Where weights lie until the description that names them is in place."""
    return folder / f"{kind}_model-{digest[:16]}.safetensors"


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as file:
        file.write(content)
