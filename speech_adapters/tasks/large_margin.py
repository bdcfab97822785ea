"""Settings of large-margin fine-tuning, the second stage of a speaker head's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from speech_adapters.heads.margin import Margin
from speech_adapters.ranges import CountOrNone, Positive, Range, check_values


@dataclass(kw_only=True)
class LargeMargin:
    """Large-margin fine-tuning: a short second stage with longer crops and a larger margin (Thienpondt et al., "The
    IDLab VoxSRC-20 submission", ICASSP 2021, section 3)."""

    updates: CountOrNone = 0
    """Of the second stage; 0 leaves it out."""
    margin: Margin = 0.5
    crop_seconds: Annotated[float, Range(0.1, below=True)] = 6.0
    rate: Positive = 0.1
    """Learning rates, as a share of the first stage's."""

    def __post_init__(self) -> None:
        check_values(self, "large_margin.")
