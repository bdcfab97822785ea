"""Two systems on the same utterances: how far apart they are, whether that is more than chance, and where they differ.

    difference d = sum_i c_i        c_i: what utterance i adds: errors by all words, hits by those of its class

- The interval of ``d`` is a paired bootstrap by speaker: both systems are scored on the same draws (Bisani and Ney,
  ICASSP 2004, section 4).
  Of trials, c_i is the share of a half that an error at the system's own equal error rate takes, and both systems are
  scored on the same draws of speakers (:mod:`speech_adapters.metrics.trial_bootstrap`).
- The p-value is a sign-flip permutation test by speaker: if the systems were equal, swapping their outputs on all
  utterances of a speaker would change nothing, so each speaker's sum of ``c_i`` may have either sign. All 2^S patterns
  of up to 12 speakers are counted, 10,000 random ones of more (Good, "Permutation Tests", 2000, chapter 3; the p-value
  of random patterns is (1 + as far) / (1 + patterns), Phipson and Smyth, 2010).

A difference is only called one where the interval excludes 0 and p is below 0.05. Over few speakers neither says much:
with five, the smallest p that can be is 2 / 2^5 = 0.0625.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from speech_adapters.errors import InputError
from speech_adapters.metrics.bootstrap import Interval
from speech_adapters.metrics.classification import ClassificationResult, compare_ua
from speech_adapters.metrics.detection import RankedTrials, detection_curve
from speech_adapters.metrics.trial_bootstrap import bootstrap_trials
from speech_adapters.metrics.wer import WERResult, compare

LEVEL = 0.05
FEW_SPEAKERS = 6
"""Fewer are too few for an interval or a test over speakers."""
_MOST_ENUMERATED = 12


@dataclass(frozen=True)
class Change:
    """An utterance on which two systems differ: what each said, and by how many errors or hits the first is better."""

    id: str
    speaker: str | None
    reference: str
    a: str
    b: str
    gain: float


@dataclass(frozen=True)
class Comparison:
    """Of system a with system b.

    Attributes:
        metric: "wer", "ua" or "eer".
        difference: of a minus b, as a fraction, with its 95 % interval.
        p_value: of the permutation test, two-sided; after :func:`correct`, for as many comparisons.
        wins, ties, losses: utterances, or trials, on which a is better, as good, worse.
        speakers: that are known; 0 where utterances were drawn instead.
        changes: the utterances that differ, those that differ most first.
    """

    metric: str
    difference: Interval
    p_value: float
    wins: int
    ties: int
    losses: int
    speakers: int
    changes: tuple[Change, ...]

    @property
    def differs(self) -> bool:
        """Whether the difference is more than chance."""
        return self.p_value < LEVEL and not self.difference.low <= 0 <= self.difference.high

    @property
    def a_is_better(self) -> bool:
        """Whether a has fewer errors or more hits; of :attr:`differs` alone a finding."""
        return (self.difference.value < 0) == (self.metric != "ua")

    @property
    def items(self) -> str:
        """What wins, ties and losses count."""
        return "trials" if self.metric == "eer" else "utterances"

    @property
    def warning(self) -> str | None:
        """What is to be known before any of it is believed."""
        if self.speakers == 0:
            drawn = f"the speakers are not known: single {self.items} were drawn"
            return f"{drawn}, and the interval says nothing of other speakers"
        if self.speakers < FEW_SPEAKERS:
            return (
                f"{self.speakers} speaker{'' if self.speakers == 1 else 's'}: fewer than {FEW_SPEAKERS} say little of "
                "others, and the interval is too narrow"
            )
        return None


def compare_transcripts(a: WERResult, b: WERResult, *, n: int = 1000, seed: int = 0) -> Comparison:
    """The difference in WER of two systems that heard the same utterances.

    Raises:
        InputError: other utterances or references in the one than in the other.
    """
    interval = compare(a, b, n=n, seed=seed)
    others = {score.id: score for score in b.utterances}
    words = sum(score.words for score in a.utterances)
    fewer = np.array([others[score.id].errors - score.errors for score in a.utterances], dtype=float)
    changes = [
        Change(score.id, score.speaker, score.reference, score.hypothesis, others[score.id].hypothesis, gain)
        for score, gain in zip(a.utterances, fewer.tolist(), strict=True)
    ]
    return _comparison("wer", interval, -fewer / words, fewer, changes, seed)


def compare_classes(a: ClassificationResult, b: ClassificationResult, *, n: int = 1000, seed: int = 0) -> Comparison:
    """The difference in UA of two systems that classified the same utterances; several runs count as their mean.

    Raises:
        InputError: other utterances or labels in the one than in the other.
    """
    interval = compare_ua(a, b, n=n, seed=seed)
    first = a.runs[0]
    support = {label: sum(u.label == label for u in first) for label in {u.label for u in first}}
    said: list[dict[str, list[str]]] = [{u.id: [] for u in first} for _ in "ab"]
    for kept, result in zip(said, (a, b), strict=True):
        for run in result.runs:
            for u in run:
                kept[u.id].append(u.prediction)

    def hits(kept: dict[str, list[str]]) -> np.ndarray:
        return np.array([np.mean([guess == u.label for guess in kept[u.id]]) for u in first])

    def guesses(kept: dict[str, list[str]], name: str) -> str:
        return ", ".join(dict.fromkeys(kept[name]))

    gained = hits(said[0]) - hits(said[1])
    weights = np.array([1 / (len(support) * support[u.label]) for u in first])
    changes = [
        Change(u.id, u.speaker, u.label, guesses(said[0], u.id), guesses(said[1], u.id), gain)
        for u, gain in zip(first, gained.tolist(), strict=True)
    ]
    return _comparison("ua", interval, gained * weights, gained, changes, seed)


@dataclass(frozen=True)
class TrialScores:
    """What one system's trainings said of a list of trials.

    Attributes:
        scores: (K, n) of K trainings, higher for targets. labels: (n,) true for targets.
        names: (n,) of the trials. speakers: (n,) numbers of both speakers of each, or None.
    """

    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    speakers: tuple[np.ndarray, np.ndarray] | None


def compare_trials(a: TrialScores, b: TrialScores, *, n: int = 1000, seed: int = 0) -> Comparison:
    """The difference in EER of two systems that scored the same trials; several trainings count as their mean.

    In the permutation test a trial belongs to the speaker of its first side, so that p is somewhat too small where the
    second side's speakers differ much: :attr:`Comparison.differs` asks the interval, which draws both, as well.

    Raises:
        InputError: other trials in the one than in the other.
    """
    if a.names != b.names or not np.array_equal(a.labels, b.labels):
        raise InputError("the runs scored other trials; a paired comparison needs the same ones")
    ranked = [[RankedTrials(scores, a.labels) for scores in one.scores] for one in (a, b)]

    def figures(weights: np.ndarray | None) -> dict[str, float] | None:
        curves = [[trials.curve(weights) for trials in one] for one in ranked]
        rates = [[curve.eer().value for curve in one if curve is not None] for one in curves]
        return {"eer": float(np.mean(rates[0]) - np.mean(rates[1]))} if all(rates) else None

    interval = bootstrap_trials(figures, a.labels, a.speakers, n=n, seed=seed)["eer"]
    accepted = [[s >= detection_curve(s, a.labels).eer().threshold for s in one.scores] for one in (a, b)]
    right = [np.mean([said == a.labels for said in one], axis=0) for one in accepted]
    gains = right[0] - right[1]
    said = [_verdicts(np.array(one)) for one in accepted]
    truth = np.where(a.labels, "same speaker", "two speakers").tolist()
    changes = [Change(name, None, *rest) for name, *rest in zip(a.names, truth, *said, gains.tolist(), strict=True)]
    shares = np.where(a.labels, a.labels.sum(), (~a.labels).sum())
    speakers = None if a.speakers is None else a.speakers[0].tolist()
    return _comparison("eer", interval, -gains / (2 * shares), gains, changes, seed, speakers)


def _verdicts(accepted: np.ndarray) -> list[str]:
    """What (K, n) verdicts, each at its training's own threshold, say of each trial."""
    count, trainings = accepted.sum(axis=0), len(accepted)
    said = np.where(count == trainings, "accepted", np.where(count == 0, "refused", "now accepted, now refused"))
    return said.tolist()


