"""From one folder to the model: which base, adapter and head belong together, and what is refused."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from small_models import batch, shake

from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads import CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving.finding import find_parts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: adapter "lora" and the baseline "head-only", each with its head."""
    folder = tmp_path_factory.mktemp("runs") / "asr"
    for name in ("lora", "head-only"):
        model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
        model.add_adapter(name, name)
        model.add_head("asr", CTCHead())
        model.train_adapter(name, head="asr")
        shake(model)
        model.save_adapter(name, folder / "adapters" / name)
        model.save_head("asr", folder / "heads" / name)
    return folder


def test_an_adapter_brings_its_base_and_its_head(run: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = [
            SpeechAdapterModel.from_adapter(run / place)
            for place in ("adapters/lora", "heads/lora", "adapters/head-only")
        ]
    assert [model.active for model in models] == ["lora", "lora", "head-only"]
    assert all(model.active_head == "asr" and model.encoder.name == "tiny-wavlm" for model in models)
    waveforms, lengths = batch()
    first, second, base = [model(waveforms, lengths=lengths).logits for model in models]
    assert torch.equal(first, second) and not torch.allclose(first, base)
    assert find_parts(run / "heads" / "head-only").adapter is None, "the base alone"


def test_of_a_run_its_own_adapter_is_meant(run: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"2 adapters fit \(.*head-only, .*lora\); name one of them"):
        find_parts(run)
    results = run / "results.json"
    results.write_text(json.dumps({"adapter": "lora"}))
    found = find_parts(run)
    results.unlink()
    assert found.adapter == run / "adapters" / "lora" and found.head == run / "heads" / "lora"


def test_one_folder_may_hold_both_or_the_adapter_alone(run: Path, tmp_path: Path):
    model = SpeechAdapterModel.from_adapter(run / "adapters" / "lora")
    model.save_adapter("lora", tmp_path / "both")
    model.save_head("asr", tmp_path / "both")
    assert find_parts(tmp_path / "both").head == tmp_path / "both"
    model.save_adapter("lora", tmp_path / "alone" / "adapters" / "lora")
    assert find_parts(tmp_path / "alone").head is None
    assert SpeechAdapterModel.from_adapter(tmp_path / "alone").head is None
    given = SpeechAdapterModel.from_adapter(tmp_path / "alone", head=run / "heads" / "lora", encoder="tiny-wavlm")
    assert given.active_head == "asr"


def test_what_does_not_belong_together_is_named(run: Path, tmp_path: Path):
    model = SpeechAdapterModel.from_adapter(run / "adapters" / "lora")
    shake(model)
    model.save_adapter("lora", tmp_path / "adapters" / "lora")
    for name in ("one", "two"):
        model.save_head("asr", tmp_path / "heads" / name)
    with pytest.raises(CheckpointError, match=r"2 heads fit \(.*one, .*two\)"):
        find_parts(tmp_path)
    changed = tmp_path / "changed"
    shake(model).save_adapter("lora", changed / "adapters" / "lora")
    (changed / "heads").symlink_to(tmp_path / "heads")
    with pytest.raises(CheckpointError, match="none of the heads near it .* was trained on this adapter as it is"):
        find_parts(changed)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_parts(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="it holds no adapter and no head"):
        find_parts(tmp_path / "empty")
    lost = tmp_path / "lost" / "heads" / "lora"
    model.save_head("asr", lost)
    with pytest.raises(CheckpointError, match=r"trained on adapter 'lora' \(lora\), which cannot be found from it"):
        find_parts(lost)


def test_a_base_that_is_not_here_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("speech_adapters.encoders.shipped.PACKAGED", tmp_path)
    folder = run / "adapters" / "lora"
    with pytest.raises(ConfigError, match=re.escape(str(folder)) + r": its base is 'tiny-wavlm': .*--encoder"):
        SpeechAdapterModel.from_adapter(folder)
