"""Repositories of the hub: cached parts complete themselves, nothing more than an encoder needs is downloaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from public_checkpoints import CHECKPOINTS, PublicCheckpoint, build
from small_encoders import small_encoder

from speech_adapters.encoders import hub, load_encoder
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads import CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.text import Vocabulary

NAME, COMMIT = "someone/encoder", "0123456789abcdef0123456789abcdef01234567"
BY_FOLDER = {checkpoint.folder: checkpoint for checkpoint in CHECKPOINTS}
RECOGNISER, MMS = BY_FOLDER["facebook--wav2vec2-base-960h"], BY_FOLDER["facebook--mms-1b-all"]


class Hub:
    """A hub on disk with one repository, and a cache in Hugging Face's layout."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.remote, self.cache, self.asked, self.online = root / "remote", root / "cache", [], True
        self.repository = self.cache / "models--someone--encoder"
        self.snapshot = self.repository / "snapshots" / COMMIT
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(hub, "is_reachable", lambda endpoint: self.online)

    def download(self, name: str, file: str, revision: str | None = None) -> str:
        assert name == NAME and revision in (None, "main", COMMIT)
        self.asked.append(file)
        if not (self.remote / file).is_file():
            unknown = self.repository / ".no_exist" / COMMIT / file
            unknown.parent.mkdir(parents=True, exist_ok=True)
            unknown.touch()
            raise EntryNotFoundError(file)
        return str(self.have(file))

    def have(self, *files: str) -> Path:
        """Put files of the repository into the cache."""
        for file in files:
            self.snapshot.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.remote / file, self.snapshot / file)
        (self.repository / "refs").mkdir(exist_ok=True)
        (self.repository / "refs" / "main").write_text(COMMIT)
        return self.snapshot / files[-1]

    def publish(self, checkpoint: PublicCheckpoint, **changes) -> list[str]:
        """Its files."""
        build(replace(checkpoint, **changes), self.remote)
        return sorted(path.name for path in self.remote.iterdir())

    @property
    def cached(self) -> set[str]:
        return {path.name for path in self.snapshot.iterdir()}


@pytest.fixture
def world(tmp_path, monkeypatch) -> Hub:
    return Hub(tmp_path, monkeypatch)


def test_a_first_download_takes_what_is_needed_and_the_second_asks_for_nothing(world):
    files = world.publish(RECOGNISER)
    (world.remote / "tf_model.h5").touch()
    (world.remote / "pytorch_model.bin").touch()
    first = load_encoder(NAME)
    assert world.cached == set(files) and first.ctc.vocabulary is not None
    assert "pytorch_model.bin" not in world.asked and "tf_model.h5" not in world.asked
    world.asked.clear()
    assert load_encoder(NAME).fingerprint == first.fingerprint and not world.asked
    world.online = False
    assert load_encoder(NAME, revision="main").fingerprint == first.fingerprint
    assert load_encoder(NAME, revision=COMMIT).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("cached", "changes"),
    [
        (("config.json",), {}),
        (("model.safetensors", "config.json"), {}),
        (("config.json", "vocab.json"), {"weights": "pytorch_model.bin"}),
        (("config.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors"), {"shards": True}),
        (("pytorch_model.bin.index.json", "config.json"), {"shards": True, "weights": "pytorch_model.bin"}),
    ],
    ids=["config", "no-preprocessor", "no-weights", "one-shard", "no-shard"],
)
def test_a_cached_part_completes_itself_or_says_offline_what_it_lacks(cached, changes, world):
    files = world.publish(RECOGNISER, **changes)
    world.have(*cached)
    expected = load_encoder(world.remote).fingerprint
    if any(name.startswith(("model", "pytorch")) and name not in cached for name in files):
        world.online = False
        lacking = "model-00001-of-00002.safetensors" if changes == {"shards": True} else ".*model"
        with pytest.raises(ConfigError, match=f"{lacking}.* is not in the hub cache, and .* cannot be reached"):
            load_encoder(NAME)
        world.online = True
    encoder = load_encoder(NAME)
    assert encoder.fingerprint == expected and encoder.normalize and world.cached == set(files)
    assert not set(world.asked) & set(cached)


def test_cached_weights_of_the_old_kind_are_taken_before_new_ones_are_downloaded(world):
    world.publish(RECOGNISER, weights="pytorch_model.bin")
    world.have("config.json", "pytorch_model.bin", "preprocessor_config.json")
    (world.remote / "model.safetensors").write_bytes(b"others")
    assert load_encoder(NAME).normalize and "model.safetensors" not in world.cached


