"""Adapters by name: each preset is one published setup, with its source; ``add_adapter(name, "elp")`` takes it.

The learning rates by task are those of the official code of Otake et al. (ICASSP 2023), section "Optimal learning
rates"; P-adapters (ELP, 2024) take the E-adapter's.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
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
from speech_adapters.adapters.varan import VARAN
from speech_adapters.adapters.vera import VeRA
from speech_adapters.adapters.weighted_sum import WeightedSum
from speech_adapters.errors import ConfigError
from speech_adapters.schema import no_such

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


def ELP(task: str = "asr", *, e_size: int | tuple[int, ...] = 256, l_size: int = 512, frames: int = 5) -> Combine:
    """E-, L- and P-adapters with the encoder's LayerNorms: EL (below) with pseudo frames at the CNN's output."""
    combined = EL(task, e_size=e_size, l_size=l_size)
    return Combine(
        parts=(*combined.parts, PAdapter(frames=frames, learning_rate=rates("el", task)["e"])),
        head_learning_rate=combined.head_learning_rate,
    )


def EL(task: str = "asr", *, e_size: int | tuple[int, ...] = 256, l_size: int = 512) -> Combine:
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


def L_frozen(task: str = "asr", *, l_size: int = 512) -> Combine:
    """L-adapters on a base whose LayerNorms stay as they are: nothing in the encoder changes, so that its hidden
    states can be kept (``training.cache``) and no layer runs again. Rates are those of :func:`L`."""
    combined = L(task, l_size=l_size)
    return Combine(parts=combined.parts[:1], head_learning_rate=combined.head_learning_rate)


def varan(task: str = "asr", *, l_size: int = 512) -> Combine:
    """L-adapters weighed by what they hear, and LayerNorms. Rates and activation are those of :func:`L`."""
    paths, norms = L(task, l_size=l_size).parts
    assert isinstance(paths, LAdapter)
    weighed = VARAN(size=paths.size, activation=paths.activation, learning_rate=paths.learning_rate)
    return Combine(parts=(weighed, norms), head_learning_rate=rates("l", task)["head"])


def E(task: str = "asr", *, e_size: int | tuple[int, ...] = 256) -> Combine:
    """E-adapters in all layers and LayerNorms (Otake et al., 2023: "E-adapters only")."""
    rate = rates("e", task)
    return Combine(
        parts=(
            EAdapter(size=e_size, activation=activation(task), learning_rate=rate["e"]),
            LayerNorms(learning_rate=rate["norm"]),
        ),
        head_learning_rate=rate["head"],
    )


def houlsby_speech(task: str = "asr", *, size: int | tuple[int, ...] = 256) -> Combine:
    """Two bottlenecks of 256 per layer, LayerNorm inside, and LayerNorms: "conventional" in Otake et al. (2023)."""
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


def _published(config: Callable[..., AdapterConfig], **settings: Any) -> Callable[..., AdapterConfig]:
    """A preset that is alike for all tasks: a config with published settings, which the user's replace."""
    return lambda task, **changes: config(**settings | changes)


#: name -> function of the task and the changed settings that gives the config.
PRESETS: dict[str, Callable[..., AdapterConfig]] = {
    "elp": ELP,
    "el": EL,
    "l": L,
    "l-frozen": L_frozen,
    "varan": varan,
    "e": E,
    "houlsby": _published(Bottleneck, sites=SITES, activation="swish"),
    "houlsby-speech": houlsby_speech,
    "houlsby-2019": _published(Bottleneck, sites=SITES, size=64, activation="gelu", init_std=0.01),
    "houlsby-light": _published(Bottleneck, size=32, activation="gelu"),
    "pfeiffer": _published(Bottleneck, placement="pfeiffer"),
    "parallel": _published(Bottleneck, placement="parallel", reduction_factor=2, scale=4.0),
    "peft-ser-parallel": _published(Bottleneck, placement="parallel", size=128, scale=0.1, dropout=0.1),
    "compacter": _published(Compacter),
    "conv-adapter": _published(ConvAdapter),
    "cnn-adapter": _published(CNNAdapter),
    "chapter": lambda task, **o: Combine(parts=(CNNAdapter(**o), Bottleneck(size=32, activation="gelu"))),
    "prefix": _published(Prefix),
    "prefix-mlp": _published(Prefix, hidden=512),
    "prompt": _published(PAdapter, where="layers_in", frames=10),
    "deep-prompts": _published(DeepPrompts),
    "ipet": lambda task, **o: Combine(
        parts=(DeepPrompts(length=64), _published(Bottleneck, placement="parallel", size=128, scale=0.1)(task, **o)),
    ),
    "lora": _published(LoRA),
    "lora-ffn": _published(LoRA, rank=16, alpha=16, targets=("intermediate_dense", "output_dense")),
    "dora": _published(LoRA, variant="dora"),
    "rslora": _published(LoRA, variant="rslora"),
    "pissa": _published(PiSSA),
    "adalora": _published(AdaLoRA),
    "vera": _published(VeRA),
    "ia3": _published(IA3),
    "bitfit": _published(BitFit),
    "adapter-bias": _published(AdapterBias),
    "layer-norms": _published(LayerNorms),
    "head-only": _published(HeadOnly),
    "weighted-sum": _published(WeightedSum),
    "full": fine_tuning,
    "last-2": partial(fine_tuning, layers=(-2, -1)),
    "gradual": partial(fine_tuning, gradual=True),
    "hybrid": lambda task, **o: Combine(
        parts=(_published(Bottleneck, skip_top=1)(task, **o), fine_tuning(task, layers=(-1,))),
    ),
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
    parameters = inspect.signature(PRESETS[name]).parameters.values()
    settings = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    # to a config, which looks itself
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if not passes_on and (unknown := [key for key in changes if key not in settings]):
        raise ConfigError(f"preset {name!r}: {no_such('setting', unknown[0], settings)}.")
    return PRESETS[name](task, **changes)


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
