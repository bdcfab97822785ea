"""Read, write, resample and check one waveform: 1-D float32 tensors, by default at 16 kHz.

Every encoder of the toolkit eats 16 kHz mono. What cannot be turned into that without a decision of the user's (which
channel? is a cut file wanted?) is an :class:`~speech_adapters.errors.AudioError` that names the file and the remedy.

Samples are returned as they stand in the file, full scale at 1: nothing is clipped or set to another level, so that
training, evaluation and serving hear the same. Peaks above 1 (floating-point mixes, decoded MP3) stay; those above
:data:`MAX_PEAK` are integers written as floating point and are refused.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import soundfile
import soxr

from speech_adapters.data.containers import end_of_samples, length_fault
from speech_adapters.data.members import Member, located
from speech_adapters.data.mp3 import MEMORY, Endless, read_count
from speech_adapters.errors import AudioError

if TYPE_CHECKING:  # a million lines are read and checked without it
    import torch

SAMPLE_RATE = 16_000
"""Sample rate in Hz of wav2vec 2.0, HuBERT and WavLM (wav2vec 2.0, section 4.2; the others reuse its front-end)."""

MIN_SAMPLES = 400
"""Receptive field in samples of the Base and Large convolutional front-end: 25 ms at 16 kHz give one frame."""

MAX_PEAK = 16.0
"""Highest amplitude of a usable waveform, 24 dB above full scale: 16-bit integers written as floating point reach
32768, and an encoder without normalisation hears noise."""

RATES = (4_000, 384_000)
"""Lowest and highest sample rate in Hz of a recording; headers that say otherwise are damaged."""

DURATION_TOLERANCE = 0.05
"""Seconds by which a file may fall short of an asked duration: rounding in manifests, padding of lossy codecs."""


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file's header says. ``frames`` are samples per channel."""

    sample_rate: int
    channels: int
    frames: int

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate


def audio_info(path: str | os.PathLike[str], *, count_to: float = math.inf) -> AudioInfo:
    """Read the header; of a stream whose header leaves the length open, decode all of it to count the samples.

    Args:
        count_to: seconds after which counting ends: what such a stream is then said to last is a little more.

    Raises:
        AudioError: the file is missing, empty, of an unknown format or cut short.
    """
    with _open(path) as file:
        return AudioInfo(file.samplerate, file.channels, _frames(path, file, count_to * file.samplerate))


def audio_channels(path: str | os.PathLike[str]) -> int:
    """How many channels the header says. Raises as :func:`audio_info`."""
    with _open(path) as file:
        return int(file.channels)


def channel_of_several(path: str | os.PathLike[str], channel: int | str | None) -> int | str | None:
    """``channel`` where the file has several, None where it has one, which needs no choice.

    Raises:
        AudioError: a channel that the file does not have; or as :func:`audio_info`.
    """
    if channel is None or (channels := audio_channels(path)) == 1:
        return None
    return _channel_index(path, channel, channels)


