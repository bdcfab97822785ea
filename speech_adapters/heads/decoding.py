"""From CTC logits to text: the best path (with times), prefix beam search, and beam search with a language model.

All functions take ``logits`` (B, T, V), normalised or not, on any device and in any precision, and ``lengths`` (B,)
valid frames.
"""

from __future__ import annotations

import codecs
import gzip
import math
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speech_adapters.errors import InputError, TextError
from speech_adapters.text import Vocabulary

SECONDS_PER_FRAME = 0.02
"""One frame of wav2vec 2.0, HuBERT and WavLM: 320 samples at 16 kHz."""

# --- best path -----------------------------------------------------------------------------------------------------


def greedy_decode(logits: Tensor, lengths: Tensor, vocabulary: Vocabulary) -> list[str]:
    """The most probable symbol of each frame, repeats merged, blanks removed; one text an utterance."""
    ids = logits.argmax(-1)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    inside = torch.arange(ids.shape[1], device=ids.device) < lengths.to(ids.device)[:, None]
    kept = starts & inside & (ids != vocabulary.blank_id)
    symbols = ids[kept].tolist()
    ends = kept.sum(-1).cumsum(0).tolist()
    return [vocabulary.decode(symbols[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Segment:
    """A word or character with its ``start`` and ``end`` in seconds, and the model's ``confidence`` in it: the
    geometric mean, over the frames that carry its symbols, of the best symbol's posterior (0 to 1)."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class TimedText:
    """A decoded utterance with the times of its words and of their characters or subwords (spaces left out).

    Where words are not told apart (``Vocabulary.has_words``), each symbol stands for a word.
    """

    text: str
    words: tuple[Segment, ...]
    characters: tuple[Segment, ...]


def greedy_decode_with_timestamps(
    logits: Tensor, lengths: Tensor, vocabulary: Vocabulary, *, seconds_per_frame: float = SECONDS_PER_FRAME
) -> list[TimedText]:
    """:func:`greedy_decode` with times: a character lasts as long as its run of equal frames, a word from its first
    character to its last. CTC peaks are short, so ends come early; starts are good to a few frames."""
    best, ids = logits.float().log_softmax(-1).max(-1)
    log_probs, symbols = best.cpu().double().numpy(), ids.cpu().numpy()
    return [
        timed_text(symbols[i, :length], log_probs[i, :length], vocabulary, seconds_per_frame)
        for i, length in enumerate(lengths.tolist())
    ]


def timed_text(ids: np.ndarray, log_probs: np.ndarray, vocabulary: Vocabulary, seconds: float) -> TimedText:
    """The text of one path: ``ids`` (T,) its symbol in each frame of ``seconds``, ``log_probs`` (T,) their logarithmic
    posteriors. A path of any decoder has times in this way: see :func:`align`."""
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    ends = np.append(starts, len(ids))[1:]
    words: list[list[tuple[str, int, int]]] = [[]]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        spelled = vocabulary.spelled[ids[start]]  # blank and special tokens have nothing
        if spelled and (spelled[0] == " " or not vocabulary.has_words):
            words.append([])
        if text := spelled.strip():
            words[-1].append((text, start, end))

    def segment(runs: list[tuple[str, int, int]]) -> Segment:
        frames = np.concatenate([log_probs[start:end] for _, start, end in runs])
        text = "".join(text for text, _, _ in runs)
        return Segment(text, runs[0][1] * seconds, runs[-1][2] * seconds, math.exp(frames.mean()))

    words = [runs for runs in words if runs]
    spoken = tuple(segment(runs) for runs in words)
    characters = tuple(segment([run]) for runs in words for run in runs)
    return TimedText(vocabulary.decode(ids[starts]), spoken, characters)


def align(log_probs: Tensor, tokens: Sequence[int], blank: int) -> np.ndarray:
    """The most probable path (T,) through ``log_probs`` (T, V) that spells ``tokens``, none of them ``blank``.

    Raises:
        TextError: more tokens than the frames have room for.
    """
    if not tokens:
        return np.full(len(log_probs), blank)
    from torchaudio.functional import forced_align

    try:
        path, _ = forced_align(log_probs[None].float().contiguous(), torch.tensor([tokens]), blank=blank)
    except RuntimeError as error:
        raise TextError(f"{len(tokens)} symbols do not fit into {len(log_probs)} frames") from error
    return path[0].numpy()


# --- beam search ---------------------------------------------------------------------------------------------------


def prefix_beam_search(log_probs: np.ndarray, blank: int, beam_size: int = 32) -> list[tuple[tuple[int, ...], float]]:
    """The most probable symbol sequences of one utterance, best first, each with its log probability.

    ``log_probs`` (T, V). Each prefix carries the probability of its alignments that end in blank and of those that
    do not, so alignments of the same text add up (Graves, 2012, 7.5.3; Hannun et al., 2014, algorithm 1). Exact when
    ``beam_size`` holds all prefixes.
    """
    # Prefixes are nodes of a tree, 0 the empty one; one that leaves the beam and comes back is the same node.
    parents, symbols = [-1], [blank]
    children: dict[tuple[int, int], int] = {}
    nodes, in_blank, in_symbol = [0], np.zeros(1), np.full(1, -np.inf)
    for frame in log_probs:
        size, last = len(nodes), np.array([symbols[node] for node in nodes])
        total = np.logaddexp(in_blank, in_symbol)
        grown = total[:, None] + frame
        grown[np.arange(size), last] = in_blank + frame[last]  # a symbol repeats only across a blank
        grown[:, blank] = -np.inf
        same_blank, same_symbol = total + frame[blank], in_symbol + frame[last]
        # A prefix is also reached by growing its parent: where both are in the beam, it is one candidate.
        place = {node: i for i, node in enumerate(nodes)}
        pairs = [(i, place[parents[node]]) for i, node in enumerate(nodes) if parents[node] in place]
        child, parent = np.array(pairs, dtype=int).reshape(-1, 2).T
        same_symbol[child] = np.logaddexp(same_symbol[child], grown[parent, last[child]])
        grown[parent, last[child]] = -np.inf

        scores = np.concatenate([np.logaddexp(same_blank, same_symbol), grown.ravel()])
        best = np.argsort(-scores, kind="stable")[:beam_size]
        best = best[scores[best] > -np.inf]
        is_grown = best >= size
        row = np.where(is_grown, (best - size) // len(frame), best)
        symbol = (best - size) % len(frame)  # of those that grew
        in_blank = np.where(is_grown, -np.inf, same_blank[row])
        in_symbol = np.where(is_grown, grown[row, symbol], same_symbol[row])
        survivors = []
        for new, i, s in zip(is_grown.tolist(), row.tolist(), symbol.tolist(), strict=True):
            node = nodes[i]
            if new:
                node = children.setdefault((nodes[i], s), len(parents))
                if node == len(parents):
                    parents.append(nodes[i])
                    symbols.append(s)
            survivors.append(node)
        nodes = survivors

    def spell(node: int) -> tuple[int, ...]:
        backwards = []
        while node:
            backwards.append(symbols[node])
            node = parents[node]
        return tuple(reversed(backwards))

    return list(zip(map(spell, nodes), np.logaddexp(in_blank, in_symbol).tolist(), strict=True))


class BeamSearch:
    """A decoder to build once and call on batches: ``BeamSearch(vocabulary, lm_path="4-gram.arpa")(logits, lengths)``.

    Without ``lm_path``: :func:`prefix_beam_search`, in which ``alpha`` and ``beta`` play no part. With it:
    Flashlight's lexicon decoder (Kahn et al., 2022) through torchaudio, which finds the words ``W`` that maximise::

        log P_ctc(W) + alpha * log P_lm(W) + beta * |W|          (natural logarithms)

    ``lm_path`` is a word n-gram model, ARPA (``.arpa``, ``.arpa.gz``) or KenLM binary. Only words of ``lexicon_path``
    (a word a line) can come out, by default the ARPA file's own; words the vocabulary cannot spell are left out.
    ``alpha`` 0.5 and ``beta`` 1.5 are pyctcdecode's defaults, a fair start: tune both on held-out speech.

    ``hotwords`` (names, products) join the lexicon, and each time that one is said adds ``hotword_weight`` to the sum,
    10 as in pyctcdecode; they need the language model.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        beam_size: int = 32,
        lm_path: str | Path | None = None,
        lexicon_path: str | Path | None = None,
        alpha: float = 0.5,
        beta: float = 1.5,
        hotwords: Sequence[str] = (),
        hotword_weight: float = 10.0,
    ) -> None:
        if beam_size < 1:
            raise InputError(f"beam_size={beam_size} must be at least 1")
        if hotwords and (lm_path is None or not alpha > 0):
            raise InputError("hotwords are weighed against a language model: give lm_path, and alpha above 0")
        self.vocabulary = vocabulary
        self.beam_size = beam_size
        self._flashlight: Any = None
        if lm_path is not None:
            words = _read_words(Path(lm_path), Path(lexicon_path) if lexicon_path else None)
            bonus = dict.fromkeys(hotwords, hotword_weight)
            self._flashlight = _flashlight_decoder(vocabulary, Path(lm_path), words, beam_size, alpha, beta, bonus)

    def __call__(self, logits: Tensor, lengths: Tensor) -> list[str]:
        return [self.vocabulary.decode(tokens) for tokens in self.tokens(logits, lengths)]

    def tokens(self, logits: Tensor, lengths: Tensor) -> list[list[int]]:
        """The ids of the best symbols of each utterance, which :func:`align` finds the times of."""
        log_probs = logits.float().log_softmax(-1).cpu()
        utterances = [log_probs[i, :length] for i, length in enumerate(lengths.tolist())]
        search = self._without_lm if self._flashlight is None else self._with_lm
        return [list(search(utterance)) for utterance in utterances]

    def _without_lm(self, log_probs: Tensor) -> tuple[int, ...]:
        return prefix_beam_search(log_probs.double().numpy(), self.vocabulary.blank_id, self.beam_size)[0][0]

    def _with_lm(self, log_probs: Tensor) -> list[int]:
        # The lexicon's words end in a delimiter but transcripts do not: one more frame closes the last word.
        close = torch.full((1, log_probs.shape[1]), -1e4)
        close[0, self.vocabulary.delimiter_id] = 0.0
        hypotheses = self._flashlight(torch.cat([log_probs, close])[None].contiguous())[0]
        tokens = hypotheses[0].tokens.tolist() if hypotheses else []
        between = [token == self.vocabulary.delimiter_id for token in tokens]
        words = [place for place, delimits in enumerate(between) if not delimits]
        return tokens[words[0] : words[-1] + 1] if words else []  # without that frame's


def beam_search(logits: Tensor, lengths: Tensor, vocabulary: Vocabulary, **options: Any) -> list[str]:
    """:class:`BeamSearch` for one batch, with its options; build the class yourself to load a model only once."""
    return BeamSearch(vocabulary, **options)(logits, lengths)


def _flashlight_decoder(
    vocabulary: Vocabulary,
    lm_path: Path,
    words: list[str],
    beam_size: int,
    alpha: float,
    beta: float,
    bonus: Mapping[str, float],
) -> Any:
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
    lexicon = []
    for word in dict.fromkeys((*words, *bonus)):
        # Models are published in lower as well as upper case; the spelling follows the vocabulary's.
        spelling = next((s for s in (word, word.upper(), word.lower()) if set(s) <= characters), None)
        if spelling:
            lexicon.append(f"{word} {' '.join(spelling)} {vocabulary.delimiter}\n")
        elif word in bonus:
            raise TextError(f"hotword {word!r}: the vocabulary cannot spell it; give single words in its letters")
    if not lexicon:
        raise TextError(
            f"{lm_path}: the vocabulary spells none of its {len(words)} words; use a model of its language"
        )
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lexicon", encoding="utf-8") as file,
        _without_preface(lm_path) as readable,
    ):
        file.writelines(lexicon)
        file.flush()
        try:
            return ctc_decoder(
                lexicon=file.name,
                tokens=list(vocabulary.tokens),
                lm=_with_bonus(readable, file.name, bonus, alpha) if bonus else readable,
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
            raise TextError(f"{lexicon_path}: cannot be read as UTF-8 text ({error}); give a word a line") from error
        words = [columns[0] for line in rows if (columns := line.split())]
    elif is_binary:
        raise TextError(
            f"{lm_path}: a KenLM binary does not list its words; give a file of words, one a line, with lexicon_path= "
            "(recipes/evaluate_asr.py: --lexicon), or the ARPA file that it was made from"
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
    except (ValueError, LookupError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, TextError):
            raise
        raise TextError(damaged) from error
    if not whole:
        raise TextError(damaged)
    return [word for word in words if not (word.startswith("<") and word.endswith(">"))]
