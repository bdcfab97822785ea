"""Train a head on features that lie in memory: probes of what a frozen encoder knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speech_adapters.training.learner import Learner, Loss, Position

FeatureBatch = tuple[Tensor, Tensor, Tensor]
"""Features (B, T, D), zero where padded; frames (B,); targets (B, U), -100 where padded."""


class FeatureLearner(Learner):
    """A module on batches of features of whole utterances.

    Args:
        module: what trains, on the device where it lies.
        loss_of: a batch to the scalar to minimise.
        features, targets: (T, D) and (U,) of each utterance.
        batches: the places of each batch's utterances; their order is drawn anew each epoch from ``seed``.
        rate: peak learning rate.
        after_epoch: called when all batches have been learnt from once more, the module in eval mode.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_of: Callable[[FeatureBatch], Tensor],
        features: Sequence[Tensor],
        targets: Sequence[Tensor],
        batches: Sequence[Sequence[int]],
        rate: float,
        seed: int,
        after_epoch: Callable[[], None] | None = None,
    ) -> None:
        self.module, self.loss_of, self.features, self.targets = module, loss_of, features, targets
        self.places, self.rate, self.seed, self.after_epoch = batches, rate, seed, after_epoch
        self.device = next(module.parameters()).device

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"head": (list(self.module.parameters()), self.rate)}

    def batches(self, at: Position) -> Iterator[FeatureBatch]:
        order = np.random.default_rng((self.seed, at.epoch)).permutation(len(self.places))
        for place in order[at.place * at.processes + at.rank :: at.processes]:
            chosen = [(self.features[i], self.targets[i]) for i in self.places[place]]
            yield (
                pad_sequence([features.float() for features, _ in chosen], batch_first=True),
                torch.tensor([len(features) for features, _ in chosen]),
                pad_sequence([target for _, target in chosen], batch_first=True, padding_value=-100),
            )

    def loss(self, batch: FeatureBatch, update: int) -> Loss:
        return Loss(self.loss_of(batch), 0.0)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def check_alive(self) -> None:
        """A probe's tensors are torch's own, none behind a place that something could bypass."""

    def after_update(self, update: int) -> None:
        if self.after_epoch is not None and (update + 1) % len(self.places) == 0:
            self.module.eval()
            self.after_epoch()
            self.module.train()
