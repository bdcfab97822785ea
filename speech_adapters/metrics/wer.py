"""Word and character error rate, with what it is made of: ``(substitutions + deletions + insertions) / words``.

Micro-averaged: errors of the whole test set by words of the whole test set. Alignment by jiwer; ``trn`` files let
NIST's sclite check the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from speech_adapters.errors import InputError, counted
from speech_adapters.files import write_text
from speech_adapters.metrics.bootstrap import Interval, bootstrap
from speech_adapters.text import Normalizer, normalize, normalizer_name, utterance_names


@dataclass(frozen=True)
class UtteranceScore:
    """One utterance's normalised texts and error counts (of words, unless named otherwise)."""

    id: str
    speaker: str | None
    reference: str
    hypothesis: str
    words: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_errors: int

    @property
    def errors(self) -> int:
        """Wrong words: substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Errors per word of the reference."""
        return self.errors / self.words

    def alignment(self, line_width: int | None = 100) -> str:
        """Reference over hypothesis, with S, D or I under each error.

        Lines are wrapped at ``line_width`` characters::

            REF: THE BLACK CAT SAT **** DOWN  HERE
            HYP: THE ***** CAT SAT VERY DOWN THERE
                         D            I          S
        """
        import jiwer

        output = jiwer.process_words([self.reference], [self.hypothesis])
        text = jiwer.visualize_alignment(output, show_measures=False, skip_correct=False, line_width=line_width)
        return text.split("\n\n", 1)[1].rstrip("\n")  # without jiwer's "=== SENTENCE 1 ==="


@dataclass(frozen=True)
class WERResult:
    """Error rates of a test set with their intervals (by speaker), and the score of each utterance."""

    wer: Interval
    cer: Interval
    utterances: tuple[UtteranceScore, ...]
    normalizer: str

    @property
    def words(self) -> int:
        """Words of all references."""
        return self._sum("words")

    @property
    def characters(self) -> int:
        """Characters of all references."""
        return self._sum("characters")

    @property
    def substitutions(self) -> int:
        """Words that became others."""
        return self._sum("substitutions")

    @property
    def deletions(self) -> int:
        """Words left out."""
        return self._sum("deletions")

    @property
    def insertions(self) -> int:
        """Words that nobody said."""
        return self._sum("insertions")

    def worst(self, n: int = 10) -> list[UtteranceScore]:
        """The utterances with most errors (they weigh most in the rate); of equals, those with fewer words first."""
        return sorted(self.utterances, key=lambda score: (-score.errors, score.words, score.id))[:n]

    def save_trn(self, folder: str | Path) -> None:
        """Write ``ref.trn`` and ``hyp.trn``: ``sclite -r ref.trn trn -h hyp.trn trn -i spu_id -s``."""
        ids = [score.id for score in self.utterances]
        speakers = [score.speaker for score in self.utterances]
        write_trn(Path(folder) / "ref.trn", [score.reference for score in self.utterances], ids, speakers)
        write_trn(Path(folder) / "hyp.trn", [score.hypothesis for score in self.utterances], ids, speakers)

    def to_dict(self) -> dict[str, Any]:
        """The figures, without the utterances, in plain values."""
        counts = ("words", "characters", "substitutions", "deletions", "insertions")
        return {
            "wer": self.wer.to_dict(),
            "cer": self.cer.to_dict(),
            "utterances": len(self.utterances),
            **{name: getattr(self, name) for name in counts},
            "normalizer": self.normalizer,
        }

    def __str__(self) -> str:
        return (
            f"WER {self.wer.percent()}, CER {self.cer.percent()}: {self.substitutions} substitutions, "
            f"{self.deletions} deletions, {self.insertions} insertions in {self.words} words of "
            f"{counted(len(self.utterances), 'utterance')}"
        )

    def _sum(self, name: str) -> int:
        return sum(getattr(score, name) for score in self.utterances)


