"""Recognise a manifest and score it: the function behind ``recipes/evaluate_asr.py``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from speech_adapters.data.batches import SpeechDataset, evaluation_loader, model_inputs
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHead, CTCHeadModule
from speech_adapters.heads.decoding import BeamSearch, greedy_decode
from speech_adapters.metrics.bootstrap import bootstrap
from speech_adapters.metrics.wer import WERResult, word_error_rate
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory
from speech_adapters.text import Vocabulary
from speech_adapters.training.cache import CachedDataset


@dataclass(frozen=True)
class ASREvaluation:
    """Scores, and what they cost: wall seconds, audio seconds a wall second, peak memory in bytes."""

    result: WERResult
    seconds: float
    audio_seconds_per_second: float
    peak_memory_bytes: int


@torch.no_grad()
def evaluate_asr(
    model: SpeechAdapterModel,
    manifest: Manifest,
    *,
    batch_seconds: float = 120.0,
    precision: str = "fp32",
    cache: Path | None = None,
    beam: BeamSearch | None = None,
    progress: bool = True,
) -> ASREvaluation:
    """Decode every utterance with the active adapter and CTC head, on the model's device.

    Args:
        manifest: needs ``text``; ``speaker`` makes the intervals bootstrap by speaker.
        precision: "fp32", or "bf16" for autocast.
        cache: folder for activations below the lowest adapter, so that the next evaluation starts there.
        beam: a beam search; greedy decoding without one.

    Raises:
        ConfigError: the active head is not a CTC head.
    """
    head = model.head
    if not isinstance(head, CTCHeadModule):
        raise ConfigError("evaluate_asr: the active head is not a CTC head; load one, or use set_head.")
    manifest.require("text")
    device = next(model.encoder.model.parameters()).device
    vocabulary = head.config.vocabulary
    model.eval()
    reset_peak_memory(device)
    started = time.perf_counter()
    hypotheses = [""] * len(manifest)
    dataset = SpeechDataset(manifest, keep_in_memory=False)
    if cache is not None:
        dataset = CachedDataset(dataset, model, cache, batch_seconds)
    loader = evaluation_loader(dataset, batch_seconds)
    for batch in tqdm(loader, desc=f"decoding {manifest.name}", unit="batch", leave=False, disable=not progress):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = model(**model_inputs(batch, device))
        logits, frames = output.logits.float(), output.frame_lengths
        texts = greedy_decode(logits, frames, vocabulary) if beam is None else beam(logits, frames)
        for index, text in zip(batch["indices"].tolist(), texts, strict=True):
            hypotheses[index] = text
    seconds = time.perf_counter() - started
    speakers = [utterance.speaker for utterance in manifest]
    result = word_error_rate(
        [utterance.text for utterance in manifest],
        hypotheses,
        speakers if all(speakers) else None,
        [utterance.id for utterance in manifest],
        normalizer=head.config.normalizer,
    )
    return ASREvaluation(result, seconds, manifest.hours * 3600 / seconds, peak_memory_bytes(device))


def pooled_metrics(results: Sequence[WERResult]) -> dict[str, Any]:
    """``wer`` and ``cer`` of several runs or test sets taken together, intervals by speaker, and mean counts."""
    scores = [score for result in results for score in result.utterances]
    speakers = [score.speaker for score in scores]
    by = speakers if all(speakers) else None
    metrics: dict[str, Any] = {
        "wer": bootstrap([s.errors for s in scores], [s.words for s in scores], by).to_dict(),
        "cer": bootstrap([s.character_errors for s in scores], [s.characters for s in scores], by).to_dict(),
    }
    for count in ("words", "characters", "substitutions", "deletions", "insertions"):
        metrics[count] = round(sum(getattr(result, count) for result in results) / len(results))
    return metrics


def use_own_ctc_head(model: SpeechAdapterModel, normalizer: str = "librispeech", name: str = "ctc") -> None:
    """Take the CTC head and vocabulary of a ``*ForCTC`` checkpoint as the model's head.

    Raises:
        ConfigError: the checkpoint has no CTC head, or no ``vocab.json``.
    """
    own = model.encoder.ctc
    if own is None or own.vocabulary is None:
        lacking = "CTC head" if own is None else "vocab.json"
        raise ConfigError(f"{model.encoder.name}: this checkpoint has no {lacking}; give a *ForCTC folder, or --head.")
    vocabulary = Vocabulary.load(own.vocabulary)
    module = CTCHeadModule.from_linear(own.weight, own.bias, vocabulary, normalizer=normalizer)
    model.set_active()
    model.add_head(name, CTCHead(vocabulary, normalizer=normalizer, dropout=0.0))
    model.heads[name].load_state_dict(module.state_dict())


def worst_utterances(result: WERResult, manifest: Manifest, count: int = 15) -> list[dict[str, Any]]:
    """Utterances with most errors, as ``worst.json`` holds them for the report."""
    by_id = {utterance.id: utterance for utterance in manifest}
    return [
        {
            "id": score.id,
            "speaker": score.speaker,
            "audio_filepath": str(by_id[score.id].audio_filepath),
            "offset": by_id[score.id].offset,
            "duration": by_id[score.id].duration,
            "reference": score.reference,
            "hypothesis": score.hypothesis,
            "alignment": score.alignment(),
            "errors": score.errors,
            "words": score.words,
        }
        for score in result.worst(count)
    ]
