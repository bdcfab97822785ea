"""The recipe that adapts without labels: end to end on tones, and on again where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scripts import load_script
from small_encoders import stock_model

from speech_adapters import CTCHead, SpeechAdapterModel
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, ManifestError
from speech_adapters.tasks.downstream import Downstream
from speech_adapters.training.settings import TrainingConfig


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_script("recipes/adapt_unlabelled.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A saved adapter with its head, and test, dev and source manifests of tones."""
    folder, rng = tmp_path_factory.mktemp("unlabelled"), np.random.default_rng(0)
    for split, count in (("test", 6), ("dev", 2), ("source", 2)):
        utterances = []
        for i in range(count):
            pitch = np.repeat(rng.choice([200, 500, 1200, 3000], 4), 2000 + 100 * i)
            path = folder / f"{split}{i}.wav"
            wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + 0.01 * rng.standard_normal(len(pitch))
            write_audio(path, torch.tensor(wave, dtype=torch.float32))
            utterances.append(
                Utterance(f"{split}{i}", path, len(wave) / 16000, text="YES NO", speaker=f"{split}-{i % 2}",
                          domain=("noisy", "phone")[i // 2 % 2])
            )  # fmt: skip
        Manifest(utterances).write(folder / f"{split}.jsonl")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    model = SpeechAdapterModel.from_pretrained(folder / "encoder")
    torch.manual_seed(5)
    model.add_adapter("e", "e")
    model.add_head("asr", CTCHead())
    with torch.no_grad():
        for parameter in [*model.adapters.parameters(), *model.heads.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_adapter("e", folder / "run" / "adapters" / "e")
    model.save_head("asr", folder / "run" / "heads" / "e")
    return folder


def settings(place: Path, **changes):
    return {
        "adapter": place / "run", "test": place / "test.jsonl", "dev": place / "dev.jsonl",
        "source": place / "source.jsonl", "methods": ("entropy", "speaker-code", "prompt"), "precision": "fp32",
        "learning_rates": {"entropy": (1e-4, 1e-3)}, "seeds": (0, 1),
        "options": {"entropy": {"steps": 2}, "speaker-code": {"steps": 2, "beam": 2},
                    "prompt": {"rounds": 2, "population": 4}},
        **changes,
    }  # fmt: skip


def test_it_compares_and_goes_on_where_it_stopped(recipe, place, tmp_path) -> None:
    config = recipe.Config(**settings(place, output=tmp_path / "run"))
    recipe.main(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["adapter"] == "entropy" and set(results["baselines"]) == {"without", "speaker-code", "prompt"}
    assert set(results["dev_wer"]) == {"0.0001", "0.001"} and results["learning_rate"] in (1e-4, 1e-3)
    everywhere = results["by_domain"]
    assert set(everywhere) == {"all", "noisy", "phone"}
    (paired,) = everywhere["all"]["less_than_without"]
    assert paired["wins"] + paired["ties"] + paired["losses"] == 6 and paired["speakers"] == 2
    assert len(results["baselines"]["prompt"]["by_domain"]["noisy"]["less_than_without"]) == 2
    assert results["baselines"]["without"]["metrics"]["wer"]["value"] == pytest.approx(
        results["baselines"]["without"]["by_domain"]["all"]["wer"]["value"]
    )
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "worst.json").is_file()

    log = tmp_path / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines()
    said = {(line["method"], line["utterance"]): line["text"] for line in map(json.loads, lines)}
    assert len(lines) == len(said) == 6 * 5 + 2 * 2 * 2  # on dev, two rates of each of two methods
    log.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    (tmp_path / "run" / "results.json").unlink()
    recipe.main(config)
    again = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(line["method"], line["utterance"]): line["text"] for line in again} == said and len(again) == len(lines)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"] == results["metrics"]


def test_without_data_an_adapter_is_trained_on_the_demo(recipe, place, tmp_path, monkeypatch) -> None:
    def tagged(split: str, domains: tuple[str, ...]) -> Path:
        manifest = Manifest.read(place / f"{split}.jsonl")
        lines = [replace(u, domain=domains[i % len(domains)]) for i, u in enumerate(manifest)]
        Manifest(lines).write(tmp_path / f"{split}.jsonl")
        return tmp_path / f"{split}.jsonl"

    both = ("studio", "noisy")
    demo = SimpleNamespace(train=tagged("source", ("studio",)), dev=tagged("dev", both), test=tagged("test", both))
    monkeypatch.setattr("speech_adapters.corpora.demo.prepare_demo", lambda: demo)
    task = Downstream(training=TrainingConfig(updates=2, precision="fp32", trackers=("none",)))
    config = recipe.Config(
        encoder=str(place / "encoder"), methods=("speaker-code",), options={"speaker-code": {"steps": 1, "beam": 2}},
        training=task, precision="fp32", output=tmp_path / "run",
    )  # fmt: skip
    recipe.main(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["by_domain"]) == {"all", "noisy"}
    assert (tmp_path / "run" / "adapters" / "source" / "adapter.json").is_file()


def test_what_it_refuses(recipe, place, tmp_path) -> None:
    for changes, message in (
        ({"test": None}, "--adapter and --test together"),
        ({"methods": ("entropy", "entropy")}, "each once"),
        ({"methods": ("prompt",), "source": None, "options": {}, "learning_rates": {}}, "needs --source"),
        ({"methods": ("entropy",), "options": {"prompt": {}}}, "none of the methods"),
        ({"dev": None}, "need --dev"),
        ({"learning_rates": {"prompt": (1e-3,)}}, "its search has a step size"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipe.Config(**settings(place, **changes))
    same = recipe.Config(**settings(place, dev=place / "test.jsonl", output=tmp_path / "no"))
    with pytest.raises(ManifestError):
        recipe.main(same)
    assert not (tmp_path / "no").exists()


def test_recordings_without_texts_are_shown_to_transcribe(recipe, place, tmp_path) -> None:
    silent = Manifest.read(place / "test.jsonl").map(lambda u: replace(u, text=None))
    silent.write(tmp_path / "silent.jsonl")
    way = rf"transcribe --adapter {place / 'run'} --adapt entropy"
    for test, message in (
        (tmp_path / "silent.jsonl", f"silent.jsonl: no line has a text; .*{way} RECORDINGS"),
        (place, f"{place}: recordings, not a manifest .*{way} {place}"),
        (place / "test0.wav", f"test0.wav: recordings, not a manifest .*{way} {place / 'test0.wav'}"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipe.find_speech(recipe.Config(**settings(place, test=test)))
    one = silent.map(lambda u: replace(u, text="YES" if u.id == "test0" else None))
    one.write(tmp_path / "some.jsonl")
    with pytest.raises(ManifestError, match="'test1': lacks 'text'"):
        recipe.find_speech(recipe.Config(**settings(place, test=tmp_path / "some.jsonl")))
