"""What the stock modules of ``transformers`` are called inside, alike in all families.

These classes are never built: they are the view of ``Wav2Vec2Model``, ``HubertModel``, ``WavLMModel`` and their
relatives that this package works on, and hold no more than it uses. An Encoder casts its model to :class:`StockModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn


class StockConfig(Protocol):
    """A checkpoint's ``config.json``."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    layer_norm_eps: float
    conv_dim: Sequence[int]
    conv_kernel: Sequence[int]
    conv_stride: Sequence[int]
    num_codevector_groups: int
    num_codevectors_per_group: int


class StockAttention(nn.Module):
    """The attention of a layer; the last three stand in WavLM alone, ``compute_bias`` in its first layer."""

    num_heads: int
    dropout: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear
    gru_rel_pos_linear: nn.Linear
    gru_rel_pos_const: Tensor
    compute_bias: Callable[[int, int], Tensor]


class StockFeedForward(nn.Module):
    """The feed-forward of a layer."""

    intermediate_dense: nn.Linear
    intermediate_act_fn: nn.Module
    intermediate_dropout: nn.Dropout
    output_dense: nn.Linear
    output_dropout: nn.Dropout


class StockLayer(nn.Module):
    """One transformer layer."""

    attention: StockAttention
    layer_norm: nn.LayerNorm
    feed_forward: StockFeedForward
    final_layer_norm: nn.LayerNorm
    dropout: nn.Dropout


class StockLayers(nn.Module):
    """What stands between the projection and the output: positions, layers and their common LayerNorm."""

    pos_conv_embed: nn.Module
    layer_norm: nn.LayerNorm
    dropout: nn.Dropout
    layers: Sequence[StockLayer]


class StockConv(nn.Conv1d):
    """A convolution of the feature extractor; its bias stands where ``conv_bias`` is set."""

    bias: Tensor


class StockConvLayer(nn.Module):
    """One block of the convolutional feature extractor; each has its norm where ``feat_extract_norm`` is "layer"."""

    conv: StockConv
    layer_norm: nn.LayerNorm


class StockFeatureProjection(nn.Module):
    """What brings the CNN's frames to the width of the layers; some HuBERT models have no norm here."""

    layer_norm: nn.LayerNorm
    projection: nn.Linear


class StockFeatureExtractor(nn.Module):
    """The convolutional feature extractor."""

    conv_layers: Sequence[StockConvLayer]


class StockModel(nn.Module):
    """A bare encoder, such as ``WavLMModel``; ``peft_config`` is there while adapters of ``peft`` are in it."""

    config: StockConfig
    dtype: torch.dtype
    feature_extractor: StockFeatureExtractor
    feature_projection: StockFeatureProjection
    encoder: StockLayers
    masked_spec_embed: Tensor
    peft_config: dict[str, object]
    save_pretrained: Callable[[Path], None]
