"""Arrays of many utterances in one memory-mapped file: decoded audio, activations of a frozen encoder.

Two files make a store: ``<name>.bin`` holds the arrays end to end in the order in which they were written,
``<name>.npz`` where each begins and ends, its checksum, and whatever else is told of it. The second is written last:
where it is, both are whole. Reading checks what it reads, each array once per process.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from speech_adapters.errors import CheckpointError, InputError, first_line
from speech_adapters.files import atomic
from speech_adapters.locks import locked


class Store:
    """An existing store: ``store[i]`` is the array (rows, width) of utterance i.

    Args:
        base: its path without suffix.
        dtype, width: of the arrays; width 1 reads as (rows,).

    Raises:
        CheckpointError: a file that is missing, cut short or changed; it can be removed and is then made anew.
    """

    def __init__(self, base: Path, dtype: type[np.generic], width: int = 1) -> None:
        self.base, self.width, self.dtype = base, width, np.dtype(dtype)
        try:
            with np.load(_index(base), allow_pickle=False) as arrays:
                self.arrays = {key: arrays[key] for key in arrays.files}
            self.starts, self.counts, self._sums = (self.arrays[key] for key in ("starts", "counts", "sums"))
            expected = int(self.counts.sum()) * width * self.dtype.itemsize
            if _values(base).stat().st_size != expected:
                raise ValueError(f"{expected} bytes expected")
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise self._damaged(error) from error
        self._rows = np.memmap(_values(base), self.dtype, "r", shape=(int(self.counts.sum()), width))
        self._seen = np.zeros(len(self.counts), dtype=bool)

    @staticmethod
    def exists(base: Path) -> bool:
        """Whether a store lies there, whole."""
        return _index(base).is_file()

    @classmethod
    def write(
        cls,
        base: Path,
        dtype: type[np.generic],
        width: int,
        arrays: Iterable[tuple[int, np.ndarray]],
        count: int,
        size: int,
        told: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write a store of ``count`` arrays, which come as (number, array) in any order. Of several processes that
        want the same one, the first writes it and the others wait for it.

        Args:
            size: bytes that they will take, at about; checked against the disk before anything is computed.
            told: further arrays for the index, filled in by the time that ``arrays`` is at its end.

        Raises:
            InputError: a disk that is too small or full, or a folder that cannot be written to.
        """
        try:
            base.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(base.parent).free
        except OSError as error:
            raise InputError(f"{base.parent}: cannot be written to ({error.strerror}); name another folder") from error
        if size > free:
            raise InputError(
                f"{base.parent}: {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; name a folder on "
                "another disk."
            )
        starts, counts, sums = (np.zeros(count, dtype=np.int64) for _ in range(3))
        rows = 0
        with locked(base):
            if cls.exists(base):  # another process was quicker
                return
            with atomic(_values(base)) as file:
                for number, array in arrays:
                    content = np.ascontiguousarray(array, dtype=dtype).tobytes()
                    starts[number], counts[number], sums[number] = rows, len(array), zlib.crc32(content)
                    file.write(content)
                    rows += len(array)
            with atomic(_index(base)) as file:
                np.savez(file, allow_pickle=False, starts=starts, counts=counts, sums=sums, **(told or {}))

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.piece(number, 0, int(self.counts[number]))

    def piece(self, number: int, start: int, length: int) -> np.ndarray:
        """Rows ``start`` to ``start + length`` of an array."""
        first = int(self.starts[number])
        if not self._seen[number]:
            whole = self._rows[first : first + int(self.counts[number])]
            if zlib.crc32(whole.tobytes()) != self._sums[number]:
                raise self._damaged(ValueError(f"array {number} has changed"))
            self._seen[number] = True
        rows = self._rows[first + start : first + start + length]
        return rows[:, 0] if self.width == 1 else rows

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{_values(self.base)}: this cache is damaged ({first_line(error)}); remove it and "
            f"{_index(self.base).name}, they are made anew."
        )


def _values(base: Path) -> Path:
    return base.with_name(base.name + ".bin")


def _index(base: Path) -> Path:
    return base.with_name(base.name + ".npz")
