"""What every stock encoder of ``transformers`` has, for the type checker; a family's file knows the rest of its own.

These classes are never built: an Encoder casts its model to :class:`StockModel`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class StockAttention(nn.Module):
    """The attention of a layer."""

    num_heads: int
    dropout: float


class StockModel(nn.Module):
    """A bare encoder, such as ``WavLMModel``; ``peft_config`` is there while adapters of ``peft`` are in it."""

    config: Any
    dtype: torch.dtype
    peft_config: dict[str, object]
    save_pretrained: Callable[[Path], None]
