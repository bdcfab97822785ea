"""A sound file opened by libsndfile, its header checked: whole files and members of archives.

libsndfile reads damaged files without a word, allocates what a header promises, guesses the length of some MP3s, takes
the last chunks of a W64 for samples, and lets libmpg123 write to the terminal. What is opened here does none of that.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import soundfile

from speech_adapters.data.containers import end_of_samples, length_fault
from speech_adapters.data.members import Member, located
from speech_adapters.data.mp3 import Endless, read_count
from speech_adapters.errors import AudioError

RATES = (4_000, 384_000)
"""Lowest and highest sample rate in Hz of a recording; headers that say otherwise are damaged."""

AGAIN = "export or download it again"

BLOCK = 1 << 22
"""Samples read at once: what a header promises is never allocated before as much has been decoded."""

_MOST_PER_BYTE = {"FLAC": 6_000, "OGG": 6_000, "CAF": 6_000}
"""Samples that one byte can stand for at the very best: FLAC codes 65,535 equal samples in 11 bytes, Vorbis, Opus and
ALAC thousands of silent ones in a few."""

_MOST_PER_BYTE_ELSEWHERE = 64
"""As above for MP3 (576 samples in 24 bytes) and what is coded sample by sample."""

_UNKNOWN = 1 << 62
"""libsndfile's frame count is above this where the header leaves the length open (FLAC written to a pipe, an
MP3 that was recorded from a stream)."""


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read from front to back: soundfile seeks after each read of a seekable one, which is slow in Ogg
    and fails at the end of a FLAC of unknown length. :meth:`seek` itself works as ever. ``head`` are its first bytes,
    by which the terminal is kept clean while it is decoded. Of an :class:`~speech_adapters.data.mp3.Endless` file the
    header leaves the length open."""

    def __init__(self, path: Path | bytes | BinaryIO | Endless, head: bytes) -> None:
        self.head, self.endless = head, path if isinstance(path, Endless) else None
        with _silent_mp3(head):
            super().__init__(path)

    @property
    def frames(self) -> int:
        return int(super().frames) if self.endless is None else _UNKNOWN

    def close(self) -> None:
        super().close()
        if self.endless is not None:
            self.endless.close()

    def seekable(self) -> bool:
        return False

    def read(self, *arguments: Any, **options: Any) -> Any:
        with _silent_mp3(self.head):
            return super().read(*arguments, **options)

    def seek(self, *arguments: Any, **options: Any) -> Any:
        with _silent_mp3(self.head):
            return super().seek(*arguments, **options)


@contextmanager
def open_sound(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """The opened file, or member of an archive, its header checked."""
    place = located(path)
    if isinstance(place, Member):
        with _open_member(place) as file:
            yield file
        return
    path = place
    if not os.path.exists(path):
        raise AudioError(f"{path}: no such audio file; check the path (manifest paths are relative to the manifest)")
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, expected an audio file; name one file in it")
    if not path.is_file():
        raise AudioError(
            f"{path}: a pipe or device, which is read only once; write what comes from it into a file (transcribe, "
            "classify, embed and verify take it as standard input: -)"
        )
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes); {AGAIN}")
    if path.suffix.lower() == ".raw":
        raise AudioError(
            f"{path}: a .raw file does not say its rate and coding; convert it, for example with "
            "sox -t raw -r 16000 -e signed -b 16 -c 1 in.raw out.wav"
        )
    try:
        with path.open("rb") as start:
            head = start.read(4)
        if head[:2] == b"\xf0\x7e":  # libsndfile reads these, but prints what is wrong with them
            raise AudioError(f"{path}: a MIDI sample dump; export it again as wav, flac, ogg/opus or mp3")
        # names need not be UTF-8
        with _stream(path, os.fsencode(path) if os.name == "posix" else path, head, path.stat().st_size) as file:
            yield file
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


