"""What is asked of the tensors of any model or part: that they are finite, and what they are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from speech_adapters.errors import CheckpointError


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(data.shape)}:".encode())
        digest.update(data.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
