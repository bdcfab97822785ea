"""The one training loop of this package.

A :class:`Learner` says what trains, on which batches and with which loss. The loop does the rest: a learning rate and
schedule per parameter group, the methods' own schedules, gradient accumulation, several processes, bf16 and fp16, the
check that every tensor learns, losses that are not finite, evaluation, the best state, patience, logging and
checkpoints. A learner may have several parts, trainings that share work but no parameters: each has its own optimizer,
gradient norm, best state and end.

A resumed training gives the same bits as one that was not stopped: an update's random numbers follow from the seed and
the update's number alone, so a checkpoint holds only what was learnt and how far.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from tqdm.auto import tqdm

from speech_adapters.errors import ConfigError, InputError, Interrupted, InUseError, TrainingError, shown
from speech_adapters.locks import held, hold
from speech_adapters.precision import autocast
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.processes import from_main, processes
from speech_adapters.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from speech_adapters.training.learner import Learner, Loss, Position
from speech_adapters.training.meters import EnergyMeter, FlopCounter
from speech_adapters.training.part import Part, PartProgress
from speech_adapters.training.result import TrainingResult, add_known
from speech_adapters.training.settings import LoopConfig

__all__ = ["Learner", "Loss", "Position", "TrainingResult", "Watcher", "fit", "fit_parts", "seed_update"]

Watcher = Callable[[str, int, Mapping[str, float]], bool]
"""Called at each evaluation with the part's name, the updates made and the figures on held-out data; returning True
stops the part and keeps its best state."""

SKIPPED_IN_A_ROW = {"fp32": 3, "bf16": 3, "fp16": 25}
"""Updates in a row whose gradients are not finite before a training gives up; fp16 needs some to find its scale."""


def fit(
    learner: Learner, config: LoopConfig, run: RunFolder, name: str, watcher: Watcher | None = None
) -> TrainingResult:
    """Train ``learner`` as ``config`` says; in a run folder that holds ``name`` already, go on, or return at once.

    Args:
        name: of this training in the run folder, its log and its checkpoint; once per run.
        watcher: called at each evaluation; may stop the training.

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
            f"run: {shown(run)} is not a run folder; make one: RunFolder.create('mine'), or RunFolder.create('mine', "
            "path='folder') for a place of its own."
        )
    return _Training(learner, config, run, name, watcher).run()


