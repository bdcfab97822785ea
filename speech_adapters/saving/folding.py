"""Fold an adapter into the base's weights, in place and out again; ``saving/stock.py`` writes what comes of it.

What can be folded is what a change of weights can stand for: the LoRA family, (IA)^3, BitFit, LayerNorm tuning and
fine-tuned layers (:meth:`~speech_adapters.adapters.AdapterModule.folded_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from speech_adapters.adapters.base import AdapterModule
from speech_adapters.encoders.loading import Encoder
from speech_adapters.errors import ConfigError


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


def folded_tensors(encoder: Encoder, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stock model's tensors by name, those of the encoder with ``weights`` in place of those of the same name."""
    tensors = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in encoder.model.state_dict().items()
        if ".lora_" not in name
    }
    return tensors | dict(weights)
