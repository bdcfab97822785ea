"""Numpy's files, read without pickles: any damage is one :class:`~speech_adapters.errors.InputError`."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from speech_adapters.errors import InputError

_DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, SyntaxError,
    EOFError, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip
"""What numpy and zipfile raise of damaged files, with the MemoryError of a header that promises too much."""

_MOST_PER_BYTE = 100
"""Bytes that one of a compressed file may stand for."""


def read_arrays(path: Path, *names: str) -> list[np.ndarray[Any, Any]]:
    """The arrays of these names of an ``.npz`` file, or the one array of a ``.npy`` file.

    Raises:
        InputError: a missing or damaged file, one that lacks an array, or one that unpacks to no end.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path.")
    try:
        if path.suffix == ".npy":
            return [np.load(path, mmap_mode="r", allow_pickle=False)]  # mapped: never more than the file holds
        _check_expansion(path)
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except KeyError as error:
        raise InputError(f"{path}: lacks the array {' or '.join(names)} ({error.args[0]}).") from error
    except _DAMAGE as error:
        raise InputError(
            f"{path}: no numpy file of {' and '.join(names)}, or a damaged one ({error}); write it again."
        ) from error


def _check_expansion(path: Path) -> None:
    """No array of figures that differ shrinks so much: what would fill the memory is found in the archive's index."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > 1_000_000 + _MOST_PER_BYTE * path.stat().st_size:
        raise ValueError(f"{unpacked / 1e6:.0f} MB in {path.stat().st_size / 1e6:.2f} MB: all the same figure")
