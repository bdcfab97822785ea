"""The recipe that makes the packaged encoders, run for a few steps on generated audio with a tiny random teacher."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripts import load_script
from transformers import AutoModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speech_adapters.config import load_config, to_dict
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.objectives import student

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain_tiny.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_script("recipes/pretrain_tiny.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds of speech-like noise, two noises and a random teacher of 64 channels and 2 layers."""
    folder, generator = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(0)
    for name, seconds in (("train", [0.9, 1.0, 1.1, 1.3] * 3), ("noise", [0.5, 3.0])):
        utterances = []
        for i, length in enumerate(seconds):
            path = folder / "audio" / f"{name}{i}.wav"
            path.parent.mkdir(exist_ok=True)
            envelope = torch.sin(torch.arange(round(16_000 * length)) / (1000 + 100 * i)).square()
            write_audio(path, 0.1 * torch.randn(len(envelope), generator=generator) * envelope)
            utterances.append(Utterance(f"{name}{i}", path, length))
        Manifest(utterances).write(folder / "manifests" / f"{name}.jsonl")
    config = WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=1, encoder_ffn_dim=96, num_mel_bins=20,
        max_source_positions=700, activation_function="gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    tensors = WhisperEncoder(config).state_dict()
    save_file({name: t.half().contiguous() for name, t in tensors.items()}, str(folder / "teacher.safetensors"))
    return folder


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    """A run of 2 + 3 + 3 steps of two crops of 0.5 s."""
    second = 1 / 3600
    return [
        f"data={data}", f"output={out}", "train=manifests/train.jsonl", "teacher=teacher.safetensors",
        "heard.noise_manifest=manifests/noise.jsonl", "heard.noise_probability=0.5",
        "student.conv_dim=16,32,48", "student.conv_kernel=320,8,3", "student.conv_stride=20,8,2",
        "student.position_kernel=8", "student.position_groups=4",
        "statistics_batches=3", "crops=2", "bf16=false", "log_steps=1", "speeds=0.9,1.1",
        f"front.hours={1.5 * second}", "front.crop_seconds=0.5", "front.warmup_steps=1",
        f"joint.hours={2.5 * second}", "joint.crop_seconds=0.5", "joint.layer_weights=1,1,2",
        f"anneal.hours={2.5 * second}", "anneal.crop_seconds=0.5", "anneal.layer_weights=1,1,2", *more,
    ]  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the last stage that ran; without any, what was exported."""
    stages = [file for name in ("anneal", "joint", "front") if (file := run / "checkpoints" / f"{name}.pt").is_file()]
    if stages:
        return torch.load(stages[0], weights_only=True)["parts"][""]["tensors"]
    return {name: tensor.float() for name, tensor in load_file(run / "encoder" / "model.safetensors").items()}


def interrupt_at(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C in the middle of the given step."""
    student_states, calls = student.student_states, []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return student_states(*arguments)

    monkeypatch.setattr(student, "student_states", pressed)


