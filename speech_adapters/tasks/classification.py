"""Classification: one label per utterance (an emotion, a keyword, a language), scored by recall and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from speech_adapters.data.manifest import Manifest
from speech_adapters.data.predictions import write_predictions
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError, ManifestError
from speech_adapters.files import write_json
from speech_adapters.heads.classification import ClassificationHead, balanced_class_weights
from speech_adapters.metrics.classification import (
    ClassificationResult,
    ClassifiedUtterance,
    check_case,
    check_labels_of,
    score_classification,
)
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.tasks.base import Corpus, Task
from speech_adapters.tasks.predict import Evaluation, check_manifest, predict


class Classification(Task[ClassificationResult]):
    """Any single label, under a name of its own: ``Classification("keyword", label_field="label")``.

    Args:
        name: of the task; published rates for it are taken where there are any.
        label_field: key of the manifest that holds the class, ``emotion`` or ``label`` or one of its own.
        metric: the main figure: "ua" (the mean of the classes' recalls), or "accuracy" (right ones by all).
        network, pooling: of the head; see :class:`~speech_adapters.heads.classification.ClassificationHead`.
        class_weights: weigh classes in the loss by their rarity, as UA does.
    """

    def __init__(
        self,
        name: str = "emotion",
        *,
        label_field: str = "emotion",
        metric: Literal["ua", "accuracy"] = "ua",
        network: Literal["linear", "conv"] = "linear",
        pooling: str = "mean",
        class_weights: bool = True,
    ) -> None:
        self.name, self.metric, self.label_field = name, metric, label_field
        self.network, self.pooling, self.class_weights = network, pooling, class_weights

    def head(self, corpus: Corpus) -> ClassificationHead:
        """The head for all classes of the corpus; raises an InputError for one that the training set lacks."""
        labels = corpus.values(self.label_field)
        if len(labels) == 1:
            raise ManifestError(
                f"{corpus.train.name}: {self.label_field} is {labels[0]!r} in every utterance, of the other sets too; "
                "a classifier needs two classes or more: name the key that holds them, or add utterances of others."
            )
        check_case(labels)
        balanced_class_weights(corpus.train, labels, self.label_field)
        return self.head_for(corpus.train, labels)

    def head_for(self, train: Manifest, labels: Sequence[str] = ()) -> ClassificationHead:
        """The head to train on a manifest; ``labels`` are all classes, also those it has no example of.

        Classes are weighted where each has an example.
        """
        seen = train.values(self.label_field)
        labels = tuple(labels) or seen
        balanced = self.class_weights and set(seen) >= set(labels)
        return ClassificationHead(
            labels=labels,
            label_field=self.label_field,
            network=self.network,
            pooling=self.pooling,
            class_weights=balanced_class_weights(train, labels, self.label_field) if balanced else None,
        )

    def check(self, corpus: Corpus, encoder: Encoder, **hearing: Any) -> None:
        """Besides what the head checks: a test set that can be scored."""
        super().check(corpus, encoder, **hearing)
        check_labels_of(*_references(corpus.test, self.label_field), getattr(self.chosen_head(corpus), "labels", ()))

    def score(self, model: SpeechAdapterModel, corpus: Corpus, **options: Any) -> ClassificationResult:
        """The most probable class of each utterance of the test set."""
        return evaluate_classification(model, corpus.test, label_field=self.label_field, **options).result

    def metrics(self, results: Sequence[ClassificationResult]) -> dict[str, Any]:
        """UA, WA, macro-F1 and the figures of each class: folds pooled, the mean over seeds."""
        metrics = (results[0] if len(results) == 1 else ClassificationResult.combine(results)).to_dict()
        return metrics if self.metric == "ua" else {"accuracy": metrics.pop("wa"), **metrics}

    def write(self, result: ClassificationResult, corpus: Corpus, run: RunFolder, name: str) -> None:
        """Predictions and probabilities, a line per utterance."""
        write_predictions(run.predictions(name), result)

    def show(self, method: str, result: ClassificationResult, corpus: Corpus, run: RunFolder) -> None:
        """The most confident mistakes."""
        write_json(run.worst_file, confident_mistakes(result, corpus.test))


def evaluate_classification(
    model: SpeechAdapterModel, manifest: Manifest, *, label_field: str = "emotion", **options: Any
) -> Evaluation[ClassificationResult]:
    """Classify every utterance with the active adapter and classification head, and score the predictions.

    Args:
        manifest: needs ``label_field``; ``speaker`` makes the intervals bootstrap by speaker.
        label_field: key of the manifest that holds the class, ``emotion`` or ``label`` or one of its own.
        options: of :func:`~speech_adapters.tasks.predict.predict`.

    Raises:
        ConfigError: the active head does not choose among labels.
        CheckpointError: the model's logits are not finite.
        InputError: the manifest holds a label that the head does not know, or a single class.
    """
    labels = getattr(model.head and model.head.config, "labels", None)
    if not labels:
        raise ConfigError("evaluate_classification: the active head has no labels; load or set a classification head.")
    check_manifest(manifest)
    manifest.require(label_field)
    references, ids = _references(manifest, label_field)
    check_labels_of(references, ids, labels)

    found = predict(model, manifest, **options)
    rows = torch.stack(found.values)
    if rows.shape != (len(manifest), len(labels)):
        raise ConfigError(
            f"evaluate_classification: the head's predictions have shape {tuple(rows.shape[1:])}, expected "
            f"({len(labels)},), a probability per label; load a head that classifies whole utterances."
        )
    result = score_classification(
        references,
        [labels[index] for index in rows.argmax(1).tolist()],
        [utterance.speaker for utterance in manifest],
        ids,
        labels=labels,
        probabilities=rows.tolist(),
    )
    return Evaluation(result, found.cost)


def _references(manifest: Manifest, label_field: str) -> tuple[list[str], list[str]]:
    """The true labels and the ids of the utterances."""
    return [str(utterance.get(label_field)) for utterance in manifest], [utterance.id for utterance in manifest]


def confident_mistakes(result: ClassificationResult, manifest: Manifest, count: int = 15) -> list[dict[str, Any]]:
    """The most confident mistakes, as ``worst.json`` holds them for the report."""
    by_id = {utterance.id: utterance for utterance in manifest}
    return [
        {
            "id": wrong.id,
            "speaker": wrong.speaker,
            **by_id[wrong.id].place(),
            "reference": _shown(result, wrong, wrong.label),
            "hypothesis": _shown(result, wrong, wrong.prediction),
        }
        for wrong in result.mistakes(count)
        if wrong.id in by_id
    ]


def _shown(result: ClassificationResult, utterance: ClassifiedUtterance, label: str) -> str:
    """``happy (93 %)``, with the probability that the model gave the label where it is known."""
    probability = result.probability(utterance, label)
    return label if probability is None else f"{label} ({100 * probability:.0f} %)"
