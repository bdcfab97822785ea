"""One utterance for a page: its sound and its log-mel spectrogram as data that the page carries."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speech_adapters.data.audio import SAMPLE_RATE, read_audio

MOST_SECONDS = 30.0  # of one utterance's audio in a page
_MELS, _FFT, _RANGE = 64, 400, 80.0  # bands, samples of a frame (25 ms; one every 10 ms), decibels shown


@dataclass(frozen=True)
class Sound:
    """``audio`` (FLAC) and ``spectrogram`` (PNG) as data addresses, or a ``note`` that says why there are none."""

    audio: str = ""
    spectrogram: str = ""
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.audio) + len(self.spectrogram)


def sound_of(
    path: Path,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | str | None = None,
    bytes_left: int = 12_000_000,
) -> Sound:
    """The first 30 s of an utterance; without sound where the file cannot be read or ``bytes_left`` is too little."""
    import soundfile

    try:
        waveform = read_audio(path, offset=offset, duration=duration and min(duration, MOST_SECONDS), channel=channel)
    except (OSError, ValueError) as error:  # the reader's own errors, and those of names that no file can have
        return Sound(note=f"no audio: {str(error).replace(str(path), path.name)}")
    samples = waveform[: int(MOST_SECONDS * SAMPLE_RATE)].clamp(-1.0, 1.0).numpy()
    flac = io.BytesIO()
    soundfile.write(flac, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    sound = Sound(_address("audio/flac", flac.getvalue()), _address("image/png", _png(log_mel(samples))))
    return sound if sound.size <= bytes_left else Sound(note="no audio: the page is at its size limit")


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey values (64 mel bands, frames), highest band first: black is the loudest, white 80 dB below it or less."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    bank = mel_filter_bank(_FFT // 2 + 1, _MELS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    padded = np.pad(samples, (0, max(0, _FFT - len(samples))))
    window = window_function(_FFT, "hann")
    power = spectrogram(
        padded, window, _FFT, _FFT * 2 // 5, power=2.0, mel_filters=bank, log_mel="dB", db_range=_RANGE
    )
    grey: NDArray[np.uint8] = np.clip((power.max() - power) / _RANGE * 255, 0, 255)[::-1].astype(np.uint8)
    return grey


def _png(grey: NDArray[np.uint8]) -> bytes:
    """Grey values (rows, columns) as a PNG image (ISO/IEC 15948): header, one compressed block, end."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, columns = grey.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    lines = zlib.compress(np.pad(grey, ((0, 0), (1, 0))).tobytes(), 9)  # each line begins with its filter: none
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