@pytest.fixture(scope="module")
def uninterrupted(recipe: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "wav2vec2"
    assert recipe.main(arguments(data, run)) == run / "encoder"
    return run


def test_a_run_trains_all_stages_and_exports_a_stock_encoder(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == sorted(
        (line["method"] for line in lines), key=["front", "joint", "anneal"].index
    )
    assert {line["method"] for line in lines} == {"front", "joint", "anneal"}
    assert all(("layer_2_loss" in line) == (line["method"] != "front") for line in lines)
    model, report = AutoModel.from_pretrained(uninterrupted / "encoder", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in weights(uninterrupted).items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    assert load_encoder(uninterrupted / "encoder")(torch.randn(1, 8000)).last_hidden_state.isfinite().all()
    results = json.loads((uninterrupted / "results.json").read_text())
    assert results["task"] == "pretrain_tiny" and results["data"]["train"]["hours"] > 0


def test_stages_train_what_they_say(recipe: ModuleType, data: Path, tmp_path: Path, monkeypatch) -> None:
    """``front`` trains the front-end alone, ``joint`` everything."""
    start = recipe.main(arguments(data, tmp_path / "none", "front.hours=0", "joint.hours=0", "anneal.hours=0"))
    recipe.main(arguments(data, tmp_path / "front", "joint.hours=0", "anneal.hours=0"))
    recipe.main(arguments(data, tmp_path / "joint", "front.hours=0", "anneal.hours=0"))
    begun, front, joint = (weights(tmp_path / name) for name in ("none", "front", "joint"))
    assert start == tmp_path / "none" / "encoder"
    moved = lambda after: {name for name in begun if not torch.equal(begun[name], after[name].half().float())}  # noqa: E731
    never = {"masked_spec_embed"}
    assert moved(front) == {name for name in begun if any(part in name for part in student.Wav2Vec2.front_parts)}
    assert moved(joint) == set(begun) - never


def test_layers_come_from_a_student_with_another_front_end(recipe: ModuleType, data: Path, uninterrupted, tmp_path):
    more = (f"layers_from={uninterrupted}", "student.conv_dim=8,32,48", "front.hours=0", "joint.hours=0")
    recipe.main(arguments(data, tmp_path / "new", *more, "anneal.hours=0"))
    old, new = ({n: t.half() for n, t in weights(run).items()} for run in (uninterrupted, tmp_path / "new"))
    layers = [name for name in old if name.startswith("encoder.layer")]
    assert layers and all(torch.equal(old[name], new[name]) for name in layers)
    position = "encoder.pos_conv_embed.conv.bias"
    assert not torch.equal(old[position], new[position])
    with pytest.raises(CheckpointError, match="layers_from=.*no model.safetensors"):
        recipe.main(arguments(data, tmp_path / "none", f"layers_from={tmp_path}"))


def test_resumed_runs_end_at_the_same_weights(
    recipe: ModuleType, data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 2):  # within front, then within joint
        with monkeypatch.context() as context:
            interrupt_at(recipe, context, step)
            with pytest.raises(KeyboardInterrupt):
                recipe.main(arguments(data, tmp_path / "run"))
        assert not (tmp_path / "run" / "encoder").exists()
    torch.manual_seed(99)
    recipe.main(arguments(data, tmp_path / "run"))
    expected, found = weights(uninterrupted), weights(tmp_path / "run")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (uninterrupted, tmp_path / "run")]
    steps = [[(line["method"], line["step"]) for line in map(json.loads, log)] for log in logs]
    assert steps[0] == steps[1] and not list((tmp_path / "run").glob(".*.tmp"))


def test_wavlm_starts_from_another_run_and_moves_its_position_bias(
    recipe: ModuleType, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    more = ("student.family=wavlm", f"init_from={uninterrupted}", "front.hours=0", "joint.hours=0")
    recipe.main(arguments(data, tmp_path / "begun", *more, "anneal.hours=0"))
    begun = weights(tmp_path / "begun")
    shared = weights(uninterrupted)
    assert all(torch.equal(begun[name].half(), tensor.half()) for name, tensor in shared.items())
    table = "encoder.layers.0.attention.rel_attn_embed.weight"
    assert not begun[table].any()
    recipe.main(arguments(data, tmp_path / "trained", *more))
    assert weights(tmp_path / "trained")[table].any()
    assert load_encoder(tmp_path / "trained" / "encoder").family == "wavlm"


def test_errors_come_before_training(recipe: ModuleType, data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed was 0, now 1"):
        recipe.main(arguments(data, uninterrupted, "seed=1"))
    with pytest.raises(ConfigError, match="multiply to 320"):
        recipe.main(arguments(data, tmp_path / "a", "student.conv_stride=20,8,4"))
    with pytest.raises(ConfigError, match="joint.layer_weights: give 1 to 3 weights"):
        recipe.main(arguments(data, tmp_path / "b", "joint.layer_weights=1,1,1,1"))
    with pytest.raises(CheckpointError, match="give a finished run"):
        recipe.main(arguments(data, tmp_path / "c", f"init_from={tmp_path}"))
    with pytest.raises(CheckpointError, match="other sizes"):
        recipe.main(arguments(data, tmp_path / "d", f"init_from={uninterrupted}", "student.conv_dim=8,32,48"))
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_yaml_beside_the_recipe_holds_its_defaults(recipe: ModuleType) -> None:
    assert to_dict(load_config(recipe.Pretrain, RECIPE.with_suffix(".yaml"))) == to_dict(recipe.Pretrain())
