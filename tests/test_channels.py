"""Files of several channels, and loud ones: one audio path for training, evaluation and checks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_encoders import stock_model
from test_recipes import run

from speech_adapters.data.audio import read_audio, write_audio
from speech_adapters.data.batches import SpeechDataset, evaluation_loader
from speech_adapters.data.corpus_check import check_corpus
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import AudioError, ConfigError, InputError
from speech_adapters.inference.recordings import recordings_of
from speech_adapters.tasks.asr import SpeechRecognition
from speech_adapters.tasks.base import Corpus, ExperimentConfig
from speech_adapters.tasks.experiment import run_experiment
from speech_adapters.training.settings import TrainingConfig


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> Path:
    """Three splits of stereo calls, the agent on the left; one line a call, no channel said."""
    folder = tmp_path_factory.mktemp("calls")
    rng = np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        lines = []
        for number in range(4):
            file = folder / split / f"call{number}.wav"
            file.parent.mkdir(exist_ok=True)
            soundfile.write(file, rng.uniform(-0.5, 0.5, (16_000, 2)) * [1.0, 0.1], 16_000)
            entry = {
                "audio_filepath": f"{split}/{file.name}",
                "duration": 1.0,
                "text": "YES",
                "speaker": f"{split}{number % 2}",
            }
            lines.append(json.dumps(entry) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    stock_model("hubert", "pre-norm").save_pretrained(folder / "encoder")
    (folder / "encoder" / "preprocessor_config.json").write_text('{"do_normalize": true}')
    return folder


def sound(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.parametrize(("channel", "column"), [(0, 0), (1, 1), ("mix", None)])
def test_training_and_evaluation_hear_the_channel(calls, channel, column):
    manifest = Manifest.read(calls / "test.jsonl", check_files=True, channel=channel)
    both = sound(calls / "test" / "call0.wav")
    wanted = torch.from_numpy(both.mean(1) if column is None else both[:, column].copy())
    training = SpeechDataset(manifest)
    assert torch.allclose(training.waveform(0), wanted, atol=float(wanted.abs().max()) / 32767)
    assert torch.equal(training.waveform(0), training.waveform(0))
    batch = next(iter(evaluation_loader(SpeechDataset(manifest, keep_in_memory=False), 60.0)))
    row = batch["indices"].tolist().index(0)
    assert torch.equal(batch["waveforms"][row], wanted)


def test_a_line_goes_before_the_run(calls):
    manifest = Manifest.read(calls / "test.jsonl").map(lambda u: u)
    said = Manifest([*manifest.with_channel(1)[:2], *manifest[2:]]).with_channel("mix")
    assert [utterance.channel for utterance in said] == [1, 1, "mix", "mix"]
    assert manifest.with_channel(None) is manifest
    keys = {manifest.with_channel(channel).content_key() for channel in (None, 0, 1, "mix")}
    assert len(keys) == 4


def test_a_file_of_one_channel_needs_none(calls, tmp_path):
    soundfile.write(tmp_path / "mono.wav", np.full(16_000, 0.1), 16_000)
    soundfile.write(tmp_path / "stereo.wav", np.full((16_000, 2), 0.1), 16_000)
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f'{{"audio_filepath": "{n}.wav", "duration": 1.0}}\n' for n in ("mono", "stereo")))
    plain = Manifest.read(path, channel=1)
    indexed = Manifest.make_index(path).with_channel(1)
    assert [u.channel for u in plain] == [u.channel for u in indexed] == [None, 1]
    assert not check_corpus([plain]) and len(plain[0].waveform()) == 16_000
    assert [r.channel for (r,) in recordings_of([tmp_path / "mono.wav", tmp_path / "stereo.wav"], channel=1)] == [
        None,
        1,
    ]
    for hear in (read_audio, recordings_of):  # of this very file
        with pytest.raises(AudioError, match="mono.wav: channel=1 does not exist; there is one channel, 0; name none"):
            hear(tmp_path / "mono.wav", channel=1)
        hear(tmp_path / "mono.wav", channel=0)


def test_check_says_which_files_need_one(calls):
    manifest = Manifest.read(calls / "train.jsonl")
    findings = check_corpus([manifest])
    assert len(findings) == 1 and "4 files of 2 channels, such as 'call0.wav'" in findings[0]
    assert 'the key "channel" (0, 1 or "mix") to the lines of the manifest, or give --channel' in findings[0]
    assert not check_corpus([manifest.with_channel(0)])
    for arguments, code in (([], 2), (["--channel", "1"], 0), (["--channel", "2"], 2)):
        run("-m", "speech_adapters.cli", "check", calls / "train.jsonl", *arguments, expect=code)


def test_one_manifest_is_not_both_learnt_from_and_scored_on(calls):
    train, dev = calls / "train.jsonl", calls / "dev.jsonl"
    for sets, other in (((train, dev, calls / "../calls0/train.jsonl"), "test"), ((train, train, dev), "dev")):
        with pytest.raises(ConfigError, match=f"train.jsonl: given as both train and {other}; .*manifest split"):
            Corpus.given(*(Path(str(path).replace("../calls0", f"../{calls.name}")) for path in sets), ("text",), 0)


def test_a_run_on_one_side_of_calls(calls, tmp_path):
    sets = [calls / f"{split}.jsonl" for split in ("train", "dev", "test")]
    with pytest.raises(InputError, match='2 channels; choose one with channel=0 or average with channel="mix"'):
        Corpus.given(*sets, require=("text",))
    config = ExperimentConfig(
        encoder=str(calls / "encoder"), adapter="lora", baselines=("none",), channel=1, output=tmp_path / "run",
        training=TrainingConfig(updates=2, batch_seconds=4, trackers=("none",)),
    )  # fmt: skip
    heard: list[Manifest] = []

    def find() -> list[Corpus]:
        corpus = Corpus.given(*sets, ("text",), config.channel)
        heard.extend(corpus.splits.values())
        return [corpus]

    results = run_experiment("calls", config, SpeechRecognition(), find)
    assert results is not None and {utterance.channel for manifest in heard for utterance in manifest} == {1}
    assert "channel: 1" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_the_recipes_take_channel(calls, tmp_path):
    sets = [f"--{split}={calls / split}.jsonl" for split in ("train", "dev", "test")]
    small = [
        f"--encoder={calls / 'encoder'}",
        "--adapter=lora",
        "--baselines=none",
        "training.updates=1",
        "training.cache=null",
    ]
    command = ["recipes/asr_librispeech.py", *sets, *small, f"--output={tmp_path / 'run'}"]
    for extra, code in (([], 2), (["--channel=mix"], 0), (["--channel=left"], 2)):
        done = run(*command, *extra, expect=code)
    assert "channel: expected" in done.stderr


@pytest.mark.parametrize(("suffix", "subtype"), [(".wav", None), (".flac", None), (".wav", "ULAW"), (".ogg", None)])
def test_loud_samples_are_never_clipped_in_silence(suffix, subtype, tmp_path):
    loud = torch.linspace(-2, 2, 8_000)
    path = tmp_path / f"loud{suffix}"
    with pytest.raises(AudioError, match=r'peaks of 2 do not fit its coding.*subtype="FLOAT", or with loud="scale"'):
        write_audio(path, loud, subtype=subtype)
    assert not path.exists()
    write_audio(path, loud, subtype=subtype, loud="scale")
    assert torch.allclose(read_audio(path)[1_000:-1_000], loud[1_000:-1_000] / 2, atol=0.1)
    write_audio(tmp_path / "float.wav", loud, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "float.wav"), loud)
