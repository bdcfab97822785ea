"""Task-adaptive pre-training: it learns, stops early, resumes bit-exactly, and its adapters start a task."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import small_encoder, stock_model, whisper_model
from small_models import METHODS
from test_recipes import run
from test_task_recipes import recipe

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import AdaLoRA, EAdapter, FineTuning
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.windows import Windows
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import AudioError, CheckpointError, ConfigError
from speech_adapters.objectives.hubert import HuBERTObjective, HuBERTObjectiveConfig
from speech_adapters.objectives.pretraining import MaskedPrediction, PretrainingConfig, pretrain
from speech_adapters.objectives.units import KMeansUnits
from speech_adapters.runs.folder import RunFolder
from speech_adapters.tasks import downstream
from speech_adapters.tasks.downstream import Downstream
from speech_adapters.training.cached_dataset import CachedPart
from speech_adapters.training.learner import Position
from speech_adapters.training.loop import seed_update
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import TrainingConfig


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """A manifest of 24 utterances of changing tones in two domains, and the folder of a small encoder."""
    folder, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    utterances = []
    for i in range(24):
        pitch = np.repeat(rng.choice([200, 500, 1200, 3000], 6), 2000 + 50 * i)
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + (
            0.3 if i % 4 == 0 else 0.01
        ) * rng.standard_normal(len(pitch))
        path = folder / "audio" / f"u{i}.wav"
        path.parent.mkdir(exist_ok=True)
        write_audio(path, torch.tensor(wave, dtype=torch.float32).clamp(-1, 1))
        utterances.append(
            Utterance(f"u{i}", path, len(wave) / 16000, text=("YES", "NO")[i % 2], speaker=f"s{i % 3}",
                      emotion=("calm", "angry")[i % 2], domain="noisy" if i % 4 == 0 else "clean")
        )  # fmt: skip
    Manifest(utterances, "speech").write(folder / "speech.jsonl")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    return folder


class Pass:
    """A small pass with HuBERT's objective on MFCC units, in a run folder that may hold part of it."""

    def __init__(self, speech: Path, run: Path, method="e", **changes) -> None:
        self.manifest = Manifest.read(speech / "speech.jsonl")
        torch.manual_seed(0)
        self.model = SpeechAdapterModel(small_encoder("wavlm", "pre-norm"))
        self.model.add_adapter("tapt", METHODS[method] if isinstance(method, str) else method)
        self.model.train_adapter("tapt")
        units = KMeansUnits.for_model(self.model, "mfcc", 6)
        generator = torch.Generator().manual_seed(4)
        units.centroids.copy_(torch.randn(units.centroids.shape, generator=generator) * 30)
        config = HuBERTObjectiveConfig(clusters=6, projection_size=16)
        self.objective = HuBERTObjective(config, self.model.encoder, self.model.feature_size, units)
        settings = {
            "updates": 12, "crops": 3, "crop_seconds": 0.6, "evaluate_every": 4, "precision": "fp32", "log_every": 1,
            "objective_rate": 1e-2, "learning_rates": {"e": 1e-3}, "save_minutes": 0,
        }  # fmt: skip
        self.config = PretrainingConfig(**settings | changes)
        run.mkdir(exist_ok=True)
        self.run = RunFolder(run)
        self.speech = (self.manifest[:18], self.manifest[18:])

    def train(self) -> TrainingResult:
        return pretrain(self.model, self.objective, *self.speech, self.config, self.run)

    def held_out_loss(self) -> float:
        self.model.eval()
        self.objective.eval()
        learner = MaskedPrediction(self.model, self.objective, *self.speech, self.config, self.run)
        return learner.evaluate()["loss"]


