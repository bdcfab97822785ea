"""Locks between processes: one writer of a folder or file at a time."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from speech_adapters.errors import InputError, InUseError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD: dict[Path, IO[str]] = {}
"""The locks of this process, by folder."""


def hold(folder: str | os.PathLike[str]) -> None:
    """Lock a folder until :func:`release`, or until this process ends: two writers would mix what they write.

    Holding it twice is one lock. File systems without locks, and Windows, have none.

    Raises:
        InUseError: another process holds it.
        InputError: it cannot be written to.
    """
    place = Path(folder).resolve()
    if fcntl is None or place in _HELD:
        return
    try:
        lock = (Path(folder) / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}); name another folder") from error
    try:
        _flock(lock)
    except BlockingIOError:
        lock.close()
        raise InUseError(
            f"{folder}: another process writes to this folder; wait for it, or name another one"
        ) from None
    _HELD[place] = lock


def held() -> list[Path]:
    """The folders that this process has locked by :func:`hold`, as they were named there; the last one comes first."""
    return [Path(lock.name).parent for lock in reversed(_HELD.values())]


def release(folder: str | os.PathLike[str]) -> None:
    """Give back what :func:`hold` locked."""
    if (lock := _HELD.pop(Path(folder).resolve(), None)) is not None:
        lock.close()


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], seconds: float = math.inf) -> Iterator[None]:
    """Let one writer of ``path`` at a time into the block, of all threads and processes; the others wait.

    The lock is a file beside ``path``, gone afterwards; a killed process leaves it, but not locked. File systems
    without locks, and Windows, have none.

    Raises:
        InputError: still locked after ``seconds``, or a folder that cannot be written to.
    """
    path = Path(path)
    if fcntl is None:
        yield
        return
    lock = _lock_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(lock, path, seconds)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free or name another place"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        file.close()


def is_locked(path: Path) -> bool:
    """Whether somebody may be writing ``path`` under :func:`locked`."""
    return _lock_of(path).exists()


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _lock(lock: Path, path: Path, seconds: float) -> IO[str]:
    started = time.monotonic()
    told = False
    while True:
        file = lock.open("w")
        try:
            _flock(file)
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        except FileNotFoundError:  # the one before has taken it away: this file is no lock any more
            pass
        except BlockingIOError:
            waited = time.monotonic() - started
            if waited > seconds:
                file.close()
                raise InputError(f"{path}: another process has been writing it for {seconds:.0f} s; end it") from None
            if waited > 5 and not told:
                warnings.warn(f"{path}: another process is writing it; waiting for it", stacklevel=3)
                told = True
            time.sleep(0.02)
        file.close()


def _flock(file: IO[str]) -> None:
    """Lock an open file, where its file system has locks. Raises BlockingIOError where another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass
