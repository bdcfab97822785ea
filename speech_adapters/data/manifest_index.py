"""The index of a manifest: where each line starts, and the columns that batching and checks of splits need.

``train.jsonl.index`` lies beside ``train.jsonl``. It is memory-mapped, so that a manifest of millions of lines opens
at once, and so that all processes of a machine share what they read of it; a line is read from the manifest itself
when it is asked for. ``speech-adapters manifest index`` makes it, after checking all lines.

The file: 16 bytes (magic, and the length of the description), a description in JSON, and arrays, each at a multiple of
64 bytes. The description holds the SHA-256 of the manifest, by which a manifest that has changed since is noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

from speech_adapters.data.audio_files import audio_hashes
from speech_adapters.errors import ManifestError
from speech_adapters.files import atomic

T = TypeVar("T")

MAGIC, FORMAT = b"SAindex\n", 1
ALIGNMENT = 64


def index_file(manifest: Path) -> Path:
    """Where the index of a manifest lies."""
    return Path(f"{manifest}.index")  # with_name raises for "."


class ManifestIndex:
    """The index of a manifest, opened.

    Attributes:
        durations: (lines,) float64, seconds.
        keys: how many lines have each key.
        values: the distinct values of each column, sorted.
        sha256: of the manifest.

    Raises:
        ManifestError: damaged, of a newer version, or made of another content than the manifest has.
    """

    def __init__(self, manifest: Path) -> None:
        self.manifest, file = manifest, index_file(manifest)
        try:
            with file.open("rb") as opened:
                head = opened.read(16)
                described = json.loads(opened.read(int.from_bytes(head[8:], "little")))
                if head[:8] != MAGIC or described["format"] != FORMAT:
                    raise ValueError("of another version")
                self._data = np.memmap(opened, np.uint8, "r")  # of this file, whatever takes its name
            if len(self._data) != described["bytes"]:
                raise ValueError("cut short")
            self._arrays: dict[str, list[Any]] = described["arrays"]
            self.keys: dict[str, int] = described["keys"]
            self.values: dict[str, list[str]] = described["values"]
            self.sha256: str = described["sha256"]
            self.durations, self._starts, self._sizes = map(self._array, ("durations", "starts", "sizes"))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ManifestError(f"{file}: cannot be used ({error}); {_again(manifest)}") from error
        with contextlib.suppress(OSError):  # one that is missing has changed
            self._lines = os.open(manifest, os.O_RDONLY)  # before the check: what takes its name later is not read
        if audio_hashes([manifest]) != [self.sha256]:
            raise ManifestError(f"{manifest}: has changed since its index was made; {_again(manifest)}")

    def __len__(self) -> int:
        return len(self.durations)

    def __del__(self) -> None:
        if hasattr(self, "_lines"):
            os.close(self._lines)

    def __reduce__(self) -> tuple[type[ManifestIndex], tuple[Path]]:
        return type(self), (self.manifest,)  # another process maps the file itself

    def line(self, number: int) -> bytes:
        """The ``number``-th line, from 0."""
        return os.pread(self._lines, int(self._sizes[number]), int(self._starts[number]))

    def codes(self, key: str) -> np.ndarray:
        """(lines,) places in ``values[key]``, -1 for lines without that key."""
        return self._array(key)

    def _array(self, name: str) -> np.ndarray:
        kind, start, count = self._arrays[name]
        return self._data[start : start + np.dtype(kind).itemsize * count].view(kind)


class IndexedLines(Sequence[T], Generic[T]):
    """Lines of an indexed manifest, each parsed when it is asked for.

    Args:
        parse: what makes an utterance of a line; other processes get it too.
        places: (lines,) those of the index that are meant, in this order; all by default.
    """

    def __init__(self, source: ManifestIndex, parse: Callable[..., T], places: np.ndarray | None = None) -> None:
        self.source, self.parse, self.places = source, parse, places

    def __len__(self) -> int:
        return len(self.source if self.places is None else self.places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> IndexedLines[T]: ...
    def __getitem__(self, index: int | slice) -> T | IndexedLines[T]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        return self.parse(self.source.line(place if self.places is None else int(self.places[place])))

    def __iter__(self) -> Iterator[T]:
        return (self[place] for place in range(len(self)))

    def take(self, places: Sequence[int] | np.ndarray) -> IndexedLines[T]:
        """The lines at these places."""
        chosen = np.asarray(places, dtype=np.int64)
        return IndexedLines(self.source, self.parse, chosen if self.places is None else self.places[chosen])

    @property
    def durations(self) -> np.ndarray:
        """(lines,) seconds."""
        return self.source.durations if self.places is None else self.source.durations[self.places]

    def counts(self, key: str) -> dict[str, int] | None:
        """How many lines have each value of a column; None for a key that is no column."""
        if key not in self.source.values:
            return None
        codes = self.source.codes(key) if self.places is None else self.source.codes(key)[self.places]
        values = self.source.values[key]
        found = np.bincount(codes[codes >= 0], minlength=len(values))
        return {value: int(count) for value, count in zip(values, found, strict=True) if count}

    def all_have(self, keys: Iterable[str]) -> bool:
        """Whether every line of the whole manifest has these keys, and so every line here."""
        return all(self.source.keys.get(key) == len(self.source) for key in keys)


def write_index(
    manifest: Path,
    lines: Iterable[tuple[int, int, str, float, Mapping[str, str | None], Iterable[str]]],
    identify: Callable[[bytes], str],
) -> ManifestIndex:
    """Write the index of a manifest.

    Args:
        lines: of each line its first byte and its length in bytes; its id, duration, columns, and keys that it has.
        identify: the id of a line.

    Raises:
        ManifestError: no lines, or an id that two of them have.
    """
    sha256 = audio_hashes([manifest])[0]  # before the lines: where it changes meanwhile, the index does not fit it
    starts, sizes, durations, ids = array("q"), array("i"), array("d"), array("q")
    codes: dict[str, array[int]] = {}
    tables: dict[str, dict[str, int]] = {}
    keys: Counter[str] = Counter()
    for start, size, name, duration, columns, present in lines:
        starts.append(start)
        sizes.append(size)
        durations.append(duration)
        ids.append(hash(name))  # the names themselves would take most of the memory
        keys.update(present)
        for key, value in columns.items():
            table = tables.setdefault(key, {})
            codes.setdefault(key, array("i")).append(-1 if value is None else table.setdefault(value, len(table)))
    if not starts:
        raise ManifestError(f"{manifest}:1: empty manifest; write one JSON object per line")
    _check_ids(manifest, np.asarray(ids), starts, sizes, identify)
    arrays = {"starts": np.asarray(starts), "sizes": np.asarray(sizes), "durations": np.asarray(durations)}
    values = {key: sorted(table) for key, table in tables.items() if table}
    for key, sorted_values in values.items():
        places = np.empty(len(sorted_values) + 1, np.int32)
        places[[tables[key][value] for value in sorted_values]] = np.arange(len(sorted_values))
        places[-1] = -1
        arrays[key] = places[np.asarray(codes[key])]
    described = {"format": FORMAT, "sha256": sha256, "keys": keys, "values": values}
    with atomic(index_file(manifest)) as file:
        for piece in _pieces(described, arrays):
            file.write(piece)
    return ManifestIndex(manifest)


def _pieces(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    size = 0  # of the head, which says itself where the arrays are
    while True:
        start, where = size, {}
        for name, values in arrays.items():
            where[name] = [values.dtype.str, start, len(values)]
            start += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        text = json.dumps({**described, "bytes": start, "arrays": where}).encode()
        if (needed := -(-(16 + len(text)) // ALIGNMENT) * ALIGNMENT) <= size:
            break
        size = needed
    yield MAGIC + (size - 16).to_bytes(8, "little") + text.ljust(size - 16)
    for values in arrays.values():
        yield values.tobytes().ljust(-(-values.nbytes // ALIGNMENT) * ALIGNMENT, b"\0")


def _check_ids(
    manifest: Path, hashes: np.ndarray, starts: array[int], sizes: array[int], identify: Callable[[bytes], str]
) -> None:
    """No two lines have one id: lines whose ids have one hash are read again."""
    ordered = np.sort(hashes)
    twins = ordered[1:][ordered[1:] == ordered[:-1]]
    first: dict[str, int] = {}
    with manifest.open("rb") as file:
        for place in np.flatnonzero(np.isin(hashes, twins)).tolist():
            file.seek(starts[place])
            name = identify(file.read(sizes[place]))
            if (before := first.setdefault(name, place)) != place:
                raise ManifestError(
                    f"{manifest}: id {name!r} of utterance {place + 1} repeats that of utterance {before + 1}; give "
                    "each line its own id"
                )


def _again(manifest: Path) -> str:
    return f"make it again: speech-adapters manifest index {manifest}"
