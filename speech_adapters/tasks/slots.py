"""Slots, scored: an utterance is right only if all of its slots are (Lugosch et al., Interspeech 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from speech_adapters.data.batches import SpeechDataset, evaluation_loader
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.heads.base import HeadOutput
from speech_adapters.heads.slots import SlotsHeadModule
from speech_adapters.metrics.bootstrap import Interval, bootstrap
from speech_adapters.model import SpeechAdapterModel


@dataclass(frozen=True)
class SlotsUtterance:
    """One utterance: the true label and the prediction of each slot."""

    id: str
    speaker: str | None
    reference: tuple[str, ...]
    prediction: tuple[str, ...]


@dataclass(frozen=True)
class SlotsResult:
    """Predictions on a test set; several runs (seeds) joined by ``+`` give mean figures over them."""

    slots: tuple[str, ...]
    utterances: tuple[SlotsUtterance, ...]

    def __add__(self, other: SlotsResult) -> SlotsResult:
        return SlotsResult(self.slots, self.utterances + other.utterances)

    @property
    def accuracy(self) -> Interval:
        """Share of utterances with all slots right."""
        return self._share([u.reference == u.prediction for u in self.utterances])

    @property
    def by_slot(self) -> dict[str, Interval]:
        """Accuracy of each slot alone."""
        pairs = [list(zip(u.reference, u.prediction, strict=True)) for u in self.utterances]
        return {name: self._share([pair[i][0] == pair[i][1] for pair in pairs]) for i, name in enumerate(self.slots)}

    def _share(self, right: Sequence[bool]) -> Interval:
        return bootstrap(right, [1] * len(right), [u.speaker for u in self.utterances])

    def to_dict(self) -> dict[str, Any]:
        """``accuracy``, ``by_slot`` and the number of ``utterances`` (predictions), for ``results.json``."""
        by_slot = {name: interval.to_dict() for name, interval in self.by_slot.items()}
        return {"accuracy": self.accuracy.to_dict(), "by_slot": by_slot, "utterances": len(self.utterances)}


@torch.no_grad()
def evaluate_slots(
    model: SpeechAdapterModel,
    manifest: Manifest,
    *,
    batch_seconds: float = 120.0,
    precision: str = "fp32",
    progress: bool = True,
) -> SlotsResult:
    """Predict every utterance's slots with the active adapter and slots head, on the model's device.

    Args:
        manifest: needs a key for each slot; ``speaker`` makes the intervals bootstrap by speaker.
        precision: "fp32", or "bf16" for autocast.

    Raises:
        ConfigError: the active head is not a slots head.
        ManifestError: an utterance lacks a slot.
    """
    head = model.head
    if not isinstance(head, SlotsHeadModule):
        raise ConfigError("evaluate_slots: the active head is not a slots head; load one, or use set_head.")
    slots = tuple(head.config.slots)
    manifest.require(*slots)
    device = next(model.encoder.model.parameters()).device
    model.eval()
    predictions: list[tuple[str, ...]] = [()] * len(manifest)
    loader = evaluation_loader(SpeechDataset(manifest, keep_in_memory=False), batch_seconds)
    for batch in tqdm(loader, desc=f"slots of {manifest.name}", unit="batch", leave=False, disable=not progress):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(batch["waveforms"].to(device), batch["lengths"].to(device)).logits
        for index, labels in zip(batch["indices"].tolist(), head.decode(HeadOutput(logits)), strict=True):
            predictions[index] = labels
    return SlotsResult(
        slots,
        tuple(
            SlotsUtterance(u.id, u.speaker, tuple(u.get(slot) for slot in slots), prediction)
            for u, prediction in zip(manifest, predictions, strict=True)
        ),
    )
