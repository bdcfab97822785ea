"""Recipes that are killed at random moments, also while they write, end with the weights of an undisturbed run.

KILLS says how often each is killed, once by default; a release is measured with 20.
"""

from __future__ import annotations

import contextlib
import os
import random
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch
from killing import kill_often, rubbish, weights
from small_encoders import stock_model

from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KILLS", "1"))
STARTING = 3.0
"""Seconds until a process has imported what it needs, at least."""
pytestmark = pytest.mark.slow

TRAINING = ("updates=8", "batch_seconds=3", "save_minutes=0", "trackers=[none]", "precision=fp32", "log_every=2")
WATCHED = ("evaluate_every=2", "patience=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training, dev and test utterances of two domains with speakers of their own, and a small encoder."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    for split, count in (("train", 16), ("dev", 6), ("test", 6)):
        utterances = []
        for i in range(count):
            path, seconds = folder / "audio" / f"{split}{i}.wav", draw.uniform(0.6, 1.1)
            path.parent.mkdir(exist_ok=True)
            tone = torch.sin(torch.arange(int(seconds * 16_000)) * (0.05 + 0.05 * (i % 2)))
            write_audio(path, 0.3 * tone + 0.02 * torch.randn(len(tone), generator=torch.Generator().manual_seed(i)))
            utterances.append(
                Utterance(
                    f"{split}{i}", path, len(tone) / 16_000, text=("YES", "NO")[i % 2], speaker=f"{split}{i % 3}",
                    emotion=("calm", "angry")[i % 2], domain=("studio", "telephone")[i % 4 // 2],
                )
            )  # fmt: skip
        Manifest(utterances, split).write(folder / f"{split}.jsonl")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    return folder


def command(recipe: str, data: Path, output: Path, *settings: object) -> list[str]:
    values = map(str, (f"--encoder={data / 'encoder'}", f"--output={output}", *settings))
    return [sys.executable, str(ROOT / "recipes" / recipe), *values]


def prefixed(prefix: str, *settings: str) -> list[str]:
    return [f"{prefix}.{setting}" for setting in settings]


def supervised(data: Path, output: Path) -> list[str]:
    """AdaLoRA, whose ranks follow a schedule, with early stopping."""
    sets = [f"--{split}={data / split}.jsonl" for split in ("train", "dev", "test")]
    more = ("--adapter=adalora", "--baselines=head-only", *prefixed("training", *TRAINING, *WATCHED))
    return command("asr_librispeech.py", data, output, *sets, *more)


def fusion(data: Path, output: Path) -> list[str]:
    sets = [f"--{split}={data / split}.jsonl" for split in ("train", "dev", "test")]
    settings = [s for prefix in ("training", "combination") for s in prefixed(prefix, *TRAINING, *WATCHED)]
    return command("call_center.py", data, output, *sets, "--adapter=e", "--rank=2", "--no-full", *settings)


def pretraining(data: Path, output: Path) -> list[str]:
    settings = (
        "updates=8",
        "crops=2",
        "crop_seconds=0.6",
        "save_minutes=0",
        "precision=fp32",
        "head_first=2",
        *WATCHED,
    )
    more = ("--objective=hubert", "hubert.units=1", "hubert.clusters=4", "--seeds=0", *prefixed("training", *settings))
    labelled = (f"--downstream-train={data / 'train.jsonl'}", f"--downstream-test={data / 'test.jsonl'}")
    downstream = prefixed("downstream.training", *TRAINING)
    sets = (f"--train={data / 'train.jsonl'}", f"--held-out={data / 'dev.jsonl'}", *labelled)
    return command("tapt.py", data, output, *sets, *more, *downstream)


def active(data: Path, output: Path) -> list[str]:
    sets = (f"--pool={data / 'train.jsonl'}", f"--test={data / 'test.jsonl'}", "task.task=emotion", "task.adapter=e")
    loop = prefixed("loop", "budget=12", "unit=utterances", "rounds=2")
    more = ("--strategies=random,margin", "--seeds=0", "--clusters=2", *prefixed("task.training", *TRAINING))
    return command("active_learning.py", data, output, *sets, *loop, *more)


def undisturbed(command: list[str]) -> float:
    """Let a recipe end, in this process; returns about how many seconds it takes in one of its own."""
    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command[1:])
        patch.syspath_prepend(str(ROOT / "recipes"))
        with contextlib.suppress(SystemExit):
            runpy.run_path(command[1], run_name="__main__")
    return time.perf_counter() - started + STARTING


@pytest.mark.parametrize("kind", [supervised, fusion, pretraining, active])
def test_a_killed_run_ends_with_the_same_weights(kind, data: Path, tmp_path: Path) -> None:
    seconds = undisturbed(kind(data, tmp_path / "whole"))
    killed = kill_often(kind(data, tmp_path / "killed"), KILLS, 0.7 * seconds, seed=1, start=0.2 * seconds)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not rubbish(tmp_path / "killed")
    assert killed > 0
