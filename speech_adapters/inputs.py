"""What a forward is given, checked: each mistake gets a sentence that names the argument and the remedy.

Callers of ``transformers`` say ``input_values``, ``attention_mask`` and ``labels``; the model takes those too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.heads.base import HeadOutput
from speech_adapters.heads.ctc import IGNORE


def either(name: str, value: Any, alias: str, other: Any) -> Any:
    """The one of two names for the same argument that was given. Raises ConfigError for both."""
    if value is not None and other is not None:
        raise ConfigError(f"{name} and {alias} are the same argument; give one of them.")
    return other if value is None else value


def lengths_of(attention_mask: Tensor) -> Tensor:
    """``transformers``' mask (B, samples), 1 on real samples -> lengths (B,)."""
    _check_tensor("attention_mask", attention_mask, "(batch, samples), 1 on real samples")
    mask = attention_mask.long()
    lengths = mask.sum(-1)
    if mask.dim() != 2 or not bool((mask.cummin(-1).values.sum(-1) == lengths).all()):
        raise AudioError("attention_mask: expected (batch, samples) with padding behind the samples only; pad there.")
    return lengths


def check_audio(waveforms: Any, lengths: Any, receptive_field: int) -> None:
    """Raise an AudioError unless waveforms are finite floats (B, samples), and lengths (B,) integers that fit them."""
    _check_tensor("waveforms", waveforms, "(batch, samples), padded with zeros, with lengths=(batch,) in samples")
    if waveforms.dim() != 2 or not waveforms.is_floating_point():
        scale = "" if waveforms.is_floating_point() else "; divide integers by their full scale (32768 for int16)"
        raise AudioError(
            f"waveforms: expected a float tensor (batch, samples), got {tuple(waveforms.shape)} "
            f"{waveforms.dtype}{scale}."
        )
    if not bool(waveforms.isfinite().all()):
        row = int((~waveforms.isfinite()).any(1).nonzero()[0])
        raise AudioError(f"waveforms: utterance {row} of the batch holds NaN or infinite samples; mend its audio.")
    if lengths is not None:
        _check_tensor("lengths", lengths, "(batch,) of samples")
        fits = lengths.shape == waveforms.shape[:1] and not lengths.is_floating_point()
        if not fits or int(lengths.max()) > waveforms.shape[1]:
            raise AudioError(
                f"lengths: expected {len(waveforms)} numbers of samples, none above {waveforms.shape[1]}, "
                f"got {lengths.tolist()}."
            )
    shortest = int(waveforms.shape[1] if lengths is None else lengths.min())
    if shortest < receptive_field:
        raise AudioError(
            f"an utterance of {shortest} samples is shorter than the encoder's receptive field of "
            f"{receptive_field} samples ({receptive_field / 16:.0f} ms); drop or pad it."
        )


def check_targets(targets: Any, scored: HeadOutput) -> None:
    """Raise a ConfigError unless targets are integers (B, U), each a class of the head or -100."""
    _check_tensor("targets", targets, f"(batch, ids) of integers, padded with {IGNORE}")
    batch, classes = len(scored.logits), scored.logits.shape[-1]
    if targets.dim() != 2 or len(targets) != batch or not targets.shape[1] or targets.is_floating_point():
        wanted = "(batch, symbols)" if scored.lengths is not None else "(batch, 1), one column per label"
        raise ConfigError(
            f"targets: expected integers {wanted} for {batch} utterances, got {tuple(targets.shape)} {targets.dtype}"
            f"{'; use targets[:, None]' if targets.dim() == 1 else ''}."
        )
    outside = targets[(targets >= classes) | ((targets < 0) & (targets != IGNORE))]
    if len(outside):
        raise ConfigError(
            f"targets: id {int(outside[0])} is none of the head's {classes} (0 to {classes - 1}, {IGNORE} pads); "
            "encode them with the head's own vocabulary or labels."
        )


def _check_tensor(name: str, value: Any, expected: str) -> None:
    if isinstance(value, Tensor):
        return
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    remedy = "convert with torch.from_numpy(...)" if kind == "numpy.ndarray" else "convert with torch.tensor(...)"
    if name == "waveforms" and isinstance(value, list | tuple):
        remedy = "pad them with torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)"
    error = ConfigError if name == "targets" else AudioError
    raise error(f"{name}: expected a tensor {expected}, got {kind}; {remedy}.")
