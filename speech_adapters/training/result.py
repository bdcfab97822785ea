"""What a training cost, and how the costs of several add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingResult:
    """What a training cost: updates made, wall seconds, audio seconds per wall second, peak memory in bytes.

    ``skipped`` counts updates left out because their gradients were not finite. ``together`` is how many trainings
    shared the pass that the costs are of. ``flops`` are those of all products and convolutions, counted from their
    shapes in the first update and scaled to the audio read; ``energy_joules`` is None where no counter can be read.
    """

    updates: int
    seconds: float
    audio_seconds_per_second: float
    peak_memory_bytes: int
    final_loss: float
    best_dev_loss: float | None
    skipped: int = 0
    together: int = 1
    flops: float | None = None
    energy_joules: float | None = None

    @property
    def costs(self) -> dict[str, float | None]:
        """The costs, under their names in ``results.json``."""
        names = ("seconds", "audio_seconds_per_second", "peak_memory_bytes", "flops", "energy_joules")
        return {name: getattr(self, name) for name in names}

    def __add__(self, later: TrainingResult) -> TrainingResult:
        """Two stages of one training."""
        seconds = self.seconds + later.seconds
        audio = sum(stage.audio_seconds_per_second * stage.seconds for stage in (self, later))
        return TrainingResult(
            updates=self.updates + later.updates,
            seconds=seconds,
            audio_seconds_per_second=audio / max(seconds, 1e-9),
            peak_memory_bytes=max(self.peak_memory_bytes, later.peak_memory_bytes),
            final_loss=later.final_loss,
            best_dev_loss=later.best_dev_loss,
            skipped=self.skipped + later.skipped,
            together=max(self.together, later.together),
            flops=add_known(self.flops, later.flops),
            energy_joules=add_known(self.energy_joules, later.energy_joules),
        )


def add_known(one: float | None, other: float | None) -> float | None:
    """The sum of two figures, None where one is unknown."""
    return None if one is None or other is None else one + other


def mean_costs(costs: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Means of several trainings' :attr:`TrainingResult.costs`, None where one is unknown; of the memory the most."""
    means: dict[str, Any] = {}
    for name in costs[0]:
        known = [value for cost in costs if (value := cost[name]) is not None]
        whole = len(known) == len(costs)
        means[name] = None if not whole else max(known) if name == "peak_memory_bytes" else sum(known) / len(known)
    return means
