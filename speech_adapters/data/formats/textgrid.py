"""TextGrids of Praat, saved as text: long or short, in UTF-8 or UTF-16.

Such a file is its free-standing numbers, quoted texts and flags, in this order; the words between them are for people
(Praat's manual, "TextGrid file formats")::

    "ooTextFile" "TextGrid" start end <exists> tiers
    "IntervalTier" "anna" start end intervals     start end "Good morning."     start end ""     ...
    "TextTier" "laughter" start end points        time "mark"     ...
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from speech_adapters.data.formats.interval import Interval
from speech_adapters.data.text_files import reading
from speech_adapters.errors import ManifestError

SUFFIX = ".TextGrid"

_TOKEN = re.compile(
    r'"(?P<text>(?:[^"]|"")*)"|(?<!\S)(?:(?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)|(?P<flag><\w+>))(?!\S)'
    r"|(?<!\S)!.*"  # a comment, whatever stands in it
)


def read_tiers(path: Path, wanted: Collection[str] = ()) -> dict[str, list[Interval]]:
    """The intervals with text of each interval tier, in order; points are passed over.

    Raises:
        ManifestError: a file of another kind, one that is cut short, two tiers of a name that is wanted.
    """
    with reading(path, "TextGrid"):
        content = path.read_bytes()
        if content.startswith(b"ooBinaryFile"):
            raise ManifestError(f"{path}: a binary TextGrid; save it with Praat's 'Save as text file'")
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        tokens = _Tokens(path, content.decode("utf-16" if utf16 else "utf-8-sig"))
    if not tokens.text().startswith("ooTextFile") or tokens.text() != "TextGrid":
        raise ManifestError(f"{path}: not a TextGrid of Praat's; save one with 'Save as text file'")
    tokens.number(), tokens.number()
    tiers: dict[str, list[Interval]] = {}
    for _ in range(tokens.count() if tokens.flag() == "<exists>" else 0):
        kind, name = tokens.text(), tokens.text().strip()
        tokens.number(), tokens.number()
        found = []
        for _ in range(tokens.count()):
            start = tokens.number()
            end = tokens.number() if kind == "IntervalTier" else start
            text = " ".join(tokens.text().split())
            if text:
                found.append(Interval(tokens.line, start, end, text))
        if kind == "IntervalTier":
            if name in tiers and name in wanted:
                raise ManifestError(f"{path}:{tokens.line}: a second tier {name!r}; give each a name of its own")
            tiers[name] = found
    return tiers


class _Tokens:
    """The tokens of a file one by one, and the line that the last one stands in."""

    def __init__(self, path: Path, content: str) -> None:
        self.path, self.line, self._tokens = path, 1, self._each(content)

    def _each(self, content: str) -> Iterator[re.Match[str]]:
        read = 0
        for token in _TOKEN.finditer(content):
            if token.lastgroup is not None:
                self.line += content.count("\n", read, token.start())
                read = token.start()
                yield token

    def _next(self, kind: str) -> str:
        token = next(self._tokens, None)
        if token is None:
            raise ManifestError(f"{self.path}: cut short after line {self.line}; save the TextGrid again")
        if token.lastgroup != kind:
            raise ManifestError(f"{self.path}:{self.line}: expected a {kind}, got {token.group()[:40]}; save it again")
        return token.group(kind)

    def text(self) -> str:
        return self._next("text").replace('""', '"')

    def number(self) -> float:
        return float(self._next("number"))

    def count(self) -> int:
        value = self.number()
        if not value.is_integer():
            raise ManifestError(f"{self.path}:{self.line}: expected a count, got {value}; save it again")
        return int(value)

    def flag(self) -> str:
        return self._next("flag")
