"""The README's first five commands, as it writes them: from 50 recordings and a CSV to a model that others open."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_encoders import stock_model
from test_snippets import blocks, commands

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


@pytest.mark.slow
def test_five_commands_from_recordings_to_a_model_that_others_open(folder: Path) -> None:
    five = the_five()
    assert len(five) == 5 and all(words[0] == "speech-adapters" for words in five)
    assert [words[1] for words in five] == ["manifest", "manifest", "train", "transcribe", "export"]
    shorter = ["--encoder", "encoder", "training.batch_seconds=20", "training.trackers=none"]
    for words in five:
        if words[1] == "train":  # fewer updates, on the small encoder
            words[words.index("--updates") + 1] = "6"
            words += shorter
        done = subprocess.run(
            [sys.executable, "-m", "speech_adapters.cli", *words[1:]],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    subtitles = sorted((folder / "subtitles").glob("*.srt"))
    assert len(subtitles) == 50
    for text in filter(None, (path.read_text() for path in subtitles)):
        assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n", text)

    from transformers import pipeline

    waveform, _ = soundfile.read(folder / "calls" / "call-00.wav", dtype="float32")
    said = pipeline("automatic-speech-recognition", str(folder / "exported"))(waveform)["text"]
    done = subprocess.run(
        [sys.executable, "-m", "speech_adapters.cli", "transcribe", "--adapter", "runs/mine", "calls/call-00.wav"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.rstrip("\n").split("\t")[1].split() == said.split(), done.stderr
