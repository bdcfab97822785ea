"""The trainer: batches by length, resuming, several processes, dead tensors, early stopping."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoders import small_encoder
from torch.utils.data import DataLoader

from speech_adapters.adapters import AdaLoRA, AdapterConfig, Bottleneck, Combine
from speech_adapters.composition import Route
from speech_adapters.data.audio import write_audio
from speech_adapters.data.augmentation import Augmentation
from speech_adapters.data.batches import LengthBatches, SpeechDataset, collate, ignore_interrupts
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import (
    AudioError,
    CheckpointError,
    ConfigError,
    InputError,
    Interrupted,
    InUseError,
    TextError,
    TrainingError,
)
from speech_adapters.heads import ClassificationHead, CTCHead, SpeakerHead
from speech_adapters.heads.base import HeadConfig
from speech_adapters.locks import held, release
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.tasks.classification import evaluate_classification
from speech_adapters.training import loop
from speech_adapters.training.part import rate_factor
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import Supervised, time_mask, train

HEAD = CTCHead(dropout=0.0)  # so that processes need not share random numbers
QUIET = {"trackers": (), "precision": "fp32", "batch_seconds": 3.0, "log_every": 1}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """Twelve utterances of coloured noise whose pitch follows their text."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    utterances = []
    for index in range(12):
        seconds = 0.6 + 0.05 * index
        time = np.arange(int(seconds * 16000)) / 16000
        tone = np.sin(2 * np.pi * (200 + 150 * (index % 3)) * time) * 0.3 + rng.normal(0, 0.01, len(time))
        path = folder / f"u{index}.wav"
        write_audio(path, torch.tensor(tone, dtype=torch.float32))
        text = ("YES", "NO", "MAYBE")[index % 3]
        utterances.append(
            Utterance(
                id=f"u{index}", audio_filepath=path, duration=len(time) / 16000, text=text, speaker=f"s{index % 4}"
            )
        )
    return Manifest(utterances, "tones")


def make_model(preset: str | AdapterConfig = "el", head: HeadConfig = HEAD) -> SpeechAdapterModel:
    torch.manual_seed(0)
    model = SpeechAdapterModel(small_encoder("wavlm", "pre-norm"))
    model.add_adapter("a", "e" if preset == "router" else preset)
    model.add_head("asr", head)
    model.train_adapter("a", head="asr")
    if preset == "router":
        model.add_adapter("b", "e")
        model.add_fusion(Route("a", "b"))
        model.train_fusion("route-a-b", head="asr")
    return model


def run_training(manifest, folder, model=None, dev=None, **changes):
    model = model or make_model()
    run = RunFolder(folder) if Path(folder).is_dir() else RunFolder.create("test", path=folder)
    config = TrainingConfig(**{**QUIET, **changes})
    target = model.head.config.target
    dev = dev and SpeechDataset(dev, target)
    result = train(model, SpeechDataset(manifest, target), config, run, dev, "m")
    return model, run, result


def losses(run: RunFolder) -> list[float]:
    return [line["loss"] for line in run.read_metrics() if "loss" in line]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.1, 30), min_size=4, max_size=60),
    st.floats(5, 80),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_batches_hold_every_utterance_once_within_their_seconds(durations, seconds, world, epoch):
    try:
        shards = [LengthBatches(durations, seconds, seed=1, rank=r, world_size=world) for r in range(world)]
    except InputError:
        assert len(LengthBatches(durations, seconds, seed=1)) < world
        return
    for shard in shards:
        shard.set_epoch(epoch)
    assert len({len(shard) for shard in shards}) == 1
    batches = [batch for shard in shards for batch in shard]
    assert all(len(batch) * max(durations[i] for i in batch) <= seconds or len(batch) == 1 for batch in batches)
    flat = sorted(i for batch in LengthBatches(durations, seconds, shuffle=False) for i in batch)
    assert flat == list(range(len(durations)))


def test_too_few_utterances_are_said_to_be_whose():
    with pytest.raises(InputError, match="train: 3 utterances make fewer batches of 5 s than one update takes"):
        LengthBatches([1.0, 2.0, 3.0], 5, accumulation=4, name="train")
    with pytest.raises(InputError, match="dev: no utterances"):
        LengthBatches([], 5, shuffle=False, name="dev")


