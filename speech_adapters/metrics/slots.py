"""Slots: utterances with several labels, right only if all of them are (Lugosch et al., Interspeech 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speech_adapters.metrics.bootstrap import Interval, bootstrap


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
        speakers, ids = [u.speaker for u in self.utterances], [u.id for u in self.utterances]
        return bootstrap(right, [1] * len(right), speakers, ids=ids)

    def to_dict(self) -> dict[str, Any]:
        """``accuracy``, ``by_slot`` and the number of ``utterances`` (predictions), for ``results.json``."""
        by_slot = {name: interval.to_dict() for name, interval in self.by_slot.items()}
        return {"accuracy": self.accuracy.to_dict(), "by_slot": by_slot, "utterances": len(self.utterances)}
