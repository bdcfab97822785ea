"""Train adapters with an objective that needs no labels, watched on held-out speech.

Task-adaptive pre-training (Gururangan et al., ACL 2020; for speech Chen and Rudnicky, ICASSP 2023); with adapters
alone the base keeps what it knows (DRAFT: Fan and Alwan, Interspeech 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.crops import Crops, Speech, crop_batches
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.objectives.base import Objective
from speech_adapters.ranges import Count, CountOrNone, Dropout, NotNegative, Positive, Rate, Size
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.learner import Learner, Loss, Position
from speech_adapters.training.loop import fit
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import LoopConfig

HELD_OUT = 1_000_003
"""Joins the seed in the key of held-out crops, so that no epoch of the training shares it."""


@dataclass(kw_only=True)
class PretrainingConfig(LoopConfig):
    """One pass of label-free training. Published TAPT: 20 000 updates of 64 clips at 1e-4 (Chen and Rudnicky)."""

    updates: Count = 2000
    crops: Size = 8
    """Full crops per batch; shorter utterances come in larger numbers."""
    crop_seconds: Positive = 5.0
    """Longest piece of an utterance."""
    objective_rate: Rate = 1e-3
    """Of the objective's head and mask embedding, which start from nothing."""
    head_first: CountOrNone = 0
    """Further updates, before all others, in which the objective's head and mask embedding learn alone. A new head's
    gradients are noise, which destroys features that are good already (Kumar et al., ICLR 2022)."""
    weight_decay: NotNegative = 0.01
    """As in wav2vec 2.0 and HuBERT."""
    betas: tuple[Dropout, Dropout] = (0.9, 0.98)
    """Those of wav2vec 2.0 and HuBERT: gradients change fast at first."""
    evaluate_every: CountOrNone = 100
    patience: CountOrNone = 5
    trackers: tuple[str, ...] = ("none",)


def pretrain(
    model: SpeechAdapterModel,
    objective: Objective,
    train: Manifest,
    held_out: Manifest,
    config: PretrainingConfig,
    run: RunFolder,
    name: str = "tapt",
) -> TrainingResult:
    """One pass over what :meth:`SpeechAdapterModel.train_adapter` has chosen, the objective's parameters with it.

    The state with the lowest held-out loss stays in the model, the untrained one among them.

    Raises:
        ConfigError: nothing is trainable.
        RuntimeError, TrainingError, Interrupted: see :func:`~speech_adapters.training.loop.fit`.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("pretraining: nothing is trainable; call model.train_adapter(name) first.")
    learner = MaskedPrediction(model, objective, train, held_out, config, run)
    if config.head_first:
        alone: Literal["head"] = "head"
        first = replace(
            config, updates=config.head_first, schedule="constant", warmup=0.0, evaluate_every=0, patience=0
        )
        fit(MaskedPrediction(model, objective, train, held_out, first, run, only=alone), first, run, f"{name}-head")
    return fit(learner, config, run, name)


class MaskedPrediction(Learner):
    """Adapters and an objective, on random crops.

    Args:
        only: "head" leaves the adapters as they are.
    """

    watched_from_start = True

    def __init__(
        self,
        model: SpeechAdapterModel,
        objective: Objective,
        train: Manifest,
        held_out: Manifest,
        config: PretrainingConfig,
        run: RunFolder,
        only: Literal["head"] | None = None,
    ) -> None:
        self.model, self.objective, self.config, self.only = model, objective, config, only
        self.device = model.encoder.device
        self.folder = run.path / "audio"
        self.speech, self.held_out = self.read(train), self.read(held_out)

    def read(self, manifest: Manifest) -> Speech:
        """The speech of a manifest, decoded once per run folder."""
        encoder = self.model.encoder
        return Speech(manifest, self.folder, encoder.receptive_field + encoder.stride)  # a frame to hide, one to see

    def crops(self, speech: Speech, *key: int) -> Crops:
        """Crops of the speech, drawn by the seed and ``key``."""
        config = self.config
        return Crops(speech, (config.seed, *key), crop_seconds=config.crop_seconds, crops=config.crops)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        groups = {}
        if self.only is None:
            own = self.model.parameter_groups()
            rates = self.model.learning_rates(self.config.learning_rates)
            groups = {group: (parameters, rates[group]) for group, parameters in own.items()}
        return groups | {"objective": (list(self.objective.parameters()), self.config.objective_rate)}

    def batches(self, at: Position) -> Iterator[Tensor]:
        crops = self.crops(self.speech, at.epoch)
        places = range(at.place * at.processes + at.rank, len(crops) - len(crops) % at.processes, at.processes)
        return (clean for clean, _ in crop_batches(crops, places, self.config.workers))

    def loss(self, batch: Tensor, update: int) -> Loss:
        self.objective.set_step(update)
        # numpy's own numbers are seeded by the update and the process, and go on from batch to batch of one update
        rng = np.random.default_rng(np.random.randint(0, 2**32, 4, np.uint32))
        output = self.objective(self.model, batch, None, rng)
        return Loss(output.loss, batch.numel() / SAMPLE_RATE, (), output.figures)

    def evaluate(self) -> dict[str, float]:
        return self.held_out_loss(self.held_out)

    @torch.no_grad()
    def held_out_loss(self, speech: Speech) -> dict[str, float]:
        """The objective on speech that does not train, with masks and crops that are always the same."""
        totals: dict[str, float] = {}
        count = 0
        crops = self.crops(speech, HELD_OUT)
        for place, (clean, _) in enumerate(crop_batches(crops, range(len(crops)))):
            rng = np.random.default_rng((self.config.seed, HELD_OUT, place))
            output = self.objective(self.model, clean.to(self.device), None, rng)
            count += output.masked
            for key, value in {"loss": output.loss, **output.figures}.items():
                totals[key] = totals.get(key, 0.0) + float(value) * output.masked
        return {key: value / count for key, value in totals.items()}

    def tensors(self) -> dict[str, Tensor]:
        objective = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        if self.only is not None:
            return objective
        trained = {id(p) for parameters in self.model.parameter_groups().values() for p in parameters}
        return objective | {f"model.{n}": p.detach() for n, p in self.model.named_parameters() if id(p) in trained}

    def train(self, mode: bool = True) -> None:
        self.model.train(mode)
        self.objective.train(mode)

    def check_alive(self) -> None:
        if self.only is None:
            self.model.check_alive()

    def before_update(self, update: int) -> None:
        for name in self._scheduled():
            self.model.registry.adapter(name).before_update(update, self.config.updates)

    def after_update(self, update: int) -> None:
        for name in self._scheduled():
            self.model.registry.adapter(name).after_update(update + 1, self.config.updates)

    def state(self) -> dict[str, Any]:
        return {name: self.model.registry.adapter(name).schedule_state() for name in self._scheduled()}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in self._scheduled():
            self.model.registry.adapter(name).load_schedule_state(state[name])

    def _scheduled(self) -> tuple[str, ...]:
        return self.model.trained_adapters if self.only is None else ()
