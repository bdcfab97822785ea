"""w2v-BERT 2.0 (Seamless Communication et al., 2023, section 3.2.1): log-mel filterbank, conformers, relative keys.

A layer (Gulati et al., "Conformer", Interspeech 2020) is::

    x = x + FF_1(LN x) / 2
    x = x + attention(LN x)            scores: q_i . (k_j + e_{j-i}) / sqrt(d), e learnt for -64 .. 8 frames
    x = x + convolution(x)             causal, 31 frames; padding is silent to it
    y = LN(x + FF_2(LN x) / 2)

Where adapters sit in it. "attention" is the attention sub-layer; "feed_forward" is ``FF_2 / 2``, as it is added: it
comes last, as a transformer's feed-forward does, so serial, parallel and E-adapters stand there, before the residual,
and Pfeiffer adapters read ``x + FF_2(LN x) / 2``. "layer" is ``y``, behind the layer's last LayerNorm: there NVIDIA
NeMo puts its linear adapters (``ConformerLayer.forward``: "post", after ``norm_out``), and so do ConvAdapter and
``Bottleneck(sites=("layer",))`` here. L-adapters read ``y`` of every layer. LoRA and its kin take the attention's
projections and ``FF_2`` by the names that they have in every family; ``FF_1`` is "first_intermediate_dense" and
"first_output_dense". BitFit and LayerNorm tuning take all six LayerNorms of a layer.

What fairseq2's Seamless models call an adaptor in their conformer is no such thing, but M-adaptor's layers behind all
others (Zhao et al., Interspeech 2022: strided convolutions, attention, feed-forward) that shorten what is handed on.
Checkpoints with ``add_adapter=True`` have them, many recognisers among them; here they are part of the frozen base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from speech_adapters.encoders.attention import Relative, self_attention
from speech_adapters.encoders.families.base import Family, Samples, convolved, count_layers
from speech_adapters.encoders.plan import Frames, Plan, Site, frame_mask
from speech_adapters.encoders.stock import StockModel
from speech_adapters.errors import ConfigError

SAMPLE_RATE, WINDOW, HOP, FFT = 16_000, 400, 160, 512
"""Samples per second, under a window of the filterbank, from one window to the next, and in its Fourier transform."""

STACKED = 2
"""Windows in a frame."""

SCALE, PREEMPHASIS, FLOOR = 2.0**15, 0.97, 2.0**-23
"""Kaldi's: 16-bit samples, and the energy below which there is silence."""


class Attention(nn.Module):
    """``Wav2Vec2BertSelfAttention``; the distances stand in those of the layers alone."""

    num_heads: int
    linear_q: nn.Linear
    linear_k: nn.Linear
    linear_v: nn.Linear
    linear_out: nn.Linear
    distance_embedding: nn.Embedding
    left_max_position_embeddings: int
    right_max_position_embeddings: int


class Convolution(nn.Module):
    """``Wav2Vec2BertConvolutionModule``."""

    pointwise_conv1: nn.Conv1d
    glu: nn.GLU
    depthwise_conv: nn.Conv1d
    activation: nn.Module
    pointwise_conv2: nn.Conv1d
    dropout: nn.Dropout


class OutputLayer(nn.Module):
    """``Wav2Vec2BertAdapterLayer``."""

    residual_layer_norm: nn.LayerNorm
    residual_conv: nn.Conv1d
    self_attn_layer_norm: nn.LayerNorm
    self_attn_conv: nn.Conv1d
    self_attn: Attention
    ffn_layer_norm: nn.LayerNorm
    ffn: nn.Module


class OutputAdapter(nn.Module):
    """``Wav2Vec2BertAdapter``; the projection is None where the width stays."""

    proj: nn.Linear | None
    proj_layer_norm: nn.LayerNorm
    layers: Sequence[OutputLayer]


class FeatureProjection(nn.Module):
    """What brings the filterbank to the width of the layers."""

    layer_norm: nn.LayerNorm


