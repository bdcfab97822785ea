"""One part of a training: its optimizer, learning rates, gradients, best state and end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from speech_adapters.errors import ConfigError
from speech_adapters.training.learner import Learner
from speech_adapters.training.settings import LoopConfig


@dataclass
class PartProgress:
    """Where a part stands."""

    updates: int = 0
    audio_seconds: float = 0.0
    last_loss: float = math.nan
    best_loss: float | None = None
    best_error: float | None = None
    worse: int = 0
    stopped: bool = False
    skipped: int = 0
    skipped_in_a_row: int = 0
    alive: list[int] = field(default_factory=list)
    """Turns whose tensors were seen to learn."""


class Part:
    """One training: what it changes, and all that follows from its own gradients and losses."""

    def __init__(self, learner: Learner, shared: LoopConfig) -> None:
        self.learner, self.config = learner, learner.config_of(shared)
        self.groups = learner.groups()
        self.parameters = [parameter for parameters, _ in self.groups.values() for parameter in parameters]
        if not self.parameters:
            raise ConfigError("nothing is trainable; call model.train_adapter(name, head=...) first.")
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": rate, "name": group} for group, (parameters, rate) in self.groups.items()],
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
            fused=learner.device.type in ("cpu", "cuda") or None,  # three to five times faster on CPUs too
        )
        self.scaler = GradScaler(learner.device.type, enabled=self.config.precision == "fp16")
        self.progress = PartProgress()
        self.best: dict[str, Tensor] = {}

    def begin(self, done: int) -> None:
        """Set the learning rates for the update after ``done`` ones, and clear the gradients."""
        factor = rate_factor(self.config, done)
        for group in self.optimizer.param_groups:
            group["lr"] = self.groups[group["name"]][1] * factor
        self.optimizer.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient: others' turns

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one batch."""
        self.scaler.scale(loss / self.config.accumulation).backward()

    def clip(self) -> bool:
        """Clip the gradients by their norm; False where they are not finite."""
        self.scaler.unscale_(self.optimizer)
        return math.isfinite(float(nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)))

    def step(self, finite: bool) -> None:
        """Apply what is finite; of the rest the scaler, which has seen the gradients in :meth:`clip`, learns."""
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def share_buffers(self) -> None:
        """Give running statistics, which each process gathers from its own batches, the main one's values, as
        DistributedDataParallel does: all evaluate the same model, and a checkpoint holds all there is."""
        learnt = {parameter.data_ptr() for parameter in self.parameters}
        for tensor in self.learner.tensors().values():
            if tensor.data_ptr() not in learnt:
                tensor.copy_(broadcast(tensor.clone()))

    def watch(self, figures: Mapping[str, float]) -> None:
        """Keep the best state, and stop when ``patience`` evaluations have not improved on it."""
        progress, loss, error = self.progress, figures["loss"], figures.get("error")
        if self.learner.kept_by == "loss" or error is None:
            better = progress.best_loss is None or loss < progress.best_loss
        else:  # equal errors, as of a CTC head that says nothing yet, leave it to the loss
            best = (progress.best_error, progress.best_loss)
            better = None in best or (error, loss) < best
        if better and not math.isnan(loss):
            progress.best_loss, progress.best_error, progress.worse = loss, error, 0
            self.best = {key: tensor.detach().clone() for key, tensor in self.learner.tensors().items()}
        else:
            progress.worse += 1
            progress.stopped = 0 < self.config.patience <= progress.worse

    def state(self, finished: bool) -> dict[str, Any]:
        """For a checkpoint; of a finished training only what it made."""
        content = {"tensors": self.learner.tensors(), "state": self.learner.state()}
        if finished:
            return content
        return content | {
            "progress": asdict(self.progress),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, content: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.copy(content["tensors"])
        self.learner.load_state(content["state"])
        if "progress" in content:
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            self.progress, self.best = PartProgress(**content["progress"]), content["best"]

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite what was learnt with ``tensors``. Raises ConfigError for tensors of other names."""
        own = self.learner.tensors()
        if own.keys() != tensors.keys():
            differing = sorted(own.keys() ^ tensors.keys())
            raise ConfigError(f"its checkpoint holds other tensors, such as {differing[0]!r}.")
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


def rate_factor(config: LoopConfig, done: int) -> float:
    """Share of the peak learning rates for the update after ``done`` ones.

    The warm-up starts above zero: a first update at rate zero would waste it, and hide a dead adapter for one longer.
    """
    warmup = round(config.warmup * config.updates)
    if done < warmup:
        return (done + 1) / (warmup + 1)
    progress = min(1.0, (done - warmup) / max(1, config.updates - warmup))
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return max(shape[config.schedule], config.final_rate)
