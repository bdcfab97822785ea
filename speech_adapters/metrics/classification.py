"""Utterance classification (emotion, intent, ...): UA, WA, macro-F1 and the figures of each class, with intervals.

- UA, unweighted average recall (UAR, balanced accuracy): the mean of the classes' recalls; chance is 1 / classes
- WA, weighted accuracy: right utterances by all utterances; flattered by a frequent class
- macro-F1: the mean over classes of 2 TP / (utterances of the class + predictions of the class)

Classes without an utterance in the test set do not enter the means, as in scikit-learn's ``balanced_accuracy_score``;
predicting one of them is a mistake like any other. Some papers and codes swap the names UA and WA: compare with care.
Intervals bootstrap by speaker (Bisani and Ney 2004); a class missing from a draw does not enter that draw's means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from speech_adapters.errors import InputError, counted
from speech_adapters.metrics.bootstrap import Interval, bootstrap_sums
from speech_adapters.text.spellings import difference, quoted, spelt_differently


@dataclass(frozen=True)
class ClassifiedUtterance:
    """One utterance: its true ``label`` and the ``prediction``; ``probabilities`` (C,) in the result's label order."""

    id: str
    speaker: str | None
    label: str
    prediction: str
    probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class; ``support`` is its number of utterances. Precision is 0 where it is never predicted."""

    support: int
    recall: Interval
    precision: Interval
    f1: Interval


@dataclass(frozen=True)
class ClassificationResult:
    """Figures of a test set. Made by :func:`score_classification`; several, of folds and seeds, by :meth:`combine`."""

    labels: tuple[str, ...]
    ua: Interval
    wa: Interval
    macro_f1: Interval
    per_class: dict[str, ClassScores]
    """The classes that the test set holds, in the order of ``labels``."""
    runs: tuple[tuple[ClassifiedUtterance, ...], ...]
    """The utterances as each run (seed) classified them; the figures are means over runs."""

    @classmethod
    def combine(cls, results: Sequence[ClassificationResult], *, n: int = 1000, seed: int = 0) -> ClassificationResult:
        """Pool the predictions of folds and average over seeds, whatever the order of the folds.

        The k-th result that holds an utterance is its k-th run; every utterance needs equally many. So the folds of
        one seed make one pooled run, and UA is computed on the whole corpus rather than averaged over small folds.

        Raises:
            InputError: no result, different labels, or utterances with unequal numbers of predictions.
        """
        if not results:
            raise InputError("combine: no results given; score at least one test set")
        if len({result.labels for result in results}) > 1:
            raise InputError("combine: the results are of different label sets; train all folds and seeds on one set")
        found: dict[str, list[ClassifiedUtterance]] = {}
        for result in results:
            for run in result.runs:
                for utterance in run:
                    found.setdefault(utterance.id, []).append(utterance)
        count = len(next(iter(found.values())))
        if uneven := [name for name, predictions in found.items() if len(predictions) != count]:
            raise InputError(
                f"combine: utterance {uneven[0]!r} has {len(found[uneven[0]])} predictions, others have {count}; "
                "every seed must score the same folds, and no utterance may be in two of them"
            )
        return _score(tuple(zip(*found.values(), strict=True)), results[0].labels, n, seed)

    @property
    def confusion(self) -> np.ndarray:
        """(C, C) utterances by true label (rows) and prediction (columns); the mean over runs."""
        place = {label: index for index, label in enumerate(self.labels)}
        counts = np.zeros((len(place), len(place)))
        for run in self.runs:
            for utterance in run:
                counts[place[utterance.label], place[utterance.prediction]] += 1
        return counts / len(self.runs)

    def mistakes(self, n: int = 10) -> list[ClassifiedUtterance]:
        """Wrong predictions of the first run, the most confident first: mislabelled, or what the model cannot hear."""
        wrong = [utterance for utterance in self.runs[0] if utterance.prediction != utterance.label]
        return sorted(wrong, key=lambda u: (-(self.probability(u, u.prediction) or 0.0), u.id))[:n]

    def probability(self, utterance: ClassifiedUtterance, label: str) -> float | None:
        """What the model gave to a label, where probabilities are known."""
        probabilities = utterance.probabilities
        return None if probabilities is None else probabilities[self.labels.index(label)]

    def to_dict(self) -> dict[str, Any]:
        """The figures, without the utterances, in plain values; ``ua_by_run`` where there are several runs."""
        counts = self.confusion
        whole = counts.astype(int) if (counts == counts.round()).all() else counts
        per_class = {
            name: {"support": c.support} | {key: getattr(c, key).to_dict() for key in ("recall", "precision", "f1")}
            for name, c in self.per_class.items()
        }
        recalls = [_recalls(run) for run in self.runs]
        by_run = {"ua_by_run": [float(np.mean(run)) for run in recalls]} if len(self.runs) > 1 else {}
        return {
            "ua": self.ua.to_dict(),
            "wa": self.wa.to_dict(),
            "macro_f1": self.macro_f1.to_dict(),
            **by_run,
            "utterances": len(self.runs[0]),
            "per_class": per_class,
            "confusion": {"labels": list(self.labels), "counts": whole.tolist()},
        }

    def __str__(self) -> str:
        head = ("class", "utterances", "recall", "precision", "F1")
        rows = [
            (name, str(c.support), c.recall.percent(), c.precision.percent(), c.f1.percent())
            for name, c in self.per_class.items()
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
        ]
        runs = f" (mean of {len(self.runs)} runs)" if len(self.runs) > 1 else ""
        figures = f"UA {self.ua.percent()}, WA {self.wa.percent()}, macro-F1 {self.macro_f1.percent()}"
        of = f"{counted(len(self.runs[0]), 'utterance')}, {counted(len(self.per_class), 'class', 'classes')}"
        return "\n".join([f"{figures}: {of}{runs}", "", *lines])


def score_classification(
    references: Sequence[str],
    predictions: Sequence[str],
    speakers: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    *,
    labels: Sequence[str] | None = None,
    probabilities: Sequence[Sequence[float]] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> ClassificationResult:
    """Score ``predictions`` against the true labels ``references``, one entry per utterance.

    Args:
        speakers: what the intervals resample (``n`` draws from ``seed``); utterances where they are not known.
        ids: names of the utterances; by default their places.
        labels: all classes that the model knows, in its order; by default those that occur, sorted.
        probabilities: (N, C), in the order of ``labels``.

    Raises:
        InputError: nothing to score, arguments of unequal length, a prediction that is not among ``labels``, or what
            :func:`check_labels_of` raises.
    """
    size = len(references)
    if not size:
        raise InputError("references: none given; the accuracy of an empty test set is not defined")
    ids = list(map(str, range(size))) if ids is None else list(ids)
    speakers = [None] * size if speakers is None else list(speakers)
    rows = [None] * size if probabilities is None else [tuple(map(float, row)) for row in probabilities]
    labels = tuple(sorted({*references, *predictions}) if labels is None else labels)
    for name, given in (("predictions", predictions), ("speakers", speakers), ("ids", ids), ("probabilities", rows)):
        if len(given) != size:
            raise InputError(f"{name}: {len(given)} entries for {size} references; give one each")
    check_labels_of(references, ids, labels)
    _check_known("prediction", predictions, ids, labels)
    if wrong := [name for name, row in zip(ids, rows, strict=True) if row is not None and len(row) != len(labels)]:
        raise InputError(f"utterance {wrong[0]!r}: give {len(labels)} probabilities, one for each of the labels")
    utterances = tuple(
        ClassifiedUtterance(*entry) for entry in zip(ids, speakers, references, predictions, rows, strict=True)
    )
    return _score((utterances,), labels, n, seed)


def compare_ua(a: ClassificationResult, b: ClassificationResult, *, n: int = 1000, seed: int = 0) -> Interval:
    """The difference ``UA(a) - UA(b)`` of two systems on the same utterances, both scored on the same draws.

    An interval that excludes 0 is a significant difference at 5 %. Several runs of a system count as their mean.

    Raises:
        InputError: other utterances or labels in the one than in the other.
    """
    truth = {utterance.id: utterance.label for utterance in a.runs[0]}
    if {utterance.id: utterance.label for utterance in b.runs[0]} != truth:
        raise InputError("the two results hold different utterances or labels; score both on the same manifest")
    classes = sorted(set(truth.values()))
    order = [utterance.id for utterance in a.runs[0]]
    label = np.array([classes.index(truth[name]) for name in order])

    def hits(result: ClassificationResult) -> np.ndarray:
        """(N,) how often the runs were right, as a share of them."""
        right = [{u.id: u.label == u.prediction for u in run} for run in result.runs]
        return np.array([sum(run[name] for run in right) / len(right) for name in order])

    gained = hits(a) - hits(b)
    one_hot = np.eye(len(classes))[label]

    def difference(sums: np.ndarray) -> np.ndarray:
        """(D, 2 C) sums of utterances and of what was gained, by class -> (D, 1); NaN: no class is there."""
        support = np.where(sums[:, : len(classes)] > 0, sums[:, : len(classes)], np.nan)
        return np.nanmean(sums[:, len(classes) :] / support, axis=1, keepdims=True)

    counts = np.concatenate([one_hot, one_hot * gained[:, None]], axis=1)
    return bootstrap_sums(difference, counts, [utterance.speaker for utterance in a.runs[0]], n=n, seed=seed)[0]


def check_labels_of(references: Sequence[str], ids: Sequence[str], labels: Sequence[str]) -> None:
    """All that scoring asks of a test set, before anything is predicted: true labels ``references``, utterances
    ``ids``, classes ``labels``.

    Raises:
        InputError: a single class, a label that is not among ``labels``, classes that differ in case only, a repeated
            class or id.
    """
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise InputError(f"labels: {repeated[0]!r} stands there twice; name each class once")
    check_case(labels)
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        raise InputError(f"ids: {repeated[0]!r} is repeated; give each utterance its own id")
    _check_known("label", references, ids, labels)
    if len(set(references)) < 2:
        raise InputError(
            f"the only label is {references[0]!r}, of {counted(len(references), 'utterance')}; UA and F1 of a "
            "single class say nothing: give a test set with two classes or more"
        )


def check_case(labels: Iterable[str]) -> None:
    """InputError where classes differ in case, white space or Unicode form only: one class, written in two ways."""
    for alike in spelt_differently(labels):
        told = " and ".join(quoted(alike))
        raise InputError(f"the labels {told} differ in {difference(alike)} only; write them alike")


def _check_known(kind: str, given: Sequence[str], ids: Sequence[str], labels: Sequence[str]) -> None:
    known = set(labels)
    for name, value in zip(ids, given, strict=True):
        if value not in known:
            raise InputError(
                f"utterance {name!r}: {kind} {value!r} is unknown; the classes are {', '.join(labels)}: "
                "map it to one of them, or leave the utterance out"
            )


def _recalls(run: Sequence[ClassifiedUtterance]) -> list[float]:
    support = Counter(utterance.label for utterance in run)
    right = Counter(utterance.label for utterance in run if utterance.label == utterance.prediction)
    return [right[label] / count for label, count in support.items()]


def _score(
    runs: tuple[tuple[ClassifiedUtterance, ...], ...], labels: tuple[str, ...], n: int, seed: int
) -> ClassificationResult:
    place = {label: index for index, label in enumerate(labels)}
    classes, size = len(labels), len(runs[0])
    truth = np.array([place[utterance.label] for utterance in runs[0]])
    present = np.flatnonzero(np.bincount(truth, minlength=classes))
    # What an utterance adds: one to its class, and in each run one to its prediction and to the hits of its class.
    entries = [np.stack([np.arange(size), truth])]
    for index, run in enumerate(runs):
        guess = np.array([place[utterance.prediction] for utterance in run])
        hits = np.flatnonzero(guess == truth)
        entries.append(np.stack([np.arange(size), (1 + 2 * index) * classes + guess]))
        entries.append(np.stack([hits, (2 + 2 * index) * classes + truth[hits]]))
    places = np.concatenate(entries, axis=1)
    counts = csr_array((np.ones(places.shape[1]), places), shape=(size, (1 + 2 * len(runs)) * classes))

    def figures(sums: np.ndarray) -> np.ndarray:
        """(D, (1 + 2 R) C) sums -> UA, WA, macro-F1 and the recalls, precisions and F1s of the classes present."""
        table = sums.reshape(len(sums), 1 + 2 * len(runs), classes)[:, :, present]
        support = np.where(table[:, :1] > 0, table[:, :1], np.nan)  # NaN: the class is missing from this draw
        predicted, hits = table[:, 1::2], table[:, 2::2]
        recall = (hits / support).mean(1)
        precision = (hits / np.maximum(predicted, 1) + 0 * support).mean(1)
        f1 = (2 * hits / (support + predicted)).mean(1)
        accuracy = hits.sum((1, 2)) / len(runs) / np.nansum(support, (1, 2))
        means = np.stack([np.nanmean(recall, 1), accuracy, np.nanmean(f1, 1)], axis=1)
        return np.concatenate([means, recall, precision, f1], axis=1)

    speakers = [utterance.speaker for utterance in runs[0]]
    ua, wa, macro_f1, *of_classes = bootstrap_sums(figures, counts, speakers, n=n, seed=seed)
    recalls, precisions, f1s = (of_classes[i * len(present) : (i + 1) * len(present)] for i in range(3))
    support = np.bincount(truth, minlength=classes)
    scores = {
        labels[c]: ClassScores(int(support[c]), *three)
        for c, three in zip(present, zip(recalls, precisions, f1s, strict=True), strict=True)
    }
    return ClassificationResult(labels, ua, wa, macro_f1, scores, runs)
