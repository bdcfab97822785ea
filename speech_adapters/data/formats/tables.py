"""CSV and TSV tables: a row per utterance, under a header or, with numbered columns, without one."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from speech_adapters.data.formats.columns import check_distinct, match_columns, value_of
from speech_adapters.data.formats.separators import without_separator
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.manifest_lines import relative_audio
from speech_adapters.data.text_files import is_workbook, read_utf8
from speech_adapters.errors import ManifestError
from speech_adapters.files import write_text

_WORKBOOK = "a workbook, expected CSV or TSV; save the sheet as CSV (UTF-8)"
_TIMES = "a text with times, expected CSV or TSV; put it beside its recording, named alike, and leave --table out"
_NO_TABLES = {
    ".xlsx": _WORKBOOK,
    ".xls": _WORKBOOK,
    ".ods": _WORKBOOK,
    ".json": "JSON, expected CSV or TSV; export the table as CSV",
    ".jsonl": "JSON lines, expected CSV or TSV; a manifest of NeMo's is taken by speech-adapters manifest import nemo",
    ".srt": _TIMES,
    ".vtt": _TIMES,
}
"""Suffixes of what is often given as a table -> what is said of it."""

_QUOTED = re.compile('".*"', re.DOTALL)


@dataclass(frozen=True)
class Table:
    """The rows of a table, each with its place in the file (``:17``), and what its columns are.

    Attributes:
        columns: key of the manifest -> name of the column.
        kept: the other columns, which become keys of their own names.
        left_out: columns that are called like a key which another column holds.
    """

    path: Path
    columns: dict[str, str]
    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, str]], ...]

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, entry) of each row, the keys those of a manifest; empty cells are left out."""
        for place, row in self.rows:
            entry: dict[str, Any] = {name: row[name] for name in self.kept if row[name]}
            for key, name in self.columns.items():
                if row[name]:
                    entry[key] = value_of(key, row[name])
            yield place, entry


def read_table(
    path: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    optional: Mapping[str, str] | None = None,
) -> Table:
    """Read a table whose columns tabs, bars, semicolons or commas separate: the one that Excel's ``sep=;`` names, else
    the first of them that every line has as often as the others.

    Args:
        columns: key -> column, for those that their names do not tell (:data:`~.columns.NAMES`); numbers from 1 mean
            a table without a header.
        optional: the same, of columns that need not be there.

    Raises:
        ManifestError: with the line: a file that is no table, a row with more or fewer cells than the header, a
            column that is missing or could be two keys.
    """
    path, said = Path(path), dict(columns or {})
    kind = _NO_TABLES.get(path.suffix.lower())
    if kind is not None and (kind != _WORKBOOK or is_workbook(path)):
        raise ManifestError(f"{path}: {kind}")
    lines = _rows(path, read_utf8(path, "table"))
    if not lines:
        raise ManifestError(f"{path}:1: an empty table; it needs a header and a row per utterance")
    if said and all(name.isdecimal() for name in said.values()):
        names = [str(number) for number in range(1, len(lines[0][1]) + 1)]
        found = match_columns(names, said, f"{path}:1")
    else:
        names = [name.strip() for name in lines.pop(0)[1]]
        check_distinct(names, f"{path}:1")
        said |= {key: name for key, name in (optional or {}).items() if name in names}
        found = match_columns(names, said, f"{path}:1")
        if not lines:
            raise ManifestError(f"{path}:1: a header but no rows; it needs a row per utterance")
    for number, row in lines:
        if len(row) != len(names):
            raise ManifestError(f"{path}:{number}: {len(row)} cells, and {len(names)} columns; check its separators")
    rows = tuple((f":{n}", dict(zip(names, (cell.strip() for cell in row), strict=True))) for n, row in lines)
    others = [name for name in names if name and name not in found.values()]
    left_out = tuple(name for name in others if name in found)
    return Table(path, found, tuple(name for name in others if name not in found), left_out, rows)


def _styles(delimiters: str) -> Iterator[tuple[str, int]]:
    """Delimiters, with what quotes are: beside tabs and bars they belong to the text, as tools write it; only where
    the rows or the header make no sense so, they are a spreadsheet's, around line ends or around all cells."""
    for delimiter in delimiters:
        if delimiter in "\t|":
            yield delimiter, csv.QUOTE_NONE
        yield delimiter, csv.QUOTE_MINIMAL


def _rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """(line, cells) of each line that is not blank."""
    tried: list[list[tuple[int, list[str]]]] = []
    problem: csv.Error | None = None
    text, said = without_separator(text)
    for delimiter, quoting in _styles(said or "\t|;,"):
        style: Any = {"quoting": quoting}
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **style)
        try:
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
        except csv.Error as error:
            problem = error
            continue
        even = rows and len({len(row) for _, row in rows}) == 1 and len(rows[0][1]) > 1
        if delimiter in "\t|" and quoting == csv.QUOTE_MINIMAL:  # two quotes of the text would swallow what is between
            even = even and not any(delimiter in cell for _, row in rows for cell in row)
        if even and not (quoting == csv.QUOTE_NONE and all(map(_QUOTED.fullmatch, rows[0][1]))):
            return rows
        tried.append(rows)
    if not tried:
        raise ManifestError(f"{path}: not a table ({problem}); check its quotes") from problem
    return max(tried, key=lambda rows: len(rows[0][1]) if rows else 0)


def read(path: str | os.PathLike[str], *, columns: Mapping[str, str] | None = None, root: Any = None) -> Manifest:
    """The manifest of a table; relative audio paths start at ``root``, by default the table's folder."""
    table = read_table(path, columns)
    return Manifest.from_entries(table.entries(), str(path), root or table.path.parent)


def write(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write CSV, or TSV where the name ends in ``.tsv``: the manifest's keys, audio paths as in a manifest."""
    path = Path(path)
    keys = [
        f.name for f in fields(Utterance) if f.name != "extra" and any(u.get(f.name) is not None for u in manifest)
    ]
    keys += sorted({key for utterance in manifest for key in utterance.extra} - set(keys))
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    if path.suffix.lower() == ".tsv":
        writer = csv.writer(out, "excel-tab", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    writer.writerow(keys)
    for utterance in manifest:
        row = {key: utterance.get(key) for key in keys} | {
            "audio_filepath": relative_audio(utterance.audio_filepath, path.parent)
        }
        try:
            writer.writerow(["" if row[key] is None else row[key] for key in keys])
        except csv.Error as error:
            raise ManifestError(
                f"{path}: utterance {utterance.id!r}: a cell with a tab ({error}); write CSV"
            ) from error
    write_text(path, out.getvalue())
