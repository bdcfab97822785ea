"""N-gram language models (ARPA or KenLM) and lexicons, and the decoder that searches with them."""

from __future__ import annotations

import codecs
import gzip
import math
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from speech_adapters.errors import InputError, TextError
from speech_adapters.text import Vocabulary


def flashlight_decoder(
    vocabulary: Vocabulary,
    lm_path: Path,
    lexicon_path: Path | None,
    *,
    beam_size: int,
    alpha: float,
    beta: float,
    bonus: Mapping[str, float],
) -> Any:
    """Flashlight's decoder of a lexicon's words; see :class:`~speech_adapters.heads.decoding.BeamSearch`.

    Args:
        bonus: what saying a word adds to the sum, in natural logarithms; these words join the lexicon.

    Raises:
        InputError: Flashlight is not installed.
        TextError: files that cannot be read, a vocabulary of no letters, words that it cannot spell.
    """
    words = _read_words(lm_path, lexicon_path)
    try:
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"decoding with the language model {lm_path} needs Flashlight: pip install speech-adapters[decode]"
        ) from error
    if not vocabulary.has_words or vocabulary.scores is not None:
        raise TextError(
            f"{lm_path}: a language model of words needs a vocabulary of characters with a word delimiter, and this "
            f"one has {vocabulary}; search without a language model"
        )
    characters = {symbol for symbol in vocabulary.tokens if vocabulary.decode([vocabulary.tokens.index(symbol)])}

    def spelled(word: str) -> str | None:
        # Models are published in lower as well as upper case; the spelling follows the vocabulary's.
        return next((s for s in (word, word.upper(), word.lower()) if s and set(s) <= characters), None)

    lexicon = {word: spelling for word in words if (spelling := spelled(word))}
    spelt: dict[str, list[str]] = {}
    for word, spelling in lexicon.items():
        spelt.setdefault(spelling, []).append(word)
    weights: dict[str, float] = {}
    for word, weight in bonus.items():
        if (spelling := spelled(word)) is None:
            raise TextError(f"hotword {word!r}: the vocabulary cannot spell it; give single words in its letters")
        # Those that are spelt alike are the same word in speech, whose case the model knows.
        alike = spelt.setdefault(spelling, [word])
        lexicon |= dict.fromkeys(alike, spelling)
        weights |= dict.fromkeys(alike, weight)
    if not lexicon:
        raise TextError(
            f"{lm_path}: the vocabulary spells none of its {len(words)} words; use a model of its language"
        )
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lexicon", encoding="utf-8") as file,
        _without_preface(lm_path) as readable,
    ):
        file.writelines(f"{word} {' '.join(spelling)} {vocabulary.delimiter}\n" for word, spelling in lexicon.items())
        file.flush()
        try:
            return ctc_decoder(
                lexicon=file.name,
                tokens=list(vocabulary.tokens),
                lm=_with_bonus(readable, file.name, weights, alpha) if weights else readable,
                beam_size=beam_size,
                lm_weight=alpha * math.log(10),  # KenLM's scores are decimal logarithms
                word_score=beta,
                log_add=True,
                blank_token=vocabulary.blank,
                sil_token=vocabulary.delimiter,
            )
        except RuntimeError as error:
            raise TextError(f"{lm_path}: KenLM cannot read it ({error}); make or download it again") from error


def _with_bonus(lm_path: str, lexicon: str, bonus: Mapping[str, float], alpha: float) -> Any:
    """KenLM's model, with the bonus of some words (natural logarithms) on top of its scores."""
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import create_word_dict, load_words
    from torchaudio.models.decoder import CTCDecoderLM

    words = create_word_dict(load_words(lexicon))
    by_index = {words.get_index(word): weight / (alpha * math.log(10)) for word, weight in bonus.items()}

    class Boosted(CTCDecoderLM):  # type: ignore[misc]  # torchaudio has no types
        def __init__(self) -> None:
            super().__init__()
            self.lm = KenLM(lm_path, words)

        def start(self, start_with_nothing: bool) -> Any:
            return self.lm.start(start_with_nothing)

        def score(self, state: Any, token_index: int) -> tuple[Any, float]:
            state, score = self.lm.score(state, token_index)
            return state, score + by_index.get(token_index, 0.0)

        def finish(self, state: Any) -> tuple[Any, float]:
            return self.lm.finish(state)

    return Boosted()


@contextmanager
def _without_preface(path: Path) -> Iterator[str]:
    """KenLM wants an ARPA file's data on its first line: what stands before (comments, a mark of byte order) is left
    out of a temporary copy."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        before = b""
        for line in islice(file, 1000):
            if line.strip() in (b"\\data\\", codecs.BOM_UTF8 + b"\\data\\"):
                before += line[: line.index(b"\\data\\")]
                break
            before += line
        else:
            before = b""  # a binary
        if not before.strip():
            yield str(path)
            return
        with tempfile.NamedTemporaryFile(suffix=".arpa") as copy:
            copy.write(b"\\data\\\n")
            shutil.copyfileobj(file, copy)
            copy.flush()
            yield copy.name


def _read_words(lm_path: Path, lexicon_path: Path | None) -> list[str]:
    """The words to decode with, after a check that the language model is there and whole at both ends."""
    for path in (lm_path, lexicon_path):
        if path is not None and not path.is_file():
            raise TextError(f"{path}: no such file; give an n-gram model in ARPA or KenLM's binary format")
    with lm_path.open("rb") as file:
        is_binary = file.read(10) == b"mmap lm ht"
    words = [] if is_binary else _arpa_words(lm_path)
    if lexicon_path is not None:
        try:
            rows = lexicon_path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"{lexicon_path}: cannot be read as UTF-8 text ({error}); give a word per line") from error
        words = [columns[0] for line in rows if (columns := line.split())]
    elif is_binary:
        raise TextError(
            f"{lm_path}: a KenLM binary does not list its words; give a file of words, one per line, with "
            "lexicon_path= (recipes/evaluate_asr.py: --lexicon), or the ARPA file that it was made from"
        )
    return words


def _arpa_words(path: Path) -> list[str]:
    """The unigrams of an ARPA file, ``\\data\\ ngram 1=N ... \\1-grams: <log10 p> <word> [back-off] ... \\end\\``."""
    damaged = f"{path}: the file is cut short or damaged; make or download it again"
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            # Comments may stand before the data; a file without the mark is no ARPA file, whatever its size.
            if not any(line.strip() == "\\data\\" for line in islice(file, 1000)):
                raise TextError(f"{path}: not an ARPA file (no line \\data\\ at its start); give an n-gram model")
            counts = (re.match(r"ngram\s+1\s*=\s*(\d+)", line) for line in file)  # IRSTLM pads with spaces
            count = next((int(found[1]) for found in counts if found), 0)
            next((line for line in file if line.strip() == "\\1-grams:"), None)
            words = [line.split()[1] for line in islice(file, count)]
            whole = "\\end\\" in (line.strip() for line in file)
    except TextError:  # a ValueError, too
        raise
    except (ValueError, LookupError, EOFError, OSError, zlib.error) as error:
        raise TextError(damaged) from error
    if not whole:
        raise TextError(damaged)
    return [word for word in words if not (word.startswith("<") and word.endswith(">"))]