def test_processes_take_turns_through_the_same_batches():
    durations = list(np.random.default_rng(0).uniform(1, 5, 40))
    whole = list(LengthBatches(durations, 12, seed=3))
    shards = [list(LengthBatches(durations, 12, seed=3, rank=r, world_size=2)) for r in range(2)]
    assert [shards[i % 2][i // 2] for i in range(2 * len(shards[0]))] == whole[: 2 * len(shards[0])]


def test_collate_pads(manifest):
    batch = collate([SpeechDataset(manifest, HEAD.target)[i] for i in (0, 5)])
    assert batch["waveforms"].shape == (2, max(batch["lengths"]))
    assert (batch["waveforms"][0, batch["lengths"][0] :] == 0).all()
    assert batch["targets"].tolist()[0] == HEAD.encode("YES")[:3] + [-100] * (batch["targets"].shape[1] - 3)


def test_crops_are_random_pieces_that_come_back_alike(manifest, tmp_path):
    dataset = SpeechDataset(manifest, HEAD.target, seed=1, crop_seconds=0.7)
    assert dataset.durations[0] == 0.6 and dataset.durations[-1] == 0.7
    whole, piece = dataset.waveform(11), dataset[11]["waveform"]
    assert len(piece) == 11200 and len(dataset[0]["waveform"]) == 9600  # a short one stays whole
    assert any(torch.equal(piece, whole[start : start + 11200]) for start in range(len(whole) - 11200 + 1))
    assert torch.equal(piece, dataset[11]["waveform"])
    dataset.epoch = 1
    assert not torch.equal(piece, dataset[11]["waveform"])
    with pytest.raises(ConfigError, match="crop_seconds cuts speech but not its text"):
        train(make_model(), dataset, TrainingConfig(**QUIET), RunFolder.create("test", path=tmp_path / "run"))
    with pytest.raises(ConfigError, match="crop_seconds=0.0"):
        TrainingConfig(crop_seconds=0.0)


def test_training_learns_and_leaves_the_base_alone(manifest, tmp_path):
    model = make_model("el")
    before = {name: tensor.clone() for name, tensor in model.encoder.model.state_dict().items()}
    _, run, result = run_training(manifest, tmp_path / "run", model, updates=40, warmup=0.0)
    curve = losses(run)
    assert len(curve) == 40 == result.updates and np.mean(curve[-5:]) < 0.6 * np.mean(curve[:5])
    assert all(torch.equal(before[n], t) for n, t in model.encoder.model.state_dict().items())
    assert result.audio_seconds_per_second > 0 and result.peak_memory_bytes > 0
    rates = run.read_metrics()[-1]["learning_rate"]
    assert set(rates) == {"e", "l", "norm", "head"}


def test_groups_get_their_own_rates_and_overrides(manifest, tmp_path):
    _, run, _ = run_training(
        manifest, tmp_path / "run", updates=2, warmup=0.0, schedule="constant", learning_rates={"head": 0.05}
    )
    rates = run.read_metrics()[0]["learning_rate"]
    assert rates["head"] == pytest.approx(0.05) and rates["l"] == pytest.approx(1e-3)
    with pytest.raises(ConfigError, match="unknown group 'lora'"):
        run_training(manifest, tmp_path / "other", updates=1, learning_rates={"lora": 1.0})


class Killed(Exception):
    pass


def kill_at(model: SpeechAdapterModel, forward: int) -> None:
    """Die in the middle of an update, without the loop's leave."""
    seen = 0

    def stop(*_):
        nonlocal seen
        seen += 1
        if seen == forward:
            raise Killed

    model.head.register_forward_hook(stop)


@pytest.mark.parametrize("preset", ["el", "adalora", "gradual", "router"])
def test_a_killed_training_ends_with_the_same_bits(preset, manifest, tmp_path):
    settings = {
        "updates": 8, "save_minutes": 0, "time_mask_probability": 0.2, "evaluate_every": 2, "patience": 3,
        "dev": manifest, "learning_rates": {"head": 0.05},
    }  # fmt: skip
    whole, whole_run, expected = run_training(manifest, tmp_path / "whole", make_model(preset), **settings)
    for killed_at in (4, 9, 17):
        model = make_model(preset)
        kill_at(model, killed_at)
        with pytest.raises(Killed):
            run_training(manifest, tmp_path / "part", model, **settings)
    again, run, result = run_training(manifest, tmp_path / "part", make_model(preset), **settings)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())
    assert (result.best_dev_loss, result.updates) == (expected.best_dev_loss, expected.updates)
    drop = lambda lines: [{k: v for k, v in line.items() if k != "seconds"} for line in lines]  # noqa: E731
    assert drop(run.read_metrics()) == drop(whole_run.read_metrics())
    # A finished training is put back, not made again.
    before = (tmp_path / "part" / "metrics.jsonl").read_bytes()
    finished, _, same = run_training(manifest, tmp_path / "part", make_model(preset), **settings)
    assert same == result and (tmp_path / "part" / "metrics.jsonl").read_bytes() == before
    assert all(torch.equal(t, finished.state_dict()[n]) for n, t in whole.state_dict().items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_says_so(number, manifest, tmp_path):
    model = make_model()
    model.head.register_forward_hook(lambda *_: signal.raise_signal(number))
    with pytest.raises(Interrupted, match="saved after 1 updates") as stopped:
        run_training(manifest, tmp_path / "run", model, updates=3, save_minutes=None)
    assert stopped.value.exit_code == 128 + number
    whole, _, _ = run_training(manifest, tmp_path / "whole", updates=3)
    again, _, _ = run_training(manifest, tmp_path / "run", updates=3, save_minutes=None)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


def test_checkpoints_of_other_settings_names_used_twice_and_damage_are_refused(manifest, tmp_path):
    run_training(manifest, tmp_path / "run", updates=2)
    with pytest.raises(ConfigError, match="begun with training.updates=2, not 3"):
        run_training(manifest, tmp_path / "run", updates=3)
    run = RunFolder.create("test", path=tmp_path / "new")
    data, config = SpeechDataset(manifest, HEAD.target), TrainingConfig(**QUIET, updates=1)
    train(make_model(), data, config, run, name="m")
    with pytest.raises(ConfigError, match="give another name"):
        train(make_model(), data, config, run, name="m")
    file = tmp_path / "run" / "checkpoints" / "m.pt"
    whole = file.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], whole[:100] + bytes(len(whole) - 100)):
        file.write_bytes(damage)
        with pytest.raises(CheckpointError, match="remove it to start over"):
            run_training(manifest, tmp_path / "run", updates=2)


