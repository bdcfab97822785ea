"""Small random encoders of every family, in both layer styles, built from stock configurations."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModel, Wav2Vec2BertConfig, Wav2Vec2BertModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speech_adapters.encoders import Encoder

FAMILIES = ("wav2vec2", "hubert", "wavlm")
STYLES = ("post-norm", "pre-norm")
#: Families with one style of layers, and no CNN over the waveform.
OTHERS = (("whisper", "pre-norm"), ("wav2vec2-bert", "pre-norm"))


def stock_model(family: str, style: str = "post-norm", layers: int = 3, width: int = 64, **changes):
    """A stock model: post-norm with a group-norm CNN (Base) or pre-norm with a layer-norm CNN (Large)."""
    if family == "whisper":
        return whisper_model(layers, width)
    if family == "wav2vec2-bert":
        return conformer_model(layers, width)
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


def whisper_model(layers: int = 2, width: int = 64, positions: int = 150):
    """A stock ``WhisperEncoder`` that hears up to ``positions`` frames of 20 ms."""
    config = WhisperConfig(
        d_model=width, encoder_layers=layers, encoder_attention_heads=4, encoder_ffn_dim=2 * width, num_mel_bins=16,
        max_source_positions=positions, decoder_layers=1, decoder_ffn_dim=8, decoder_attention_heads=1, vocab_size=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None,
        init_std=0.07,
    )  # fmt: skip
    torch.manual_seed(0)
    return WhisperEncoder(config).eval()


def conformer_model(layers: int = 2, width: int = 64, **changes):
    """A stock ``Wav2Vec2BertModel`` whose positions count, beyond the reach of its relative keys too."""
    settings = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 2 * width,
        "feature_projection_input_dim": 32, "left_max_position_embeddings": 8, "right_max_position_embeddings": 3,
        "conv_depthwise_kernel_size": 7, "vocab_size": 32, "mask_time_prob": 0.05,
        "conformer_conv_dropout": 0.02,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**settings | changes))
    for layer in model.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.distance_embedding.weight, std=0.5)
    return model.eval()


def small_encoder(family: str = "wavlm", style: str = "pre-norm", **changes) -> Encoder:
    model = stock_model(family, style, **changes)
    return Encoder(model, f"small-{family}-{style}", normalize=(family, style) not in OTHERS)
