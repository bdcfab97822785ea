"""From a forward's output to what is predicted from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from speech_adapters.errors import CheckpointError
from speech_adapters.heads.base import HeadOutput
from speech_adapters.model_output import ModelOutput


def head_output(output: ModelOutput) -> HeadOutput:
    """What the head gave to a model's output, in float32."""
    assert isinstance(output.logits, Tensor), "one head reads the whole batch"
    assert not isinstance(output.embedding, list), "one head reads the whole batch"
    embedding = None if output.embedding is None else output.embedding.float()
    return HeadOutput(output.logits.float(), output.frame_lengths, embedding)


def mean_pooled(output: ModelOutput) -> list[Tensor]:
    """(F,) mean of the features over each utterance's real frames, in float32 on the CPU."""
    assert isinstance(output.features, Tensor), "one composition serves the whole batch"
    features = output.features.float()
    if output.mask is None:
        return list(features.mean(1).cpu())
    mask = output.mask[..., None]
    return list(((features * mask).sum(1) / mask.sum(1)).cpu())


def check_finite(output: ModelOutput, names: Sequence[str]) -> None:
    """Raise a CheckpointError that names the first utterance with a real frame of what is predicted from that is not
    finite."""
    found = output.logits if output.logits is not None else output.features
    rows = found if isinstance(found, list) else list(found)
    embedded = [None] * len(rows) if output.embedding is None else list(output.embedding)
    for name, row, length, embedding in zip(names, rows, output.frame_lengths.tolist(), embedded, strict=True):
        real = row[:length] if row is not None and row.ndim > 1 else row
        if not all(value is None or bool(torch.isfinite(value).all()) for value in (real, embedding)):
            raise CheckpointError(
                f"the model's output for {name!r} is not finite; its weights are broken, or need fp32 (precision)."
            )
