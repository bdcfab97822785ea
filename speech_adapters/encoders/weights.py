"""The weights of a folder in Hugging Face format: one file or shards, of safetensors or of ``torch.save``.

Single tensors are read by name, and nothing that a file holds is run as code.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from speech_adapters.encoders.json_files import read_json
from speech_adapters.errors import CheckpointError

#: Names of a single weights file, the one that is taken first; shards have an index of this name with ".index.json".
SINGLE = ("model.safetensors", "pytorch_model.bin")


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The files that ``transformers`` takes the weights from, and which tensors of each: None for all.

    Raises:
        CheckpointError: there are none.
    """
    for single in SINGLE:
        if (folder / single).is_file():
            files: dict[Path, set[str] | None] = {folder / single: None}
        elif (folder / f"{single}.index.json").is_file():
            shards = read_shards(folder / f"{single}.index.json")
            files = {folder / name: shards[name] for name in sorted(shards)}
        else:
            continue
        return files
    raise CheckpointError(f"{folder}: no {' or '.join(SINGLE)}; download the folder again.")


def read_shards(index: Path) -> dict[str, set[str]]:
    """File -> the tensors in it, of an index. Raises CheckpointError for one that is damaged."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{index}: its weight_map gives no file for each tensor; download it again.")
    return {place: {key for key in places if places[key] == place} for place in places.values()}


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's tensors by name, from the headers of its files.

    Raises:
        CheckpointError: no weights, or a file that is cut short or is none of tensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path, names in weight_files(folder).items():
        with open_tensors(path, names) as tensors:
            shapes |= tensors.shapes
    return shapes


def read_tensors(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The wanted tensors of a checkpoint by name, in float32 (counts as they are); errors of :func:`stored_shapes`."""
    found: dict[str, Tensor] = {}
    for path, names in weight_files(folder).items():
        with open_tensors(path, names) as tensors:
            found |= {name: _float32(tensors.get(name)) for name in tensors.shapes if wanted(name)}
    return found


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class Tensors(NamedTuple):
    """An open weights file: the shapes of its tensors, and each of them by name."""

    shapes: dict[str, tuple[int, ...]]
    get: Callable[[str], Tensor]


@contextmanager
def open_tensors(path: Path, names: Collection[str] | None = None) -> Iterator[Tensors]:
    """A weights file of either kind, or of it the tensors of these names alone.

    Raises:
        CheckpointError: a file that is cut short, is something else, or holds other things than tensors.
    """
    from safetensors import SafetensorError, safe_open

    _check_start(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                keys = [key for key in file.keys() if names is None or key in names]  # noqa: SIM118
                yield Tensors({key: tuple(file.get_slice(key).get_shape()) for key in keys}, file.get_tensor)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            held = {key: tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
            if not held and (inside := [key for key, value in content.items() if isinstance(value, dict)]):
                raise CheckpointError(
                    f"{path}: a training's file, with parts {', '.join(map(repr, inside))} and no tensors beside "
                    "them; save the model's part alone."
                )
            keys = [key for key in held if names is None or key in names]
            shapes = {key: tuple(held[key].shape) for key in keys}
            yield Tensors(shapes, lambda name: held[name].clone())  # not the file's own memory, which may change
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{path}: cut short, changed, or not a file of tensors and of nothing else; download it again."
        ) from error


def _check_start(path: Path) -> None:
    """Name what often lies in the place of weights: pointers, web pages, nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); download it again.") from error
    if start.startswith(b"version https://git-lfs"):
        fault = "is a Git LFS pointer, not the weights: run git lfs pull in its folder, or"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        fault = "is a web page, not the weights:"
    elif not start:
        fault = "is empty:"
    else:
        return
    raise CheckpointError(f"{path}: {fault} download it again.")
