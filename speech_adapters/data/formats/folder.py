"""A folder of recordings, and what is said of them: a table, a ``.txt`` file beside each, or their paths.

calls/a.wav calls/b.wav     calls.csv with "file,text,speaker"          a table
calls/a.wav calls/a.txt                                                 text files
calls/anna/happy-01.wav     pattern "{speaker}/{emotion}-{}"            paths
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from speech_adapters.data.audio import channel_of_several
from speech_adapters.data.audio_suffixes import USUAL, recordings_in, unreadable_message
from speech_adapters.data.formats.columns import value_of
from speech_adapters.data.formats.tables import Table, read_table
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.problems import Problems
from speech_adapters.data.text_files import read_utf8
from speech_adapters.errors import AudioError, ManifestError


@dataclass(frozen=True)
class FolderContent:
    """The manifest of a folder, and what a person should know of it.

    Attributes:
        left_out: recordings that nothing is said of.
        unreadable: recordings of kinds that are not read.
        table: what was read beside the folder.
    """

    manifest: Manifest
    left_out: tuple[Path, ...] = ()
    unreadable: tuple[Path, ...] = ()
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
        table: CSV or TSV; names its recordings by path or name, with or without suffix. Paths from elsewhere will do
            where they agree with a recording's in the last folder. Without a table, ``.txt`` files beside the
            recordings are their text, where there are any.
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
    files, unreadable = recordings_in(root)
    if not files and unreadable:
        raise ManifestError(unreadable_message(unreadable, root))
    if not files:
        raise ManifestError(f"{root}: no recordings in it ({USUAL}, ...); check the path")
    told: list[tuple[str, dict[str, Any]]]
    if table is not None:
        source = read_table(table, columns)
        told, name = _rows_with_files(source, root, files, unreadable), str(table)
        known = {entry["audio_filepath"] for _, entry in told}
        left_out = tuple(file for file in files if str(file.absolute()) not in known)
    else:
        source, name = None, str(root)
        told, left_out = _with_text_files(root, files)
    parse = _parser(pattern) if pattern else None
    problems = Problems(name)
    recordings = {Path(entry["audio_filepath"]) for _, entry in told}
    twins, stems = Counter(file.with_suffix("") for file in recordings), Counter(file.stem for file in recordings)
    for place, entry in told:
        path = Path(entry["audio_filepath"]).relative_to(root.absolute()).with_suffix("")
        try:
            if parse is not None:
                entry |= _said_by_path(path, parse, pattern) | entry
            entry |= _chosen_channel(entry, channel)
            if "id" not in entry and "offset" not in entry and stems[path.name] > 1:
                if twins[root.absolute() / path] > 1:
                    raise ManifestError(
                        f"{path.as_posix()} is there under several suffixes; keep one of these files in the folder, "
                        "or name them in a table with a column id"
                    )
                entry["id"] = "-".join(path.parts)  # the name alone, which is the default, would come twice
        except (AudioError, ManifestError) as error:
            problems.add(f"{place}: {error}")
    problems.raise_any()
    manifest = Manifest.from_entries(told, name, root)
    return FolderContent(manifest, left_out, tuple(unreadable), source)


def _rows_with_files(
    table: Table, root: Path, files: list[Path], unreadable: list[Path]
) -> list[tuple[str, dict[str, Any]]]:
    """The table's entries with absolute audio paths."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        path = file.relative_to(root)
        for name in {path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem}:
            by_name.setdefault(_composed(name), []).append(file)
    others = {_composed(file.name): file for file in unreadable}
    problems, found = Problems(str(table.path)), []
    for place, entry in table.entries():
        said = str(entry.get("audio_filepath", ""))
        if _composed(said) not in by_name and not Path(said).is_file():
            said = said.replace("\\", "/")  # as Windows parts folders
        name = _composed(said)
        alike = by_name.get(_composed(Path(said).name), [])
        if os.path.isabs(said) and Path(said).is_file():
            fitting = [file for file in alike if file.samefile(said)]
        else:
            named = by_name.get(name, [])
            exact = [file for file in named if file.relative_to(root).as_posix() == said]
            exact = exact or [file for file in named if _composed(file.relative_to(root).as_posix()) == name]
            fitting = exact or named or _nearest(name, alike)
        match fitting:
            case [file]:
                found.append((place, entry | {"audio_filepath": str(file.absolute())}))
            case []:
                unread, hint = others.get(_composed(Path(said).name)), ""
                if unread is not None:
                    hint = f" of a kind that is read: {unreadable_message([unread], root)}"
                elif alike:
                    other = alike[0].relative_to(root).as_posix()
                    hint = f" ({other} is another folder's); give paths from {root}, or names alone"
                problems.add(f"{place}: {root} has no {said!r}{hint}")
            case several:
                few = ", ".join(file.relative_to(root).as_posix() for file in several[:3])
                problems.add(f"{place}: {said!r} could be {few}; give the path from {root}")
    problems.raise_any()
    return found


def _nearest(said: str, files: list[Path]) -> list[Path]:
    """Those of the files whose folders agree with a path from elsewhere the furthest up, in its last one at least."""
    folders = said.split("/")[-2::-1]
    agreeing = {}
    for file in files:
        pairs = zip(folders, map(_composed, reversed(file.absolute().parent.parts)), strict=False)
        agreeing[file] = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    most = max(agreeing.values(), default=0)
    return [file for file, number in agreeing.items() if number == most > 0]


def _composed(name: str) -> str:
    """The name in the Unicode form of Linux and Windows; disks of Macs give the other, with accents of their own."""
    return unicodedata.normalize("NFC", name)


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


def _said_by_path(path: Path, parse: re.Pattern[str], pattern: str | None) -> dict[str, Any]:
    """What a path tells by the pattern. Raises a ManifestError where it does not fit."""
    if (match := parse.fullmatch(path.as_posix())) is None:
        raise ManifestError(f"{path.as_posix()} does not fit the pattern {pattern}")
    return {key: value_of(key, text) for key, text in match.groupdict().items()}


def _chosen_channel(entry: Mapping[str, Any], channel: int | str | None) -> dict[str, Any]:
    """The channel to hear of a file with several, where the entry does not name one itself."""
    said = entry.get("channel")
    if said == "mix" or type(said) is int:
        return {}
    if (one := channel_of_several(entry["audio_filepath"], channel)) is None:
        return {}
    if said is not None:
        raise ManifestError(f"the channel {said!r} is neither a number nor 'mix'; give that key another name")
    return {"channel": one}


def _parser(pattern: str) -> re.Pattern[str]:
    """``{key}`` stands for that key's value and ``{}`` for anything, neither of them across a slash."""
    parts = re.split(r"\{(\w*)\}", pattern)
    keys = [key for key in parts[1::2] if key]
    if not keys or len(set(keys)) < len(keys) or not all(map(str.isidentifier, keys)):
        raise ManifestError(f"pattern {pattern!r}: name each key once, as a word, as in {{speaker}}/{{emotion}}-{{}}")
    pieces = [
        re.escape(part) if number % 2 == 0 else (f"(?P<{part}>[^/]+?)" if part else "[^/]*?")
        for number, part in enumerate(parts)
    ]
    return re.compile("".join(pieces))
