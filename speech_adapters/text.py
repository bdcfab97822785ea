"""Transcripts to symbols and back: named normalisers and the character vocabulary of a CTC head.

The vocabulary is kept in the ``vocab.json`` of Hugging Face's ``Wav2Vec2CTCTokenizer``, so the same file serves both.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from speech_adapters.errors import TextError
from speech_adapters.files import write_text

# --- normalisers ---------------------------------------------------------------------------------------------------

_APOSTROPHES = str.maketrans(dict.fromkeys("‘’‛ʼ´`", "'"))
# Symbols that are spoken ("&" is "and"): removing them would change the words, so they stay and encode() reports them.
_SPOKEN = "'&%@#"


def _librispeech(text: str) -> str:
    """``A-Z``, apostrophe and space, as in LibriSpeech's transcripts.

    Accents are stripped (``é`` to ``E``) and punctuation and hyphens become spaces. Digits, spoken signs and letters
    of other alphabets are kept: they need a person's decision, and :meth:`Vocabulary.encode` names them.
    """
    decomposed = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES))
    kept = "".join(
        " " if category.startswith("P") and symbol not in _SPOKEN else symbol
        for symbol in decomposed
        if (category := unicodedata.category(symbol)) != "Mn"
    )
    return " ".join(kept.upper().split())


def _none(text: str) -> str:
    return text


NORMALIZERS: dict[str, Callable[[str], str]] = {"librispeech": _librispeech, "none": _none}
"""Normalisers by the name that is saved with a head; add your own before it is needed."""


def normalize(text: str, name: str = "librispeech") -> str:
    """``text`` as the normaliser called ``name`` writes it."""
    if name not in NORMALIZERS:
        raise TextError(
            f"normalizer={name!r} is unknown: choose one of {', '.join(map(repr, sorted(NORMALIZERS)))}, "
            "or add yours to speech_adapters.text.NORMALIZERS"
        )
    return NORMALIZERS[name](text)


# --- vocabulary ----------------------------------------------------------------------------------------------------

_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_BLANKS = ("<pad>", "[PAD]")  # the names that published wav2vec 2.0 checkpoints give to CTC's blank
_WAV2VEC2_CHARACTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"


@dataclass(frozen=True)
class Vocabulary:
    """The output symbols of a CTC head; a token's place in ``tokens`` is its id.

    ``blank`` is CTC's blank (the tokenizer's padding token) and ``delimiter`` the symbol between two words. Tokens
    such as ``<s>`` or ``[UNK]`` are special: they are never targets, and they leave no trace in decoded text.
    """

    tokens: tuple[str, ...]
    blank: str = "<pad>"
    delimiter: str = "|"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if len(set(self.tokens)) != len(self.tokens):
            repeated = sorted({token for token in self.tokens if self.tokens.count(token) > 1})
            raise TextError(f"vocabulary: tokens {repeated} occur twice; keep each token once")
        for role in ("blank", "delimiter"):
            if getattr(self, role) not in self.tokens:
                raise TextError(
                    f"vocabulary: the {role} {getattr(self, role)!r} is not among its {len(self.tokens)} tokens; "
                    f"add it, or name the right one with {role}=..."
                )

    @cached_property
    def _spelled(self) -> list[str]:
        """What each id adds to a decoded text; blank and special tokens add nothing."""
        silent = {token for token in self.tokens if token == self.blank or _is_special(token)}
        return [" " if token == self.delimiter else "" if token in silent else token for token in self.tokens]

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id of each character, and of the space between words."""
        return {**{text: i for i, text in enumerate(self._spelled) if text}, " ": self.delimiter_id}

    @classmethod
    def wav2vec2(cls) -> Vocabulary:
        """The 32 symbols of ``facebook/wav2vec2-base-960h``, in its order."""
        return cls((*_SPECIALS, "|", *_WAV2VEC2_CHARACTERS))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Vocabulary:
        """Every character of ``texts`` (normalise them first), sorted, after the special tokens and ``|``."""
        characters = set().union(*texts) - {" "}
        if not characters:
            raise TextError("a vocabulary cannot be built from texts without characters; give transcripts")
        if "|" in characters:
            raise TextError("the texts hold '|', the word delimiter; remove it with a normaliser first")
        if unprintable := sorted(symbol for symbol in characters if not symbol.isprintable()):
            raise TextError(f"the texts hold unprintable symbols {unprintable}; remove them with a normaliser first")
        return cls((*_SPECIALS, "|", *sorted(characters)))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def blank_id(self) -> int:
        """Id of CTC's blank."""
        return self.tokens.index(self.blank)

    @property
    def delimiter_id(self) -> int:
        """Id of the symbol between two words."""
        return self.tokens.index(self.delimiter)

    def id_of(self, token: str) -> int | None:
        """A token's id, None where there is no such token."""
        return self.tokens.index(token) if token in self.tokens else None

    def encode(self, text: str, source: str = "") -> list[int]:
        """Ids of the characters of a normalised ``text``; ``source`` (an utterance id) is named in the error."""
        try:
            return [self._ids[symbol] for symbol in text]
        except KeyError:
            unknown = sorted({symbol for symbol in text if symbol not in self._ids})
        where = f"utterance {source!r}" if source else f"text {text[:40]!r}"
        raise TextError(
            f"{where}: symbols {' '.join(map(repr, unknown))} are not among the {len(self)} of the vocabulary; "
            "normalise the transcripts (normalizer='librispeech' gives A-Z, apostrophe and space; write numbers as "
            "words) or build the vocabulary from your manifests with Vocabulary.from_texts"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, words one space apart. Repeats are kept: collapsing CTC frames is decoding's work."""
        return " ".join("".join([self._spelled[i] for i in ids]).split())

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; :meth:`from_dict` is its inverse."""
        return {"tokens": list(self.tokens), "blank": self.blank, "delimiter": self.delimiter}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vocabulary:
        """The vocabulary that :meth:`to_dict` described."""
        return cls(**values)

    def save(self, folder: str | Path) -> None:
        """Write ``vocab.json`` and ``tokenizer_config.json``: ``Wav2Vec2CTCTokenizer.from_pretrained(folder)``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocab = {token: i for i, token in enumerate(self.tokens)}
        config = {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "pad_token": self.blank,
            "word_delimiter_token": self.delimiter,
            "unk_token": next((token for token in ("<unk>", "[UNK]") if token in vocab), self.blank),
            "bos_token": "<s>" if "<s>" in vocab else None,
            "eos_token": "</s>" if "</s>" in vocab else None,
            "do_lower_case": False,
        }
        write_text(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False, indent=1) + "\n")
        write_text(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a ``vocab.json``, or a folder that holds one (with or without ``tokenizer_config.json``)."""
        path = Path(path)
        file = path / "vocab.json" if path.is_dir() else path
        vocab = _read_json(file)
        if any(isinstance(value, dict) for value in vocab.values()):
            raise TextError(f"{file}: holds one vocabulary a language ({', '.join(vocab)}); save one in its own file")
        if sorted(map(str, vocab.values())) != sorted(map(str, range(len(vocab)))):
            raise TextError(f"{file}: ids must be 0 to {len(vocab) - 1}, each once; restore the original file")
        config_file = file.with_name("tokenizer_config.json")
        config = _read_json(config_file) if config_file.is_file() else {}
        blank = _content(config.get("pad_token")) or next((token for token in _BLANKS if token in vocab), "<pad>")
        delimiter = _content(config.get("word_delimiter_token")) or "|"
        return cls(tuple(sorted(vocab, key=vocab.__getitem__)), blank=blank, delimiter=delimiter)


def utterance_names(ids: Sequence[str], limit: int = 5) -> str:
    """``'a', 'b' and 3 more``, for messages that name utterances."""
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(map(repr, ids[:limit])) + more


def _is_special(token: str) -> bool:
    return len(token) > 1 and token[0] + token[-1] in ("<>", "[]")


def _content(token: Any) -> str | None:
    """Tokenizer files hold a token as its text or as ``{"content": text, ...}``."""
    return token.get("content") if isinstance(token, dict) else token


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TextError(f"{file}: no such file; give a folder with a vocab.json, or the file itself") from None
    except ValueError as error:
        raise TextError(f"{file}: not JSON ({error}); restore the original file") from None
    if not isinstance(values, dict):
        raise TextError(f"{file}: must hold a JSON object (token: id); restore the original file")
    return values
