"""Adapters: one file per method, presets by name."""

from speech_adapters.adapters.adalora import AdaLoRA
from speech_adapters.adapters.adapter_bias import AdapterBias
from speech_adapters.adapters.base import ADAPTER_METHODS, AdapterConfig, AdapterModule, adapter_config
from speech_adapters.adapters.bitfit import BitFit
from speech_adapters.adapters.bottleneck import Bottleneck, EAdapter
from speech_adapters.adapters.cnn_adapter import CNNAdapter
from speech_adapters.adapters.code import CodeAdapter
from speech_adapters.adapters.combine import Combine
from speech_adapters.adapters.compacter import Compacter
from speech_adapters.adapters.conv_adapter import ConvAdapter
from speech_adapters.adapters.deep_prompts import DeepPrompts
from speech_adapters.adapters.fine_tuning import FineTuning, HeadOnly
from speech_adapters.adapters.hooks import AdapterPlan
from speech_adapters.adapters.ia3 import IA3
from speech_adapters.adapters.l_adapter import LAdapter
from speech_adapters.adapters.layer_norms import LayerNorms
from speech_adapters.adapters.lora import LoRA
from speech_adapters.adapters.lora_xs import LoRAXS
from speech_adapters.adapters.p_adapter import PAdapter
from speech_adapters.adapters.pissa import PiSSA
from speech_adapters.adapters.prefix import Prefix
from speech_adapters.adapters.presets import ALIASES, EL, ELP, PRESETS, E, L, preset
from speech_adapters.adapters.varan import VARAN
from speech_adapters.adapters.vera import VeRA
from speech_adapters.adapters.weighted_sum import WeightedSum

__all__ = [
    "ADAPTER_METHODS", "ALIASES", "EL", "ELP", "IA3", "PRESETS", "VARAN", "AdaLoRA", "AdapterBias", "AdapterConfig",
    "AdapterModule", "AdapterPlan", "BitFit", "Bottleneck", "CNNAdapter", "CodeAdapter", "Combine", "Compacter",
    "ConvAdapter", "DeepPrompts", "E", "EAdapter", "FineTuning", "HeadOnly", "L", "LAdapter", "LayerNorms", "LoRA",
    "LoRAXS", "PAdapter", "PiSSA", "Prefix", "VeRA", "WeightedSum", "adapter_config", "preset",
]  # fmt: skip
