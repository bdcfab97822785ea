"""Every bad input of ``tests/cases`` through the real command lines: each ends with code 2 and one sentence, before
the first update of any training and without a run folder.

A row goes through one training and one evaluation of those that take such input, in turn; ``DOORS=all`` takes each row
through each.
"""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.audio import BAD_AUDIO
from cases.configurations import BAD_CONFIGURATIONS
from cases.folders import BAD_ADAPTERS, BAD_ENCODERS
from cases.manifests import BAD_MANIFESTS
from cases.tables import BAD_EMBEDDINGS, BAD_ENROLMENTS, BAD_PREDICTIONS, BAD_SCORES, BAD_TRIALS
from small_encoders import stock_model
from test_cases import CONTAINERS, encoded
from test_distillation import save_tiny_teacher

from speech_adapters import ClassificationHead, CTCHead, LoRA, SpeakerHead, SpeechAdapterModel
from speech_adapters.cli import main as command_line
from speech_adapters.data.audio import audio_info, write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import InputError
from speech_adapters.training import loop

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = os.environ.get("DOORS") == "all"

#: Training recipe -> its arguments, given a corpus and its own three manifests (train, dev, test).
Arguments = Callable[[Path, Path, Path, Path], list[str]]


def sets(root: Path, train: Path, dev: Path, test: Path) -> list[str]:
    return [f"--train={train}", f"--dev={dev}", f"--test={test}", f"--encoder={root / 'encoder'}"]


TRAININGS: dict[str, Arguments] = {
    "asr_librispeech": sets,
    "emotion_recognition": sets,
    "intent_classification": lambda *given: [*sets(*given), "--slots=action,object"],
    "keyword_spotting": sets,
    "compare_methods": sets,
    "call_center": lambda root, *three: [*sets(root, *three), "--no-full"],
    "speaker_verification": lambda root, train, dev, test: [
        f"--train={train}", f"--test={test}", f"--trials={root / 'trials.txt'}", f"--encoder={root / 'encoder'}"],
    "tapt": lambda root, train, dev, test: [
        f"--train={train}", f"--held-out={dev}", f"--encoder={root / 'encoder'}", f"--downstream-train={dev}",
        f"--downstream-test={test}"],
    "active_learning": lambda root, train, dev, test: [
        f"--pool={train}", f"--test={test}", f"--encoder={root / 'encoder'}", "loop.budget=4", "loop.rounds=2"],
    "pretrain_tiny": lambda root, train, dev, test: [
        f"data={root}", f"train={train}", "teacher=teacher.safetensors", "heard.noise_manifest=null",
        "heard.noise_probability=0", "joint.layer_weights=1,1,2", "anneal.layer_weights=1,1,2"],
    "pretrain_small": lambda root, train, dev, test: [
        f"data={root}", f"train={train}", f"held_out={dev}", "teacher=teacher.safetensors",
        "training.layer_weights=0.5,1,2", "training.hidden_weights=0,0.5,1", "training.crop_frames=16",
        "training.crop_shares=1", "training.batch_frames=48"],
}  # fmt: skip

#: What of its three manifests a training recipe does not read.
UNREAD = {"speaker_verification": {1}, "pretrain_tiny": {1, 2}, "pretrain_small": {2}, "active_learning": {1}}

#: Evaluation -> its arguments, given the corpus and the manifest to score.
EVALUATIONS: dict[str, Callable[[Path, Path], list[str]]] = {
    "evaluate_asr": lambda root, path: [f"--manifest={path}", f"--head={root / 'asr'}"],
    "evaluate_emotion": lambda root, path: [f"--manifest={path}", f"--head={root / 'emotion'}"],
    "evaluate_verification": lambda root, path: [f"--manifest={path}", f"--trials={root / 'trials.txt'}"],
}

QUICK = ["training.updates=2", "training.trackers=none"]


