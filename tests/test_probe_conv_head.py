"""The convolutional CTC probe: padding changes nothing, batches keep to their size, a run is scored by pass."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scripts import load_script
from small_encoders import stock_model
from test_distillation import noise

from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError
from speech_adapters.runs.results import Results


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    return load_script("benchmarks/probe_conv_head.py")


def test_padding_changes_nothing(probe: ModuleType) -> None:
    torch.manual_seed(0)
    head = probe.ConvHead(8, 16, 5).eval()
    long, short = torch.randn(1, 20, 8), torch.randn(1, 12, 8)
    batch = torch.cat([long, torch.nn.functional.pad(short, (0, 0, 0, 8))])
    found = head(batch, torch.tensor([20, 12]))
    torch.testing.assert_close(found[0], head(long, torch.tensor([20]))[0])
    torch.testing.assert_close(found[1, :12], head(short, torch.tensor([12]))[0])


def test_batches(probe: ModuleType) -> None:
    groups = probe.batches([5, 30, 4, 6, 9], 15)
    assert groups == [[2, 0, 3], [4], [1]], "of like lengths, at most 15 frames, longer ones alone"


@pytest.mark.slow
def test_a_run_is_scored_by_pass(probe: ModuleType, tmp_path: Path) -> None:
    for name in ("train", "test"):
        utterances = []
        for i in range(6):
            write_audio(tmp_path / f"{name}{i}.wav", noise(0.5, i))
            path = tmp_path / f"{name}{i}.wav"
            utterances.append(Utterance(f"{name}{i}", path, 0.5, text="AB", speaker=f"{name}{i % 2}"))
        Manifest(utterances).write(tmp_path / f"{name}.jsonl")
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path / "encoder")
    command = ["--encoder", str(tmp_path / "encoder"), "--train", str(tmp_path / "train.jsonl"),
               "--test", str(tmp_path / "test.jsonl"), "--passes", "2", "--width", "8"]  # fmt: skip
    done = probe.main([*command, "--output", str(tmp_path / "out")])
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(saved["by_pass"]) == 2 and saved["by_pass"][-1]["wer"] == done.own.metrics["wer"].value
    assert Results.read(tmp_path / "out" / "results.json").own.metrics == done.own.metrics
    assert saved["metrics"]["wer"]["low"] <= saved["metrics"]["wer"]["value"] <= saved["metrics"]["wer"]["high"]


def test_one_encoder_is_asked_for(probe: ModuleType) -> None:
    for command in ([], ["--encoder", "tiny-wavlm", "--teacher", "x"]):
        with pytest.raises(ConfigError, match="give one of --encoder NAME and --teacher FILE"):
            probe.main(command)
