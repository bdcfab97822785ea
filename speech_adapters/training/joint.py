"""Several tasks or domains in one run: their batches take turns, each trains its own adapters and head.

What two tasks share learns from both, as "shared" in ``Stack("shared", "asr")`` and ``Stack("shared", "emotion")``.
What only one has is changed by that one's batches alone: an update of one task leaves every bit of the others' as it
was, the optimizer's moments and weight decay included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from speech_adapters.composition.blocks import Composition
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.processes import processes
from speech_adapters.training.learner import Learner, Loss, Position
from speech_adapters.training.loop import fit
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import Supervised


@dataclass(frozen=True, kw_only=True)
class JointTask:
    """One task of a joint run.

    Attributes:
        name: in the log. adapter: the adapter or composition that it trains. head: its head.
    """

    name: str
    adapter: str | Composition
    head: str
    dataset: SpeechDataset
    dev: SpeechDataset | None = None


def train_jointly(
    model: SpeechAdapterModel,
    tasks: Sequence[JointTask],
    config: TrainingConfig,
    run: RunFolder,
    name: str = "joint",
) -> TrainingResult:
    """Train all tasks together, ``config.updates`` updates each, in turn.

    One AdamW over everything, each group at its own learning rate. ``config.evaluate_every`` watches the mean of the
    tasks' dev losses, or of their errors, as ``config.keep`` says.

    Raises:
        ConfigError: no tasks, two of one name, a composition and a head that do not fit, or a task without a dev set
            where there are evaluations.
        RuntimeError, TrainingError, Interrupted: see :func:`~speech_adapters.training.loop.fit`.
    """
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ConfigError(f"train_jointly: tasks {names}: give at least one, each with a name of its own.")
    if config.evaluate_every and (lacking := [task.name for task in tasks if task.dev is None]):
        raise ConfigError(f"train_jointly: training.evaluate_every needs a dev set, and {lacking[0]!r} has none.")
    if config.cache is not None:
        raise ConfigError("train_jointly: training.cache holds what one task's adapters read; set it to null.")
    model.to(processes().device)
    return fit(_Joint(model, tasks, config), config, run, name)


class _Joint(Learner):
    """Each task's :class:`Supervised` in turn: update n belongs to task n modulo their number."""

    def __init__(self, model: SpeechAdapterModel, tasks: Sequence[JointTask], config: TrainingConfig) -> None:
        self.model, self.tasks, self.config = model, tasks, config
        self.device, self.turns = model.encoder.device, len(tasks)
        self.learners = []
        unused = set(config.learning_rates)
        for task in tasks:
            self._activate(task)
            own = {group: rate for group, rate in config.learning_rates.items() if group in model.parameter_groups()}
            unused -= own.keys()
            self.learners.append(Supervised(model, task.dataset, replace(config, learning_rates=own), task.dev))
        if unused:
            raise ConfigError(f"training.learning_rates.{min(unused)}: no task of train_jointly has this group.")
        self.kept_by = "error" if all(part.kept_by == "error" for part in self.learners) else "loss"

    def _activate(self, task: JointTask) -> None:
        self.model.train_adapter(task.adapter, head=task.head)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """Over all tasks, every tensor once: what is shared stands under the first task that has it."""
        seen: set[int] = set()
        groups = {}
        for task, part in zip(self.tasks, self.learners, strict=True):
            self._activate(task)
            for group, (parameters, rate) in part.groups().items():
                if new := [parameter for parameter in parameters if id(parameter) not in seen]:
                    seen.update(map(id, new))
                    groups[f"{task.name}.{group}"] = (new, rate)
        return groups

    def batches(self, at: Position) -> Iterator[dict[str, Any]]:
        """One batch per task and round, without end: each task goes through its own epochs."""
        per_update = self.config.accumulation
        updates, used = at.place // per_update, []
        for turn, part in enumerate(self.learners):  # task t has made the updates t, t + turns, ... before this one
            own = len(range(turn, updates, self.turns)) * per_update
            used.append(part.endless(at, own))
        while True:
            for _ in range(per_update):
                yield next(used[updates % self.turns])
            updates += 1

    def loss(self, batch: dict[str, Any], update: int) -> Loss:
        return self.learners[update % self.turns].loss(batch, update)

    def turn(self, update: int) -> str:
        return self.tasks[update % self.turns].name

    def evaluate(self) -> dict[str, float]:
        found = {}
        for task, part in zip(self.tasks, self.learners, strict=True):
            self._activate(task)
            self.model.eval()
            found[task.name] = part.evaluate()
        shared = [key for key in ("loss", "error") if all(key in figures for figures in found.values())]
        means = {key: sum(figures[key] for figures in found.values()) / len(found) for key in shared}
        return means | {name: figures["loss"] for name, figures in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for task, part in zip(self.tasks, self.learners, strict=True):
            self._activate(task)
            tensors |= {
                f"{task.name}/{name}" if name.startswith("head/") else name: tensor
                for name, tensor in part.tensors().items()
            }
        return tensors

    def train(self, mode: bool = True) -> None:
        self.model.train(mode)

    def check_alive(self) -> None:
        self.model.check_alive()

    def before_update(self, update: int) -> None:
        self._activate(self.tasks[update % self.turns])
        self.learners[update % self.turns].before_update(update // self.turns)

    def after_update(self, update: int) -> None:
        self.learners[update % self.turns].after_update(update // self.turns)

    def state(self) -> dict[str, Any]:
        states = {}
        for task, part in zip(self.tasks, self.learners, strict=True):
            self._activate(task)
            states[task.name] = part.state()
        return states

    def load_state(self, state: dict[str, Any]) -> None:
        for task, part in zip(self.tasks, self.learners, strict=True):
            self._activate(task)
            part.load_state(state[task.name])
