"""Classify a manifest and score it: the function behind ``recipes/evaluate_emotion.py``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from speech_adapters.data.batches import SpeechDataset, evaluation_loader, model_inputs
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.metrics.classification import ClassificationResult, ClassifiedUtterance, score_classification
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory
from speech_adapters.training.cache import CachedDataset


@dataclass(frozen=True)
class ClassificationEvaluation:
    """Scores, and what they cost: wall seconds, audio seconds a wall second, peak memory in bytes."""

    result: ClassificationResult
    seconds: float
    audio_seconds_per_second: float
    peak_memory_bytes: int


@torch.no_grad()
def evaluate_classification(
    model: SpeechAdapterModel,
    manifest: Manifest,
    *,
    label_field: str = "emotion",
    batch_seconds: float = 120.0,
    precision: str = "fp32",
    cache: Path | None = None,
    progress: bool = True,
) -> ClassificationEvaluation:
    """Classify every utterance with the active adapter and classification head, on the model's device.

    Args:
        manifest: needs ``label_field``; ``speaker`` makes the intervals bootstrap by speaker.
        label_field: key of the manifest that holds the class, ``emotion`` or ``label`` or one of its own.
        precision: "fp32", or "bf16" for autocast.
        cache: folder for activations below the lowest adapter, so that the next evaluation starts there.

    Raises:
        ConfigError: the active head does not choose among labels.
        CheckpointError: the model's logits are not finite.
        InputError: the manifest holds a label that the head does not know, or a single class.
    """
    labels = getattr(model.head and model.head.config, "labels", None)
    if not labels:
        raise ConfigError("evaluate_classification: the active head has no labels; load or set a classification head.")
    manifest.require(label_field)
    references = [str(utterance.get(label_field)) for utterance in manifest]
    speakers, ids = [utterance.speaker for utterance in manifest], [utterance.id for utterance in manifest]
    score_classification(references, references, speakers, ids, labels=labels, n=1)  # fails now, not after the work
    device = next(model.encoder.model.parameters()).device
    model.eval()
    reset_peak_memory(device)
    started = time.perf_counter()
    probabilities = torch.empty(len(manifest), len(labels))
    dataset = SpeechDataset(manifest, keep_in_memory=False)
    if cache is not None:
        dataset = CachedDataset(dataset, model, cache, batch_seconds)
    loader = evaluation_loader(dataset, batch_seconds)
    for batch in tqdm(loader, desc=f"classifying {manifest.name}", unit="batch", leave=False, disable=not progress):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(**model_inputs(batch, device)).logits
        if logits.ndim != 2 or logits.shape[1] != len(labels):
            raise ConfigError(
                f"evaluate_classification: the head's logits have shape {tuple(logits.shape)}, expected (B, "
                f"{len(labels)}), one column a label; load a head that classifies whole utterances."
            )
        if not logits.isfinite().all():
            index = int(batch["indices"][~logits.isfinite().all(1).cpu()][0])
            raise CheckpointError(
                f"evaluate_classification: the logits of {ids[index]!r} are not finite; its weights are broken, or "
                "need fp32"
            )
        probabilities[batch["indices"]] = logits.float().softmax(1).cpu()
    seconds = time.perf_counter() - started
    predictions = [labels[index] for index in probabilities.argmax(1).tolist()]
    result = score_classification(
        references, predictions, speakers, ids, labels=labels, probabilities=probabilities.tolist()
    )
    return ClassificationEvaluation(result, seconds, manifest.hours * 3600 / seconds, peak_memory_bytes(device))


def confident_mistakes(result: ClassificationResult, manifest: Manifest, count: int = 15) -> list[dict[str, Any]]:
    """The most confident mistakes, as ``worst.json`` holds them for the report."""
    by_id = {utterance.id: utterance for utterance in manifest}
    return [
        {
            "id": wrong.id,
            "speaker": wrong.speaker,
            "audio_filepath": str(by_id[wrong.id].audio_filepath),
            "offset": by_id[wrong.id].offset,
            "duration": by_id[wrong.id].duration,
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
