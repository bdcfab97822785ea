"""Adapters for frozen speech encoders: wav2vec 2.0, HuBERT, WavLM, w2v-BERT, Whisper.

The public names load on first use, so that ``import speech_adapters`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "speech_adapters.model": ["SpeechAdapterModel"],
    "speech_adapters.model_output": ["ModelOutput"],
    "speech_adapters.adapters": [
        "AdaLoRA", "AdapterBias", "BitFit", "Bottleneck", "CNNAdapter", "CodeAdapter", "Combine", "Compacter",
        "ConvAdapter", "DeepPrompts", "E", "EAdapter", "EL", "ELP", "FineTuning", "HeadOnly", "IA3", "L",
        "LAdapter", "LayerNorms", "LoRA", "LoRAXS", "PAdapter", "PiSSA", "Prefix", "VARAN", "VeRA", "WeightedSum",
    ],
    "speech_adapters.composition": [
        "Average", "Fuse", "FusionConfig", "Parallel", "Route", "RouterConfig", "Stack",
    ],
    "speech_adapters.encoders": ["Encoder", "Family", "load_encoder", "packaged_encoders", "register_family"],
    "speech_adapters.heads": ["CTCHead", "ClassificationHead", "SlotsHead", "SpeakerHead"],
    "speech_adapters.data.manifest": ["Manifest", "Utterance"],
    "speech_adapters.data.windows": ["Windows"],
    "speech_adapters.text": ["Vocabulary", "normalize"],
}  # fmt: skip
_MODULE = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'speech_adapters' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return __all__