def test_what_is_not_finite_is_skipped_and_stops_the_run_in_the_end(manifest, tmp_path):
    def spoil(updates):
        model, seen = make_model(), 0

        def nan(module, inputs, output):
            nonlocal seen
            seen += 1
            if seen in updates:
                output.logits = output.logits * float("nan")
            return output

        model.head.register_forward_hook(nan)
        return model

    model, run, result = run_training(manifest, tmp_path / "once", spoil({4}), updates=6)
    assert result.skipped == 1 and run.read_metrics()[-1]["skipped"] == 1 and result.final_loss == result.final_loss
    assert all(p.isfinite().all() for p in model.parameters())
    model, _, result = run_training(manifest, tmp_path / "second", spoil({2}), updates=6)  # that of the alive check
    assert result.skipped == 1 and all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(TrainingError, match="3 updates in a row .* not finite.*u[0-9]"):
        run_training(manifest, tmp_path / "always", spoil(set(range(4, 99))), updates=12)


def test_a_run_shorter_than_its_log_interval_knows_its_loss(manifest, tmp_path):
    _, _, result = run_training(manifest, tmp_path / "run", updates=2, log_every=50)
    assert np.isfinite(result.final_loss)


@pytest.mark.parametrize(("preset", "group"), [("adalora", "adalora"), ("gradual", "layers")])
def test_a_methods_schedule_is_followed(preset, group, manifest, tmp_path):
    """Ranks fall to their budget; layers come in from the top."""
    model, seen = make_model(preset), []
    adapter = model.adapters["a"]

    def look(*_):
        seen.append(sum(p.requires_grad for p in adapter.parameters()))

    model.head.register_forward_hook(look)
    run_training(manifest, tmp_path / "run", model, updates=12, warmup=0.0)
    if preset == "gradual":
        assert seen[0] < seen[3] < seen[-1]
    else:
        assert sum(adapter.ranks().values()) <= adapter.config.rank * len(adapter.ranks())


