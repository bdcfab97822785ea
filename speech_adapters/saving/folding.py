"""Fold an adapter into the base's weights: in place and out again, or as a stock ``transformers`` checkpoint.

What can be folded is what a change of weights can stand for: the LoRA family, (IA)^3, BitFit, LayerNorm tuning and
fine-tuned layers (:meth:`~speech_adapters.adapters.AdapterModule.folded_weights`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.stock import StockModel
from speech_adapters.encoders.tensors import check_finite
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import write_json


def folded_weights(encoder: Encoder, adapter: AdapterModule) -> dict[str, Tensor]:
    """The stock model's tensors, by name, that the adapter changes, with it folded in.

    Raises:
        ConfigError: a method that cannot be folded, or an encoder held in 8 or 4 bits.
    """
    if encoder.quantization is not None:
        raise ConfigError(
            f"{encoder.name}: weights in {encoder.quantization} cannot take an adapter in; load the encoder without "
            "quantize, load the adapter and fold it there."
        )
    return {name: tensor.detach() for name, tensor in adapter.folded_weights(encoder).items()}


@torch.no_grad()
def fold(encoder: Encoder, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write tensors into the encoder, in place; returns what they replace, which :func:`fold` puts back."""
    _ = encoder.fingerprint  # of the base, not of what it becomes
    before = {}
    for name, tensor in weights.items():
        place, _, key = name.rpartition(".")
        module = encoder.model.get_submodule(place)
        parameter = getattr(getattr(module, "base_layer", module), key)
        before[name] = parameter.clone()
        parameter.copy_(tensor)
    return before


def folded_model(encoder: Encoder, weights: Mapping[str, Tensor]) -> StockModel:
    """A stock model of its own with the encoder's weights, ``weights`` in place of those of the same name."""
    tensors = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in encoder.model.state_dict().items()
        if ".lora_" not in name
    }
    model = type(encoder.model)(encoder.config).to(encoder.model.dtype)
    model.load_state_dict(tensors | dict(weights))
    return model.requires_grad_(False).eval()


def save_folded(encoder: Encoder, weights: Mapping[str, Tensor], folder: str | os.PathLike[str]) -> Path:
    """Save :func:`folded_model` for ``AutoModel.from_pretrained``, whole or not at all; returns the folder.

    Raises:
        ConfigError: a folder that holds something already.
        CheckpointError: a weight that is not finite.
        InputError: a folder that cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists already; choose a new folder for the folded checkpoint.")
    check_finite(weights, f"{folder}: not saved")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folded_model(encoder, weights).save_pretrained(temporary)
        write_json(temporary / "preprocessor_config.json", encoder.preprocessor)
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