def test_held_out_loss_falls_and_the_best_state_is_kept(speech, tmp_path):
    one = Pass(speech, tmp_path / "run", updates=40, evaluate_every=10)
    before = {n: p.clone() for n, p in one.model.encoder.named_parameters()}
    result = one.train()
    losses = [line["eval_loss"] for line in one.run.read_metrics() if "eval_loss" in line]
    assert len(losses) == 5 and result.best_dev_loss == min(losses) < 0.9 * losses[0]
    assert one.held_out_loss() == pytest.approx(result.best_dev_loss, rel=1e-6)
    assert all(torch.equal(before[n], p) for n, p in one.model.encoder.named_parameters())
    assert not one.model.adapters["tapt"].training


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["e", "lora-all"])
def test_a_killed_pass_goes_on_as_if_it_had_not_been(speech, tmp_path, method):
    whole = Pass(speech, tmp_path / "whole", method, learning_rates={})
    expected = whole.train()
    for call in (6, 11):
        killed, calls = Pass(speech, tmp_path / "killed", method, learning_rates={}), []

        def dies(*_, calls=calls, call=call):
            calls.append(1)
            if len(calls) == call:
                raise Killed

        killed.objective.register_forward_hook(dies)
        with pytest.raises(Killed):
            killed.train()
    again = Pass(speech, tmp_path / "killed", method, learning_rates={})
    result = again.train()
    assert (result.best_dev_loss, result.updates) == (expected.best_dev_loss, expected.updates)
    for (name, one), other in zip(
        whole.model.adapters.named_parameters(), again.model.adapters.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert again.run.read_metrics() == whole.run.read_metrics()


def test_each_batch_of_an_update_is_masked_in_its_own_way(speech, tmp_path):
    """And in each process: two batches of the same sizes would else hide the same frames."""
    own = Pass(speech, tmp_path, updates=2, accumulation=2)
    learner = MaskedPrediction(own.model, own.objective, *own.speech, own.config, own.run)
    batch, losses = next(learner.batches(Position(0, 0))), []
    for process in (0, 1, 0):
        seed_update(own.config.seed, 1, process)
        losses.append([learner.loss(batch, 1).loss.item() for _ in range(2)])
    assert losses[0] == losses[2] and len({*losses[0], *losses[1]}) == 4


def test_the_new_head_can_learn_first_alone(speech, tmp_path):
    one = Pass(speech, tmp_path / "run", updates=4, head_first=4, evaluate_every=4)
    adapter = {n: p.clone() for n, p in one.model.adapters.named_parameters()}
    head = {n: p.clone() for n, p in one.objective.named_parameters()}
    changed = []

    def compare(*_):  # before each forward: what has moved since the start
        now = dict(one.model.adapters.named_parameters()), dict(one.objective.named_parameters())
        changed.append(tuple(any(not torch.equal(p, new[n]) for n, p in old.items())
                             for old, new in zip((adapter, head), now, strict=True)))  # fmt: skip

    one.objective.register_forward_pre_hook(compare)
    one.train()
    assert list(dict.fromkeys(changed)) == [(False, False), (False, True), (True, True)]


def test_a_methods_schedule_is_followed(speech, tmp_path):
    """AdaLoRA's ranks fall to their budget, and layers that are unfrozen gradually come in from the top."""
    last = {"evaluate_every": 0, "patience": 0, "learning_rates": {}}  # the last state stays, not the best
    pruned = Pass(speech, tmp_path / "adalora", AdaLoRA(rank=1, init_rank=2, every=1), **last)
    pruned.train()
    ranks = pruned.model.adapters["tapt"].ranks()
    assert sum(ranks.values()) == len(ranks)
    gradual = Pass(speech, tmp_path / "gradual", FineTuning(gradual=True), learning_rates={})
    trained: list[int] = []
    adapter = gradual.model.adapters["tapt"]

    def look(objective, _):
        if objective.training:
            trained.append(sum(p.requires_grad for p in adapter.parameters()))

    gradual.objective.register_forward_pre_hook(look)
    gradual.train()
    assert trained[0] < trained[-1] and len(set(trained)) > 2 and trained == sorted(trained)


def test_silence_at_the_end_of_a_crop_is_no_forgotten_padding(speech, tmp_path):
    one, wave = Pass(speech, tmp_path / "run"), 0.1 * torch.randn(2, 9600)
    wave[0, -3000:] = 0  # as telephone codes write it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.objective(one.model, wave, None, np.random.default_rng(0)).masked > 0


def test_early_stopping(speech, tmp_path):
    one = Pass(speech, tmp_path / "run", updates=400, evaluate_every=1, patience=2, objective_rate=0.0,
               learning_rates={"e": 1.0, "norm": 1.0}, warmup=0.0)  # fmt: skip
    assert one.train().updates < 60


def test_a_damaged_checkpoint_and_nothing_to_train_are_refused(speech, tmp_path):
    Pass(speech, tmp_path / "run", updates=2, evaluate_every=2).train()
    checkpoint = tmp_path / "run" / "checkpoints" / "tapt.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="remove it to start over"):
        Pass(speech, tmp_path / "run", updates=2, evaluate_every=2).train()
    with pytest.raises(ConfigError, match="nothing is trainable"):
        Pass(speech, tmp_path / "other", "head-only").train()
    for bad in ({"updates": 0}, {"head_first": -1}, {"crop_seconds": 0}, {"warmup": 1}):
        with pytest.raises(ConfigError):
            PretrainingConfig(**bad)


@pytest.mark.parametrize("task", ["asr", "emotion"])
@pytest.mark.parametrize("use", ["continue", "stack"])
def test_an_adapted_adapter_starts_a_task(speech, tmp_path, task, use):
    one = Pass(speech, tmp_path / "run", updates=4, evaluate_every=2)
    one.train()
    saved = one.model.save_adapter("tapt", tmp_path / "adapter")
    manifest = Manifest.read(speech / "speech.jsonl")
    training = TrainingConfig(updates=3, batch_seconds=4, precision="fp32", trackers=("none",))
    down = Downstream(task=task, adapter="e", training=training)
    model = down.train(
        one.model.encoder, down.head(manifest), manifest[:12], one.run, "with", seed=0, start=saved, use=use
    )
    assert model.active_adapters == (("task",) if use == "continue" else ("tapt", "task"))
    adapted = one.model.adapters["tapt"].state_dict()
    if use == "stack":  # what was adapted stays as it was
        assert all(torch.equal(adapted[n], t) for n, t in model.adapters["tapt"].state_dict().items())
    else:  # three small steps away from where it starts, far from a fresh adapter
        weights = [n for n, t in adapted.items() if t.ndim == 2]
        moved = [float((model.adapters["task"].state_dict()[n] - adapted[n]).norm()) for n in weights]
        assert max(moved) < 0.2 * max(float(adapted[n].norm()) for n in weights) and max(moved) > 0
    metrics = down.metrics([down.score(model, manifest[12:])])[down.metric]
    assert metrics["low"] <= metrics["value"] <= metrics["high"]


def test_crops_are_cut_where_a_pool_is_cached(speech, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(downstream, "train", lambda model, data, settings, *_, **__: heard.append((data, settings)))
    pool, cached = Manifest.read(speech / "speech.jsonl"), {"cache": tmp_path / "cache", "trackers": ("none",)}
    for crop in (None, 0.3):
        down = Downstream(task="emotion", adapter="head-only", training=TrainingConfig(crop_seconds=crop, **cached))
        run = RunFolder.create("x", path=tmp_path / f"crop-{crop}")
        encoder = small_encoder("wavlm", "pre-norm")
        down.train(encoder, down.head(pool), pool[:6], run, "task", seed=0, pool=pool)
    (whole, settings), (cropped, itself) = heard
    assert isinstance(whole, CachedPart) and settings.cache is None
    assert max(cropped.durations) == 0.3 and itself.cache is not None


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("asr", {"learning_rates": {"nope": 1.0}}, "learning_rates.nope: no method of this run"),
        ("asr", {"crop_seconds": 1.0}, "cuts speech but not its text"),
        ("asr", {"evaluate_every": 5}, "training.evaluate_every=5: there is no dev set"),
        ("emotion", {"crop_seconds": 1.0, "cache": "cache"}, "training.cache: .* training.crop_seconds is 1;"),
    ],
)
def test_what_a_task_cannot_train_with_is_refused_before_labels_are_there(task, settings, message):
    with pytest.raises(ConfigError, match=message):
        Downstream(task=task, training=TrainingConfig(**settings)).check_adapter(small_encoder("wavlm", "post-norm"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "emotion", "head_hidden_size": 8}, r"head_hidden_size=8: for recognition .*task is emotion"),
        ({"vocabulary": "checkpoint"}, "vocabulary=checkpoint: here the head is made for the labelled text"),
    ],
)
def test_settings_of_recognition_that_a_task_has_no_use_for(settings, message):
    with pytest.raises(ConfigError, match=message):
        Downstream(**settings)


