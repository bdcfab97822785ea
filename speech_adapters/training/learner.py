"""What the loop trains: parameters, the batches they learn from, and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.errors import ConfigError
from speech_adapters.training.settings import LoopConfig


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
        turns: for learners that take turns: how many updates make a round; ``updates`` then counts rounds.
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
        """Raise a RuntimeError where a trainable tensor has had no gradient."""

    def evaluate(self) -> dict[str, float]:
        """``loss`` on held-out data, and further figures; called without gradients."""
        raise ConfigError("training.evaluate_every needs a dev set.")

    def turn(self, update: int) -> str | None:
        """Which task an update belongs to, for the log; None for learners that do not take turns."""
        return None

    def before_update(self, update: int) -> None:  # noqa: B027
        """Called before each update, for the methods' own schedules."""

    def after_update(self, update: int) -> None:  # noqa: B027
        """Called after each update, with the gradients still in place."""

    def state(self) -> dict[str, Any]:
        """What else a checkpoint needs, in tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore what :meth:`state` returned."""
