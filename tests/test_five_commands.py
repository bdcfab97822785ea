"""The README's first five commands, as it writes them: from 50 recordings and a CSV to a model that others open."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_encoders import stock_model
from test_snippets import blocks, commands

from speech_adapters import cli

ROOT = Path(__file__).parents[1]
WORDS = ("yes", "no", "maybe so")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 WAV files of ten speakers and a table of what they say; a small encoder in place of a hub id."""
    root = tmp_path_factory.mktemp("five")
    (root / "calls").mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(50):
        time = np.arange(int((0.8 + 0.01 * number) * 16_000)) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * (number % 3)) * time) + rng.normal(0, 0.01, len(time))
        soundfile.write(root / "calls" / f"call-{number:02d}.wav", tone, 16_000)
        rows.append([f"call-{number:02d}.wav", WORDS[number % 3], f"agent-{number % 10}"])
    with (root / "calls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "text", "speaker"], *rows])
    stock_model("wavlm", "pre-norm").save_pretrained(root / "encoder")
    (root / "encoder" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return root


def the_five() -> list[list[str]]:
    block = next(block for block in blocks(ROOT / "README.md") if block.kind == "bash" and not block.reason)
    return list(commands(block.code))


def run(words: list[str]) -> None:
    """As the shell would start it, in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert not stop.value.code, words


@pytest.mark.slow
def test_five_commands_from_recordings_to_a_model_that_others_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    five = the_five()
    assert len(five) == 5 and all(words[0] == "speech-adapters" for words in five)
    assert [words[1] for words in five] == ["manifest", "manifest", "train", "transcribe", "export"]
    train = five[2]  # fewer updates, on the small encoder
    train[train.index("--updates") + 1] = "6"
    train += ["--encoder", "encoder", "training.batch_seconds=20", "training.trackers=none"]
    monkeypatch.chdir(folder)
    for words in five:
        run(words[1:])
    subtitles = sorted(Path("subtitles").glob("*.srt"))
    assert len(subtitles) == 50
    for text in filter(None, (path.read_text() for path in subtitles)):
        assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n", text)

    from transformers import pipeline

    waveform, _ = soundfile.read("calls/call-00.wav", dtype="float32")
    said = pipeline("automatic-speech-recognition", "exported")(waveform)["text"]
    capsys.readouterr()
    run(["transcribe", "--adapter", "runs/mine", "--voice-activity", "none", "calls/call-00.wav"])
    assert capsys.readouterr().out.rstrip("\n").split("\t")[1].split() == said.split()