def test_a_schedule_that_the_updates_cannot_hold_is_refused_before_any_work(manifest, tmp_path):
    pruned = AdaLoRA(rank=1, init_rank=3, warmup=0.5, settle=0.49, every=2)
    model = make_model(Combine(parts=(Bottleneck(), pruned)))
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ConfigError, match=r"adalora: of 20 updates warmup=0.5 takes 10 and settle=0.49 the last 10"):
        run_training(manifest, tmp_path / "run", model, updates=20)


@pytest.mark.parametrize("preset", ["lora", "houlsby", "elp", "last-2"])
def test_a_warm_up_does_not_make_a_zero_start_look_dead(preset, manifest, tmp_path):
    _, _, result = run_training(manifest, tmp_path / "run", make_model(preset), updates=3, warmup=0.9)
    assert result.updates == 3


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_rise_and_fall(schedule):
    config = TrainingConfig(updates=100, warmup=0.1, schedule=schedule)
    factors = [rate_factor(config, done) for done in range(100)]
    assert 0 < factors[0] < factors[5] < factors[10] == 1.0
    assert factors[-1] == 1.0 if schedule == "constant" else factors[-1] < 0.02 < factors[50] < 1


def test_a_dead_tensor_stops_the_run_and_is_named(manifest, tmp_path):
    model = make_model("el")
    dead = model.adapters["a"].parts["l"]
    dead.extra = torch.nn.Parameter(torch.ones(3))
    model.train_adapter("a", head="asr")
    with pytest.raises(RuntimeError, match="extra .no gradient."):
        run_training(manifest, tmp_path / "run", model, updates=3)


def test_early_stopping_keeps_the_best(manifest, tmp_path):
    _, run, result = run_training(
        manifest, tmp_path / "run", dev=manifest, updates=30, evaluate_every=2, patience=2, warmup=0.0,
        learning_rates={"head": 3.0}, keep="loss",
    )  # fmt: skip
    curve = [line["eval_loss"] for line in run.read_metrics() if "eval_loss" in line]
    assert result.best_dev_loss == min(curve)
    assert result.updates < 30 and curve[-1] > min(curve)


