"""A folder of recordings, and what is said of them: a table, a ``.txt`` file beside each, or their paths.

calls/a.wav calls/b.wav     calls.csv with "file,text,speaker"          a table
calls/a.wav calls/a.txt                                                 text files
calls/anna/happy-01.wav     pattern "{speaker}/{emotion}-{}"            paths
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech_adapters.data.formats.tables import Table, read_table
from speech_adapters.data.manifest import Manifest, Problems, read_utf8
from speech_adapters.errors import ManifestError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Files that count as recordings."""


@dataclass(frozen=True)
class FolderContent:
    """The manifest of a folder, and what a person should know of it.

    Attributes:
        left_out: recordings that nothing is said of.
        table: what was read beside the folder.
    """

    manifest: Manifest
    left_out: tuple[Path, ...] = ()
    table: Table | None = None


def read_folder(
    folder: str | os.PathLike[str],
    *,
    table: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
    pattern: str | None = None,
    channel: int | str | None = None,
) -> FolderContent:
    """The manifest of a folder of recordings.

    Args:
        folder: searched with all folders in it.
        table: CSV or TSV; names its recordings by path or name, with or without suffix. Without one, ``.txt`` files
            beside the recordings are their text, where there are any.
        columns: key of the manifest -> column of the table, where the column's name does not tell.
        pattern: what the paths say, as seen from the folder and without suffix: ``{speaker}/{emotion}-{}``.
        channel: of files with several channels: a number from 0, or "mix".

    Raises:
        ManifestError: no recordings; with the line, a row whose recording is missing or could be several; a path that
            does not fit the pattern.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; give the folder of the recordings")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
    if not files:
        raise ManifestError(f"{root}: no recordings in it ({', '.join(AUDIO_SUFFIXES)}); check the path")
    told: list[tuple[str, dict[str, Any]]]
    if table is not None:
        source = read_table(table, columns)
        told, name = _rows_with_files(source, root, files), str(table)
        known = {entry["audio_filepath"] for _, entry in told}
        left_out = tuple(file for file in files if str(file.absolute()) not in known)
    else:
        source, name = None, str(root)
        told, left_out = _with_text_files(root, files)
    parse = _parser(pattern) if pattern else None
    problems = Problems(str(root))
    stems = Counter(Path(entry["audio_filepath"]).stem for _, entry in told)
    for _, entry in told:
        path = Path(entry["audio_filepath"]).relative_to(root.absolute()).with_suffix("")
        if parse is not None:
            match = parse.fullmatch(path.as_posix())
            if match is None:
                problems.add(f": {path.as_posix()} does not fit the pattern {pattern}")
                continue
            entry |= {key: value for key, value in match.groupdict().items() if key not in entry}
        if channel is not None:
            entry.setdefault("channel", channel)
        if "id" not in entry and stems[path.name] > 1 and "offset" not in entry:
            entry["id"] = "-".join(path.parts)  # the name alone, which is the default, would come twice
    problems.raise_any()
    manifest = Manifest.from_entries(told, name, root)
    return FolderContent(manifest, left_out, source)


def _rows_with_files(table: Table, root: Path, files: list[Path]) -> list[tuple[str, dict[str, Any]]]:
    """The table's entries with absolute audio paths."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        path = file.relative_to(root)
        for name in {path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem}:
            by_name.setdefault(name, []).append(file)
    problems, found = Problems(str(table.path)), []
    for place, entry in table.entries():
        said = str(entry.get("audio_filepath", ""))
        fitting = by_name.get(said) or by_name.get(Path(said).name, [])
        there = os.path.isabs(said) and Path(said).is_file()  # if not, it is another machine's: its name may do
        exact = [f for f in fitting if (f.samefile(said) if there else f.relative_to(root).as_posix() == said)]
        match exact or ([] if there else fitting):
            case [file]:
                found.append((place, entry | {"audio_filepath": str(file.absolute())}))
            case []:
                problems.add(f"{place}: {root} has no {said!r}")
            case several:
                few = ", ".join(file.relative_to(root).as_posix() for file in several[:3])
                problems.add(f"{place}: {said!r} could be {few}; give the path from {root}")
    problems.raise_any()
    return found


def _with_text_files(root: Path, files: list[Path]) -> tuple[list[tuple[str, dict[str, Any]]], tuple[Path, ...]]:
    """Entries of all files, or of those with a text where some have one; and the files left out."""
    texts = {file: file.with_suffix(".txt") for file in files if file.with_suffix(".txt").is_file()}
    told = []
    for file in texts or files:
        entry: dict[str, Any] = {"audio_filepath": str(file.absolute())}
        if file in texts:
            entry["text"] = " ".join(read_utf8(texts[file], "transcript").split())
        told.append((f": {file.relative_to(root)}", entry))
    return told, tuple(file for file in files if texts and file not in texts)


def _parser(pattern: str) -> re.Pattern[str]:
    """``{key}`` stands for that key's value and ``{}`` for anything, neither of them across a slash."""
    parts = re.split(r"\{(\w*)\}", pattern)
    keys = [key for key in parts[1::2] if key]
    if not keys or len(set(keys)) < len(keys):
        raise ManifestError(f"pattern {pattern!r}: name each key once, such as {{speaker}}/{{emotion}}-{{}}")
    pieces = [
        re.escape(part) if number % 2 == 0 else (f"(?P<{part}>[^/]+?)" if part else "[^/]*?")
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(pieces))
