"""Configurations have their published sizes, survive JSON, and say what is wrong with them."""

from __future__ import annotations

import json

import pytest
import torch
from small_encoders import FAMILIES
from small_models import METHODS, counts, meta_model, small_model

from speech_adapters.adapters import ADAPTER_METHODS as CONFIGS
from speech_adapters.adapters import (
    PRESETS,
    Bottleneck,
    Combine,
    FineTuning,
    HeadOnly,
    LAdapter,
    LayerNorms,
    LoRA,
    PAdapter,
    WeightedSum,
    adapter_config,
    preset,
)
from speech_adapters.errors import CheckpointError, ConfigError

# --- published sizes -----------------------------------------------------------------------------------------------

E_SIZES = {48: 894_528, 64: 1_189_632, 256: 4_730_880}
BASE_SIZES = {
    "el": ("el", 9_127_436),
    "elp": ("elp", 9_127_436 + 5 * 512),
    "e": ("e", 4_786_176),
    "l": ("l", 4_737_036 + 36_864),
    "l-alone": (LAdapter(), 4_737_036),
    "varan": ("varan", 4_737_036 + 12 * 768 + 36_864),
    "norms": (LayerNorms(), 36_864),
    "houlsby-speech": ("houlsby-speech", 9_535_488),
    "full": ("full", 85_054_464),
    "pfeiffer": ("pfeiffer", 894_528),
    **{f"bottleneck-{size}": (Bottleneck(size=size), count) for size, count in E_SIZES.items()},
    "houlsby-64": (Bottleneck(size=64, sites=("attention", "feed_forward")), 2_379_264),
    "lora": ("lora", 294_912),
    "lora-attention": (LoRA(targets=("q_proj", "k_proj", "v_proj", "out_proj")), 589_824),
    "lora-ffn-8": (LoRA(targets=("intermediate_dense", "output_dense")), 737_280),
    "lora-ffn": ("lora-ffn", 2 * 737_280),
    "houlsby-light": ("slt2022-houlsby", 599_424),
    "houlsby-2019": ("houlsby-2019", 2_379_264),
    "prefix": ("sure-prefix", 552_960),
    "prefix-mlp": ("prefix-mlp", 9_872_384),
    "prompt": ("prompt", 10 * 768),
    "deep-prompts": ("peft-ser-prompts", 12 * 5 * 768),
    "cnn-adapter": ("cnn-adapter", 4_200_448),
    "compacter": ("compacter", 4**3 + 24 * (2 * (768 + 24) + 24 + 768)),
    "pissa": ("pissa", 294_912),
    "dora": ("dora", 294_912 + 24 * 768),
    "adalora": ("adalora", 24 * 12 * (2 * 768 + 1)),
    "vera": ("vera", 24 * (256 + 768)),
    "ia3": ("ia3", 12 * (2 * 768 + 3072)),
    "bitfit": ("bitfit", 12 * (7 * 768 + 3072 - 768)),
    "adapter-bias": ("adapter-bias", 12 * (768 + 3072 + 1)),
    "weighted-sum": ("weighted-sum", 13),
    "head-only": ("head-only", 0),
}
LARGE_SIZES = {
    "el": 24_853_272, "houlsby-speech": 25_423_872, "full": 302_309_376, "conv-adapter": 24 * 141_824,
    "prefix": 2 * 24 * 30 * 1024,
}  # fmt: skip


@pytest.fixture(scope="module")
def wavlm_base():
    return meta_model("wavlm", "post-norm", 12, 768)


