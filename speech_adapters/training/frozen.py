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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from speech_adapters.adapters.combine import CombineModule
from speech_adapters.adapters.layer_norms import LayerNormsModule
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.encoders.plan import frame_mask
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
        """What is kept of each utterance: by each of these names, one tensor (T, width)."""
        if self.kind == "waveform":
            return ()
        if self.kind in ("cnn", "mean"):
            return (self.kind,)
        last = self.layer if self.kind == "input" else self.layers
        return tuple(f"state-{layer}" for layer in range(self.layer, last + 1))

    def __str__(self) -> str:
        states = f"hidden states {self.layer} to {self.layers}"
        return {
            "waveform": "waveforms",
            "cnn": "the CNN's output",
            "input": f"the input of layer {self.layer}",
            "states": "the last layer's output" if self.layer == self.layers else states,
            "mean": "the mean of the last hidden state",
        }[self.kind]

    def inputs(self, taps: Mapping[Tap, Tensor], frames: Tensor | None) -> dict[str, Any]:
        """The model's arguments from :attr:`taps`, each (B, T, width), of utterances of ``frames`` (B,) frames."""
        held = [taps[tap] for tap in self.taps]
        given: dict[str, dict[str, Any]] = {
            "cnn": {"cnn_output": held[0]},
            "input": {"hidden": held[0], "start_layer": self.layer},
            "states": {"hidden_states": tuple(held)},
            "mean": {"last_hidden_state": held[0]},
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
    return {"cnn": encoder.cnn_width, "mean": encoder.output_size}.get(tap, encoder.hidden_size)


@torch.no_grad()
def compute_taps(
    encoder: Encoder, taps: Sequence[Tap], waveforms: Tensor, lengths: Tensor
) -> tuple[dict[Tap, Tensor], Tensor]:
    """Taps (B, T, width) of waveforms (B, samples) with ``lengths`` (B,), and the frames (B,) of each utterance.

    Padding changes what a CNN with group norm gives: there each utterance runs alone.
    """
    waveforms, lengths = waveforms.to(encoder.device), lengths.to(encoder.device)
    frames = encoder.frame_lengths(lengths)
    if encoder.group_norm and len(lengths) > 1:
        alone = [
            compute_taps(encoder, taps, wave[None, :n], lengths[place : place + 1])[0]
            for place, (wave, n) in enumerate(zip(waveforms, lengths.tolist(), strict=True))
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        found = {tap: pad([one[tap][0] for one in alone], batch_first=True) for tap in taps}
    else:
        padded = lengths if bool((lengths < waveforms.shape[1]).any()) else None
        output = encoder(waveforms, padded, stop_layer=max(_layer(tap, encoder) for tap in taps))
        found = {tap: _read(tap, output, frames) for tap in taps}
    return found, torch.ones_like(frames) if "mean" in taps else frames


def _layer(tap: Tap, encoder: Encoder) -> int:
    """How many layers run until a tap is there."""
    return {"cnn": 0, "mean": encoder.num_layers}[tap] if tap in ("cnn", "mean") else int(tap.removeprefix("state-"))


def _read(tap: Tap, output: EncoderOutput, frames: Tensor) -> Tensor:
    if tap == "cnn":
        assert output.cnn_output is not None, "the run began at waveforms"
        return output.cnn_output
    if tap == "mean":
        last = output.last_hidden_state.float()
        lengths = frames if output.output_lengths is None else output.output_lengths
        real = frame_mask(lengths, last.shape[1]).unsqueeze(2)
        return (last.masked_fill(~real, 0).sum(1) / lengths.unsqueeze(1)).unsqueeze(1)
    return output.hidden_states[int(tap.removeprefix("state-"))]


def batch_taps(batch: Mapping[str, Any], encoder: Encoder) -> tuple[dict[Tap, Tensor], Tensor | None]:
    """The taps of a collated batch in the encoder's precision and on its device, and the frames (B,) of each utterance
    (None: nothing is padded). Those of utterances that are not kept are computed now."""
    taps, device, dtype = batch["taps"], encoder.device, encoder.model.dtype
    parts, counts = [], []
    if "cached" in batch:
        held = batch["cached"].to(device).split([width_of(tap, encoder) for tap in taps], dim=2)
        parts.append([tap.to(dtype).contiguous() for tap in held])
        counts.append(batch["frames"].to(device))
    if "waveforms" in batch:
        found, frames = compute_taps(encoder, taps, batch["waveforms"], batch["lengths"])
        parts.append([found[tap].to(dtype) for tap in taps])
        counts.append(frames)
    frames, joined = torch.cat(counts), parts[0]
    if len(parts) > 1:  # first the cached ones, then the others: back to their places in the batch
        longest, places = int(frames.max()), batch["places"].to(device).argsort()
        joined = [torch.cat([_widen(part, longest) for part in tap])[places] for tap in zip(*parts, strict=True)]
        frames = frames[places]
    unpadded = bool((frames == joined[0].shape[1]).all())
    return dict(zip(taps, joined, strict=True)), None if unpadded else frames


def _widen(tap: Tensor, frames: int) -> Tensor:
    return torch.nn.functional.pad(tap[:, :frames], (0, 0, 0, max(frames - tap.shape[1], 0)))


def model_inputs(batch: Mapping[str, Any], model: SpeechAdapterModel) -> dict[str, Any]:
    """What the model's forward takes of a collated batch, without targets, on the model's device."""
    device = model.encoder.device
    others = {"guide": batch["guide"].to(device)} if "guide" in batch else {}
    if "frozen" in batch:
        return {**batch["frozen"].inputs(*batch_taps(batch, model.encoder)), **others}
    return {"waveforms": batch["waveforms"].to(device), "lengths": batch["lengths"].to(device), **others}
