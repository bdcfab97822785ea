"""Activations that no update changes, kept on disk.

They are found by content: the audio's bytes, piece and channel; the encoder's weights, normalisation and precision;
and the code that computes them. Manifests, seeds, methods and runs that share utterances share what is kept of them.
An hour of speech takes ``180,000 D`` numbers per hidden state: 276 MB for Base (D = 768) in half precision.

    activations-<encoder>/about.json          what it is of
    activations-<encoder>/state-3-fp16/*.npz  parts of some minutes, each whole or not there: a killed run loses one
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

import speech_adapters
from speech_adapters.data.store import Store
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import InputError
from speech_adapters.files import read_json, sweep_folder, temporary_of
from speech_adapters.training.settings import Cache

PREFIX = "activations-"

TYPES: dict[str, tuple[type[np.generic], torch.dtype]] = {
    "fp16": (np.float16, torch.float16),
    "bf16": (np.int16, torch.bfloat16),  # numpy has no such type: its bits
    "fp32": (np.float32, torch.float32),
}
"""Precision -> the types of numpy, on disk, and of torch."""


class Activations:
    """One tap of one encoder: an array (T, width) per utterance, by the utterance's key; parts of a folder."""

    def __init__(self, folder: Path, width: int, precision: str) -> None:
        self.folder, self.width, self.precision = folder, width, precision
        self.places: dict[str, tuple[Store, int]] = {}
        self._known: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """See what other processes have added."""
        for index in sorted(self.folder.glob("*.npz")):
            if index not in self._known:
                self._known.add(index)
                store = Store(index.with_suffix(""), TYPES[self.precision][0], self.width)
                self.places |= {str(key): (store, number) for number, key in enumerate(store.arrays["keys"])}

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def frames(self, key: str) -> int:
        """How many rows an utterance has."""
        store, number = self.places[key]
        return int(store.counts[number])

    def read(self, key: str, start: int, frames: int) -> np.ndarray:
        """Rows ``start`` to ``start + frames``, (frames, width)."""
        store, number = self.places[key]
        return store.piece(number, start, frames)

    def add(self, keys: Sequence[str], arrays: Sequence[Tensor]) -> None:
        """Write a part; its name follows from what it holds, so that processes that do the same do it once."""
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        number, dtype = TYPES[self.precision]
        held = [(place, array.to(dtype).view(torch.int16).numpy().view(number) if self.precision == "bf16"
                 else array.to(dtype).numpy()) for place, array in enumerate(arrays)]  # fmt: skip
        size = sum(array.nbytes for _, array in held)
        Store.write(self.folder / name, number, self.width, held, len(held), size, {"keys": np.array(keys)})


@cache
def code_version() -> str:
    """Hash of the code that computes activations: ours from file to encoder, and the versions of what it stands on."""
    root = Path(speech_adapters.__file__).parent
    digest = hashlib.sha256(f"torch {version('torch')} transformers {version('transformers')}".encode())
    training = (root / "training" / f"{name}.py" for name in ("cache", "cached_dataset", "frozen"))
    own = [root / "data" / "audio.py", root / "data" / "sound_file.py", *training]
    for path in sorted([*own, *(root / "encoders").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def about(encoder: Encoder) -> dict[str, Any]:
    """All of an encoder that shapes its activations."""
    return {
        "encoder": Path(encoder.name).name,
        "fingerprint": encoder.fingerprint,
        "normalize": encoder.normalize,
        "settings": encoder.settings,
        "quantization": encoder.quantization,
        "dtype": str(encoder.model.dtype).removeprefix("torch."),
        "code": code_version(),
    }


def encoder_key(encoder: Encoder) -> str:
    """Hash of :func:`about`, but for the name."""
    told = {key: value for key, value in about(encoder).items() if key != "encoder"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CacheEntry:
    """What is kept of one encoder.

    Attributes:
        path: its folder. about: what :func:`about` told of the encoder.
        taps: utterances by what is kept of them, such as "state-12-fp16".
        size: bytes. used: when it was last written, in seconds since 1970.
        current: made by this version of the code; others are never read again.
    """

    path: Path
    about: Mapping[str, Any]
    taps: Mapping[str, int]
    size: int
    used: float
    current: bool


def list_caches(folder: str | os.PathLike[str] | None = None) -> list[CacheEntry]:
    """What is kept in a folder of activations, by default the toolkit's own, largest first."""
    root = Cache().path if folder is None else Path(folder)
    entries = (_entry(path) for path in sorted(root.glob(f"{PREFIX}*")))
    return sorted((entry for entry in entries if entry is not None), key=lambda entry: -entry.size)


def _entry(path: Path) -> CacheEntry | None:
    """What is kept under a path, but for damaged parts; None where another process has just taken it away."""
    try:
        told = read_json(path / "about.json")
    except InputError:  # written by an older version, or not whole
        told = {}
    taps: Counter[str] = Counter()
    try:
        parts = sorted(path.rglob("*.npz")) if path.is_dir() else []
        for part in parts:
            with suppress(BadZipFile, EOFError, KeyError, ValueError), np.load(part, allow_pickle=False) as index:
                taps[part.parent.name] += len(index["counts"])
        used = max((part.stat().st_mtime for part in parts), default=path.stat().st_mtime)
    except FileNotFoundError:
        return None
    return CacheEntry(path, told, taps, folder_bytes(path), used, told.get("code") == code_version())


def clear_cache(folder: str | os.PathLike[str] | None = None, *, stale_only: bool = False) -> int:
    """Remove the activations in a folder, by default the toolkit's own; returns the bytes that became free.

    Args:
        stale_only: only those that another version of the code made, which are never read again.
    """
    freed = 0
    sweep_folder(Cache().path if folder is None else Path(folder))
    for entry in list_caches(folder):
        if stale_only and entry.current:
            continue
        gone = temporary_of(entry.path)  # whole under its own name, or not there: a part without its index is damage
        try:
            entry.path.replace(gone)
        except FileNotFoundError:  # another process clears it
            continue
        freed += entry.size
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    return freed


def folder_bytes(path: Path) -> int:
    """Bytes of all files under a path, or of the file that it is."""
    files: Iterator[Path] = iter([path]) if path.is_file() else path.rglob("*")
    total = 0
    for file in files:
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # another process took it away
            continue
    return total