def word_error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    speakers: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    *,
    normalizer: Normalizer = "librispeech",
    n: int = 1000,
    seed: int = 0,
) -> WERResult:
    """Score ``hypotheses`` (which may be empty) against ``references`` (which may not), one entry per utterance.

    Both go through ``normalizer`` first. ``speakers`` are what the intervals resample (``n`` draws from ``seed``);
    ``ids`` default to the utterances' places. Spaces count as characters in the CER, as in jiwer.
    """
    import jiwer

    size = len(references)
    ids = list(map(str, range(size))) if ids is None else list(ids)
    speakers = [None] * size if speakers is None else list(speakers)
    for name, given in (("hypotheses", hypotheses), ("speakers", speakers), ("ids", ids)):
        if len(given) != size:
            raise InputError(f"{name}: {len(given)} entries for {size} references; give one each")
    if not size:
        raise InputError("references: none given; the error rate of an empty test set is not defined")
    # Any white space separates words, but jiwer splits at spaces only.
    references = [" ".join(normalize(text, normalizer).split()) for text in references]
    hypotheses = [" ".join(normalize(text, normalizer).split()) for text in hypotheses]
    if empty := [ids[i] for i, text in enumerate(references) if not text]:
        raise InputError(
            f"the references of {utterance_names(empty)} have no words after the normaliser "
            f"{normalizer_name(normalizer)!r}; give their transcripts or leave these utterances out"
        )

    words, characters = jiwer.process_words(references, hypotheses), jiwer.process_characters(references, hypotheses)
    scores = []
    for i in range(size):
        found = _counts(words.alignments[i])
        scores.append(
            UtteranceScore(
                id=ids[i],
                speaker=speakers[i],
                reference=references[i],
                hypothesis=hypotheses[i],
                words=len(words.references[i]),
                substitutions=found["substitute"],
                deletions=found["delete"],
                insertions=found["insert"],
                characters=len(characters.references[i]),
                character_errors=sum(_counts(characters.alignments[i]).values()),
            )
        )
    interval = partial(bootstrap, groups=speakers, n=n, seed=seed)
    return WERResult(
        wer=interval([s.errors for s in scores], [s.words for s in scores]),
        cer=interval([s.character_errors for s in scores], [s.characters for s in scores]),
        utterances=tuple(scores),
        normalizer=normalizer_name(normalizer),
    )


def compare(a: WERResult, b: WERResult, *, n: int = 1000, seed: int = 0) -> Interval:
    """The difference ``WER(a) - WER(b)`` of two systems on the same utterances, both scored on the same draws.

    An interval that excludes 0 is a significant difference at 5 % (Bisani and Ney, 2004, section 4); it is far
    narrower than the two systems' own intervals, since an utterance that is hard for one is hard for the other.
    """
    others = {score.id: score for score in b.utterances}
    if len(others) != len(b.utterances) or {score.id for score in a.utterances} != set(others):
        raise InputError("the two results hold different or repeated utterance ids; score both on the same manifest")
    for score in a.utterances:
        if score.reference != others[score.id].reference:
            raise InputError(
                f"the reference of {score.id!r} differs between the two results; score both with one normaliser"
            )
    return bootstrap(
        [score.errors - others[score.id].errors for score in a.utterances],
        [score.words for score in a.utterances],
        [score.speaker for score in a.utterances],
        n=n,
        seed=seed,
    )


def pooled_metrics(results: Sequence[WERResult]) -> dict[str, Any]:
    """``wer`` and ``cer`` of several runs or test sets taken together, intervals by speaker, and mean counts."""
    scores = [score for result in results for score in result.utterances]
    interval = partial(bootstrap, groups=[s.speaker for s in scores], ids=[s.id for s in scores])
    metrics: dict[str, Any] = {
        "wer": interval([s.errors for s in scores], [s.words for s in scores]).to_dict(),
        "cer": interval([s.character_errors for s in scores], [s.characters for s in scores]).to_dict(),
    }
    for count in ("words", "characters", "substitutions", "deletions", "insertions"):
        metrics[count] = round(sum(getattr(result, count) for result in results) / len(results))
    return metrics


def write_trn(
    path: str | Path, texts: Sequence[str], ids: Sequence[str], speakers: Sequence[str | None] | None = None
) -> None:
    """Write sclite's transcript format, ``text (speaker-id)`` per line; speakers that are not known are ``unknown``.

    White space, brackets and ``%``, which names in this format cannot hold, are percent-encoded: ``call (2).wav`` is
    written as ``call%20%282%29.wav`` (``urllib.parse.unquote`` reads it back).
    """
    speakers = [None] * len(ids) if speakers is None else speakers
    lines = [trn_line(*utterance) for utterance in zip(texts, ids, speakers, strict=True)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))


def trn_line(text: str, id_: str, speaker: str | None = None) -> str:
    """One line of :func:`write_trn`."""
    return f"{text} ({sclite_name(speaker or 'unknown')}-{sclite_name(id_)})\n"


def sclite_name(name: str) -> str:
    """A name as sclite's formats can hold it: white space, brackets and ``%`` percent-encoded."""
    return "".join(quote(symbol) if symbol.isspace() or symbol in "()%" else symbol for symbol in name)


def _counts(alignment: Sequence[Any]) -> dict[str, int]:
    """Errors of each kind in one of jiwer's alignments."""
    counts = {"substitute": 0, "delete": 0, "insert": 0}
    for chunk in alignment:
        if chunk.type != "equal":
            size = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            counts[chunk.type] += size
    return counts
