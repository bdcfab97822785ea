"""Several trainings in one pass end with what each gets alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_encoders import small_encoder
from small_models import METHODS
from test_training import QUIET, manifest  # noqa: F401  (a fixture)

from speech_adapters.data.batches import SpeechDataset
from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError, Interrupted
from speech_adapters.heads import ClassificationHead, CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training import loop
from speech_adapters.training.frozen import compute_taps
from speech_adapters.training.settings import Cache, TrainingConfig
from speech_adapters.training.supervised import train
from speech_adapters.training.together import Member, train_together

HEAD = CTCHead(dropout=0.1)
WORDS = ClassificationHead(labels=("YES", "NO", "MAYBE"), label_field="text", dropout=0.0)
METHOD_NAMES = (
    "lora-all",
    "elp",
    "l-frozen",
    "head-only",
    "weighted-sum",
    "cnn-adapter",
    "adalora",
    "last-2",
    "prefix",
)


def model_on(encoder: Encoder, method: str, name: str, head=HEAD, seed: int = 0) -> SpeechAdapterModel:
    torch.manual_seed(seed)
    model = SpeechAdapterModel(encoder)
    model.add_adapter(name, METHODS[method])
    model.add_head("head", head)
    model.train_adapter(name, head="head")
    return model


def config_of(**changes) -> TrainingConfig:
    return TrainingConfig(**{**QUIET, "updates": 6, "evaluate_every": 2, **changes})


def learnt(model: SpeechAdapterModel, name: str) -> dict[str, torch.Tensor]:
    tensors = {f"adapter/{key}": value.clone() for key, value in model.registry.adapter(name).tensors().items()}
    return tensors | {f"head/{key}": value.clone() for key, value in model.heads["head"].state_dict().items()}


def alone(folder, method, data, dev, config, style="pre-norm", head=HEAD):
    model = model_on(small_encoder("wavlm", style), method, "a", head, config.seed)
    run = RunFolder.create("alone", root=folder)
    result = train(model, data, config, run, dev, "a")
    return learnt(model, "a"), result, [line.get("loss", line.get("eval_loss")) for line in run.read_metrics()]


def check_equal(folder, cases, style="pre-norm", head=HEAD):
    """``cases``: name -> method, dataset, dev, config; one pass against one by one."""
    encoder = small_encoder("wavlm", style)
    members = []
    for name, (method, data, dev, config) in cases.items():
        model = model_on(encoder, method, name, head, config.seed)
        members.append(Member(name=name, model=model, dataset=data, dev=dev, config=config))
    run = RunFolder.create("together", root=folder)
    results = train_together(members, run)
    assert list(results) == list(cases)
    for member in members:
        method, data, dev, config = cases[member.name]
        expected, cost, lines = alone(
            folder / member.name, method, data, dev, replace(config, cache=None), style, head
        )
        found = learnt(member.model, member.name)
        assert {key.replace(f".{member.name}.", ".a.") for key in found} == expected.keys()
        for (key, one), two in zip(found.items(), expected.values(), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
        own = [line for line in run.read_metrics() if line["method"] == member.name]
        found_lines = [line.get("loss", line.get("eval_loss")) for line in own]
        torch.testing.assert_close(found_lines, lines, atol=1e-5, rtol=2e-5)
        result = results[member.name]
        assert result.updates == cost.updates and result.together == len(cases)
        assert result.best_dev_loss == pytest.approx(cost.best_dev_loss, rel=1e-5)
    return members


def test_methods_on_one_stream(tmp_path, manifest):  # noqa: F811
    data, dev = SpeechDataset(manifest, HEAD.target), SpeechDataset(manifest, HEAD.target)
    config = config_of(accumulation=2)
    check_equal(tmp_path, {f"m-{name}": (name, data, dev, config) for name in METHOD_NAMES})


@pytest.mark.parametrize("cached", [False, True])
def test_rates_seeds_and_domains(tmp_path, manifest, cached):  # noqa: F811
    data = SpeechDataset(manifest, HEAD.target)
    other = SpeechDataset(Manifest(list(manifest)[3:], "other"), HEAD.target)
    config = config_of(cache=Cache(folder=tmp_path / "cache", precision="fp32") if cached else None)
    fast = replace(config, learning_rates={"lora": 1e-2})
    check_equal(
        tmp_path,
        {
            "one": ("lora", data, data, config),
            "fast": ("lora", data, data, fast),
            "seed": ("lora", data, data, replace(config, seed=3)),
            "other": ("l-frozen", other, other, config),
            "before": ("p-proj", data, data, config),
        },
    )


def test_masks_group_norm_and_means(tmp_path, manifest):  # noqa: F811
    data = SpeechDataset(manifest, WORDS.target)
    masked = config_of(time_mask_probability=0.2)
    check_equal(tmp_path / "mask", {n: (n, data, data, masked) for n in ("bitfit", "head-only")}, head=WORDS)
    alone_in_batch = config_of(batch_seconds=0.1, accumulation=2, cache=Cache(folder=tmp_path / "c", precision="fp32"))
    cases = {
        "a1": ("head-only", data, data, alone_in_batch),
        "a2": ("head-only", data, data, replace(alone_in_batch, learning_rates={"head": 1e-2})),
    }
    check_equal(tmp_path / "mean", cases, "post-norm", WORDS)
    assert {path.parent.name for path in (tmp_path / "c").rglob("*.npz")} == {"mean-fp32"}


def test_what_is_constant_is_computed_once_a_batch(tmp_path, manifest, monkeypatch):  # noqa: F811
    calls = []
    forward = Encoder.forward

    def count(self, waveforms=None, *arguments, **options):
        if waveforms is not None:
            calls.append(options.get("stop_layer"))
        return forward(self, waveforms, *arguments, **options)

    monkeypatch.setattr(Encoder, "forward", count)
    encoder, data = small_encoder(), SpeechDataset(manifest, HEAD.target)
    config = config_of(evaluate_every=0)
    members = [
        Member(name=f"m-{name}", model=model_on(encoder, name, f"m-{name}"), dataset=data, config=config)
        for name in ("lora", "l-frozen", "head-only", "last-2")
    ]
    train_together(members, RunFolder.create("together", root=tmp_path))
    assert calls == [3] * 6, "the frozen encoder, once an update; nothing else starts at waveforms"


def test_one_may_stop_early_and_one_may_break(tmp_path, manifest):  # noqa: F811
    data = SpeechDataset(manifest, HEAD.target)
    config = config_of(updates=12, evaluate_every=1, patience=2, schedule="constant", warmup=0.0)
    wild = replace(config, learning_rates={"head": 3.0})
    members = check_equal(
        tmp_path, {"calm": ("head-only", data, data, config), "wild": ("head-only", data, data, wild)}
    )
    assert members[0].model.encoder is members[1].model.encoder


def test_a_stopped_pass_goes_on_to_the_same_bits(tmp_path, manifest, monkeypatch):  # noqa: F811
    data, config = SpeechDataset(manifest, HEAD.target), config_of(save_minutes=0.0)

    def members():
        encoder = small_encoder()
        return [
            Member(name=n, model=model_on(encoder, n, n), dataset=data, dev=data, config=config)
            for n in ("lora", "l-frozen")
        ]

    whole = members()
    train_together(whole, RunFolder.create("whole", path=tmp_path / "whole"))
    save = loop._Training._save

    def stop_after_four(self, path, results=None):
        save(self, path, results)
        if self.progress.done == 4:
            raise Interrupted("", 130)

    monkeypatch.setattr(loop._Training, "_save", stop_after_four)
    with pytest.raises(Interrupted):
        train_together(members(), RunFolder.create("run", path=tmp_path / "run"))
    monkeypatch.setattr(loop._Training, "_save", save)
    for _ in range(2):  # the second one finds it finished
        again = members()
        results = train_together(again, RunFolder(tmp_path / "run"))
        assert results["lora"].updates == 6
        for one, two in zip(whole, again, strict=True):
            found, expected = learnt(two.model, two.name), learnt(one.model, one.name)
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    changed = [replace(again[0], config=replace(config, learning_rates={"lora": 1.0})), again[1]]
    with pytest.raises(ConfigError, match="begun with training.learning_rates"):
        train_together(changed, RunFolder(tmp_path / "run"))


def test_what_cannot_go_together_is_refused(tmp_path, manifest):  # noqa: F811
    encoder, data, config = small_encoder(), SpeechDataset(manifest, HEAD.target), config_of(evaluate_every=0)
    run = RunFolder.create("together", root=tmp_path)
    one = Member(name="one", model=model_on(encoder, "lora", "one"), dataset=data, config=config)
    two = replace(one, name="two", model=model_on(encoder, "e", "two"))
    with pytest.raises(ConfigError, match="each with a name of its own"):
        train_together([one, replace(two, name="one")], run)
    with pytest.raises(ConfigError, match="'two' uses another Encoder"):
        train_together([one, replace(two, model=model_on(small_encoder(), "e", "two"))], run)
    with pytest.raises(ConfigError, match="differ in more than seed and learning rates"):
        train_together([one, replace(two, config=replace(config, updates=7))], run)
    with pytest.raises(ConfigError, match="needs a dev set"):
        train_together([replace(m, config=replace(config, evaluate_every=2)) for m in (one, two)], run)


def test_taps_do_not_depend_on_what_else_is_asked(manifest):  # noqa: F811
    encoder, wave = small_encoder(), torch.randn(2, 8000)
    lengths = torch.tensor([8000, 6000])
    together, frames = compute_taps(encoder, ["cnn", "state-0", "state-3"], wave, lengths)
    for tap, found in together.items():
        assert torch.equal(compute_taps(encoder, [tap], wave, lengths)[0][tap], found)
    assert frames.tolist() == encoder.frame_lengths(lengths).tolist()
