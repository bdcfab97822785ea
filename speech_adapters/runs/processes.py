"""The processes that share a run under ``torchrun``; without it, the one there is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")

TIMEOUT = timedelta(days=1)
"""How long they wait for one of them: while the main one downloads a corpus or scores a test set the others only
wait, and torch's own ten minutes (NCCL) would end the run."""


def processes() -> PartialState:
    """Which process this is, and of how many; the first call joins them."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def from_main(value: T) -> T:
    """The main process's ``value`` in every one of them."""
    told: list[Any] = [value]
    broadcast_object_list(told)
    return told[0]
