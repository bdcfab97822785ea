"""Kaldi data folders.

Layout::

    wav.scp     recording path         (a command that ends in "|" is not run: write its output to files)
    segments    utterance recording start end      where recordings hold several utterances; end -1: to its end
    text        utterance words ...
    utt2spk     utterance speaker
    utt2lang    utterance language

Kaldi sorts utterances and speakers alike, so that an utterance's name starts with its speaker's: where it does not,
``write`` puts the speaker before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

from speech_adapters.data.formats.names import distinct_names
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.text_files import read_utf8
from speech_adapters.errors import ManifestError
from speech_adapters.files import new_folder, write_text


def read(path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> Manifest:
    """The manifest of a data folder; relative audio paths start at ``root``, by default the working folder, as in
    Kaldi.

    Raises:
        ManifestError: with file and line: a missing file, a line without its columns, a name twice or unknown.
    """
    folder = Path(path)
    recordings = _read(folder / "wav.scp")
    for name, (place, audio) in recordings.items():
        if audio.endswith("|"):
            raise ManifestError(
                f"{folder / 'wav.scp'}{place}: {name} is a command, which is not run; write its output to a file"
            )
    labels = {
        key: _read(folder / file, empty=key == "text") if (folder / file).is_file() else {}
        for key, file in (("text", "text"), ("speaker", "utt2spk"), ("lang", "utt2lang"))
    }
    if (folder / "segments").is_file():
        source, entries = folder / "segments", list(_segments(folder / "segments", recordings))
    else:
        source = folder / "wav.scp"
        entries = [(place, {"id": name, "audio_filepath": audio}) for name, (place, audio) in recordings.items()]
    names = {entry["id"] for _, entry in entries}
    for key, values in labels.items():
        if unknown := next((name for name in values if name not in names), None):
            raise ManifestError(f"{folder}: {key} of {unknown!r}, which is not in {source.name}; run fix_data_dir.sh")
    for _, entry in entries:
        entry |= {key: values[entry["id"]][1] for key, values in labels.items() if entry["id"] in values}
    return Manifest.from_entries(entries, str(source), root or ".")


def write(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write a data folder, with ``segments`` and absolute audio paths.

    Raises:
        ManifestError: a name with spaces, a name twice, or one of several channels, which only a command could choose
            in Kaldi.
    """
    recordings: dict[str, str] = {}
    lines: dict[str, dict[str, str]] = {name: {} for name in ("wav.scp", "segments", "text", "utt2spk", "utt2lang")}
    for utterance, name in zip(manifest, distinct_names(manifest, _name), strict=True):
        where = f"{manifest.name}: utterance {utterance.id!r}"
        if any(symbol.isspace() for symbol in name):
            raise ManifestError(f"{where}: a name with a space, which Kaldi cannot hold; rename it")
        if utterance.channel is not None:
            raise ManifestError(f"{where}: one of several channels, which Kaldi cannot name; write it to a file first")
        audio = str(utterance.audio_filepath)
        if (recording := recordings.get(audio)) is None:
            stem = utterance.audio_filepath.stem.replace(" ", "_")
            numbered = (f"{stem}-{number}" for number in count(2))  # for another folder's file of that name
            recording = next(free for free in chain([stem], numbered) if free not in lines["wav.scp"])
            recordings[audio], lines["wav.scp"][recording] = recording, audio
        end = utterance.offset + utterance.duration
        lines["segments"][name] = f"{recording} {utterance.offset:.5f} {end:.5f}"
        lines["utt2spk"][name] = _speaker(utterance)
        if utterance.text is not None:
            lines["text"][name] = " ".join(utterance.text.split())
        if utterance.lang is not None:
            lines["utt2lang"][name] = utterance.lang
    spoken: dict[str, list[str]] = {}
    for name, speaker in lines["utt2spk"].items():
        spoken.setdefault(speaker, []).append(name)
    lines["spk2utt"] = {speaker: " ".join(sorted(names, key=str.encode)) for speaker, names in spoken.items()}
    with new_folder(path) as folder:
        for file, content in lines.items():
            if content:
                ordered = sorted(content, key=str.encode)  # the order of the C locale, which Kaldi demands
                write_text(folder / file, (f"{name} {content[name]}".rstrip() + "\n" for name in ordered))


def _speaker(utterance: Utterance) -> str:
    return utterance.speaker or utterance.id


def _name(utterance: Utterance) -> str:
    speaker = _speaker(utterance)
    return utterance.id if utterance.id.startswith(speaker) else f"{speaker}-{utterance.id}"


def _read(path: Path, empty: bool = False) -> dict[str, tuple[str, str]]:
    """Name -> (place, rest of the line)."""
    found: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(read_utf8(path, "Kaldi file").split("\n"), 1):
        if not line.strip():
            continue
        name, rest = (*line.split(maxsplit=1), "")[:2]
        if name in found:
            raise ManifestError(f"{path}:{number}: {name!r} stands there twice; keep one line")
        if not rest and not empty:
            raise ManifestError(f"{path}:{number}: {name!r} and nothing after it; complete the line")
        found[name] = (f":{number}", rest.strip())
    if not found:
        raise ManifestError(f"{path}:1: an empty file; each line holds a name and what belongs to it")
    return found


def _segments(path: Path, recordings: dict[str, tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, (place, rest) in _read(path).items():
        parts = rest.split()
        try:
            recording, (start, end) = parts[0], map(float, parts[1:])
        except ValueError:
            raise ManifestError(f"{path}{place}: expected 'utterance recording start end', in seconds") from None
        if recording not in recordings:
            raise ManifestError(f"{path}{place}: {recording!r} is not in wav.scp; run fix_data_dir.sh")
        entry: dict[str, Any] = {"id": name, "audio_filepath": recordings[recording][1], "offset": start}
        yield place, entry if end == -1 else entry | {"duration": round(end - start, 6)}
