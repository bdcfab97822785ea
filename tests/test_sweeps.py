"""Sweeps: their spaces, what is drawn and pruned, kills and company, and what the test set is kept from."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch

from speech_adapters.cli import main as command_line
from speech_adapters.cli.recipes import load_recipe
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, InputError, InUseError
from speech_adapters.files import write_json
from speech_adapters.locks import held
from speech_adapters.reports.sweep_report import Finished, pareto_front, sweep_table, write_sweep_report
from speech_adapters.sweeps import study
from speech_adapters.sweeps.finalists import run_finalists
from speech_adapters.sweeps.settings import SweepConfig
from speech_adapters.sweeps.space import Space, with_values
from speech_adapters.sweeps.study import Sweep
from speech_adapters.tasks.base import ExperimentConfig

OVER = {
    "adapter": ["lora", "l"],
    "options": {"lora": {"rank": [2, 4, 8], "layers": [None, "top-1"]}, "l": {"l_size": [16, 32]}},
    "rates": {"head": {"low": 1e-3, "high": 1e-2, "log": True}, "lora": {"low": 1e-3, "high": 1e-2, "log": True}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Half a second of noise each, with texts: the three splits, of other speakers each."""
    folder, rng = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        utterances = []
        for index in range(6):
            path, samples = folder / f"{split}{index}.wav", 8000 + 300 * index
            write_audio(path, torch.tensor(rng.normal(0, 0.1, samples), dtype=torch.float32))
            facts = {"text": ("YES", "NO", "MAYBE")[index % 3], "speaker": f"{split}{index % 2}"}
            utterances.append(Utterance(id=f"{split}{index}", audio_filepath=path, duration=samples / 16000, **facts))
        Manifest(utterances, split).write(folder / f"{split}.jsonl")
    return folder


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    splits = [f"--{split}={data / split}.jsonl" for split in ("train", "dev", "test")]
    space = output.parent / f"{output.name}.yaml"
    space.write_text(json.dumps({"over": OVER}))
    quick = ["training.updates=6", "training.evaluate_every=1", "training.batch_seconds=2", "training.trackers=[none]"]
    return ["sweep", "asr", f"--output={output}", f"--space={space}", *splits, *quick, *more]


def run(*argv: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line(list(argv))
    assert stopped.value.code == 0


def trials(output: Path) -> list[dict]:
    return json.loads((output / "trials.json").read_text())["trials"]


def learnt(output: Path) -> list[dict]:
    """What does not hang on the clock."""
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials(output)]


# --- space ---------------------------------------------------------------------------------------------------------


