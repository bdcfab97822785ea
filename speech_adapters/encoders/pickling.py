"""Encoders that pickle: for worker processes, ``torch.save`` and ``copy``.

All families' positional convolution carries torch's weight norm, whose generated class torch refuses to pickle. Here
it is taken apart into its settings and tensors and put together again.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

SETTINGS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"
)  # fmt: skip


def let_pickle(model: nn.Module) -> None:
    """Teach ``pickle`` the weight-normalised convolutions of a model."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d) and is_parametrized(module, "weight"):
            copyreg.pickle(type(module), _take_apart)  # each such module has a class of its own


def _take_apart(conv: nn.Conv1d) -> tuple[Callable[..., nn.Conv1d], tuple[Any, ...]]:
    settings = {name: getattr(conv, name) for name in SETTINGS}
    dim = cast(Any, conv).parametrizations.weight[0].dim
    return _put_together, (settings, conv.bias is not None, dim, conv.state_dict(), conv.training)


def _put_together(
    settings: dict[str, Any], bias: bool, dim: int, tensors: dict[str, Tensor], training: bool
) -> nn.Conv1d:
    conv = weight_norm(nn.Conv1d(**settings, bias=bias), dim=dim)
    first = next(iter(tensors.values()))
    conv.to(first.device, first.dtype).load_state_dict(tensors)
    let_pickle(conv)
    return conv.requires_grad_(False).train(training)
