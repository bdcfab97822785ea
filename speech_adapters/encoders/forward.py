"""The one encoder forward: waveform -> CNN -> projection -> positions -> layers, over the stock modules.

``transformers``' own forward cannot carry pseudo frames, cached activations or adapters between a layer's parts. This
one can, for every family and for post-norm (Base) and pre-norm (Large) layers alike, and equals theirs to rounding
when nothing is plugged in. What may be plugged in, and where, is the :class:`Plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speech_adapters.encoders.attention import AttentionPrefix, has_position_bias, position_bias, self_attention
from speech_adapters.encoders.stock import StockConfig, StockFeedForward, StockLayer, StockModel
from speech_adapters.errors import ConfigError

#: Frames (B, T, D) -> frames of the same shape.
Norm = Callable[[Tensor], Tensor]

#: Frames (B, T, D) -> the keys and values (B, T, D) that a layer's attention makes of them.
Projection = Callable[[Tensor], tuple[Tensor, Tensor]]

#: A number of samples, or one per utterance (B,).
Samples = TypeVar("Samples", int, Tensor)


class Site(NamedTuple):
    """What a part of the encoder hands to the adapters beside it; tensors are (B, T, width) unless said otherwise.

    The parts by name, with their index:

    - "cnn", a block: ``input`` and ``output`` are (B, channels, time), and no mask is known yet;
    - "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "intermediate_act", "output_dense" of a layer:
      what goes into the projection (or activation) and what comes out of it;
    - "attention" and "feed_forward" of a layer: ``residual`` is what the output will be added to, and ``norm`` the
      LayerNorm that follows the addition (post-norm layers) or precedes the sub-layer (pre-norm layers);
    - "layer": the input and output of the whole layer.

    ``mask`` (B, T) is True on real and pseudo frames, None when nothing is padded.
    """

    input: Tensor
    output: Tensor
    mask: Tensor | None = None
    residual: Tensor | None = None
    norm: Norm | None = None


class Frames(NamedTuple):
    """Frames (B, T, D), their mask (B, T) or None, and how many pseudo frames stand before them, in all or (B,)."""

    frames: Tensor
    mask: Tensor | None
    before: int | Tensor = 0

    def real(self, frames: Tensor, count: int) -> Tensor:
        """``count`` frames behind the pseudo frames, of ``frames`` (B, T, ...)."""
        if isinstance(self.before, int):
            return frames[:, self.before : self.before + count]
        index = self.before[:, None] + torch.arange(count, device=frames.device)
        return frames[torch.arange(len(frames), device=frames.device)[:, None], index]


class Plan:
    """What adapters may change on the way through the encoder. This one changes nothing: the frozen base."""

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames:
        """Add pseudo frames at ``where``: "cnn_out" and "proj_out" (before and after the feature projection), or
        "layers_in" (after the positions, right before the first layer)."""
        return Frames(frames, mask)

    def layer(self, index: int, layer: nn.Module) -> nn.Module:
        """The transformer layer to run in place of the base's."""
        return layer

    def norm(self, index: int, name: str, norm: Norm) -> Norm:
        """What to run in place of LayerNorm ``name`` ("layer_norm" or "final_layer_norm") of a layer."""
        return norm

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        """Extra attention keys and values for a layer; ``project`` gives those of frames."""
        return None

    def site(self, name: str, index: int, site: Site) -> Tensor:
        """The output of the part ``name`` (see :class:`Site`), adapters included."""
        return site.output


BASE = Plan()


