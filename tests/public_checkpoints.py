"""Public checkpoints in the format that they are published in, small and with random weights.

Each repeats the settings of the real ``config.json``, its files and the names and kinds of its weights; only widths,
depths and vocabularies are smaller. ``python tests/public_checkpoints.py FOLDER`` writes all of them;
``docs/generate.py`` writes docs/checkpoints.md from here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CNN = {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2], "num_feat_extract_layers": 7}
BASE = CNN | {
    "conv_bias": False, "feat_extract_norm": "group", "do_stable_layer_norm": False, "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16, "hidden_act": "gelu", "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-05, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LARGE = BASE | {"conv_bias": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
#: In place of 512 channels, 768 to 1280 wide, 12 to 48 layers.
SMALL = {
    "conv_dim": [16] * 7, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64
}  # fmt: skip

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
LOWER = ["[PAD]", "[UNK]", "|", *"abcdefghijklmnopqrstuvwxyz'"]
TOKENIZER = {
    "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "do_lower_case": False,
    "tokenizer_class": "Wav2Vec2CTCTokenizer",
}  # fmt: skip
LANGUAGES = {
    "eng": ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'-"],
    "fra": ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'àâçéèêëîïôûùüœ"],
    "uzb-script_cyrillic": ["<pad>", "<s>", "</s>", "<unk>", "|", *"абвгдежзийклмнопрстуфхцчшъэюяёўқғҳ"],
}


def ids(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def waveform_features(normalize: bool, mask: bool) -> dict[str, Any]:
    return {
        "do_normalize": normalize, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
        "padding_side": "right", "padding_value": 0.0, "return_attention_mask": mask, "sampling_rate": 16000,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PublicCheckpoint:
    """A checkpoint: ``architecture`` is its class, ``config`` what its ``config.json`` says beside the small sizes.

    Attributes:
        weights: the file that holds them; ``shards`` splits it.
        old_names: weight norm as ``weight_g`` and ``weight_v``, as saved by torch before 2.1.
        lacks: tensors that it does not have.
        files: further JSON files by name.
        target_lang: to load it with.
        special: what is peculiar about it, for the table.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    weights: str = "pytorch_model.bin"
    shards: bool = False
    old_names: bool = True
    lacks: tuple[str, ...] = ()
    files: dict[str, Any] = field(default_factory=dict)
    target_lang: str | None = None
    special: str = ""

    @property
    def folder(self) -> str:
        """A name for its folder."""
        return self.name.replace("/", "--") + (f"--{self.target_lang}" if self.target_lang else "")

    @property
    def weight_norm(self) -> bool:
        """Whether its weight norm has the old names."""
        return self.old_names and self.config["model_type"] in ("wav2vec2", "hubert", "wavlm")

    @property
    def recognises(self) -> bool:
        """Whether it brings a CTC head along."""
        return self.architecture.endswith("ForCTC")


