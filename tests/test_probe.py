"""The probe suite: linear probes find what is there, on unseen speakers, and report it with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scripts import load_script
from small_encoders import small_encoder, stock_model
from test_distillation import noise, save_tiny_teacher

from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, ManifestError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.runs.folder import RunFolder

DIGITS, SPEAKERS = ("ZERO", "ONE", "TWO"), ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    return load_script("benchmarks/probe_encoder.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word is the pitch of a tone, a speaker the depth of its tremolo: an encoder need not be trained to tell."""
    folder, rng, times = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0), np.arange(6400) / 16_000
    (folder / "audio").mkdir()
    utterances: dict[str, list[Utterance]] = {"train": [], "test": []}
    for s, speaker in enumerate(SPEAKERS):
        for d, digit in enumerate(DIGITS):
            for take in range(6):
                name = f"{speaker}{digit}{take}"
                count = 6400 - 160 * take
                tone = np.sin(2 * np.pi * 400 * 2**d * times) * (1 + s / 2 * np.sin(2 * np.pi * 30 * times))
                tone = 0.2 * tone + 0.01 * rng.standard_normal(6400)
                write_audio(folder / "audio" / f"{name}.wav", torch.from_numpy(tone[:count]).float())
                utterance = Utterance(
                    name, folder / "audio" / f"{name}.wav", count / 16_000, text=digit, speaker=speaker, emotion=digit
                )
                utterances["train" if s < 3 else "test"].append(utterance)
    for part, chosen in utterances.items():
        Manifest(chosen).write(folder / f"{part}.jsonl")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    return folder


def flags(corpus: Path, out: Path, *more: str) -> list[str]:
    train, test = corpus / "train.jsonl", corpus / "test.jsonl"
    manifests = [f"{task}_{part}={path}" for task in ("digits", "emotion", "ctc")
                 for part, path in (("train", train), ("test", test))]  # fmt: skip
    return [f"encoder={corpus / 'encoder'}", f"out={out}", f"speaker={train}", *manifests, *more]


