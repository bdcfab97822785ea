"""What the objectives of masked prediction share: hide frames, run the model, and score what it makes of them.

An objective reads what a head would read (``ModelOutput.features``), so that every part of an adapter learns, and owns
what checkpoints need not have: its own small prediction head, and a mask embedding, which starts from the base's and
trains, since a checkpoint that was never pre-trained by masking has a random one. Neither is part of the adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.model import ModelOutput, SpeechAdapterModel
from speech_adapters.objectives.masking import span_mask
from speech_adapters.ranges import Prior, Size, check_values
from speech_adapters.schema import Configuration


@dataclass
class ObjectiveOutput:
    """``loss``, a mean over the ``masked`` frames, and further ``figures`` of the same kind (accuracy, ...)."""

    loss: Tensor
    masked: int
    figures: dict[str, Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class MaskingConfig(Configuration):
    """Which frames are hidden; see :mod:`~speech_adapters.objectives.masking`."""

    mask_probability: Prior = 0.8
    """Share of frames hidden if spans did not overlap."""
    mask_length: Size = 10
    """Frames a span; 0.2 s."""

    def __post_init__(self) -> None:
        check_values(self)


class Objective(nn.Module, ABC):
    """Waveforms to a loss; subclasses say what is predicted."""

    name: ClassVar[str]
    head_source: str = "new"
    """Where the prediction head comes from: "checkpoint", or "new" where the checkpoint has none."""

    def __init__(self, config: MaskingConfig, encoder: Encoder) -> None:
        super().__init__()
        if encoder.output_lengths(probe := 100 * encoder.stride) != encoder.frame_lengths(probe):
            raise ConfigError(
                f"{encoder.name}: its output adapter hands on fewer frames than it hides, so that masked prediction "
                "has nothing to predict them from; take the checkpoint that it was fine-tuned from."
            )
        self.config = config
        own = encoder.mask_embedding
        start = torch.empty(encoder.hidden_size).uniform_() if own is None else own.detach().float().clone()
        self.mask_embedding = nn.Parameter(start)

    def forward(
        self,
        model: SpeechAdapterModel,
        waveforms: Tensor,
        lengths: Tensor | None,
        rng: np.random.Generator,
        time_mask: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Waveforms (B, samples) at 16 kHz, lengths (B,) in samples or None; ``rng`` draws masks and negatives.

        Args:
            time_mask: (B, T) frames to hide in place of drawn ones.

        Raises:
            ConfigError: a head is active; call ``model.set_head(None)``.
        """
        if model.head is not None:
            raise ConfigError("a masked-prediction objective trains adapters alone; call model.set_head(None) first.")
        if time_mask is None:
            samples = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
            frames = [int(model.encoder.frame_lengths(n)) for n in samples]
            config, total = self.config, int(model.encoder.frame_lengths(waveforms.shape[1]))
            time_mask = span_mask(frames, total, config.mask_probability, config.mask_length, rng)
        time_mask = time_mask.to(waveforms.device)
        heard = self.hear(waveforms, lengths, rng)
        if lengths is None:  # said outright: where a crop ends in digital silence, that is no forgotten padding
            lengths = torch.full((len(heard),), heard.shape[1])
        output = model(heard, lengths, time_mask=time_mask, mask_embedding=self.mask_embedding)
        return self.score(model, output, waveforms, lengths, time_mask, rng)

    def hear(self, waveforms: Tensor, lengths: Tensor | None, rng: np.random.Generator) -> Tensor:
        """What the model hears of clean speech; the speech itself unless a subclass corrupts it."""
        return waveforms

    @abstractmethod
    def score(
        self,
        model: SpeechAdapterModel,
        output: ModelOutput,
        waveforms: Tensor,
        lengths: Tensor | None,
        time_mask: Tensor,
        rng: np.random.Generator,
    ) -> ObjectiveOutput:
        """The loss on the hidden frames; ``waveforms`` are the clean ones."""

    def set_step(self, step: int) -> None:
        """Called before each update, for what changes in the course of training."""
        return
