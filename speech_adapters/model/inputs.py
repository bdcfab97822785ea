"""What a forward is given, made into tensors where its meaning is plain; every mistake gets a sentence that names the
argument and the remedy.

Arrays and lists do as well as tensors: numpy's, ``(batch, samples)``, lists of utterances of different lengths, lists
of lengths and of targets. Callers of ``transformers`` say ``input_values``, ``attention_mask`` and ``labels``; the
model takes those too.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speech_adapters.data.audio import MAX_PEAK, SAMPLE_RATE
from speech_adapters.errors import AudioError, ConfigError, shown
from speech_adapters.heads.base import HeadModule, HeadOutput
from speech_adapters.heads.ctc import IGNORE

_RATES = ("sampling_rate", "sample_rate", "orig_freq", "sr", "rate")


def either(name: str, value: Any, alias: str, other: Any) -> Any:
    """The one of two names for the same argument that was given. Raises ConfigError for both."""
    if value is not None and other is not None:
        raise ConfigError(f"{name} and {alias} are the same argument; give one of them.")
    return other if value is None else value


def check_names(given: Collection[str], known: Sequence[str]) -> None:
    """Raise a ConfigError for a rate, and for what looks like a misspelt argument."""
    for name in given:
        if name in _RATES:
            raise ConfigError(
                f"{name}: the model hears {SAMPLE_RATE} Hz alone; resample other speech with "
                f"speech_adapters.data.audio.resample(waveform, its_rate, {SAMPLE_RATE})."
            )
        if name not in known and (near := difflib.get_close_matches(name, known, n=1)):
            raise ConfigError(f"unknown argument {name!r}; did you mean {near[0]!r}?")


def lengths_of(attention_mask: Any) -> Tensor:
    """``transformers``' mask (B, samples), 1 on real samples -> lengths (B,)."""
    mask = _tensor("attention_mask", attention_mask, "(batch, samples), 1 on real samples").long()
    lengths = mask.sum(-1)
    if mask.dim() != 2 or not bool((mask.cummin(-1).values.sum(-1) == lengths).all()):
        raise AudioError("attention_mask: expected (batch, samples) with padding behind the samples only; pad there.")
    return lengths


def audio(waveforms: Any, lengths: Any, device: torch.device, receptive_field: int) -> tuple[Tensor, Tensor | None]:
    """Waveforms (B, samples) in float32, and lengths (B,) where some are padded, on the model's device.

    Args:
        waveforms: a float tensor or array (B, samples), or a list of utterances (samples,), which are padded.
        lengths: (B,) samples of each: a tensor, an array or a list; None where none is padded.

    Raises:
        AudioError: no floats, not finite, of another shape, on another device, or shorter than ``receptive_field``;
            lengths that do not fit them.
    """
    if isinstance(waveforms, list | tuple):
        waveforms, found = _padded(waveforms)
        lengths = found if lengths is None else lengths
    on_device = isinstance(waveforms, Tensor)
    waveforms = _tensor(
        "waveforms", waveforms, "(batch, samples), padded with zeros, with lengths=(batch,) in samples"
    )
    if on_device and waveforms.device != device:
        raise AudioError(
            f"waveforms: they are on {waveforms.device}, the model is on {device}; use waveforms.to(model.device)."
        )
    _check_waveforms(waveforms)
    if lengths is not None:
        lengths = _lengths(lengths, waveforms)
        lengths = None if bool((lengths == waveforms.shape[1]).all()) else lengths.to(device)
    elif len(waveforms) > 1:
        _warn_of_padding(waveforms, receptive_field)
    shortest = int(waveforms.shape[1] if lengths is None else lengths.min())
    if shortest < receptive_field:
        raise AudioError(
            f"an utterance of {shortest} samples is shorter than the encoder's receptive field of "
            f"{receptive_field} samples ({receptive_field / 16:.0f} ms); drop or pad it."
        )
    return waveforms.to(device, torch.float32), lengths


def targets_for(targets: Any, scored: HeadOutput, head: HeadModule) -> Tensor:
    """Targets (B, U) of integers on the head's device: ids of its outputs, -100 behind the last one.

    Args:
        targets: a tensor, an array or lists; of lists of different lengths the shorter ones are padded. Of a head of
            one label (B,) will do.

    Raises:
        ConfigError: another shape or type, or ids that the head does not have.
    """
    if isinstance(targets, list | tuple) and targets and all(isinstance(row, list | tuple) for row in targets):
        width = max(map(len, targets))
        targets = [[*row, *[IGNORE] * (width - len(row))] for row in targets]
    targets = _tensor("targets", targets, f"(batch, ids) of integers, padded with {IGNORE}")
    batch, classes = len(scored.logits), scored.logits.shape[-1]
    framewise = scored.lengths is not None  # all transcripts of a batch may be empty; a label may not
    if targets.dim() == 1 and not framewise and len(targets) == batch:
        targets = targets[:, None]
    sizes = head.label_sizes
    fits = targets.dim() == 2 and (framewise or targets.shape[1] if sizes is None else targets.shape[1] == len(sizes))
    shaped = fits and len(targets) == batch
    if not shaped or targets.is_floating_point() or targets.dtype == torch.bool:
        columns = 1 if sizes is None else len(sizes)
        wanted = "(batch, symbols)" if framewise else f"(batch, {columns}), one column per label"
        raise ConfigError(
            f"targets: expected integers {wanted} for {batch} utterances, got {tuple(targets.shape)} {targets.dtype}."
        )
    targets = targets.to(scored.logits.device, torch.long)
    limits = torch.tensor(sizes or [classes], device=targets.device).expand(targets.shape)
    passed = targets == IGNORE if head.ignores else torch.zeros_like(targets, dtype=torch.bool)
    outside = (targets >= limits) | ((targets < 0) & ~passed)
    if bool(outside.any()):
        found, own = int(targets[outside][0]), int(limits[outside][0])
        pads = f", {IGNORE} pads" if head.ignores else ""
        raise ConfigError(
            f"targets: id {found} is none of the head's {own} (0 to {own - 1}{pads}); "
            "encode them with the head's own vocabulary or labels."
        )
    if head.blank is not None:
        _check_transcripts(targets, scored, head.blank)
    return targets


