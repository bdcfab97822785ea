"""One label per utterance: emotion, keyword, intent, or any other key of the manifest.

    linear   x_t -> W x_t + b (256) -> pooling -> linear         (Otake et al., ICASSP 2023; SUPERB's emotion head)
    conv     x_t -> three 1x1 convolutions (256) with ReLU and dropout -> pooling -> linear, ReLU, linear
             (Feng and Narayanan, "PEFT-SER", ACII 2023)

The loss is cross-entropy, weighted by class where weights are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError, ManifestError, shown
from speech_adapters.heads.base import HeadConfig, HeadModule, HeadOutput
from speech_adapters.heads.pooling import POOLINGS, pooling
from speech_adapters.metrics.classification import check_case
from speech_adapters.ranges import Dropout, Positive, Size


@dataclass(kw_only=True)
class UtteranceHeadConfig(HeadConfig):
    """What the heads that read a whole utterance at once share."""

    network: Literal["linear", "conv"] = "linear"
    """``linear``: one projection; ``conv``: PEFT-SER's, three 1x1 convolutions and a hidden layer."""
    hidden_size: Size = 256
    """Width of the projection or of the convolutions, in both papers."""
    pooling: str = "mean"
    """``mean`` as published; ``statistics`` adds standard deviations, ``attentive`` weighs frames."""
    dropout: Dropout = 0.1
    """On the features (linear) or after each convolution (conv), while training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling={self.pooling!r} is unknown: choose {', '.join(POOLINGS)}.")


class UtteranceNetwork(nn.Module):
    """Features (B, T, D) with lengths (B,) to ``outputs`` logits (B, outputs).

    Attributes:
        reads_means: a linear map and the mean over frames may change places; dropout of single frames may not.
    """

    def __init__(self, config: UtteranceHeadConfig, input_size: int, outputs: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.pooling = pooling(config.pooling, width)
        self.reads_means = config.network == "linear" and config.pooling == "mean" and config.dropout == 0
        pooled = width * self.pooling.factor
        if config.network == "linear":
            self.frames = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(input_size, width))
            self.classifier: nn.Module = nn.Linear(pooled, outputs)
        else:  # a 1x1 convolution is a linear layer on each frame
            sizes = (input_size, width, width)
            layers = [(nn.Linear(size, width), nn.ReLU(), nn.Dropout(config.dropout)) for size in sizes]
            self.frames = nn.Sequential(*(module for layer in layers for module in layer))
            self.classifier = nn.Sequential(nn.Linear(pooled, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.classifier(self.pooling(self.frames(features), lengths))


@dataclass(kw_only=True)
class ClassificationHead(UtteranceHeadConfig):
    """A head of one label: ``ClassificationHead(("angry", "happy", "sad"))``; saved with its labels."""

    head_type: ClassVar[str] = "classification"

    labels: tuple[str, ...] = field(default=(), kw_only=False)
    """The classes, in the order of the logits."""
    label_field: str = "emotion"
    """Key of the manifest that holds the class."""
    class_weights: tuple[Positive, ...] | None = None
    """Weight of each class in the loss; see :func:`balanced_class_weights`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labels = check_labels(self.labels, "labels")
        if self.class_weights is not None:
            self.class_weights = tuple(self.class_weights)
            if len(self.class_weights) != len(self.labels):
                raise ConfigError(
                    f"class_weights={self.class_weights}: give {len(self.labels)} weights, one for each label."
                )

    def target(self, utterance: Utterance) -> list[int]:
        """[index of the utterance's label]."""
        return [label_index(utterance, self.label_field, self.places)]

    def check(self, manifest: Manifest, encoder: Encoder, *, any_length: bool = False) -> None:
        """Besides audio and labels: no two classes that differ in case only."""
        check_case(self.labels)
        super().check(manifest, encoder, any_length=any_length)

    @cached_property
    def places(self) -> dict[str, int]:
        """Index of each label."""
        return {label: index for index, label in enumerate(self.labels)}

    def build(self, input_size: int) -> ClassificationHeadModule:
        return ClassificationHeadModule(self, input_size)


class ClassificationHeadModule(HeadModule):
    """Features (B, T, D) to logits (B, C)."""

    config: ClassificationHead

    def __init__(self, config: ClassificationHead, input_size: int) -> None:
        super().__init__(config, input_size)
        self.network = UtteranceNetwork(config, input_size, len(config.labels))
        self.reads_means = self.network.reads_means

    def forward(self, features: Tensor, lengths: Tensor) -> HeadOutput:
        return HeadOutput(logits=self.network(features, lengths))

    def loss(self, output: HeadOutput, targets: Tensor) -> Tensor:
        """Cross-entropy of ``targets`` (B, 1), in fp32; with class weights the weighted mean over utterances."""
        weights = self.config.class_weights
        weight = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=output.logits.device)
        return F.cross_entropy(output.logits.float(), targets[:, 0], weight)

    def mistakes(self, output: HeadOutput, targets: Tensor) -> tuple[int, int]:
        """Utterances of the batch with a wrong class, and all."""
        return int((output.logits.argmax(1) != targets[:, 0]).sum()), len(targets)

    def predict(self, output: HeadOutput) -> list[Tensor]:
        """(C,) probabilities of each utterance, in the order of ``config.labels``."""
        return list(output.logits.float().softmax(1).cpu())


def balanced_class_weights(manifest: Manifest, labels: Sequence[str], field: str = "emotion") -> tuple[float, ...]:
    """``N / (C n_c)`` of each label: every class has the same say, as in PEFT-SER (scikit-learn's "balanced").

    Raises:
        ManifestError: a label without an utterance.
    """
    counts = Counter(utterance.get(field) for utterance in manifest)
    if missing := [label for label in labels if not counts[label]]:
        raise ManifestError(
            f"{manifest.name}: no utterance has {field} {', '.join(map(repr, missing))}; a class needs "
            "examples to be learnt: add some, or leave it out of dev and test too."
        )
    total = sum(counts[label] for label in labels)
    return tuple(total / (len(labels) * counts[label]) for label in labels)


def check_labels(labels: Sequence[str], name: str) -> tuple[str, ...]:
    """The labels as a tuple; ConfigError unless there are two or more different ones."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ConfigError(f"{name}={shown(labels)}: give the names of all classes, such as ('angry', 'calm').")
    labels = tuple(labels)
    if wrong := [label for label in labels if not isinstance(label, str)]:
        raise ConfigError(f"{name}: {shown(wrong[0])} is not text; give the classes as manifests name them.")
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ConfigError(f"{name}={labels[:5]}: give two or more different classes.")
    return labels


def label_index(utterance: Utterance, field: str, places: Mapping[str, int]) -> int:
    """Place of the utterance's label among the head's; ManifestError that names the utterance if it has none."""
    value = utterance.get(field)
    if value in places:
        return places[value]
    shown = ", ".join(list(places)[:12]) + (", ..." if len(places) > 12 else "")
    raise ManifestError(
        f"utterance {utterance.id!r}: {field} is {value!r}, not one of the head's classes ({shown}); "
        "map it to one of them, or leave the utterance out."
    )