class _Training:
    def __init__(
        self, learner: Learner, config: LoopConfig, folder: RunFolder, name: str, watcher: Watcher | None
    ) -> None:
        self.learner, self.config, self.folder, self.name = learner, config, folder, name
        self.watcher = watcher
        self.parts = {key: Part(part, config) for key, part in learner.parts.items()}
        self.total = config.updates * learner.turns
        processes()  # joined here, if not before: how long they wait is settled then
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            log_with=[tracker for tracker in config.trackers if tracker != "none"] or None,
            project_dir=str(folder.tensorboard),
        )
        self.progress = Progress()

    @property
    def running(self) -> list[str]:
        """Names of the parts that have not stopped."""
        return [name for name, part in self.parts.items() if not part.progress.stopped]

    def run(self) -> dict[str, TrainingResult]:
        path = self.folder.checkpoint(self.name)
        if path.is_file() and not self.folder.resumed:
            raise ConfigError(f"training {self.name!r} was made in {self.folder.path} already; give another name.")
        results = self._load(path)
        whole = self._in_all_processes([results is not None])  # another run may have ended it between two looks
        if results is not None and all(whole):
            return results
        if self._hold() and (results := self._load(path)) is not None:
            return results
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
                progress.joules = add_known(joules, meter.joules())
                due = self.config.save_minutes is not None and now - saved >= 60 * self.config.save_minutes
                stop = self._any_process(asked)
                if stop or due:
                    self._look_at_memory()
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
        self._look_at_memory()
        results = {key: self._result(part.progress) for key, part in self.parts.items()}
        self._save(path, results)
        return results

    def _hold(self) -> bool:
        """Lock the run folder, which may have been opened to be read; all processes stop where the main one cannot.

        Returns: whether it was free until now, so that another process may have gone on with the training meanwhile.
        """
        found: InputError | None = None
        free = self.folder.path.resolve() not in map(Path.resolve, held())
        if self.accelerator.is_main_process:
            try:
                hold(self.folder.path)
            except InputError as error:
                found = error
        if self._any_process([] if found is None else [1]):
            raise found or InUseError(f"{self.folder.path}: the main process cannot write to it.")
        return from_main(free) if self.accelerator.num_processes > 1 else free

    def _result(self, part: PartProgress) -> TrainingResult:
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

    def _look_at_memory(self) -> None:
        """Of this process; a resumed training had others before."""
        progress = self.progress
        progress.peak_memory = max(progress.peak_memory, peak_memory_bytes(self.learner.device))

    def _flops(self) -> float:
        """Of all updates, as the first one's."""
        progress, parts = self.progress, [part.progress for part in self.parts.values()]
        if progress.first_audio:
            return progress.first_flops * sum(part.audio_seconds for part in parts) / progress.first_audio
        return float(progress.first_flops * progress.done)

    # ------------------------------------------------------------------ one update

    def _stream(self) -> Iterator[Any]:
        """Endless batches, from where the training stands."""
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
        # After the reading, which draws numbers of its own when an epoch begins.
        seed_update(config.seed, progress.done, self.accelerator.process_index)
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
        """Count the operations of the first update, which stands for all."""
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

    def _autocast(self) -> torch.autocast:
        return autocast(self.learner.device, self.config.precision, scaled=True)

    def _average_gradients(self, parts: Collection[Part]) -> None:
        """Average the gradients over all processes, in one exchange."""
        if self.accelerator.num_processes > 1:
            grads = [parameter.grad for part in parts for parameter in part.parameters if parameter.grad is not None]
            flat = self.accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), "mean")
            for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(mean.view_as(grad))

    def _any_process(self, own: Sequence[int]) -> bool:
        """Whether the list is non-empty in any process, so that all of them stop at the same update."""
        if self.accelerator.num_processes == 1:
            return bool(own)
        return bool(self.accelerator.reduce(torch.tensor(float(len(own)), device=self.learner.device), "sum"))

    def _in_all_processes(self, own: Sequence[bool]) -> list[bool]:
        """Which of these are true in every process."""
        if self.accelerator.num_processes == 1:
            return list(own)
        failed = torch.tensor([float(not value) for value in own], device=self.learner.device)
        return [count == 0 for count in self.accelerator.reduce(failed, "sum").tolist()]

    def _skip(self, name: str, part: Part, ids: Sequence[str]) -> None:
        progress = part.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= SKIPPED_IN_A_ROW[self.config.precision]:
            batch = f" The last batch held {', '.join(ids[:20])}." if ids else ""
            raise TrainingError(
                f"{name or self.name}: {progress.skipped_in_a_row} updates in a row had a loss or gradients that are "
                f"not finite, the last one at update {self.progress.done}; none of them was applied. Lower the "
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
        if self.accelerator.is_main_process:
            save_checkpoint(path, self.parts, self.progress, self.accelerator.num_processes, results)

    def _load(self, path: Path) -> dict[str, TrainingResult] | None:
        """Load the checkpoint, if there is one; returns a finished training's results, None for an unfinished one."""
        if not path.is_file():
            return None
        try:
            found = load_checkpoint(path, self.parts, self.learner.device, self.accelerator.num_processes)
        except ConfigError as error:
            raise ConfigError(f"training {self.name!r}: {error}") from error
        if isinstance(found, Progress):
            self.progress = found
            return None
        self.learner.train(False)
        return found

    def _forget_later_lines(self) -> None:
        """Drop the log's lines from after the checkpoint (all without one): a resumed run writes them again."""
        if self.folder.resumed and self.accelerator.is_main_process:
            saved = self.folder.checkpoint(self.name).is_file()
            step = self.progress.done // self.learner.turns if saved else -1
            names = {self.name, *self.parts, *(self.learner.turn(number) for number in range(self.learner.turns))}

            def own(line: Mapping[str, Any]) -> bool:  # older lines of parts and turns do not say whose they are
                return line["training"] == self.name if "training" in line else line.get("method") in names

            self.folder.forget_metrics(lambda line: own(line) and line.get("step", 0) > step)


def seed_update(seed: int, update: int, process: int = 0) -> None:
    """Draw all random numbers of an update from the seed, its number and the process alone: a resumed run draws the
    same."""
    set_seed(int(np.random.SeedSequence((seed, update, process)).generate_state(1)[0]))


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
