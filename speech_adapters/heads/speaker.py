"""Speaker embeddings, trained by telling the training speakers apart, compared by cosine.

    linear   x_t -> W x_t + b -> pooling: the embedding itself for mean pooling (Otake et al., ICASSP 2023: 768, plain
             softmax); behind pooling with deviations, W' [mu, sigma] + b'
    xvector  five time-delay layers -> statistics -> linear (Snyder et al., ICASSP 2018; widths of SUPERB's head)
    ecapa    ECAPA-TDNN (Desplanques et al., Interspeech 2020) from speechbrain

The losses are in :mod:`speech_adapters.heads.margin`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import frame_mask
from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.heads.base import HeadConfig, HeadModule, HeadOutput
from speech_adapters.heads.classification import check_labels, label_index
from speech_adapters.heads.margin import CosineClassifier, Margin, margin_loss
from speech_adapters.heads.pooling import POOLINGS, pooling
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.ranges import Dropout, Positive, Size
from speech_adapters.speechbrain_parts import from_speechbrain


@dataclass(kw_only=True)
class SpeakerHead(HeadConfig):
    """An embedding and a classifier of the training speakers: ``SpeakerHead(train.speakers)``; saved with them."""

    head_type: ClassVar[str] = "speaker"

    speakers: tuple[str, ...] = field(default=(), kw_only=False)
    """The training speakers, in the order of the logits; other speakers are compared by their embeddings."""
    network: Literal["linear", "xvector", "ecapa"] = "linear"
    """``linear`` is the published head over L-adapters; the others are networks of their own (4 to 6 M parameters)."""
    embedding_size: Size = 256
    """Otake et al. use 768 (with mean pooling); x-vectors have 512, ECAPA-TDNN 192."""
    pooling: str = "statistics"
    """Of ``linear``: mean (as published), statistics or attentive; the other networks bring their own."""
    channels: Size = 512
    """Width of ``xvector`` and ``ecapa`` layers; ECAPA-TDNN's large form has 1024."""
    loss: Literal["ce", "am", "aam", "subcenter"] = "aam"
    margin: Margin = 0.2
    """Of the margin losses: 0.2 is the usual one; large-margin fine-tuning ends with 0.5."""
    scale: Positive = 30.0
    """Factor on cosines in the softmax."""
    subcenters: Size = 3
    """Centres a speaker of the ``subcenter`` loss: the paper's K."""
    dropout: Dropout = 0.0
    """On the features, while training."""
    calibration: Calibration | None = None
    """From the cosine of two embeddings to a log-likelihood ratio, fitted on development trials; set it on a trained
    head's ``config`` before the head is saved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.speakers = check_labels(self.speakers, "speakers")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling={self.pooling!r} is unknown: choose {', '.join(POOLINGS)}.")

    @cached_property
    def places(self) -> dict[str, int]:
        """Index of each training speaker."""
        return {speaker: index for index, speaker in enumerate(self.speakers)}

    def target(self, utterance: Utterance) -> list[int]:
        """[index of the utterance's speaker]; a ManifestError for one that was not trained on."""
        return [label_index(utterance, "speaker", self.places)]

    def check(self, manifest: Manifest, encoder: Encoder, *, any_length: bool = False) -> None:
        """Besides audio and speakers: no utterance too short for ``ecapa``."""
        super().check(manifest, encoder, any_length=any_length)
        if self.network != "ecapa":
            return
        for utterance in manifest:
            frames = encoder.frame_lengths(round(utterance.duration * SAMPLE_RATE))
            if frames < ECAPA_FRAMES:
                raise AudioError(
                    f"{manifest.name}: utterance {utterance.id!r} has {frames} frames and network='ecapa' hears "
                    f"{ECAPA_FRAMES} or more; leave it out, or take network='xvector'."
                )

    def build(self, input_size: int) -> SpeakerHeadModule:
        return SpeakerHeadModule(self, input_size)


class SpeakerHeadModule(HeadModule):
    """Features (B, T, D) to ``logits`` (B, S) of the training speakers, without margin, and an ``embedding`` (B, E),
    float32, not normalised."""

    config: SpeakerHead

    def __init__(self, config: SpeakerHead, input_size: int) -> None:
        super().__init__(config, input_size)
        self.ignores = config.loss == "ce"
        self.dropout = nn.Dropout(config.dropout)
        self.network = NETWORKS[config.network](config, input_size)
        self.reads_means = config.network == "linear" and config.pooling == "mean" and config.dropout == 0
        classes, size = len(config.speakers), config.embedding_size
        subcenters = config.subcenters if config.loss == "subcenter" else 1
        self.classifier = (
            nn.Linear(size, classes) if config.loss == "ce" else CosineClassifier(size, classes, subcenters)
        )

    def forward(self, features: Tensor, lengths: Tensor) -> HeadOutput:
        embedding = self.network(self.dropout(features), lengths).float()
        logits = self.classifier(embedding)
        return HeadOutput(logits if self.config.loss == "ce" else self.config.scale * logits, embedding=embedding)

    def loss(self, output: HeadOutput, targets: Tensor) -> Tensor:
        """Mean loss of ``targets`` (B, 1), in fp32, with the margin that ``config`` has now."""
        config, targets = self.config, targets[:, 0]
        if config.loss == "ce":
            return F.cross_entropy(output.logits.float(), targets)
        return margin_loss(output.logits / config.scale, targets, config.loss, config.margin, config.scale)

    def predict(self, output: HeadOutput) -> list[Tensor]:
        """(E,) embedding of each utterance, in float32."""
        assert output.embedding is not None, "this head gives it"
        return list(output.embedding.float().cpu())


class LinearNetwork(nn.Module):
    """A linear map of each frame, pooling, and a linear map back to the embedding's width where pooling widens."""

    def __init__(self, config: SpeakerHead, input_size: int) -> None:
        super().__init__()
        size = config.embedding_size
        self.frames = nn.Linear(input_size, size)
        self.pooling = pooling(config.pooling, size)
        self.embedding = nn.Linear(size * self.pooling.factor, size) if self.pooling.factor > 1 else nn.Identity()

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.embedding(self.pooling(self.frames(features), lengths))


class XVectorNetwork(nn.Module):
    """Time-delay layers of 5, 3, 3, 1, 1 frames (dilation 1, 2, 3, 1, 1), statistics, a linear map.

    Each layer sees zeros beyond both ends, so that any length works and padding changes nothing.
    """

    def __init__(self, config: SpeakerHead, input_size: int) -> None:
        super().__init__()
        width, wide = config.channels, 3 * config.channels
        sizes = ((input_size, width, 5, 1), (width, width, 3, 2), (width, width, 3, 3), (width, width, 1, 1))
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel, dilation=dilation, padding=dilation * (kernel // 2))
            for before, after, kernel, dilation in (*sizes, (width, wide, 1, 1))
        )
        self.pooling = pooling("statistics", wide)
        self.embedding = nn.Linear(2 * wide, config.embedding_size)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        mask = frame_mask(lengths, features.shape[1]).unsqueeze(1)
        hidden = features.transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden.masked_fill(~mask, 0.0)).relu()
        return self.embedding(self.pooling(hidden.transpose(1, 2), lengths))


