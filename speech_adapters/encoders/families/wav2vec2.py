"""wav2vec 2.0 (Baevski et al., NeurIPS 2020): a CNN over the waveform, convolutional positions, both layer styles.

HuBERT, WavLM, data2vec-audio and UniSpeech-SAT are built of the same parts; their files say what differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from speech_adapters.encoders.families.base import Family, Samples, convolved, count_layers
from speech_adapters.encoders.plan import Frames, Plan, Site, frame_mask
from speech_adapters.encoders.stock import StockModel


class Conv(nn.Conv1d):
    """A convolution of the feature extractor; its bias stands where ``conv_bias`` is set."""

    bias: Tensor


class ConvBlock(nn.Module):
    """One block of the convolutional feature extractor; each has its norm where ``feat_extract_norm`` is "layer"."""

    conv: Conv
    layer_norm: nn.LayerNorm


class FeatureProjection(nn.Module):
    """What brings the CNN's frames to the width of the layers; some HuBERT models have no norm here."""

    layer_norm: nn.LayerNorm
    projection: nn.Linear


class FeatureExtractor(nn.Module):
    """The convolutional feature extractor."""

    conv_layers: Sequence[ConvBlock]


class Layers(nn.Module):
    """What stands between the projection and the output: positions, layers and their common LayerNorm."""

    pos_conv_embed: nn.Module
    layer_norm: nn.LayerNorm
    dropout: nn.Dropout
    layers: Sequence[nn.Module]


class Model(StockModel):
    """``Wav2Vec2Model`` and its relatives."""

    feature_extractor: FeatureExtractor
    feature_projection: FeatureProjection
    encoder: Layers
    masked_spec_embed: Tensor


def receptive_field(config: Any) -> int:
    """Samples that one frame covers, of ``conv_kernel`` and ``conv_stride``."""
    field, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * step
        step *= stride
    return field