class Draws:
    """Stands for a trial of optuna: the last of each choice, the low end of each range."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def suggest_categorical(self, name, values):
        self.asked.append(name)
        return values[-1]

    def suggest_float(self, name, low, high, log):
        self.asked.append(name)
        return low


def test_a_trial_draws_what_goes_with_its_adapter():
    space = Space({**OVER, "training": {"warmup": [0.0, 0.1]}}, "elp")
    space.groups = {"lora": frozenset({"lora", "head"}), "l": frozenset({"l", "norm", "head"})}
    trial = Draws()
    expected = {"adapter": "l", "options.l.l_size": 32, "rates.head": 1e-3, "training.warmup": 0.1}
    assert space.suggest(trial) == expected and trial.asked == list(expected)
    config = with_values(ExperimentConfig(), expected)
    assert config.adapter == "l" and config.options == {"l": {"l_size": 32}} and config.training.warmup == 0.1
    tried = list(space.corners("lora"))
    assert {values["options.lora.rank"] for values in tried} == {2, 4, 8}
    assert {values["rates.lora"] for values in tried} == {1e-3, 1e-2} and "options.l.l_size" not in tried[0]
    each = Space({"options": {"e": {"e_size": {"each_layer": [8, 16], "layers": 3}}}}, "e")
    assert each.suggest(trial) == {"options.e.e_size": [16, 16, 16]} and trial.asked[-1] == "options.e.e_size[2]"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({}, "nothing to choose from"),
        ({"learning_rate": 1e-3}, "over.learning_rate: 0.001 is not a choice"),
        ({"learning_rate": []}, "give one or more different values"),
        ({"learning_rate": {"low": 1.0, "high": 0.1}}, "from 1.0 to 0.1 is not a range"),
        ({"learning_rate": {"low": 0, "high": 0.1, "log": True}}, "by logarithm is not a range"),
        ({"learning_rate": {"low": 0.1, "hgih": 1}}, "write {low: 1.0e-4, high"),
        ({"encoder": ["a", "b"]}, "over.encoder: sweeps go over adapter, adapter_options"),
        ({"training": {"updates": [1, 2]}}, "trials are compared by it"),
        ({"options": {"lora": ["a"]}}, "name a setting of it, such as over.options.lora.rank"),
        ({"options": {"e": {"e_size": {"each_layer": [8], "layers": 0}}}}, "layers=0; give the number"),
        ({"adapter": ["l", "lora"], "adapter_options": {"rank": [1]}}, "of which adapter"),
    ],
)
def test_what_is_no_space_is_refused(over, message):
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        Space(over, "lora")


@pytest.mark.parametrize(
    ("over", "changes", "message"),
    [
        ({"options": {"lora": {"rank": [2, 0]}}}, {}, "no trial can have options.lora.rank=0"),
        ({"options": {"lora": {"layers": ["top-9"]}}}, {}, "no trial can have .*top-9"),
        ({"options": {"lora": {"rnak": [2]}}}, {}, "no trial can have .*rnak"),
        ({"adapter": ["lora", "laura"]}, {}, "unknown adapter preset 'laura'"),
        ({"options": {"el": {"e_size": [8]}}}, {}, "over.options.el.e_size: none of lora has it"),
        ({"rates": {"e": [1e-3]}}, {}, "over.rates.e: none of lora has it"),
        ({"training": {"warmup": [0.0, 0.1]}}, {"at_once": 2}, "trials of one pass differ in their adapters"),
        ({"learning_rate": [1e-3]}, {"evaluate_every": 0}, "set training.evaluate_every, such as 1, or --pruner none"),
    ],
)
def test_a_space_that_some_trial_could_not_be_trained_with_is_refused_before_training(
    data, tmp_path, over, changes, message
):
    with pytest.raises(ConfigError, match=message):
        sweep(data, tmp_path / "s", over, adapter="lora", **changes)
    assert not (tmp_path / "s").exists()


def sweep(data, output, over, *, at_once=1, evaluate_every=1, adapter="lora", **settings) -> Sweep:
    recipe = load_recipe("asr_librispeech")
    config = recipe.Config(
        adapter=adapter, train=data / "train.jsonl", dev=data / "dev.jsonl", test=data / "test.jsonl"
    )
    training = dataclasses.replace(
        config.training, updates=6, evaluate_every=evaluate_every, batch_seconds=2.0, trackers=("none",)
    )
    config = dataclasses.replace(config, training=training)
    return Sweep(recipe.experiment(config), SweepConfig(over=over, at_once=at_once, **settings), output)


# --- trials --------------------------------------------------------------------------------------------------------


def test_a_sweep_finds_its_finalists_on_dev_and_tests_them_when_asked(data, tmp_path, capsys):
    output = tmp_path / "s"
    command = arguments(data, output, "--trials=4", "--at-once=2")
    run(*command)
    states = [trial["state"] for trial in trials(output)]
    assert set(states) <= {"complete", "pruned"} and len(states) == 4 and "complete" in states
    for trial in trials(output):
        assert trial["updates"] == (trial["pruned"] if trial["state"] == "pruned" else 6)
        assert list(map(int, trial["losses"])) == list(range(1, trial["updates"] + 1))
        assert ("metrics" in trial) == (trial["state"] == "complete") and trial["parameters"]["trainable"] > 0
    assert not (output / "finalists").exists() and not list(output.rglob("test.json"))
    before = learnt(output)
    run(*command, "--finalists=1", "--seeds=0,1")
    assert learnt(output) == before  # enough trials: none is added
    (folder,) = (output / "finalists").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["seeds"] == [0, 1] and results["data"]["test"]["sha256"] == results["data"]["dev"]["sha256"]
    said = capsys.readouterr().out
    assert "\ndev   6 utterances" in said.partition("finalist:")[2] and "\ntest " not in said
    assert "not asked for" in said and not (folder / "test.json").exists()
    run(*command, "--score-test")
    assert len(list(folder.glob("predictions/test-*.jsonl"))) == 2  # of both seeds, though this command names none
    tested = json.loads((folder / "test.json").read_text())
    assert tested["data"]["sha256"] != results["data"]["dev"]["sha256"] and tested["metrics"]["wer"]["low"] >= 0
    page = (output / "report.html").read_text()
    assert "No other is better and smaller" in page and "<h2>Finalists</h2>" in page
    with pytest.raises(SystemExit):
        command_line([*command, "training.warmup=0.3"])
    assert "was begun with other settings: config.training.warmup was 0.1, now 0.3. Go on" in capsys.readouterr().err


def test_what_the_pruner_stops_makes_no_more_updates(data, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.pruners.SuccessiveHalvingPruner, "prune", lambda self, study, trial: trial.number == 1)
    made = sweep(data, tmp_path / "s", {"options": {"lora": {"rank": [2, 4]}}}, at_once=3, trials=3)
    scored = []
    score = type(made.task).score

    def heard(self, *arguments, **options):
        scored.append(options)
        return score(self, *arguments, **options)

    monkeypatch.setattr(type(made.task), "score", heard)
    made.run()
    assert scored == [made.config.scoring] * 2, "windows and precision as in a run of its own"
    found = made.found()["trials"]
    assert [trial["state"] for trial in found] == ["complete", "pruned", "complete"]
    assert [trial["updates"] for trial in found] == [6, 1, 6] and found[1]["pruned"] == 1
    assert len(made.best(5)) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something other than a sweep"):
        sweep(data, other, {"options": {"lora": {"rank": [2]}}})


def start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "speech_adapters.cli", *command], env=environment, stdout=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_killed_sweep_ends_as_one_that_was_not_and_two_processes_share_one(data, tmp_path):
    whole, killed, shared = (tmp_path / name for name in ("whole", "killed", "shared"))
    more = ("--trials=3", "training.save_minutes=0")
    run(*arguments(data, whole, *more))
    process = start(arguments(data, killed, *more))
    deadline = time.monotonic() + 300
    while not list(killed.glob("rounds/0001/checkpoints/*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(*arguments(data, killed, *more))
    assert learnt(killed) == learnt(whole)

    processes = [start(arguments(data, shared, "--trials=4")) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    found = trials(shared)
    assert [trial["number"] for trial in found] == list(range(4))
    assert {trial["state"] for trial in found} <= {"complete", "pruned"}


def test_a_round_that_another_process_ends_meanwhile_is_left(data, tmp_path, monkeypatch):
    over = {"options": {"lora": {"rank": [2, 4]}}}
    ours = sweep(data, tmp_path / "s", over, trials=1)
    other = sweep(data, tmp_path / "s", over, trials=1)
    theirs = other._next()

    def taken_late(number):
        """The other process ends its round between this one's look at the study and its hold of the folder."""
        with theirs.run:
            other._train(theirs)
        return Sweep._free(ours, number)

    monkeypatch.setattr(ours, "_free", taken_late)
    assert ours._next() is None
    assert theirs.run.path not in held()
    ours.run()
    assert [trial["state"] for trial in ours.found()["trials"]] == ["complete"]


