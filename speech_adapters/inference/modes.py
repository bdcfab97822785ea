"""Eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn


class Modes(Protocol):
    """What has modules in the mode of training or evaluation: any ``nn.Module``."""

    def modules(self) -> Iterator[nn.Module]:
        """All of them, itself among them."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Set the mode of what trains."""
        ...


@contextmanager
def evaluating(model: Modes) -> Iterator[None]:
    """All modules in eval mode; afterwards each is in the mode it had, which need not be the model's own."""
    training = [module for module in model.modules() if module.training]
    model.train(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
