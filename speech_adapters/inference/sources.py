"""What a command line names as files on this disk: files, folders, patterns, standard input, and web addresses."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from speech_adapters.data.audio_suffixes import CONVERT, USUAL, recordings_in, unreadable_message
from speech_adapters.errors import AudioError
from speech_adapters.inference.recordings import LeftOut, leave_out


@contextmanager
def local_files(
    inputs: Sequence[str], *, download: bool = False, left_out: LeftOut | None = None
) -> Iterator[list[tuple[str, Path]]]:
    """Name and path of each audio file that ``inputs`` name, in their order; each once.

    An input is a file, a folder (searched with all folders in it), a pattern such as ``calls/*.wav``, ``-`` for
    standard input, or with ``download`` an ``http(s)`` address. The last two are kept in a temporary folder until the
    block ends. ``left_out`` takes in a folder's recordings of a kind that is not read, unless these are all of them.

    Raises:
        AudioError: nothing there, or recordings in a folder that cannot be read: any without ``left_out``, else all of
            them; says what to do.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="speech-adapters-")))
        found: dict[str, Path] = {}
        kept: dict[str, Path] = {}  # those in the temporary folder
        for number, given in enumerate(inputs):
            if given == "-":
                if "stdin" in kept:
                    continue
                if sys.stdin.isatty():
                    raise AudioError("-: standard input is a terminal; pipe an audio file into it.")
                found["stdin"] = kept["stdin"] = _spool(sys.stdin.buffer, folder / "stdin")
                if not kept["stdin"].stat().st_size:
                    raise AudioError("-: standard input is empty; does what is piped into it write audio?")
            elif given.partition("://")[0].lower() in ("http", "https"):
                if not download:
                    raise AudioError(f"{given}: nothing is fetched from the network unless asked; add --download.")
                suffix = PurePosixPath(urlsplit(given).path).suffix
                found[given] = kept[given] = _fetch(given, folder / f"{number}{suffix}")
            else:
                found |= {str(path): path for path in _expand(given, left_out)}
        try:
            yield list(found.items())
        except AudioError as error:
            raise AudioError(_named(str(error), kept)) from error
        finally:
            if left_out is not None:
                left_out |= {name: _named(why, kept).removeprefix(f"{name}: ") for name, why in left_out.items()}


def _named(message: str, kept: Mapping[str, Path]) -> str:
    """A message in which files of the temporary folder are called what a person called them."""
    for name, path in kept.items():
        message = message.replace(str(path), name)
    return message


def _expand(given: str, left_out: LeftOut | None) -> list[Path]:
    path = Path(os.path.expanduser(given))  # Path.expanduser raises for ~x.wav
    if path.is_dir():
        audio, unreadable = recordings_in(path)
        if unreadable and (left_out is None or not audio):
            raise AudioError(f"{unreadable_message(unreadable, given)}, or name the files to hear.")
        if not audio:
            raise AudioError(f"{given}: no audio in this folder ({USUAL}, ...); name another.")
        for other in unreadable:
            leave_out(left_out, str(other), AudioError(f"of a kind that is not read; {CONVERT}"))
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