def quick(door: str) -> list[str]:
    """So that a training that did begin would end soon."""
    return [] if "pretrain" in door else ["task." + a for a in QUICK] if door == "active_learning" else QUICK


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that every recipe can use, a small encoder, and what was trained on it."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        utterances = []
        for i in range(6):
            path = folder / "audio" / f"{split}{i}.wav"
            path.parent.mkdir(exist_ok=True)
            write_audio(path, torch.tensor(rng.normal(0, 0.1, 9600 + 160 * i), dtype=torch.float32))
            utterances.append(
                Utterance(
                    f"{split}{i}", path, (9600 + 160 * i) / 16000, text=("YES", "NO")[i % 2],
                    speaker=f"{split}{i % 2}", emotion=("calm", "cross")[i // 2 % 2], label=("stop", "go")[i // 2 % 2],
                    domain=("studio", "call")[i // 2 % 2],
                    extra={"action": ("on", "off")[i % 2], "object": ("lamp", "door")[i % 2]},
                )
            )  # fmt: skip
        Manifest(utterances, split).write(folder / f"{split}.jsonl")
    pairs = [f"{int(a % 2 == b % 2)} audio/test{a}.wav audio/test{b}.wav\n" for a in range(6) for b in range(a)]
    (folder / "trials.txt").write_text("".join(pairs))
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    save_tiny_teacher(folder / "teacher.safetensors")
    model = SpeechAdapterModel.from_pretrained(folder / "encoder")
    for name, head in (
        ("asr", CTCHead()), ("emotion", ClassificationHead(("calm", "cross"))), ("speaker", SpeakerHead(("a", "b"))),
    ):  # fmt: skip
        model.add_head(name, head)
        model.save_head(name, folder / name)
    model.add_adapter("lora", LoRA(rank=4))
    model.save_adapter("lora", folder / "adapter")
    return folder


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECH_ADAPTERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def updates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The updates that were made: none, at the end of every test."""
    made: list[int] = []
    monkeypatch.setattr(loop._Training, "_update", lambda self, stream: made.append(1))
    yield made
    assert not made


Refuses = Callable[..., None]


@pytest.fixture
def refuses(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuses:
    """Runs a recipe, or a verb of the command line, as the shell does, and holds it to what this module promises."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def call(program: str, arguments: list[str]) -> None:
        recipe = RECIPES / f"{program}.py"
        monkeypatch.setattr(sys, "argv", [str(recipe), *arguments])
        runpy.run_path(str(recipe), run_name="__main__") if recipe.is_file() else command_line([program, *arguments])

    def run(message: str, program: str, *arguments: Any) -> None:
        with pytest.raises(SystemExit) as ended:
            call(program, [*map(str, arguments)])
        out, error = capfd.readouterr()
        assert ended.value.code == 2, (program, out[-2000:], error[-2000:])
        assert re.search(message, error, re.DOTALL), (program, error[-3000:])
        assert "Traceback" not in error and len(error) < 9_000
        assert not Path("runs").exists(), f"{program} left a run folder"

    return run


def rotated(tables: Sequence[Any], row: int) -> list[Any]:
    """The doors that a row goes through."""
    return list(tables) if ALL else [tables[row % len(tables)]]


def with_bad(root: Path, folder: Path, door: str, row: int, bad: Callable[[Path], Path]) -> list[Path]:
    """Three manifests of a training; one of them, in turn, is replaced by what ``bad`` makes of it."""
    three = [root / f"{split}.jsonl" for split in ("train", "dev", "test")]
    places = [place for place in range(3) if place not in UNREAD.get(door, set())]
    place = places[row % len(places)]
    three[place] = bad(three[place])
    return three


@pytest.mark.parametrize("row", range(len(BAD_AUDIO)), ids=list(BAD_AUDIO))
def test_bad_audio(root: Path, tmp_path: Path, refuses: Refuses, row: int):
    made, suffix, message = list(BAD_AUDIO.values())[row]
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(made() if callable(made) else made)
    try:
        seconds = audio_info(path).duration
    except InputError:
        seconds = 0.5

    def with_bad_audio(good: Path) -> Path:
        """One more utterance, which is the first one's twin but for its audio."""
        first = Manifest.read(good)[0]
        bad = replace(first, id="bad", audio_filepath=path, duration=min(seconds, 20.0))
        written = tmp_path / good.name
        Manifest([*Manifest.read(good), bad], good.stem).write(written)
        return written

    for door in rotated(list(TRAININGS), row):
        three = with_bad(root, tmp_path, door, row, with_bad_audio)
        refuses(message, door, *TRAININGS[door](root, *three), *quick(door))
    for door in rotated(list(EVALUATIONS), row):
        scored = with_bad_audio(root / "test.jsonl")
        refuses(message, door, *EVALUATIONS[door](root, scored), f"--encoder={root / 'encoder'}")


@pytest.mark.parametrize("row", range(len(BAD_MANIFESTS)), ids=list(BAD_MANIFESTS))
def test_bad_manifests(root: Path, tmp_path: Path, refuses: Refuses, row: int):
    content, message = list(BAD_MANIFESTS.values())[row]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    message += r"|lacks '\w+', which this task needs"  # of lines that are fine but for what they are together
    for door in rotated(list(TRAININGS), row):
        three = with_bad(root, tmp_path, door, row, lambda _: path)
        refuses(message, door, *TRAININGS[door](root, *three), *quick(door))
    for door in rotated(list(EVALUATIONS), row):
        refuses(message, door, *EVALUATIONS[door](root, path), f"--encoder={root / 'encoder'}")


@pytest.mark.parametrize("name", BAD_TRIALS)
def test_bad_trials(root: Path, tmp_path: Path, refuses: Refuses, name: str):
    content, message = BAD_TRIALS[name]
    path = tmp_path / "trials.txt"
    path.write_bytes(content)
    encoder, test = f"--encoder={root / 'encoder'}", root / "test.jsonl"
    refuses(message, "evaluate_verification", f"--trials={path}", f"--manifest={test}", encoder)
    refuses(
        message,
        "speaker_verification",
        f"--trials={path}",
        f"--train={root / 'train.jsonl'}",
        f"--test={test}",
        encoder,
    )


@pytest.mark.parametrize("name", BAD_ENROLMENTS)
def test_bad_enrolments(root: Path, tmp_path: Path, refuses: Refuses, name: str):
    content, message = BAD_ENROLMENTS[name]
    path = tmp_path / "enrolment.txt"
    path.write_bytes(content)
    three = (f"--trials={root / 'trials.txt'}", f"--manifest={root / 'test.jsonl'}", f"--enrolment={path}")
    refuses(message, "evaluate_verification", *three, f"--encoder={root / 'encoder'}")


@pytest.mark.parametrize(
    ("option", "name"), [(o, n) for o, t in (("scores", BAD_SCORES), ("embeddings", BAD_EMBEDDINGS)) for n in t]
)
def test_bad_scores_and_embeddings(root: Path, tmp_path: Path, refuses: Refuses, option: str, name: str):
    content, suffix, message = (BAD_SCORES if option == "scores" else BAD_EMBEDDINGS)[name]
    path, trials = tmp_path / f"bad{suffix}", tmp_path / "trials.txt"
    path.write_bytes(content)
    trials.write_bytes(b"1 a b\n0 a c\n")
    refuses(message, "evaluate_verification", f"--trials={trials}", f"--{option}={path}")
    refuses(
        message, "evaluate_verification", f"--trials={root / 'trials.txt'}", f"--manifest={root / 'test.jsonl'}",
        f"--encoder={root / 'encoder'}", f"--cohort={path}",
    ) if option == "embeddings" else None  # fmt: skip


@pytest.mark.parametrize("name", BAD_PREDICTIONS)
def test_bad_predictions(tmp_path: Path, refuses: Refuses, name: str):
    content, suffix, message = BAD_PREDICTIONS[name]
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    refuses(message, "evaluate_emotion", f"--predictions={path}")


#: Configurations that are bad whatever their keys are.
ANY_KEYS = (
    "not valid YAML",
    "expected keys",
    "got a list",
    "cannot be read",
    "10000 values",
    "50 levels",
    "no configu",
)


@pytest.mark.parametrize("row", range(len(BAD_CONFIGURATIONS)), ids=list(BAD_CONFIGURATIONS))
def test_bad_configurations(tmp_path: Path, refuses: Refuses, row: int):
    content, message = list(BAD_CONFIGURATIONS.values())[row]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    refuses(message, "evaluate_asr", f"--config={path}")
    if any(words in message for words in ANY_KEYS):
        for door in rotated([*TRAININGS, "evaluate_emotion", "evaluate_verification"], row):
            refuses(message, door, f"--config={path}")


@pytest.mark.parametrize("row", range(len(BAD_ENCODERS)), ids=list(BAD_ENCODERS))
def test_bad_encoders(root: Path, tmp_path: Path, refuses: Refuses, row: int):
    change, message = list(BAD_ENCODERS.values())[row]
    encoder = tmp_path / "encoder"
    shutil.copytree(root / "encoder", encoder)
    change(encoder)
    three = [root / f"{split}.jsonl" for split in ("train", "dev", "test")]
    for door in rotated([door for door in TRAININGS if "pretrain" not in door], row):
        arguments = [a for a in TRAININGS[door](root, *three) if not a.startswith("--encoder")]
        refuses(message, door, *arguments, *quick(door), f"--encoder={encoder}")
    for door in rotated(list(EVALUATIONS), row):
        refuses(message, door, *EVALUATIONS[door](root, root / "test.jsonl"), f"--encoder={encoder}")
    audio = root / "audio" / "test0.wav"
    refuses(message, "transcribe", f"--encoder={encoder}", f"--head={root / 'asr'}", audio)
    refuses(message, "adapters", f"--encoder={encoder}")


@pytest.mark.parametrize("row", range(len(BAD_ADAPTERS)), ids=list(BAD_ADAPTERS))
def test_bad_adapters(root: Path, tmp_path: Path, refuses: Refuses, row: int):
    change, message = list(BAD_ADAPTERS.values())[row]
    adapter = tmp_path / "adapter"
    shutil.copytree(root / "adapter", adapter)
    change(adapter)
    encoder, given = f"--encoder={root / 'encoder'}", f"--adapter={adapter}"
    for door in rotated(list(EVALUATIONS), row):
        refuses(message, door, *EVALUATIONS[door](root, root / "test.jsonl"), encoder, given)
    refuses(message, "transcribe", encoder, given, f"--head={root / 'asr'}", root / "audio" / "test0.wav")
    three = [root / f"{split}.jsonl" for split in ("train", "dev", "test")]
    refuses(
        message, "call_center", *TRAININGS["call_center"](root, *three), *QUICK, "--adapter=lora",
        f"--start-adapter={adapter}", f"--start-head={root / 'asr'}",
    )  # fmt: skip
    refuses(message, "active_learning", *TRAININGS["active_learning"](root, *three), f"--start={adapter}")


@pytest.mark.parametrize("container", CONTAINERS, ids="-".join)
def test_no_damage_of_a_container_escapes_transcription(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], container: tuple[str, str]
):
    rng, path = random.Random("-".join(container)), tmp_path / f"bad.{container[0].lower()}"
    good = encoded(*container, rate=8_000 if container[0] == "WVE" else 16_000)
    for _ in range(10 if ALL else 2):
        content = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(rng.choice((64, len(content))))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.4 else content)
        with pytest.raises(SystemExit) as ended:
            command_line(["transcribe", f"--encoder={root / 'encoder'}", f"--head={root / 'asr'}", str(path)])
        out, error = capfd.readouterr()
        assert ended.value.code in (0, 2) and "Traceback" not in error, error
        assert (ended.value.code == 0) == out.startswith(str(path)) and bool(error) == (ended.value.code == 2)
