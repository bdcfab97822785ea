"""The files of Hugging Face's tokenizers, so that stock models decode with a vocabulary.

    characters    vocab.json                      Wav2Vec2CTCTokenizer
    phonemes      vocab.json                      Wav2Vec2PhonemeCTCTokenizer (``do_phonemize`` off)
    subwords      vocab.json and tokenizer.json   ParakeetTokenizer (a unigram model, decoded as CTC)

``tokenizer_config.json`` names the class. A ``vocab.json`` alone is read too: with ``|`` its words are told apart;
without it, and with tokens of several letters, these stand between spaces in texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech_adapters.errors import TextError
from speech_adapters.text.subwords import WORD

_BLANKS = ("<pad>", "[PAD]")  # the names that published wav2vec 2.0 checkpoints give to CTC's blank
UNKNOWN = ("<unk>", "[UNK]")
_PHONEMES = "Wav2Vec2PhonemeCTCTokenizer"


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


def read_tokenizer(path: str | Path) -> dict[str, Any]:
    """What a vocabulary is made of, from a ``vocab.json`` or a folder that holds one (with or without
    ``tokenizer_config.json``).

    Raises:
        TextError: no such file, or one that is no vocabulary.
    """
    path = Path(path)
    file = path / "vocab.json" if path.is_dir() else path
    vocab = _read_json(file)
    if any(isinstance(value, dict) for value in vocab.values()):
        raise TextError(f"{file}: holds one vocabulary a language ({', '.join(vocab)}); save one in its own file")
    if sorted(map(str, vocab.values())) != sorted(map(str, range(len(vocab)))):
        raise TextError(f"{file}: ids must be 0 to {len(vocab) - 1}, each once; restore the original file")
    tokens = tuple(sorted(vocab, key=vocab.__getitem__))
    config_file = file.with_name("tokenizer_config.json")
    config = _read_json(config_file) if config_file.is_file() else {}
    blank = _content(config.get("pad_token")) or next((token for token in _BLANKS if token in vocab), "<pad>")
    scores = _scores(file.with_name("tokenizer.json"), tokens)
    found = {"tokens": tokens, "blank": blank}
    if scores is not None:
        return {**found, "delimiter": WORD, "scores": scores}
    named = _content(config.get("word_delimiter_token"))
    delimiter = named or ("|" if "|" in vocab else None)
    several = any(len(token) > 1 and token != blank and not is_special(token) for token in tokens)
    if config.get("tokenizer_class") == _PHONEMES or (delimiter is None and several):
        return {**found, "delimiter": None, "separator": " "}
    return {**found, "delimiter": delimiter}


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
    pairs = model.get("vocab")
    if not isinstance(pairs, list) or [pair[0] for pair in pairs] != list(tokens):
        raise TextError(f"{file}: its pieces are not those of vocab.json beside it; restore both files")
    return tuple(float(pair[1]) for pair in pairs)


def _content(token: Any) -> str | None:
    """Tokenizer files hold a token as its text or as ``{"content": text, ...}``."""
    return token.get("content") if isinstance(token, dict) else token


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TextError(f"{file}: no such file; give a folder with a vocab.json, or the file itself") from None
    except (OSError, ValueError) as error:
        raise TextError(f"{file}: not JSON ({error}); restore the original file") from None
    if not isinstance(values, dict):
        raise TextError(f"{file}: must hold a JSON object (token: id); restore the original file")
    return values
