"""Files written whole or not at all, and read with errors that name the file and line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

from speech_adapters.errors import ConfigError, InputError

_HERE = f"at-{zlib.crc32(platform.node().encode()):08x}"
"""This machine, in names of temporary files: others that share the disk have processes of the same numbers."""


def temporary_of(path: Path) -> Path:
    """Where this thread writes what is to be ``path``: beside it, so that the rename is one step on any file system.
    :func:`sweep` knows by the name what a killed process left."""
    return path.with_name(f".{path.name}.{threading.get_native_id()}.{_HERE}.{os.getpid()}.tmp")


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write ``path`` through: it takes the name only once it is whole and on the disk.

    When the block raises, nothing is left. What a killed process left is swept away by the next one that writes
    ``path``.

    Raises:
        InputError: the folder or the disk does not take it (read-only, full, a file in the way), in one sentence.
    """
    path = Path(path)
    temporary = temporary_of(path)
    try:
        with _refusals_of(path, "free or name another place"):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the name ``path`` only once it is whole; when the block raises, nothing is left.

    With ``replace`` a folder of this name goes, once the new one has its name; a process killed between the two
    renames leaves it as ``.<name>.old``.

    Raises:
        ConfigError: there is something of this name already, without ``replace``.
        InputError: the place cannot be written, or something took the name meanwhile.
    """
    path = Path(path)
    temporary, old = temporary_of(path), path.with_name(f".{path.name}.old")
    try:
        with _refusals_of(path, "choose another place."):
            if path.exists() and (not path.is_dir() or path.is_symlink() or (not replace and any(path.iterdir()))):
                raise ConfigError(f"{path}: exists already; choose a new folder.")
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed process of this number: containers count anew
            temporary.mkdir()
            yield temporary
            if replace and path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.replace(old)
            elif path.exists():
                path.rmdir()  # an empty one; what came meanwhile stays
            try:
                temporary.replace(path)
            except OSError:
                if replace and old.exists():
                    old.replace(path)
                raise
            if replace:
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _refusals_of(path: Path, remedy: str) -> Iterator[None]:
    """Make what the system refuses, whichever library tells it, one sentence of what cannot be written."""
    try:
        yield
    except Exception as error:
        if (refused := _system_error(error)) is None:
            raise
        raise InputError(f"{path}: cannot be written ({refused.strerror or refused}); {remedy}") from error


def _system_error(error: Exception) -> OSError | None:
    """The system's error that an exception is, or that a library made another of: ``torch.save`` raises a RuntimeError
    after it, safetensors writes its number into a message (``os error 28``)."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def sweep(path: Path, *, at_start: bool = False) -> None:
    """Remove what killed processes of this machine left of ``path``: ``.<name>.<anything>.<pid>.tmp``, files or
    folders. ``at_start``: before this process writes there, what is there under its own number is a killed one's:
    containers count anew."""
    _sweep(path.parent, _literal(path.name), at_start)


def sweep_folder(folder: Path, *, at_start: bool = False) -> None:
    """The same of whatever they were writing into a folder."""
    _sweep(folder, "*", at_start)


def _sweep(folder: Path, names: str, at_start: bool) -> None:
    for left in folder.glob(f".{names}.*.tmp"):
        found = re.fullmatch(r".*?(?:\.(at-[0-9a-f]{8}))?\.(\d+)\.tmp", left.name)
        if found is None or found[1] not in (None, _HERE):
            continue
        if not _runs(process := int(found[2])) or (at_start and process == os.getpid()):
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
    """The lines of a JSON Lines log that runs append to, none where it is missing; a last line torn by a killed run is
    left out."""
    return read_json_lines(path, torn_end=True) if Path(path).exists() else []


def read_json_lines(path: str | os.PathLike[str], *, torn_end: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. ``torn_end``: what its last line holds may be no JSON, and is left out then.

    Raises:
        InputError: with the line: a file that cannot be read, a line that is no JSON object.
    """
    path = Path(path)
    try:
        content = path.read_bytes().rstrip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    rows, lines = [], content.split(b"\n") if content else []
    remedy = "remove the line" if torn_end else "get or write the file again, whole"
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode())  # line by line: a torn end may lie within a letter
        except (ValueError, RecursionError) as error:
            if torn_end and number == len(lines):
                break
            raise InputError(f"{path}:{number}: not JSON ({error}); {remedy}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: expected a JSON object, got {row!r}; {remedy}")
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
