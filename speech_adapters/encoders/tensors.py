"""What is asked of the tensors of any model or part: that they are finite, and what they are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from speech_adapters.errors import CheckpointError


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and bytes of tensors, in the order of their names."""
    return fingerprints(tensors)[0]


def fingerprints(tensors: Mapping[str, Tensor], left_out: Collection[str] = ()) -> tuple[str, ...]:
    """The :func:`fingerprint` of all tensors but those left out, and that of all where it is another."""
    every, but = hashlib.sha256(), None
    for name, tensor in sorted(tensors.items()):
        if name in left_out and but is None:
            but = every.copy()  # what stands before, often all the rest, is read once
        data = tensor.detach().cpu().contiguous()
        for digest in (every,) if but is None or name in left_out else (every, but):
            digest.update(f"{name}:{tuple(data.shape)}:".encode())
            digest.update(data.view(-1).view(torch.uint8).numpy().data)
    return (every.hexdigest(),) if but is None else (but.hexdigest(), every.hexdigest())


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise a CheckpointError that opens with ``where`` and names the first tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        # NaN and infinities do not leave a sum; it overflows at large values too, so each is looked at then.
        if not tensor.detach().float().sum().isfinite() and not tensor.detach().isfinite().all():
            raise CheckpointError(
                f"{where}: tensor {name!r} holds values that are not finite (NaN or infinite); take weights from "
                "before its training came apart."
            )
