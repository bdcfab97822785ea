"""The loop: every training in this package is these lines, whatever is learnt and from what.

A :class:`Learner` says what trains, on which batches, by which loss. The loop does the rest, alike for all: a rate per
parameter group with its schedule, the methods' own schedules, accumulation, several processes, bf16 and fp16, the
check that every tensor learns, losses that are not finite, evaluation, the best state, patience, the log, and
checkpoints. A learner may have several parts, trainings that share work and nothing that is learnt: each has its own
optimizer, norm of gradients, best state and end.

A stopped training goes on to the same bits: an update's random numbers follow from the seed and the update's number
alone, so that a checkpoint need hold only what was learnt and how far.
"""

from __future__ import annotations

import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, send_to_device, set_seed
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from tqdm.auto import tqdm

from speech_adapters.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    Interrupted,
    InUseError,
    TrainingError,
    counted,
    shown,
)
from speech_adapters.files import atomic, hold
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.processes import from_main, processes
from speech_adapters.training.meters import EnergyMeter, FlopCounter
from speech_adapters.training.settings import LoopConfig, settings_of_updates

Watcher = Callable[[str, int, Mapping[str, float]], bool]
"""Told of each evaluation: the part's name, updates made, figures on held-out data. Where it returns True the part
stops, its best state kept: others show that it is not worth going on with."""

SKIPPED_IN_A_ROW = {"fp32": 3, "bf16": 3, "fp16": 25}
"""Updates in a row whose gradients are not finite before a training gives up; fp16 finds its loss scale so."""


@dataclass(frozen=True)
class Position:
    """Where in the data an update reads: the batches of ``epoch`` from ``place`` on, of them process ``rank``'s."""

    epoch: int
    place: int
    rank: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Loss:
    """What one batch gave: a scalar to minimise, the seconds of audio in it, whose they are, and further figures."""

    loss: Tensor
    seconds: float
    ids: Sequence[str] = ()
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Learner(ABC):
    """What the loop trains.

    Attributes:
        device: where the loop puts batches.
        turns: learners that take turns: so many updates make a round, and ``updates`` counts rounds.
        kept_by: the figure of :meth:`evaluate` that is lowest in the state to keep.
        watched_from_start: evaluate before the first update too, so that a training that helps nothing changes
            nothing.
    """

    device: torch.device
    turns: int = 1
    kept_by: str = "loss"
    watched_from_start: bool = False

    @property
    def parts(self) -> Mapping[str, Learner]:
        """The trainings that this one is, by name, all of as many updates; by default itself, without a name."""
        return {"": self}

    def config_of(self, shared: LoopConfig) -> LoopConfig:
        """The settings of this part; seeds and rates may differ from those that all share."""
        return shared

    def losses(self, batch: Any, update: int, running: Collection[str]) -> Iterator[tuple[str, Loss]]:
        """The loss of each part in ``running``, with its name; each is differentiated before the next is asked for."""
        yield "", self.loss(batch, update)

    def evaluations(self, running: Collection[str]) -> Mapping[str, dict[str, float]]:
        """:meth:`evaluate` of each part in ``running``."""
        return {"": self.evaluate()}

    @abstractmethod
    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """Parameters that train and their peak learning rate, by group."""

    @abstractmethod
    def batches(self, at: Position) -> Iterator[Any]:
        """The batches from a position to the end of its epoch; the same ones whenever it is asked."""

    @abstractmethod
    def loss(self, batch: Any, update: int) -> Loss:
        """The loss of one batch, to be differentiated; ``update`` counts from 0."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that the training changes, by name: what checkpoints and the best state hold."""

    @abstractmethod
    def train(self, mode: bool = True) -> None:
        """Turn dropout on or off."""

    @abstractmethod
    def check_alive(self) -> None:
        """Raise where a trainable tensor has got no gradient."""

    def evaluate(self) -> dict[str, float]:
        """``loss`` on held-out data, and further figures; called without gradients."""
        raise ConfigError("training.evaluate_every needs a dev set.")

    def turn(self, update: int) -> str | None:
        """Whose turn an update is, for the log; None where nobody takes turns."""
        return None

    def before_update(self, update: int) -> None:  # noqa: B027
        """Called first of all: schedules of a method's own."""

    def after_update(self, update: int) -> None:  # noqa: B027
        """Called last, gradients still in place."""

    def state(self) -> dict[str, Any]:
        """What else a checkpoint needs, in tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what :meth:`state` gave."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training cost: updates made, wall seconds, audio seconds per wall second, peak memory in bytes.

    ``skipped`` counts updates that were left out since their gradients were not finite. ``together`` trainings shared
    one pass, whose the costs are. ``flops`` are those of all products and convolutions, counted from their shapes in
    the first update and scaled to the audio heard; ``energy_joules`` what the counters say, None without any.
    """

    updates: int
    seconds: float
    audio_seconds_per_second: float
    peak_memory_bytes: int
    final_loss: float
    best_dev_loss: float | None
    skipped: int = 0
    together: int = 1
    flops: float | None = None
    energy_joules: float | None = None

    @property
    def costs(self) -> dict[str, float | None]:
        """As ``results.json`` has them."""
        names = ("seconds", "audio_seconds_per_second", "peak_memory_bytes", "flops", "energy_joules")
        return {name: getattr(self, name) for name in names}

    def __add__(self, later: TrainingResult) -> TrainingResult:
        """Two stages of one training."""
        seconds = self.seconds + later.seconds
        audio = sum(stage.audio_seconds_per_second * stage.seconds for stage in (self, later))
        return TrainingResult(
            updates=self.updates + later.updates,
            seconds=seconds,
            audio_seconds_per_second=audio / max(seconds, 1e-9),
            peak_memory_bytes=max(self.peak_memory_bytes, later.peak_memory_bytes),
            final_loss=later.final_loss,
            best_dev_loss=later.best_dev_loss,
            skipped=self.skipped + later.skipped,
            together=max(self.together, later.together),
            flops=_sum(self.flops, later.flops),
            energy_joules=_sum(self.energy_joules, later.energy_joules),
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


@dataclass
class _Progress:
    """How far a training is."""

    done: int = 0
    epoch: int = 0
    place: int = 0
    seconds: float = 0.0
    joules: float | None = 0.0
    peak_memory: int = 0
    first_flops: int = 0
    first_audio: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=dict)
    """Of each figure since the last line of the log: its sum and count."""


