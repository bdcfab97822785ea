"""Small random encoders of every family, in both layer styles, built from stock configurations."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModel

from speech_adapters.encoders import Encoder

FAMILIES = ("wav2vec2", "hubert", "wavlm")
STYLES = ("post-norm", "pre-norm")


def stock_model(family: str, style: str = "post-norm", layers: int = 3, width: int = 64, **changes):
    """A stock model: post-norm with a group-norm CNN (Base) or pre-norm with a layer-norm CNN (Large)."""
    pre_norm = style == "pre-norm"
    settings = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "conv_dim": (32, 32, 32),
        "conv_kernel": (10, 8, 4),
        "conv_stride": (10, 8, 4),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "do_stable_layer_norm": pre_norm,
        "feat_extract_norm": "layer" if pre_norm else "group",
        "conv_bias": pre_norm,
        "mask_time_prob": 0.05,
        **changes,
    }
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **settings))
    if family == "wavlm":  # a fresh table is small noise: make the position bias count
        torch.nn.init.normal_(model.encoder.layers[0].attention.rel_attn_embed.weight)
    return model.eval()


def small_encoder(family: str = "wavlm", style: str = "pre-norm", **changes) -> Encoder:
    return Encoder(stock_model(family, style, **changes), f"small-{family}-{style}")
