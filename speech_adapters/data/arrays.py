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


def read_arrays(path: Path, *names: str) -> list[np.ndarray[Any, Any]]:
    """The arrays of these names of an ``.npz`` file, or the one array of a ``.npy`` file.

    Raises:
        InputError: a missing or damaged file, or one that lacks an array.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path.")
    try:
        if path.suffix == ".npy":
            return [np.load(path, mmap_mode="r", allow_pickle=False)]  # mapped: never more than the file holds
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except KeyError as error:
        raise InputError(f"{path}: lacks the array {' or '.join(names)} ({error.args[0]}).") from error
    except _DAMAGE as error:
        raise InputError(
            f"{path}: no numpy file of {' and '.join(names)}, or a damaged one ({error}); write it again."
        ) from error