ECAPA_FRAMES = 5
"""The shortest utterance: its widest convolution reflects four frames at both ends."""


class ECAPANetwork(nn.Module):
    """speechbrain's ECAPA-TDNN, its standard layout at any width."""

    def __init__(self, config: SpeakerHead, input_size: int) -> None:
        super().__init__()
        width = config.channels
        self.model = from_speechbrain("lobes.models.ECAPA_TDNN").ECAPA_TDNN(
            input_size, lin_neurons=config.embedding_size, channels=[width] * 4 + [3 * width], device="cpu"
        )
        # Softmax over time takes this bias out again: it would never learn.
        self.model.asp.conv.conv.bias = None

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        shortest = features.shape[1] if self.training else int(lengths.min())
        if shortest < ECAPA_FRAMES:
            raise AudioError(
                f"network='ecapa' hears {ECAPA_FRAMES} frames or more, and an utterance has {shortest}; leave it out, "
                "or take network='xvector'."
            )
        if self.training:  # batch norm needs the batch; crops of one length leave no padding
            # after the pooling it sees a vector per utterance: one alone, an epoch's last, has no deviation
            self.model.asp_bn.train(len(features) > 1)
            # half a frame less: rounding of shares must not let the first padded frame in
            return self.model(features, (lengths - 0.5) / features.shape[1]).squeeze(1)
        # Its convolutions carry padding into real frames: each utterance on its own is exact.
        alone = zip(features, lengths.tolist(), strict=True)
        return torch.cat([self.model(frames[:n].unsqueeze(0)).squeeze(1) for frames, n in alone])


NETWORKS = {"linear": LinearNetwork, "xvector": XVectorNetwork, "ecapa": ECAPANetwork}
