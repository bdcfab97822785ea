"""UA, WA and macro-F1 against scikit-learn, their intervals against redrawn test sets, folds and seeds combined."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from speech_adapters.errors import InputError
from speech_adapters.metrics.bootstrap import bootstrap_statistic, bootstrap_sums
from speech_adapters.metrics.classification import ClassificationResult, check_labels_of, score_classification

LABELS = ("angry", "happy", "neutral", "sad")
ROWS = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), st.sampled_from("abc")), min_size=2, max_size=40
)


def draw(size: int = 200, seed: int = 0, speakers: int = 8, right: float = 0.5):
    rng = np.random.default_rng(seed)
    references = rng.choice(LABELS, size, p=(0.5, 0.3, 0.15, 0.05))
    predictions = np.where(rng.random(size) < right, references, rng.choice(LABELS, size))
    return references.tolist(), predictions.tolist(), [f"s{i % speakers}" for i in range(size)]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_figures_are_those_of_scikit_learn(rows):
    references, predictions, speakers = zip(*rows, strict=True)
    assume(len(set(references)) > 1)
    result = score_classification(references, predictions, speakers, labels=LABELS, n=20)
    present = sorted(set(references))
    assert result.ua.value == pytest.approx(balanced_accuracy_score(references, predictions))
    assert result.wa.value == pytest.approx(accuracy_score(references, predictions))
    f1 = f1_score(references, predictions, labels=present, average="macro", zero_division=0)
    assert result.macro_f1.value == pytest.approx(f1)
    assert (result.confusion == confusion_matrix(references, predictions, labels=LABELS)).all()
    figures = precision_recall_fscore_support(references, predictions, labels=present, zero_division=0)
    for index, label in enumerate(present):
        scores = result.per_class[label]
        mine = (scores.precision.value, scores.recall.value, scores.f1.value, scores.support)
        assert mine == pytest.approx(tuple(column[index] for column in figures))
    for interval in (result.ua, result.wa, result.macro_f1):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


@pytest.mark.parametrize("speakers", [8, 1])
def test_intervals_are_those_of_redrawn_test_sets(speakers):
    references, predictions, names = draw(120, speakers=speakers)
    result = score_classification(references, predictions, names, n=300)
    assert result.ua.resampled == ("speaker" if speakers > 1 else "utterance")
    truth, guess = np.array(references), np.array(predictions)
    figures = {
        "ua": lambda i: balanced_accuracy_score(truth[i], guess[i]),
        "wa": lambda i: accuracy_score(truth[i], guess[i]),
        "macro_f1": lambda i: f1_score(truth[i], guess[i], labels=np.unique(truth[i]), average="macro"),
    }
    for name, statistic in figures.items():
        slow = bootstrap_statistic(statistic, names, n=300)
        mine = getattr(result, name)
        assert (mine.value, mine.low, mine.high) == pytest.approx((slow.value, slow.low, slow.high)), name


def test_sums_give_the_interval_of_a_ratio():
    rng = np.random.default_rng(2)
    counts, groups = rng.poisson(3, (50, 2)) + 1.0, [f"s{i % 7}" for i in range(50)]
    (interval,) = bootstrap_sums(lambda sums: sums[:, :1] / sums[:, 1:], counts, groups, n=200)
    slow = bootstrap_statistic(lambda i: counts[i, 0].sum() / counts[i, 1].sum(), groups, n=200)
    assert (interval.value, interval.low, interval.high) == pytest.approx((slow.value, slow.low, slow.high))
    with pytest.raises(InputError, match="NaN on the whole test set"):
        bootstrap_sums(lambda sums: sums[:, :1] * np.nan, counts, groups, n=5)


def test_many_classes_and_utterances_stay_small_and_quick():
    rng = np.random.default_rng(3)
    labels = [f"id{i}" for i in range(1251)]  # as many as VoxCeleb1 has speakers: a matrix a draw would not fit
    references = [labels[i % 1251] for i in range(10_000)]
    predictions = rng.permutation(references).tolist()
    result = score_classification(references, predictions, [f"s{i % 40}" for i in range(10_000)], n=1000)
    assert result.ua.value < 0.01 and len(result.per_class) == 1251


def test_folds_are_pooled_and_seeds_averaged():
    folds, seeds = 3, 2
    results, runs = [], {seed: ([], [], []) for seed in range(seeds)}
    for fold in range(folds):
        for seed in range(seeds):
            references, _, _ = draw(60, seed=fold)
            _, predictions, _ = draw(60, seed=fold, right=0.3 + 0.3 * seed)
            ids, speakers = [f"f{fold}-{i}" for i in range(60)], [f"f{fold}-s{i % 3}" for i in range(60)]
            results.append(score_classification(references, predictions, speakers, ids, labels=LABELS))
            for kept, new in zip(runs[seed], (references, predictions, speakers), strict=True):
                kept.extend(new)
    combined = ClassificationResult.combine(results)
    pooled = [score_classification(*runs[seed], labels=LABELS) for seed in range(seeds)]
    for name in ("ua", "wa", "macro_f1"):
        assert getattr(combined, name).value == pytest.approx(np.mean([getattr(p, name).value for p in pooled]))
    assert combined.to_dict()["ua_by_run"] == pytest.approx([p.ua.value for p in pooled])
    assert combined.confusion.sum() == folds * 60 and len(combined.runs) == seeds
    assert (combined.confusion == np.mean([p.confusion for p in pooled], axis=0)).all()
    shuffled = ClassificationResult.combine(results[2:] + results[:2])
    assert shuffled.ua.value == pytest.approx(combined.ua.value)
    once = ClassificationResult.combine(results[::2])
    assert once.ua.value == pytest.approx(pooled[0].ua.value) and len(once.runs) == 1
    assert "mean of 2 runs" in str(combined)
    with pytest.raises(InputError, match="combine: utterance 'f2-0' has 1 predictions, others have 2"):
        ClassificationResult.combine(results[:-1])
    with pytest.raises(InputError, match="different label sets"):
        ClassificationResult.combine([results[0], score_classification(["x", "y"], ["x", "y"])])
    with pytest.raises(InputError, match="no results"):
        ClassificationResult.combine([])


def test_mistakes_come_most_confident_first():
    probabilities = [[0.9, 0.1], [0.4, 0.6], [0.05, 0.95], [0.3, 0.7]]
    result = score_classification(
        ["a", "a", "a", "b"], ["a", "b", "b", "b"], ids=["w", "x", "y", "z"], labels=("a", "b"),
        probabilities=probabilities,
    )  # fmt: skip
    assert [wrong.id for wrong in result.mistakes()] == ["y", "x"]
    assert [wrong.id for wrong in result.mistakes(1)] == ["y"]
    assert result.probability(result.mistakes(1)[0], "a") == 0.05


def test_table_and_dictionary():
    result = score_classification(*draw(), labels=(*LABELS, "bored"))
    lines = str(result).splitlines()
    assert lines[0].startswith(f"UA {100 * result.ua.value:.1f} % [") and "200 utterances, 4 classes" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["class", *LABELS]
    values = json.loads(json.dumps(result.to_dict()))
    assert values["ua"]["low"] <= values["ua"]["value"] and values["utterances"] == 200
    assert values["confusion"]["labels"][-1] == "bored" and "bored" not in values["per_class"]
    assert np.array(values["confusion"]["counts"]).sum() == 200
    assert sum(entry["support"] for entry in values["per_class"].values()) == 200


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], []), {}, "references: none given"),
        ((["a", "a"], ["a", "b"]), {}, "the only label is 'a', of 2 utterances"),
        ((["a", "b"], ["a", "c"]), {"labels": ("a", "b")}, "utterance '1': prediction 'c' is unknown; .* a, b"),
        ((["a", "c"], ["a", "b"]), {"labels": ("a", "b")}, "utterance '1': label 'c' is unknown"),
        ((["a", "b"], ["a"]), {}, "predictions: 1 entries for 2"),
        ((["a", "b"], ["a", "b"], ["s"]), {}, "speakers: 1 entries for 2"),
        ((["a", "b"], ["a", "b"], None, ["x", "x"]), {}, "ids: 'x' is repeated"),
        ((["a", "b"], ["a", "b"]), {"labels": ("a", "b", "a")}, "labels: 'a' stands there twice"),
        ((["a", "b"], ["a", "b"]), {"probabilities": [[0.5, 0.5], [1.0]]}, "utterance '1': give 2 probabilities"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(InputError, match=message):
        score_classification(*arguments, **options)


@pytest.mark.parametrize("seed", range(32))
def test_a_class_that_one_of_four_speakers_has_is_scored(seed):
    """A third of the draws miss that speaker and say nothing of the class; the others make its interval."""
    rng = np.random.default_rng(seed)
    speakers = [f"s{i % 4}" for i in range(40)]
    labels = [
        "rare" if speaker == "s3" and rng.random() < 0.5 else ("calm", "sad")[i % 2]
        for i, speaker in enumerate(speakers)
    ]
    labels[3] = "rare"
    check_labels_of(labels, [str(i) for i in range(40)], ("calm", "rare", "sad"))
    guesses = [label if rng.random() < 0.7 else "calm" for label in labels]
    result = score_classification(labels, guesses, speakers, n=200, seed=seed)
    for interval in (result.ua, result.macro_f1, result.per_class["rare"].recall):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
    with pytest.raises(InputError, match="'Sad' and 'sad' differ in case"):
        score_classification(["sad", "calm"], ["Sad", "calm"])


def test_classes_in_two_unicode_forms_are_named():
    with pytest.raises(InputError, match=r"'caf\\xe9' differ in case, white space or Unicode form only"):
        score_classification(["cafe\u0301", "thé"], ["caf\u00e9", "thé"])
