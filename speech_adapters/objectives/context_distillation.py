"""Distillation that also teaches context: states of hidden frames, and the cluster that a hidden frame belongs to.

The student is to give the teacher's state ``h_l`` at every layer (:mod:`~speech_adapters.objectives.distillation`). In
a share of the crops, spans of the projected features are replaced by the mask embedding, as in HuBERT and WavLM; in
hidden frames the upper states are still to be what the teacher makes of the whole speech, at smaller weights, and a
linear layer, thrown away in the end, is to name the cluster ``z`` that the teacher's last state lies in::

    L = sum_l w_l * mean_t u_{l,t} ||(s_{l,t} - h_{l,t}) / sigma_l||^2 / D  +  c * mean_{t hidden} CE(s_{n,t}, z_t)

with ``u`` 1 in seen frames and ``hidden_weights`` in hidden ones.

Teacher and student hear the same speech, so that the target is exact however it is varied: a few hours are heard in
many speeds, cut anywhere, louder or softer, brighter or duller. Crops are cut on the device, and follow from the seed
and the update's number.

Sources: clusters of hidden frames, Hsu et al., "HuBERT" (2021, II); states and clusters together follow the same idea
as Baevski et al., "data2vec" (ICML 2022), with a teacher that is already trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool1d, pad

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.joined import LEVEL, JoinedSpeech
from speech_adapters.encoders import encode
from speech_adapters.encoders.families.wav2vec2 import Model
from speech_adapters.objectives.distillation import HiddenStateDistillation
from speech_adapters.objectives.mel_start import FROZEN, samples_of
from speech_adapters.objectives.student import StudentLearner, made_once, observe_teacher
from speech_adapters.objectives.units import k_means
from speech_adapters.objectives.whisper_student import wav2vec2_like
from speech_adapters.objectives.whisper_teacher import WhisperTeacher
from speech_adapters.precision import autocast
from speech_adapters.ranges import LARGEST, Count, CountOrNone, Dropout, NotNegative, Range, Rate, Share, Size
from speech_adapters.training.learner import Loss, Position
from speech_adapters.training.settings import LoopConfig

RATES = {"student": 1e-3, "clusters": 1e-3, "front": 1e-4}
"""Peak rates by group; ``front`` is the rest of the front-end, which starts near its end."""
SPAN = 10
"""Frames of a hidden span, as in wav2vec 2.0, HuBERT and WavLM."""
HALF = 0.25
"""Share of the updates whose filterbank is computed in the loop's precision too, since users run it so."""
STATISTICS, CLUSTERS, MEAN, HELD_OUT = range(1, 5)
"""What random numbers are drawn for, apart from the updates; joins the seed."""
CLUSTERED = 1200
"""Frames per batch of the teacher's that are clustered."""


@dataclass(kw_only=True)
class ContextDistillationConfig(LoopConfig):
    """One training; weights of states are those of states 0 to n."""

    updates: Count = 18_550
    """As many as ``small-wavlm`` had: 1,500 hours heard."""
    batch_frames: Size = 14_592
    """Frames of 20 ms per batch: 292 s."""
    crop_frames: tuple[Size, ...] = (152, 304, 608, 1216)
    """3 to 24 s, one length per batch, so that the student knows any length."""
    crop_shares: tuple[Share, ...] = (0.15, 0.35, 0.35, 0.15)
    """How often each is drawn."""
    gain_db: NotNegative = 3.0
    """Louder or softer by up to so much."""
    tilt: Share = 0.4
    """In half of the crops, up to so much of the last sample is added or taken away."""
    layer_weights: tuple[NotNegative, ...] = (0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0)
    """The last state is what heads read; state 0 is only a means."""
    hidden_crops: Share = 1 / 3
    """Share of the crops of which spans are hidden; 0 for none."""
    hidden_starts: Share = 0.03
    """Chance of a frame to start a span: about 26 % of the frames are hidden."""
    hidden_weights: tuple[NotNegative, ...] = (0.0, 0.0, 0.0, 0.1, 0.2, 0.35, 0.5)
    """Of hidden frames, beside 1 of the others: low states cannot know what was hidden."""
    clusters: Annotated[int, Range(2, LARGEST)] = 500
    """Of the teacher's last state; as many as in HuBERT's second iteration. ``cluster_weight=0`` turns them off."""
    cluster_weight: NotNegative = 0.05
    """Of their cross-entropy; 0 for none."""
    statistics_batches: Count = 60
    """Of the longest crops: the teacher's moments, its means by position, and what is clustered."""
    learning_rates: dict[str, Rate] = field(default_factory=lambda: dict(RATES))
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    final_rate: Share = 0.01
    warmup: Dropout = 0.01
    weight_decay: NotNegative = 0.01
    betas: tuple[Dropout, Dropout] = (0.9, 0.98)
    """Those of wav2vec 2.0 and HuBERT: gradients change fast at first."""
    evaluate_every: CountOrNone = 1000
    log_every: Count = 100
    trackers: tuple[str, ...] = ("none",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            len(self.crop_frames) == len(self.crop_shares), "crop_shares", "give one share per length of crop_frames"
        )
        self._require(
            len(self.layer_weights) == len(self.hidden_weights), "hidden_weights", "give as many as layer_weights"
        )
        self._require(self.learning_rates.keys() <= RATES.keys(), "learning_rates", f"has {', '.join(RATES)} alone")


