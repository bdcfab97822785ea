"""Run folders: unique, complete, and readable after a crash."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech_adapters import locks
from speech_adapters.config import load_config
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.runs import folder
from speech_adapters.runs.environment import environment, peak_memory_bytes, reset_peak_memory
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.settings import Cache, TrainingConfig


@dataclass(kw_only=True)
class Recipe:
    seed: int = 0
    data: Path | None = None


def test_runs_at_the_same_second_get_their_own_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunFolder.create("asr", root=tmp_path), range(16)))
    assert len({run.path for run in runs}) == 16
    assert not (tmp_path / "asr" / "latest").exists()  # none has begun to train
    runs[3].begin()
    latest = tmp_path / "asr" / "latest"
    assert latest.is_symlink() and not os.path.isabs(os.readlink(latest)) and latest.resolve().is_dir()
    newest = RunFolder.create("asr", root=tmp_path)
    newest.begin()
    assert latest.resolve() == newest.path.resolve()
    assert not list((tmp_path / "asr").glob("*.tmp"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?", newest.path.name)


def test_a_named_folder_must_be_new(tmp_path: Path) -> None:
    run = RunFolder.create("asr", path=tmp_path / "mine")
    assert run.path == tmp_path / "mine"
    (tmp_path / "mine" / "notes.txt").write_text("of something else")
    with pytest.raises(InputError, match="mine: exists already and holds no run"):
        RunFolder.create("asr", path=tmp_path / "mine")
    with pytest.raises(InputError, match="none: no such run folder"):
        RunFolder(tmp_path / "none")
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"old: holds checkpoints .*; go on with RunFolder\('.*old'\)"):
        RunFolder.create("asr", path=tmp_path / "old")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made|exists already"):
        RunFolder.create("asr", root=tmp_path / "file")


def test_the_same_run_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    first = RunFolder.open("asr", Recipe(seed=1), tmp_path / "mine")
    assert not first.resumed and load_config(Recipe, first.config_file) == Recipe(seed=1)
    again = RunFolder.open("asr", Recipe(seed=1), tmp_path / "mine")
    assert again.resumed and set(first.took("seconds", 0.0)) == {"seconds"} and again.took("seconds", 0.0) == {}
    with pytest.raises(ConfigError, match=r"seed was 1, now 2; data was None, now 'a'.*name a new folder"):
        RunFolder.open("asr", Recipe(seed=2, data=Path("a")), tmp_path / "mine")
    assert RunFolder.open("asr", Recipe(seed=1, data=Path("a")), tmp_path / "mine", ignore=("data",)).resumed
    with pytest.raises(InputError, match="no run to resume"):
        RunFolder.open("asr", Recipe(), resume="latest", root=tmp_path)
    begun = RunFolder.open("asr", Recipe(), root=tmp_path)
    begun.begin()
    RunFolder.open("asr", Recipe(), root=tmp_path)  # killed before it trained: it is no run to go on with
    assert RunFolder.open("asr", Recipe(), resume="latest", root=tmp_path).path == begun.path.resolve()
    with pytest.raises(ConfigError, match="not both"):
        RunFolder.open("asr", Recipe(), tmp_path / "mine", resume="latest", root=tmp_path)


@dataclass(kw_only=True)
class Trained(Recipe):
    training: TrainingConfig = field(default_factory=TrainingConfig)


def test_what_changes_no_update_may_change(tmp_path: Path) -> None:
    RunFolder.open("asr", Trained(training=TrainingConfig(updates=5)), tmp_path / "mine")
    free = TrainingConfig(updates=5, workers=2, save_minutes=1.0, cache=Cache(folder=tmp_path), trackers=())
    assert RunFolder.open("asr", Trained(training=free), tmp_path / "mine").resumed
    with pytest.raises(ConfigError, match=r"settings: training.updates was 5, now 6\. Go on"):
        RunFolder.open("asr", Trained(training=replace(free, updates=6)), tmp_path / "mine")


def test_manifests_that_changed_since_are_refused(tmp_path: Path) -> None:
    train = {"name": "train.jsonl", "utterances": 27, "hours": 0.1, "speakers": 3, "sha256": "a"}
    data = {"corpus": "mine", "train": train}
    RunFolder.open("asr", Recipe(), tmp_path / "mine", data=data)
    assert RunFolder.open("asr", Recipe(), tmp_path / "mine", data=data).resumed
    moved = {"corpus": "other", "train": {**train, "name": "elsewhere/train.jsonl"}}
    assert RunFolder.open("asr", Recipe(), tmp_path / "mine", data=moved).resumed, "the same lines"
    cut = {"train": {**train, "utterances": 10, "sha256": "b"}, "dev": {**train, "name": "dev.jsonl"}}
    message = (
        r"data has changed.*train \(train.jsonl\) held 27 utterances then, 10 now; dev \(dev.jsonl\) held nothing"
    )
    with pytest.raises(ConfigError, match=message):
        RunFolder.open("asr", Recipe(), tmp_path / "mine", data=cut)
    with pytest.raises(ConfigError, match=r"held 27 utterances then, 27 with other lines now\. Restore"):
        RunFolder.open("asr", Recipe(), tmp_path / "mine", data={"train": {**train, "sha256": "b"}})
    (tmp_path / "mine" / "data.json").unlink()  # a run of before
    assert RunFolder.open("asr", Recipe(), tmp_path / "mine", data=cut).resumed


def test_a_run_goes_on_where_its_data_lies_elsewhere(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Trained:
        train: Path | None = None
        dev: Path | None = None
        encoder: str = "tiny-wavlm"
        extra: Path | None = None

    held = {split: {"name": f"{split}.jsonl", "utterances": 2, "sha256": split} for split in ("train", "dev")}

    def opened(data: dict[str, Any] = held, **settings: Any) -> RunFolder:
        return RunFolder.open("asr", Trained(**settings), tmp_path / "mine", data=data, base={"fingerprint": "a"})

    opened(train=Path("a.jsonl"), dev=Path("d.jsonl"))
    assert opened(train=tmp_path / "a.jsonl", dev=tmp_path / "d.jsonl", encoder="models/tiny").resumed
    with pytest.raises(ConfigError, match="extra was None, now 'x'"):
        opened(train=Path("a.jsonl"), dev=Path("d.jsonl"), extra=Path("x"))
    with pytest.raises(ConfigError, match=r"dev was 'd.jsonl', now None"):
        opened({"train": held["train"]}, train=Path("a.jsonl"))
    with pytest.raises(ConfigError, match="the data has changed"):
        opened({**held, "train": {**held["train"], "sha256": "b"}}, train=Path("b.jsonl"), dev=Path("d.jsonl"))


def test_an_encoder_that_changed_since_is_refused(tmp_path: Path) -> None:
    """At the same place, as another checkpoint of its training: adapters of the one would be scored on the other."""
    data = {"corpus": "mine"}
    RunFolder.open("asr", Recipe(), tmp_path / "mine", data=data, base={"fingerprint": "a"})
    assert RunFolder.open("asr", Recipe(), tmp_path / "mine", data=data, base={"fingerprint": "a"}).resumed
    with pytest.raises(ConfigError, match="has changed since this run was begun: the encoder held other weights then"):
        RunFolder.open("asr", Recipe(), tmp_path / "mine", data=data, base={"fingerprint": "b"})
    heard = {"fingerprint": "a", "normalize": False, "settings": {"hidden_act": "gelu", "new": 1}}
    assert RunFolder.open("asr", Recipe(), tmp_path / "mine", data=data, base=heard).resumed, "a run of before"
    RunFolder.open("asr", Recipe(), tmp_path / "heard", data=data, base=heard)
    other = {"fingerprint": "a", "normalize": True, "settings": {"hidden_act": "relu"}}
    with pytest.raises(
        ConfigError, match="encoder's normalize was False, now True; the encoder's settings.hidden_act was"
    ):
        RunFolder.open("asr", Recipe(), tmp_path / "heard", data=data, base=other)
    RunFolder.open("asr", Recipe(), tmp_path / "before", data=data)
    assert RunFolder.open("asr", Recipe(), tmp_path / "before", data=data, base={"fingerprint": "b"}).resumed, (
        "a run of before"
    )


def test_a_folder_left_by_a_kill_before_its_configuration_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".lock").touch()
    (tmp_path / "mine" / ".config.yaml.99999999.tmp").write_text("se")
    run = RunFolder.open("asr", Recipe(), tmp_path / "mine")
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "config.yaml"]


def test_one_process_writes_to_a_folder_at_a_time(tmp_path: Path) -> None:
    RunFolder.open("asr", Recipe(), tmp_path / "mine")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_run_folder import Recipe, RunFolder\n"
        "try: RunFolder.open('asr', Recipe(), sys.argv[2])\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "mine")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "another process writes to this folder" in done.stdout


@pytest.mark.parametrize("late", ["is_run", "hold"])
def test_a_run_that_another_process_begins_meanwhile_is_gone_on_with_or_refused(tmp_path, monkeypatch, late) -> None:
    place, step, others = tmp_path / "mine", getattr(folder, late), iter((Recipe(seed=1),))

    def after_another(path: Path) -> object:
        """The other process begins and lets go between this one's step and the next, or before it has the lock."""
        found = step(path) if late == "is_run" else None
        for other in others:
            with RunFolder.open("asr", other, place):
                (place / "checkpoints").mkdir()
        return step(path) if late == "hold" else found

    monkeypatch.setattr(folder, late, after_another)
    with pytest.raises(ConfigError, match="was begun with other settings: seed was 1, now 2"):
        RunFolder.open("asr", Recipe(seed=2), place)
    assert load_config(Recipe, place / "config.yaml") == Recipe(seed=1)