def test_an_absent_preprocessor_is_asked_of_the_hub_and_offline_the_family_decides(world):
    world.publish(BY_FOLDER["microsoft--wavlm-base-plus"])
    content = {**json.loads((world.remote / "preprocessor_config.json").read_text()), "do_normalize": True}
    (world.remote / "preprocessor_config.json").write_text(json.dumps(content))
    world.have("config.json", "pytorch_model.bin")
    world.online = False
    with pytest.warns(
        UserWarning, match="no processor_config.json or .*: waveforms are heard as they are, as for the"
    ):
        assert not load_encoder(NAME).normalize, "as WavLM Base was published"
    world.online = True
    assert load_encoder(NAME).normalize, "as this one was"


def test_what_was_cached_before_does_not_decide_how_waveforms_are_heard(world):
    """A processor's word goes over a preprocessor's: the cache of a library that knew the latter alone lacks it."""
    world.publish(BY_FOLDER["microsoft--wavlm-base-plus"])
    (world.remote / "processor_config.json").write_text(json.dumps({"feature_extractor": {"do_normalize": True}}))
    world.have("config.json", "pytorch_model.bin", "preprocessor_config.json")
    world.online = False
    assert not load_encoder(NAME).normalize
    world.online = True
    assert load_encoder(NAME).normalize and world.asked == ["processor_config.json"]


def test_a_hub_that_has_no_processor_is_asked_once(world):
    world.publish(BY_FOLDER["microsoft--wavlm-base-plus"])
    world.have("config.json", "pytorch_model.bin", "preprocessor_config.json")
    for _ in range(2):
        assert not load_encoder(NAME).normalize and world.asked == ["processor_config.json"]


@pytest.mark.parametrize("architectures", [["Wav2Vec2ForCTC"], None])
def test_subwords_come_with_their_tokenizer(architectures, world):
    """Also where the configuration does not say that it is a recogniser's."""
    model = SpeechAdapterModel(small_encoder("wav2vec2", "pre-norm"))
    vocabulary = Vocabulary.from_subwords(["die grosse der strasse", "schone grusse aus ulm"] * 20, size=40)
    model.add_adapter("a", "lora")
    model.add_head("h", CTCHead(vocabulary=vocabulary))
    model.save_folded("a", world.remote, head="h")
    config = json.loads((world.remote / "config.json").read_text())
    (world.remote / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    read, ids = Vocabulary.load(load_encoder(NAME).ctc.vocabulary), vocabulary.encode("die grosse ulm")
    assert read.encode("die grosse ulm") == ids and read.decode(ids) == "die grosse ulm"


def test_of_a_thousand_languages_one_is_downloaded(world):
    world.publish(MMS)
    load_encoder(NAME)
    assert not any(name.startswith("adapter.") for name in world.cached)
    load_encoder(NAME, target_lang="fra")
    load_encoder(NAME, target_lang="uzb-script_cyrillic")
    found = sorted(name for name in world.cached if name.startswith("adapter."))
    assert found == ["adapter.fra.safetensors", "adapter.uzb-script_cyrillic.bin"]
    with pytest.raises(CheckpointError, match="no adapter.deu.safetensors or adapter.deu.bin in this repository"):
        load_encoder(NAME, target_lang="deu")
    world.online = False
    with pytest.raises(ConfigError, match="adapter.eng.safetensors or adapter.eng.bin is not in the hub cache"):
        load_encoder(NAME, target_lang="eng")


def test_what_is_not_there_is_told_apart(world, monkeypatch):
    world.remote.mkdir()
    with pytest.raises(CheckpointError, match="no config.json in this repository"):
        load_encoder(NAME)
    world.publish(RECOGNISER)
    (world.remote / "model.safetensors").unlink()
    shutil.rmtree(world.repository)
    with pytest.raises(CheckpointError, match="no model.safetensors or pytorch_model.bin in this repository"):
        load_encoder(NAME)
    for error, message in (
        (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "no such repository or revision None on"),
        (LocalEntryNotFoundError("gone"), r"cannot be reached.*\(LocalEntryNotFoundError\)"),
        (ConnectionError("gone"), r"cannot be reached.*\(ConnectionError\)"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        shutil.rmtree(world.cache, ignore_errors=True)
        with pytest.raises(ConfigError, match=message):
            load_encoder(NAME)
