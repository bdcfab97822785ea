"""What is known of audio files without reading them again: the hash of their bytes, and whether they decode.

Both take time for hours of audio, so that answers are remembered in ``audio.sqlite3`` in the user's cache folder, each
beside the file's identity when it was given: size, times of change, inode. A file that was exported again in place has
another identity and is read again. The memory may be deleted at any time; where it cannot be written, nothing is
remembered.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from speech_adapters.data.audio import check_audio_file
from speech_adapters.data.members import Member, located
from speech_adapters.errors import AudioError

_SETTLED = 2.0
"""Seconds after its last change from which a file's answer is remembered: within one tick of the disk's clock it could
change again unnoticed."""

_RULES = 4
"""Raise it when :func:`~speech_adapters.data.audio.check_audio_file` says more than before."""


class Piece(NamedTuple):
    """A part of an audio file: ``offset`` and ``duration`` in seconds, None for all of it; the channel to hear."""

    path: Path
    offset: float = 0.0
    duration: float | None = None
    channel: int | str | None = None


def cache_folder() -> Path:
    """Where the toolkit keeps what it can make again: ``$SPEECH_ADAPTERS_CACHE``, or ``~/.cache/speech_adapters``."""
    return Path(os.environ.get("SPEECH_ADAPTERS_CACHE") or os.path.expanduser("~/.cache/speech_adapters"))


def identity(path: Path) -> str:
    """Tells a file from what it was before: size, times of change and inode; ``missing`` where there is no file.

    The time of the inode's change cannot be set back by copying tools, the file's own can.
    """
    try:
        place = located(path)
        status = os.stat(place.archive if isinstance(place, Member) else place)
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_dev} {status.st_ino}"


def audio_hashes(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file's bytes; ``missing`` where it cannot be read. Reads 1 to 2 GB per second the first time."""
    return _remembered([f"sha256 {os.fspath(path)}" for path in paths], paths, _hash, "hashing audio")


def check_pieces(
    pieces: Sequence[Piece], description: str = "checking audio", silence: bool = False
) -> Iterator[tuple[int, str]]:
    """Decode every piece: the number of each that cannot be used, and why; with ``silence`` those too that hold zeros
    only."""
    keys = [f"check{_RULES} {p.offset!r} {p.duration!r} {p.channel!r} {os.fspath(p.path)}" for p in pieces]
    by_key = dict(zip(keys, pieces, strict=True))
    found = _remembered(keys, [p.path for p in pieces], lambda key, _: _check(by_key[key]), description)
    usable = (_SOUND,) if silence else (_SOUND, _SILENT)
    return ((number, verdict) for number, verdict in enumerate(found) if verdict not in usable)


_SOUND = "sound"
_SILENT = "all samples are zero; record or export it again, or remove the line"


def _check(piece: Piece) -> str:
    try:
        heard = check_audio_file(piece.path, offset=piece.offset, duration=piece.duration, channel=piece.channel)
    except AudioError as error:
        return str(error)
    return _SOUND if heard else _SILENT


def _hash(_: str, path: Path) -> str:
    try:
        with located(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return "missing"


def _remembered(
    keys: Sequence[str], paths: Sequence[Path], compute: Callable[[str, Path], str], description: str
) -> list[str]:
    """``compute(key, path)`` for each pair, in threads, but for what the memory knows of the file as it is now."""
    identities = {path: identity(path) for path in set(paths)}
    wanted = {key: (path, identities[path]) for key, path in zip(keys, paths, strict=True)}
    values = dict(_recall(wanted))
    unknown = [key for key in wanted if key not in values]
    latest = time.time_ns() - int(_SETTLED * 1e9)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        answers = pool.map(lambda key: compute(key, wanted[key][0]), unknown)
        bar = tqdm(answers, description, len(unknown), unit="file", delay=2, leave=False, disable=None)
        values |= zip(unknown, bar, strict=True)
    _learn(
        (key, wanted[key][1], values[key])
        for key in unknown
        if _settled(wanted[key][1], latest) and _worth_remembering(values[key])
    )
    return [values[key] for key in keys]


def _settled(identity: str, latest: int) -> bool:
    numbers = identity.split()
    return len(numbers) == 5 and max(int(numbers[1]), int(numbers[2])) < latest


def _worth_remembering(value: str) -> bool:
    """Hashes and sound files; a fault is looked at again, since it may lie in rights or a disk that comes back."""
    return value in (_SOUND, _SILENT) or (len(value) == 64 and " " not in value)


def _recall(wanted: dict[str, tuple[Path, str]]) -> Iterator[tuple[str, str]]:
    try:
        with closing(_memory()) as memory:
            for key, (_, now) in wanted.items():
                row = memory.execute("SELECT value FROM known WHERE key = ? AND identity = ?", (key, now)).fetchone()
                if row is not None:
                    yield key, str(row[0])
    except (sqlite3.Error, OSError, UnicodeError):
        return


def _learn(rows: Iterable[tuple[str, str, str]]) -> None:
    try:
        with closing(_memory()) as memory, memory:
            memory.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", rows)
    except (sqlite3.Error, OSError, UnicodeError):
        return


def _memory() -> sqlite3.Connection:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    memory = sqlite3.connect(folder / "audio.sqlite3", timeout=10)
    memory.execute("CREATE TABLE IF NOT EXISTS known (key TEXT PRIMARY KEY, identity TEXT, value TEXT) WITHOUT ROWID")
    return memory
