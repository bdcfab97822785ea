"""Reading text files: what goes wrong is a ManifestError that names the file and what it should have been."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

from speech_adapters.errors import ManifestError


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn errors of opening and decoding a file into a ManifestError; ``what`` the file is stands in it."""
    try:
        yield
    except ManifestError:
        raise
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}); convert the {what} to UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(f"{path}: the {what} cannot be read ({reason}); check the path") from error


def read_utf8(path: Path, what: str) -> str:
    """The text of a file; see :func:`reading` for ``what`` and the errors."""
    with reading(path, what):
        content = path.read_bytes()
        check_no_utf16(path, content, what)
        return content.decode("utf-8-sig")


def check_no_utf16(path: Path, start: bytes, what: str) -> None:
    """Raise a ManifestError where a file begins as UTF-16 text does: with its mark, or with a letter beside a zero."""
    zeros = [byte == 0 for byte in start[:2]]
    little = start.startswith(codecs.BOM_UTF16_LE) or zeros == [False, True]
    if little or start.startswith(codecs.BOM_UTF16_BE) or zeros == [True, False]:
        raise ManifestError(
            f"{path}: not UTF-8 text but UTF-16; save the {what} again as UTF-8 (Excel calls it 'CSV UTF-8'), or "
            f"convert it: iconv -f UTF-16{'LE' if little else 'BE'} -t UTF-8 {quote(str(path))} > NEW"
        )


def is_workbook(path: Path) -> bool:
    """Whether a file is a workbook and no text that is called one, as some tools export tables."""
    with suppress(OSError, ValueError), path.open("rb") as file:  # whoever reads it says what is wrong with the path
        return file.read(4) in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
    return False