@contextmanager
def _open_member(member: Member) -> Iterator[soundfile.SoundFile]:
    try:
        if member.archive.stat().st_size < member.first + member.size:
            raise AudioError(f"{member}: the archive ends before; it is cut short: {AGAIN}, or import it again")
        with member.open() as part:
            head = part.read(4)
            part.seek(0)
            with _stream(member, part, head, member.size) as file:
                yield file
    except OSError as error:
        raise AudioError(f"{member}: cannot be read ({error.strerror or error}); check its path") from error


@contextmanager
def _stream(
    name: Path | Member, source: Path | bytes | BinaryIO, head: bytes, size: int
) -> Iterator[soundfile.SoundFile]:
    with ExitStack() as stack:
        try:
            file = _Stream(source, head)
            if file.format == "MP3" and not _is_counted(name):
                file.close()
                file = _Stream(Endless(name.open("rb")), head)
            elif file.format == "W64" and (samples := _up_to_samples_end(name, size)).size < size:
                file.close()
                file = _Stream(stack.enter_context(samples.open()), head)
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
            raise AudioError(
                f"{name}: corrupt, or not audio that libsndfile reads ({reason(error)}); "
                "export it again as wav, flac, ogg/opus or mp3"
            ) from error
        stack.enter_context(file)
        _check_header(name, file, size)
        yield file


def _is_counted(name: Path | Member) -> bool:
    with name.open("rb") as file:
        return read_count(file) is not None


def _up_to_samples_end(name: Path | Member, size: int) -> Member:
    with name.open("rb") as file:
        end = end_of_samples(file, size)
    return name._replace(size=end) if isinstance(name, Member) else Member(name, 0, end)


def _check_header(path: Path | Member, file: soundfile.SoundFile, size: int) -> None:
    """Refuse what no recording's header says, before anything is allocated for it."""
    with path.open("rb") as opened:
        fault = length_fault(opened, file.format, size, file.extra_info)
    if fault is not None:
        raise AudioError(f"{path}: {fault}; {AGAIN}")
    if file.frames == 0:
        raise AudioError(f"{path}: holds 0 samples; leave it out or export it again")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise AudioError(
            f"{path}: its header says {file.samplerate} Hz, expected {RATES[0]} to {RATES[1]}; it is damaged: {AGAIN}"
        )
    most = size * _MOST_PER_BYTE.get(file.format, _MOST_PER_BYTE_ELSEWHERE) // file.channels
    if most < file.frames < _UNKNOWN:
        raise AudioError(
            f"{path}: its header promises {file.frames} samples, but {size} bytes hold at most {most}; "
            f"it is cut short or damaged: {AGAIN}"
        )


def count_frames(path: str | os.PathLike[str], file: soundfile.SoundFile, most: float = math.inf) -> int:
    """Samples per channel: the header's count or, where it leaves that open, what is counted by decoding, which ends
    above ``most``."""
    if file.frames < _UNKNOWN:
        return int(file.frames)
    try:
        total, block = 0, max(BLOCK // file.channels, 1)
        while total <= most and (read := len(file.read(block, dtype="float32", always_2d=True))):
            total += read
        file.seek(0)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{path}: cut short or corrupt ({reason(error)}); {AGAIN}") from error
    return total


def reason(error: Exception) -> str:
    """Libsndfile's own words, without the path that soundfile puts before them."""
    return str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error).rstrip(".")


_silencing = threading.Lock()
_silenced = 0
_terminal = -1


@contextmanager
def _silent_mp3(head: bytes) -> Iterator[None]:
    """Keep libmpg123, which decodes what opens with none of the other formats' marks, from writing to the terminal.

    It writes to file descriptor 2 itself, which the whole process shares: the first thread to come turns that away,
    the last to leave turns it back.
    """
    global _silenced, _terminal
    if head in (b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff"):
        yield
        return
    with _silencing:
        if _silenced == 0:
            sys.stderr.flush()
            _terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        _silenced += 1
    try:
        yield
    finally:
        with _silencing:
            _silenced -= 1
            if _silenced == 0:
                os.dup2(_terminal, 2)
                os.close(_terminal)
