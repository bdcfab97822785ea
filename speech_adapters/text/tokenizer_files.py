"""The files of Hugging Face's tokenizers, so that stock models decode with a vocabulary.

    characters    vocab.json                      Wav2Vec2CTCTokenizer
    phonemes      vocab.json                      Wav2Vec2PhonemeCTCTokenizer (``do_phonemize`` off)
    subwords      vocab.json and tokenizer.json   ParakeetTokenizer (a unigram model, decoded as CTC)

``tokenizer_config.json`` names the class. A ``vocab.json`` alone is read too: with ``|`` its words are told apart;
without it, and with tokens of several letters, these stand between spaces in texts.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech_adapters.errors import TextError
from speech_adapters.text.subwords import WORD

_BLANKS = ("<pad>", "[PAD]")  # the names that published wav2vec 2.0 checkpoints give to CTC's blank
UNKNOWN = ("<unk>", "[UNK]")
_PHONEMES = "Wav2Vec2PhonemeCTCTokenizer"

MOST_UNNAMED = 8
"""Outputs without a token that a head may have: ``vocab_size`` left at 32, say. More of them are another model's."""


def tokenizer_files(
    tokens: Sequence[str], blank: str, delimiter: str | None, separator: str, scores: Sequence[float] | None
) -> dict[str, str]:
    """Content by file name of what ``AutoTokenizer.from_pretrained`` opens; arguments as of a vocabulary."""
    vocab = {token: i for i, token in enumerate(tokens)}
    config: dict[str, Any] = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "pad_token": blank,
        "word_delimiter_token": delimiter,
        "unk_token": next((token for token in UNKNOWN if token in vocab), blank),
        "bos_token": "<s>" if "<s>" in vocab else None,
        "eos_token": "</s>" if "</s>" in vocab else None,
        "do_lower_case": False,
    }
    if separator:
        config |= {"tokenizer_class": _PHONEMES, "phone_delimiter_token": separator, "do_phonemize": False}
    files = {}
    if scores is not None:
        del config["word_delimiter_token"], config["do_lower_case"]
        config |= {"tokenizer_class": "ParakeetTokenizer", "clean_up_tokenization_spaces": False}
        files["tokenizer.json"] = _unigram(tokens, scores, blank)
    contents = {"vocab.json": vocab, "tokenizer_config.json": config}
    return files | {name: json.dumps(c, ensure_ascii=False, indent=1) + "\n" for name, c in contents.items()}


def read_tokenizer(path: str | Path, language: str | None = None, outputs: int | None = None) -> dict[str, Any]:
    """What a vocabulary is made of, from a ``vocab.json`` or a folder that holds one (with or without
    ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``).

    Args:
        language: the one of a file that holds a vocabulary per language (MMS); by default the one that the
            tokenizer's configuration names.
        outputs: of the head that the vocabulary belongs to. Added and special tokens that it has no output for are
            left out, as many checkpoints have them for their tokenizer alone; outputs without a token, which many have
            too, get one that no text has (up to ``MOST_UNNAMED``).

    Raises:
        TextError: no such file or language, or one that is no vocabulary.
    """
    path = Path(path)
    file = path / "vocab.json" if path.is_dir() else path
    config = _configuration(file)
    vocab = _read_json(file)
    if any(isinstance(value, dict) for value in vocab.values()):
        language = language or config.get("target_lang") or (next(iter(vocab)) if len(vocab) == 1 else None)
        if not isinstance(vocab.get(str(language)), dict):
            asked = "say which one" if language is None else f"it has no {language!r}"
            raise TextError(
                f"{file}: holds one vocabulary a language and {asked} (language=..., target_lang of an encoder); it "
                f"has {', '.join(list(vocab)[:20])}{' ...' if len(vocab) > 20 else ''}"
            )
        vocab = dict(vocab[str(language)])
    else:
        vocab |= _added(file, config, vocab, outputs)
    if outputs is not None:
        vocab = _as_outputs(file, vocab, outputs)
    if not all(type(number) is int for number in vocab.values()) or sorted(vocab.values()) != [*range(len(vocab))]:
        raise TextError(
            f"{file}: ids must be whole numbers, 0 to {len(vocab) - 1}, each once; restore the original file"
        )
    tokens = tuple(sorted(vocab, key=vocab.__getitem__))
    blank = _content(config.get("pad_token")) or _blank(file, tokens)
    if blank not in tokens:
        raise TextError(
            f"{file}: has no token {blank!r}, which is the blank (pad_token in tokenizer_config.json or "
            "special_tokens_map.json); restore the original files"
        )
    if config.get("do_lower_case") and config.get("tokenizer_class") != _PHONEMES:
        kept = {blank, *(_content(config.get(f"{name}_token")) for name in ("word_delimiter", "unk"))}
        tokens = _lower(file, tokens, kept)
    scores = _scores(file.with_name("tokenizer.json"), tokens)
    found = {"tokens": tokens, "blank": blank}
    if scores is not None:
        return {**found, "delimiter": WORD, "scores": scores}
    named = _content(config.get("word_delimiter_token"))  # "|" by default, where texts have no spaces too
    delimiter = next((token for token in (named, "|") if token in vocab), None)
    several = any(len(token) > 1 and token != blank and not is_special(token) for token in tokens)
    if config.get("tokenizer_class") == _PHONEMES or (delimiter is None and several):
        if named in vocab:
            _warn(f"{file}: {named!r} between words is a symbol of texts here; its own tokenizer leaves it out.")
        return {**found, "delimiter": None, "separator": " "}
    written = config.get("replace_word_delimiter_char", " ")
    if delimiter is not None and written != " ":
        _warn(f"{file}: texts have a space between words here, where its own tokenizer writes {written!r}.")
    return {**found, "delimiter": delimiter}


