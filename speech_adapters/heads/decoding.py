"""From CTC logits to text: the best path (with times), prefix beam search, and beam search with a language model.

All functions take ``logits`` (B, T, V), normalised or not, on any device and in any precision, and ``lengths`` (B,)
valid frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speech_adapters.errors import InputError, TextError
from speech_adapters.heads.language_models import flashlight_decoder
from speech_adapters.text import Vocabulary

SECONDS_PER_FRAME = 0.02
"""One frame of wav2vec 2.0, HuBERT and WavLM: 320 samples at 16 kHz."""

# --- best path -----------------------------------------------------------------------------------------------------


def greedy_decode(logits: Tensor, lengths: Tensor, vocabulary: Vocabulary) -> list[str]:
    """The most probable symbol of each frame, repeats merged, blanks removed; one text per utterance."""
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
    (a word per line) can come out, by default the ARPA file's own; words the vocabulary cannot spell are left out.
    ``alpha`` 0.5 and ``beta`` 1.5 are pyctcdecode's defaults, a fair start: tune both on held-out speech.

    ``hotwords`` (names, products) join the lexicon, and each time that one is said adds ``hotword_weight`` to the sum,
    10 as in pyctcdecode; they need the language model. One that the lexicon has in another case is that word.
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
            self._flashlight = flashlight_decoder(
                vocabulary,
                Path(lm_path),
                Path(lexicon_path) if lexicon_path else None,
                beam_size=beam_size,
                alpha=alpha,
                beta=beta,
                bonus=dict.fromkeys(hotwords, hotword_weight),
            )

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
