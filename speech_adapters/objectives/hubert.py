"""HuBERT: predict each hidden frame's k-means unit (Hsu et al., IEEE/ACM TASLP 2021, section II-A).

    p(c | t) = softmax_c( sim(A o_t, e_c) / 0.1 ),    L = - mean over hidden frames of log p(z_t | t)

``o`` is the model's output, ``A`` a projection, ``e_c`` an embedding a unit, ``z_t`` the frame's unit (see
:mod:`~speech_adapters.objectives.units`). Frames that are not hidden do not count (alpha = 1). Hugging Face's HuBERT
and WavLM checkpoints come without ``A`` and ``e``, so both are always new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from speech_adapters.encoders.loading import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.objectives.base import MaskingConfig, Objective, ObjectiveOutput
from speech_adapters.objectives.units import KMeansUnits


@dataclass(kw_only=True)
class HuBERTObjectiveConfig(MaskingConfig):
    """Defaults of HuBERT Base."""

    units: str = "mfcc"
    """What is clustered: ``mfcc`` (first iteration), or the number of a layer of the base (later ones)."""
    clusters: int = 100
    """Units; 100 for MFCCs, 500 for a layer in HuBERT Base."""
    projection_size: int = 256
    """Width in which outputs and units are compared."""
    temperature: float = 0.1
    """Of the similarity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters < 2 or self.projection_size < 1:
            raise ConfigError(
                f"clusters={self.clusters}, projection_size={self.projection_size}: give 2 and 1 or more."
            )


class HuBERTObjective(Objective):
    """Cross-entropy over k-means units on the hidden frames."""

    name: ClassVar[str] = "hubert"
    config: HuBERTObjectiveConfig

    def __init__(self, config: HuBERTObjectiveConfig, encoder: Encoder, feature_size: int, units: KMeansUnits) -> None:
        super().__init__(config, encoder)
        self.units = units
        self.projection = nn.Linear(feature_size, config.projection_size)
        self.embeddings = nn.Parameter(torch.empty(config.clusters, config.projection_size).uniform_())

    def score(self, model, output, waveforms, lengths, time_mask, rng):
        wanted = self.units(model, waveforms, lengths)[time_mask]
        with torch.autocast(time_mask.device.type, enabled=False):
            found = F.normalize(self.projection(output.features[time_mask].float()), dim=-1)
            logits = found @ F.normalize(self.embeddings, dim=-1).T / self.config.temperature
            loss = F.cross_entropy(logits, wanted)
        return ObjectiveOutput(loss, len(wanted), {"accuracy": (logits.argmax(-1) == wanted).float().mean()})
