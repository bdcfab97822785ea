"""The one encoder forward: waveform -> CNN -> projection -> positions -> layers, over the stock modules.

``transformers``' own forward cannot carry pseudo frames, cached activations or adapters between a layer's parts. This
one can, for every family and for post-norm (Base) and pre-norm (Large) layers alike, and equals theirs to rounding
when nothing is plugged in. What may be plugged in, and where, is the :class:`~speech_adapters.encoders.plan.Plan`;
what the steps are in a family, its file in ``families/`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from speech_adapters.encoders.families import family_of
from speech_adapters.encoders.plan import BASE, Frames, Plan, frame_mask
from speech_adapters.encoders.stock import StockModel
from speech_adapters.errors import ConfigError

Checkpointing = bool | Literal["selective"]
"""What of a layer is computed again in the backward pass rather than kept: nothing (False), all of it (True), or, with
``"selective"``, what is large and cheap: attention weights, activations, and products that make more numbers than they
read. What adapters leave frozen keeps no input, so that the rest is mostly queries, keys, values and outputs."""


@dataclass
class EncoderOutput:
    """What :func:`encode` returns; pseudo frames are already taken out.

    Attributes:
        last_hidden_state: (B, T, D), what the encoder hands on; in a pre-norm encoder run to its end it is after the
            final LayerNorm, and in a checkpoint with an output adapter behind that: (B, T', D') then.
        hidden_states: tensors (B, T, D): the input of layer ``start_layer``, then each layer's output as it is, so
            that ``hidden_states[i]`` is what layer ``start_layer + i`` can be started from.
        frame_lengths: (B,) real frames of each utterance, or None when nothing is padded.
        mask: (B, T) True on real frames, or None.
        cnn_output: (B, T, C) before the feature projection; None when the run started later.
        output_lengths, output_mask: those of the last hidden state; the same ones but for an output adapter.

    A run from cached ``hidden_states`` has those, one from a cached ``last_hidden_state`` has none.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    frame_lengths: Tensor | None
    mask: Tensor | None
    cnn_output: Tensor | None
    output_lengths: Tensor | None = None
    output_mask: Tensor | None = None

    def lengths_of(self, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Lengths and mask of features (B, T, ...) made of the last hidden state, or of the others."""
        if features.shape[1] == self.last_hidden_state.shape[1]:
            return self.output_lengths, self.output_mask
        return self.frame_lengths, self.mask


def encode(
    model: StockModel,
    waveforms: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    cnn_output: Tensor | None = None,
    hidden: Tensor | None = None,
    hidden_states: Sequence[Tensor] | None = None,
    last_hidden_state: Tensor | None = None,
    frames: Tensor | None = None,
    start_layer: int = 0,
    stop_layer: int | None = None,
    time_mask: Tensor | None = None,
    mask_embedding: Tensor | None = None,
    plan: Plan = BASE,
    gradient_checkpointing: Checkpointing = False,
) -> EncoderOutput:
    """Run a stock encoder of any family (``WavLMModel``, ...), from any point to any layer.

    Give exactly one input:

    - ``waveforms`` (B, samples) with ``lengths`` (B,) in samples, or None when nothing is padded;
    - ``cnn_output`` (B, T, C), cached, with ``frames`` (B,) or None;
    - ``hidden`` (B, T, D), the cached input of layer ``start_layer``, with ``frames`` (B,) or None;
    - ``hidden_states``, each (B, T, D), cached, the last layer's output at the end, with ``frames``: nothing but the
      final LayerNorm is left to run;
    - ``last_hidden_state`` (B, T, D), cached, with ``frames``: nothing is left to run.

    Args:
        stop_layer: run layers ``start_layer`` to ``stop_layer - 1``; all by default.
        time_mask: (B, T) boolean; True frames become the model's mask embedding after the projection (SpecAugment,
            masked prediction), zero in a family without one.
        mask_embedding: (D,) to use in place of the model's own, which a checkpoint need not have learnt.
        plan: what adapters change on the way.
        gradient_checkpointing: recompute layers, or parts of them, in the backward pass. Always non-reentrant: the
            reentrant kind exhausts memory on the position bias that WavLM's layers share.

    Raises:
        ConfigError: not exactly one input, ``start_layer`` / ``stop_layer`` outside the encoder, or a ``time_mask`` on
            an input behind the place where frames are hidden.
    """
    inputs = {
        "waveforms": waveforms,
        "cnn_output": cnn_output,
        "hidden": hidden,
        "hidden_states": hidden_states,
        "last_hidden_state": last_hidden_state,
    }
    given = [name for name, value in inputs.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"encode: give exactly one of {', '.join(inputs)}; got {', '.join(given) or 'none'}.")
    if time_mask is not None and waveforms is None and cnn_output is None:
        raise ConfigError(
            f"encode: time_mask hides frames below the layers, which {given[0]} is behind; start from waveforms or "
            "cnn_output."
        )
    family, config = family_of(model.config), model.config
    if last_hidden_state is not None:
        mask = None if frames is None else frame_mask(frames, last_hidden_state.shape[1])
        return EncoderOutput(last_hidden_state, (), frames, mask, None, frames, mask)
    if hidden_states is not None:
        mask = None if frames is None else frame_mask(frames, hidden_states[-1].shape[1])
        return _finish(model, EncoderOutput(hidden_states[-1], tuple(hidden_states), frames, mask, None))
    layers = family.layer_list(model)
    total = len(layers)
    stop = total if stop_layer is None else stop_layer
    if not 0 <= start_layer <= stop <= total or (hidden is None and start_layer):
        raise ConfigError(
            f"encode: start_layer={start_layer}, stop_layer={stop_layer} do not fit an encoder of {total} layers "
            "(a start_layer above 0 needs the cached input of that layer as hidden)."
        )

    if waveforms is not None:
        cnn_output = family.front_end(model, waveforms, lengths, plan)
        frames = None if lengths is None else family.frame_lengths(config, lengths)
    extended = Frames(torch.empty(0), None)
    if hidden is None:
        assert cnn_output is not None
        real_frames = cnn_output.shape[1]
        mask = None if frames is None else frame_mask(frames, real_frames)
        real_mask = mask
        extended = plan.pseudo_frames("cnn_out", cnn_output, mask)
        hidden = family.project(model, extended.frames)
        if time_mask is not None:
            position = torch.arange(real_frames, device=hidden.device).expand(len(hidden), -1)
            before = extended.before if isinstance(extended.before, int) else extended.before[:, None]
            where = time_mask.new_zeros(hidden.shape[:2]).scatter_(1, position + before, time_mask)
            embedding = family.mask_embedding(model) if mask_embedding is None else mask_embedding
            masked = hidden.new_zeros(()) if embedding is None else embedding.to(hidden.dtype)
            hidden = torch.where(where.unsqueeze(-1), masked, hidden)
        extended = _extend(plan, "proj_out", extended._replace(frames=hidden))
        hidden, mask = extended.frames, extended.mask
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)
        real = real_frames if frames is None else frames
        hidden = family.add_positions(model, extended._replace(frames=hidden), real)
        extended = _extend(plan, "layers_in", extended._replace(frames=hidden))
        hidden, mask = extended.frames, extended.mask
    else:
        real_frames = hidden.shape[1]
        real_mask = mask = None if frames is None else frame_mask(frames, real_frames)

    bias, pre_norm = family.position_bias(model, hidden.shape[1]), family.pre_norm(config)
    states = [hidden]
    for index in range(start_layer, stop):
        arguments = (layers[index], index, hidden, mask, bias, plan, pre_norm)
        if gradient_checkpointing and torch.is_grad_enabled():
            kept = _selected if gradient_checkpointing == "selective" else noop_context_fn
            hidden = checkpoint(family.run_layer, *arguments, use_reentrant=False, context_fn=kept)
        else:
            hidden = family.run_layer(*arguments)
        states.append(hidden)
    if hidden.shape[1] != real_frames:
        states = [extended.real(state, real_frames) for state in states]
    output = EncoderOutput(states[-1], tuple(states), frames, real_mask, cnn_output, frames, real_mask)
    return _finish(model, output) if stop == total else output


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def _policy(_: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Keep the products with a weight (in, out), the last argument, of which ``out`` is no more than ``in``."""
    kept = operation in _PRODUCTS and arguments[-1].shape[1] <= arguments[-1].shape[0]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_selected = partial(create_selective_checkpoint_contexts, _policy)


def _finish(model: StockModel, output: EncoderOutput) -> EncoderOutput:
    """What stands behind the last layer: the final LayerNorm and the output adapter, in encoders that have them."""
    family, frames, last = family_of(model.config), output.frame_lengths, output.last_hidden_state
    final_norm = family.final_norm(model)
    last = family.run_output_adapter(model, last if final_norm is None else final_norm(last), frames)
    lengths, mask = frames, output.mask
    if frames is not None and last.shape[1] != output.hidden_states[-1].shape[1]:
        lengths = family.output_lengths(model.config, frames)
        mask = frame_mask(lengths, last.shape[1])
    return replace(output, last_hidden_state=last, output_lengths=lengths, output_mask=mask)


def _extend(plan: Plan, where: str, found: Frames) -> Frames:
    added = plan.pseudo_frames(where, found.frames, found.mask)
    return added._replace(before=found.before + added.before)