@dataclass
class _PartProgress:
    """How a part does."""

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


def fit(
    learner: Learner, config: LoopConfig, run: RunFolder, name: str, watcher: Watcher | None = None
) -> TrainingResult:
    """Train ``learner`` as ``config`` says; in a run folder that holds ``name`` already, go on, or return at once.

    Args:
        name: of this training in the run folder, its log and its checkpoint; once per run.
        watcher: told of each evaluation, and may stop the training.

    Raises:
        ConfigError: nothing to train, a name that this run has used, a checkpoint of other settings or processes.
        InUseError: another process writes to the run folder.
        RuntimeError: a trainable tensor without gradient after two updates.
        TrainingError: losses or gradients that stay other than finite; it names the batch.
        Interrupted: Ctrl-C or SIGTERM came; what was trained is in the checkpoint.
    """
    return next(iter(fit_parts(learner, config, run, name, watcher).values()))


def fit_parts(
    learner: Learner, config: LoopConfig, run: RunFolder, name: str, watcher: Watcher | None = None
) -> dict[str, TrainingResult]:
    """:func:`fit` of a learner with several parts: the result of each."""
    if not isinstance(run, RunFolder):
        raise ConfigError(
            f"run: {shown(run)} is no run folder; make one: RunFolder.create('mine'), or RunFolder.create('mine', "
            "path='folder') for a place of its own."
        )
    return _Training(learner, config, run, name, watcher).run()


class _Part:
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
        self.progress = _PartProgress()
        self.best: dict[str, Tensor] = {}

    def begin(self, done: int) -> None:
        """Set the rates for the update after ``done`` ones, and forget the gradients."""
        factor = rate_factor(self.config, done)
        for group in self.optimizer.param_groups:
            group["lr"] = self.groups[group["name"]][1] * factor
        self.optimizer.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient: others' turns

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one batch."""
        self.scaler.scale(loss / self.config.accumulation).backward()

    def clip(self) -> bool:
        """Bring the gradients to their norm; False where they are not finite."""
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
        """Keep the best state, and stop where it was long ago."""
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
        """Take :meth:`state` back."""
        self.copy(content["tensors"])
        self.learner.load_state(content["state"])
        if "progress" in content:
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            self.progress, self.best = _PartProgress(**content["progress"]), content["best"]

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors into the place of what was learnt. Raises ConfigError for others than its own."""
        own = self.learner.tensors()
        if own.keys() != tensors.keys():
            differing = sorted(own.keys() ^ tensors.keys())
            raise ConfigError(f"its checkpoint holds other tensors, such as {differing[0]!r}.")
        for key, tensor in own.items():
            tensor.copy_(tensors[key])