def _padded(utterances: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """A list of utterances as (B, samples), and their lengths where they differ."""
    if not utterances or isinstance(utterances[0], str | os.PathLike):
        raise AudioError(
            f"waveforms: expected utterances, got {shown(utterances)}; read files with "
            "speech_adapters.data.audio.read_audio(path)."
        )
    each = [_tensor(f"waveforms[{place}]", one, "(samples,)") for place, one in enumerate(utterances)]
    for place, one in enumerate(each):
        if one.dim() != 1:
            raise AudioError(
                f"waveforms[{place}]: expected (samples,), got {tuple(one.shape)}; pick a channel, or their mean."
            )
        if not one.is_floating_point():
            raise AudioError(f"waveforms[{place}]: {one.dtype}; {_SCALE}.")
    lengths = torch.tensor([len(one) for one in each])
    return pad_sequence([one.float() for one in each], batch_first=True), lengths


_SCALE = "divide integers by their full scale (32768 for int16)"


def _check_waveforms(waveforms: Tensor) -> None:
    if waveforms.dim() != 2 or not waveforms.is_floating_point():
        scale = "" if waveforms.is_floating_point() else f"; {_SCALE}"
        remedy = {1: "; one utterance is waveforms[None]", 3: "; pick a channel, or take waveforms.mean(1)"}
        raise AudioError(
            f"waveforms: expected a float tensor (batch, samples), got {tuple(waveforms.shape)} "
            f"{waveforms.dtype}{scale or remedy.get(waveforms.dim(), '')}."
        )
    if not waveforms.numel():
        raise AudioError(f"waveforms: {tuple(waveforms.shape)} holds no samples; give at least one utterance.")
    if not bool(waveforms.isfinite().all()):
        row = int((~waveforms.isfinite()).any(1).nonzero()[0])
        raise AudioError(f"waveforms: utterance {row} of the batch holds NaN or infinite samples; check its audio.")
    if (peak := float(waveforms.detach().abs().max())) > MAX_PEAK:
        raise AudioError(f"waveforms: amplitudes up to {peak:g}, expected about [-1, 1]; {_SCALE}.")


def _lengths(lengths: Any, waveforms: Tensor) -> Tensor:
    if isinstance(lengths, int) and len(waveforms) == 1:
        lengths = [lengths]
    lengths = _tensor("lengths", lengths, "(batch,) of samples")
    fits = lengths.shape == waveforms.shape[:1] and not lengths.is_floating_point() and lengths.dtype != torch.bool
    if not fits or int(lengths.max()) > waveforms.shape[1]:
        fractions = lengths.is_floating_point() and bool((lengths <= 1).all())
        remedy = f"; of fractions take (lengths * {waveforms.shape[1]}).round().long()" if fractions else ""
        raise AudioError(
            f"lengths: expected {len(waveforms)} numbers of samples, none above {waveforms.shape[1]}, "
            f"got {shown(lengths.tolist())}{remedy}."
        )
    return lengths.long()


def _warn_of_padding(waveforms: Tensor, samples: int) -> None:
    ends = (waveforms[:, -samples:] == 0).all(1)
    if bool(ends.any()) and not bool(ends.all()):
        warnings.warn(
            f"waveforms: utterance {int(ends.nonzero()[0])} ends in zeros and others do not: is that padding? Then "
            "give lengths=, or it counts as speech.",
            stacklevel=4,
        )


def _check_transcripts(targets: Tensor, scored: HeadOutput, blank: int) -> None:
    if bool((targets == blank).any()):
        row = int((targets == blank).any(1).nonzero()[0])
        raise ConfigError(
            f"targets: utterance {row} holds id {blank}, CTC's blank, which is not a symbol; pad targets "
            f"with {IGNORE}."
        )
    repeats = ((targets[:, 1:] == targets[:, :-1]) & (targets[:, 1:] >= 0)).sum(1)
    needed = (targets >= 0).sum(1) + repeats
    assert scored.lengths is not None, "a frame-wise head gives them"
    long = (needed > scored.lengths.to(needed.device)).nonzero()
    if len(long):
        row = int(long[0])
        warnings.warn(
            f"targets: utterance {row} has {int(scored.lengths[row])} frames and its transcript needs "
            f"{int(needed[row])}; CTC cannot align it, and it counts as nothing in the loss.",
            stacklevel=5,
        )


def _tensor(name: str, value: Any, expected: str) -> Tensor:
    """Tensors as they are; arrays and lists of numbers as tensors."""
    if isinstance(value, Tensor):
        return value
    error = ConfigError if name == "targets" else AudioError
    if isinstance(value, Mapping):
        raise error(f"{name}: got a mapping with {', '.join(map(str, value))}; call model(**inputs).")
    if isinstance(value, str | os.PathLike):
        raise error(
            f"{name}: got the text {shown(str(value))}, expected a tensor {expected}; read a file with "
            "speech_adapters.data.audio.read_audio(path)."
        )
    try:
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            return torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, TypeError):  # rows of different lengths, or types that torch has not
        pass
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise error(f"{name}: expected a tensor, an array or a list {expected}, got {kind} {shown(value)}.")
