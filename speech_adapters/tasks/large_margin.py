"""Settings of large-margin fine-tuning, the second stage of a speaker head's training."""

from __future__ import annotations

from dataclasses import dataclass

from speech_adapters.errors import ConfigError


@dataclass(kw_only=True)
class LargeMargin:
    """Large-margin fine-tuning: a short second stage with longer crops and a larger margin (Thienpondt et al., "The
    IDLab VoxSRC-20 submission", ICASSP 2021, section 3)."""

    updates: int = 0
    """Of the second stage; 0 leaves it out."""
    margin: float = 0.5
    crop_seconds: float = 6.0
    rate: float = 0.1
    """Learning rates, as a share of the first stage's."""

    def __post_init__(self) -> None:
        if self.updates < 0 or self.rate <= 0:
            raise ConfigError(f"large_margin: updates={self.updates}, rate={self.rate}: 0 or more, and above 0.")
