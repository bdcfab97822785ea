"""Which files of a folder are recordings, by their suffix: those that are read, and those that must be converted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from speech_adapters.errors import counted

READABLE = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
"""Suffixes of audio that is read; a folder is searched for these."""

UNREADABLE = frozenset(".m4a .mp4 .aac .wma .amr .webm .mov .mkv .3gp .ac3 .ape .raw .pcm".split())
"""Suffixes of recordings that libsndfile does not read."""

USUAL = "wav, flac, ogg/opus, mp3"
"""The usual ones, for messages."""


CONVERT = "convert to wav, flac, ogg/opus or mp3 (ffmpeg -i in.m4a out.flac)"
"""What to do with the others."""


def recordings_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The recordings in a folder and all folders in it, sorted: those that are read, and those of other kinds.

    Links to folders are followed, each folder once and by its own name where it lies within; what is hidden, as in
    ``.Trash``, is none.
    """
    files: list[Path] = []
    seen: set[str] = set()
    starts = [folder]
    for start in starts:  # links come behind the folders that they may lead to
        for place, folders, names in os.walk(start):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += (link for name in folders if (link := Path(place, name)).is_symlink())
            files += (Path(place, name) for name in names if not name.startswith("."))
    files = sorted(file for file in files if file.is_file())
    readable, unreadable = ([f for f in files if f.suffix.lower() in kinds] for kinds in (READABLE, UNREADABLE))
    return readable, unreadable


def unreadable_message(files: Sequence[Path], folder: str | os.PathLike[str]) -> str:
    """What is said of recordings in ``folder`` that are not read, and what to do."""
    return f"{folder}: {counted(len(files), 'recording')} of a kind that is not read, such as {files[0]}; {CONVERT}"