@pytest.mark.slow
def test_everything_at_once(probe: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_tiny_teacher(tmp_path / "teacher.safetensors")
    more = ("--random", "--teacher", str(tmp_path / "teacher.safetensors"), "ctc_epochs=1")
    probe.main(flags(corpus, tmp_path / "out", *more))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    probes = results["probes"]
    assert set(results["baselines"]) == {"random", "teacher"}
    for task in ("digits", "emotion", "speaker"):
        assert len(probes[task]["layers"]) == 4 and probes[task]["chance"] == pytest.approx(1 / 3)
        assert probes[task]["layers"][probes[task]["best"]] == max(probes[task]["layers"])
        score = results["metrics"][task]
        assert score["low"] <= score["value"] <= score["high"]
    assert results["metrics"]["digits"]["value"] > 0.9  # of an unheard speaker
    assert probes["speed"]["padding_difference"] < 1e-3 and probes["speed"]["times_real_time"] > 0
    assert results["baselines"]["teacher"]["probes"]["speed"]["padding_difference"] is None
    assert {"wer", "telephone_wer"} <= results["metrics"].keys()
    assert results["data"]["ctc_test"]["speakers"] == 1
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table in capsys.readouterr().out
    assert all(word in table for word in ("digits", "emotion", "speaker", "ctc", "telephone", "random", "teacher"))
    assert (tmp_path / "out" / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_asked_tasks_need_manifests(
    probe: ModuleType, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPEECH_ADAPTERS_DATA", raising=False)
    encoder = f"encoder={corpus / 'encoder'}"
    results = probe.main([encoder, f"out={tmp_path / 'out'}", "--tasks", "speed"])
    assert list(results["probes"]) == ["speed"]
    with pytest.raises(ConfigError, match="--digits-train"):
        probe.main([encoder, f"out={tmp_path / 'a'}", "--tasks", "digits"])
    with pytest.raises(ConfigError, match="nothing to score"):
        probe.main(["--tasks", "speed"])
    both = f"digits_test={corpus / 'train.jsonl'}"
    with pytest.raises(ManifestError, match="speaker"):  # one that is heard in training
        probe.main(flags(corpus, tmp_path / "b", "--tasks", "digits", both))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_defaults_are_found_in_the_data_folder(
    probe: ModuleType, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of telephone manifests only the digits are read: prompts beside them, here one with a repeated id, are not."""
    line = {"audio_filepath": "../audio/x.wav", "duration": 1.0, "text": "ONE", "speaker": "s"}
    lines = [line | {"id": "x", "domain": "telephone_digits"}, *[line | {"id": "y", "domain": "telephone_ivr"}] * 2]
    (tmp_path / "manifests").mkdir()
    path = tmp_path / "manifests" / "asr_telephone_train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("SPEECH_ADAPTERS_DATA", str(tmp_path))
    digits = probe.read(probe.Probe(), "digits_train")
    assert [(u.id, u.audio_filepath) for u in digits] == [("x", tmp_path / "audio" / "x.wav")]


def test_batches_change_nothing(probe: ModuleType, corpus: Path) -> None:
    manifest = Manifest.read(corpus / "test.jsonl")
    for style in ("pre-norm", "post-norm"):  # post-norm: a group-norm CNN, which padding would disturb
        states = probe.EncoderStates(small_encoder("wavlm", style), "cpu")
        batched = probe.encode_manifest(states, manifest, lambda kept: kept[-1])
        states.batch_seconds = 0.0
        alone = probe.encode_manifest(states, manifest, lambda kept: kept[-1])
        for a, b in zip(batched, alone, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_random_twin_is_reproducible_and_knows_nothing_of_the_weights(probe: ModuleType) -> None:
    encoder = small_encoder("wav2vec2")
    twins = [probe.random_twin(encoder, seed) for seed in (1, 1, 2)]
    assert twins[0].fingerprint == twins[1].fingerprint
    assert len({twin.fingerprint for twin in (*twins, encoder)}) == 3
    assert twins[0].normalize == encoder.normalize and not any(p.requires_grad for p in twins[0].parameters())


def test_teacher_hears_long_speech_in_pieces(probe: ModuleType, tmp_path: Path) -> None:
    save_tiny_teacher(tmp_path / "teacher.safetensors", positions=50)  # one second
    states = probe.TeacherStates(tmp_path / "teacher.safetensors", "cpu")
    wave = noise(2.3)
    found = states([wave])[0]
    assert [len(state) for state in found] == [(len(wave) - 780) // 320 + 1] * 3
    first = states.teacher(wave[None, : 49 * 320 + 780])
    torch.testing.assert_close(found[-1][:50], first[-1][0])


def test_ctc_probe_reads_what_is_linearly_there(probe: ModuleType, tmp_path: Path) -> None:
    """Features that spell the text out, blank between symbols, in channels of very different scale."""
    head, generator = CTCHead(dropout=0.0), torch.Generator().manual_seed(0)
    texts = ["".join("ABC"[i] for i in torch.randint(3, (12,), generator=generator)) for _ in range(64)]
    targets = [torch.tensor(head.encode(text)) for text in texts]
    features = []
    for target in targets:
        frames = torch.stack([target, torch.zeros_like(target)], 1).flatten()
        features.append((torch.nn.functional.one_hot(frames, 32) * torch.logspace(-2, 2, 32) + 5).half())
    torch.testing.assert_close(probe.moments(features)[0], torch.cat(features).float().mean(0))
    run = RunFolder.create("probe", path=tmp_path / "run")
    linear, standardised = probe.train_ctc(features, targets, head, probe.Probe(ctc_epochs=30), run, "ctc")
    decoded = linear(standardised(features[0])).argmax(-1)
    assert [i for i in decoded.tolist() if i != head.vocabulary.blank_id] == targets[0].tolist()


def test_recall_weighs_classes_alike(probe: ModuleType) -> None:
    truth = np.array(["a"] * 9 + ["b"])
    assert probe.recall(np.array([1.0] * 9 + [0.0]), truth) == 0.5


def test_speaker_split_shares_speakers_but_no_utterance(probe: ModuleType, corpus: Path) -> None:
    manifest = Manifest.read(corpus / "train.jsonl")
    train, test = probe.split_speakers(manifest, seed=0)
    assert train.speakers == test.speakers == manifest.speakers
    assert not {u.id for u in train} & {u.id for u in test} and len(train) + len(test) == len(manifest)
    with pytest.raises(ConfigError, match="one utterance"):
        probe.split_speakers(manifest[:1], seed=0)
