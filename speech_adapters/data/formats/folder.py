"""A folder of recordings, and what is said of them: a table, a file of text beside each, or their paths.

calls/a.wav calls/b.wav     calls.csv with "file,text,speaker"          a table
calls/a.wav calls/a.txt                                                 text files, subtitles (.srt, .vtt), labels
calls/a.wav calls/a.TextGrid            tiers "anna,ben"                tiers of Praat's, or of ELAN's (.eaf)
calls/anna/happy-01.wav     pattern "{speaker}/{emotion}-{}"            paths
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from speech_adapters.data.audio import DURATION_TOLERANCE, audio_info, channel_of_several
from speech_adapters.data.audio_suffixes import READABLE, UNREADABLE, USUAL, recordings_in, unreadable_message
from speech_adapters.data.formats import label_studio
from speech_adapters.data.formats import tiers as tier_files
from speech_adapters.data.formats.columns import value_of, zeros_lost
from speech_adapters.data.formats.tables import Table, read_table
from speech_adapters.data.formats.timed_texts import SUFFIXES, read_texts
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.manifest_lines import usual_id
from speech_adapters.data.problems import Problems
from speech_adapters.errors import AudioError, ManifestError, counted


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
    tiers: Sequence[str] = (),
    texts: str | None = None,
    channel: int | str | None = None,
) -> FolderContent:
    """The manifest of a folder of recordings.

    Args:
        folder: searched with all folders in it.
        table: CSV or TSV; names its recordings by path or name, with or without suffix. Paths from elsewhere will do
            where they agree with a recording's in the last folder, and so will the suffix of before a conversion,
            and Label Studio's addresses (:mod:`~.label_studio`).
            Without a table, ``.txt`` files beside the recordings are their text, where there are any; subtitles and
            Audacity's labels divide them into pieces (:mod:`~.timed_texts`).
        columns: key of the manifest -> column of the table, where the column's name does not tell.
        tiers: of Praat's or ELAN's files beside the recordings (:mod:`~.tiers`), which are read in
            place of other texts: each interval with a text is an utterance. Of several, those that a file has; the
            speakers are the participants that it names, or the tiers, but for what the pattern says.
        texts: which are read where there are several beside a recording, as Whisper writes them: txt, srt or vtt.
        pattern: what the paths say, as seen from the folder and without suffix: ``{speaker}/{emotion}-{}``.
        channel: of files with several channels: a number from 0, or "mix".

    Raises:
        ManifestError: no recordings; with the line, a row whose recording is missing or could be several; a path that
            does not fit the pattern; a tier that no file has, a file that has none of them.
    """
    if table is not None and tiers:
        raise ManifestError(
            "tiers are those of Praat's or ELAN's files beside the recordings; give them or a table, not both"
        )
    if texts is not None and (table is not None or tiers):
        raise ManifestError("texts are files beside the recordings; give them, a table or tiers, one of the three")
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
        told, left_out = _with_tiers(root, files, tiers) if tiers else _with_text_files(root, files, texts)
    parse = _parser(pattern) if pattern else None
    paths = [Path(entry["audio_filepath"]).relative_to(root.absolute()).with_suffix("") for _, entry in told]
    misfits = [path for path in dict.fromkeys(paths) if parse is not None and not parse.fullmatch(path.as_posix())]
    if misfits:
        raise ManifestError(
            f"{root}: {len(misfits):,} of {counted(len(set(paths)), 'path')} do not fit the pattern {pattern}, such "
            f"as {misfits[0].as_posix()}; the pattern is of the whole path, and {{}} stands for anything within a name"
        )
    problems = Problems(name)
    recordings = {Path(entry["audio_filepath"]) for _, entry in told}
    twins, stems = Counter(file.with_suffix("") for file in recordings), Counter(file.stem for file in recordings)
    begun: Counter[str] = Counter()
    for path, (place, entry) in zip(paths, told, strict=True):
        try:
            if parse is not None:
                said = _said_by_path(path, parse)
                entry |= entry | said if tiers else said | entry  # a tier may be a role, and the path know the person
            entry |= _chosen_channel(entry, channel)
            if "id" not in entry and stems[path.name] > 1:
                if (table is None or "offset" not in entry) and twins[root.absolute() / path] > 1:
                    raise ManifestError(
                        f"{path.as_posix()} is there under several suffixes; keep one of these files in the folder, "
                        "or name them in a table with a column id"
                    )
                entry["id"] = usual_id("-".join(path.parts), entry)  # the name alone would come twice
            if table is None and "end" in entry:  # two may begin at once
                entry["id"] = entry.get("id") or usual_id(path.name, entry)
                begun[entry["id"]] += 1
                entry["id"] += f"-{begun[entry['id']]}" if begun[entry["id"]] > 1 else ""
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
        for name in _names(path):
            by_name.setdefault(name, []).append(file)
    others = {_composed(file.name): file for file in unreadable}
    problems, found = Problems(str(table.path)), []
    for place, entry in table.entries():
        cell = said = str(entry.get("audio_filepath", ""))
        if addressed := label_studio.names_of(cell):
            said = next((name for name in addressed if _names(Path(name)) & by_name.keys()), addressed[-1])
        elif _composed(said) not in by_name and not Path(said).is_file():
            said = said.replace("\\", "/")  # as Windows parts folders
        name = _composed(said)
        bare = said if Path(said).suffix.lower() not in READABLE | UNREADABLE else str(Path(said).with_suffix(""))
        alike = by_name.get(_composed(Path(said).name)) or by_name.get(_composed(Path(bare).name), [])
        if os.path.isabs(said) and Path(said).is_file():
            fitting = [file for file in alike if file.samefile(said)]
        else:
            named = by_name.get(name) or by_name.get(_composed(bare), [])  # of before a conversion, such as to FLAC
            exact = [file for file in named if file.relative_to(root).as_posix() == said]
            exact = exact or [file for file in named if _composed(file.relative_to(root).as_posix()) == name]
            fitting = exact or named or _nearest(name, alike)
        match fitting:
            case [file]:
                found.append((place, entry | {"audio_filepath": str(file.absolute())}))
            case []:
                unread, hint = others.get(_composed(Path(said).name)), zeros_lost(said, by_name)
                if unread is not None:
                    hint = f" of a kind that is read: {unreadable_message([unread], root)}"
                elif alike:
                    other = alike[0].relative_to(root).as_posix()
                    hint = f" ({other} is another folder's); give paths from {root}, or names alone"
                elif addressed:
                    hint = f", which Label Studio has as {cell}; put it there under that name"
                problems.add(f"{place}: {root} has no {said!r}{hint}")
            case several:
                few = ", ".join(file.relative_to(root).as_posix() for file in several[:3])
                problems.add(f"{place}: {said!r} could be {few}; give the path from {root}")
    problems.raise_any()
    return found


def _names(path: Path) -> set[str]:
    """What a recording is called: its path and its name, with and without suffix."""
    return set(map(_composed, (path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem)))


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


def _with_text_files(
    root: Path, files: list[Path], texts: str | None
) -> tuple[list[tuple[str, dict[str, Any]]], tuple[Path, ...]]:
    """Entries of all files, or of those with a text where some have one; and the files left out."""
    problems, told, left_out = Problems(str(root)), [], []
    suffixes = SUFFIXES if texts is None else (f".{texts}",)
    for file in files:
        audio = {"audio_filepath": str(file.absolute())}
        beside = _beside(file, suffixes)
        if not beside:
            left_out.append(file)
        elif len(beside) > 1:
            names, kinds = " and ".join(path.name for path in beside), {path.suffix.lower()[1:] for path in beside}
            choice = f"say which with --texts {' or '.join(sorted(kinds))}, or " if len(kinds) > 1 else ""
            problems.add(f": {file.relative_to(root)}: {names} hold what is said; {choice}keep one of them")
        else:
            where = f": {beside[0].relative_to(root)}"
            try:
                said = list(read_texts(beside[0]))
                told += [(f"{where}{place}", audio | entry) for place, entry in _placed(file, beside[0], said)]
            except (AudioError, ManifestError) as error:
                problems.add(f": {error}")
                continue
            if not said:
                problems.add(f"{where}: no text in it; remove it, and also the recording if nothing is said in it")
    problems.raise_any()
    if len(left_out) == len(files) and texts is not None:
        raise ManifestError(f"{root}: no recording has a .{texts} beside it, under its own name")
    if len(left_out) == len(files):
        return [(f": {file.relative_to(root)}", {"audio_filepath": str(file.absolute())}) for file in files], ()
    return told, tuple(left_out)


def _with_tiers(
    root: Path, files: list[Path], tiers: Sequence[str]
) -> tuple[list[tuple[str, dict[str, Any]]], tuple[Path, ...]]:
    """Entries of the intervals in these tiers, and the files left out, which have none beside them."""
    problems, told, left_out = Problems(str(root)), [], []
    missing = set(tiers)
    for file in files:
        beside = _beside(file, tier_files.SUFFIXES)
        if not beside:
            left_out.append(file)
        elif len(beside) > 1:
            names = " and ".join(path.name for path in beside)
            problems.add(f": {file.relative_to(root)}: {names} hold what is said; keep one of them")
        else:
            where, audio = f": {beside[0].relative_to(root)}", {"audio_filepath": str(file.absolute())}
            try:
                known, said = tier_files.read_intervals(beside[0], tiers)
                missing -= known
                told += [(f"{where}{place}", audio | entry) for place, entry in _placed(file, beside[0], said)]
            except (AudioError, ManifestError) as error:
                problems.add(f": {error}")
    problems.raise_any()
    if len(left_out) == len(files):
        raise ManifestError(f"{root}: no recording has a {tier_files.KINDS} beside it, under its own name")
    if missing:
        names = ", ".join(map(repr, sorted(missing)))
        raise ManifestError(f"{root}: no {tier_files.KINDS} has the tier {names}; check the name")
    return told, tuple(left_out)


def _beside(file: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of text beside a recording, however their suffixes are written."""
    names = (file.with_suffix(written) for each in suffixes for written in (each, each.lower(), each.upper()))
    found: list[Path] = []
    for path in names:
        if path.is_file() and not any(path.samefile(other) for other in found):
            found.append(path)
    return found


def _placed(file: Path, source: Path, texts: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The texts of a recording, those with times looked at.

    Raises:
        ManifestError: one that ends after the recording.
    """
    length = audio_info(file).duration if any("end" in entry for _, entry in texts) else 0.0
    for place, entry in texts:
        if "end" in entry and entry["end"] > length + DURATION_TOLERANCE:
            raise ManifestError(
                f"{source}{place}: ends at {entry['end']:.2f} s, and {file.name} at {length:.2f} s; correct the "
                "time, or put the text beside the recording that it belongs to"
            )
        yield place, entry


def _said_by_path(path: Path, parse: re.Pattern[str]) -> dict[str, Any]:
    """What a path tells by the pattern."""
    match = parse.fullmatch(path.as_posix())
    return {key: value_of(key, text) for key, text in match.groupdict().items()} if match else {}


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