def _comparison(
    metric: str,
    interval: Interval,
    contributions: np.ndarray,
    gains: np.ndarray,
    changes: Sequence[Change],
    seed: int,
    speakers: Sequence[Any] | None = None,
) -> Comparison:
    speakers = speakers or [change.speaker for change in changes]
    known = set(speakers) if None not in speakers else set()
    different = [change for change in changes if change.gain or change.a != change.b]
    return Comparison(
        metric=metric,
        difference=interval,
        p_value=sign_flip_test(contributions, speakers, seed=seed),
        wins=int((gains > 0).sum()),
        ties=int((gains == 0).sum()),
        losses=int((gains < 0).sum()),
        speakers=len(known),
        changes=tuple(sorted(different, key=lambda change: (-abs(change.gain), change.id))),
    )


def sign_flip_test(contributions: ArrayLike, groups: Sequence[str | None], *, n: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a sum under random signs of its groups' parts; without two known groups, of its items.

    Args:
        contributions: (N,) what each item adds to the difference.
        groups: (N,) the group (speaker) of each.
        n: random patterns of signs, where there are more than 12 groups.
    """
    values = np.asarray(contributions, dtype=float)
    names, member = np.unique(np.asarray([group or "" for group in groups], dtype=str), return_inverse=True)
    sums = values if None in groups or len(names) < 2 else np.bincount(member, weights=values)
    sums = sums[sums != 0]  # the sign of nothing is nothing
    reached = abs(sums.sum()) * (1 - 1e-9)  # the same sum in another order may be a hair smaller
    if len(sums) <= _MOST_ENUMERATED:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= reached).mean()) if len(sums) else 1.0
    draw, far = np.random.default_rng(seed), 0
    for start in range(0, n, 1000):
        signs = draw.choice((-1.0, 1.0), size=(min(1000, n - start), len(sums)))
        far += int((np.abs(signs @ sums) >= reached).sum())
    return (1 + far) / (1 + n)


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with p-values that hold for all of them together (Holm, 1979): of ten, one would else be
    found by chance in two out of five cases."""
    order = sorted(range(len(comparisons)), key=lambda i: comparisons[i].p_value)
    corrected, largest = list(comparisons), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * comparisons[i].p_value))
        corrected[i] = replace(comparisons[i], p_value=largest)
    return corrected
