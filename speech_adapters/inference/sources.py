"""What a command line names as files on this disk: files, folders, patterns, standard input, and web addresses."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from speech_adapters.errors import AudioError

READABLE = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
"""Suffixes of audio that is read; a folder is searched for these."""

UNREADABLE = frozenset(".m4a .mp4 .aac .wma .amr .webm .mov .mkv .3gp .ac3 .ape .raw .pcm".split())
"""Suffixes of recordings that libsndfile does not read."""


@contextmanager
def local_files(inputs: Sequence[str], *, download: bool = False) -> Iterator[list[tuple[str, Path]]]:
    """Name and path of each audio file that ``inputs`` name, in their order; each once.

    An input is a file, a folder (searched with all folders in it), a pattern such as ``calls/*.wav``, ``-`` for
    standard input, or with ``download`` an ``http(s)`` address. The last two are kept in a temporary folder until the
    block ends.

    Raises:
        AudioError: nothing there, or a folder with recordings that cannot be read; says what to do.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="speech-adapters-")))
        found: dict[str, Path] = {}
        for number, given in enumerate(inputs):
            if given == "-":
                if sys.stdin.isatty():
                    raise AudioError("-: standard input is a terminal; pipe an audio file into it.")
                found["stdin"] = _spool(sys.stdin.buffer, folder / "stdin")
            elif given.partition("://")[0].lower() in ("http", "https"):
                if not download:
                    raise AudioError(f"{given}: nothing is fetched from the network unless asked; add --download.")
                suffix = PurePosixPath(urlsplit(given).path).suffix
                found[given] = _fetch(given, folder / f"{number}{suffix}")
            else:
                found |= {str(path): path for path in _expand(given)}
        yield list(found.items())


def _expand(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if unreadable := [file for file in inside if file.suffix.lower() in UNREADABLE]:
            raise AudioError(
                f"{unreadable[0]}: recordings of this kind are not read"
                + (f" ({len(unreadable)} in {given})" if len(unreadable) > 1 else "")
                + "; convert them to wav, flac, ogg/opus or mp3 (ffmpeg -i in out.flac), or name the files to hear."
            )
        if not (audio := [file for file in inside if file.suffix.lower() in READABLE]):
            raise AudioError(f"{given}: no audio in this folder (wav, flac, ogg/opus, mp3, ...); name another.")
        return audio
    if glob.has_magic(given) and not os.path.lexists(path):
        if not (matching := sorted(map(Path, glob.glob(str(path), recursive=True)))):
            raise AudioError(f"{given}: no file matches this pattern; check it.")
        return matching
    return [path]


def _spool(stream: IO[bytes], path: Path) -> Path:
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file)
    return path


def _fetch(address: str, path: Path) -> Path:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return _spool(answer, path)
    except (OSError, ValueError) as error:  # an URLError is an OSError
        raise AudioError(f"{address}: cannot be fetched ({getattr(error, 'reason', error)}); check it.") from error
