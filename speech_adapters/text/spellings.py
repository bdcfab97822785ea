"""One name written in two ways, and words that stand for no name: tables that people fill are full of both."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

PLACEHOLDERS = frozenset(["", "-", "--", "?", "n/a", "nan", "none", "null", "unk", "<unk>", "unknown"])
"""What tools and people write where they know no speaker."""


def plain(name: str) -> str:
    """The name without what two spellings of it differ in: case, white space, Unicode form."""
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", name).casefold().split()))


def spelt_differently(names: Iterable[str]) -> list[list[str]]:
    """The names that are written in two ways or more, those of each together, sorted."""
    spellings: dict[str, set[str]] = {}
    for name in names:
        spellings.setdefault(plain(name), set()).add(name)
    return [sorted(alike) for alike in spellings.values() if len(alike) > 1]


def difference(alike: Iterable[str]) -> str:
    """What spellings of one name differ in, for messages."""
    return "case" if len({name.casefold() for name in alike}) == 1 else "case, white space or Unicode form"


def quoted(alike: Sequence[str]) -> list[str]:
    """The spellings as messages quote them: with escapes where they look the same otherwise."""
    looks = {unicodedata.normalize("NFC", name) for name in alike}
    return [repr(name) if len(looks) == len(alike) else ascii(name) for name in alike]


def is_placeholder(name: str) -> bool:
    """Whether the name stands for nobody."""
    return plain(name) in PLACEHOLDERS