def _configuration(file: Path) -> dict[str, Any]:
    """What the files beside say of the tokenizer, in the order of ``transformers``: ``special_tokens_map.json`` goes
    over a ``tokenizer_config.json`` of before it held the added tokens."""
    config, special = (_beside(file, f"{name}.json") for name in ("tokenizer_config", "special_tokens_map"))
    return special | config if "added_tokens_decoder" in config else config | special


def _lower(file: Path, tokens: tuple[str, ...], kept: set[str | None]) -> tuple[str, ...]:
    """Symbols as they are written in texts, where ``do_lower_case`` says so of capitals; both cases stay apart."""
    lower = tuple(token if token in kept or is_special(token) else token.lower() for token in tokens)
    if len(set(lower)) == len(lower):
        return lower
    _warn(f"{file}: has letters in both cases, which texts keep here; its own tokenizer writes all in lower case.")
    return tokens


def _as_outputs(file: Path, vocab: dict[str, Any], outputs: int) -> dict[str, Any]:
    """One token for each output of a head; a vocabulary that is another head's is left as it is."""
    if not all(type(number) is int and number >= 0 for number in vocab.values()):
        return vocab
    kept = {token: number for token, number in vocab.items() if number < outputs or not is_special(token)}
    unnamed = sorted(set(range(outputs)) - set(kept.values()))
    if not 0 < len(unnamed) <= MOST_UNNAMED:
        return kept
    _warn(f"{file}: has no token for {', '.join(map(str, unnamed))} of the head's {outputs} outputs; texts lack them.")
    return kept | {f"<unused{number}>": number for number in unnamed}


def _blank(file: Path, tokens: Sequence[str]) -> str:
    """CTC's blank where the tokenizer's files do not name it: by its published names; where there is none of these, or
    several, what the model's configuration takes for it."""
    published = [token for token in _BLANKS if token in tokens]
    if len(published) == 1:
        return published[0]
    number = _beside(file, "config.json").get("pad_token_id")
    return tokens[number] if type(number) is int and 0 <= number < len(tokens) else _BLANKS[0]


def _added(file: Path, config: dict[str, Any], vocab: dict[str, Any], outputs: int | None) -> dict[str, Any]:
    """Tokens that a tokenizer has beside those of its ``vocab.json``: ``added_tokens.json`` holds them, or the
    tokenizer's configuration by id."""
    added = dict(_beside(file, "added_tokens.json"))
    decoder = config.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        added.setdefault(str(_content(token)), int(number) if str(number).isdigit() else number)
    known = set(vocab.values())
    return {
        token: number
        for token, number in added.items()
        if token not in vocab
        and number not in known
        and (outputs is None or not isinstance(number, int) or number < outputs)
    }


def _beside(file: Path, name: str) -> dict[str, Any]:
    """What another file of the tokenizer says; nothing where there is none."""
    path = file.with_name(name)
    return _read_json(path) if os.path.lexists(path) else {}  # a link to what is gone is no absent file


def is_special(token: str) -> bool:
    """Whether a token is special by its looks: ``<s>``, ``[UNK]``."""
    return len(token) > 1 and token[0] + token[-1] in ("<>", "[]")


def _unigram(tokens: Sequence[str], scores: Sequence[float], blank: str) -> str:
    """``tokenizer.json``: the split and the spaces of :mod:`speech_adapters.text.subwords`."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import Unigram

    unknown = next((i for i, token in enumerate(tokens) if token in UNKNOWN), 0)
    tokenizer = Tokenizer(Unigram(list(zip(tokens, scores, strict=True)), unk_id=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    specials = [token for token in tokens if token == blank or is_special(token)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return str(tokenizer.to_str(pretty=True)) + "\n"


def _scores(file: Path, tokens: tuple[str, ...]) -> tuple[float, ...] | None:
    """Those of the unigram model in ``tokenizer.json``; None where there is no such model."""
    model = _read_json(file).get("model") if file.is_file() else None
    if not isinstance(model, dict) or model.get("type") != "Unigram":
        return None
    pairs: Any = model.get("vocab")
    try:
        scores = {piece: float(score) for piece, score in pairs}
    except (TypeError, ValueError):
        scores = {}
    if list(scores) != list(tokens):
        raise TextError(f"{file}: its pieces are not those of vocab.json beside it; restore both files")
    return tuple(scores.values())


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)


def _content(token: Any) -> str | None:
    """Tokenizer files hold a token as its text or as ``{"content": text, ...}``; None of what is neither."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file.is_symlink():
            raise TextError(f"{file}: a link to a file that does not exist; restore the original file") from None
        raise TextError(f"{file}: no such file; give a folder with a vocab.json, or the file itself") from None
    except (OSError, ValueError) as error:
        raise TextError(f"{file}: not JSON ({error}); restore the original file") from None
    if not isinstance(values, dict):
        raise TextError(f"{file}: must hold a JSON object (token: id); restore the original file")
    return values
