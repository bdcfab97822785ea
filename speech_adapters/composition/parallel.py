"""Parallel: branches over a shared lower part, which runs once where there is one to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from speech_adapters.adapters.hooks import Hooks, StackedHooks
from speech_adapters.composition.mixed_batch import Inputs, Run
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput


def parallel_forward(
    run: Run, encoder: Encoder, branches: Sequence[Hooks], inputs: Inputs
) -> Iterator[tuple[EncoderOutput, Tensor]]:
    """Each branch's output and what its head reads, (B, T, F)."""
    first = min(branch.first_layer for branch in branches)
    shared = None
    runs_all = any(inputs.get(start) is not None for start in ("waveforms", "cnn_output"))
    if runs_all and first >= -1:
        shared, _ = run(StackedHooks(()), {**inputs, "stop_layer": max(first, 0)})
        inputs = _start(inputs, shared, first)
    for branch in branches:
        output, plan = run(branch, inputs)
        if shared is not None and first > 0:
            output.hidden_states = (*shared.hidden_states[:-1], *output.hidden_states)
        yield output, plan.read(encoder, output)


def _start(inputs: Inputs, shared: EncoderOutput, first: int) -> Inputs:
    """Where a branch starts: at the CNN's output, or at the lowest layer that a branch changes."""
    frames = None if shared.mask is None else shared.frame_lengths
    if first < 0:
        masks = {key: inputs.get(key) for key in ("time_mask", "mask_embedding")}
        return {"cnn_output": shared.cnn_output, "frames": frames, **masks}
    return {"hidden": shared.hidden_states[-1], "frames": frames, "start_layer": first}