class Layers(nn.Module):
    """The layers, and the dropout before them."""

    dropout: nn.Dropout


class Model(StockModel):
    """``Wav2Vec2BertModel``."""

    feature_projection: FeatureProjection
    encoder: Layers
    intermediate_ffn: nn.Module | None
    adapter: OutputAdapter | None


class Wav2Vec2BERT(Family):
    """w2v-BERT 2.0."""

    model_type = "wav2vec2-bert"
    title = "w2v-BERT 2.0"
    layers = "encoder.layers"
    hears_normalized = False
    names: ClassVar[Mapping[str, str]] = {
        "attention": "self_attn",
        **{f"{name}_proj": f"self_attn.linear_{name}" for name in ("q", "k", "v", "out")},
        "layer_norm": "self_attn_layer_norm",
        "dropout": "self_attn_dropout",
        "intermediate_dense": "ffn2.intermediate_dense",
        "intermediate_act": "ffn2.intermediate_act_fn",
        "intermediate_dropout": "ffn2.intermediate_dropout",
        "output_dense": "ffn2.output_dense",
        "output_dropout": "ffn2.output_dropout",
        "final_layer_norm": "ffn2_layer_norm",
        "first_layer_norm": "ffn1_layer_norm",
        "first_intermediate_dense": "ffn1.intermediate_dense",
        "first_intermediate_act": "ffn1.intermediate_act_fn",
        "first_intermediate_dropout": "ffn1.intermediate_dropout",
        "first_output_dense": "ffn1.output_dense",
        "first_output_dropout": "ffn1.output_dropout",
        "convolution": "conv_module",
        "conv_layer_norm": "conv_module.layer_norm",
        "depthwise_layer_norm": "conv_module.depthwise_layer_norm",
        "output_layer_norm": "final_layer_norm",
    }
    norms = (
        "first_layer_norm", "layer_norm", "conv_layer_norm", "depthwise_layer_norm", "final_layer_norm",
        "output_layer_norm",
    )  # fmt: skip
    projections = (*Family.projections, "first_intermediate_dense", "first_output_dense")
    processor = "Wav2Vec2BertProcessor"
    may_lack = ("masked_spec_embed",)  # learnt by masked pre-training alone
    settings = (
        "add_adapter", "hidden_act", "layer_norm_eps", "left_max_position_embeddings", "right_max_position_embeddings",
    )  # fmt: skip
    adapter_settings = ("adapter_act", "adapter_stride")
    feed_forward_scale = 0.5

    def pre_norm(self, config: Any) -> bool:
        return True

    def cnn_width(self, config: Any) -> int:
        return int(config.feature_projection_input_dim)

    def intermediate_size(self, config: Any) -> int:
        return int(config.intermediate_size)

    def layer_norm_eps(self, config: Any) -> float:
        return float(config.layer_norm_eps)

    # ------------------------------------------------------------------ time and front-end

    def frame_lengths(self, config: Any, samples: Samples) -> Samples:
        return windows(samples) // STACKED

    def receptive_field(self, config: Any) -> int:
        return WINDOW + (STACKED - 1) * HOP

    def stride(self, config: Any) -> int:
        return STACKED * HOP

    def front_end_name(self, config: Any) -> str:
        return f"{mel_bands(config)} mel bands"

    def local_front_end(self, config: Any) -> bool:
        """Never: each band is normalised over the utterance."""
        return False

    def blocks(self, model: Model) -> Sequence[nn.Module]:
        return ()  # nothing learnt stands before the projection

    def run_block(self, block: nn.Module, signal: Tensor) -> Tensor:
        raise IndexError("this front-end has no blocks")

    def convolution(self, block: nn.Module) -> nn.Conv1d:
        raise IndexError("this front-end has no blocks")

    def front_end(self, model: Model, waveforms: Tensor, lengths: Tensor | None, plan: Plan) -> Tensor:
        return filterbank(waveforms, mel_bands(model.config), lengths).to(model.dtype)

    def latents(self, model: Model, features: Tensor) -> Tensor:
        return model.feature_projection.layer_norm(features)

    def project(self, model: Model, features: Tensor) -> Tensor:
        return cast(Tensor, model.feature_projection(features)[0])  # and the normalised features

    def add_positions(self, model: Model, extended: Frames, real: int | Tensor) -> Tensor:
        return model.encoder.dropout(extended.frames)  # positions are relative, and stand in the attention

    def mask_embedding(self, model: Model) -> Tensor | None:
        return getattr(model, "masked_spec_embed", None)

    # ------------------------------------------------------------------ layers

    def final_norm(self, model: Model) -> nn.Module | None:
        return None  # each layer ends with one

    def relative(self, layer: nn.Module) -> Relative:
        attention = cast(Attention, self.part(layer, "attention"))
        left, right = attention.left_max_position_embeddings, attention.right_max_position_embeddings

        def bias(query: Tensor) -> Tensor:
            # Of each query with each distance, then spread to the frames at that distance: T x 73 products, not T x T.
            products = query @ attention.distance_embedding.weight.to(query.dtype).T * query.shape[-1] ** -0.5
            place = torch.arange(query.shape[2], device=query.device)
            distance = (place - place.unsqueeze(1)).clamp(-left, right) + left
            return products.gather(-1, distance.expand(*query.shape[:2], -1, -1))

        return bias

    def run_layer(
        self,
        layer: nn.Module,
        index: int,
        hidden: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        plan: Plan,
        pre_norm: bool,
    ) -> Tensor:
        layer, layer_input = plan.layer(index, layer), hidden

        def norm(name: str, frames: Tensor) -> Tensor:
            return plan.norm(index, name, self.part(layer, name))(frames)

        output = norm("first_layer_norm", hidden)
        for name in ("intermediate_dense", "intermediate_act"):
            output = self.run_part(layer, index, f"first_{name}", output, mask, plan)
        output = self._drop(layer, "first_intermediate_dropout", output)
        output = self.run_part(layer, index, "first_output_dense", output, mask, plan)
        hidden = hidden + self._drop(layer, "first_output_dropout", output) * self.feed_forward_scale

        hidden = self.attend(layer, index, hidden, mask, bias, plan, pre_norm)

        convolution = cast(Convolution, self.part(layer, "convolution"))
        output = norm("conv_layer_norm", hidden)
        if mask is not None:
            output = output.masked_fill(~mask.unsqueeze(-1), 0)
        output = convolution.glu(convolution.pointwise_conv1(output.transpose(1, 2)))
        before = convolution.depthwise_conv.kernel_size[0] - 1
        output = convolution.depthwise_conv(nn.functional.pad(output, (before, 0)))
        output = norm("depthwise_layer_norm", output.transpose(1, 2)).transpose(1, 2)
        output = convolution.pointwise_conv2(convolution.activation(output))
        hidden = hidden + convolution.dropout(output).transpose(1, 2)

        hidden = self.feed_forward(layer, index, hidden, mask, plan, pre_norm)
        hidden = norm("output_layer_norm", hidden)
        return plan.site("layer", index, Site(layer_input, hidden, mask))

    # ------------------------------------------------------------------ output adapter

    def output_size(self, config: Any) -> int:
        return int(config.output_hidden_size if config.add_adapter else config.hidden_size)

    def output_lengths(self, config: Any, frames: Samples) -> Samples:
        for _ in range(config.num_adapter_layers if config.add_adapter else 0):
            frames = convolved(frames, config.adapter_kernel_size, config.adapter_stride, config.adapter_stride // 2)
        return frames

    def output_stride(self, config: Any) -> int:
        shortened = config.adapter_stride**config.num_adapter_layers if config.add_adapter else 1
        return int(self.stride(config) * shortened)

    def run_output_adapter(self, model: Model, hidden: Tensor, frames: Tensor | None) -> Tensor:
        if model.intermediate_ffn is not None:
            hidden = hidden + 0.5 * model.intermediate_ffn(hidden)
        if model.adapter is None:
            return hidden
        if model.adapter.proj is not None:
            hidden = model.adapter.proj_layer_norm(model.adapter.proj(hidden))
        for layer in model.adapter.layers:
            hidden, frames = self._run_output_layer(layer, hidden, frames)
        return hidden

    def _run_output_layer(
        self, layer: OutputLayer, hidden: Tensor, frames: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        residual_conv, attention = layer.residual_conv, layer.self_attn

        def shorten(conv: nn.Conv1d, normed: Tensor) -> Tensor:
            # Behind an utterance a convolution reads zeros, as it does without padding.
            if frames is not None:
                normed = normed.masked_fill(~frame_mask(frames, normed.shape[1]).unsqueeze(-1), 0)
            return nn.functional.glu(conv(normed.transpose(1, 2)), dim=1).transpose(1, 2)

        residual = shorten(residual_conv, layer.residual_layer_norm(hidden))
        hidden = shorten(layer.self_attn_conv, layer.self_attn_layer_norm(hidden))
        mask = None
        if frames is not None:
            sizes = (residual_conv.kernel_size[0], residual_conv.stride[0], cast(int, residual_conv.padding[0]))
            frames = convolved(frames, *sizes)
            mask = frame_mask(frames, hidden.shape[1])[:, None, None, :]

        def project(name: str, normed: Tensor) -> Tensor:
            return cast(nn.Linear, getattr(attention, f"linear_{name.removesuffix('_proj')}"))(normed)

        hidden = residual + self_attention(hidden, project, attention.num_heads, mask)
        return hidden + layer.ffn(layer.ffn_layer_norm(hidden)), frames

    # ------------------------------------------------------------------ checkpoints

    def published_normalize(self, config: Any) -> bool | None:
        return False  # of the waveforms: each mel band is brought to zero mean and unit variance

    def preprocessor(self, config: Any, normalize: bool) -> dict[str, Any]:
        return {
            "feature_extractor_type": "SeamlessM4TFeatureExtractor",
            "feature_size": mel_bands(config),
            "num_mel_bins": mel_bands(config),
            "padding_side": "right",
            "padding_value": 1,
            "return_attention_mask": True,
            "sampling_rate": SAMPLE_RATE,
            "stride": STACKED,
        }

    def read_config(self, folder: Path) -> Any:
        """As :meth:`Family.read_config`. Raises ConfigError for positions that w2v-BERT 2.0 has not."""
        config = super().read_config(folder)
        if config.position_embeddings_type != "relative_key":
            raise ConfigError(
                f"position_embeddings_type is {config.position_embeddings_type!r}; only "
                "'relative_key', that of w2v-BERT 2.0, is supported; give a checkpoint that uses it"
            )
        return config

    def fault(self, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        own = {name.removeprefix("wav2vec2_bert."): shape for name, shape in shapes.items()}
        width, heads, bands = config.hidden_size, config.num_attention_heads, config.feature_projection_input_dim
        if type(heads) is not int or heads < 1 or width % heads:
            return f"num_attention_heads is {heads!r}, which does not divide hidden_size={width}"
        if bands % STACKED:
            return f"feature_projection_input_dim is {bands!r}; it holds {STACKED} windows of the filterbank"
        distances = config.left_max_position_embeddings + config.right_max_position_embeddings + 1
        first = "encoder.layers.0"
        expected = {
            "hidden_size and feature_projection_input_dim": ("feature_projection.projection.weight", (width, bands)),
            "intermediate_size": (f"{first}.ffn1.intermediate_dense.weight", (config.intermediate_size, width)),
            "left_max_position_embeddings and right_max_position_embeddings":
                (f"{first}.self_attn.distance_embedding.weight", (distances, width // heads)),
            "conv_depthwise_kernel_size":
                (f"{first}.conv_module.depthwise_conv.weight", (width, 1, config.conv_depthwise_kernel_size)),
        }  # fmt: skip
        if config.add_adapter:
            size, kernel = config.output_hidden_size, config.adapter_kernel_size
            expected["add_adapter, output_hidden_size and adapter_kernel_size"] = (
                "adapter.layers.0.residual_conv.weight", (2 * size, size, kernel)
            )  # fmt: skip
        for keys, (name, shape) in expected.items():
            if own.get(name) != shape:
                return f"by {keys} {name} is {shape}, and the weights have {own.get(name)}"
        counted = {"num_hidden_layers": "encoder.layers.*.", "num_adapter_layers": "adapter.layers.*."}
        for key, pattern in counted.items():
            asked = getattr(config, key) if key == "num_hidden_layers" or config.add_adapter else 0
            if (stored := count_layers(own, pattern)) != asked:
                return f"{key} is {asked!r}, and the weights have {stored}"
        return None


def mel_bands(config: Any) -> int:
    """Bands of the filterbank: 80 as published."""
    return int(config.feature_projection_input_dim) // STACKED


def windows(samples: Samples) -> Samples:
    """Windows of the filterbank in ``samples``; a number or a tensor (B,)."""
    return (samples - WINDOW) // HOP + 1


def filterbank(waveforms: Tensor, mels: int, lengths: Tensor | None = None) -> Tensor:
    """Waveforms (B, samples) at 16 kHz -> frames (B, T, 2 * mels) of two windows each, 50 frames a second.

    What ``SeamlessM4TFeatureExtractor`` computes: Kaldi's log-mel filterbank, each band at zero mean and unit variance
    over the utterance. ``lengths`` (B,) in samples; frames behind an utterance mean nothing. In float64 until the end,
    as there; gradients pass.
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        signal = waveforms.double().mul(SCALE).unfold(1, WINDOW, HOP)
        signal = signal - signal.mean(-1, keepdim=True)
        signal = signal - PREEMPHASIS * torch.cat([signal[..., :1], signal[..., :-1]], dim=-1)
        window, filters = (table.to(signal.device) for table in tables(mels))
        power = torch.fft.rfft(signal * window, FFT).abs().square()
        bands = (power @ filters).clamp_min(FLOOR).log()
        total = bands.shape[1]
        if lengths is None:
            mean, deviation = bands.mean(1, keepdim=True), bands.var(1, keepdim=True)
        else:
            count = windows(lengths).view(-1, 1, 1)
            real = (torch.arange(total, device=bands.device).view(1, -1, 1) < count).to(bands)
            mean = (bands * real).sum(1, keepdim=True) / count
            deviation = ((bands - mean) * real).square().sum(1, keepdim=True) / (count - 1)
        bands = (bands - mean) / (deviation + 1e-7).sqrt()
        frames = total // STACKED
        stacked = bands[:, : frames * STACKED].reshape(bands.shape[0], frames, STACKED * mels)
        return stacked if waveforms.dtype == torch.float64 else stacked.float()


def tables(mels: int) -> tuple[Tensor, Tensor]:
    """Povey's window (400) and Kaldi's triangles (257, mels) from 20 Hz to 8 kHz, in float64."""
    return _tables(mels)


# torch.compile cannot look into NumPy. This is all that torch.compiler.assume_constant_result does, which imports the
# compiler first: half of the seconds that every command takes to start.
tables._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _tables(mels: int) -> tuple[Tensor, Tensor]:
    from transformers.audio_utils import mel_filter_bank, window_function

    filters = mel_filter_bank(
        FFT // 2 + 1, mels, 20, SAMPLE_RATE // 2, SAMPLE_RATE, norm=None, mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )  # fmt: skip
    return torch.from_numpy(window_function(WINDOW, "povey", periodic=False)).double(), torch.from_numpy(filters)
