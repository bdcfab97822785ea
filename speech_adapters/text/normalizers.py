"""Normalisers: how transcripts are written before they are learnt or scored.

    librispeech       A-Z, apostrophe and space, as in LibriSpeech's transcripts; accents are stripped
    basic             any language: Unicode NFC, lower case, punctuation off, letters of every script kept
    basic-upper       the same in upper case
    whisper-english   Whisper's for English (numbers as digits, contractions spelt out, British spelling made American)
    none              as it is

One of your own is a small file, :class:`ReplacementTable`, or a function under a name: in :data:`NORMALIZERS`, or as
an entry point of the group ``speech_adapters.normalizers`` in a package of yours. A head is saved with the table
itself, or with the name: no code is run that a saved folder brings along.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from speech_adapters import schema
from speech_adapters.errors import TextError

_APOSTROPHES = str.maketrans(dict.fromkeys("‘’‛ʼ´`", "'"))
_QUOTES = str.maketrans(dict.fromkeys("‘’‛´`", "'"))  # the modifier letter is a letter here
# Symbols that are spoken ("&" is "and"): removing them would change the words, so they stay and encode() reports them.
_SPOKEN = "'&%@#"
# Signs that belong to a word between two of its letters (UAX 29, MidLetter): it's, col·lecció, צה״ל.
_INSIDE = "'·׳״"
# Zero-width joiners change what is written in Persian and in the scripts of India; other format characters do not.
JOINERS = "\u200c\u200d"

GROUP = "speech_adapters.normalizers"
"""Entry points under which an installed package offers normalisers: functions from text to text."""


def _librispeech(text: str) -> str:
    """``A-Z``, apostrophe and space, as in LibriSpeech's transcripts.

    Accents are stripped (``é`` to ``E``) and punctuation and hyphens become spaces. Digits, spoken signs and letters
    of other alphabets are kept: they need a person's decision, and :meth:`Vocabulary.encode` names them.
    """
    # Before, as the acute accent decomposes into a space; after, for what decomposes into one of these (full width).
    decomposed = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).translate(_APOSTROPHES)
    kept = "".join(
        " " if category.startswith("P") and symbol not in _SPOKEN else symbol
        for symbol in decomposed
        if (category := unicodedata.category(symbol)) != "Mn"
    )
    return " ".join(kept.upper().split())


def _basic(text: str) -> str:
    """Composed (NFC), in lower case, without punctuation; every letter, mark and digit of every script is kept.

    Apostrophes and their like stay between two letters. Signs that are spoken (``&``, ``%``, ``€``) stay: they need a
    person's decision.
    """
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).translate(_QUOTES)
    kept = []
    for place, symbol in enumerate(text):
        category = unicodedata.category(symbol)
        if symbol in _INSIDE:
            inside = 0 < place < len(text) - 1 and _is_letter(text[place - 1]) and _is_letter(text[place + 1])
            kept.append(symbol if inside else " ")
        elif category == "Cf" and symbol not in JOINERS:
            continue
        else:
            off = (category[0] == "P" and symbol not in _SPOKEN) or category == "Cc"
            kept.append(" " if off else symbol)
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


def _basic_upper(text: str) -> str:
    """As ``basic``, in upper case."""
    return unicodedata.normalize("NFC", _basic(text).upper())


def _is_letter(symbol: str) -> bool:
    return unicodedata.category(symbol)[0] in "LM"


def _none(text: str) -> str:
    return text


def _whisper_english(text: str) -> str:
    """That of Whisper's paper (Radford et al., 2022, appendix C), in the package ``whisper-normalizer``.

    Applied until nothing changes: a few numbers take a second pass, and what a model writes is normalised once more.
    """
    for _ in range(8):
        before, text = text, _whisper()(text)
        if text == before:
            break
    return text


@cache
def _whisper() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise TextError(
            "normalizer='whisper-english' needs the package whisper-normalizer: pip install 'speech-adapters[text]'"
        ) from error
    return EnglishTextNormalizer()


NORMALIZERS: dict[str, Callable[[str], str]] = {
    "librispeech": _librispeech,
    "basic": _basic,
    "basic-upper": _basic_upper,
    "whisper-english": _whisper_english,
    "none": _none,
}
"""Normalisers by the name that is saved with a head; add your own before it is needed."""


@dataclass(frozen=True, kw_only=True)
class ReplacementTable:
    """A custom normaliser, saved whole with a head: replacements, then a named normaliser.

    In a file, YAML or JSON::

        replace:            # in the text as it stands; of several that fit at a place, the longest
          "&": " und "
          ß: ss
        then: basic         # the normaliser that follows
    """

    name: str
    """What results call it; a file's name."""
    replace: dict[str, str]
    then: str = "basic"

    def __post_init__(self) -> None:
        if not self.replace or "" in self.replace:
            raise TextError(f"normalizer {self.name!r}: replace maps what is written to what replaces it; give some")
        for written in self.replace:
            once = self(written)
            if self(once) != once:
                raise TextError(
                    f"normalizer {self.name!r}: {written!r} becomes {once!r}, which the table would change again; "
                    "texts are normalised more than once, so give the final form at once"
                )

    @classmethod
    def read(cls, path: str | Path) -> ReplacementTable:
        """Read a table from a YAML or JSON file.

        Raises:
            TextError: a file that is missing or no such table, or one that would change its own results.
        """
        import yaml

        path = Path(path)
        try:
            content = yaml.BaseLoader(path.read_text(encoding="utf-8-sig")).get_single_data()  # all scalars as text
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise TextError(f"{path}: cannot be read as a table of replacements ({reason})") from error
        if not isinstance(content, dict) or "name" in content:
            raise TextError(
                f"{path}: a normaliser's file has the keys replace (what is written: what replaces it), then"
            )
        return schema.from_dict(cls, {"name": path.stem, **content}, str(path))

    def replaced(self, text: str) -> str:
        """The text after the replacements, before the normaliser that follows."""
        pattern = "|".join(map(re.escape, sorted(self.replace, key=len, reverse=True)))
        return re.sub(pattern, lambda found: self.replace[found[0]], text)

    def __call__(self, text: str) -> str:
        return _named(self.then)(self.replaced(text))


Normalizer = str | ReplacementTable
"""The name of a normaliser, or a table."""


def normalize(text: str, normalizer: Normalizer = "librispeech") -> str:
    """``text`` as a normaliser writes it.

    Raises:
        TextError: no normaliser has this name.
    """
    return normalizer(text) if isinstance(normalizer, ReplacementTable) else _named(normalizer)(text)


def choose_normalizer(text: str) -> Normalizer:
    """The normaliser that a command line means: a name, or the path of a table's file.

    Raises:
        TextError: neither, or a file that is no table.
    """
    if text not in NORMALIZERS and Path(text).suffix.lower() in (".yaml", ".yml", ".json"):
        return ReplacementTable.read(text)
    _named(text)
    return text


def normalizer_name(normalizer: Normalizer) -> str:
    """What results call it."""
    return normalizer.name if isinstance(normalizer, ReplacementTable) else normalizer


def _named(name: str) -> Callable[[str], str]:
    if name in NORMALIZERS:
        return NORMALIZERS[name]
    for entry in entry_points(group=GROUP, name=name):
        found: Any = entry.load()
        return found
    raise TextError(
        f"normalizer={name!r} is unknown: choose one of {', '.join(map(repr, sorted(NORMALIZERS)))}, give a file of "
        "replacements (.yaml), add yours to speech_adapters.text.NORMALIZERS, or install the package that offers it"
    )