def test_a_run_that_is_stopped_between_two_lines_knows_its_loss(manifest, tmp_path):
    _, run, result = run_training(
        manifest, tmp_path / "run", dev=manifest, updates=30, evaluate_every=1, patience=1, warmup=0.0, log_every=20,
        learning_rates={"head": 3.0}, keep="loss",
    )  # fmt: skip
    lines = [line for line in run.read_metrics() if "loss" in line]
    assert result.updates < 20 and [line["step"] for line in lines] == [result.updates]
    assert result.final_loss == lines[0]["loss"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_held_out_losses_are_means_over_utterances_however_they_are_batched(manifest, tmp_path, reduction):
    found = []
    for place, seconds in enumerate((1.2, 6.0)):  # one by one, and several
        model = make_model(head=replace(HEAD, reduction=reduction))
        rates = dict.fromkeys(model.parameter_groups(), 1e-12)
        options = {"dev": manifest, "updates": 1, "evaluate_every": 1, "learning_rates": rates}
        _, run, _ = run_training(manifest, tmp_path / str(place), model, batch_seconds=seconds, **options)
        found.append(next(line["eval_loss"] for line in run.read_metrics() if "eval_loss" in line))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_state_with_the_fewest_errors_is_kept(manifest, tmp_path):
    spoken = manifest.map(lambda u: replace(u, emotion=u.text.lower()))
    # a few false labels in the dev set: sure of the others, the loss rises while errors fall
    false = {u.id: "no" for u in spoken[:6:3]}
    dev = spoken.map(lambda u: replace(u, emotion=false.get(u.id, u.emotion)))
    options = {"dev": dev, "updates": 40, "evaluate_every": 1, "warmup": 0.0, "learning_rates": {"head": 0.3}}
    head = ClassificationHead(labels=("yes", "no", "maybe"))
    curves = {}
    for keep in (None, "loss"):
        model, run, result = run_training(spoken, tmp_path / str(keep), make_model(head=head), keep=keep, **options)
        curve = [(line["eval_error"], line["eval_loss"]) for line in run.read_metrics() if "eval_loss" in line]
        curves[keep] = [loss for _, loss in curve].index(result.best_dev_loss)
        if keep is None:  # of equal errors the lower loss
            least = min(error for error, _ in curve)
            assert result.best_dev_loss == min(loss for error, loss in curve if error == least)
            scored = evaluate_classification(model, dev, batch_seconds=3.0).result
            wrong = sum(u.prediction != u.label for u in scored.runs[0]) / len(spoken)
            assert 0 <= least < curve[0][0] and wrong == pytest.approx(least)
    assert curves[None] != curves["loss"]
    with pytest.raises(ConfigError, match="keep=error: needs evaluations: set evaluate_every"):
        TrainingConfig(keep="error")
    speakers = make_model(head=SpeakerHead(speakers=manifest.speakers))
    with pytest.raises(ConfigError, match="keep=error: this head cannot score held-out speakers"):
        run_training(manifest, tmp_path / "speakers", speakers, keep="error", **options | {"dev": manifest})


def test_a_checkpoint_from_before_a_setting_goes_on(manifest, tmp_path):
    options = {"updates": 4, "save_minutes": 0, "evaluate_every": 2, "dev": manifest}
    whole, _, _ = run_training(manifest, tmp_path / "whole", **options)
    model = make_model()
    kill_at(model, 3)
    with pytest.raises(Killed):
        run_training(manifest, tmp_path / "run", model, **options)
    path = RunFolder(tmp_path / "run").checkpoint("m")
    content = torch.load(path, weights_only=True)
    assert content["settings"][""].pop("keep") == repr(None)
    torch.save(content, path)
    with pytest.raises(ConfigError, match="keep=None, not 'error'"):
        run_training(manifest, tmp_path / "run", keep="error", **options)
    again, _, _ = run_training(manifest, tmp_path / "run", **options)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


def test_a_run_goes_on_in_as_many_processes_as_it_was_begun_in(manifest, tmp_path):
    model = make_model()
    kill_at(model, 3)
    with pytest.raises(Killed):
        run_training(manifest, tmp_path / "run", model, updates=4, save_minutes=0)
    path = RunFolder(tmp_path / "run").checkpoint("m")
    torch.save(torch.load(path, weights_only=True) | {"processes": 2}, path)
    with pytest.raises(ConfigError, match="was begun by 2 processes, not 1; go on with as many"):
        run_training(manifest, tmp_path / "run", updates=4)


def test_a_folder_that_another_process_trains_in_is_left_alone(manifest, tmp_path):
    data, run = SpeechDataset(manifest, HEAD.target), RunFolder(tmp_path)
    with (tmp_path / ".lock").open("w") as lock:
        pytest.importorskip("fcntl").flock(lock, 2)  # LOCK_EX
        with pytest.raises(InUseError, match="another process writes to this folder"):
            train(make_model(), data, TrainingConfig(**QUIET, updates=1), run, name="m")
    assert not run.metrics_file.exists()
    assert train(make_model(), data, TrainingConfig(**QUIET, updates=1), run, name="m").updates == 1


def test_a_training_that_another_process_ends_meanwhile_is_not_made_again(manifest, tmp_path, monkeypatch):
    step, model, others = loop._Training._hold, make_model(), iter([make_model()])

    def taken_late(training):
        """The other process trains between this one's look at the checkpoint and its hold of the folder."""
        for other in others:
            run_training(manifest, tmp_path, other, updates=2)
            release(tmp_path)
        return step(training)

    monkeypatch.setattr(loop._Training, "_hold", taken_late)
    kill_at(model, 1)
    _, run, result = run_training(manifest, tmp_path, model, updates=2)
    assert result.updates == 2 and len(losses(run)) == 2


def test_a_training_that_one_process_found_ended_and_another_did_not_is_looked_at_again(
    manifest, tmp_path, monkeypatch
):
    run_training(manifest, tmp_path, make_model(), updates=2)
    release(tmp_path)
    load, looks, answers = loop._Training._load, [], iter([[False]])  # the other process looked too early
    monkeypatch.setattr(loop._Training, "_in_all_processes", lambda self, own: next(answers, own))
    monkeypatch.setattr(loop._Training, "_load", lambda self, path: (looks.append(held()), load(self, path))[1])
    _, run, result = run_training(manifest, tmp_path, make_model(), updates=2)
    assert result.updates == 2 and len(losses(run)) == 2
    assert [tmp_path in folders for folders in looks] == [False, True], "the second time under the lock"


def test_an_epoch_without_a_batch_is_an_error(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(Supervised, "batches", lambda self, at: iter(()))
    with pytest.raises(InputError, match="'m': an epoch has no batch for process 1 of 1; take shorter batches"):
        run_training(manifest, tmp_path / "run", updates=1)


def test_processes_that_read_leave_signals_to_the_main_one(manifest):
    data = SpeechDataset(manifest, HEAD.target)
    loader = DataLoader(data, batch_size=1, num_workers=1, collate_fn=collate, worker_init_fn=ignore_interrupts)
    batches = iter(loader)
    next(batches)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(multiprocessing.active_children()[0].pid, number)
    assert len(list(batches)) == len(manifest) - 1


def test_time_mask_hides_about_the_asked_share():
    model, config = make_model(), TrainingConfig(**QUIET, time_mask_probability=0.1)
    lengths = torch.tensor([160000] * 50 + [16000])
    mask = time_mask(model.encoder, {"waveforms": torch.empty(len(lengths), 160000), "lengths": lengths}, config)
    assert mask.shape == (51, int(model.encoder.frame_lengths(160000)))
    assert 0.06 < mask[:50].float().mean() < 0.14
    assert not mask[50, int(model.encoder.frame_lengths(16000)) :].any()


def test_bad_data_is_found_before_training(manifest):
    encoder = small_encoder("wavlm", "pre-norm")
    HEAD.check(manifest, encoder)
    with pytest.raises(TextError, match="u3"):
        HEAD.check(Manifest([replace(manifest[3], text="ROOM 42")], "m"), encoder)
    with pytest.raises(TextError, match="longer than their audio"):
        HEAD.check(Manifest([replace(manifest[3], text="A" * 200)], "m"), encoder)
    with pytest.raises(AudioError, match="receptive field"):
        HEAD.check(Manifest([replace(manifest[3], duration=0.01)], "m"), encoder)


@pytest.mark.parametrize(
    ("seconds", "speeds", "problem"),
    [(2.9, (0.9, 1.0, 1.1), "longer than the 3.0 s .* at speed 0.9, such as u0"), (0.026, (1.25,), "receptive field")],
)
def test_what_a_speed_makes_too_long_or_short_is_found_before_training(
    manifest, tmp_path, monkeypatch, seconds, speeds, problem
):
    model = SpeechAdapterModel(small_encoder("whisper"))
    model.add_adapter("a", "l-frozen")
    model.add_head("asr", HEAD)
    model.train_adapter("a", head="asr")
    data = SpeechDataset(
        Manifest([replace(manifest[0], duration=seconds)], "m"), HEAD.target, Augmentation(speeds=speeds)
    )
    monkeypatch.setattr("speech_adapters.training.supervised.fit", lambda *_: None)
    settings, run = TrainingConfig(**QUIET, augmentation=data.augmentation), RunFolder(tmp_path)
    with pytest.raises(AudioError, match=problem):
        train(model, data, settings, run)
    train(model, data, replace(settings, augmentation=Augmentation(speeds=(1.0,))), run)
    never = Augmentation(speeds=speeds, speed_probability=0.0)
    train(model, data, replace(settings, augmentation=never), run)


TWO_PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_training import HEAD, QUIET, make_model
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train
config = TrainingConfig(**QUIET, updates=4, accumulation={accumulation})
manifest = Manifest.read({manifest!r}, require=("text",))
train(make_model(), SpeechDataset(manifest, HEAD.target), config, RunFolder({folder!r}), name="m")
"""


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_accumulation(manifest, tmp_path):
    manifest.write(tmp_path / "train.jsonl")
    curves = []
    for name, launcher, accumulation in (
        ("one", [sys.executable], 2),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29611"], 1),
    ):
        (tmp_path / name).mkdir()
        script = tmp_path / f"{name}.py"
        script.write_text(
            TWO_PROCESSES.format(
                tests=str(Path(__file__).parent),
                accumulation=accumulation,
                manifest=str(tmp_path / "train.jsonl"),
                folder=str(tmp_path / name),
            )
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([*launcher, str(script)], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        curves.append([line["loss"] for line in lines if "loss" in line])
    assert len(curves[0]) == 4
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


WATCHED_BY_TWO = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_training import QUIET, make_model
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.data.manifest import Manifest
from speech_adapters.heads import SpeakerHead
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.processes import processes
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train
manifest = Manifest.read({manifest!r}, require=("text",))
head = SpeakerHead(speakers=("s0", "s1", "s2", "s3"), network="ecapa", channels=8, embedding_size=8)
config = TrainingConfig(**QUIET, updates=12, evaluate_every=1, patience=1, learning_rates={{"head": 0.1}}, warmup=0.0)
model, data = make_model("head-only", head), SpeechDataset(manifest, head.target)
done = train(model, data, config, RunFolder({folder!r}), data, name="m")
torch.save((done.updates, dict(model.head.named_buffers())), Path({folder!r}, f"rank{{processes().process_index}}.pt"))
"""


@pytest.mark.slow
def test_processes_evaluate_one_model_and_stop_together(manifest, tmp_path):
    """Batch norm's statistics are of each process's own batches, and what is kept and when it ends hangs on them."""
    manifest.write(tmp_path / "train.jsonl")
    values = {"tests": str(Path(__file__).parent), "manifest": str(tmp_path / "train.jsonl"), "folder": str(tmp_path)}
    (tmp_path / "script.py").write_text(WATCHED_BY_TWO.format(**values))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29612"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (updates, buffers), (others_updates, others) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert updates == others_updates and buffers
    assert all(torch.equal(buffers[name], others[name]) for name in buffers)


def test_an_evaluation_that_is_no_number_is_never_the_best(manifest, tmp_path, monkeypatch):
    found = iter([math.nan, 1.0, 0.5, math.nan])
    monkeypatch.setattr(Supervised, "evaluate", lambda self: {"loss": next(found)})
    settings = {"updates": 4, "evaluate_every": 1, "keep": "loss", "patience": 2}
    done = train(
        make_model(), SpeechDataset(manifest, HEAD.target), TrainingConfig(**QUIET, **settings), RunFolder(tmp_path),
        SpeechDataset(manifest, HEAD.target), name="m",
    )  # fmt: skip
    assert done.updates == 4 and done.best_dev_loss == 0.5


def test_a_run_killed_before_its_first_checkpoint_logs_once(manifest, tmp_path):
    torn = '{"method": "m", "step": 1, "loss": 3.0}\n{"method": "other", "step": 1}\n{"method": "m", "st'
    (tmp_path / "metrics.jsonl").write_text(torn)
    run, data = RunFolder(tmp_path), SpeechDataset(manifest, HEAD.target)
    train(make_model(), data, TrainingConfig(**QUIET, updates=2), run, name="m")
    assert [(line["method"], line["step"]) for line in run.read_metrics()] == [("other", 1), ("m", 1), ("m", 2)]


@pytest.mark.parametrize("option", [{"crop_seconds": 0.5}, {"augmentation": Augmentation()}])
def test_settings_that_the_dataset_does_not_know_are_refused(manifest, tmp_path, option):
    head = SpeakerHead(speakers=("s0", "s1", "s2", "s3"))
    settings = TrainingConfig(**QUIET, updates=1, **option)
    with pytest.raises(ConfigError, match=f"training.{next(iter(option))}=.*which the dataset does not apply"):
        train(make_model("e", head), SpeechDataset(manifest, head.target), settings, RunFolder(tmp_path))
    data = SpeechDataset(manifest, head.target, **settings.dataset_options)
    assert train(make_model("e", head), data, settings, RunFolder(tmp_path)).updates == 1