def test_recognition_has_the_head_that_the_recipes_train(speech):
    down = Downstream(head_hidden_size=8, head_kernel_size=3, head_dropout=0.3, vocabulary="characters")
    head = down.head(Manifest.read(speech / "speech.jsonl"))
    assert (head.hidden_size, head.kernel_size, head.dropout) == (8, 3, 0.3)


def test_a_task_that_continues_has_the_adapted_adapter():
    for use, expected in (("continue", "lora"), ("stack", "e")):
        assert recipe("tapt").Config(adapter="lora", downstream_use=use).task.adapter == expected


def test_another_kind_of_adapter_cannot_continue(speech, tmp_path):
    one = Pass(speech, tmp_path / "run", EAdapter(size=8), learning_rates={})
    saved = one.model.save_adapter("tapt", tmp_path / "adapter")
    manifest = Manifest.read(speech / "speech.jsonl")
    down = Downstream(adapter="lora")
    with pytest.raises(ConfigError, match="use stack"):
        down.train(one.model.encoder, down.head(manifest), manifest, one.run, "x", 0, saved)


def test_a_task_scores_recordings_of_any_length_through_windows(speech, tmp_path):
    whisper_model(positions=52).save_pretrained(tmp_path / "whisper")  # 1.04 s; the last nine utterances are longer
    encoder, manifest = load_encoder(tmp_path / "whisper"), Manifest.read(speech / "speech.jsonl")
    short, windows = manifest[:12], Windows(seconds=1.0, voice_activity="none")
    cached = TrainingConfig(updates=2, batch_seconds=4, precision="fp32", trackers=("none",), cache=tmp_path / "cache")
    whole, heard = (Downstream(adapter="l-frozen", training=cached, windows=w) for w in (None, windows))
    with pytest.raises(AudioError, match=r"longer than the 1.0 s .* such as u1.*windows.seconds=20"):
        whole.check(short, manifest, encoder)
    with pytest.raises(AudioError, match=r"longer than the 1.0 s"):
        heard.check(manifest, manifest, encoder)  # training hears each whole
    with pytest.raises(ConfigError, match="hears up to 1.0 s at once"):
        Downstream(windows=Windows(seconds=20.0)).check_adapter(encoder)
    heard.check(short, manifest, encoder)
    (tmp_path / "run").mkdir()
    model = heard.train(encoder, heard.head(short), short, RunFolder(tmp_path / "run"), "task", 0)
    assert heard.metrics([heard.score(model, manifest)])["wer"]["value"] >= 0