class Wav2Vec2(Family):
    """wav2vec 2.0."""

    model_type = "wav2vec2"
    title = "wav2vec 2.0"
    layers = "encoder.layers"
    names: ClassVar[Mapping[str, str]] = {
        "attention": "attention",
        **{name: f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
        "layer_norm": "layer_norm",
        "dropout": "dropout",
        "intermediate_dense": "feed_forward.intermediate_dense",
        "intermediate_act": "feed_forward.intermediate_act_fn",
        "intermediate_dropout": "feed_forward.intermediate_dropout",
        "output_dense": "feed_forward.output_dense",
        "output_dropout": "feed_forward.output_dropout",
        "final_layer_norm": "final_layer_norm",
    }
    may_lack = ("masked_spec_embed",)  # learnt by masked pre-training alone
    settings: ClassVar[tuple[str, ...]] = (
        "add_adapter", "conv_stride", "do_stable_layer_norm", "feat_extract_activation", "feat_extract_norm",
        "hidden_act", "layer_norm_eps", "num_attention_heads",
    )  # fmt: skip
    adapter_settings = ("adapter_stride",)
    #: ``do_normalize`` by the CNN's norm ("group": Base, "layer": Large), as the published preprocessor files have it:
    #: facebook/wav2vec2-large and wav2vec2-base-960h for "group", the XLSR and XLS-R models for "layer".
    normalize: ClassVar[Mapping[str, bool]] = {"group": True, "layer": True}

    def pre_norm(self, config: Any) -> bool:
        return bool(getattr(config, "do_stable_layer_norm", False))

    def group_norm(self, config: Any) -> bool:
        return _cnn_norm(config) == "group"

    def cnn_width(self, config: Any) -> int:
        return int(config.conv_dim[-1])

    def intermediate_size(self, config: Any) -> int:
        return int(config.intermediate_size)

    def layer_norm_eps(self, config: Any) -> float:
        return float(config.layer_norm_eps)

    def frame_lengths(self, config: Any, samples: Samples) -> Samples:
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def receptive_field(self, config: Any) -> int:
        return receptive_field(config)

    def stride(self, config: Any) -> int:
        return math.prod(config.conv_stride)

    def blocks(self, model: Model) -> Sequence[ConvBlock]:
        return model.feature_extractor.conv_layers

    def run_block(self, block: nn.Module, signal: Tensor) -> Tensor:
        return cast(Tensor, block(signal))

    def convolution(self, block: nn.Module) -> nn.Conv1d:
        return cast(ConvBlock, block).conv

    def front_end(self, model: Model, waveforms: Tensor, lengths: Tensor | None, plan: Plan) -> Tensor:
        signal = waveforms.to(model.dtype).unsqueeze(1)
        for index, block in enumerate(self.blocks(model)):
            signal = plan.site("cnn", index, Site(signal, block(signal)))
        return signal.transpose(1, 2)

    def latents(self, model: Model, features: Tensor) -> Tensor:
        norm = getattr(model.feature_projection, "layer_norm", None)
        return features if norm is None else norm(features)

    def project(self, model: Model, features: Tensor) -> Tensor:
        return cast(Tensor, model.feature_projection(features)[0])  # and the normalised features

    def add_positions(self, model: Model, extended: Frames, real: int | Tensor) -> Tensor:
        encoder, hidden = model.encoder, extended.frames
        hidden = hidden + self.positions(model, hidden, extended.mask)
        if not self.pre_norm(model.config):
            hidden = encoder.layer_norm(hidden)
        return encoder.dropout(hidden)

    def positions(self, model: Model, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """What the positional convolution makes of frames (B, T, D), of which those outside the mask are zero."""
        return cast(Tensor, model.encoder.pos_conv_embed(hidden))

    def mask_embedding(self, model: Model) -> Tensor | None:
        return getattr(model, "masked_spec_embed", None)

    def final_norm(self, model: Model) -> nn.Module | None:
        return model.encoder.layer_norm if self.pre_norm(model.config) else None

    def output_size(self, config: Any) -> int:
        return int(config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size)

    def output_lengths(self, config: Any, frames: Samples) -> Samples:
        for _ in range(config.num_adapter_layers if getattr(config, "add_adapter", False) else 0):
            frames = convolved(frames, config.adapter_kernel_size, config.adapter_stride, padding=1)
        return frames

    def output_stride(self, config: Any) -> int:
        shortened = config.adapter_stride**config.num_adapter_layers if getattr(config, "add_adapter", False) else 1
        return int(self.stride(config) * shortened)

    def run_output_adapter(self, model: Model, hidden: Tensor, frames: Tensor | None) -> Tensor:
        adapter = getattr(model, "adapter", None)
        if adapter is None:
            return hidden
        if adapter.proj is not None:
            hidden = adapter.proj_layer_norm(adapter.proj(hidden))
        for layer in adapter.layers:
            if frames is not None:  # behind an utterance a convolution reads zeros, as it does without padding
                hidden = hidden.masked_fill(~frame_mask(frames, hidden.shape[1]).unsqueeze(-1), 0)
                frames = convolved(frames, layer.conv.kernel_size[0], layer.conv.stride[0], layer.conv.padding[0])
            hidden = layer(hidden.transpose(1, 2)).transpose(1, 2)
        return hidden

    def after_layer(self, layer: nn.Module, hidden: Tensor, pre_norm: bool) -> Tensor:
        language_adapter = getattr(layer, "adapter_layer", None)  # of MMS checkpoints; part of the base here
        return hidden + language_adapter(hidden) if pre_norm and language_adapter is not None else hidden

    def published_normalize(self, config: Any) -> bool | None:
        return self.normalize.get(_cnn_norm(config))

    def preprocessor(self, config: Any, normalize: bool) -> dict[str, Any]:
        return {
            "do_normalize": normalize,
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": not self.group_norm(config),
            "sampling_rate": 16_000,
        }

    def fault(self, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        sizes = [list(getattr(config, key)) for key in ("conv_dim", "conv_kernel", "conv_stride")]
        if len({len(numbers) for numbers in sizes}) > 1 or not sizes[0]:
            return "conv_dim, conv_kernel and conv_stride must have one number for each layer of the CNN"
        if not all(type(number) is int and number >= 1 for numbers in sizes for number in numbers):
            return "conv_dim, conv_kernel and conv_stride must be whole numbers of at least 1"
        if any(stride > kernel for kernel, stride in zip(sizes[1], sizes[2], strict=True)):
            return "a conv_stride above its conv_kernel would skip samples"
        counted = {
            "num_hidden_layers": "encoder.layers.*.",
            "num_feat_extract_layers": "feature_extractor.conv_layers.*.",
        }
        if getattr(config, "add_adapter", False):
            counted["num_adapter_layers"] = "adapter.layers.*."
        for key, pattern in counted.items():
            if (stored := count_layers(shapes, pattern)) != getattr(config, key):
                return f"{key} is {getattr(config, key)!r}, and the weights have {stored}"
        largest = max((size for shape in shapes.values() for size in shape), default=0)
        for key in ("hidden_size", "intermediate_size", "num_conv_pos_embeddings", "output_hidden_size"):
            size = getattr(config, key, None)
            if size is not None and not (type(size) is int and 1 <= size <= largest):
                return f"{key} is {size!r}, and no tensor is larger than {largest}"
        if not 0 < config.layer_norm_eps < 1:
            return f"layer_norm_eps is {config.layer_norm_eps!r}; it is a small number above 0"
        for index, (out, kernel) in enumerate(zip(sizes[0], sizes[1], strict=True)):
            for key, shape in shapes.items():
                if key.endswith(f"feature_extractor.conv_layers.{index}.conv.weight") and shape[::2] != (out, kernel):
                    return f"layer {index} of the CNN is {out} x {kernel} there, and {shape[0]} x {shape[-1]} here"
        return None

    # ------------------------------------------------------------------ for training one from scratch

    #: The front-end and the projection, by their names in the stock model.
    front_parts: ClassVar[tuple[str, ...]] = ("feature_extractor", "feature_projection")

    def projection(self, model: Model) -> nn.Linear:
        """The linear map of the feature projection."""
        return model.feature_projection.projection

    @torch.no_grad()
    def quieten_positions(self, model: Model, scale: float) -> None:
        """Scale fresh random positions, so that they do not drown what the front-end says."""
        model.get_parameter("encoder.pos_conv_embed.conv.parametrizations.weight.original0").mul_(scale)


def _cnn_norm(config: Any) -> str:
    return getattr(config, "feat_extract_norm", "layer")
