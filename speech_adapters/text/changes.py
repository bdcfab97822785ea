"""What a normaliser does to single characters, so that no letter is lost in silence."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from speech_adapters.errors import TextError
from speech_adapters.text.normalizers import Normalizer, ReplacementTable, normalize, normalizer_name

ALL = "all"
"""In place of the letters whose loss is meant: any."""


@dataclass(frozen=True)
class Change:
    """A character that becomes ``result`` ("" where it is dropped), and how often it stands in the texts."""

    symbol: str
    result: str
    count: int

    @property
    def is_loss(self) -> bool:
        """A letter, or a mark on one, of any script, that is dropped or becomes another (but SS is ß in capitals)."""
        return unicodedata.category(self.symbol)[0] in "LM" and _folded(self.result) != _folded(self.symbol)

    def __str__(self) -> str:
        return f"{_shown(self.symbol)} {f'-> {self.result}' if self.result else 'dropped'} ({self.count:,}x)"


def changes(texts: Iterable[str], normalizer: Normalizer) -> list[Change]:
    """The characters that a normaliser changes or drops inside words, the most frequent first.

    Change of case does not count, unless the letter cannot be told again (ß -> SS, ς -> Σ); nor do spaces, nor what a
    table replaces: that is said in the table. What becomes of several characters together (a number that is spelt out)
    is not seen here.
    """
    rest = normalizer.then if isinstance(normalizer, ReplacementTable) else normalizer
    counts: Counter[str] = Counter()
    for text in texts:
        text = normalizer.replaced(text) if isinstance(normalizer, ReplacementTable) else text
        counts.update(unicodedata.normalize("NFC", text))
    found = []
    for symbol, count in counts.most_common():
        result = _alone(symbol, rest)
        if not symbol.isspace() and _lower(result) != _lower(symbol):
            found.append(Change(symbol, result, count))
    return found


def describe_changes(found: Sequence[Change], normalizer: Normalizer, limit: int = 12) -> str:
    """One line for people, "" where nothing changes."""
    if not found:
        return ""
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return f"normaliser {normalizer_name(normalizer)}: {', '.join(map(str, found[:limit]))}{more}"


def check_letters(texts: Iterable[str], normalizer: Normalizer, accept: str, name: str) -> None:
    """Raise a TextError that names the letters which a normaliser would lose: dropped, or written as others.

    Args:
        accept: letters whose loss is meant, ``"all"`` for any.
        name: of the texts, which opens the message.
    """
    lost = [] if accept == ALL else [c for c in changes(texts, normalizer) if c.is_loss and c.symbol not in accept]
    if lost:
        letters = "".join(change.symbol for change in lost)
        more = f" and {len(lost) - 12} more" if len(lost) > 12 else ""
        raise TextError(
            f"{name}: the normaliser {normalizer_name(normalizer)!r} would lose letters: "
            f"{', '.join(map(str, lost[:12]))}{more}. normalizer=basic with vocabulary=characters keeps the letters "
            "of every script, a table of your own says what each becomes, and "
            f"accept_letters={letters[:12]} lets them go"
        )


def _alone(symbol: str, normalizer: Normalizer) -> str:
    """What becomes of a character between two letters."""
    written = normalize(f"x{symbol}x", normalizer)
    inside = written[1:-1] if len(written) > 1 and written[0] in "xX" and written[-1] in "xX" else written
    return inside.strip()


def _lower(text: str) -> str:
    return unicodedata.normalize("NFC", text.lower())


def _shown(symbol: str) -> str:
    alone = symbol.isprintable() and not unicodedata.category(symbol).startswith("M")
    return symbol if alone else f"U+{ord(symbol):04X}"


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())
