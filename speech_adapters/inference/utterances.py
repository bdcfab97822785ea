"""One answer per recording: its class, its embedding, whether two are of one speaker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speech_adapters.data.windows import Windows
from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.heads.base import HeadConfig
from speech_adapters.heads.classification import ClassificationHead, ClassificationHeadModule
from speech_adapters.heads.slots import SlotsHead, SlotsHeadModule
from speech_adapters.heads.speaker import SpeakerHeadModule
from speech_adapters.inference.hearing import Model, Stitched, active_head, hear, hear_each
from speech_adapters.inference.outputs import head_output, mean_pooled
from speech_adapters.inference.recordings import LeftOut, Recording, leave_out
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.metrics.trial_scores import cosine_scores
from speech_adapters.model_output import ModelOutput


@dataclass(frozen=True)
class Classification:
    """The class of a recording, or of one channel of it.

    Attributes:
        label: the most probable class; of a head of slots, the best of each, joined by a space.
        probabilities: class -> probability, most probable first; of a head of slots, "slot=class" -> probability.
    """

    name: str
    label: str
    probabilities: dict[str, float]
    speaker: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What the JSON output holds."""
        speaker = {} if self.speaker is None else {"speaker": self.speaker}
        rounded = {label: round(probability, 6) for label, probability in self.probabilities.items()}
        return {"name": self.name, **speaker, "label": self.label, "probabilities": rounded}


@dataclass(frozen=True)
class Verification:
    """How alike two voices are.

    Attributes:
        score: cosine of the embeddings, -1 to 1; what counts as the same speaker depends on the model.
        llr: natural log-likelihood ratio, where there is a calibration: above 0 the same speaker is more likely than
            not, if both are equally likely beforehand.
    """

    score: float
    llr: float | None


def stitched(
    model: Model, recordings: Iterable[Recording], windows: Windows | None = None, **options: Any
) -> Iterator[ModelOutput]:
    """The output of each recording, put together from its windows; see
    :class:`~speech_adapters.inference.hearing.Stitched`."""
    windows = windows or Windows()
    head = model.head
    return hear(model, recordings, lambda recording: Stitched(model, head, recording, windows), windows, **options)


def _stitched_each(
    model: Model, recordings: Iterable[Recording], windows: Windows | None, left_out: LeftOut | None, options: Any
) -> Iterator[tuple[Recording, ModelOutput]]:
    """Each recording that can be heard with its output."""
    recordings, windows, head = list(recordings), windows or Windows(), model.head
    found = hear_each(model, recordings, lambda one: Stitched(model, head, one, windows), windows, **options)
    for recording, output in zip(recordings, found, strict=True):
        if isinstance(output, AudioError):
            leave_out(left_out, recording.name, output, recording.speaker)
        else:
            yield recording, output


def classify(
    model: Model,
    recordings: Iterable[Recording],
    windows: Windows | None = None,
    *,
    left_out: LeftOut | None = None,
    **options: Any,
) -> Iterator[Classification]:
    """The class of each recording by the active head: the softmax of the mean over windows of its logits, weighted by
    frames.

    Args:
        left_out: takes in the recordings that cannot be read, or are without speech: they have no class.
        options: of :func:`~speech_adapters.inference.hearing.hear_each`.

    Raises:
        ConfigError: the active head tells no classes.
        AudioError: without ``left_out``, a recording that cannot be read, or without speech.
    """
    head = model.head
    if not isinstance(head, ClassificationHeadModule | SlotsHeadModule):
        raise ConfigError(
            f"classifying needs a head of classes, and {active_head(model)} is active; give an adapter that was "
            "trained to classify (in Python: load_head, SpeechAdapterModel.from_adapter or set_head)."
        )
    for recording, output in _stitched_each(model, recordings, windows, left_out, options):
        yield classification_of(head.config, output, recording)


def classification_of(head: HeadConfig, output: ModelOutput, recording: Recording) -> Classification:
    """What a head of classes said of one recording: ``output`` is that of a batch of one."""
    if isinstance(head, SlotsHead):
        slots = {f"{slot}=": labels for slot, labels in head.slots.items()}
    else:
        assert isinstance(head, ClassificationHead), "a head of classes"
        slots = {"": head.labels}
    logits = head_output(output).logits[0].split([len(labels) for labels in slots.values()])
    best: list[str] = []
    probabilities: dict[str, float] = {}
    for (slot, labels), row in zip(slots.items(), logits, strict=True):
        best.append(labels[int(row.argmax())])
        named = zip(labels, row.softmax(0).tolist(), strict=True)
        probabilities |= {slot + label: value for label, value in sorted(named, key=lambda pair: -pair[1])}
    return Classification(recording.name, " ".join(best), probabilities, recording.speaker)


def embed(
    model: Model,
    recordings: Iterable[Recording],
    windows: Windows | None = None,
    *,
    left_out: LeftOut | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """(E,) the embedding of each recording: the mean over windows of the active speaker head's, weighted by frames.
    Without an active head, the mean over frames of the features.

    Args:
        left_out: takes in the recordings that cannot be read, or are without speech: they have no embedding.
        options: of :func:`~speech_adapters.inference.hearing.hear_each`.

    Raises:
        ConfigError: the active head gives no embedding.
        AudioError: without ``left_out``, a recording that cannot be read, or without speech.
    """
    if model.head is not None and not isinstance(model.head, SpeakerHeadModule):
        raise ConfigError(
            f"embedding needs a speaker head, and {active_head(model)} is active; give an adapter that was trained "
            "to tell speakers (in Python: load_head; or set_head(None) for the mean of the features)."
        )
    for _, output in _stitched_each(model, recordings, windows, left_out, options):
        yield embedding_of(output)


def embedding_of(output: ModelOutput) -> Tensor:
    """(E,) the embedding in the output of a batch of one, or (F,) the mean of its features where there is none."""
    if output.embedding is None:
        return mean_pooled(output)[0]
    assert isinstance(output.embedding, Tensor), "one head reads the whole batch"
    return output.embedding[0]


def verify(enrolment: Tensor, test: Tensor, calibration: Calibration | None) -> Verification:
    """Compare a test utterance's embedding (E,) with those (N, E) of one speaker: with the mean of these, each at unit
    length, as in :func:`~speech_adapters.data.embeddings.average_embeddings`."""
    model = torch.nn.functional.normalize(enrolment, dim=1).mean(0)
    first = np.zeros(1, dtype=int)
    score = float(cosine_scores(model[None].float(), test[None].float(), first, first)[0])
    return Verification(score, None if calibration is None else calibration.scale * score + calibration.offset)


def calibration_of(model: Model) -> Calibration | None:
    """The calibration that the active speaker head was saved with, where it has one."""
    return model.head.config.calibration if isinstance(model.head, SpeakerHeadModule) else None
