"""What a sweep is: how many trials, of which space, and when a hopeless one stops."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from speech_adapters.config import option
from speech_adapters.ranges import Count, Seed, check_values


@dataclass(kw_only=True)
class SweepConfig:
    """Settings of a sweep; the recipe's own come beside it."""

    over: dict[str, Any] = field(default_factory=dict)
    """The search space; see :mod:`speech_adapters.sweeps.space`."""
    trials: Count = option(20, "in all, over all processes; a larger number goes on with what is there")
    at_once: Count = option(1, "trials that are trained in one pass over the data, where they differ in adapters only")
    pruner: Literal["halving", "median", "none"] = option(
        "halving",
        "stop a trial at an evaluation where others did better: asynchronous successive halving (the best third goes "
        "on after 2, 6, 18, .. evaluations), below the median of finished ones, or never",
    )
    sampler_seed: Seed = option(0, "of what is drawn: ten trials at random, then by TPE")

    def __post_init__(self) -> None:
        check_values(self)
