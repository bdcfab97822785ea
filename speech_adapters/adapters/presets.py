"""Adapters by name: each preset is one published setup, with its source; ``add_adapter(name, "elp")`` takes it.

The learning rates by task are those of the official code of Otake et al. (ICASSP 2023), section "Optimal learning
rates"; P-adapters (ELP, 2024) take the E-adapter's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from speech_adapters.adapters.adalora import AdaLoRA
from speech_adapters.adapters.adapter_bias import AdapterBias
from speech_adapters.adapters.base import ADAPTER_METHODS, AdapterConfig
from speech_adapters.adapters.bitfit import BitFit
from speech_adapters.adapters.bottleneck import SITES, Bottleneck, EAdapter
from speech_adapters.adapters.cnn_adapter import CNNAdapter
from speech_adapters.adapters.combine import Combine
from speech_adapters.adapters.compacter import Compacter
from speech_adapters.adapters.conv_adapter import ConvAdapter
from speech_adapters.adapters.deep_prompts import DeepPrompts
from speech_adapters.adapters.fine_tuning import FineTuning, HeadOnly
from speech_adapters.adapters.ia3 import IA3
from speech_adapters.adapters.l_adapter import LAdapter
from speech_adapters.adapters.layer_norms import LayerNorms
from speech_adapters.adapters.lora import LoRA
from speech_adapters.adapters.p_adapter import PAdapter
from speech_adapters.adapters.pissa import PiSSA
from speech_adapters.adapters.prefix import Prefix
from speech_adapters.adapters.projections import FEED_FORWARD
from speech_adapters.adapters.vera import VeRA
from speech_adapters.adapters.weighted_sum import WeightedSum
from speech_adapters.errors import ConfigError

FALLBACK = "emotion"
"""The task whose published values any other takes (keywords, language, ...): one label per utterance, and rates in the
middle of the table."""

ACTIVATIONS = {"asr": "gelu", "intent": "gelu", "speaker": "relu", "emotion": "relu"}
"""Activation by task: argparse defaults of the official code."""

RATES: dict[str, dict[str, dict[str, float]]] = {
    "el": {
        "asr": {"head": 2e-3, "l": 1e-3, "e": 1e-3, "norm": 1e-3},
        "emotion": {"head": 5e-4, "l": 1e-4, "e": 5e-5, "norm": 5e-5},
        "speaker": {"head": 5e-4, "l": 1e-4, "e": 1e-5, "norm": 1e-5},
        "intent": {"head": 5e-4, "l": 1e-5, "e": 1e-5, "norm": 1e-5},
    },
    "l": {
        "asr": {"head": 2e-3, "l": 1e-3, "norm": 1e-3},
        "emotion": {"head": 5e-4, "l": 5e-4, "norm": 5e-4},
        "speaker": {"head": 5e-4, "l": 5e-4, "norm": 5e-4},
        "intent": {"head": 5e-4, "l": 1e-4, "norm": 1e-4},
    },
    "e": {
        "asr": {"head": 2e-3, "e": 1e-5, "norm": 1e-5},
        "emotion": {"head": 5e-4, "e": 1e-5, "norm": 1e-5},
        "speaker": {"head": 5e-4, "e": 1e-5, "norm": 1e-5},
        "intent": {"head": 5e-4, "e": 1e-5, "norm": 1e-5},
    },
    "houlsby-speech": {  # "conventional" adapters
        "asr": {"head": 1e-3, "e": 1e-5, "norm": 1e-5},
        "emotion": {"head": 5e-4, "e": 1e-5, "norm": 1e-5},
        "speaker": {"head": 5e-4, "e": 1e-5, "norm": 1e-5},
        "intent": {"head": 5e-4, "e": 1e-5, "norm": 1e-5},
    },
    "full": {  # of the encoder's layers
        "asr": {"layers": 1e-4},
        "emotion": {"layers": 5e-5},
        "speaker": {"layers": 1e-4},
        "intent": {"layers": 1e-4},
    },
}
"""Published learning rates: preset -> task -> parameter group -> rate."""


def rates(preset: str, task: str) -> dict[str, float]:
    """The published rates of a preset for a task, by parameter group; those of :data:`FALLBACK` for a task that the
    paper does not have."""
    published = RATES[preset]
    return published.get(task, published[FALLBACK])


def activation(task: str) -> str:
    """The published activation for a task; that of :data:`FALLBACK` for one that the paper does not have."""
    return ACTIVATIONS.get(task, ACTIVATIONS[FALLBACK])


def ELP(task: str = "asr", *, e_size: int = 256, l_size: int = 512, frames: int = 5) -> Combine:
    """E-, L- and P-adapters with the encoder's LayerNorms: EL (below) with pseudo frames at the CNN's output."""
    combined = EL(task, e_size=e_size, l_size=l_size)
    return Combine(
        parts=(*combined.parts, PAdapter(frames=frames, learning_rate=rates("el", task)["e"])),
        head_learning_rate=combined.head_learning_rate,
    )


def EL(task: str = "asr", *, e_size: int = 256, l_size: int = 512) -> Combine:
    """E-adapters in all layers but the last, L-adapters from all, LayerNorms (Otake et al., 2023: "proposed").

    The last layer needs no E-adapter: its output reaches the head through its L-adapter only.
    """
    rate, act = rates("el", task), activation(task)
    return Combine(
        parts=(
            EAdapter(size=e_size, activation=act, skip_top=1, learning_rate=rate["e"]),
            LAdapter(size=l_size, activation=act, learning_rate=rate["l"]),
            LayerNorms(learning_rate=rate["norm"]),
        ),
        head_learning_rate=rate["head"],
    )


def L(task: str = "asr", *, l_size: int = 512) -> Combine:
    """L-adapters and LayerNorms (Otake et al., 2023: "L-adapters only")."""
    rate = rates("l", task)
    return Combine(
        parts=(
            LAdapter(size=l_size, activation=activation(task), learning_rate=rate["l"]),
            LayerNorms(learning_rate=rate["norm"]),
        ),
        head_learning_rate=rate["head"],
    )


def E(task: str = "asr", *, e_size: int = 256) -> Combine:
    """E-adapters in all layers and LayerNorms (Otake et al., 2023: "E-adapters only")."""
    rate = rates("e", task)
    return Combine(
        parts=(
            EAdapter(size=e_size, activation=activation(task), learning_rate=rate["e"]),
            LayerNorms(learning_rate=rate["norm"]),
        ),
        head_learning_rate=rate["head"],
    )


def houlsby_speech(task: str = "asr", *, size: int = 256) -> Combine:
    """Two bottlenecks of 256 a layer with LayerNorm inside, and LayerNorms: "conventional" in Otake et al. (2023)."""
    rate = rates("houlsby-speech", task)
    return Combine(
        parts=(
            EAdapter(size=size, sites=SITES, activation=activation(task), learning_rate=rate["e"]),
            LayerNorms(learning_rate=rate["norm"]),
        ),
        head_learning_rate=rate["head"],
    )


def fine_tuning(task: str = "asr", **settings: Any) -> FineTuning:
    """The encoder's own layers, all of them unless ``layers`` says otherwise."""
    return FineTuning(**{"learning_rate": rates("full", task)["layers"]} | settings)