@pytest.mark.parametrize("row", BASE_SIZES)
def test_base_size_is_the_published_one(wavlm_base, row):
    config, expected = BASE_SIZES[row]
    total = sum(p.numel() for p in wavlm_base.encoder.parameters())
    counted = counts(wavlm_base, config)
    assert counted["trainable"] == expected
    copies = {
        "full": 85_054_464,
        "norms": 36_864,
        **dict.fromkeys(("el", "elp", "e", "l", "varan", "houlsby-speech"), 36_864),
    }
    assert counted["total"] == total + expected - copies.get(row, 0)  # copies stand in place of the base's own
    assert counted["percent"] == pytest.approx(100 * expected / counted["total"])


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_sizes_are_those_of_wavlm(family):
    model = meta_model(family, "post-norm", 12, 768)
    for row in ("el", "full", "lora-attention"):
        config, expected = BASE_SIZES[row]
        assert counts(model, config)["trainable"] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_large_sizes_are_the_published_ones(family):
    model = meta_model(family, "pre-norm", 24, 1024)
    assert {name: counts(model, name)["trainable"] for name in LARGE_SIZES} == LARGE_SIZES


# --- configurations and their errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_configs_survive_json(name):
    config = METHODS[name] if not isinstance(METHODS[name], str) else preset(name)
    assert adapter_config(json.loads(json.dumps(config.to_dict()))) == config
    assert config.method in CONFIGS


def test_presets_take_the_task_and_changed_settings():
    assert preset("el", "speaker").parts[0].activation == "relu" and preset("el").parts[0].activation == "gelu"
    assert preset("lora", rank=16).rank == 16
    assert preset("houlsby", size=64).sites == ("attention", "feed_forward")
    assert preset("elp", frames=3).parts[3].frames == 3
    rates = small_model(method="elp", head=True).learning_rates()
    assert rates == {"e": 1e-3, "l": 1e-3, "norm": 1e-3, "p": 1e-3, "head": 2e-3}
    assert small_model(method="e", head=True).learning_rates({"e": 3e-4})["e"] == 3e-4
    assert preset("full", "emotion").learning_rate == 5e-5 and preset("full").learning_rate == 1e-4
    conventional = preset("houlsby-speech", "speaker")
    assert [part.learning_rate for part in conventional.parts] == [1e-5, 1e-5]
    assert (conventional.head_learning_rate, preset("houlsby-speech").head_learning_rate) == (5e-4, 1e-3)


def test_a_setting_that_a_preset_has_not_is_answered_with_those_it_has():
    with pytest.raises(ConfigError, match="preset 'l': unknown setting 'rank'; The settings are: l_size"):
        preset("l", rank=4)
    with pytest.raises(ConfigError, match="preset 'elp': unknown setting 'l_sise'; did you mean 'l_size'"):
        preset("elp", l_sise=4)
    with pytest.raises(ConfigError, match="LoRA: unknown setting 'rnk'; did you mean 'rank'"):
        preset("lora", rnk=4)


def test_presets_joined_by_plus_are_one_adapter():
    config = preset("lora+el", "speaker", lora={"rank": 16, "targets": ["q_proj"]}, el={"e_size": 32})
    lora, e, l_part, _ = config.parts
    assert (lora.rank, lora.targets, e.size, l_part.activation) == (16, ("q_proj",), 32, "relu")
    assert config.head_learning_rate == preset("el", "speaker").head_learning_rate
    assert len(preset("el+l").parts) == 3  # the L-adapters and LayerNorms of both are the same
    for name, changes, message in (
        ("lora+lo", {}, "unknown adapter preset 'lo'"),
        ("lora+l", {"rank": 16}, r"preset 'lora\+l': give settings by preset, as in {lora: {...}}"),
        ("lora+l", {"e": {"e_size": 3}}, "give settings by preset"),
    ):
        with pytest.raises(ConfigError, match=message):
            preset(name, **changes)


