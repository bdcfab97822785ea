"""``transcribe``, ``classify``, ``embed`` and ``verify`` as commands: what they print, write and refuse."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_windows import speech_of

from speech_adapters.cli import main
from speech_adapters.data.audio import write_audio
from speech_adapters.data.embeddings import Embeddings
from speech_adapters.heads import ClassificationHead, CTCHead, SpeakerHead
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.model import SpeechAdapterModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio, and three adapters with their heads."""
    folder = tmp_path_factory.mktemp("verbs")
    one, two = (speech_of([(0.5, 1.5 + seed), (0.5, 0.0)], seed)[0] for seed in (0, 1))
    (folder / "audio" / "more").mkdir(parents=True)
    write_audio(folder / "audio" / "one.wav", torch.from_numpy(one))
    write_audio(folder / "audio" / "more" / "two.flac", torch.from_numpy(two))
    soundfile.write(folder / "call.wav", np.stack([one, one[::-1]], 1), 16_000)
    heads = {
        "asr": CTCHead(),
        "emotion": ClassificationHead(labels=("calm", "angry")),
        "speaker": SpeakerHead(speakers=("a", "b"), calibration=Calibration(2.0, 1.0)),
    }
    for name, head in heads.items():
        torch.manual_seed(0)
        model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
        model.add_adapter("a", "lora")
        model.add_head(name, head)
        model.save_adapter("a", folder / name / "adapters" / "a")
        model.save_head(name, folder / name / "heads" / "a")
    return folder


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a verb there: what it prints, or with ``expect=2`` its error."""
    monkeypatch.chdir(folder)

    def run(*argv: str | Path, expect: int = 0) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in argv])
        printed = capsys.readouterr()
        assert exit_.value.code == expect, printed
        assert "Traceback" not in printed.err
        return printed.err if expect else printed.out

    return run


def test_transcripts_are_printed_or_written(call, folder: Path, tmp_path: Path):
    lines = call("transcribe", "--adapter", "asr", "audio").splitlines()
    assert [line.partition("\t")[0] for line in lines] == ["audio/more/two.flac", "audio/one.wav"]
    assert call("transcribe", "-a", "asr", "audio/*.wav") == lines[1] + "\n"
    found = json.loads(call("transcribe", "-a", "asr", "call.wav", "--speakers=agent,customer", "-f", "json"))
    assert {segment["speaker"] for segment in found["segments"]} <= {"agent", "customer"} and found["duration"] == 2.5
    written = call("transcribe", "-a", "asr", "audio", "--format=srt,trn", "--output", tmp_path / "out").split()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.srt", "one.trn", "two.srt", "two.trn"]
    assert written == [str(tmp_path / "out" / name) for name in ("two.srt", "two.trn", "one.srt", "one.trn")]
    again = call("transcribe", "-a", "asr", "audio", "--format=srt", "-o", tmp_path / "out", expect=2)
    assert "is there already (2 in all)" in again
    call("transcribe", "-a", "asr", "audio/one.wav", "--format=srt", "-o", tmp_path / "out", "--overwrite")


def test_equal_names_keep_their_folders(call, folder: Path, tmp_path: Path):
    import shutil

    for name in ("agent/one.wav", "customer/one.wav", "two.wav"):
        (tmp_path / "calls" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "audio" / "one.wav", tmp_path / "calls" / name)
    call("transcribe", "-a", "asr", tmp_path / "calls", "-o", tmp_path / "out")
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.txt"))
    assert written == ["agent/one.txt", "customer/one.txt", "two.txt"]


def test_all_bad_files_of_a_folder_are_named_at_once(call, folder: Path, tmp_path: Path):
    for number in range(30):
        (tmp_path / f"{number:02}.wav").write_bytes(b"")
    told = call("transcribe", "-a", "asr", tmp_path, "-o", tmp_path / "out", expect=2)
    assert told.count("empty file") == 20 and "... and 10 more: 30 files that cannot be heard" in told


def test_what_cannot_be_heard_is_left_out_and_named_at_the_end(
    call, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    calls = tmp_path / "calls"
    calls.mkdir()
    (calls / "a-no-audio.wav").write_bytes(b"RIFF of nothing")
    whole = (folder / "audio" / "more" / "two.flac").read_bytes()
    (calls / "b-cut.flac").write_bytes(whole[: len(whole) // 2])
    write_audio(calls / "c-silent.wav", torch.zeros(32_000))
    write_audio(calls / "e-short.wav", torch.tensor([0.5, -0.5]).repeat(250))  # 31 ms
    write_audio(calls / "d-fine.wav", torch.from_numpy(speech_of([(0.5, 1.5), (0.5, 0.0)], 3)[0]))
    reasons = {
        "a-no-audio.wav": "not audio",
        "b-cut.flac": "cut short",
        "c-silent.wav": "no speech found in 2.0 s",
        "e-short.wav": "shorter than the encoder's receptive field",
    }

    def run(*argv: str | Path, left: list[str]) -> str:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in argv])
        printed = capsys.readouterr()
        *told, last = printed.err.splitlines()
        assert exit_.value.code == 2 and last.startswith(f"error: {len(left)} recordings left out"), printed
        assert len(told) == len(left) and "Traceback" not in printed.err
        for name, line in zip(left, told, strict=True):
            assert line.startswith(f"left out: {calls / name}: ") and reasons[name] in line
            assert line.count(name) == 1
        return printed.out

    every = list(reasons)
    assert run("classify", "-a", "emotion", calls, left=every).startswith(f"{calls / 'd-fine.wav'}\t")
    assert "1 embedding of" in run("embed", "-a", "speaker", calls, "-o", tmp_path / "voices.npz", left=every)
    assert Embeddings.load(tmp_path / "voices.npz").ids == (str(calls / "d-fine.wav"),)
    for adapt in ((), ("--adapt", "entropy")):
        lines = run("transcribe", "-a", "asr", calls, *adapt, left=[*every[:2], every[3]]).splitlines()
        assert [line.partition("\t")[0] for line in lines] == [str(calls / "c-silent.wav"), str(calls / "d-fine.wav")]

    silent = calls / "c-silent.wav"
    assert "c-silent.wav: no speech" in call("embed", "-a", "speaker", silent, "-o", "no.npz", expect=2)
    assert not (folder / "no.npz").exists()
    sides = np.stack([np.zeros(32_000), speech_of([(0.5, 1.5)], 4)[0][:32_000]], 1)
    soundfile.write(tmp_path / "half.wav", sides, 16_000)
    with pytest.raises(SystemExit):
        main(["classify", "-a", "emotion", str(tmp_path / "half.wav"), "--speakers=agent,customer"])
    printed = capsys.readouterr()
    assert "half.wav\tcustomer\t" in printed.out and "half.wav (agent): no speech" in printed.err
    assert "no speech" in call("verify", "-a", "speaker", silent, calls / "d-fine.wav", expect=2)


def test_audio_comes_from_standard_input_and_the_network_when_asked(
    call, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = call("transcribe", "-a", "asr", "audio/one.wav").partition("\t")[2]
    content = (folder / "audio" / "one.wav").read_bytes()
    piped = io.TextIOWrapper(io.BytesIO(content))
    monkeypatch.setattr(sys, "stdin", piped)
    assert call("transcribe", "-a", "asr", "-", "-") == f"stdin\t{expected}"
    assert "-: standard input is empty" in call("transcribe", "-a", "asr", "-", expect=2)
    for content, message in (
        (b"RIFF no audio", "stdin: corrupt, or not audio"),
        ((folder / "call.wav").read_bytes(), "stdin: 2 channels"),
    ):
        for more in ([], ["audio/one.wav"]):  # among several it is left out, with the reason
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            told = call("transcribe", "-a", "asr", "-", *more, expect=2)
            assert message in told and "speech-adapters-" not in told and "stdin: stdin" not in told
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder / "audio")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/one.wav"
        assert "nothing is fetched from the network unless asked; add --download" in call(
            "transcribe", "-a", "asr", address, expect=2
        )
        assert call("transcribe", "-a", "asr", address, "--download") == f"{address}\t{expected}"
        assert "cannot be fetched (File not found)" in call(
            "transcribe", "-a", "asr", address + "x", "--download", expect=2
        )
        server.shutdown()


def test_a_place_that_cannot_be_written_is_said_before_anything_is_heard(
    call, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*_: object) -> None:
        raise AssertionError("heard first")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr("speech_adapters.cli.listening.load_model", never)
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        told = call("transcribe", "-a", "asr", "audio/one.wav", "-o", place, expect=2)
        assert f"error: {place}: {tmp_path / 'file'} is a file, not a folder" in told
    assert "is a file, not a folder" in call("embed", "-a", "asr", "audio", "-o", place / "a.npz", expect=2)
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, whom nothing is forbidden
    told = call("transcribe", "-a", "asr", "audio/one.wav", "-o", tmp_path / "new", expect=2)
    assert f"{tmp_path / 'new'}: {tmp_path} cannot be written" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audio/one.wav"], "name a model: --adapter FOLDER, or --encoder NAME"),
        (["call.wav", "-a", "asr"], "2 channels"),
        (["call.wav", "-a", "asr", "--channel=left"], "give the channel's number"),
        (["nowhere/*.wav", "-a", "asr"], "no file matches this pattern"),
        (["asr", "-a", "asr"], "no audio in this folder"),
        (["audio/one.wav", "-a", "asr", "--format=srr"], "choose text, json, srt, vtt, ctm, trn"),
        (["audio/one.wav", "-a", "asr", "--format=srt,vtt"], "several formats need a folder"),
        (
            ["audio/one.wav", "call.wav", "audio/../audio/one.wav", "-a", "asr", "-o", "x", "--channel=0"],
            "hear them apart",
        ),
        (["audio/one.wav", "-a", "asr", "--lm=x.arpa"], "--lm works in the beam search only"),
        (["audio/one.wav", "-a", "asr", "--window=0.2"], "choose 1 second or more"),
        (["audio/one.wav", "-a", "emotion"], "transcribing needs a CTC head, and head 'emotion'"),
        (["audio/one.wav", "--encoder=tiny-wavlm"], "this checkpoint has no CTC head"),
        (["audio/one.wav", "-a", "asr", "--adaptor=x"], "did you mean '--adapter'"),
        (["call.wav", "-a", "asr", "--speakers=agent,"], "give different names, one per channel"),
        (["audio/one.wav", "-a", "asr", "--speakers="], "give different names, one per channel"),
        (["audio/one.wav", "-a", "asr", "--batch-seconds=nan"], "batch_seconds=nan: give the seconds of audio"),
    ],
)
def test_mistakes_get_one_sentence(call, arguments: list[str], message: str):
    assert message in call("transcribe", *arguments, expect=2)


def test_classes_embeddings_and_verification(call, folder: Path, tmp_path: Path):
    name, label, probability = call("classify", "-a", "emotion", "audio/one.wav").strip().split("\t")
    assert name == "audio/one.wav" and label in ("calm", "angry") and 0.5 <= float(probability) <= 1
    rows = call("classify", "-a", "emotion", "call.wav", "--speakers=x,y", "--format=json").splitlines()
    assert [json.loads(row)["speaker"] for row in rows] == ["x", "y"]
    assert "needs a head of classes" in call("classify", "-a", "asr", "audio/one.wav", expect=2)

    path = tmp_path / "voices.npz"
    assert "2 embeddings of 256 values" in call("embed", "-a", "speaker", "audio", "-o", path)
    saved = Embeddings.load(path)
    assert saved.ids == ("audio/more/two.flac", "audio/one.wav")
    assert "is there already" in call("embed", "-a", "speaker", "audio", "-o", path, expect=2)
    assert ".npz or .safetensors" in call("embed", "-a", "speaker", "audio", "-o", "voices.txt", expect=2)

    means = call("embed", "-a", "asr", "audio/one.wav", "-o", tmp_path / "means.npz")
    assert "the means of the features: head 'asr' (ctc) tells no speakers" in means
    model = SpeechAdapterModel.from_adapter(folder / "asr")
    model.set_head(None)
    expected = model.embed(folder / "audio" / "one.wav")
    assert torch.allclose(Embeddings.load(tmp_path / "means.npz").vectors[0], expected, atol=1e-5)
    asked = call("embed", "-a", "asr", "--head", "asr/heads/a", "audio", "-o", tmp_path / "no.npz", expect=2)
    assert "embedding needs a speaker head" in asked

    printed = call("verify", "-a", "speaker", "audio/one.wav", "audio/more/two.flac")
    values = dict(line.split("\t") for line in printed.splitlines())
    score = float(torch.cosine_similarity(*saved.vectors, dim=0))
    assert float(values["score"]) == pytest.approx(score, abs=1e-4)
    assert float(values["llr"]) == pytest.approx(2 * score + 1, abs=1e-3)
    Calibration(1.0, 0.0).save(tmp_path / "calibration.json")
    other = call("verify", "-a", "speaker", "audio", "--calibration", tmp_path / "calibration.json")
    assert dict(line.split("\t") for line in other.splitlines())["llr"] == values["score"]
    assert call("verify", "-a", "speaker", "audio/one.wav", "audio/one.wav").startswith("score\t1.0000")
    last = call("verify", "-a", "speaker", "audio/one.wav", "audio/more/two.flac", "audio/one.wav")
    assert last != call("verify", "-a", "speaker", "audio/one.wav", "audio/more/two.flac")
    assert "give two recordings or more" in call("verify", "-a", "speaker", "audio/one.wav", expect=2)


def test_a_folder_at_the_end_of_verify_says_which_of_it_is_compared(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for last, said in (
        ("audio", "compared: audio/one.wav, with the speaker of the 2 before it\n"),
        ("audio/one.wav", ""),
    ):
        with pytest.raises(SystemExit):
            main(["verify", "-a", "speaker", "audio/one.wav", last])
        told = capsys.readouterr().err
        assert said in told if said else "compared" not in told


def test_a_head_of_another_kind_is_sent_to_its_own_command(call, folder: Path):
    line = {"audio_filepath": "audio/one.wav", "duration": 1.0, "text": "YES", "emotion": "calm"}
    (folder / "kinds.jsonl").write_text(json.dumps(line))
    told = call("evaluate", "asr", "--adapter", "emotion", "--manifest", "kinds.jsonl", expect=2)
    assert "head 'emotion' is for classification of emotion, and this command scores ctc" in told
    assert "speech-adapters evaluate classification" in told
    told = call("evaluate", "emotion", "--adapter", "asr", "--manifest", "kinds.jsonl", expect=2)
    assert "head 'asr' is for ctc" in told and "speech-adapters evaluate asr" in told