def read_audio(
    path: str | os.PathLike[str],
    *,
    sample_rate: int = SAMPLE_RATE,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | str | None = None,
    resample: bool = True,
) -> torch.Tensor:
    """Read a file (wav, flac, ogg/opus, mp3) or a piece of it as a float32 tensor of shape ``(samples,)``.

    Args:
        path: the file, or a member of a tar (:mod:`~speech_adapters.data.members`). A name with accents is found in
            either Unicode form (composed, as Linux and Windows write it, or decomposed, as Macs do).
        sample_rate: rate in Hz of what is returned.
        offset: where to start, in seconds.
        duration: how much to read, in seconds; all that follows ``offset`` by default.
        channel: of a multi-channel file, the channel's index or ``"mix"`` for the mean of all. There is no default
            since the two sides of a call are two speakers.
        resample: convert other rates with soxr; ``False`` refuses them.

    Raises:
        AudioError: missing, empty, cut short, corrupt, NaN or infinite samples, integers written as floating point,
            another rate with ``resample=False``, several channels without ``channel``, or less than 25 ms.
    """
    waveform, rate = _decode(path, offset, duration, channel, None if resample else sample_rate)
    waveform = _resample(waveform, rate, sample_rate)
    return check_waveform(waveform, path, min_samples=MIN_SAMPLES * sample_rate // SAMPLE_RATE)


def check_audio_file(
    path: str | os.PathLike[str],
    *,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | str | None = None,
) -> bool:
    """Decode a file or a piece of it, at its own rate, as a check that :func:`read_audio` will give it.

    Returns: whether there is any sound in it: silence may be wanted, samples that are all zero hardly are.

    Raises:
        AudioError: as there.
    """
    waveform, rate = _decode(path, offset, duration, channel)
    if len(waveform) * SAMPLE_RATE < MIN_SAMPLES * rate:
        check_waveform(waveform, path, min_samples=-(-MIN_SAMPLES * rate // SAMPLE_RATE))
    return bool(waveform.any())


def stream_audio(
    path: str | os.PathLike[str],
    *,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | str | None = None,
    block_seconds: float = 10.0,
) -> Iterator[torch.Tensor]:
    """What :func:`read_audio` gives at 16 kHz, sample by sample, as consecutive blocks ``(samples,)``.

    A recording of any length takes the memory of one block; other rates are converted by one soxr stream, without
    seams. Arguments and errors are those of :func:`read_audio`; what is wrong with samples is known only when their
    block is reached.
    """
    import torch

    total = 0
    with _open_piece(path, offset, duration, channel) as (file, start, count, pick):
        rate = int(file.samplerate)
        converter = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        for samples in _blocks(file, path, start, count, pick, max(round(block_seconds * rate), 1)):
            check_waveform(torch.from_numpy(samples), f"{path} (from {total / SAMPLE_RATE:.1f} s)", min_samples=1)
            block = samples if converter is None else converter.resample_chunk(samples)
            total += len(block)
            if len(block):
                yield torch.from_numpy(block)
        if converter is not None and len(block := converter.resample_chunk(np.empty(0, np.float32), last=True)):
            total += len(block)
            yield torch.from_numpy(block)
    if total < MIN_SAMPLES:
        check_waveform(torch.zeros(total), path)


def _decode(
    path: str | os.PathLike[str],
    offset: float,
    duration: float | None,
    channel: int | str | None,
    only_rate: int | None = None,
) -> tuple[torch.Tensor, int]:
    """(samples,) of a piece as they stand in the file, checked, and their rate in Hz."""
    import torch

    with _open_piece(path, offset, duration, channel, only_rate) as (file, start, count, pick):
        parts = list(_blocks(file, path, start, count, pick, _BLOCK))
        rate = int(file.samplerate)
    samples = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])
    return check_waveform(torch.from_numpy(samples), path, min_samples=1), rate


@contextmanager
def _open_piece(
    path: str | os.PathLike[str],
    offset: float,
    duration: float | None,
    channel: int | str | None,
    only_rate: int | None = None,
) -> Iterator[tuple[soundfile.SoundFile, int, int, int | Literal["mix"]]]:
    """The opened file, the piece's first frame and number of frames, and the channel to hear."""
    with _open(path) as file:
        rate = int(file.samplerate)
        if only_rate not in (None, rate):
            raise AudioError(f"{path}: sampled at {rate} Hz, expected {only_rate}; pass resample=True or convert it")
        pick = _channel_index(path, channel, file.channels)
        yield file, *_piece(path, offset, duration, rate, _frames(path, file)), pick


def _blocks(
    file: soundfile.SoundFile,
    path: str | os.PathLike[str],
    start: int,
    count: int,
    pick: int | Literal["mix"],
    size: int,
) -> Iterator[np.ndarray]:
    """``count`` samples from ``start`` on of one channel, or of the mean of all, in blocks of up to ``size``."""
    size, got = max(min(size, _BLOCK // file.channels), 1), 0
    try:
        if start:  # seeking in Ogg is slow, even to 0
            lead = min(start, MEMORY if file.format == "MP3" else 0)
            file.seek(start - lead)
            file.read(lead, dtype="float32", always_2d=True)
        while got < count:
            samples = file.read(min(count - got, size), dtype="float32", always_2d=True)
            if not len(samples):
                break
            got += len(samples)
            yield samples.mean(axis=1) if pick == "mix" else np.ascontiguousarray(samples[:, pick])
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise AudioError(f"{path}: cut short or corrupt ({_reason(error)}); {_AGAIN}") from error
    # The frame count of MP3 and Ogg is an estimate or includes codec padding; elsewhere a short read means damage.
    exact = file.format not in ("MP3", "OGG")
    if got < count and (exact or got < count - DURATION_TOLERANCE * file.samplerate):
        raise AudioError(f"{path}: cut short: {got} of {count} samples could be read; {_AGAIN}")


def pack(waveform: torch.Tensor) -> tuple[torch.Tensor, float]:
    """A ``(samples,)`` waveform in half the memory: int16 samples and the scale that :func:`unpack` multiplies with.

    Audio of 16-bit files comes back bit for bit; any other is exact to 16 bits of its own peak, however loud or quiet.
    """
    import torch

    whole = waveform * 32768
    if torch.equal(whole, whole.round()) and whole.min() >= -32768 and whole.max() <= 32767:
        return whole.to(torch.int16), 1 / 32768
    scale = float(waveform.abs().max()) / 32767
    return (waveform.double() / scale).round().to(torch.int16), scale


def unpack(samples: torch.Tensor, scale: float) -> torch.Tensor:
    """The ``(samples,)`` float32 waveform of what :func:`pack` gave."""
    return samples.float().mul_(scale)


def write_audio(
    path: str | os.PathLike[str],
    waveform: torch.Tensor,
    sample_rate: int = SAMPLE_RATE,
    subtype: str | None = None,
    loud: Literal["refuse", "scale"] = "refuse",
) -> None:
    """Write a ``(samples,)`` waveform; the file's suffix names the format (``.wav``, ``.flac``, ``.opus``, ...).

    ``subtype`` is libsndfile's name of the coding (``"PCM_16"``, ``"FLOAT"``, ``"ULAW"``); by default the format's
    own, 16 bit for WAV and FLAC. The file appears whole or not at all.

    Args:
        loud: what to do with peaks above 1, which all codings but floating point would clip: "refuse" them, or "scale"
            the waveform to a peak of 1.

    Raises:
        AudioError: an empty or non-finite waveform, one that is too loud, or a format or coding that libsndfile does
            not write.
    """
    import torch

    path = Path(path)
    check_waveform(waveform, path, min_samples=1)
    peak = float(waveform.detach().abs().max())
    if peak > 1 and subtype not in ("FLOAT", "DOUBLE"):
        if loud == "refuse":
            raise AudioError(
                f"{path}: peaks of {peak:.3g} do not fit its coding, which would clip them; write it with "
                'subtype="FLOAT", or with loud="scale"'
            )
        waveform = waveform / peak
    format_name = None
    if path.suffix.lower() == ".opus":
        format_name, subtype = "OGG", subtype or "OPUS"
    temporary = path.with_name(f".{path.stem}.{threading.get_native_id()}{path.suffix}")  # no process has another's
    try:
        samples = waveform.detach().to("cpu", torch.float32).numpy()
        with soundfile.SoundFile(temporary, "w", sample_rate, 1, subtype, format=format_name) as file:
            for start in range(0, len(samples), 65_536):  # libsndfile's Vorbis encoder crashes on minutes at once
                file.write(samples[start : start + 65_536])
        os.replace(temporary, path)
    except (soundfile.SoundFileError, TypeError, ValueError, OSError) as error:
        raise AudioError(
            f"{path}: cannot be written ({_reason(error)}); its folder must exist, be yours and have space, and its "
            "suffix name a format, such as .wav or .flac"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def resample(waveform: torch.Tensor, orig_rate: int, new_rate: int) -> torch.Tensor:
    """Convert a ``(samples,)`` waveform between rates in Hz: soxr (HQ) on the CPU, torchaudio's sinc filter on GPU."""
    import torch

    if orig_rate == new_rate:
        return waveform
    if waveform.is_cuda:
        import torchaudio

        resampled: torch.Tensor = torchaudio.functional.resample(waveform, orig_rate, new_rate)
        return resampled
    return torch.from_numpy(soxr.resample(waveform.detach().to(torch.float32).numpy(), orig_rate, new_rate))


_resample = resample  # `read_audio` has an argument of that name


def check_waveform(
    waveform: torch.Tensor, source: str | os.PathLike[str], min_samples: int = MIN_SAMPLES
) -> torch.Tensor:
    """Return ``waveform`` if an encoder can use it: 1-D, floating point, finite, at least ``min_samples`` long.

    ``source`` (a path, or words such as "waveform 3 of the batch") opens the error message. Silence is allowed.

    Raises:
        AudioError: otherwise.
    """
    import torch

    if waveform.ndim != 1:
        raise AudioError(
            f"{source}: shape {tuple(waveform.shape)}, expected (samples,); pick a channel, such as waveform[0]"
        )
    if not waveform.is_floating_point():
        raise AudioError(f"{source}: {waveform.dtype} samples, expected floating point in [-1, 1]; scale and convert")
    if len(waveform) == 0:
        raise AudioError(f"{source}: holds 0 samples; leave it out or export it again")
    if len(waveform) < min_samples:
        raise AudioError(
            f"{source}: {len(waveform)} samples are shorter than the encoder's receptive field of {min_samples} "
            "samples; leave it out or pad it with silence"
        )
    if not torch.isfinite(waveform).all():
        bad = int((~torch.isfinite(waveform)).nonzero()[0])
        raise AudioError(f"{source}: NaN or infinite samples, the first at index {bad}; export it again")
    if (peak := float(waveform.detach().abs().max())) > MAX_PEAK:
        raise AudioError(
            f"{source}: amplitudes up to {peak:g}, expected floating point in [-1, 1]; these look like integers: "
            "divide by full scale (32768 for 16 bit) and write it again"
        )
    return waveform


_AGAIN = "export or download it again"

_BLOCK = 1 << 22
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
def _open(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
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
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes); {_AGAIN}")
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
            raise AudioError(f"{member}: the archive ends before; it is cut short: {_AGAIN}, or import it anew")
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
                f"{name}: corrupt, or not audio that libsndfile reads ({_reason(error)}); "
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
        raise AudioError(f"{path}: {fault}; {_AGAIN}")
    if file.frames == 0:
        raise AudioError(f"{path}: holds 0 samples; leave it out or export it again")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise AudioError(
            f"{path}: its header says {file.samplerate} Hz, expected {RATES[0]} to {RATES[1]}; it is damaged: {_AGAIN}"
        )
    most = size * _MOST_PER_BYTE.get(file.format, _MOST_PER_BYTE_ELSEWHERE) // file.channels
    if most < file.frames < _UNKNOWN:
        raise AudioError(
            f"{path}: its header promises {file.frames} samples, but {size} bytes hold at most {most}; "
            f"it is cut short or damaged: {_AGAIN}"
        )


def _frames(path: str | os.PathLike[str], file: soundfile.SoundFile, most: float = math.inf) -> int:
    """Samples per channel: the header's count or, where it leaves that open, what is counted by decoding, which ends
    above ``most``."""
    if file.frames < _UNKNOWN:
        return int(file.frames)
    try:
        total, block = 0, max(_BLOCK // file.channels, 1)
        while total <= most and (read := len(file.read(block, dtype="float32", always_2d=True))):
            total += read
        file.seek(0)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{path}: cut short or corrupt ({_reason(error)}); {_AGAIN}") from error
    return total


def _reason(error: Exception) -> str:
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


def _channel_index(path: str | os.PathLike[str], channel: int | str | None, channels: int) -> int | Literal["mix"]:
    if channel is None:
        if channels > 1:
            raise AudioError(
                f'{path}: {channels} channels; choose one with channel=0 or average with channel="mix" '
                '(in a manifest: the key "channel")'
            )
        return 0
    if channel == "mix":
        return "mix"
    if isinstance(channel, int) and not isinstance(channel, bool) and 0 <= channel < channels:
        return channel
    use = "there is one, which needs no channel" if channels == 1 else f'use 0 to {channels - 1}, or "mix"'
    raise AudioError(f"{path}: channel={channel!r} does not exist; {use}")


def _piece(
    path: str | os.PathLike[str], offset: float, duration: float | None, rate: int, frames: int
) -> tuple[int, int]:
    """First frame and number of frames of the asked piece."""
    total = frames / rate
    if not 0 <= offset < float("inf") or (duration is not None and not 0 < duration < float("inf")):
        raise AudioError(f"{path}: offset={offset} and duration={duration} must be at least 0 and above 0 seconds")
    start = round(offset * rate)
    if start >= frames:
        raise AudioError(f"{path}: offset={offset} s lies behind its end at {total:.3f} s; correct the offset")
    if duration is None:
        return start, frames - start
    if offset + duration > total + DURATION_TOLERANCE:
        raise AudioError(
            f"{path}: {offset + duration:.3f} s asked (offset + duration) but it ends at {total:.3f} s; "
            "it is cut short, or the manifest's duration is wrong"
        )
    return start, min(max(round(duration * rate), 1), frames - start)