CHECKPOINTS = (
    PublicCheckpoint(
        name="facebook/wav2vec2-base-960h",
        architecture="Wav2Vec2ForCTC",
        config={"model_type": "wav2vec2", **BASE, **SMALL, "vocab_size": 32, "mask_time_prob": 0.05},
        weights="model.safetensors",
        lacks=("masked_spec_embed",),
        files={
            "preprocessor_config.json": waveform_features(True, False),
            "vocab.json": ids(LETTERS),
            "tokenizer_config.json": TOKENIZER,
        },
        special="no `masked_spec_embed`, which transformers draws at random: the identity holds no random tensor",
    ),
    PublicCheckpoint(
        name="facebook/wav2vec2-large-960h-lv60-self",
        architecture="Wav2Vec2ForCTC",
        config={"model_type": "wav2vec2", **LARGE, **SMALL, "vocab_size": 32, "mask_time_prob": 0.05},
        files={
            "preprocessor_config.json": waveform_features(True, True),
            "vocab.json": ids(LETTERS),
            "tokenizer_config.json": TOKENIZER,
        },
        special="pre-norm layers, layer-norm CNN",
    ),
    PublicCheckpoint(
        name="facebook/hubert-large-ls960-ft",
        architecture="HubertForCTC",
        config={"model_type": "hubert", **LARGE, **SMALL, "vocab_size": 32, "mask_time_prob": 0.05},
        files={
            "preprocessor_config.json": waveform_features(True, True),
            "vocab.json": ids(LETTERS),
            "tokenizer_config.json": TOKENIZER,
        },
        special="pre-norm layers, layer-norm CNN",
    ),
    PublicCheckpoint(
        name="microsoft/wavlm-base-plus",
        architecture="WavLMModel",
        config={
            "model_type": "wavlm",
            **BASE,
            **SMALL,
            "num_buckets": 320,
            "max_bucket_distance": 800,
            "mask_time_prob": 0.05,
        },
        files={"preprocessor_config.json": waveform_features(False, True)},
        special="gated relative position bias; waveforms as they are",
    ),
    PublicCheckpoint(
        name="microsoft/wavlm-large",
        architecture="WavLMModel",
        config={
            "model_type": "wavlm",
            **LARGE,
            **SMALL,
            "conv_bias": False,
            "num_buckets": 320,
            "max_bucket_distance": 800,
            "mask_time_prob": 0.075,
        },
        files={"preprocessor_config.json": waveform_features(True, True)},
        special="pre-norm layers, layer-norm CNN without biases",
    ),
    PublicCheckpoint(
        name="utter-project/mHuBERT-147",
        architecture="HubertModel",
        config={"model_type": "hubert", **BASE, **SMALL, "feat_proj_layer_norm": True, "mask_time_prob": 0.05},
        weights="model.safetensors",
        old_names=False,
        files={"preprocessor_config.json": waveform_features(True, False)},
        special="weight norm under its new names",
    ),
    PublicCheckpoint(
        name="slprl/mhubert-base-25hz",
        architecture="HubertModel",
        config={
            "model_type": "hubert",
            **BASE,
            **SMALL,
            "conv_dim": [16] * 8,
            "conv_kernel": [10, 3, 3, 3, 3, 2, 2, 2],
            "conv_stride": [5, 2, 2, 2, 2, 2, 2, 2],
            "num_feat_extract_layers": 8,
            "feat_extract_norm": "layer",
            "conv_pos_batch_norm": True,
            "mask_time_prob": 0.05,
        },
        weights="model.safetensors",
        old_names=False,
        files={"preprocessor_config.json": waveform_features(True, True)},
        special="`conv_pos_batch_norm`: a padded batch gives what each utterance gives alone; 40 ms a frame",
    ),
    PublicCheckpoint(
        name="facebook/mms-1b-all",
        architecture="Wav2Vec2ForCTC",
        config={"model_type": "wav2vec2", **LARGE, **SMALL, "adapter_attn_dim": 16, "vocab_size": 33},
        weights="model.safetensors",
        files={
            "preprocessor_config.json": waveform_features(True, True),
            "vocab.json": {language: ids(tokens) for language, tokens in LANGUAGES.items()},
            "tokenizer_config.json": {**TOKENIZER, "target_lang": "eng", "word_delimiter_token": "|"},
        },
        special="a vocabulary per language; the weights' own language",
    ),
    PublicCheckpoint(
        name="facebook/mms-1b-all",
        architecture="Wav2Vec2ForCTC",
        config={"model_type": "wav2vec2", **LARGE, **SMALL, "adapter_attn_dim": 16, "vocab_size": 33},
        weights="model.safetensors",
        files={
            "preprocessor_config.json": waveform_features(True, True),
            "vocab.json": {language: ids(tokens) for language, tokens in LANGUAGES.items()},
            "tokenizer_config.json": {**TOKENIZER, "target_lang": "eng", "word_delimiter_token": "|"},
        },
        target_lang="fra",
        special='`target_lang="fra"`: adapters, head and vocabulary of that language',
    ),
    PublicCheckpoint(
        name="facebook/data2vec-audio-base-960h",
        architecture="Data2VecAudioForCTC",
        config={
            "model_type": "data2vec-audio",
            **BASE,
            **SMALL,
            "feat_extract_norm": "layer",
            "conv_pos_kernel_size": 19,
            "num_conv_pos_embeddings": 5,
            "vocab_size": 32,
            "mask_time_prob": 0.05,
        },
        files={
            "preprocessor_config.json": waveform_features(True, True),
            "vocab.json": ids(LETTERS),
            "tokenizer_config.json": TOKENIZER,
        },
        special="five positional convolutions, post-norm layers behind a layer-norm CNN",
    ),
    PublicCheckpoint(
        name="openai/whisper-base",
        architecture="WhisperForConditionalGeneration",
        config={
            "model_type": "whisper",
            "num_mel_bins": 80,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": 1500,
            "max_target_positions": 448,
            "activation_function": "gelu",
            "vocab_size": 64,
            "pad_token_id": 63,
            "bos_token_id": 63,
            "eos_token_id": 63,
            "decoder_start_token_id": 62,
            "begin_suppress_tokens": [10, 63],
            "suppress_tokens": [1, 2],
            "scale_embedding": False,
        },
        weights="model.safetensors",
        files={
            "preprocessor_config.json": {
                "chunk_length": 30,
                "feature_extractor_type": "WhisperFeatureExtractor",
                "feature_size": 80,
                "hop_length": 160,
                "n_fft": 400,
                "n_samples": 480000,
                "nb_max_frames": 3000,
                "padding_side": "right",
                "padding_value": 0.0,
                "processor_class": "WhisperProcessor",
                "return_attention_mask": False,
                "sampling_rate": 16000,
            },
        },
        special="the encoder of an encoder-decoder; no `do_normalize`",
    ),
    PublicCheckpoint(
        name="facebook/w2v-bert-2.0",
        architecture="Wav2Vec2BertModel",
        config={
            "model_type": "wav2vec2-bert",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "feature_projection_input_dim": 160,
            "hidden_act": "swish",
            "position_embeddings_type": "relative_key",
            "left_max_position_embeddings": 64,
            "right_max_position_embeddings": 8,
            "conv_depthwise_kernel_size": 31,
            "conformer_conv_dropout": 0.1,
            "add_adapter": False,
            "layerdrop": 0.1,
            "layer_norm_eps": 1e-05,
            "mask_time_prob": 0.05,
        },
        weights="model.safetensors",
        files={
            "preprocessor_config.json": {
                "feature_extractor_type": "SeamlessM4TFeatureExtractor",
                "feature_size": 80,
                "num_mel_bins": 80,
                "padding_side": "right",
                "padding_value": 1,
                "processor_class": "Wav2Vec2BertProcessor",
                "return_attention_mask": True,
                "sampling_rate": 16000,
                "stride": 2,
            },
        },
        special="filterbank of 160, conformer layers, relative keys; no `do_normalize`",
    ),
)


