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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import soundfile
import soxr

from speech_adapters.data.mp3 import MEMORY
from speech_adapters.data.sound_file import AGAIN, BLOCK, count_frames, open_sound, reason
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
    with open_sound(path) as file:
        return AudioInfo(file.samplerate, file.channels, count_frames(path, file, count_to * file.samplerate))


def audio_channels(path: str | os.PathLike[str]) -> int:
    """How many channels the header says. Raises as :func:`audio_info`."""
    with open_sound(path) as file:
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
    with _open_piece(path, offset, duration, channel, block_seconds=block_seconds) as (rate, blocks):
        converter = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        for samples in blocks:
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

    with _open_piece(path, offset, duration, channel, only_rate) as (rate, blocks):
        parts = list(blocks)
    samples = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])
    return check_waveform(torch.from_numpy(samples), path, min_samples=1), rate


@contextmanager
def _open_piece(
    path: str | os.PathLike[str],
    offset: float,
    duration: float | None,
    channel: int | str | None,
    only_rate: int | None = None,
    block_seconds: float = math.inf,
) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """The rate in Hz of an opened file, and the samples of a piece of it in blocks."""
    with open_sound(path) as file:
        rate = int(file.samplerate)
        if only_rate not in (None, rate):
            raise AudioError(f"{path}: sampled at {rate} Hz, expected {only_rate}; pass resample=True or convert it")
        pick = _channel_index(path, channel, file.channels)
        start, count = _piece(path, offset, duration, rate, count_frames(path, file))
        size = max(round(min(block_seconds * rate, BLOCK // file.channels)), 1)
        yield rate, _blocks(file, path, start, count, pick, size)


def _blocks(
    file: soundfile.SoundFile,
    path: str | os.PathLike[str],
    start: int,
    count: int,
    pick: int | Literal["mix"],
    size: int,
) -> Iterator[np.ndarray]:
    """``count`` samples from ``start`` on of one channel, or of the mean of all, in blocks of up to ``size``."""
    got = 0
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
        raise AudioError(f"{path}: cut short or corrupt ({reason(error)}); {AGAIN}") from error
    # The frame count of MP3 and Ogg is an estimate or includes codec padding; elsewhere a short read means damage.
    exact = file.format not in ("MP3", "OGG")
    if got < count and (exact or got < count - DURATION_TOLERANCE * file.samplerate):
        raise AudioError(f"{path}: cut short: {got} of {count} samples could be read; {AGAIN}")


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
            f"{path}: cannot be written ({reason(error)}); its folder must exist, be yours and have space, and its "
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
    raise no_such_channel(path, channel, channels)


def no_such_channel(path: str | os.PathLike[str], channel: int | str, channels: int) -> AudioError:
    """The error of a channel that a file does not have."""
    use = "there is one channel, 0; name none" if channels == 1 else f'use 0 to {channels - 1}, or "mix"'
    return AudioError(f"{path}: channel={channel!r} does not exist; {use}")


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