class ContextDistillation(StudentLearner):
    """A student of :func:`~speech_adapters.objectives.mel_start.mel_student` against its teacher's states.

    Args:
        speech: what trains. held_out: other speakers, whose figures are logged and choose the state that is kept.
        folder: of the run; the teacher's statistics and clusters are kept there.

    Raises:
        ConfigError: other than one weight per state, less speech than a crop, fewer frames than clusters.
        CheckpointError: damaged statistics in ``folder``.
    """

    def __init__(
        self,
        student: Model,
        teacher: WhisperTeacher,
        speech: JoinedSpeech,
        held_out: JoinedSpeech,
        config: ContextDistillationConfig,
        folder: Path,
    ) -> None:
        self.student, self.teacher, self.config = student, teacher, config
        self.speech, self.held_out = speech, held_out
        self.device = next(student.parameters()).device
        self.blocks = wav2vec2_like(student).blocks(student)
        self.last = teacher.encoder.config.encoder_layers
        width, longest = student.config.hidden_size, max(config.crop_frames)
        pairs = [(i, i) for i in range(self.last + 1)]
        loss = HiddenStateDistillation(width, width, pairs, config.layer_weights, longest)
        self.distillation = loss.to(self.device)
        self.hidden_weights = torch.tensor(config.hidden_weights, device=self.device)
        self.clusters = nn.Linear(width, config.clusters).to(self.device)

        precision = autocast(self.device, config.precision)
        observe_teacher(self.distillation, teacher, self._taught(STATISTICS), folder / "statistics.pt", precision)
        with precision:
            self.centroids = made_once(folder / "clusters.pt", self.device, self._clustered)["centroids"]
            self._start_at_mean()

    def _taught(self, purpose: int) -> Iterator[Tensor]:
        """Batches of the longest crops (B, samples) at the teacher's level."""
        config, longest = self.config, max(self.config.crop_frames)
        generator = self.random(purpose)
        for _ in range(config.statistics_batches):
            crops = max(1, config.batch_frames // longest)
            yield LEVEL * self.speech.crops(crops, samples_of(longest), generator=generator)

    def _clustered(self) -> dict[str, Tensor]:
        frames = []
        for waves in self._taught(CLUSTERS):
            last = self._standardised(self.teacher(waves)[-1]).flatten(0, 1)
            frames.append(last[:: max(1, len(last) // CLUSTERED)].cpu())
        return {"centroids": k_means(torch.cat(frames), self.config.clusters, self.config.seed).to(self.device)}

    @torch.no_grad()
    def _start_at_mean(self) -> None:
        """Give the student's state 0 the teacher's mean; the fit of the front-end saw no positions."""
        waves = self.speech.crops(24, samples_of(max(self.config.crop_frames)), generator=self.random(MEAN))
        shift = self.distillation.mean[0] - self.states(waves, stop=0)[0].mean((0, 1))
        wav2vec2_like(self.student).projection(self.student).bias.add_(shift)

    def random(self, purpose: int) -> torch.Generator:
        """Random numbers on the device that no update draws."""
        seed = np.random.SeedSequence((self.config.seed, purpose)).generate_state(1)[0]
        return torch.Generator(self.device).manual_seed(int(seed))

    def _standardised(self, last: Tensor) -> Tensor:
        """The teacher's last state (B, T, D), as it is clustered."""
        return (last.float() - self.distillation.mean[-1]) / self.distillation.std[-1]

    def states(
        self, waves: Tensor, hidden: Tensor | None = None, stop: int | None = None, half: bool = False
    ) -> list[Tensor]:
        """The student's states 0 to ``stop``, (B, T, D), with ``hidden`` (B, T) frames replaced by the mask.

        The filterbank is computed in full precision but for ``half``: bf16 blurs its quiet bands.
        """
        kind = self.device.type
        with torch.no_grad(), torch.autocast(kind, enabled=half and torch.is_autocast_enabled(kind)):
            signal = waves.unsqueeze(1)
            for block in self.blocks[:FROZEN]:
                signal = block(signal)
        for block in self.blocks[FROZEN:]:
            signal = block(signal)
        output = encode(self.student, cnn_output=signal.transpose(1, 2), time_mask=hidden, stop_layer=stop)
        found = list(output.hidden_states)
        if len(found) == self.last + 1:
            found[-1] = output.last_hidden_state
        return [state.float() for state in found]

    def spans(self, crops: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
        """(crops, frames), True in spans that may overlap."""
        starts = torch.rand(crops, frames, device=self.device, generator=generator) < self.config.hidden_starts
        return max_pool1d(pad(starts.float(), (SPAN - 1, 0)), SPAN, stride=1).bool()

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        named = [(name, p) for name, p in self.student.named_parameters() if p.requires_grad]
        groups = {
            "student": [p for name, p in named if not name.startswith("feature_")],
            "front": [p for name, p in named if name.startswith("feature_")],
            "clusters": list(self.clusters.parameters()),
        }
        rates = RATES | self.config.learning_rates
        return {group: (parameters, rates[group]) for group, parameters in groups.items()}

    def batches(self, at: Position) -> Iterator[int]:
        """One epoch without end: :meth:`loss` cuts its crops itself."""
        return itertools.count(at.place)

    def loss(self, batch: int, update: int) -> Loss:
        config = self.config
        frames = config.crop_frames[int(torch.multinomial(torch.tensor(config.crop_shares), 1))]
        crops = max(1, config.batch_frames // frames)
        waves = self.speech.crops(crops, samples_of(frames), gain_db=config.gain_db, tilt=config.tilt)
        masked = round(crops * config.hidden_crops)
        hidden = torch.zeros(crops, frames, dtype=torch.bool, device=self.device)
        if masked:
            hidden[:masked] = self.spans(masked, frames)
        wanted = self.teacher(LEVEL * waves)
        found = self.states(waves, hidden, half=bool(torch.rand(()) < HALF))
        losses = []
        for i, (state, taught) in enumerate(zip(found, wanted, strict=True)):
            error = (state - self.distillation.target(taught.float(), i)) / self.distillation.std[i]
            weights = torch.where(hidden, self.hidden_weights[i], 1.0)
            losses.append((error.square().mean(-1) * weights).mean())
        total = (torch.stack(losses) * self.distillation.weights).sum()
        figures = {f"layer_{i}_loss": value for i, value in enumerate(losses)}
        if masked and config.cluster_weight:
            figures["cluster_loss"] = self._cluster_loss(found[-1][:masked], wanted[-1][:masked], hidden[:masked])
            total = total + config.cluster_weight * figures["cluster_loss"]
        return Loss(total, waves.numel() / SAMPLE_RATE, (), figures)

    def _cluster_loss(self, found: Tensor, wanted: Tensor, hidden: Tensor) -> Tensor:
        """Cross-entropy of the clusters of hidden frames; last states (B, T, D), positions still in the teacher's."""
        taught = self._standardised(self.distillation.target(wanted.float(), self.last)).flatten(0, 1)
        nearest = torch.cdist(taught, self.centroids).argmin(-1)
        each = cross_entropy(self.clusters(found).flatten(0, 1).float(), nearest, reduction="none")
        where = hidden.flatten()
        return (each * where).sum() / where.sum().clamp_min(1)

    def evaluate(self) -> dict[str, float]:
        """Loss and cosines of all frames; cosines of frames that are hidden. The crops are always the same."""
        config, generator = self.config, self.random(HELD_OUT)
        frames = config.crop_frames[len(config.crop_frames) // 2]
        crops = min(32, max(1, config.batch_frames // frames))
        waves = self.held_out.crops(crops, samples_of(frames), generator=generator)
        hidden = self.spans(crops, frames, generator)
        wanted = self.teacher(LEVEL * waves)
        seen = self.distillation(self.states(waves), wanted)
        unseen = self.distillation(self.states(waves, hidden), wanted, hidden)
        figures = {"loss": float(seen.loss)}
        for i, (cosine, guessed) in enumerate(zip(seen.layer_cosines, unseen.layer_cosines, strict=True)):
            figures |= {f"layer_{i}_cosine": float(cosine), f"layer_{i}_hidden_cosine": float(guessed)}
        return figures

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"clusters.{name}": p for name, p in self.clusters.state_dict().items()}