def build(checkpoint: PublicCheckpoint, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint's files; returns its folder."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**checkpoint.config)
    model = getattr(transformers, checkpoint.architecture)(config)
    tensors = _unlike_fresh({name: t for name, t in model.state_dict().items() if name != "proj_out.weight"})
    tensors = {name: t for name, t in tensors.items() if not name.endswith(checkpoint.lacks or ("nothing",))}
    if checkpoint.old_names:
        pairs = (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v"))
        for new, old in pairs:
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    _save_weights(tensors, folder, checkpoint.weights, checkpoint.shards)
    if checkpoint.config.get("adapter_attn_dim"):
        for language, tokens in LANGUAGES.items():
            _save_language(tensors, folder, language, len(tokens))
    files = {"config.json": {**checkpoint.config, "architectures": [checkpoint.architecture]}, **checkpoint.files}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder


def _unlike_fresh(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights whose norms, biases and running figures are none of a fresh model's ones and zeros."""
    return {
        name: tensor + 0.1 * torch.randn_like(tensor).abs() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _save_weights(tensors: dict[str, torch.Tensor], folder: Path, name: str, shards: bool) -> None:
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)] if shards else [tensors]
    stem, suffix = name.split(".")
    files = [f"{stem}-{i + 1:05}-of-00002.{suffix}" for i in range(2)] if shards else [name]
    for file, part in zip(files, halves, strict=True):
        save_file(part, folder / file)
    if shards:
        places = {key: file for file, part in zip(files, halves, strict=True) for key in part}
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / f"{name}.index.json").write_text(json.dumps(index), encoding="utf-8")


def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """As ``transformers`` does, by the kind that the name says."""
    from safetensors import torch as safetensors

    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        safetensors.save_file(tensors, path, {"format": "pt"})


def _save_language(tensors: Mapping[str, torch.Tensor], folder: Path, language: str, symbols: int) -> None:
    generator = torch.Generator().manual_seed(sum(map(ord, language)))
    own = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
        if ".adapter_layer." in name
    }
    width = tensors["lm_head.weight"].shape[1]
    own |= {
        "lm_head.weight": torch.randn(symbols, width, generator=generator),
        "lm_head.bias": torch.randn(symbols, generator=generator),
    }
    save_file(own, folder / f"adapter.{language}.{'bin' if language.startswith('uzb') else 'safetensors'}")


if __name__ == "__main__":
    for each in CHECKPOINTS:
        print(build(each, Path(sys.argv[1]) / each.folder))
