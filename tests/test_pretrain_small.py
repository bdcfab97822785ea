"""The recipe that distils on a GPU, run for a few steps on a CPU with generated audio and a tiny random teacher."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_distillation import save_tiny_teacher
from test_mel_start import voices

from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import ConfigError, ManifestError

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain_small.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_small", RECIPE)
    assert spec and spec.loader
    module = sys.modules["pretrain_small"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 8), ("held", 2)):
        utterances = []
        for i, wave in enumerate(voices(count, len(name))):
            path = folder / "audio" / f"{name}{i}.wav"
            path.parent.mkdir(exist_ok=True)
            write_audio(path, 0.1 * wave)
            utterances.append(Utterance(f"{name}{i}", path, 3.0, speaker=f"{name}{i % 2}"))
        Manifest(utterances).write(folder / "manifests" / f"{name}.jsonl")
    save_tiny_teacher(folder / "teacher.safetensors")
    return folder


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data={data}", f"out={out}", "train=manifests/train.jsonl", "held_out=manifests/held.jsonl",
        "teacher=teacher.safetensors", "minutes=0.1", "batch_frames=48", "crop_frames=16,24", "crop_shares=0.5,0.5",
        "speeds=0.9,1.0", "layer_weights=0.5,1,2", "hidden_weights=0,0.5,1", "clusters=4", "start_crops=3",
        "statistics_batches=4", "warmup_steps=2", "report_seconds=2", "save_minutes=0.05", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_it_learns_and_exports_a_stock_encoder(recipe: ModuleType, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert recipe.main(arguments(data, out)) == out / "encoder"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["layer_losses"][-1] < lines[0]["layer_losses"][-1]
    assert lines[-1]["held_out_cosines"][-1] > lines[-1]["held_out_hidden_cosines"][0]
    results = json.loads((out / "results.json").read_text())
    assert results["steps"] == lines[-1]["step"] and min(results["front_end_explained"]) > 0.8
    encoder = load_encoder(str(out / "encoder"))
    assert encoder.normalize and encoder.model.config.do_stable_layer_norm
    assert torch.isfinite(encoder(voices(1, 9)).last_hidden_state).all()


def test_the_rate_follows_the_clock(recipe: ModuleType) -> None:
    config = recipe.Pretrain()
    rates = [recipe.learning_rate(config, 1000, done) for done in (0, 0.25, 0.625, 1.0)]
    assert rates == pytest.approx([1, 1, 0.5, 0.01])
    assert recipe.learning_rate(config, 0, 0.0) == pytest.approx(1 / 200)


def test_k_means_finds_clusters(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    frames = torch.cat([torch.randn(50, 3) * 0.1 + place for place in (0.0, 5.0)])
    centroids = recipe.k_means(frames, 2)
    assert len(set(recipe.nearest_to(frames, centroids).tolist())) == 2
    with pytest.raises(ConfigError, match="clusters=500: 100 frames were seen"):
        recipe.k_means(frames, 500)


def test_what_cannot_work_is_said_before_the_work(recipe: ModuleType, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="crop_shares"):
        recipe.main(arguments(data, tmp_path / "a", "crop_shares=1"))
    with pytest.raises(ConfigError, match="layer_weights: give 3 weights"):
        recipe.main(arguments(data, tmp_path / "b", "layer_weights=1,2", "hidden_weights=1,1"))
    with pytest.raises((ConfigError, ManifestError), match="train|share|both"):
        recipe.main(arguments(data, tmp_path / "c", "held_out=manifests/train.jsonl"))