BAD = {
    "size": (lambda: Bottleneck(size=0), "bottleneck: size=0: must be a whole number, at least 1"),
    "reduction": (lambda: Bottleneck(reduction_factor=0), "reduction_factor=0: must be a whole number, at least 1"),
    "rank": (lambda: LoRA(rank=0), "lora: rank=0: must be a whole number, at least 1"),
    "width": (lambda: LAdapter(size=-1), "l: size=-1: must be a whole number, at least 1"),
    "frames": (lambda: PAdapter(frames=0), "p: frames=0: must be a whole number, at least 1"),
    "dropout": (lambda: LoRA(dropout=1.0), "lora: dropout=1.0: must be a number, at least 0 and below 1"),
    "activation": (lambda: Bottleneck(activation="relu6"), "activation 'relu6' is unknown; use one of relu, gelu"),
    "layers": (lambda: Bottleneck(layers=(0, 3)), r"layers=\(0, 3\) do not fit the encoder's layers 0 to 2"),
    "layers-below": (lambda: LoRA(layers=(-4,)), r"lora: layers=\(-4,\) do not fit"),
    "no-layers": (lambda: FineTuning(layers=()), r"fine_tuning: layers=\(\) do not fit"),
    "skip": (lambda: Bottleneck(skip_top=3), "skip_top=3 leaves none of the chosen layers"),
    "sites": (lambda: Bottleneck(sites=("ffn",)), r"sites=\('ffn',\): choose from attention, feed_forward"),
    "no-sites": (lambda: Bottleneck(sites=()), r"sites=\(\): choose from"),
    "norm": (lambda: Bottleneck(layer_norm=True), "layer_norm=True needs init_std"),
    "placement": (lambda: Bottleneck(placement="before"), "placement=.before.: must be one of serial, parallel"),
    "pfeiffer": (
        lambda: Bottleneck(placement="pfeiffer", sites=("attention",)),
        "placement='pfeiffer' belongs to the feed-forward alone",
    ),
    "where": (lambda: PAdapter(where="cnn"), "p: where='cnn': must be one of cnn_out, proj_out, layers_in"),
    "side": (lambda: PAdapter(side="left"), "p: side='left': must be one of prepend, append"),
    "targets": (lambda: LoRA(targets=("query",)), r"targets=\('query',\); choose from q_proj"),
    "no-targets": (lambda: LoRA(targets=()), r"targets=\(\); choose from"),
    "variant": (lambda: LoRA(variant="qlora"), "lora: variant='qlora': must be one of lora, rslora, dora"),
    "empty": (lambda: Combine(), "Combine: parts is empty"),
    "twice": (lambda: Combine(parts=(LoRA(), LoRA(rank=2))), "Combine: two parts of group 'lora'"),
    "readers": (lambda: Combine(parts=(LAdapter(), WeightedSum())), "l and weights both feed the head"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_settings_that_do_not_fit_are_config_errors(case):
    make, message = BAD[case]
    model = small_model()
    with pytest.raises(ConfigError, match=message):
        model.add_adapter("a", make())
    assert not model.adapters and model.active_adapters == ()


@pytest.mark.parametrize("name", PRESETS)
def test_a_task_without_published_values_takes_those_of_emotion(name):
    assert preset(name, "singing") == preset(name, "emotion")


def test_unknown_names_are_config_errors():
    with pytest.raises(ConfigError, match="unknown adapter preset 'houlsbi'. Did you mean 'houlsby'?"):
        preset("houlsbi")
    with pytest.raises(ConfigError, match="LoRA: unknown setting 'rang'; did you mean 'rank'"):
        preset("lora", rang=3)
    with pytest.raises(ConfigError, match="unknown adapter method 'verra'; known: adalora"):
        adapter_config({"method": "verra"})
    with pytest.raises(ConfigError, match="lora: unknown key 'rang'; did you mean 'rank'"):
        adapter_config({"method": "lora", "rang": 3})
    assert HeadOnly().to_dict() == {"method": "head_only", "learning_rate": None}


def test_tensors_that_do_not_fit_are_refused():
    model = small_model(method="lora+l")
    adapter = model.adapters["a"]
    tensors = dict(adapter.tensors())
    with pytest.raises(CheckpointError, match="'x/y' belongs to no part of this adapter"):
        adapter.load_tensors({**tensors, "x/y": torch.zeros(1)})
    first = next(iter(tensors))
    with pytest.raises(CheckpointError, match="missing, unexpected or of another shape"):
        adapter.load_tensors({k: v for k, v in tensors.items() if k != first})
    with pytest.raises(CheckpointError, match="missing, unexpected or of another shape"):
        adapter.load_tensors({**tensors, first: torch.zeros(1, 1)})
