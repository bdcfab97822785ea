"""Others' tables of scores, trials and predictions: CSV, TSV or JSON Lines, with columns of many names.

A column is found by the names that tools give it, or named by the user (``id=filename``); numbers from 1 mean a table
without a header.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speech_adapters.data.formats.columns import NAMES, check_distinct
from speech_adapters.data.formats.separators import without_separator
from speech_adapters.data.text_files import is_workbook, read_utf8
from speech_adapters.errors import ConfigError, InputError

SUFFIXES = (".csv", ".tsv", ".jsonl")
"""Of files that are tables."""

Names = Mapping[str, tuple[str, ...]]
"""Key -> the names that tools give its column; case does not count."""

UTTERANCE = (
    "id",
    *NAMES["id"],
    "filename",
    "file_name",
    "file",
    "path",
    "audio_filepath",
    "audio",
    "utterance",
    "name",
)
"""Names of the column that says which utterance a row is about."""


def is_table(path: Path) -> bool:
    """Whether a file is read as a table, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def said_columns(pairs: Sequence[str], *known: Names) -> dict[str, str]:
    """``("id=filename", ...)`` as key -> column.

    Raises:
        ConfigError: not of this form, or a key that none of the tables has.
    """
    said = {}
    keys = list(dict.fromkeys(key for names in known for key in names))
    for pair in pairs:
        key, equals, column = (piece.strip() for piece in pair.partition("="))
        if key not in keys or not equals or not column:
            raise ConfigError(f"columns: {pair!r}; write {keys[0]}=COLUMN, the keys are {', '.join(keys)}.")
        said[key] = column
    return said


def read_records(
    path: Path, what: str, known: Names, needed: Sequence[str], said: Mapping[str, str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line and the entry of each row, under our keys; empty cells and unknown columns are left out.

    Args:
        what: of a file, for messages: "the scores".
        needed: keys that a table must have.
        said: key -> column, before what is known; of keys that are not ``known`` nothing is taken. None where nobody
            can say it: messages then have columns renamed.

    Raises:
        InputError: with ``file:line``: no such file, no table, a column that is missing or could be two keys.
    """
    table = path.suffix.lower() in (".csv", ".tsv")
    rows: Iterator[tuple[int, dict[str, Any]]]
    rows = _csv_rows(path, what, said or {}) if table else _json_rows(path, what, needed)
    found: dict[str, str] | None = None
    for number, row in rows:
        if found is None:  # of the first row, which for a table is its header
            found = _match(list(row), known, needed, said, f"{path}:{number}", loose=not table)
            if table:
                continue
        absent = (None, "") if table else (None,)
        yield number, {key: row[name] for key, name in found.items() if row.get(name) not in absent}


def _match(
    names: list[str], known: Names, needed: Sequence[str], columns: Mapping[str, str] | None, where: str, loose: bool
) -> dict[str, str]:
    found, said = {}, columns or {}
    for key, usual in known.items():
        if key in said:
            if said[key] not in names and not loose:
                raise InputError(f"{where}: no column {said[key]!r} for {key}; there are {', '.join(names)}")
            found[key] = said[key]
            continue
        fitting = [name for name in names if name.strip().lower() in (key, *usual) and name not in said.values()]
        exact = [name for name in fitting if name == key]
        if len(fitting) > 1 and not exact:
            remedy = f"rename one to {key}" if columns is None else f"say which: --columns {key}={fitting[0]}"
            raise InputError(f"{where}: {' and '.join(map(repr, fitting))} could both be {key}; {remedy}")
        if fitting or loose:  # JSON names what is missing by line
            found[key] = (exact or fitting or [key])[0]
    if missing := [key for key in needed if key not in found]:
        absent = " or ".join(", ".join(map(repr, missing)).rsplit(", ", 1))
        renamed, which = ("the one it is", "it is") if len(missing) == 1 else ("those they are", "they are")
        flag = ",".join(f"{key}=COLUMN" for key in missing)
        remedy = f"rename {renamed}" if columns is None else f"--columns {flag} says which {which}"
        raise InputError(f"{where}: no column {absent}; there are {', '.join(names)}: {remedy}")
    return found


def _csv_rows(path: Path, what: str, said: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The header as a row of its own, then each row that is not blank; Excel's ``sep=;`` in front does not count."""
    text, delimiter = without_separator(_text(path, what))
    if delimiter is None:
        first = text.partition("\n")[0]
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                bare = bool(said) and all(column.isdecimal() for column in said.values())
                names = [str(i + 1) for i in range(len(row))] if bare else [name.strip() for name in row]
                check_distinct(names, f"{path}:{reader.line_num}")
                yield reader.line_num, {name: name for name in names}
                if not bare:
                    continue
            if len(row) > len(names):
                raise InputError(
                    f"{path}:{reader.line_num}: {len(row)} cells, and {len(names)} columns; check its separators"
                )
            yield reader.line_num, dict(zip(names, (cell.strip() for cell in row), strict=False))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a table ({error}); check its delimiter") from error
    if names is None:
        yield 1, {}


def _json_rows(path: Path, what: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path, what).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: not JSON ({error}); each line must be a JSON object") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected a JSON object with {', '.join(needed)}, got {row!r}")
            yield number, row


def _text(path: Path, what: str) -> str:
    if is_workbook(path):
        raise InputError(f"{path}: {what}, a workbook, cannot be read; save its sheet as CSV (UTF-8)")
    return read_utf8(path, what.removeprefix("the "))
