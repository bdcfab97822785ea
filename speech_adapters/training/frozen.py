"""What of the forward no update changes: how far the frozen encoder runs before anything that trains.

It follows from the lowest place that trains:

    waveform   an adapter acts inside the CNN: nothing is constant but the sound
    cnn        one acts before the layers, or frames are masked or cropped: the CNN's output
    input      one changes layer k: the input of layer k
    states     none changes a layer (heads, L-adapters, weighted sums): the hidden states that are read; the encoder
               need not run at all
    mean       a head that reads means alone is all that trains: one vector per utterance

The cache keeps it on disk, and adapters that train together share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from speech_adapters.adapters.combine import CombineModule
from speech_adapters.adapters.layer_norms import LayerNormsModule
from speech_adapters.encoders.forward import EncoderOutput, frame_mask
from speech_adapters.encoders.loading import Encoder
from speech_adapters.model import SpeechAdapterModel

Tap = str
"""A place in the encoder that is kept: "cnn", the CNN's output; "state-l", the input of layer l, or of l = number of
layers the last one's output; "mean", the mean of the last hidden state over an utterance's frames, as one frame."""


@dataclass(frozen=True)
class Frozen:
    """How far the encoder is constant; ``layer`` is the first layer's whose input is kept, of ``layers``."""

    kind: Literal["waveform", "cnn", "input", "states", "mean"]
    layer: int
    layers: int

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What is kept: one tensor (T, width) per utterance each."""
        if self.kind == "waveform":
            return ()
        if self.kind in ("cnn", "mean"):
            return (self.kind,)
        last = self.layer if self.kind == "input" else self.layers
        return tuple(f"state-{layer}" for layer in range(self.layer, last + 1))

    @property
    def stop_layer(self) -> int:
        """How many layers run to compute it."""
        return {"input": self.layer, "states": self.layers, "mean": self.layers}.get(self.kind, 0)

    def __str__(self) -> str:
        states = f"hidden states {self.layer} to {self.layers}"
        return {
            "waveform": "waveforms",
            "cnn": "the CNN's output",
            "input": f"the input of layer {self.layer}",
            "states": "the last layer's output" if self.layer == self.layers else states,
            "mean": "the mean of the last hidden state",
        }[self.kind]

    def inputs(self, taps: Sequence[Tensor], frames: Tensor | None) -> dict[str, Any]:
        """The model's arguments from :attr:`taps`, each (B, T, width), of utterances of ``frames`` (B,) frames."""
        given: dict[str, dict[str, Any]] = {
            "cnn": {"cnn_output": taps[0]},
            "input": {"hidden": taps[0], "start_layer": self.layer},
            "states": {"hidden_states": tuple(taps)},
            "mean": {"last_hidden_state": taps[0]},
        }
        return {**given[self.kind], "frames": frames}


def frozen_part(model: SpeechAdapterModel, *, whole: bool = True, pooled: bool = False) -> Frozen:
    """What is constant while the active adapters and head train.

    Args:
        whole: utterances are heard whole and unmasked; else nothing above the CNN is constant.
        pooled: the head's own reading is all that is asked for, so that means may stand for frames.
    """
    layers, states, first = model.encoder.num_layers, model.read_states, model.first_layer
    if states is not None and whole:
        means = pooled and not states and model.head is not None and model.head.reads_means
        return Frozen("mean" if means else "states", min(states, default=layers), layers)
    if states is None and first < -1:
        return Frozen("waveform", 0, layers)
    if first == -1 or not whole:
        return Frozen("cnn", 0, layers)
    return Frozen("input", first, layers)


def hint(model: SpeechAdapterModel) -> str:
    """What to do where LayerNorms alone keep the encoder running; empty where that is not so."""
    adapters = [model.registry.adapter(name) for name in model.active_adapters]
    parts = [
        part
        for adapter in adapters
        for part in (adapter.parts.values() if isinstance(adapter, CombineModule) else (adapter,))
    ]
    changing = [part for part in parts if part.states is None]
    if not changing or not all(isinstance(part, LayerNormsModule) for part in changing):
        return ""
    return "\n  its LayerNorms train, so that the layers run in each step; preset l-frozen leaves them, and none runs"


def width_of(tap: Tap, encoder: Encoder) -> int:
    """Numbers per frame."""
    return encoder.cnn_width if tap == "cnn" else encoder.hidden_size


