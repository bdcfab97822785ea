"""Excel's ``sep=;``, a line in front of a table that says what separates its cells."""

from __future__ import annotations

import re


def without_separator(text: str) -> tuple[str, str | None]:
    """The text without that line, and the separator that it names; its line end stays, so that lines keep their
    numbers."""
    said = re.match(r'"?sep=([^"\r\n])"?(?=\r?\n)', text, re.IGNORECASE)
    return (text, None) if said is None else (text[said.end() :], said[1])
