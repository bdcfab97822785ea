"""Precisions: autocast where it is asked for, and a warning where the processor would only pretend."""

from __future__ import annotations

import warnings

import pytest
import torch

from speech_adapters import precision
from speech_adapters.errors import ConfigError
from speech_adapters.training.settings import TrainingConfig


@pytest.fixture
def processor(monkeypatch):
    """Gives this process a processor with or without instructions for bf16, and no GPU."""

    def choose(has: bool, machine: str = "x86_64") -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(precision.platform, "machine", lambda: machine)

    return choose


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_are_computed_in_the_chosen_precision(processor, name, dtype):
    processor(has=True)
    with precision.autocast("cpu", name, scaled=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_emulated_bf16_is_told_and_nothing_else_is(processor):
    processor(has=False)
    with pytest.warns(UserWarning, match="no instructions for it.*use fp32"):
        precision.autocast("cpu", "bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        precision.autocast("cpu", "fp32")
        processor(has=True)
        precision.autocast("cpu", "bf16")
        processor(has=False, machine="aarch64")  # which may have it, and is not asked
        precision.autocast("cpu", "bf16")


def test_fp16_is_for_trainings_that_scale_their_loss(processor):
    processor(has=True)
    with precision.autocast("cpu", "fp16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_what_a_gpu_has_is_not_asked_for_the_cpu(processor, monkeypatch):
    processor(has=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert precision.fast_bfloat16() and not precision.fast_bfloat16("cpu")


@pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_what_the_processor_has(processor, has, chosen):
    processor(has=has)
    assert TrainingConfig().precision == chosen


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="precision='fp8'.*fp32, bf16, fp16"):
        precision.autocast("cpu", "fp8")
