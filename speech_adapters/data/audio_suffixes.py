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


def recordings_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The recordings in a folder and all folders in it, sorted: those that are read, and those of other kinds."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    readable, unreadable = ([f for f in files if f.suffix.lower() in kinds] for kinds in (READABLE, UNREADABLE))
    return readable, unreadable


def unreadable_message(files: Sequence[Path], folder: str | os.PathLike[str]) -> str:
    """What is said of recordings in ``folder`` that are not read, and what to do."""
    return (
        f"{folder}: {counted(len(files), 'recording')} of a kind that is not read, such as {files[0]}; convert to "
        "wav, flac, ogg/opus or mp3 (ffmpeg -i in.m4a out.flac)"
    )