def test_file_systems_without_locks_take_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    assert not RunFolder.open("asr", Recipe(), tmp_path / "mine").resumed


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "-x", "a b"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    run = RunFolder.create("asr", root=tmp_path)
    for path_of in (run.adapter, run.head, run.trn):
        with pytest.raises(ConfigError, match="name"):
            path_of(name)


def test_saved_config_repeats_the_run(tmp_path: Path) -> None:
    run = RunFolder.create("asr", root=tmp_path)
    run.save_config(Recipe(seed=3, data=Path("a/b")))
    assert load_config(Recipe, run.config_file) == Recipe(seed=3, data=Path("a/b"))


def test_metrics_are_json_lines_and_survive_a_torn_end(tmp_path: Path) -> None:
    run = RunFolder.open("asr", Recipe(), tmp_path / "mine")
    assert run.read_metrics() == []
    run.log_metrics({"step": 1, "loss": torch.tensor(2.0), "rate": np.float32(0.5), "grad": float("nan")})
    run.log_metrics({"step": 2, "lrs": [np.int64(1), Path("x")]})
    expected = [{"step": 1, "loss": 2.0, "rate": 0.5, "grad": None}, {"step": 2, "lrs": [1, "x"]}]
    assert [json.loads(line) for line in run.metrics_file.read_text().splitlines()] == expected
    whole = run.metrics_file.read_bytes()
    for torn in (b'{"step": 3, "lo', '{"step": 3, "said": "é'.encode()[:-1]):
        run.metrics_file.write_bytes(whole + torn)
        assert run.read_metrics() == expected
    again = RunFolder.open("asr", Recipe(), tmp_path / "mine")
    again.log_metrics({"step": 3})
    assert again.read_metrics() == [*expected, {"step": 3}]
    run.metrics_file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:2: not JSON"):
        run.read_metrics()


