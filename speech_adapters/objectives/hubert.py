"""HuBERT: predict each hidden frame's k-means unit (Hsu et al., IEEE/ACM TASLP 2021, II-B, masked prediction).

    p(c | t) = softmax_c( sim(A o_t, e_c) / 0.1 ),    L_s = - mean over the frames of s of log p(z_t | t)
    L = alpha L_hidden + (1 - alpha) L_seen

``o`` is the model's output, ``A`` a projection, ``e_c`` an embedding a unit, ``z_t`` the frame's unit (see
:mod:`~speech_adapters.objectives.units`). Hugging Face's HuBERT and WavLM checkpoints come without ``A`` and ``e``, so
both are always new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_adapters.encoders.encoder import Encoder
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.model_output import ModelOutput
from speech_adapters.objectives.base import MaskingConfig, Objective, ObjectiveOutput
from speech_adapters.objectives.units import KMeansUnits
from speech_adapters.ranges import LARGEST, Positive, Range, Size


@dataclass(kw_only=True)
class HuBERTObjectiveConfig(MaskingConfig):
    """Defaults of HuBERT Base."""

    units: str = "mfcc"
    """What is clustered: ``mfcc`` (first iteration), or the number of a layer of the base (later ones)."""
    clusters: Annotated[int, Range(2, LARGEST)] = 100
    """Units; 100 for MFCCs, 500 for a layer in HuBERT Base."""
    projection_size: Size = 256
    """Width in which outputs and units are compared."""
    temperature: Positive = 0.1
    """Of the similarity."""
    alpha: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Weight of the hidden frames' mean; the rest is of the seen ones' (the paper weights sums). Below 1 the features
    stay close to the units, also in a model that has never filled gaps; for units that are good enough to keep."""


class HuBERTObjective(Objective):
    """Cross-entropy over k-means units on the hidden frames."""

    name: ClassVar[str] = "hubert"
    config: HuBERTObjectiveConfig

    def __init__(self, config: HuBERTObjectiveConfig, encoder: Encoder, feature_size: int, units: KMeansUnits) -> None:
        super().__init__(config, encoder)
        self.units = units
        self.projection = nn.Linear(feature_size, config.projection_size)
        self.embeddings = nn.Parameter(torch.empty(config.clusters, config.projection_size).uniform_())

    def score(
        self,
        model: SpeechAdapterModel,
        output: ModelOutput,
        waveforms: Tensor,
        lengths: Tensor | None,
        time_mask: Tensor,
        rng: np.random.Generator,
    ) -> ObjectiveOutput:
        units = self.units(model, waveforms, lengths)
        loss, accuracy = self._predict(output.features[time_mask], units[time_mask])
        figures, alpha = {"accuracy": accuracy}, self.config.alpha
        frames = torch.arange(units.shape[1], device=units.device)
        real = torch.full((len(units),), len(frames)) if lengths is None else model.encoder.frame_lengths(lengths)
        seen = ~time_mask & (frames < real.to(frames)[:, None])
        if alpha < 1 and seen.any():
            seen_loss, figures["seen_accuracy"] = self._predict(output.features[seen], units[seen])
            loss = alpha * loss + (1 - alpha) * seen_loss
        return ObjectiveOutput(loss, int(time_mask.sum()), figures)

    def _predict(self, features: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and accuracy of frames (N, size) with units (N,)."""
        with torch.autocast(features.device.type, enabled=False):
            found = F.normalize(self.projection(features.float()), dim=-1)
            logits = found @ F.normalize(self.embeddings, dim=-1).T / self.config.temperature
            return F.cross_entropy(logits, units), (logits.argmax(-1) == units).float().mean()
