"""WavLM: HuBERT's prediction from speech that another voice or noise talks into (Chen et al., "WavLM", IEEE JSTSP
2022, section 3.2 and algorithm 1).

A share of a batch's utterances is chosen; over a random stretch of at most half of each, a piece of another utterance
of the batch (energy ratio -5 to 5 dB) or of a noise (-5 to 20 dB) is added. The units stay those of the clean first
voice, so the model learns to follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from speech_adapters.encoders.encoder import Encoder
from speech_adapters.objectives.hubert import HuBERTObjective, HuBERTObjectiveConfig
from speech_adapters.objectives.units import KMeansUnits
from speech_adapters.ranges import Share

SPEECH_DB, NOISE_DB = (-5.0, 5.0), (-5.0, 20.0)
"""Energy of the utterance over that of what is added, in the stretch."""


@dataclass(kw_only=True)
class WavLMObjectiveConfig(HuBERTObjectiveConfig):
    """Defaults of WavLM Base+."""

    mix_probability: Share = 0.2
    """Share of utterances that something is added to."""
    noise_probability: Share = 0.1
    """Share of these that get noise rather than a second voice; without noises all get a voice."""


class WavLMObjective(HuBERTObjective):
    """HuBERT's loss on mixed speech; ``noises`` are waveforms (samples,) at 16 kHz."""

    name: ClassVar[str] = "wavlm"
    config: WavLMObjectiveConfig

    def __init__(
        self,
        config: WavLMObjectiveConfig,
        encoder: Encoder,
        feature_size: int,
        units: KMeansUnits,
        noises: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(config, encoder, feature_size, units)
        self.noises = tuple(noises)

    def hear(self, waveforms: Tensor, lengths: Tensor | None, rng: np.random.Generator) -> Tensor:
        """Mixed while training and while held-out speech is scored alike: it is the task that is learnt."""
        return mix_utterances(
            waveforms, lengths, rng, self.config.mix_probability, self.config.noise_probability, self.noises
        )


def mix_utterances(
    waveforms: Tensor,
    lengths: Tensor | None,
    rng: np.random.Generator,
    mix_probability: float,
    noise_probability: float,
    noises: Sequence[Tensor] = (),
) -> Tensor:
    """Waveforms (B, samples) with a second sound in some; at most half of an utterance's samples change."""
    mixed = waveforms.clone()
    real = [waveforms.shape[1]] * len(waveforms) if lengths is None else [int(n) for n in lengths]
    for index in np.flatnonzero(rng.random(len(waveforms)) < mix_probability):
        noisy = bool(noises) and rng.random() < noise_probability
        if not noisy and len(waveforms) == 1:
            continue  # no second voice in this batch
        if noisy:
            second, (low, high) = noises[int(rng.integers(len(noises)))].to(waveforms), NOISE_DB
        else:
            other = (index + 1 + rng.integers(len(waveforms) - 1)) % len(waveforms)
            second, (low, high) = waveforms[other, : real[other]], SPEECH_DB
        length = int(rng.integers(1, max(1, min(real[index] // 2, len(second))) + 1))
        start, cut = rng.integers(real[index] - length + 1), rng.integers(len(second) - length + 1)
        piece, first = second[cut : cut + length], waveforms[index, start : start + length]
        energy = piece.square().sum()
        if energy > 0:
            ratio = 10 ** (rng.uniform(low, high) / 10)
            mixed[index, start : start + length] += piece * torch.sqrt(first.square().sum() / (ratio * energy))
    return mixed
