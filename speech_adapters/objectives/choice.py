"""The masked-prediction objective of an encoder, its units clustered on the speech that it trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from speech_adapters.data.crops import Crops, Speech, crop_batches
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import CheckpointError
from speech_adapters.files import atomic
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.objectives.base import Objective
from speech_adapters.objectives.hubert import HuBERTObjective, HuBERTObjectiveConfig
from speech_adapters.objectives.pretraining import PretrainingConfig
from speech_adapters.objectives.units import KMeansUnits
from speech_adapters.objectives.wav2vec2 import Wav2Vec2Objective, Wav2Vec2ObjectiveConfig
from speech_adapters.objectives.wavlm import WavLMObjective, WavLMObjectiveConfig
from speech_adapters.runs.folder import RunFolder

UNIT_BATCHES = 40
"""Of crops, to cluster: 40 batches of 8 crops of 5 s are 27 minutes."""


@dataclass(kw_only=True)
class ObjectiveChoice:
    """Which objective, and the settings of each."""

    objective: Literal["auto", "wav2vec2", "hubert", "wavlm"] = "auto"
    """``auto`` is that of the encoder's family; HuBERT's for families without one here."""
    wav2vec2: Wav2Vec2ObjectiveConfig = field(default_factory=Wav2Vec2ObjectiveConfig)
    hubert: HuBERTObjectiveConfig = field(default_factory=HuBERTObjectiveConfig)
    wavlm: WavLMObjectiveConfig = field(default_factory=WavLMObjectiveConfig)

    def build(
        self,
        model: SpeechAdapterModel,
        train: Manifest,
        training: PretrainingConfig,
        run: RunFolder,
        noises: Sequence[Tensor] = (),
    ) -> Objective:
        """The objective for a model whose adapters are chosen; its units are kept in the run folder.

        Args:
            noises: waveforms (samples,) for WavLM's denoising; by default utterances are mixed alone.
        """
        family = model.encoder.family
        known = family if family in ("wav2vec2", "hubert", "wavlm") else "hubert"
        name = known if self.objective == "auto" else self.objective
        device, size = model.encoder.device, model.feature_size
        if name == "wav2vec2":
            torch.manual_seed(training.seed)
            return Wav2Vec2Objective(self.wav2vec2, model.encoder, size).to(device)
        settings = self.wavlm if name == "wavlm" else self.hubert
        units = KMeansUnits.for_model(model, settings.units, settings.clusters).to(device)
        _fit(units, model, train, training, run)
        torch.manual_seed(training.seed)  # after the clustering, which a run that goes on need not do again
        if name == "hubert":
            return HuBERTObjective(settings, model.encoder, size, units).to(device)
        return WavLMObjective(self.wavlm, model.encoder, size, units, list(noises)).to(device)


def read_noises(manifest: Manifest) -> list[Tensor]:
    """Waveforms (samples,) of a manifest of noises."""
    return [utterance.waveform("mix") for utterance in manifest]


def _fit(
    units: KMeansUnits, model: SpeechAdapterModel, train: Manifest, training: PretrainingConfig, run: RunFolder
) -> None:
    path = run.path / "objective" / "units.pt"
    if path.is_file():
        try:
            units.centroids.copy_(torch.load(path, weights_only=True))
        except Exception as error:  # whatever a damaged file makes torch.load raise
            raise CheckpointError(f"{path}: cannot be read; remove it to cluster anew.") from error
        return
    speech = Speech(train, run.path / "audio", model.encoder.receptive_field + model.encoder.stride)
    crops = Crops(speech, (training.seed, 0), crop_seconds=training.crop_seconds, crops=training.crops)
    units.fit(model, (clean for clean, _ in islice(crop_batches(crops), UNIT_BATCHES)), training.seed)
    with atomic(path) as file:
        torch.save(units.centroids.cpu(), file)
