"""How long an MP3 is: what its first frame counts, or else what decoding comes to.

Encoders put a silent frame in front that counts the others (LAME's Xing and Info, Fraunhofer's VBRI). Where it is
missing, as in streams that were recorded, libsndfile guesses from the first frame's bit rate, reads no further than
that, and so loses the end of a recording that begins loud. :class:`Endless` lets it read to the end of the last frame:
libmpg123 fails at more than a kilobyte of anything else, such as an APE tag with a picture.
"""

from __future__ import annotations

import io
import re
import struct
from typing import Any, BinaryIO, NamedTuple

MEMORY = 32 * 1152
"""Samples before a place that are decoded too, so that it sounds as it does in the whole: a frame takes bits from up
to 511 bytes before it, which may be as many frames as here, and libmpg123 looks back over a few."""

_COUNT = re.compile(rb"\xff[\xe0-\xff]..(?:.{9,34}?(?:(Xing|Info)(.{12}))|.{32}VBRI.{6}(.{8}))", re.DOTALL)
"""A frame's first bytes up to what counts: behind the side information, or 32 bytes behind the frame's header."""

_SYNC = rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]"
_FRAME = re.compile(_SYNC + rb"|ID3")
"""What a frame, or the tag in front of the first, begins with."""

_HEADER = re.compile(_SYNC + rb"[\x10-\xef]")
"""A frame's first bytes with its bit rate, which tells it from a run of ones, as of erased memory."""

_TAIL = 128
"""Bytes of a tag at the end (ID3v1), where libmpg123 looks for it before it decodes."""

_PADDING = 1000
"""Zeros behind the file, by which a last frame that was not recorded to its end is whole: libmpg123 fails there
otherwise. It looks for the next frame in 1024 bytes at most, and fails behind more."""


class Count(NamedTuple):
    """What the first frame counts: ``frames`` behind it, and the file's byte where the last one ends, or 0."""

    frames: int
    end: int


def read_count(file: BinaryIO) -> Count | None:
    """The count of an open MP3, None where it has none."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(10)
        if len(head) < 10 or not head.startswith(b"ID3"):
            break
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        position += 10 + size + (10 if head[5] & 0x10 else 0)
    file.seek(position)
    match = _COUNT.search(file.read(1 << 13))
    if match is None:
        return None
    if match[1]:
        flags, *numbers = struct.unpack(">3I", match[2])
        frames = numbers.pop(0) if flags & 1 else 0
        length = numbers[0] if flags & 2 else 0
    else:
        length, frames = struct.unpack(">2I", match[3])
    return Count(frames, position + match.start() + length if length else 0) if frames else None


def follows(file: BinaryIO, position: int) -> bool:
    """Whether more of an MP3 begins at a place, or behind the tag there: a frame, or another file's tag."""
    file.seek(position)
    start = file.read(_TAIL + 3)
    return _FRAME.match(start, _TAIL if start.startswith(b"TAG") else 0) is not None


_RATES = ((11_025, 12_000, 8_000), (), (22_050, 24_000, 16_000), (44_100, 48_000, 32_000))
"""Hz, by a header's two bits of the version: MPEG 2.5, none, 2 and 1."""

_LATER = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBPS = {
    (1, 1): tuple(range(32, 449, 32)),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): _LATER,
    (2, 3): _LATER,
}
"""kbit/s, by version (2.5 counts as 2) and layer (ISO/IEC 11172-3 and 13818-3)."""


def _frame_length(file: BinaryIO, position: int) -> int:
    """Bytes of the frame at a place; 0 where none begins, or one of free format, which does not say."""
    file.seek(position)
    header = file.read(4)
    if len(header) < 4 or not _HEADER.match(header):
        return 0
    rates, layer = _RATES[header[1] >> 3 & 3], 4 - (header[1] >> 1 & 3)
    rate, bits, padding = header[2] >> 2 & 3, header[2] >> 4, header[2] >> 1 & 1
    if rate == 3:
        return 0
    version = 1 if header[1] >> 3 & 3 == 3 else 2
    kbps = _KBPS[version, layer][bits - 1]
    if layer == 1:
        return (12_000 * kbps // rates[rate] + padding) * 4
    return (72_000 if (version, layer) == (2, 3) else 144_000) * kbps // rates[rate] + padding


def _next_frame(file: BinaryIO, position: int) -> int | None:
    """The next place where three frames follow each other: any one may be chance."""
    while True:
        file.seek(position)
        block = file.read(1 << 16)
        for match in _HEADER.finditer(block):
            end = start = position + match.start()
            for _ in range(3):
                length = _frame_length(file, end)
                end += length
                if not length:
                    break
            else:
                return start
        if len(block) < 3:
            return None
        position += max(len(block) - 2, 1)


def end_of_frames(file: BinaryIO) -> int:
    """Where the last frame of an open MP3 ends, behind the file's end where that was cut; 0 where none is found."""
    end, position = 0, _next_frame(file, 0)
    while position is not None:
        while length := _frame_length(file, position):
            position += length
        end = position
        position = _next_frame(file, position)
    return end


class Endless(io.RawIOBase):
    """An MP3 that says that it is a terabyte long, so that what is guessed of its length ends no reading; it begins
    with its first frame or tag, by which libsndfile knows what has no name, and ends with its last frame."""

    _size = 1 << 40

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._place = file, 0
        first = _FRAME.search(file.read(1 << 16))
        self._begin = first.start() if first else 0
        self._end = (end_of_frames(file) or file.seek(0, io.SEEK_END)) - self._begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file has bytes here; returns how many."""
        if self._place >= self._size - _TAIL:  # no tag: libmpg123 refuses a file that ends before
            got = min(len(buffer), self._size - self._place)
            buffer[:got] = bytes(got)
        else:
            self._file.seek(self._begin + self._place)
            content = self._file.read(min(len(buffer), max(self._end - self._place, 0)))
            missing = min(len(buffer), max(self._end + _PADDING - self._place, 0)) - len(content)
            content += bytes(max(missing, 0))
            got = len(content)
            buffer[:got] = content
        self._place += got
        return got

    def close(self) -> None:
        self._file.close()
        super().close()
