"""Span masks of masked prediction (Baevski et al., "wav2vec 2.0", NeurIPS 2020, section 3.1 and appendix B).

``p T / l`` starts are drawn without replacement, each hides ``l`` frames, and spans may overlap: wav2vec 2.0's
``p = 0.65, l = 10`` hides 49 % of the frames, HuBERT's ``p = 0.8`` 57 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from speech_adapters.errors import ConfigError

MIN_SPANS = 2
"""Spans of an utterance at least, as in the published training."""


def span_mask(
    lengths: Sequence[int], frames: int, probability: float, length: int, rng: np.random.Generator
) -> Tensor:
    """(B, frames) boolean, True on hidden frames, which lie among each utterance's ``lengths`` real ones.

    An utterance under two spans long gets one span of half its frames, so that something is left to predict from.

    Raises:
        ConfigError: a probability outside (0, 1), a length under 1, or an utterance without frames or with too many.
    """
    if not 0 < probability < 1 or length < 1:
        raise ConfigError(
            f"mask_probability={probability}, mask_length={length}: give 0 < probability < 1 and length > 0."
        )
    mask = torch.zeros(len(lengths), frames, dtype=torch.bool)
    for row, real in zip(mask, (int(n) for n in lengths), strict=True):
        if not 1 <= real <= frames:
            raise ConfigError(f"span_mask: {real} real frames of {frames}; give between 1 and {frames}.")
        span = length if real >= 2 * length else max(1, real // 2)
        # The random fraction makes the expected number of spans exact for any length.
        spans = max(MIN_SPANS, int(probability * real / length + rng.random())) if real >= 2 * length else 1
        starts = rng.choice(real - span + 1, min(spans, real - span + 1), replace=False)
        row[(starts[:, None] + np.arange(span)).ravel()] = True
    return mask
