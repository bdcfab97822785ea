"""Files inside a tar or zip, named by where their bytes lie: ``shards/0007.tar:1536:48213`` (file:first byte:bytes).

A name of this form stands wherever that of an audio file does, as in fairseq's manifests. Nothing is unpacked and no
index of the archive is needed: any member is one read, whichever process asks. Members that are compressed by the
archive itself cannot be named so.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple

_NAME = re.compile(r"(?P<archive>.+\.(?:tar|zip)):(?P<first>\d{1,18}):(?P<size>\d{1,18})", re.DOTALL)


class Member(NamedTuple):
    """``size`` bytes of an archive, from byte ``first`` on."""

    archive: Path
    first: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}:{self.first}:{self.size}"

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """A file of these bytes alone, as ``Path.open`` gives one of a whole file. Raises OSError."""
        return io.BufferedReader(_Range(self), 1 << 16)


def member_of(path: str | os.PathLike[str]) -> Member | None:
    """The member that a path names; None for any other path, that of a whole file."""
    match = _NAME.fullmatch(os.fspath(path))
    return None if match is None else Member(Path(match["archive"]), int(match["first"]), int(match["size"]))


def located(path: str | os.PathLike[str]) -> Path | Member:
    """The file or member that a path of audio stands for, under the name that it has on the disk."""
    member = member_of(path)
    return _existing(Path(path)) if member is None else member._replace(archive=_existing(member.archive))


def _existing(path: Path) -> Path:
    """``path``, or the file whose name looks the same: é is one code point or two, which disks keep apart."""
    if str(path).isascii() or os.path.exists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        found /= next((form for form in forms if os.path.exists(found / form)), part)
    return found


class _Range(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, member: Member) -> None:
        self._member, self._place = member, 0
        self._file = member.archive.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._member.size}[whence], 0
        )
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # Buffer is of Python 3.12
        left = max(self._member.size - self._place, 0)
        self._file.seek(self._member.first + self._place)
        count = self._file.readinto(memoryview(buffer)[:left]) or 0
        self._place += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
