"""The output symbols of a CTC head: characters, subwords, or symbols that stand apart, such as phonemes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from speech_adapters.errors import TextError
from speech_adapters.files import write_text
from speech_adapters.text.normalizers import JOINERS
from speech_adapters.text.subwords import NEVER, WORD, split, train_subwords
from speech_adapters.text.tokenizer_files import is_special, read_tokenizer, tokenizer_files

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_WAV2VEC2_CHARACTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"


@dataclass(frozen=True)
class Vocabulary:
    """The output symbols of a CTC head; a token's place in ``tokens`` is its id.

    Tokens such as ``<s>`` or ``[UNK]`` are special: they are never targets, and they leave no trace in decoded text.

    Args:
        blank: CTC's blank (the tokenizer's padding token).
        delimiter: the symbol between two words; with ``scores``, what the first piece of a word begins with; None
            where words are not told apart (Chinese, phonemes).
        separator: what stands between two tokens in a text: nothing between characters, a space between phonemes.
        scores: log probabilities of subwords, one per token; a text is split into the most probable ones.

    Raises:
        TextError: a token that stands there twice, a blank or delimiter that is not among them, scores of another
            number.
    """

    tokens: tuple[str, ...]
    blank: str = "<pad>"
    delimiter: str | None = "|"
    separator: str = ""
    scores: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if self.scores is not None:
            object.__setattr__(self, "scores", tuple(self.scores))
            if len(self.scores) != len(self.tokens):
                raise TextError(f"vocabulary: {len(self.scores)} scores for {len(self.tokens)} tokens; give one each")
        if len(set(self.tokens)) != len(self.tokens):
            repeated = sorted({token for token in self.tokens if self.tokens.count(token) > 1})
            raise TextError(f"vocabulary: tokens {repeated} occur twice; keep each token once")
        for role in ("blank", "delimiter"):
            token = getattr(self, role)
            if token is not None and token not in self.tokens:
                raise TextError(
                    f"vocabulary: the {role} {token!r} is not among its {len(self.tokens)} tokens; "
                    f"add it, or name the right one with {role}=..."
                )
        if self.separator not in ("", " "):
            raise TextError(f"vocabulary: separator={self.separator!r}; choose '' or ' '")

    @property
    def normalizer(self) -> str:
        """The normaliser that writes texts in these symbols: in their case, and with no letter changed that they have;
        "none" where they have both cases, or stand apart (phonemes)."""
        symbols = "".join(token for token in self.tokens if token != self.blank and not is_special(token))
        upper, lower = set(filter(str.isupper, symbols)), set(filter(str.islower, symbols))
        both = {letter for letter in upper if letter.lower() in lower}
        if self.separator or 2 * len(both) > max(len(upper), len(lower)):
            return "none"
        if len(upper) <= len(lower):
            return "basic"
        return "librispeech" if all(letter.isascii() for letter in upper) else "basic-upper"

    # ------------------------------------------------------------------ how it is made

    @classmethod
    def wav2vec2(cls) -> Vocabulary:
        """The 32 symbols of ``facebook/wav2vec2-base-960h``, in its order."""
        return cls((*SPECIALS, "|", *_WAV2VEC2_CHARACTERS))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Vocabulary:
        """Every character of ``texts`` (normalise them first), sorted, after the special tokens and ``|``.

        Where no text has a space (Chinese, say), words are not told apart and there is no ``|``.
        """
        characters = set().union(*texts)
        spaces, characters = " " in characters, characters - {" "}
        if not characters:
            raise TextError("a vocabulary cannot be built from texts without characters; give transcripts")
        if "|" in characters:
            raise TextError("the texts hold '|', the word delimiter; remove it with a normaliser first")
        _check_printable(characters)
        if spaces:
            return cls((*SPECIALS, "|", *sorted(characters)))
        return cls((*SPECIALS, *sorted(characters)), delimiter=None)

    @classmethod
    def from_symbols(cls, texts: Iterable[str]) -> Vocabulary:
        """Every symbol of ``texts`` that stands between spaces, such as the phonemes of ``HH AH0 L OW1``."""
        symbols = {symbol for text in texts for symbol in text.split()}
        if not symbols:
            raise TextError("a vocabulary cannot be built from texts without symbols; give transcripts")
        _check_printable(symbols)
        if special := sorted(filter(is_special, symbols)):
            raise TextError(
                f"the symbols {special} look like special tokens, which are never heard; give them other names"
            )
        return cls((*SPECIALS, *sorted(symbols)), delimiter=None, separator=" ")

    @classmethod
    def from_subwords(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """About ``size`` subwords learnt from texts (normalise them first), after the special tokens; see
        :func:`~speech_adapters.text.subwords.train_subwords`."""
        pieces, scores = zip(*train_subwords(texts, size), strict=True)
        return cls((*SPECIALS, *pieces), delimiter=WORD, scores=(*[NEVER] * len(SPECIALS), *scores))

    # ------------------------------------------------------------------ what it is

    @cached_property
    def spelled(self) -> list[str]:
        """What each id adds to a decoded text; blank and special tokens add nothing."""
        return [self._spell(token) for token in self.tokens]

    def _spell(self, token: str) -> str:
        if token == self.blank or is_special(token):
            return ""
        if self.scores is not None and self.delimiter is not None:
            return token.replace(self.delimiter, " ")
        return " " if token == self.delimiter else token

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id of each symbol as a text has it, that of the space between words among them."""
        return {text: i for i, text in enumerate(self.spelled) if text}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Any symbol of the vocabulary, the longest that fits, or else any character."""
        longest_first = sorted(self._ids, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

    @property
    def has_words(self) -> bool:
        """Whether decoded texts have spaces between words."""
        return self.delimiter is not None

    @property
    def note(self) -> str:
        """What a reader of error rates must know of it; "" where words are words."""
        if self.separator:
            return "symbols stand apart: WER counts wrong symbols (the phoneme error rate), CER their letters"
        if not self.has_words:
            return "words are not told apart: CER is the measure, WER counts wrong transcripts"
        return ""

    def __str__(self) -> str:
        kind = "subwords" if self.scores is not None else "symbols" if self.separator else "characters"
        count = sum(bool(text.strip()) for text in self.spelled)
        return f"{count} {kind}{'' if self.has_words else ', no word delimiter'}"

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def blank_id(self) -> int:
        """Id of CTC's blank."""
        return self.tokens.index(self.blank)

    @property
    def delimiter_id(self) -> int | None:
        """Id of the symbol between two words, None where there is none."""
        return None if self.delimiter is None else self.tokens.index(self.delimiter)

    def id_of(self, token: str) -> int | None:
        """A token's id, None where there is no such token."""
        return self.tokens.index(token) if token in self.tokens else None

    # ------------------------------------------------------------------ texts to ids and back

    def encode(self, text: str, source: str = "") -> list[int]:
        """Ids of the symbols of a normalised ``text``; ``source`` (an utterance id) is named in the error.

        Raises:
            TextError: names the symbols that are not in the vocabulary.
        """
        symbols = self._symbols(text)
        try:
            return [self._ids[symbol] for symbol in symbols]
        except KeyError:
            unknown = sorted({symbol for symbol in symbols if symbol not in self._ids})
        where = f"utterance {source!r}" if source else f"text {text[:40]!r}"
        raise TextError(
            f"{where}: symbols {' '.join(map(repr, unknown))} are not among the {len(self)} of the vocabulary; "
            f"{self._remedy(unknown)}"
        )

    def _symbols(self, text: str) -> list[str]:
        text = " ".join(text.split())  # as decode writes it: what separates symbols or words is one space
        if self.separator:
            return text.split()
        if self.scores is not None:
            return [piece.replace(str(self.delimiter), " ") for piece in split(text, self.tokens, self.scores)]
        return self._pattern.findall(text)

    def _remedy(self, unknown: Sequence[str]) -> str:
        for case, said in ((str.upper, "upper"), (str.lower, "lower")):
            if all(case(symbol) in self._ids for symbol in unknown):
                return f"it has them in {said} case: choose a normaliser that writes them so (basic: lower case)"
        return (
            "normalise the transcripts (normalizer='librispeech' gives A-Z, apostrophe and space; write numbers as "
            "words), build the vocabulary from your texts (vocabulary=characters: those of the training manifest; "
            "Vocabulary.from_texts), or leave out utterances with symbols that the training texts lack"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, words one space apart. Repeats are kept: collapsing CTC frames is decoding's work."""
        texts = [self.spelled[i] for i in ids]
        return " ".join(self.separator.join(text for text in texts if text).split())

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; :meth:`from_dict` is its inverse."""
        return {
            "tokens": list(self.tokens),
            "blank": self.blank,
            "delimiter": self.delimiter,
            "separator": self.separator,
            "scores": None if self.scores is None else list(self.scores),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vocabulary:
        """The vocabulary that :meth:`to_dict` described."""
        return cls(**values)

    def save(self, folder: str | Path) -> None:
        """Write ``vocab.json`` and what else ``AutoTokenizer.from_pretrained(folder)`` needs."""
        for name, content in tokenizer_files(
            self.tokens, self.blank, self.delimiter, self.separator, self.scores
        ).items():
            write_text(Path(folder) / name, content)

    @classmethod
    def load(cls, path: str | Path, language: str | None = None, outputs: int | None = None) -> Vocabulary:
        """Read a ``vocab.json`` or the folder of a tokenizer; arguments and errors of
        :func:`~speech_adapters.text.tokenizer_files.read_tokenizer`."""
        return cls(**read_tokenizer(path, language, outputs))


def _check_printable(symbols: Iterable[str]) -> None:
    if unprintable := sorted(s for s in symbols if not all(c.isprintable() or c in JOINERS for c in s)):
        raise TextError(f"the texts hold unprintable symbols {unprintable}; remove them with a normaliser first")


def utterance_names(ids: Sequence[str], limit: int = 5) -> str:
    """``'a', 'b' and 3 more``, for messages that name utterances."""
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(map(repr, ids[:limit])) + more
