"""A student for :class:`WhisperTeacher`: a stock raw-waveform encoder that starts from the teacher's layers.

Whisper's encoder layers equal the pre-norm (``do_stable_layer_norm``) layers of wav2vec 2.0, HuBERT and WavLM, but for
the key bias, which Whisper lacks (0 here) and WavLM's relative position bias (its table is 0 here). What a student has
of its own are the convolutional front-end, the projection and the convolutional positions.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.encoders.families import family_of
from speech_adapters.encoders.families.wav2vec2 import Model, Wav2Vec2
from speech_adapters.errors import CheckpointError
from speech_adapters.files import new_folder, write_text
from speech_adapters.objectives.whisper_teacher import WhisperTeacher

#: The parts of a layer with weights.
LEARNT = (
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "layer_norm",
    "intermediate_dense",
    "output_dense",
    "final_layer_norm",
)

POSITION_START = 0.1
"""Scale of the fresh positional convolution: at full scale its noise is five times what the front-end says."""


def whisper_student(
    teacher: WhisperTeacher,
    family: str = "wav2vec2",
    *,
    conv_dim: Sequence[int] = (320, 384, 384, 384),
    conv_kernel: Sequence[int] = (400, 1, 3, 3),
    conv_stride: Sequence[int] = (160, 1, 1, 2),
    position_kernel: int = 64,
    position_groups: int = 16,
) -> Model:
    """A stock model of ``family`` ("wav2vec2", "hubert", "wavlm"): the teacher's layers behind a CNN of its own.

    The first filters are mel-spaced (:func:`mel_gabor`), WavLM's relative position bias is zero, the convolutional
    positions start small, the rest is random. The default front-end has one layer for each step of the teacher's:
    windows of 25 ms every 10 ms (80 bands in 4 phases), a layer that can join the phases and compress, and two
    convolutions of the teacher's shape. Trained alone for ten hours it leaves 14 % of the variance of the teacher's
    layer 0; Base's seven convolutions begin at 0.3 ms and cost far more. With Whisper tiny's layers it makes 9.0 M
    parameters in all.
    """
    from transformers import AutoConfig, AutoModel

    whisper = teacher.encoder.config
    settings = {
        "hidden_size": whisper.d_model,
        "num_hidden_layers": whisper.encoder_layers,
        "num_attention_heads": whisper.encoder_attention_heads,
        "intermediate_size": whisper.encoder_ffn_dim,
        "do_stable_layer_norm": True,  # pre-norm, as Whisper
        "feat_extract_norm": "layer",  # each frame by itself: padding and level change nothing
        "conv_dim": conv_dim,
        "conv_kernel": conv_kernel,
        "conv_stride": conv_stride,
        "num_feat_extract_layers": len(conv_dim),
        "conv_bias": True,
        "num_conv_pos_embeddings": position_kernel,
        "num_conv_pos_embedding_groups": position_groups,
        # Distillation needs no dropout, and adapters bring their own.
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
        "layerdrop": 0.0,
        "mask_time_prob": 0.05,  # keeps the mask embedding, which task-adaptive pretraining uses
    }
    model = cast(Model, AutoModel.from_config(AutoConfig.for_model(family, **settings)).eval())
    own, whose = wav2vec2_like(model), teacher.family
    layers = zip(own.layer_list(model), whose.layer_list(teacher.encoder), strict=True)
    pairs = [(own.part(to, name), whose.part(source, name)) for to, source in layers for name in LEARNT]
    pairs += [(cast(nn.Module, own.final_norm(model)), cast(nn.Module, whose.final_norm(teacher.encoder)))]
    with torch.no_grad():
        for target, source in cast(list[tuple[nn.Linear, nn.Linear]], pairs):
            target.weight.copy_(source.weight)
            target.bias.zero_() if source.bias is None else target.bias.copy_(source.bias)
        first = own.convolution(own.blocks(model)[0]).weight
        first.copy_(mel_gabor(first.shape[0], first.shape[2]))
        own.quieten_positions(model, POSITION_START)
    return model


def wav2vec2_like(model: Model) -> Wav2Vec2:
    """The family of a student: one of those that hear the waveform itself."""
    return cast(Wav2Vec2, family_of(model.config))


@torch.no_grad()
def start_at_mean(model: Model, mean: Tensor, std: Tensor) -> None:
    """Let the projection start near the teacher's layer 0, given its ``mean`` and ``std`` (D,) a channel.

    A random projection gives states of another scale (loss 17 where the mean alone scores 1); hundreds of updates go
    into that alone.
    """
    projection = wav2vec2_like(model).projection(model)
    projection.bias.copy_(mean)
    projection.weight.mul_(0.5 * std.unsqueeze(1))


def mel_gabor(channels: int, kernel: int) -> Tensor:
    """Filters (channels, 1, kernel) of unit norm: mel-spaced from 60 to 7600 Hz, as wide as their spacing, 4 phases.

    After an hour of speech, a front-end that starts so is three times closer to its target (cosine) than a random one.
    The idea is that of Zeghidour et al., "Learning filterbanks from raw speech" (ICASSP 2018).
    """
    low, high = (2595 * np.log10(1 + f / 700) for f in (60, 7600))
    mels = np.linspace(low, high, max(2, channels // 4))
    frequencies = 700 * (10 ** (mels / 2595) - 1)
    times = (np.arange(kernel) - (kernel - 1) / 2) / SAMPLE_RATE
    filters = []
    for frequency, width in zip(frequencies, np.gradient(frequencies), strict=True):
        window = np.exp(-0.5 * (times * np.pi * max(width, 60)) ** 2) * np.hanning(kernel)
        for phase in range(4):
            wave = window * np.cos(2 * np.pi * frequency * times + phase * np.pi / 2)
            wave -= wave.mean()
            filters.append(wave / np.linalg.norm(wave))
    return torch.tensor(np.array(filters)[:channels], dtype=torch.float32).unsqueeze(1)


def save_encoder(model: Model, folder: Path, shared_with: str | None = None) -> None:
    """Write the encoder in Hugging Face's format, weights in fp16 (read as fp32), whole or not at all."""
    half = copy.deepcopy(model).cpu().half()
    with new_folder(folder, replace=True) as temporary:
        _write_encoder(half, temporary, folder, shared_with)


def _write_encoder(half: Model, temporary: Path, folder: Path, shared_with: str | None) -> None:
    """Fill what will be ``folder``."""
    half.save_pretrained(temporary)
    config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float32"  # fp16 is for the disk: CPUs compute in fp32
    write_text(temporary / "config.json", json.dumps(config, indent=2) + "\n")
    preprocessor = family_of(half.config).preprocessor(half.config, normalize=True)
    write_text(temporary / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")
    if shared_with is not None:
        from safetensors.torch import load_file

        other = Path(os.path.normpath(folder / shared_with)) / "model.safetensors"  # folder may not be there yet
        tensors, own = load_file(str(other)) if other.is_file() else {}, half.state_dict()
        if tensors.keys() != own.keys() or not all(torch.equal(tensors[name], own[name]) for name in own):
            raise CheckpointError(f"shared_with={shared_with}: {other} is missing or differs; leave shared_with out")
        size = sum(tensor.numel() * tensor.element_size() for tensor in own.values())
        index = {
            "metadata": {"total_size": size},
            "weight_map": dict.fromkeys(own, f"{shared_with}/model.safetensors"),
        }
        write_text(temporary / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
        (temporary / "model.safetensors").unlink()
