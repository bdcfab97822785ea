"""Files written whole or not at all, and read with errors that name the file and line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

from speech_adapters.errors import ConfigError, InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD: dict[Path, IO[str]] = {}
"""The locks of this process, by folder."""


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write ``path`` through: it takes the name only once it is whole and on the disk.

    It lies beside ``path`` under a temporary name, so that the rename is one step on any file system; when the block
    raises, nothing is left. What a killed process left there is swept away by the next one that writes ``path``.

    Raises:
        InputError: the folder or the disk does not take it (read-only, full, a file in the way), in one sentence.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free or name another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill, which takes the name ``path`` only once it is whole; when the block raises, nothing is left.

    Raises:
        ConfigError: there is something of this name already.
        InputError: the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path}: exists already; choose a new folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed processes left of ``path``: ``.<name>.<anything>.<pid>.tmp``, files or folders."""
    for left in path.parent.glob(f".{_literal(path.name)}.*.tmp"):
        number = re.fullmatch(r".*\.(\d+)\.tmp", left.name)
        if number is not None and not _runs(int(number[1])):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _literal(name: str) -> str:
    """A file name as a glob pattern that matches itself alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def hold(folder: str | os.PathLike[str]) -> None:
    """Lock a folder until this process ends: two writers would mix what they write. Holding it twice is one lock.

    Raises:
        InputError: another process holds it, or it cannot be written to.
    """
    place = Path(folder).resolve()
    if fcntl is None or place in _HELD:  # Windows has no flock; there nothing keeps two processes apart
        return
    lock = _lock(place)
    if lock is None:
        raise InputError(f"{folder}: another process writes to this folder; wait for it, or name another one")
    _HELD[place] = lock


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], patience: float = 60.0) -> Iterator[None]:
    """Lock a folder for a block, waiting up to ``patience`` seconds for others, processes and threads alike.

    A killed process holds no lock: the system lets go of it.

    Raises:
        InputError: another one held it all the while, or it cannot be written to.
    """
    place, until = Path(folder).resolve(), time.monotonic() + patience
    while fcntl is not None and (lock := _lock(place)) is None:
        if time.monotonic() > until:
            raise InputError(f"{folder}: another process has been writing to it for {patience:g} s; try again later")
        time.sleep(0.005)
    try:
        yield
    finally:
        if fcntl is not None and lock is not None:
            lock.close()


def _lock(place: Path) -> IO[str] | None:
    """The lock of a folder; None where another one has it."""
    try:
        lock = (place / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
    except OSError as error:
        raise InputError(f"{place}: cannot be written to ({error.strerror}); name another folder") from error
    return lock


def write_text(path: str | os.PathLike[str], text: str | Iterable[str]) -> None:
    """Write UTF-8 text, whole or in pieces, by way of :func:`atomic`."""
    with atomic(path) as file:
        for piece in [text] if isinstance(text, str) else text:
            file.write(piece.encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all; see :func:`to_json` for what it may hold."""
    write_text(path, json.dumps(to_json(content), indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. Raises :class:`InputError` where it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{os.fspath(path)}: no such file; check the path, or repeat what writes it") from None
    except json.JSONDecodeError as error:
        message = f"{os.fspath(path)}:{error.lineno}: not JSON ({error.msg}); restore it, or repeat what writes it"
        raise InputError(message) from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, a number of 5,000 digits, a deep nest
        raise InputError(f"{os.fspath(path)}: cannot be read as a UTF-8 JSON file: {error}") from error


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a JSON Lines log, none where it is missing; a last line torn by a killed run is left out."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a UTF-8 file of JSON lines: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise InputError(f"{path}:{number}: not JSON ({error}); remove the line") from error
            break
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: expected a JSON object, got {row!r}; remove the line")
        rows.append(row)
    return rows


def to_json(value: Any) -> Any:
    """Figures, dataclasses, paths, tensors and arrays as plain JSON; NaN and infinities, which it lacks, as null."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # torch and numpy alike
        return to_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