def test_a_sweep_that_was_killed_between_the_trials_of_a_round_goes_on(data, tmp_path, monkeypatch):
    over = {"options": {"lora": {"rank": [2, 4]}}}
    killed = sweep(data, tmp_path / "s", over, at_once=2, trials=2, pruner="none")
    tell = killed._tell

    def once(trial, metrics):
        tell(trial, metrics)
        raise KeyboardInterrupt

    monkeypatch.setattr(killed, "_tell", once)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    before = killed.found()["trials"]
    assert [trial["state"] for trial in before] == ["complete", "running"]
    again = sweep(data, tmp_path / "s", over, at_once=2, trials=2, pruner="none")
    again.run()
    after = again.found()["trials"]
    assert [trial["state"] for trial in after] == ["complete"] * 2 and after[0] == before[0]


def test_finalists_wait_for_the_last_trials_and_are_shared(data, tmp_path, monkeypatch, capsys):
    over = {"options": {"lora": {"rank": [2, 4]}}}
    ours = sweep(data, tmp_path / "s", over, trials=2, pruner="none")
    other = sweep(data, tmp_path / "s", over, trials=2, pruner="none")
    theirs, ours.seeds = other._next(), (0,)
    monkeypatch.setattr(ours, "_free", lambda number: Sweep._free(ours, number) if number else None)
    ours.run()
    assert [trial["state"] for trial in ours.found()["trials"]] == ["running", "complete"]
    monkeypatch.setattr(study, "time", SimpleNamespace(sleep=lambda _: other._train(theirs)))
    held_by_another = tmp_path / "s" / "finalists" / "trial-0001"
    held_by_another.mkdir(parents=True)
    with (held_by_another / ".lock").open("w") as lock:
        pytest.importorskip("fcntl").flock(lock, 2)  # LOCK_EX
        folders = run_finalists(ours, load_recipe("asr_librispeech").experiment, 2)
    assert [folder.name for folder in folders] == ["trial-0000"]
    said = capsys.readouterr().out
    assert said.count("waiting for what other processes train: trial 0\n") == 1 and "another process trains it" in said