@pytest.mark.slow
def test_recipe(speech, tmp_path):
    """The whole command line, its resume, and the adapter it leaves."""
    out, whole, scored = tmp_path / "run", Manifest.read(speech / "speech.jsonl"), tmp_path / "scored.jsonl"
    whole.filter(lambda u: u.speaker != "s2").write(tmp_path / "labelled.jsonl")
    whole.filter(lambda u: u.speaker == "s2").write(scored)
    command = [
        "recipes/tapt.py", "--train", speech / "speech.jsonl", "--encoder", speech / "encoder", "--output", out,
        "--objective", "wavlm", "--adapter", "last-2", "--save-base", "--seeds", "0",
        "--downstream-also", scored, "--downstream-train", tmp_path / "labelled.jsonl", "--downstream-test", scored,
        "training.updates=4", "training.crops=2", "training.crop_seconds=0.6", "training.evaluate_every=2",
        "wavlm.units=1", "wavlm.clusters=5", "wav2vec2.entries=8", "wav2vec2.negatives=5",
        "second_pass.updates=2", "second_pass.crops=1", "second_pass.crop_seconds=0.6",
        "held_out=" + str(speech / "speech.jsonl"),
        "downstream.training.updates=2", "downstream.training.batch_seconds=3", "downstream.training.trackers=[none]",
        "rates={layers: 2.0e-3, lora: 1.0}", "training.schedule=constant", "training.warmup=0", "training.log_every=1",
    ]  # fmt: skip
    lacking = run(*command, "training.learning_rates={lora: 1.0}", expect=2)
    assert "training.learning_rates.lora: no method of this run has this group" in lacking.stderr
    heard = run(*command, "--downstream-also", tmp_path / "labelled.jsonl", expect=2)
    assert "labelled.jsonl: shares 2 speakers with" in heard.stderr and not out.exists()
    run(*command)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in logged if line["method"] == "tapt" and "learning_rate" in line]
    assert rates and all(rate["layers"] == 2e-3 and "lora" not in rate for rate in rates)
    results = json.loads((out / "results.json").read_text())
    assert results["prediction_head"] == "new" and results["second_pass"]["subdomain"] in ("noisy", "clean")
    assert 0 <= results["metrics"]["wer"]["low"] <= results["metrics"]["wer"]["high"]
    assert results["also"][str(scored)]["wer"] == results["metrics"]["wer"]
    assert set(results["baselines"]) == {"without"} and (out / "report.html").is_file()
    model = SpeechAdapterModel(load_encoder(speech / "encoder"))
    model.load_adapter(out / "adapters" / "tapt")
    wave = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(wave).last_hidden_state
        found = SpeechAdapterModel(load_encoder(out / "encoder"))(wave).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # The same command finds everything done; another setting is refused.
    before = (out / "metrics.jsonl").read_text().count("eval_loss")
    run(*command)
    assert (out / "metrics.jsonl").read_text().count("eval_loss") == before
    refused = run(*command, "training.updates=5", expect=2)
    assert "training.updates was 4, now 5" in refused.stderr