class _Training:
    def __init__(
        self, learner: Learner, config: LoopConfig, folder: RunFolder, name: str, watcher: Watcher | None
    ) -> None:
        self.learner, self.config, self.folder, self.name = learner, config, folder, name
        self.watcher = watcher
        self.parts = {key: _Part(part, config) for key, part in learner.parts.items()}
        self.total = config.updates * learner.turns
        processes()  # joined here, if not before: how long they wait is settled then
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            log_with=[tracker for tracker in config.trackers if tracker != "none"] or None,
            project_dir=str(folder.tensorboard),
        )
        self.progress = _Progress()

    @property
    def running(self) -> list[str]:
        """The parts that go on."""
        return [name for name, part in self.parts.items() if not part.progress.stopped]

    def run(self) -> dict[str, TrainingResult]:
        path = self.folder.checkpoint(self.name)
        if path.is_file():
            if not self.folder.resumed:
                raise ConfigError(f"training {self.name!r} was made in {self.folder.path} already; give another name.")
            if (results := self._load(path)) is not None:
                return results
        self._hold()
        self._forget_later_lines()
        progress, learner = self.progress, self.learner
        self.folder.begin()
        self.accelerator.init_trackers(self.name)
        reset_peak_memory(learner.device)
        learner.train()
        unwatched = all(part.progress.best_loss is None for part in self.parts.values())
        if learner.watched_from_start and unwatched and self.config.evaluate_every:
            self._evaluate()
        with self._bar() as bar, _stop_when_asked() as asked:
            started = saved = time.perf_counter()
            meter, joules = EnergyMeter(learner.device), progress.joules
            stream = self._stream()
            while progress.done < self.total and self.running:
                self._update(stream)
                progress.done += 1
                if progress.done % learner.turns == 0:
                    self._log_and_evaluate()
                    bar.update()
                now = time.perf_counter()
                progress.seconds, started = progress.seconds + now - started, now
                progress.joules = _sum(joules, meter.joules())
                due = self.config.save_minutes is not None and now - saved >= 60 * self.config.save_minutes
                stop = self._any_process(asked)
                if stop or due:
                    self._save(path)
                    saved = time.perf_counter()
                if stop:
                    number = asked[0] if asked else signal.SIGTERM
                    message = f"{self.name}: saved after {progress.done} updates in {path}"
                    raise Interrupted(message, 128 + number, str(self.folder.path))
        for tracker in self.accelerator.trackers:
            tracker.finish()
        for part in self.parts.values():
            if part.best:
                part.copy(part.best)
        learner.train(False)
        progress.peak_memory = max(progress.peak_memory, peak_memory_bytes(learner.device))
        results = {key: self._result(part.progress) for key, part in self.parts.items()}
        self._save(path, results)
        return results

    def _hold(self) -> None:
        """Lock the run folder, which may have been opened to be read; all processes stop where the main one cannot."""
        found: InputError | None = None
        if self.accelerator.is_main_process:
            try:
                hold(self.folder.path)
            except InputError as error:
                found = error
        if self._any_process([] if found is None else [1]):
            raise found or InUseError(f"{self.folder.path}: the main process cannot write to it.")

    def _result(self, part: _PartProgress) -> TrainingResult:
        progress = self.progress
        return TrainingResult(
            updates=part.updates // self.learner.turns,
            seconds=progress.seconds,
            audio_seconds_per_second=part.audio_seconds / max(progress.seconds, 1e-9),
            peak_memory_bytes=progress.peak_memory,
            final_loss=part.last_loss,
            best_dev_loss=part.best_loss,
            skipped=part.skipped,
            together=len(self.parts),
            flops=self._flops(),
            energy_joules=progress.joules,
        )

    def _flops(self) -> float:
        """Of all updates, as the first one's."""
        progress, parts = self.progress, [part.progress for part in self.parts.values()]
        if progress.first_audio:
            return progress.first_flops * sum(part.audio_seconds for part in parts) / progress.first_audio
        return float(progress.first_flops * progress.done)

    # ------------------------------------------------------------------ one update

    def _stream(self) -> Iterator[Any]:
        """Batches without end, from where the training stands."""
        progress, accelerator = self.progress, self.accelerator
        while True:
            at = Position(progress.epoch, progress.place, accelerator.process_index, accelerator.num_processes)
            for batch in self.learner.batches(at):
                progress.place += 1
                yield send_to_device(batch, self.learner.device)
            if progress.place == 0:
                raise InputError(
                    f"training {self.name!r}: an epoch has no batch for process {at.rank + 1} of {at.processes}; take "
                    "shorter batches, fewer processes, or more data."
                )
            progress.epoch, progress.place = progress.epoch + 1, 0

    def _update(self, stream: Iterator[Any]) -> None:
        config, progress, learner = self.config, self.progress, self.learner
        done, turn = progress.done // learner.turns, progress.done % learner.turns
        batches = [next(stream) for _ in range(config.accumulation)]
        self._seed(progress.done)  # after the reading, which draws numbers of its own when an epoch begins
        learner.before_update(progress.done)
        running = {name: self.parts[name] for name in self.running}
        ids: dict[str, list[str]] = {name: [] for name in running}
        broken: set[str] = set()
        for part in running.values():
            part.begin(done)
        with self._counted():
            for batch in batches:
                for name, found in self._losses(batch, running):
                    part = running[name]
                    part.backward(found.loss)
                    ids[name] += found.ids
                    part.progress.audio_seconds += found.seconds * self.accelerator.num_processes
                    if not math.isfinite(self._note(name, found)):
                        broken.add(name)
        self._average_gradients(running.values())
        whole = [part.clip() and name not in broken for name, part in running.items()]
        for (name, part), finite in zip(running.items(), self._in_all_processes(whole), strict=True):
            own = part.progress
            if finite and progress.done >= learner.turns and turn not in own.alive:
                part.learner.check_alive()  # the second update: what a zero start hides in the first is alive by now
                own.alive.append(turn)
            part.step(finite)
            own.updates += 1
            if finite:
                own.skipped_in_a_row = 0
                part.learner.after_update(progress.done)
            else:
                self._skip(name, part, ids[name])
        if self.accelerator.num_processes > 1:
            for part in running.values():
                part.share_buffers()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the operations of the first update; the others are like it."""
        if self.progress.done:
            yield
            return
        with FlopCounter() as counter:
            yield
        self.progress.first_flops = counter.flops * self.accelerator.num_processes
        self.progress.first_audio = sum(part.progress.audio_seconds for part in self.parts.values())

    def _losses(self, batch: Any, running: Collection[str]) -> Iterator[tuple[str, Loss]]:
        """The parts' losses, computed in the chosen precision, differentiated outside of it."""
        losses = iter(self.learner.losses(batch, self.progress.done, running))
        while True:
            with self._autocast():
                found = next(losses, None)
            if found is None:
                return
            yield found

    def _seed(self, update: int) -> None:
        """Random numbers of this update and process alone, so that a resumed run draws the same."""
        seed_update(self.config.seed, update, self.accelerator.process_index)

    def _autocast(self) -> torch.autocast:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.learner.device.type, dtype, enabled=dtype is not None)

    def _average_gradients(self, parts: Collection[_Part]) -> None:
        """Over the processes of a distributed run, in one exchange."""
        if self.accelerator.num_processes > 1:
            grads = [parameter.grad for part in parts for parameter in part.parameters if parameter.grad is not None]
            flat = self.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
            for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(mean.view_as(grad))

    def _any_process(self, own: Sequence[int]) -> bool:
        """Whether one of the processes has something here: they skip, and stop, at the same update."""
        if self.accelerator.num_processes == 1:
            return bool(own)
        return bool(self.accelerator.reduce(torch.tensor(float(len(own)), device=self.learner.device), "sum"))

    def _in_all_processes(self, own: Sequence[bool]) -> list[bool]:
        """Which of these are true in every process."""
        if self.accelerator.num_processes == 1:
            return list(own)
        failed = torch.tensor([float(not value) for value in own], device=self.learner.device)
        return [count == 0 for count in self.accelerator.reduce(failed, "sum").tolist()]

    def _skip(self, name: str, part: _Part, ids: Sequence[str]) -> None:
        progress = part.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= SKIPPED_IN_A_ROW[self.config.precision]:
            batch = f" The last batch held {', '.join(ids[:20])}." if ids else ""
            raise TrainingError(
                f"{name or self.name}: {progress.skipped_in_a_row} updates in a row had a loss or gradients that are "
                f"not finite, the last one at update {self.progress.done}; nothing of them was applied. Lower the "
                f"learning rates, or look at the data.{batch}"
            )

    # ------------------------------------------------------------------ what is written down

    def _note(self, part: str, found: Loss) -> float:
        """Add the figures to those of the next line of the log; returns the loss."""
        figures = {"loss": found.loss, **found.figures}
        values = torch.stack([torch.as_tensor(v).detach().float().cpu() for v in figures.values()]).tolist()
        method = part or self.learner.turn(self.progress.done)
        for key, value in zip(figures, values, strict=True):
            total = self.progress.sums.setdefault(f"{method}/{key}" if method else key, [0.0, 0])
            if math.isfinite(value):  # what is skipped is counted, not averaged
                total[0], total[1] = total[0] + value, total[1] + 1
        return values[0]

    def _log_and_evaluate(self) -> None:
        config, progress = self.config, self.progress
        done = progress.done // self.learner.turns
        last = done == config.updates
        if done % config.log_every == 0 or last:
            self._log_figures()
        if config.evaluate_every and (done % config.evaluate_every == 0 or last):
            self._evaluate()
            if not self.running:  # stopped between two lines
                self._log_figures()

    def _log_figures(self) -> None:
        """The means of all updates since the last line, where there are any."""
        if not self.progress.sums:
            return
        self._sum_over_processes()
        lines: dict[str, dict[str, Any]] = {}
        for key, (total, count) in self.progress.sums.items():
            method, _, figure = key.rpartition("/")
            lines.setdefault(method, {})[figure] = total / count if count else math.nan
        for method, figures in lines.items():
            part = self.parts.get(method) or next(iter(self.parts.values()))  # tasks that take turns are one part
            part.progress.last_loss = figures["loss"]
            rates = {group["name"]: group["lr"] for group in part.optimizer.param_groups}
            skipped = part.progress.skipped
            self._log(method or self.name, {**figures, "learning_rate": rates, "skipped": skipped})
        self.progress.sums.clear()

    def _sum_over_processes(self) -> None:
        if self.accelerator.num_processes > 1:
            sums = self.progress.sums
            total = torch.tensor(list(sums.values()), device=self.learner.device)
            sums.update(zip(sums, self.accelerator.reduce(total, "sum").tolist(), strict=True))

    def _log(self, method: str, figures: dict[str, Any]) -> None:
        step = self.progress.done // self.learner.turns
        if self.accelerator.is_main_process:
            own = {} if method == self.name else {"training": self.name}
            self.folder.log_metrics({"method": method, "step": step, **own, **figures})
        plain = {key: value for key, value in figures.items() if isinstance(value, float)}
        prefix = "" if method == self.name else f"{method}/"
        self.accelerator.log({f"{prefix}{key}": value for key, value in plain.items()}, step=step)

    @torch.no_grad()
    def _evaluate(self) -> None:
        learner = self.learner
        learner.train(False)
        with self._autocast():
            evaluations = learner.evaluations(self.running)
        learner.train()
        if self.accelerator.num_processes > 1:  # two GPUs need not round alike, and all stop at the same update
            evaluations = from_main(evaluations)
        for name, found in evaluations.items():
            self._log(name or self.name, {f"eval_{key}": value for key, value in found.items()})
            self.parts[name].watch(found)
            done = self.progress.done // learner.turns
            asked = self.watcher is not None and self.watcher(name, done, found)
            if self._any_process([1] if asked else []):
                self.parts[name].progress.stopped = True

    def _bar(self) -> Any:
        turns = self.learner.turns
        return tqdm(
            total=self.config.updates,
            initial=self.progress.done // turns,
            desc=self.name,
            unit="update",
            leave=False,
            disable=None if self.accelerator.is_main_process else True,
        )

    # ------------------------------------------------------------------ checkpoints

    def _save(self, path: Path, results: Mapping[str, TrainingResult] | None = None) -> None:
        """Write where the training stands, whole or not at all; of a finished one only what it made."""
        if not self.accelerator.is_main_process:
            return
        content: dict[str, Any] = {
            "settings": self._settings(),
            "parts": {key: part.state(results is not None) for key, part in self.parts.items()},
        }
        if results is not None:
            content["results"] = {key: asdict(result) for key, result in results.items()}
        else:
            self.progress.peak_memory = max(self.progress.peak_memory, peak_memory_bytes(self.learner.device))
            content |= {"progress": asdict(self.progress), "processes": self.accelerator.num_processes}
        with atomic(path) as file:
            torch.save(content, file)

    def _settings(self) -> dict[str, dict[str, str]]:
        """What shapes the updates, by part."""
        return {key: settings_of_updates(part.config) for key, part in self.parts.items()}

    def _load(self, path: Path) -> dict[str, TrainingResult] | None:
        """Take up a checkpoint; the results of a finished training, None of one that is to go on."""
        try:
            content = torch.load(path, map_location=self.learner.device, weights_only=True)
            self._check_settings(path, content["settings"])
            for key, part in self.parts.items():
                part.load(content["parts"][key])
            if "results" in content:
                self.learner.train(False)
                return {key: TrainingResult(**result) for key, result in content["results"].items()}
            own = self.accelerator.num_processes
            if (before := content.get("processes", own)) != own:
                raise ConfigError(
                    f"{path} was begun by {counted(before, 'process', 'processes')}, not {own}; go on with as many, "
                    "or start a new run folder."
                )
            self.progress = _Progress(**content["progress"])
        except ConfigError as error:
            raise ConfigError(f"training {self.name!r}: {error}") from error
        except Exception as error:  # whatever a damaged file makes torch.load or the parts raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path}: cannot be gone on from ({reason}); remove it to begin anew.") from error
        return None

    def _forget_later_lines(self) -> None:
        """Drop from a resumed run's log what was written after its checkpoint, or without one: it comes again."""
        if self.folder.resumed and self.accelerator.is_main_process:
            saved = self.folder.checkpoint(self.name).is_file()
            step = self.progress.done // self.learner.turns if saved else -1
            names = {self.name, *self.parts, *(self.learner.turn(number) for number in range(self.learner.turns))}

            def own(line: Mapping[str, Any]) -> bool:  # older lines of parts and turns do not say whose they are
                return line["training"] == self.name if "training" in line else line.get("method") in names

            self.folder.forget_metrics(lambda line: own(line) and line.get("step", 0) > step)

    def _check_settings(self, path: Path, stored: Mapping[str, Mapping[str, str]]) -> None:
        """Raise a ConfigError for a checkpoint of other parts or settings."""
        now = self._settings()
        if stored.keys() != now.keys():
            raise ConfigError(
                f"{path} was begun with {', '.join(stored)}, not {', '.join(now)}; start a new run folder."
            )
        for part, settings in now.items():
            # a setting that is younger than the checkpoint had its default's effect
            before = settings_of_updates(type(self.parts[part].config)()) | dict(stored[part])
            if changed := [key for key in settings if before[key] != settings[key]]:
                raise ConfigError(
                    f"{path} was begun with training.{changed[0]}={before[changed[0]]}, not "
                    f"{settings[changed[0]]}; go on with the former, or start a new run folder."
                )


def mean_costs(costs: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Means of several trainings' :attr:`TrainingResult.costs`, None where one is unknown; of the memory the most."""
    means: dict[str, Any] = {}
    for name in costs[0]:
        known = [value for cost in costs if (value := cost[name]) is not None]
        whole = len(known) == len(costs)
        means[name] = None if not whole else max(known) if name == "peak_memory_bytes" else sum(known) / len(known)
    return means


def seed_update(seed: int, update: int, process: int = 0) -> None:
    """Draw all random numbers of an update from the seed, its number and the process alone."""
    set_seed(int(np.random.SeedSequence((seed, update, process)).generate_state(1)[0]))


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


@contextmanager
def _stop_when_asked() -> Iterator[list[int]]:
    """A list that holds the number of Ctrl-C's or SIGTERM's signal once it came; a second one stops at once."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    with suppress(ValueError):  # in a thread that is not the main one: whoever runs it stops it
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
