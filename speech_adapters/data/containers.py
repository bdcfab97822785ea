"""Whether an audio file is as long as its own structure says: libsndfile reads one that is not without a word.

cut short         it ends before the samples that its header counts: a broken copy, a full disk
counts too few    samples stand behind those that its header counts: a recorder that was stopped before it wrote the
                  last header, a WAV above 4 GiB, whose count starts again at 0, several MP3s in one file
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

from speech_adapters.data.mp3 import follows, read_count

_CHUNKS = {
    "WAV": (12, "<4sI", b"data", 0, 2),
    "WAVEX": (12, "<4sI", b"data", 0, 2),
    "RF64": (12, "<4sI", b"data", 0, 2),
    "AIFF": (12, ">4sI", b"SSND", 0, 2),
    "CAF": (8, ">4sq", b"data", 0, 1),
    "W64": (40, "<16sq", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", -24, 8),
}
"""Where a container's first chunk stands, its name and length, the name of the chunk of samples, what is added to the
length for the bytes after the two, and what they are padded to."""

_PLACEHOLDERS, _NEAR = (1 << 31, 1 << 32), 1 << 16
"""Lengths up to so many bytes off these stand for one that was not known: the file was written to a pipe."""

_JUNK = 8_000
"""Bytes behind the samples that may be anything: a second of telephone speech, the least that is missed."""


_CUT = re.compile(r"seems to be (?:a )?truncated|\b(?:BODY : |Data length )(\d+) \(?should be (\d+)", re.IGNORECASE)
"""How libsndfile's log says of formats that are rare (VOC, MAT4, SVX, WVE, PAF) that it has shortened what the header
counts. AVR, MPC2K and MAT5 it shortens without a word, and IRCAM, PVF and SD2 count nothing."""


def length_fault(file: BinaryIO, format_name: str, size: int, log: str = "") -> str | None:
    """What is wrong with the length of an open file of ``size`` bytes in libsndfile's format of this name, None where
    nothing is, or nothing is said; ``log`` is what libsndfile said as it opened it."""
    if format_name == "OGG":
        return "cut short: its last page is not whole" if _last_page_is_cut(file, size) else None
    if format_name == "MP3":
        return _fault_of_mp3(file, size)
    samples = None
    if format_name in _CHUNKS:
        samples = _chunk_of_samples(file, format_name, size)
    elif format_name == "AU":
        samples = _samples_of_au(file)
    elif format_name == "NIST":
        samples = _samples_of_sphere(file)
    elif any(not found[1] or int(found[2]) < int(found[1]) for found in _CUT.finditer(log)):
        return "cut short: its header promises more bytes"
    if samples is None:
        return None
    if samples.stop > size:
        return "cut short: its header promises more bytes"
    if format_name in _CHUNKS and size - samples.stop > _JUNK and not _may_be_chunk(file, format_name, samples, size):
        return f"its header counts {len(samples)} bytes of samples, and {size - samples.stop} more follow"
    return None


def end_of_samples(file: BinaryIO, size: int) -> int:
    """Where those of an open W64 end, whose chunks behind them libsndfile takes for samples."""
    samples = _chunk_of_samples(file, "W64", size)
    return size if samples is None else min(samples.stop, size)


def _chunk_of_samples(file: BinaryIO, format_name: str, size: int) -> range | None:
    """Where the samples lie; None where their length is not said."""
    position, layout, samples, added, padding = _CHUNKS[format_name]
    head, wide = struct.calcsize(layout), 0
    if file.read(4) == b"RIFX":
        layout = layout.replace("<", ">")
    while position + head <= size:
        file.seek(position)
        name, length = struct.unpack(layout, file.read(head))
        length += added
        if name == b"ds64" and len(content := file.read(16)) == 16:
            (wide,) = struct.unpack("<8xq", content)  # RF64: 32 bits are too few, and say nothing
        if name == samples:
            unknown = length < 0 or any(abs(length - one) <= _NEAR for one in _PLACEHOLDERS)
            length = wide if wide > 0 else length
            return None if unknown and wide <= 0 else range(position + head, position + head + length)
        if length < 0:
            return None
        position += head + length + -length % padding
    return None


def _may_be_chunk(file: BinaryIO, format_name: str, samples: range, size: int) -> bool:
    """Whether a chunk, text, or nothing but padding begins behind the samples, or a byte further."""
    if format_name == "W64":  # the names of some chunks are no text, but none is longer than the file
        _, layout, _, _, padding = _CHUNKS[format_name]
        position = samples.stop + -len(samples) % padding
        file.seek(position)
        _, length = struct.unpack(layout, file.read(struct.calcsize(layout)))
        if struct.calcsize(layout) <= length <= size - position:
            return True
    file.seek(samples.stop)
    start = file.read(5)
    return not any(start) or any(re.match(rb"[ -~]{4}", start[at:]) for at in (0, 1))


def _samples_of_au(file: BinaryIO) -> range | None:
    """Sun's header: magic, where the samples begin, and their bytes."""
    magic, begin, length = struct.unpack(">4sII", file.read(12))
    if magic != b".snd":
        begin, length = struct.unpack("<II", struct.pack(">II", begin, length))
    return None if length == 0xFFFF_FFFF else range(begin, begin + length)


def _samples_of_sphere(file: BinaryIO) -> range | None:
    """NIST's header: lines of ``name -type value``, the second of them its length; samples are counted by channel."""
    header = file.read(1024)
    fields = dict(re.findall(rb"^(\w+) -i (\d+)", header, re.MULTILINE))
    if b"sample_count" not in fields or not (begin := header[8:16].strip()).isdigit():
        return None
    count = int(fields[b"sample_count"])
    for each in (b"sample_n_bytes", b"channel_count"):
        count *= int(fields.get(each, 1))
    return range(int(begin), int(begin) + count)


def _fault_of_mp3(file: BinaryIO, size: int) -> str | None:
    count = read_count(file)
    if count is None or not 0 < count.end < size - _JUNK or not follows(file, count.end):
        return None
    return f"its first frame counts {count.end} of {size} bytes, and more of it follows (several files in one?)"


def _last_page_is_cut(file: BinaryIO, size: int) -> bool:
    tail = 65_307  # the largest Ogg page (RFC 3533, section 6)
    file.seek(max(0, size - tail))
    page = file.read()
    page = page[max(page.rfind(b"OggS"), 0) :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
