"""Adapters: one file a method, presets by name."""

from speech_adapters.adapters.base import METHODS, AdapterConfig, AdapterModule, adapter_config
from speech_adapters.adapters.bottleneck import Bottleneck, EAdapter
from speech_adapters.adapters.combine import Combine
from speech_adapters.adapters.fine_tuning import FineTuning, HeadOnly
from speech_adapters.adapters.l_adapter import LAdapter
from speech_adapters.adapters.layer_norms import LayerNorms
from speech_adapters.adapters.lora import LoRA
from speech_adapters.adapters.p_adapter import PAdapter
from speech_adapters.adapters.places import AdapterPlan
from speech_adapters.adapters.presets import EL, ELP, PRESETS, E, L, preset
from speech_adapters.adapters.weighted_sum import WeightedSum

__all__ = [
    "EL", "ELP", "METHODS", "PRESETS", "AdapterConfig", "AdapterModule", "AdapterPlan", "Bottleneck", "Combine", "E",
    "EAdapter", "FineTuning", "HeadOnly", "L", "LAdapter", "LayerNorms", "LoRA", "PAdapter", "WeightedSum",
    "adapter_config", "preset",
]  # fmt: skip
