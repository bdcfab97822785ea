"""The weights of a folder in Hugging Face format: one file or shards, of safetensors or of ``torch.save``.

Single tensors are read by name, and nothing that a file holds is run as code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speech_adapters.encoders.json_files import check_start, is_there, read_json
from speech_adapters.encoders.others import SINGLE, others_in
from speech_adapters.errors import CheckpointError, out_of_memory


def weight_files(folder: Path) -> list[Path]:
    """The files that ``transformers`` takes the weights from: one, or shards, with whatever is in them.

    Raises:
        CheckpointError: there are none.
    """
    for single in SINGLE:
        if is_there(folder / single):
            return [folder / single]
        if is_there(folder / f"{single}.index.json"):
            return [folder / name for name in read_shards(folder / f"{single}.index.json")]
    raise CheckpointError(f"{folder}: no {' or '.join(SINGLE)}; {others_in(folder) or 'download the folder again'}.")


def read_shards(index: Path) -> list[str]:
    """The files that an index names. Raises CheckpointError for one that is damaged."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{index}: its weight_map gives no file for each tensor; download it again.")
    return sorted(set(places.values()))


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's tensors by name, from the headers of its files.

    Raises:
        CheckpointError: no weights, or a file that is cut short or is none of tensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with open_tensors(path) as tensors:
            shapes |= tensors.shapes
    return shapes


def read_tensors(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The wanted tensors of a checkpoint by name, in float32 (counts as they are); errors of :func:`stored_shapes`."""
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with open_tensors(path) as tensors:
            found |= {name: _float32(tensors.get(name)) for name in tensors.shapes if wanted(name)}
    return found


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class Tensors(NamedTuple):
    """An open weights file: the shapes of its tensors, and each of them by name."""

    shapes: dict[str, tuple[int, ...]]
    get: Callable[[str], Tensor]


@contextmanager
def open_tensors(path: Path) -> Iterator[Tensors]:
    """A weights file of either kind.

    Raises:
        CheckpointError: a file that is cut short, is something else, or holds other things than tensors.
    """
    from safetensors import SafetensorError, safe_open

    check_start(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
                yield Tensors(shapes, file.get_tensor)
        else:
            content = _unpickled(path)
            held = _tensors_of(content)
            parts = {key: _tensors_of(part) for key, part in content.items() if isinstance(part, dict)}
            if inside := [key for key, tensors in parts.items() if not held or len(tensors) > len(held)]:
                raise CheckpointError(
                    f"{path}: a training checkpoint with parts {', '.join(map(repr, inside))}, and no model's tensors "
                    "beside them; save only the model's part."
                )
            shapes = {key: tuple(tensor.shape) for key, tensor in held.items()}
            yield Tensors(shapes, lambda name: held[name].clone())  # not the file's own memory, which may change
    except (SafetensorError, RuntimeError, OSError) as error:
        if out_of_memory(error):
            raise
        raise _damaged(path) from error


def _unpickled(path: Path) -> dict[Any, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged file makes of torch.load
        if out_of_memory(error):
            raise
        raise _more_than_tensors(path) or _damaged(path) from error
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _tensors_of(content: dict[Any, Any]) -> dict[str, Tensor]:
    return {key: t.detach() for key, t in content.items() if isinstance(key, str) and isinstance(t, Tensor)}


def _more_than_tensors(path: Path) -> CheckpointError | None:
    """The error for a whole file with objects of other classes: a pickled model, arrays, a training's arguments."""
    try:
        classes = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged file, or one of before torch 1.6
        return None
    if not classes:
        return None
    return CheckpointError(
        f"{path}: holds more than tensors ({', '.join(classes[:3])}), which would be run as code; open it only if "
        "you trust it, and torch.save the model's state_dict() alone."
    )


def _damaged(path: Path) -> CheckpointError:
    with path.open("rb") as file:
        start = file.read(9)
    by_name, name = path.suffix == ".safetensors", None
    if by_name and start.startswith((b"PK\x03\x04", b"\x80\x02\x8a\n")):  # a zip, or of before torch 1.6
        kind, name = "written by torch.save", "pytorch_model.bin"
    elif not by_name and start[8:] == b"{":
        kind, name = "in the format of safetensors", "model.safetensors"
    if name is not None:
        remedy = f"rename it to {name}" if path.name in SINGLE else "save it again in the format of its name"
        return CheckpointError(f"{path}: {kind}, whatever its name says; {remedy}.")
    return CheckpointError(f"{path}: cut short, changed, or not a file that holds only tensors; download it again.")
