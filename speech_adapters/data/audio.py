"""Read, write, resample and check one waveform: 1-D float32 tensors, by default at 16 kHz.

Every encoder of the toolkit eats 16 kHz mono. What cannot be turned into that without a decision of the user's (which
channel? is a cut file wanted?) is an :class:`~speech_adapters.errors.AudioError` that names the file and the remedy.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from speech_adapters.errors import AudioError

SAMPLE_RATE = 16_000
"""Sample rate in Hz of wav2vec 2.0, HuBERT and WavLM (wav2vec 2.0, section 4.2; the others reuse its front-end)."""

MIN_SAMPLES = 400
"""Receptive field in samples of the Base and Large convolutional front-end: 25 ms at 16 kHz give one frame."""

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


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header only.

    Raises:
        AudioError: the file is missing, empty, of an unknown format or cut short.
    """
    with _open(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames)


def read_audio(
    path: str | os.PathLike[str],
    *,
    sample_rate: int = SAMPLE_RATE,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | str | None = None,
    resample: bool = True,
) -> torch.Tensor:
    """Read a file (wav, flac, ogg/opus, mp3) or a piece of it as a float32 tensor of shape ``(samples,)`` in [-1, 1].

    Args:
        path: the file.
        sample_rate: rate in Hz of what is returned.
        offset: where to start, in seconds.
        duration: how much to read, in seconds; all that follows ``offset`` by default.
        channel: of a multi-channel file, the channel's index or ``"mix"`` for the mean of all. There is no default
            since the two sides of a call are two speakers.
        resample: convert other rates with soxr; ``False`` refuses them.

    Raises:
        AudioError: missing, empty, cut short, corrupt, NaN or infinite samples, another rate with ``resample=False``,
            several channels without ``channel``, or less than 25 ms.
    """
    with _open(path) as file:
        rate, channels, frames = file.samplerate, file.channels, file.frames
        if rate != sample_rate and not resample:
            raise AudioError(f"{path}: sampled at {rate} Hz, expected {sample_rate}; pass resample=True or convert it")
        pick = _channel_index(path, channel, channels)
        start, count = _piece(path, offset, duration, rate, frames)
        try:
            if start:  # seeking in Ogg is slow, even to 0
                file.seek(start)
            samples = file.read(count, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise AudioError(f"{path}: cut short or corrupt ({error}); export or download it again") from error
        # The frame count of MP3 and Ogg is an estimate or includes codec padding; elsewhere a short read means damage.
        exact = file.format not in ("MP3", "OGG")
    if len(samples) < count and (exact or len(samples) < count - DURATION_TOLERANCE * rate):
        raise AudioError(
            f"{path}: cut short: {len(samples)} of {count} samples could be read; export or download it again"
        )
    waveform = torch.from_numpy(np.ascontiguousarray(samples.mean(axis=1) if pick == "mix" else samples[:, pick]))
    check_waveform(waveform, path, min_samples=1)
    waveform = _resample(waveform, rate, sample_rate)
    return check_waveform(waveform, path, min_samples=MIN_SAMPLES * sample_rate // SAMPLE_RATE)


def write_audio(
    path: str | os.PathLike[str],
    waveform: torch.Tensor,
    sample_rate: int = SAMPLE_RATE,
    subtype: str | None = None,
) -> None:
    """Write a ``(samples,)`` waveform; the file's suffix names the format (``.wav``, ``.flac``, ``.opus``, ...).

    ``subtype`` is libsndfile's name of the coding (``"PCM_16"``, ``"FLOAT"``, ``"ULAW"``); by default the format's
    own, 16 bit for WAV and FLAC. Integer codings clip samples outside [-1, 1]. The file appears whole or not at all.

    Raises:
        AudioError: an empty or non-finite waveform, or a format or coding that libsndfile does not write.
    """
    path = Path(path)
    check_waveform(waveform, path, min_samples=1)
    format_name = None
    if path.suffix.lower() == ".opus":
        format_name, subtype = "OGG", subtype or "OPUS"
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        samples = waveform.detach().to("cpu", torch.float32).numpy()
        soundfile.write(temporary, samples, sample_rate, subtype=subtype, format=format_name)
        os.replace(temporary, path)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise AudioError(f"{path}: cannot be written ({error}); use a suffix such as .wav or .flac") from error
    finally:
        temporary.unlink(missing_ok=True)


def resample(waveform: torch.Tensor, orig_rate: int, new_rate: int) -> torch.Tensor:
    """Convert a ``(samples,)`` waveform between rates in Hz: soxr (HQ) on the CPU, torchaudio's sinc filter on GPU."""
    if orig_rate == new_rate:
        return waveform
    if waveform.is_cuda:
        import torchaudio

        return torchaudio.functional.resample(waveform, orig_rate, new_rate)
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
    return waveform


def _open(path: str | os.PathLike[str]) -> soundfile.SoundFile:
    path = Path(path)
    if not path.exists():
        raise AudioError(f"{path}: no such audio file; check the path (manifest paths are relative to the manifest)")
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, expected an audio file; name one file in it")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes); export or download it again")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(
            f"{path}: corrupt, or not audio that libsndfile reads ({error}); "
            "export it again as wav, flac, ogg/opus or mp3"
        ) from error
    if file.frames == 0:
        file.close()
        raise AudioError(f"{path}: holds 0 samples; leave it out or export it again")
    if _is_cut(path, file.format):
        file.close()
        raise AudioError(f"{path}: cut short: its header promises more bytes; export or download it again")
    return file


def _is_cut(path: Path, format_name: str) -> bool:
    """Whether a WAV or Ogg file ends before its own structure says so; libsndfile reads such files without a word."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if format_name in ("WAV", "WAVEX") and file.read(4) == b"RIFF":
            position = 12
            while position + 8 <= size:
                file.seek(position)
                name, length = struct.unpack("<4sI", file.read(8))
                if name == b"data":
                    streamed = length >= 0x7FFF_0000  # written to a pipe: the length was not known
                    return not streamed and position + 8 + length > size
                position += 8 + length + length % 2
        elif format_name == "OGG":
            tail = 65_307  # the largest Ogg page (RFC 3533, section 6)
            file.seek(max(0, size - tail))
            page = file.read()
            page = page[max(page.rfind(b"OggS"), 0) :]
            if len(page) < 27 or len(page) < 27 + page[26]:
                return True
            return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    return False


def _channel_index(path: str | os.PathLike[str], channel: int | str | None, channels: int) -> int | str:
    if channel is None:
        if channels > 1:
            raise AudioError(f'{path}: {channels} channels; choose one with channel=0 or average with channel="mix"')
        return 0
    if channel != "mix" and not (isinstance(channel, int) and 0 <= channel < channels):
        raise AudioError(f'{path}: channel={channel!r} does not exist; use 0 to {channels - 1}, or "mix"')
    return channel


def _piece(
    path: str | os.PathLike[str], offset: float, duration: float | None, rate: int, frames: int
) -> tuple[int, int]:
    """First frame and number of frames of the asked piece."""
    total = frames / rate
    if offset < 0 or (duration is not None and duration <= 0):
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