#: name -> function of the task and the changed settings that gives the config.
PRESETS: dict[str, Callable[..., AdapterConfig]] = {
    "elp": lambda task, **o: ELP(task, **o),
    "el": lambda task, **o: EL(task, **o),
    "l": lambda task, **o: L(task, **o),
    "e": lambda task, **o: E(task, **o),
    "houlsby": lambda task, **o: Bottleneck(**{"sites": SITES, "activation": "swish"} | o),
    "houlsby-speech": lambda task, **o: houlsby_speech(task, **o),
    "houlsby-2019": lambda task, **o: Bottleneck(
        **{"sites": SITES, "size": 64, "activation": "gelu", "init_std": 0.01} | o
    ),
    "houlsby-light": lambda task, **o: Bottleneck(**{"size": 32, "activation": "gelu"} | o),
    "pfeiffer": lambda task, **o: Bottleneck(**{"placement": "pfeiffer"} | o),
    "parallel": lambda task, **o: Bottleneck(**{"placement": "parallel", "reduction_factor": 2, "scale": 4.0} | o),
    "peft-ser-parallel": lambda task, **o: Bottleneck(
        **{"placement": "parallel", "size": 128, "scale": 0.1, "dropout": 0.1} | o
    ),
    "compacter": lambda task, **o: Compacter(**o),
    "conv-adapter": lambda task, **o: ConvAdapter(**o),
    "cnn-adapter": lambda task, **o: CNNAdapter(**o),
    "chapter": lambda task, **o: Combine(parts=(CNNAdapter(**o), Bottleneck(size=32, activation="gelu"))),
    "prefix": lambda task, **o: Prefix(**o),
    "prefix-mlp": lambda task, **o: Prefix(**{"hidden": 512} | o),
    "prompt": lambda task, **o: PAdapter(**{"where": "layers_in", "frames": 10} | o),
    "deep-prompts": lambda task, **o: DeepPrompts(**o),
    "ipet": lambda task, **o: Combine(
        parts=(DeepPrompts(length=64), Bottleneck(**{"placement": "parallel", "size": 128, "scale": 0.1} | o)),
    ),
    "lora": lambda task, **o: LoRA(**o),
    "lora-ffn": lambda task, **o: LoRA(**{"rank": 16, "alpha": 16, "targets": FEED_FORWARD} | o),
    "dora": lambda task, **o: LoRA(**{"variant": "dora"} | o),
    "rslora": lambda task, **o: LoRA(**{"variant": "rslora"} | o),
    "pissa": lambda task, **o: PiSSA(**o),
    "adalora": lambda task, **o: AdaLoRA(**o),
    "vera": lambda task, **o: VeRA(**o),
    "ia3": lambda task, **o: IA3(**o),
    "bitfit": lambda task, **o: BitFit(**o),
    "adapter-bias": lambda task, **o: AdapterBias(**o),
    "layer-norms": lambda task, **o: LayerNorms(**o),
    "head-only": lambda task, **o: HeadOnly(**o),
    "weighted-sum": lambda task, **o: WeightedSum(**o),
    "full": lambda task, **o: fine_tuning(task, **o),
    "last-2": lambda task, **o: fine_tuning(task, **{"layers": (-2, -1)} | o),
    "gradual": lambda task, **o: fine_tuning(task, **{"gradual": True} | o),
    "hybrid": lambda task, **o: Combine(parts=(Bottleneck(**{"skip_top": 1} | o), fine_tuning(task, layers=(-1,)))),
}

