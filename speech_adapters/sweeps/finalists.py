"""Finalists: a sweep's best trials once more, over seeds, with intervals; and, when it is asked for, on the test set.

    DIR/finalists/trial-0007/    a whole run: results.json has its figures on dev data, over the recipe's seeds
      test.json                  the same on the test set, once it was asked for

A trial is the best of many on the same dev data, which flatters it; new seeds show by how much. Choose among finalists
by their dev figures; the test set is for the one that was chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from speech_adapters.errors import ConfigError, InUseError
from speech_adapters.files import read_json, to_json, write_json
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.sweeps.study import Sweep, on_dev
from speech_adapters.tasks.base import ExperimentConfig
from speech_adapters.tasks.experiment import Experiment, check, plan, run_experiment
from speech_adapters.tasks.start import Start

Make = Callable[[Any], Experiment]
"""A recipe's function from its configuration to what is trained."""


def run_finalists(sweep: Sweep, make: Make, count: int) -> list[Path]:
    """Train and score the best trials over the recipe's seeds, on dev data; their folders, best trial first.

    Which are the best is known once all trials have ended: those of other processes are waited for. Of several
    processes each trains the finalists that no other does.

    Raises:
        ConfigError: no trial was trained to its end.
    """
    sweep.wait()
    best = sweep.best(count)
    if not best:
        raise ConfigError(f"{sweep.folder}: no trial was trained to its end; give more --trials.")
    folders = []
    for trial in best:
        folder = _folder(sweep, trial.number)
        config = _config(sweep, trial.user_attrs["values"], folder, sweep.seeds)
        task = make(config).task
        print(f"\nfinalist: trial {trial.number}, seeds {', '.join(map(str, config.seeds))}, scored on dev data")
        try:
            run_experiment("sweep", config, task, lambda: [sweep.corpus])
        except InUseError:
            print("another process trains it")
            continue
        folders.append(folder)
    sweep.write()
    return folders


def score_finalists(sweep: Sweep, make: Make) -> dict[str, dict[str, Any]]:
    """Score the finalists that were trained on the test set: figures by folder.

    Raises:
        ConfigError: no finalists, or no test set.
        InputError: found in the test set.
    """
    found = {}
    corpus = sweep.whole
    if corpus.test.describe()["sha256"] == sweep.corpus.test.describe()["sha256"]:
        raise ConfigError("the test set is the dev set; give --test.")
    trials = [t for t in sweep.best(len(sweep.study.trials)) if (_folder(sweep, t.number) / "results.json").is_file()]
    if not trials:
        raise ConfigError(f"{sweep.folder}: no finalists to test; give --finalists, and how many, first.")
    for trial in trials:
        folder = _folder(sweep, trial.number)
        trained = tuple(read_json(folder / "results.json")["seeds"])
        config = _config(sweep, trial.user_attrs["values"], folder, trained)
        task, run = make(config).task, RunFolder(folder)
        start = Start.read(config, sweep.encoder, task.own_head)
        task.start_head = start.head_config
        check(config, task, corpus, sweep.encoder)
        results = []
        for training in plan(config, task, [on_dev(corpus)], sweep.encoder, start):
            model = SpeechAdapterModel(copy.deepcopy(sweep.encoder))
            model.load_adapter(run.adapter(training.name))
            model.load_head(run.head(training.name))
            results.append(task.score(model, corpus, **config.scoring))
            task.write(results[-1], corpus, run, f"test-{training.name}")
        figures = {"metrics": to_json(task.metrics(results)), "data": corpus.test.describe()}
        write_json(folder / "test.json", figures)
        found[folder.name] = figures
    sweep.write()
    return found


def _folder(sweep: Sweep, number: int) -> Path:
    return sweep.folder / "finalists" / f"trial-{number:04d}"


def _config(sweep: Sweep, values: dict[str, Any], folder: Path, seeds: tuple[int, ...]) -> ExperimentConfig:
    return replace(sweep.config_of(values), output=folder, seeds=seeds)
