"""What the benchmarks measure on: encoders by name, and labelled speech."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders import Encoder, load_encoder


def encoder_of(name: str, family: str = "wavlm", *, bears_padding: bool = False) -> Encoder:
    """A packaged or local encoder, or "base": one of a family in Base size with random weights, on which
    speed does not depend; ``bears_padding`` gives it the CNN of Large models, which does not normalise over time."""
    if name != "base":
        return load_encoder(name)
    torch.manual_seed(0)
    front = {"feat_extract_norm": "layer", "conv_bias": True} if bears_padding else {}
    return Encoder(AutoModel.from_config(AutoConfig.for_model(family, **front)).eval(), "base")


def speech(path: Path | None, minutes: float) -> Manifest:
    """So many minutes of labelled speech, by default LibriSpeech's of $SPEECH_ADAPTERS_DATA."""
    folder = Path(os.environ.get("SPEECH_ADAPTERS_DATA", ".")) / "manifests"
    manifest = Manifest.read(path or folder / "asr_librispeech_train.jsonl", require=("text", "speaker"))
    step = max(1, round(60 * manifest.hours / minutes))  # from all over: of several speakers
    return Manifest(list(manifest)[::step], manifest.name)