#: The names that carry the paper, for presets whose short name several papers use.
ALIASES = {
    "otake2023-el": "el",
    "otake2023-l": "l",
    "otake2023-e": "e",
    "otake2023-conventional": "houlsby-speech",
    "slt2022-houlsby": "houlsby-light",
    "mam-parallel": "parallel",
    "sure-conv": "conv-adapter",
    "sure-prefix": "prefix",
    "peft-ser-lora": "lora-ffn",
    "peft-ser-prompts": "deep-prompts",
}


def known_groups() -> set[str]:
    """All parameter groups that a training may have a learning rate for."""
    return {config.group for config in ADAPTER_METHODS.values()} | {"head", "fusion", "router"}


def preset(name: str, task: str = "asr", **changes: Any) -> AdapterConfig:
    """The config of a preset for a task; ``changes`` replace single settings.

    Any name is a task: one without published values takes those of :data:`FALLBACK`.

    >>> preset("lora", rank=16, targets=("q_proj", "k_proj", "v_proj", "out_proj")).rank
    16

    Presets joined by "+" are one adapter; their settings go by preset. What both have alike is taken once.

    >>> len(preset("lora+l", lora={"rank": 16}, l={"l_size": 384}).parts)
    3

    Raises:
        ConfigError: an unknown preset or setting.
    """
    if "+" in name:
        return _joined(name.split("+"), task, changes)
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        near = difflib.get_close_matches(name, [*PRESETS, *ALIASES], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown adapter preset {name!r}.{hint} Known: {', '.join(PRESETS)}.")
    changes = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    try:
        return PRESETS[name](task, **changes)
    except TypeError as error:  # an argument that the config does not have
        raise ConfigError(f"preset {name!r}: {str(error).split(') ', 1)[-1].split('() ', 1)[-1]}.") from error


def _joined(names: list[str], task: str, changes: dict[str, Any]) -> Combine:
    for key, value in changes.items():
        if key not in names or not isinstance(value, dict):
            raise ConfigError(f"preset {'+'.join(names)!r}: give settings by preset, as in {{{names[0]}: {{...}}}}.")
    parts: list[AdapterConfig] = []
    head_rate = None
    for name in names:
        config = preset(name, task, **changes.get(name, {}))
        joined = config.parts if isinstance(config, Combine) else (config,)
        parts += [part for part in joined if part not in parts]
        head_rate = head_rate or getattr(config, "head_learning_rate", None)
    return Combine(parts=tuple(parts), head_learning_rate=head_rate)