def test_results_are_whole_or_absent(tmp_path: Path) -> None:
    run = RunFolder.create("asr", root=tmp_path)
    with pytest.raises(InputError, match="results.json: no such file"):
        run.read_results()
    run.write_results({"task": "asr", "metrics": {"wer": {"value": 0.1, "low": 0.05, "high": float("inf")}}})
    with pytest.raises(TypeError):
        run.write_results({"task": object()})
    assert run.read_results() == {"task": "asr", "metrics": {"wer": {"value": 0.1, "low": 0.05, "high": None}}}
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "results.json"]
    run.results_file.write_text('{"task": ')
    with pytest.raises(InputError, match="results.json:1: not JSON"):
        run.read_results()


def test_environment_names_what_made_the_numbers() -> None:
    found = environment("cpu")
    assert found["versions"]["torch"].startswith("2.") and found["versions"]["python"].count(".") == 2
    assert {"transformers", "peft", "speech-adapters"} <= set(found["versions"])
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["git_commit"])
    assert "CPU" in found["device"]
    json.dumps(found)


def test_peak_memory_sees_what_was_freed() -> None:
    code = """
import torch
from speech_adapters.runs.environment import peak_memory_bytes
before = peak_memory_bytes()
block = torch.ones(60_000_000)
del block
print(peak_memory_bytes() - before)
"""  # in a process of its own, whose peak no other test has raised before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 200_000_000 < int(done.stdout) < 280_000_000


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot reset the peak")
def test_peak_memory_can_be_measured_anew() -> None:
    script = (
        "from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory\n"
        "import torch\n"
        "block = torch.ones(100_000_000); del block\n"
        "first = peak_memory_bytes(); reset_peak_memory()\n"
        "assert peak_memory_bytes() < first - 200_000_000, (first, peak_memory_bytes())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.gpu
def test_peak_memory_on_a_gpu() -> None:
    reset_peak_memory("cuda")
    block = torch.ones(1_000_000, device="cuda")
    del block
    assert peak_memory_bytes("cuda") >= 4_000_000
