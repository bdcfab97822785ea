"""Predictions of a model for every utterance of a manifest: the one loop behind every evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from speech_adapters.data.batches import SpeechDataset, evaluation_loader
from speech_adapters.data.embeddings import Embeddings
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.windows import Windows
from speech_adapters.encoders.plan import frame_mask
from speech_adapters.errors import ConfigError, shown
from speech_adapters.inference.outputs import check_finite, head_output, mean_pooled
from speech_adapters.inference.recordings import Recording
from speech_adapters.inference.utterances import stitched
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.model_output import ModelOutput
from speech_adapters.precision import autocast
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory
from speech_adapters.training.cached_dataset import CachedDataset
from speech_adapters.training.frozen import model_inputs
from speech_adapters.training.settings import Cache

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Cost:
    """What a piece of work took: wall seconds, seconds of audio per wall second (None where no audio was read), peak
    memory in bytes."""

    seconds: float
    audio_seconds_per_second: float | None
    peak_memory_bytes: int


@dataclass(frozen=True)
class Predictions(Generic[P]):
    """One of ``values`` per utterance, in the manifest's order, and the cost of all."""

    values: list[P]
    cost: Cost


@dataclass(frozen=True)
class Evaluation(Generic[R]):
    """Scores of a test set, and what the predictions cost."""

    result: R
    cost: Cost


def check_manifest(manifest: object) -> None:
    """Raise a ConfigError for a path, or anything else, in a manifest's place."""
    if not isinstance(manifest, Manifest):
        raise ConfigError(f"manifest: {shown(manifest)} is not one; read it first: Manifest.read('test.jsonl').")


@torch.no_grad()
def predict(
    model: SpeechAdapterModel,
    manifest: Manifest,
    read: Callable[[ModelOutput], Sequence[Any]] | None = None,
    *,
    batch_seconds: float = 120.0,
    precision: str = "fp32",
    cache: Cache | Path | CachedDataset | None = None,
    progress: bool = True,
    train_mode: bool = False,
    windows: Windows | None = None,
) -> Predictions[Any]:
    """What the active adapters and head say of each utterance, on the model's device, in batches of like length.

    Args:
        read: from a batch's output to one prediction per utterance; by default the head's
            :meth:`~speech_adapters.heads.base.HeadModule.predict`, or mean-pooled features without a head.
        batch_seconds: audio per batch, padding included.
        precision: "fp32", or "bf16" for autocast.
        cache: where activations below the lowest adapter are kept, so that the next pass starts there; or those of a
            manifest that holds these utterances.
        train_mode: leave the modes of the model's modules as they are (for dropout); else all are in eval mode.
        windows: hear every recording through these windows, as ``model.transcribe`` does, whatever its length;
            ``read`` is then given one utterance at a time, put together as in
            :class:`~speech_adapters.inference.hearing.Stitched`. Without, each utterance is one forward.

    Raises:
        CheckpointError: an output that is not finite; names the utterance.
        ConfigError: windows with cached activations, which are of whole utterances.
    """
    check_manifest(manifest)
    head = model.head
    if read is None:
        read = mean_pooled if head is None else lambda output: head.predict(head_output(output))
    if not train_mode:
        model.eval()
    device = model.encoder.device
    dataset: Any = SpeechDataset(manifest, keep_in_memory=False)
    reset_peak_memory(device)
    started = time.perf_counter()
    values: list[Any] = [None] * len(manifest)
    disable = None if progress else True  # tqdm's None: shown on a terminal alone
    if windows is not None:
        if cache is not None:
            raise ConfigError("cached activations are of whole utterances; leave out the cache, or the windows.")
        with tqdm(total=round(manifest.hours * 3600), desc=f"predicting {manifest.name}", unit="s", leave=False,
                  disable=disable) as bar:  # fmt: skip
            options = {"batch_seconds": batch_seconds, "precision": precision, "train_mode": train_mode}
            outputs = stitched(model, map(Recording.of_utterance, manifest), windows, progress=bar.update, **options)
            values = [read(output)[0] for output in outputs]
    elif len(manifest):
        if isinstance(cache, CachedDataset):
            dataset = cache.part(dataset)
        elif cache is not None:
            dataset = CachedDataset(dataset, model, cache, batch_seconds)
        loader = evaluation_loader(dataset, batch_seconds)
        for batch in tqdm(loader, desc=f"predicting {manifest.name}", unit="batch", leave=False, disable=disable):
            with autocast(device, precision):
                output = model(**model_inputs(batch, model))
            indices = batch["indices"].tolist()
            check_finite(output, [manifest[index].id for index in indices])
            for index, value in zip(indices, read(output), strict=True):
                values[index] = value
    seconds = time.perf_counter() - started
    return Predictions(values, Cost(seconds, manifest.hours * 3600 / seconds, peak_memory_bytes(device)))


def extract_embeddings(model: SpeechAdapterModel, manifest: Manifest, **options: Any) -> Embeddings:
    """The embedding of every utterance: the active head's, or without a head the mean of the features over the
    utterance's frames (the frozen mean-pooled baseline, when no adapter is active either).

    Args:
        options: of :func:`predict`.

    Raises:
        ConfigError: the active head gives no embedding.
        InputError: see :class:`~speech_adapters.data.embeddings.Embeddings`.
    """
    predictions = predict(model, manifest, lambda output: _embedding(model, output), **options)
    return Embeddings(tuple(u.id for u in manifest), torch.stack(predictions.values), manifest.name)


def mean_attention(model: SpeechAdapterModel, manifest: Manifest, **options: Any) -> dict[str, dict[str, float]]:
    """Site -> member -> weight of the active Fuse and Route compositions, the mean over the utterances of a manifest.

    An utterance's weight is the mean over its real frames; pseudo frames are left out. Sites are
    "name.feed_forward_3", "name.read", or "name.gate" of a router. The expert that adds nothing is "none".
    ``options`` are those of :func:`predict`.
    """
    if options.get("windows") is not None:
        raise ConfigError("mean_attention: attention is kept for whole utterances; leave out the windows.")
    found = predict(model, manifest, _attention, **options).values
    members = {value.name: [*map(_word, value.members)] for value in model.active_fusions}
    return {
        place: dict(
            zip(
                [*members[place.split(".")[0]], "none"],
                torch.stack([weights[place] for weights in found]).mean(0).tolist(),
                strict=False,
            )
        )
        for place in found[0]
    }


def _attention(output: ModelOutput) -> list[dict[str, Tensor]]:
    """Site -> weights of the members, of each utterance."""
    assert output.hidden_lengths is not None, "one composition serves the whole batch"
    frames, size = output.hidden_states[-1].shape[1], len(output.last_hidden_state)
    real = frame_mask(output.hidden_lengths, frames)
    rows: list[dict[str, Tensor]] = [{} for _ in range(size)]
    for place, attention in output.attention.items():
        if attention.shape[1] > 1:
            if attention.shape[1] != frames:
                attention = attention[:, output.pseudo_frames : output.pseudo_frames + frames]
            attention = (attention * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
        for row, weights in zip(rows, attention.reshape(size, -1).cpu(), strict=True):
            row[place] = weights
    return rows


def _word(member: object) -> str:
    return member if isinstance(member, str) else repr(member)


def _embedding(model: SpeechAdapterModel, output: ModelOutput) -> list[Tensor]:
    if model.head is None:
        return mean_pooled(output)
    if output.embedding is None:
        raise ConfigError(f"head {model.active_head!r} gives no embedding; load a speaker head, or none at all.")
    assert isinstance(output.embedding, Tensor), "one head reads the whole batch"
    return list(output.embedding.float().cpu())