def test_who_has_no_finalist_of_its_own_leaves_the_test_to_others(data, tmp_path, monkeypatch):
    def taken(*_):
        raise InUseError("another process writes to this folder")

    monkeypatch.setattr("speech_adapters.sweeps.finalists.run_experiment", taken)
    run(*arguments(data, tmp_path / "s", "--trials=1", "--pruner=none", "--finalists=1", "--score-test"))
    assert not list(tmp_path.rglob("test.json"))


# --- report --------------------------------------------------------------------------------------------------------


def found_trials() -> dict:
    """What a sweep leaves: LoRA of three ranks and two depths, sizes by layer, and a trial that was pruned."""
    made = []
    for number, (rank, layers, rate) in enumerate([(2, None, 0.5), (8, None, 0.4), (32, "top-1", 0.45)]):
        values = {
            "adapter": "lora",
            "options.lora.rank": rank,
            "options.lora.layers": layers,
            "rates.head": 1e-3 * rank,
        }
        figures = {"metrics": {"wer": {"value": rate, "low": rate - 0.1, "high": rate + 0.1}}}
        made.append({"number": number, "state": "complete", "values": values, **figures})
    values = {"adapter": "el", "options.el.e_size": [16, 64], "rates.head": 0.005}
    made.append({"number": 3, "state": "complete", "values": values, "metrics": {"wer": {"value": 0.3}}})
    made.append({"number": 4, "state": "pruned", "values": {**values, "options.el.e_size": [16, 16]}, "pruned": 20})
    for trial in made:
        trial["parameters"] = {"trainable": 1000 * 4 ** trial["number"]}
    facts = {"task": "asr", "encoder": "tiny-wavlm", "adapter": "elp", "metric": "wer", "updates": 100, "layers": 4}
    return {**facts, "data": {}, "over": {}, "trials": made}


def test_only_a_round_that_another_trains_is_left_to_it(tmp_path):
    sweep = object.__new__(Sweep)
    sweep.config, sweep.folder = ExperimentConfig(), tmp_path
    with sweep._free(0) as round_:
        assert round_.path == tmp_path / "rounds" / "0000"
    with (tmp_path / "rounds" / "0000" / ".lock").open("w") as lock:
        pytest.importorskip("fcntl").flock(lock, 2)  # LOCK_EX
        assert sweep._free(0) is None
    (tmp_path / "rounds" / "0001").write_text("")
    with pytest.raises(InputError, match="0001: .*cannot be made"):
        sweep._free(1)


def test_the_page_shows_each_setting_against_figures_and_parameters(tmp_path):
    write_json(tmp_path / "trials.json", found_trials())
    page = write_sweep_report(tmp_path).read_text()
    for title in ("By adapter", "By rank", "By layers", "By e_size", "By rates.head"):
        assert f"<h2>{title}</h2>" in page
    assert "layers that get an adapter" in page and "16/64" in page and "5, of which 4 to their end, 1 pruned" in page
    assert page.count("<svg") - page.count('aria-hidden="true"') == 1 + 2 + 2 + 1  # front, rank, layers, rate
    assert "trial 3, el: 30.0 %, 64,000 parameters" in page
    assert '<th scope="row" data-title="trial">3</th>' in page  # which a phone shows as "trial 3"
    assert '<th scope="row">el</th>' in page
    text = sweep_table(tmp_path, most=2)
    assert text.splitlines()[1].split()[:3] == ["3", "30.0", "64,000"] and len(text.splitlines()) == 3


def test_the_front_holds_what_nothing_beats():
    trials = [
        Finished(number, "a", {}, rate, parameters)
        for number, (parameters, rate) in enumerate([(10, 50.0), (20, 60.0), (20, 40.0), (30, 45.0), (40, 30.0)])
    ]
    assert [trial.number for trial in pareto_front(trials, 1)] == [0, 2, 4]
    assert [trial.number for trial in pareto_front(trials, -1)] == [0, 1]
