"""Train adapters with an objective that needs no labels, watched on held-out speech and resumable at any update.

Task-adaptive pre-training (Gururangan et al., ACL 2020; for speech Chen and Rudnicky, ICASSP 2023); with adapters
alone the base keeps what it knows (DRAFT: Fan and Alwan, Interspeech 2022).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.crops import Crops, Speech, crop_batches
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.files import read_log, to_json, write_text
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.objectives.base import Objective
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.settings import fast_bfloat16

HELD_OUT = 1_000_003
"""Joins the seed in the key of held-out crops, so that no epoch of the training shares it."""


@dataclass(kw_only=True)
class PretrainingConfig:
    """One pass of label-free training. Published TAPT: 20 000 updates of 64 clips at 1e-4 (Chen and Rudnicky)."""

    updates: int = 2000
    """Optimizer steps at most."""
    crops: int = 8
    """Full crops a batch; shorter utterances come in larger numbers."""
    crop_seconds: float = 5.0
    """Longest piece of an utterance."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """By parameter group, over the adapter's own published rates."""
    objective_rate: float = 1e-3
    """Of the objective's head and mask embedding, which start from nothing."""
    head_first: int = 0
    """Further updates, before all others, in which the objective's head and mask embedding learn alone. A new head's
    gradients are noise, which destroys features that are good already (Kumar et al., ICLR 2022)."""
    warmup: float = 0.1
    """Share of the updates in which the rates rise; then they fall to zero along a cosine."""
    weight_decay: float = 0.01
    """As in wav2vec 2.0 and HuBERT."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    evaluate_every: int = 100
    """Updates between evaluations on held-out speech; each leaves a checkpoint to resume from."""
    patience: int = 5
    """Stop after so many evaluations without a better held-out loss; the best state is kept. 0 never stops early."""
    precision: str = "auto"
    """auto, fp32 or bf16, as in the training of tasks."""
    seed: int = 0
    """Of crops, masks, negatives and dropout: all follow from it and the update's number."""

    def __post_init__(self) -> None:
        for name in ("updates", "crops", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name}={getattr(self, name)}: must be at least 1.")
        if self.head_first < 0:
            raise ConfigError(f"training.head_first={self.head_first}: must be at least 0.")
        if self.crop_seconds <= 0 or not 0 <= self.warmup < 1:
            raise ConfigError("training.crop_seconds must be above 0, training.warmup in [0, 1).")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"training.precision={self.precision!r}: choose auto, fp32 or bf16.")


