"""Several tasks in turn: nothing of one is changed by another, unless they share it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_encoders import small_encoder

from speech_adapters.adapters import AdaLoRA, EAdapter, FineTuning
from speech_adapters.composition import Stack
from speech_adapters.data.audio import write_audio
from speech_adapters.data.batches import GuidedDataset, SpeechDataset, collate
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError
from speech_adapters.heads import CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.joint import JointTask, train_jointly
from speech_adapters.training.settings import TrainingConfig

HEAD = CTCHead(dropout=0.0)  # so that one task's random numbers do not reach another
QUIET = TrainingConfig(
    trackers=(), precision="fp32", batch_seconds=2.0, log_every=2, updates=4, learning_rates={"e": 1e-3}
)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> list[Manifest]:
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    utterances = []
    for index in range(12):
        path, samples = folder / f"u{index}.wav", 9600 + 400 * index
        write_audio(path, torch.tensor(rng.normal(0, 0.1, samples), dtype=torch.float32))
        domain = "studio" if index % 2 else "telephone"
        text = ("YES", "NO")[index % 2]
        utterances.append(
            Utterance(id=f"u{index}", audio_filepath=path, duration=samples / 16000, text=text, domain=domain)
        )
    whole = Manifest(utterances, "noise")
    return [whole.filter(lambda u, name=name: u.domain == name) for name in ("studio", "telephone")]


def make_model() -> SpeechAdapterModel:
    torch.manual_seed(0)
    model = SpeechAdapterModel(small_encoder("wavlm", "pre-norm", layers=2))
    for name in ("studio", "telephone", "shared"):
        model.add_adapter(name, EAdapter())
        model.add_head(name, HEAD)
    return model


def tasks(manifests, *values):
    pairs = zip(("studio", "telephone"), values or ("studio", "telephone"), manifests, strict=True)
    return [
        JointTask(name=name, adapter=value, head=name, dataset=SpeechDataset(manifest, HEAD.target))
        for name, value, manifest in pairs
    ]


def test_isolated_tasks_train_as_if_alone_to_the_last_bit(manifests, tmp_path):
    together, run = make_model(), RunFolder.create("joint", path=tmp_path / "run")
    train_jointly(together, tasks(manifests), QUIET, run)
    for number, name in enumerate(("studio", "telephone")):
        alone, own = make_model(), RunFolder.create("joint", path=tmp_path / name)
        train_jointly(alone, tasks(manifests)[number : number + 1], QUIET, own)
        lines = [[line["loss"] for line in r.read_metrics() if line["method"] == name] for r in (run, own)]
        assert lines[0] == lines[1] and len(lines[0]) == 2
        for kind in ("adapters", "heads"):
            one, other = getattr(together, kind)[name].state_dict(), getattr(alone, kind)[name].state_dict()
            assert all(torch.equal(one[key], other[key]) for key in one)
    untouched, fresh = together.adapters["shared"].state_dict(), make_model().adapters["shared"].state_dict()
    assert all(torch.equal(untouched[key], fresh[key]) for key in fresh)
    assert [line["step"] for line in run.read_metrics() if line["method"] == "studio"] == [2, 4]


def test_a_shared_adapter_learns_from_both(manifests, tmp_path):
    model = make_model()
    before = {key: tensor.clone() for key, tensor in model.adapters["shared"].state_dict().items()}
    stacks = Stack("shared", "studio"), Stack("shared", "telephone")
    train_jointly(model, tasks(manifests, *stacks), QUIET, RunFolder.create("joint", path=tmp_path / "both"))
    both = model.adapters["shared"].state_dict()
    alone = make_model()
    first = tasks(manifests, Stack("shared", "studio"), "telephone")[:1]
    train_jointly(alone, first, QUIET, RunFolder.create("joint", path=tmp_path / "alone"))
    for key, tensor in alone.adapters["shared"].state_dict().items():
        assert not torch.equal(both[key], before[key]) and not torch.equal(both[key], tensor), key


def test_crops_accumulation_evaluation_and_a_methods_schedule_hold_for_joint_training_too(manifests, tmp_path):
    model = make_model()
    model.add_adapter("pruned", AdaLoRA(rank=1, init_rank=2, every=1))
    model.add_adapter("unfrozen", FineTuning(gradual=True))
    own = [replace(task, dev=task.dataset) for task in tasks(manifests, "unfrozen", "pruned")]
    layers, trained = model.adapters["unfrozen"], []

    def look(head, _):
        if head.training:
            trained.append(sum(p.requires_grad for p in layers.parameters()))

    model.heads["studio"].register_forward_pre_hook(look)
    config = replace(QUIET, updates=10, accumulation=2, evaluate_every=5, learning_rates={})
    run = RunFolder.create("joint", path=tmp_path / "run")
    result = train_jointly(model, own, config, run)
    pruned = model.adapters["pruned"]
    assert sum(pruned.ranks().values()) == len(pruned.ranks())
    assert trained[0] < trained[-1] and trained == sorted(trained)  # layers come in from the top
    watched = [line for line in run.read_metrics() if "eval_loss" in line]
    assert [line["step"] for line in watched] == [5, 10] and "eval_studio" in watched[0]
    fewest = min(watched, key=lambda line: (line["eval_error"], line["eval_loss"]))
    assert result.best_dev_loss == fewest["eval_loss"] and fewest["eval_error"] > 0


def test_a_killed_joint_training_ends_with_the_same_bits(manifests, tmp_path):
    def trained(folder: str, forwards: int | None = None) -> SpeechAdapterModel:
        model = make_model()
        if forwards is not None:
            seen: list[int] = []

            def kill(*_):
                seen.append(1)
                if len(seen) == forwards:
                    raise RuntimeError("killed")

            model.heads["telephone"].register_forward_hook(kill)
        run = tmp_path / folder
        folder = RunFolder(run) if run.is_dir() else RunFolder.create("joint", path=run)
        config = replace(QUIET, accumulation=2, save_minutes=0)
        train_jointly(model, tasks(manifests, Stack("shared", "studio"), "telephone"), config, folder)
        return model

    expected = trained("whole").state_dict()
    for forwards in (2, 5):
        with pytest.raises(RuntimeError, match="killed"):
            trained("part", forwards)
    found = trained("part").state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_killed_joint_training_forgets_no_other_trainings_lines(manifests, tmp_path):
    run = RunFolder.create("joint", path=tmp_path / "run")
    for seed in range(2):
        train_jointly(make_model(), tasks(manifests), replace(QUIET, seed=seed), run, name=f"joint-seed{seed}")
    lines = run.read_metrics()
    run.checkpoint("joint-seed1").unlink()
    train_jointly(
        make_model(), tasks(manifests), replace(QUIET, seed=1), RunFolder(tmp_path / "run"), name="joint-seed1"
    )
    assert run.read_metrics() == lines and {line["training"] for line in lines} == {"joint-seed0", "joint-seed1"}


def test_wrong_tasks_are_config_errors(manifests, tmp_path):
    model, own = make_model(), tasks(manifests)
    run = RunFolder.create("joint", path=tmp_path / "run")
    for wrong, config, message in (
        ([], QUIET, "give at least one, each with a name of its own"),
        ([own[0], own[0]], QUIET, "each with a name of its own"),
        (own, replace(QUIET, evaluate_every=1), "needs a dev set, and 'studio' has none"),
        (own, replace(QUIET, learning_rates={"lora": 1e-3}), "learning_rates.lora: no task of train_jointly has"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_jointly(model, wrong, config, run)


def test_a_guided_data_set_says_whose_each_utterance_is(manifests):
    whole = manifests[0] + manifests[1]
    data = GuidedDataset(whole, ["telephone"], target=HEAD.target)
    batch = collate([data[0], data[6], data[7]])
    assert batch["guide"].tolist() == [-100, 0, 0]
    assert "guide" not in collate([SpeechDataset(whole)[0]])