def read_taps(taps: Sequence[Tap], output: EncoderOutput, frames: Tensor) -> list[Tensor]:
    """The taps (B, T, width) of a run of the base that began at waveforms; ``frames`` (B,) are real."""

    def read(tap: Tap) -> Tensor:
        if tap == "cnn":
            assert output.cnn_output is not None, "the run began at waveforms"
            return output.cnn_output
        if tap == "mean":
            last = output.last_hidden_state.float()
            real = frame_mask(frames, last.shape[1]).unsqueeze(2)
            return (last.masked_fill(~real, 0).sum(1) / frames.unsqueeze(1)).unsqueeze(1)
        return output.hidden_states[int(tap.removeprefix("state-"))]

    return [read(tap) for tap in taps]


@torch.no_grad()
def compute_taps(
    encoder: Encoder, frozen: Frozen, waveforms: Tensor, lengths: Tensor, taps: Sequence[Tap] | None = None
) -> tuple[list[Tensor], Tensor]:
    """:attr:`Frozen.taps` (or ``taps``) of waveforms (B, samples) with ``lengths`` (B,), and frames (B,) of each.

    Padding changes what a CNN with group norm gives: there each utterance runs alone.
    """
    taps = frozen.taps if taps is None else taps
    waveforms, lengths = waveforms.to(encoder.device), lengths.to(encoder.device)
    frames = encoder.frame_lengths(lengths)
    if encoder.group_norm and len(lengths) > 1:
        alone = [
            compute_taps(encoder, frozen, wave[None, :n], lengths[i : i + 1], taps)[0]
            for i, (wave, n) in enumerate(zip(waveforms, lengths.tolist(), strict=True))
        ]
        return [_pad(parts) for parts in zip(*alone, strict=True)], _taken(frozen, frames)
    padded = lengths if bool((lengths < waveforms.shape[1]).any()) else None
    output = encoder(waveforms, padded, stop_layer=frozen.stop_layer)
    return read_taps(taps, output, frames), _taken(frozen, frames)


def _taken(frozen: Frozen, frames: Tensor) -> Tensor:
    return torch.ones_like(frames) if frozen.kind == "mean" else frames


def _pad(parts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([part[0] for part in parts], batch_first=True)


def model_inputs(batch: dict[str, Any], model: SpeechAdapterModel) -> dict[str, Any]:
    """What the model's forward takes of a collated batch, without targets, on the model's device.

    Of a batch with cached activations, those utterances whose are not kept run through the frozen part now.
    """
    device = model.encoder.device
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    others = {key: moved[key] for key in ("guide",) if key in moved}
    frozen: Frozen | None = batch.get("frozen")
    if frozen is None:
        return {"waveforms": moved["waveforms"], "lengths": moved["lengths"], **others}
    taps, frames = _complete(moved, frozen, model.encoder)
    return {**frozen.inputs(taps, frames), **others}


def _complete(batch: dict[str, Any], frozen: Frozen, encoder: Encoder) -> tuple[list[Tensor], Tensor | None]:
    """The taps of a whole batch in the encoder's precision, cached or computed, and its frames; None: no padding."""
    dtype, parts, counts = encoder.model.dtype, [], []
    if "cached" in batch:  # (B, T, taps, width)
        parts.append([tap.to(dtype).contiguous() for tap in batch["cached"].unbind(2)])
        counts.append(batch["frames"])
    if "waveforms" in batch:
        taps, frames = compute_taps(encoder, frozen, batch["waveforms"], batch["lengths"])
        parts.append([tap.to(dtype) for tap in taps])
        counts.append(frames)
    frames, joined = torch.cat(counts), parts[0]
    if len(parts) > 1:
        longest = int(frames.max())
        place = batch["places"].argsort()  # cached ones come first in the parts, all in their places in the batch
        frames = frames[place]
        joined = [torch.cat([_widen(part, longest) for part in tap])[place] for tap in zip(*parts, strict=True)]
    return joined, None if bool((frames == joined[0].shape[1]).all()) else frames


def _widen(tap: Tensor, frames: int) -> Tensor:
    return torch.nn.functional.pad(tap[:, :frames], (0, 0, 0, max(frames - tap.shape[1], 0)))
