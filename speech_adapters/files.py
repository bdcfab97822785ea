"""Small text files, written whole or not at all and read with errors that name the file and line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from speech_adapters.errors import InputError


def write_text(path: str | os.PathLike[str], text: str | Iterable[str]) -> None:
    """Write UTF-8 text, whole or in pieces, under a temporary name in the same folder, then rename it: nobody meets
    half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines([text] if isinstance(text, str) else text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{os.fspath(path)}: cannot be read as a UTF-8 JSON file: {error}") from error


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a JSON Lines log, none where it is missing; a last line torn by a killed run is left out."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}:{number}: not JSON ({error.msg}); remove the line") from error
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
