"""The recipe that distils on a GPU, run for a few steps on a CPU with generated audio and a tiny random teacher."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scripts import load_script
from test_distillation import save_tiny_teacher
from test_mel_start import voices

from speech_adapters.config import load_config, to_dict
from speech_adapters.data.audio import write_audio
from speech_adapters.data.crops import Speech
from speech_adapters.data.joined import LEVEL, JoinedSpeech
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import ConfigError, ManifestError
from speech_adapters.objectives import context_distillation
from speech_adapters.objectives.context_distillation import ContextDistillation

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain_small.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_script("recipes/pretrain_small.py")


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
    """A run of 12 updates of two or three crops of 0.3 to 0.5 s."""
    settings = (
        "updates=12", "batch_frames=48", "crop_frames=16,24", "crop_shares=0.5,0.5", "layer_weights=0.5,1,2",
        "hidden_weights=0,0.5,1", "hidden_starts=0.1", "clusters=4", "statistics_batches=4", "log_every=2",
        "evaluate_every=4", "precision=fp32",
    )  # fmt: skip
    return [
        f"data={data}", f"output={out}", "train=manifests/train.jsonl", "held_out=manifests/held.jsonl",
        "teacher=teacher.safetensors", "speeds=0.9,1.0", "start_crops=3",
        *(f"training.{setting}" for setting in settings), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(recipe: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert recipe.main(arguments(data, run)) == run / "encoder"
    return run


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_learns_and_exports_a_stock_encoder(undisturbed: Path) -> None:
    losses = [line["layer_2_loss"] for line in lines(undisturbed) if "layer_2_loss" in line]
    watched = [line for line in lines(undisturbed) if "eval_loss" in line]
    assert losses[-1] < losses[0] and [line["step"] for line in watched] == [4, 8, 12]
    results = json.loads((undisturbed / "results.json").read_text())
    assert results["updates"] == 12 and min(results["front_end_explained"]) > 0.8
    metrics = results["metrics"]
    assert metrics["loss"] == pytest.approx(min(line["eval_loss"] for line in watched)), "the best state is kept"
    assert metrics["layer_0_cosine"] > metrics["layer_0_hidden_cosine"]
    encoder = load_encoder(str(undisturbed / "encoder"))
    assert encoder.normalize and encoder.pre_norm
    assert torch.isfinite(encoder(voices(1, 9)).last_hidden_state).all()


def killed(
    recipe: ModuleType, command: list[str], patch: pytest.MonkeyPatch, where: Any, name: str, call: int
) -> None:
    """Run until the given call of a function, which does its work and then ends the run."""
    function, calls = getattr(where, name), itertools.count(1)

    def last(*arguments: Any) -> Any:
        result = function(*arguments)
        if next(calls) == call:
            raise RuntimeError("killed")
        return result

    with patch.context() as context:
        context.setattr(where, name, last)
        with pytest.raises(RuntimeError, match="killed"):
            recipe.main(command)


@pytest.mark.slow
@pytest.mark.parametrize("update", [3, 7])
def test_a_killed_run_goes_on_to_the_same_bits(
    recipe: ModuleType, data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    """Killed before and after it has clusters, within an update, and stopped by Ctrl-C within another."""
    command = arguments(data, tmp_path / "run", "training.save_minutes=0")
    killed(recipe, command, monkeypatch, context_distillation, "observe_teacher" if update == 3 else "made_once", 1)
    killed(recipe, command, monkeypatch, ContextDistillation, "spans", update)
    with monkeypatch.context() as context:
        context.setattr(ContextDistillation, "after_update", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            recipe.main(command)
    assert (tmp_path / "run" / "checkpoints" / "student.pt").exists() and not (tmp_path / "run" / "encoder").exists()
    torch.manual_seed(99)
    recipe.main(command)

    expected, found = (
        torch.load(run / "checkpoints" / "student.pt", weights_only=True)["parts"][""]["tensors"]
        for run in (undisturbed, tmp_path / "run")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert lines(tmp_path / "run") == lines(undisturbed)


def test_what_cannot_work_is_said_before_the_work(recipe: ModuleType, data: Path, tmp_path: Path) -> None:
    wrong = {
        "training.crop_shares=1": "training.crop_shares=.*one share per length",
        "training.hidden_weights=1,1": "training.hidden_weights=.*as many as layer_weights",
        "training.clusters=1": "training.clusters=1: must be a whole number, at least 2",
        "training.learning_rates={head: 1}": "training.learning_rates=.*student, clusters, front alone",
        "held_out=manifests/train.jsonl": "train|share|both",
    }
    for setting, message in wrong.items():
        with pytest.raises((ConfigError, ManifestError), match=message):
            recipe.main(arguments(data, tmp_path / "a", setting))
    with pytest.raises(ConfigError, match="layer_weights: give 3 weights, for states 0 to 2"):
        recipe.main(arguments(data, tmp_path / "a", "training.layer_weights=1,2", "training.hidden_weights=1,1"))
    assert not (tmp_path / "a").exists()


def test_yaml_beside_the_recipe_holds_its_defaults(recipe: ModuleType) -> None:
    assert to_dict(load_config(recipe.Pretrain, RECIPE.with_suffix(".yaml"))) == to_dict(recipe.Pretrain())


def test_joined_speech(data: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(data / "manifests" / "held.jsonl")
    speech = Speech(manifest, tmp_path)
    plain, slow = JoinedSpeech(speech, "cpu"), JoinedSpeech(speech, "cpu", (0.5, 1.0))
    assert len(plain.samples) == 2 * 48_000 and len(slow.samples) == 3 * 2 * 48_000
    assert plain.samples.float().square().mean().sqrt() / 32767 == pytest.approx(LEVEL, rel=0.01)
    torch.manual_seed(0)
    crops = plain.crops(4, 8000)
    torch.testing.assert_close(crops.square().mean(1).sqrt(), torch.ones(4), atol=1e-3, rtol=0)
    louder = plain.crops(40, 8000, gain_db=6.0, tilt=0.4).square().mean(1).sqrt()
    assert 0.5 <= louder.min() < 0.8 and 1.3 < louder.max() <= 2.0
    drawn = [plain.crops(4, 8000, tilt=0.4, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    with pytest.raises(ConfigError, match="6.0 s of speech are less than a crop of 6.2 s"):
        plain.crops(1, 100_000)
