"""Bad recordings: name -> (the file's bytes or what writes it, its suffix, what the error says)."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import soundfile

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000)


def encoded(format: str, subtype: str | None = None, samples: np.ndarray = NOISE, rate: int = 16_000) -> bytearray:
    """A file of this container and coding."""
    with io.BytesIO() as buffer:
        soundfile.write(buffer, samples, 48_000 if subtype == "OPUS" else rate, subtype, format=format)
        return bytearray(buffer.getvalue())


def changed(content: bytearray, at: int, new: bytes) -> bytes:
    content[at : at + len(new)] = new
    return bytes(content)


def cut(format: str, part: float, subtype: str | None = None) -> bytes:
    content = encoded(format, subtype)
    return bytes(content[: int(len(content) * part)])


def rate_of(hertz: int) -> bytes:
    return changed(encoded("WAV"), 24, struct.pack("<I", hertz))


def flac_frames(count: int) -> bytes:
    """A FLAC file whose header promises ``count`` samples: 36 bits, the last four of byte 21 and the four after."""
    content = encoded("FLAC")
    content[21] = content[21] & 0xF0 | count >> 32
    return changed(content, 22, struct.pack(">I", count & 0xFFFFFFFF))


def floats(value: float, at: int = 123, subtype: str = "FLOAT", format: str = "WAV") -> bytearray:
    samples = NOISE.copy()
    samples[at] = value
    return encoded(format, subtype, samples)


def damaged_body(format: str, subtype: str | None = None) -> bytes:
    content = encoded(format, subtype)
    return changed(content, len(content) // 2, b"\x55" * 400)


Made = bytes | bytearray | Callable[[], bytes | bytearray]

BAD_AUDIO: dict[str, tuple[Made, str, str]] = {
    "empty": (b"", ".wav", "empty file"),
    "text": (b"this is no audio" * 100, ".wav", "not audio"),
    "a page of a web site": (b"<!DOCTYPE html><html></html>", ".wav", "not audio"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ".flac", "not audio"),
    "zeros": (bytes(4096), ".wav", "not audio"),
    "zeros named mp3": (bytes(4096), ".mp3", "corrupt|cut short|0 samples|not audio"),
    "raw": (NOISE.astype(np.float32).tobytes(), ".raw", r"a \.raw file does not say its rate"),
    "a sample dump": (b"\xf0\x7e\x00\x01" + bytes(300), ".wav", "MIDI sample dump"),
    "only a RIFF mark": (b"RIFF", ".wav", "not audio"),
    "WAV without data": (encoded("WAV")[:36], ".wav", "not audio|0 samples|cut short"),
    "no samples": (lambda: encoded("WAV", samples=NOISE[:0]), ".wav", "0 samples"),
    "no samples in FLAC": (lambda: encoded("FLAC", samples=NOISE[:0]), ".flac", "empty file|0 samples"),
    "no samples in Ogg": (lambda: encoded("OGG", samples=NOISE[:0]), ".ogg", "0 samples|not audio|cut short"),
    "one sample": (lambda: encoded("WAV", samples=NOISE[:1]), ".wav", "1 samples are shorter"),
    "a sample too short": (lambda: encoded("WAV", samples=NOISE[:399]), ".wav", "399 samples are shorter .* 400"),
    "too short at 8 kHz": (lambda: encoded("WAV", samples=NOISE[:150], rate=8_000), ".wav", "samples are shorter"),
    "NaN": (lambda: floats(np.nan), ".wav", "NaN or infinite samples, the first at index 123"),
    "NaN in doubles": (lambda: floats(np.nan, 0, "DOUBLE"), ".wav", "NaN or infinite .* index 0"),
    "infinity": (lambda: floats(np.inf), ".wav", "NaN or infinite"),
    "minus infinity": (lambda: floats(-np.inf), ".wav", "NaN or infinite"),
    "beyond single precision": (lambda: floats(1e300, subtype="DOUBLE"), ".wav", "NaN or infinite"),
    "NaN in AIFF": (lambda: floats(np.nan, format="AIFF"), ".aiff", "NaN or infinite"),
    "NaN in CAF": (lambda: floats(np.nan, format="CAF"), ".caf", "NaN or infinite"),
    "integers as floats": (lambda: encoded("WAV", "FLOAT", NOISE * 32768), ".wav", "look like integers: divide"),
    "integers as doubles": (lambda: encoded("WAV", "DOUBLE", NOISE * 2**31), ".wav", "look like integers"),
    "8-bit integers as floats": (lambda: encoded("WAV", "FLOAT", NOISE * 128), ".wav", "look like integers"),
    "one click": (lambda: floats(1000.0), ".wav", "amplitudes up to 1000"),
    "1 Hz": (lambda: rate_of(1), ".wav", "its header says 1 Hz, expected 4000 to 384000"),
    "3999 Hz": (lambda: rate_of(3_999), ".wav", "3999 Hz, expected"),
    "384001 Hz": (lambda: rate_of(384_001), ".wav", "384001 Hz, expected"),
    "2 GHz": (lambda: rate_of(2_000_000_000), ".wav", "Hz, expected|not audio"),
    "0 Hz": (lambda: rate_of(0), ".wav", "Hz, expected|not audio"),
    "FLAC of 2^36 samples": (lambda: flac_frames(2**36 - 1), ".flac", "promises 68719476735 samples"),
    "FLAC of 2^35 samples": (lambda: flac_frames(2**35), ".flac", "promises 34359738368 samples"),
    "FLAC of a sample more": (lambda: flac_frames(8_001), ".flac", "cut short"),
    "FLAC of twice as much": (lambda: flac_frames(16_000), ".flac", "cut short"),
    "WAV of 1 GB": (lambda: changed(encoded("WAV"), 40, struct.pack("<I", 10**9)), ".wav", "cut short"),
    "W64 of 4 TB": (lambda: changed(encoded("W64"), 96, struct.pack("<q", 2**42)), ".w64", "cut short|damaged|promi"),
    "1,000 channels": (lambda: changed(encoded("WAV"), 22, struct.pack("<H", 1000)), ".wav", "channels|not audio"),
    "0 channels": (lambda: changed(encoded("WAV"), 22, struct.pack("<H", 0)), ".wav", "not audio"),
    "unknown coding": (lambda: changed(encoded("WAV"), 20, struct.pack("<H", 0x1234)), ".wav", "not audio"),
    "7 bits": (lambda: changed(encoded("WAV"), 34, struct.pack("<H", 70)), ".wav", "not audio|cut short|shorter"),
    "stereo": (lambda: encoded("WAV", samples=np.stack([NOISE, -NOISE], 1)), ".wav", '2 channels.*"mix".*manifest'),
    "stereo FLAC": (lambda: encoded("FLAC", samples=np.stack([NOISE, -NOISE], 1)), ".flac", "2 channels"),
    "six channels": (lambda: encoded("WAV", samples=np.stack([NOISE] * 6, 1)), ".wav", "6 channels"),
    "cut WAV": (lambda: cut("WAV", 0.7), ".wav", "cut short"),
    "cut float WAV": (lambda: cut("WAV", 0.7, "FLOAT"), ".wav", "cut short"),
    "cut mu-law WAV": (lambda: cut("WAV", 0.7, "ULAW"), ".wav", "cut short"),
    "cut GSM WAV": (lambda: cut("WAV", 0.5, "GSM610"), ".wav", "cut short"),
    "cut FLAC": (lambda: cut("FLAC", 0.7), ".flac", "cut short"),
    "cut FLAC in its header": (lambda: cut("FLAC", 0.001), ".flac", "not audio"),
    "cut W64": (lambda: cut("W64", 0.7), ".w64", "cut short"),
    "cut AIFF": (lambda: cut("AIFF", 0.7), ".aiff", "cut short"),
    "cut CAF": (lambda: cut("CAF", 0.7), ".caf", "malformed"),
    "cut WAVEX": (lambda: cut("WAVEX", 0.7), ".wav", "cut short"),
    "cut Vorbis": (lambda: cut("OGG", 0.7, "VORBIS"), ".ogg", "cut short|0 samples"),
    "cut Opus": (lambda: cut("OGG", 0.7, "OPUS"), ".opus", "cut short|malformed"),
    "cut Ogg in its header": (lambda: cut("OGG", 0.01, "VORBIS"), ".ogg", "not audio"),
    "damaged FLAC body": (lambda: damaged_body("FLAC"), ".flac", "cut short or corrupt|cut short"),
    "FLAC without its mark": (lambda: changed(encoded("FLAC"), 0, b"junk"), ".flac", "corrupt"),
}  # fmt: skip