class Pretraining:
    """One pass: ``Pretraining(...).train()``; made again on the same run folder, it goes on where it stood.

    What :meth:`SpeechAdapterModel.train_adapter` has chosen trains, and the objective's own parameters with it.
    """

    def __init__(
        self,
        model: SpeechAdapterModel,
        objective: Objective,
        train: Manifest,
        held_out: Manifest,
        config: PretrainingConfig,
        run: RunFolder,
        name: str = "tapt",
    ) -> None:
        self.model, self.objective, self.config, self.run, self.name = model, objective, config, run, name
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError("pretraining: nothing is trainable; call model.train_adapter(name) first.")
        self.device = next(model.encoder.model.parameters()).device
        shortest = model.encoder.receptive_field + model.encoder.stride  # two frames: one to hide, one to see
        self.speech = Speech(train, run.path / "audio", shortest)
        self.held_out = Speech(held_out, run.path / "audio", shortest)
        groups = model.parameter_groups()
        rates = model.learning_rates({k: v for k, v in config.learning_rates.items() if k in groups})
        self.optimizer = torch.optim.AdamW(
            [
                *({"params": parameters, "lr": rates[group], "name": group} for group, parameters in groups.items()),
                {"params": list(objective.parameters()), "lr": config.objective_rate, "name": "objective"},
            ],
            betas=(0.9, 0.98),  # of wav2vec 2.0 and HuBERT: gradients change fast at first
            weight_decay=config.weight_decay,
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.progress: dict[str, Any] = {"step": 0, "epoch": 0, "place": 0, "samples": 0, "seconds": 0.0}
        self.progress |= {"best": None, "worse": 0, "stopped": False}
        self.best: dict[str, Tensor] = {}
        if self.checkpoint.is_file():
            self._load()

    @property
    def checkpoint(self) -> Path:
        return self.run.path / "checkpoints" / f"{self.name}.pt"

    @property
    def finished(self) -> bool:
        return self.progress["stopped"] or self.progress["step"] >= self.total

    @property
    def total(self) -> int:
        """Updates, those of the head alone included."""
        return self.config.head_first + self.config.updates

    def crops(self, speech: Speech, *key: int) -> Crops:
        config = self.config
        return Crops(speech, (config.seed, *key), crop_seconds=config.crop_seconds, crops=config.crops)

    def train(self) -> dict[str, Any]:
        """Train to the end, leave the best state in the model, and return ``{"loss": best held-out loss, ...}``.

        Raises:
            RuntimeError: a trainable tensor without gradient after two updates.
        """
        config, progress = self.config, self.progress
        if progress["best"] is None:
            self._evaluate()  # what training has to beat
        bar = tqdm(total=self.total, initial=progress["step"], desc=self.name, unit="update", leave=False)
        while not self.finished:
            crops = self.crops(self.speech, progress["epoch"])
            for clean, _ in crop_batches(crops, progress["place"]):
                started = time.perf_counter()
                self._update(clean.to(self.device))
                progress["place"] += 1
                progress["seconds"] += time.perf_counter() - started
                bar.update()
                if progress["step"] % config.evaluate_every == 0 or self.finished:
                    self._evaluate()
                if self.finished:
                    break
            else:
                progress.update(epoch=progress["epoch"] + 1, place=0)
        bar.close()
        self._restore(self.best)
        self.model.eval()
        self.objective.eval()
        return {key: progress[key] for key in ("step", "seconds", "best")} | {
            "hours_heard": progress["samples"] / SAMPLE_RATE / 3600
        }

    @torch.no_grad()
    def loss(self, speech: Speech) -> dict[str, float]:
        """The objective on speech that does not train, with masks and crops that are always the same."""
        self.model.eval()
        self.objective.eval()
        totals: dict[str, float] = {}
        count = 0
        for place, (clean, _) in enumerate(crop_batches(self.crops(speech, HELD_OUT))):
            rng = np.random.default_rng((self.config.seed, HELD_OUT, place))
            with self._precision():
                output = self.objective(self.model, clean.to(self.device), None, rng)
            count += output.masked
            for key, value in {"loss": output.loss, **output.figures}.items():
                totals[key] = totals.get(key, 0.0) + float(value) * output.masked
        return {key: value / count for key, value in totals.items()}

    # ------------------------------------------------------------------ inner

    def _precision(self) -> torch.autocast:
        precision = self.config.precision
        enabled = fast_bfloat16() if precision == "auto" else precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _update(self, waveforms: Tensor) -> None:
        from speech_adapters.training.trainer import rate_factor

        config, progress = self.config, self.progress
        step = progress["step"]
        torch.manual_seed(config.seed * HELD_OUT + step)  # dropout and Gumbel noise: of this update, resumed or not
        self.model.train()
        self.objective.train()
        self.objective.set_step(step)
        alone = step < config.head_first
        factor = rate_factor("cosine", round(config.warmup * config.updates), config.updates, step - config.head_first)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (factor if not alone else group["name"] == "objective")
        with self._precision():
            output = self.objective(self.model, waveforms, None, np.random.default_rng((config.seed, step)))
        self.optimizer.zero_grad()
        output.loss.backward()
        if step == config.head_first + 1:  # the second update: what a zero start hides in the first is alive by now
            self.model.check_alive()
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], config.max_grad_norm)
        self.optimizer.step()
        progress["step"] += 1
        progress["samples"] += waveforms.numel()
        self._log(loss=float(output.loss.detach()), **{key: float(value) for key, value in output.figures.items()})

    def _evaluate(self) -> None:
        progress = self.progress
        found = self.loss(self.held_out)
        if not np.isfinite(found["loss"]):
            raise ConfigError(f"{self.name}: the held-out loss is {found['loss']}; lower the learning rates.")
        self._log(**{f"eval_{key}": value for key, value in found.items()})
        if progress["best"] is None or found["loss"] < progress["best"]["loss"]:
            progress["best"], progress["worse"] = {**found, "step": progress["step"]}, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self._state().items()}
        else:
            progress["worse"] += 1
            progress["stopped"] = bool(self.config.patience) and progress["worse"] >= self.config.patience
        self._save()

    def _log(self, **figures: float) -> None:
        self.run.log_metrics({"method": self.name, "step": self.progress["step"], **figures})

    def _state(self) -> dict[str, Tensor]:
        adapters = {f"model.{n}": p for n, p in self.model.named_parameters() if p.requires_grad}
        return adapters | {f"objective.{n}": t for n, t in self.objective.state_dict().items()}

    def _restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._state().items():
                tensor.copy_(state[name])

    def _save(self) -> None:
        content = {
            "state": self._state(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "progress": self.progress,
        }
        self.checkpoint.parent.mkdir(exist_ok=True)
        temporary = self.checkpoint.with_name(f".{self.checkpoint.name}.{os.getpid()}")
        torch.save(content, temporary)
        os.replace(temporary, self.checkpoint)

    def _load(self) -> None:
        try:
            content = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self._restore(content["state"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{self.checkpoint}: cannot be resumed ({reason}); remove it to begin this pass anew."
            ) from error
        self.best, self.progress = content["best"], content["progress"]
        # Lines logged after the checkpoint are about to come again.
        kept = [
            line
            for line in read_log(self.run.metrics_file)
            if line["method"] != self.name or line["step"] <= self.progress["step"]
        ]
        write_text(self.run.metrics_file, "".join(json.dumps(to_json(line)) + "\n" for line in kept))