@dataclass
class EncoderOutput:
    """What :func:`encode` returns; pseudo frames are already taken out.

    Attributes:
        last_hidden_state: (B, T, D), what the encoder hands on; in a pre-norm encoder run to its end it is after the
            final LayerNorm.
        hidden_states: tensors (B, T, D): the input of layer ``start_layer``, then each layer's output as it is, so
            that ``hidden_states[i]`` is what layer ``start_layer + i`` can be started from.
        frame_lengths: (B,) real frames of each utterance, or None when nothing is padded.
        mask: (B, T) True on real frames, or None.
        cnn_output: (B, T, C) before the feature projection; None when the run started later.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    frame_lengths: Tensor | None
    mask: Tensor | None
    cnn_output: Tensor | None


def frame_lengths(config: StockConfig, samples: Samples) -> Samples:
    """Frames that the CNN makes of ``samples``; a number or a tensor (B,)."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def receptive_field(config: StockConfig) -> int:
    """Samples that one frame covers: the least that an utterance must have."""
    field, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * step
        step *= stride
    return field


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B,) lengths -> (B, frames) boolean, True on real frames."""
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def encode_layer(
    layer: StockLayer,
    index: int,
    hidden: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    plan: Plan,
    pre_norm: bool,
) -> Tensor:
    """One transformer layer (B, T, D) -> (B, T, D), adapters at their places; ``mask`` is (B, T)."""
    layer, layer_input = cast(StockLayer, plan.layer(index, layer)), hidden
    attention_norm = plan.norm(index, "layer_norm", layer.layer_norm)
    final_norm = plan.norm(index, "final_layer_norm", layer.final_layer_norm)

    def run(name: str, module: nn.Module, frames: Tensor) -> Tensor:
        return plan.site(name, index, Site(frames, module(frames), mask))

    def project(frames: Tensor) -> tuple[Tensor, Tensor]:
        frames = frames.to(layer_input.dtype)
        normed = attention_norm(frames) if pre_norm else frames
        # No mask: these frames stand beside the utterances, not in them.
        key, value = layer.attention.k_proj(normed), layer.attention.v_proj(normed)
        return plan.site("k_proj", index, Site(normed, key)), plan.site("v_proj", index, Site(normed, value))

    normed = attention_norm(hidden) if pre_norm else hidden
    attention_mask = None if mask is None else mask[:, None, None, :]
    output = self_attention(layer.attention, normed, attention_mask, bias, plan.prefix(index, project), run)
    output = layer.dropout(output)
    hidden = hidden + plan.site("attention", index, Site(normed, output, mask, hidden, attention_norm))
    if not pre_norm:
        hidden = attention_norm(hidden)

    normed = final_norm(hidden) if pre_norm else hidden
    output = feed_forward(layer.feed_forward, normed, run)
    hidden = hidden + plan.site("feed_forward", index, Site(normed, output, mask, hidden, final_norm))
    if not pre_norm:
        hidden = final_norm(hidden)
    language_adapter = getattr(layer, "adapter_layer", None)  # of MMS checkpoints; part of the base here
    if pre_norm and language_adapter is not None:
        hidden = hidden + language_adapter(hidden)
    return plan.site("layer", index, Site(layer_input, hidden, mask))


def feed_forward(module: StockFeedForward, hidden: Tensor, run: Callable[[str, nn.Module, Tensor], Tensor]) -> Tensor:
    """The stock feed-forward (B, T, D) -> (B, T, D), with ``run`` around each of its parts."""
    hidden = run("intermediate_dense", module.intermediate_dense, hidden)
    hidden = module.intermediate_dropout(run("intermediate_act", module.intermediate_act_fn, hidden))
    return module.output_dropout(run("output_dense", module.output_dense, hidden))


def encode(
    model: StockModel,
    waveforms: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    cnn_output: Tensor | None = None,
    hidden: Tensor | None = None,
    frames: Tensor | None = None,
    start_layer: int = 0,
    stop_layer: int | None = None,
    time_mask: Tensor | None = None,
    mask_embedding: Tensor | None = None,
    plan: Plan = BASE,
    gradient_checkpointing: bool = False,
) -> EncoderOutput:
    """Run a stock encoder (``Wav2Vec2Model``, ``HubertModel``, ``WavLMModel``, ...), from any point to any layer.

    Give exactly one input:

    - ``waveforms`` (B, samples) with ``lengths`` (B,) in samples, or None when nothing is padded;
    - ``cnn_output`` (B, T, C), cached, with ``frames`` (B,) or None;
    - ``hidden`` (B, T, D), the cached input of layer ``start_layer``, with ``frames`` (B,) or None.

    Args:
        stop_layer: run layers ``start_layer`` to ``stop_layer - 1``; all by default.
        time_mask: (B, T) boolean; True frames become the model's mask embedding after the projection (SpecAugment,
            masked prediction).
        mask_embedding: (D,) to use in place of the model's own, which a checkpoint need not have learnt.
        plan: what adapters change on the way.
        gradient_checkpointing: recompute layers in the backward pass. Always non-reentrant: the reentrant kind
            exhausts memory on the position bias that WavLM's layers share.

    Raises:
        ConfigError: not exactly one input, or ``start_layer`` / ``stop_layer`` outside the encoder.
    """
    given = [name for name, value in (("waveforms", waveforms), ("cnn_output", cnn_output), ("hidden", hidden))
             if value is not None]  # fmt: skip
    if len(given) != 1:
        raise ConfigError(f"encode: give exactly one of waveforms, cnn_output, hidden; got {given or 'none'}.")
    config, encoder = model.config, model.encoder
    total = len(encoder.layers)
    stop = total if stop_layer is None else stop_layer
    if not 0 <= start_layer <= stop <= total or (hidden is None and start_layer):
        raise ConfigError(
            f"encode: start_layer={start_layer}, stop_layer={stop_layer} do not fit an encoder of {total} layers "
            "(a start_layer above 0 needs the cached input of that layer as hidden)."
        )
    pre_norm = bool(getattr(config, "do_stable_layer_norm", False))

    if waveforms is not None:
        signal = waveforms.unsqueeze(1)
        for index, block in enumerate(model.feature_extractor.conv_layers):
            signal = plan.site("cnn", index, Site(signal, block(signal)))
        cnn_output = signal.transpose(1, 2)
        frames = None if lengths is None else frame_lengths(config, lengths)
    extended = Frames(torch.empty(0), None)
    if hidden is None:
        assert cnn_output is not None
        real_frames = cnn_output.shape[1]
        mask = None if frames is None else frame_mask(frames, real_frames)
        real_mask = mask
        extended = plan.pseudo_frames("cnn_out", cnn_output, mask)
        hidden, _ = _project(model, extended.frames)
        if time_mask is not None:
            position = torch.arange(real_frames, device=hidden.device).expand(len(hidden), -1)
            before = extended.before if isinstance(extended.before, int) else extended.before[:, None]
            where = time_mask.new_zeros(hidden.shape[:2]).scatter_(1, position + before, time_mask)
            embedding = model.masked_spec_embed if mask_embedding is None else mask_embedding
            hidden = torch.where(where.unsqueeze(-1), embedding.to(hidden.dtype), hidden)
        extended = _extend(plan, "proj_out", extended._replace(frames=hidden))
        hidden, mask = extended.frames, extended.mask
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)
        hidden = hidden + encoder.pos_conv_embed(hidden)
        if not pre_norm:
            hidden = encoder.layer_norm(hidden)
        extended = _extend(plan, "layers_in", extended._replace(frames=encoder.dropout(hidden)))
        hidden, mask = extended.frames, extended.mask
    else:
        real_frames = hidden.shape[1]
        real_mask = mask = None if frames is None else frame_mask(frames, real_frames)

    first = encoder.layers[0].attention
    bias = position_bias(first, hidden.shape[1]) if has_position_bias(first) else None
    states = [hidden]
    for index in range(start_layer, stop):
        arguments = (encoder.layers[index], index, hidden, mask, bias, plan, pre_norm)
        if gradient_checkpointing and torch.is_grad_enabled():
            hidden = checkpoint(encode_layer, *arguments, use_reentrant=False)
        else:
            hidden = encode_layer(*arguments)
        states.append(hidden)
    if hidden.shape[1] != real_frames:
        states = [extended.real(state, real_frames) for state in states]
    last = encoder.layer_norm(states[-1]) if pre_norm and stop == total else states[-1]
    return EncoderOutput(last, tuple(states), frames, real_mask, cnn_output)


def _extend(plan: Plan, where: str, found: Frames) -> Frames:
    added = plan.pseudo_frames(where, found.frames, found.mask)
    return added._replace(before=found.before + added.before)


def _project(model: StockModel, features: Tensor) -> tuple[Tensor, Tensor]:
    projected = model.feature_projection(features)
    # HuBERT's projection returns the projected frames alone, the others also the normalised input.
    return projected if isinstance(projected, tuple) else (projected, features)
