"""Several tasks in turn: nothing of one is changed by another, unless they share it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_encoders import small_encoder

from speech_adapters.adapters import EAdapter
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
        model.add_adapter(name, EAdapter())  # no LayerNorms: in a stack the last ones replace the others
        model.add_head(name, HEAD)
    return model


def tasks(manifests, *values):
    pairs = zip(("studio", "telephone"), values or ("studio", "telephone"), manifests, strict=True)
    return [
        JointTask(name=name, value=value, head=name, dataset=SpeechDataset(manifest, HEAD.target))
        for name, value, manifest in pairs
    ]


def test_isolated_tasks_train_as_if_alone_to_the_last_bit(manifests, tmp_path):
    together, run = make_model(), RunFolder.create("joint", path=tmp_path / "run")
    losses = train_jointly(together, tasks(manifests), QUIET, run)
    for number, name in enumerate(("studio", "telephone")):
        alone = make_model()
        own = train_jointly(alone, tasks(manifests)[number : number + 1], QUIET)
        assert losses[name] == own[name] and len(losses[name]) == 4
        for kind in ("adapters", "heads"):
            one, other = getattr(together, kind)[name].state_dict(), getattr(alone, kind)[name].state_dict()
            assert all(torch.equal(one[key], other[key]) for key in one)
    untouched, fresh = together.adapters["shared"].state_dict(), make_model().adapters["shared"].state_dict()
    assert all(torch.equal(untouched[key], fresh[key]) for key in fresh)
    assert [line["step"] for line in run.read_metrics() if line["method"] == "studio"] == [2, 4]


def test_a_shared_adapter_learns_from_both(manifests):
    model = make_model()
    before = {key: tensor.clone() for key, tensor in model.adapters["shared"].state_dict().items()}
    train_jointly(model, tasks(manifests, Stack("shared", "studio"), Stack("shared", "telephone")), QUIET)
    both = model.adapters["shared"].state_dict()
    alone = make_model()
    train_jointly(alone, tasks(manifests, Stack("shared", "studio"), "telephone")[:1], QUIET)
    for key, tensor in alone.adapters["shared"].state_dict().items():
        assert not torch.equal(both[key], before[key]) and not torch.equal(both[key], tensor), key


def test_wrong_tasks_are_config_errors(manifests):
    model, own = make_model(), tasks(manifests)
    for wrong, config, message in (
        ([], QUIET, "give at least one, each with a name of its own"),
        ([own[0], own[0]], QUIET, "each with a name of its own"),
        (
            own,
            TrainingConfig(trackers=(), accumulation=2),
            "training.accumulation is the single-task trainer's; set it to 1",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            train_jointly(model, wrong, config)


def test_a_guided_data_set_says_whose_each_utterance_is(manifests):
    whole = manifests[0] + manifests[1]
    data = GuidedDataset(whole, ["telephone"], target=HEAD.target)
    batch = collate([data[0], data[6], data[7]])
    assert batch["guide"].tolist() == [-100, 0, 0]
    assert "guide" not in collate([SpeechDataset(whole)[0]])
