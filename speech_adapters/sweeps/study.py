"""A sweep's study: trials drawn, trained on one split, pruned and scored on dev data, in a folder that outlives kills.

    DIR/
      sweep.json       settings, space and data: what the folder belongs to
      study.db         the study (SQLite, by optuna): every trial's values, dev losses and figures
      rounds/0000/     a run folder for each round of trials that trained in one pass, by its first trial's number
      finalists/       see :mod:`speech_adapters.sweeps.finalists`
      trials.json      what the study holds, for people and programs
      report.html

A trial's dev loss at each evaluation is reported from the one training loop, which stops it where the pruner says so.
Several processes may work in one folder: each draws under a lock, and trains where no other does. A round whose
process is gone is taken up by the next that looks for work, from its checkpoint. What a trial draws follows from the
sampler's seed, the trial's number and the trials before it, so that a sweep of one process that was killed ends as one
that was not. The test set is not read: dev stands in its place.

Sources: TPE: Bergstra et al. (NeurIPS 2011); successive halving: Li et al., "A System for Massively Parallel
Hyperparameter Tuning" (ASHA, MLSys 2020); both as optuna has them (Akiba et al., KDD 2019).
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.loading import load_encoder
from speech_adapters.errors import ConfigError, InputError, InUseError, TrainingError
from speech_adapters.files import read_json, to_json, write_json
from speech_adapters.locks import locked, release
from speech_adapters.reports.summary import higher_is_better
from speech_adapters.reports.sweep_report import write_sweep_report
from speech_adapters.runs.folder import RunFolder, flat
from speech_adapters.schema import to_dict
from speech_adapters.sweeps.settings import SweepConfig
from speech_adapters.sweeps.space import Space, Values, with_values
from speech_adapters.tasks.base import Corpus, ExperimentConfig
from speech_adapters.tasks.experiment import Experiment, Training, check, plan, train_in_one_pass
from speech_adapters.tasks.start import Start

WAIT_SECONDS = 5.0
"""Between two looks at what other processes train."""


@dataclass(frozen=True)
class Round:
    """Trials that train in one pass, and the folder of it."""

    run: RunFolder
    trials: Sequence[Trial]


class Sweep:
    """A sweep over what a recipe trains.

    Args:
        experiment: the recipe's, with the settings that all trials share.
        folder: a new one, or that of the same sweep.

    Raises:
        ConfigError: a space that some trial could not be trained with (each value of each dimension is tried on the
            encoder), a task without dev data, or a folder of another sweep.
        InputError: found in the data.

    Attributes:
        seeds: of the finalists; trials take the first.
    """

    def __init__(self, experiment: Experiment, settings: SweepConfig, folder: str | os.PathLike[str]) -> None:
        self.settings, self.folder, self.experiment = settings, Path(folder), experiment
        self.task = experiment.task
        self.seeds = experiment.config.seeds
        self.config = replace(experiment.config, seeds=self.seeds[:1], baselines=(), output=None, resume=None)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("a sweep does not run under torchrun: start the same command once per device.")
        if settings.pruner != "none" and not self.config.training.evaluate_every:
            every = max(1, self.config.training.updates // 10)
            raise ConfigError(
                f"trials are pruned on dev evaluations: set training.evaluate_every, such as {every}, or "
                "--pruner none."
            )
        self.encoder: Encoder = load_encoder(self.config.encoder, quantize=self.config.quantize)
        self.start = Start.read(self.config, self.encoder, self.task.own_head)
        self.task.start_head = self.start.head_config
        self.whole = whole_corpus(experiment)
        self.corpus = on_dev(self.whole)
        check(self.config, self.task, self.corpus, self.encoder)
        self.space = Space(settings.over, self.config.adapter)
        self._check_space()
        self._claim()
        self.study = self._open()

    def run(self) -> None:
        """Draw and train until there are as many trials as asked for, and write the report.

        Raises:
            Interrupted: Ctrl-C or SIGTERM came; the same command goes on.
        """
        while (round_ := self._next()) is not None:
            with round_.run:
                self._train(round_)
            self.write()
        self.write()

    def wait(self) -> None:
        """Wait for the trials that other processes train, and end those that they leave behind."""
        told = False
        while running := [t.number for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]:
            if not told:
                shown = ", ".join(map(str, running))
                print(f"waiting for what other processes train: trial {shown}", flush=True)
                told = True
            time.sleep(WAIT_SECONDS)
            self.run()

    def best(self, count: int) -> list[FrozenTrial]:
        """The best trials that were trained to their end, best first."""
        done = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        return sorted(done, key=lambda trial: (trial.value, trial.number))[:count]

    def config_of(self, values: Values) -> ExperimentConfig:
        """A trial's whole configuration."""
        return with_values(self.config, values)

    def write(self) -> Path:
        """Write ``trials.json`` and the report; returns its path."""
        with locked(self.folder / "trials.json"):
            write_json(self.folder / "trials.json", self.found())
            return write_sweep_report(self.folder)

    def found(self) -> dict[str, Any]:
        """What the study holds, as plain values."""
        return {
            "task": self.task.name,
            "encoder": self.config.encoder,
            "adapter": self.config.adapter,
            "metric": self.task.metric,
            "updates": self.config.training.updates,
            "layers": self.encoder.num_layers,
            "data": {name: manifest.describe() for name, manifest in self.corpus.splits.items() if name != "test"},
            "over": self.settings.over,
            "trials": [_plain(trial) for trial in self.study.get_trials(deepcopy=False)],
        }

    # ------------------------------------------------------------------ before anything trains

    def _check_space(self) -> None:
        """Try each value of each dimension on the encoder, and learn the adapters' parameter groups."""
        for adapter in self.space.adapters:
            alone = self._plan(self.config_of({"adapter": adapter}))
            self.space.groups[adapter] = alone.groups
        for key in self.space.dimensions:
            if not any(key in self.space.active(adapter) for adapter in self.space.adapters):
                raise ConfigError(f"over.{key}: none of {', '.join(self.space.adapters)} has it; take it out.")
        shared: Training | None = None
        for adapter in self.space.adapters:
            for values in self.space.corners(adapter):
                try:
                    training = self._plan(self.config_of(values))
                except ConfigError as error:
                    chosen = ", ".join(f"{key}={value}" for key, value in values.items())
                    raise ConfigError(f"no trial can have {chosen}: {error}") from error
                shared = shared or training
                alike = replace(shared.settings, learning_rates={}) == replace(training.settings, learning_rates={})
                if self.settings.at_once > 1 and not alike:
                    raise ConfigError(
                        "--at-once: trials of one pass differ in their adapters and rates only; take training.* out "
                        "of the space, or leave it at 1."
                    )

    def _plan(self, config: ExperimentConfig) -> Training:
        return plan(config, self.task, [self.corpus], self.encoder, self.start)[0]

    def _claim(self) -> None:
        """Write down what the folder belongs to, or hold it against that."""
        described = {
            "recipe": self.experiment.recipe,
            "config": to_dict(self.config),
            "sweep": {key: value for key, value in vars(self.settings).items() if key != "trials"},
            "data": {name: manifest.describe() for name, manifest in self.corpus.splits.items()},
        }
        own, path = json.loads(json.dumps(to_json(described))), self.folder / "sweep.json"
        with locked(path):
            if not path.exists():
                if self.folder.is_dir() and any(not file.name.startswith(".") for file in self.folder.iterdir()):
                    raise InputError(f"{self.folder}: holds something other than a sweep; name a new folder.")
                write_json(path, own)
                return
            then, now = flat(read_json(path)), flat(own)
            if differing := [key for key in then | now if then.get(key) != now.get(key)]:
                said = "; ".join(f"{key} was {then.get(key)!r}, now {now.get(key)!r}" for key in differing[:10])
                raise ConfigError(
                    f"{self.folder} was begun with other settings: {said}. Go on with the former ones, or name a new "
                    "folder."
                )

    def _open(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.folder / "study.db"
        pruners = {
            "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
            "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
            "none": optuna.pruners.NopPruner(),
        }
        with locked(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{path.resolve()}", engine_kwargs={"connect_args": {"timeout": 60}}
            )
            return optuna.create_study(
                study_name="sweep",
                storage=storage,
                pruner=pruners[self.settings.pruner],
                direction="minimize",
                load_if_exists=True,
            )

    # ------------------------------------------------------------------ trials

    def _next(self) -> Round | None:
        """The next round: one that a process left behind, or new trials; None where there are enough."""
        with locked(self.folder / "study.db"):
            rounds: dict[int, list[FrozenTrial]] = {}
            kept = 0
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state == TrialState.RUNNING and "round" not in trial.user_attrs:  # killed as it was drawn
                    self.study.tell(trial.number, state=TrialState.FAIL)
                elif trial.state != TrialState.FAIL:
                    kept += 1
                    rounds.setdefault(trial.user_attrs["round"], []).append(trial)
            for number, trials in rounds.items():
                if all(trial.state != TrialState.RUNNING for trial in trials):
                    continue
                if (run := self._free(number)) is None:
                    continue
                if any(map(self._runs, trials)):
                    return Round(run, [Trial(self.study, trial._trial_id) for trial in trials])
                release(run.path)  # it was ended, and let go of, while this process came to it
            wanted = min(self.settings.at_once, self.settings.trials - kept)
            drawn = [self._draw(kept + place) for place in range(wanted)]
            for new in drawn:
                new.set_user_attr("round", drawn[0].number)
            run = self._free(drawn[0].number) if drawn else None
            return None if run is None else Round(run, drawn)

    def _draw(self, place: int) -> Trial:
        seed = int(np.random.SeedSequence((self.settings.sampler_seed, place)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
        trial = self.study.ask()
        trial.set_user_attr("values", to_json(self.space.suggest(trial)))
        return trial

    def _runs(self, trial: Trial | FrozenTrial) -> bool:
        """Whether a trial is unfinished, as the study says now: another process may have ended it."""
        return self.study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING

    def _free(self, number: int) -> RunFolder | None:
        """A round's run folder, unless another process is at work in it."""
        try:
            return RunFolder.open("sweep", self.config, self.folder / "rounds" / f"{number:04d}")
        except InUseError:
            return None

    def _train(self, round_: Round) -> None:
        names = {f"trial-{trial.number:04d}": trial for trial in round_.trials}
        plans = {name: self._plan(self.config_of(trial.user_attrs["values"])) for name, trial in names.items()}
        watching = _Watching(names, self.config.training.updates)
        trainings = [replace(training, name=name) for name, training in plans.items()]
        try:
            made = train_in_one_pass(self.task, self.corpus, self.encoder, trainings, round_.run, "trials", watching)
        except TrainingError as error:
            if len(names) > 1:
                raise TrainingError(f"{error} (With --at-once 1 such a trial stops alone.)") from error
            trial = round_.trials[0]
            trial.set_user_attr("reason", str(error))
            self._tell(trial, None)
            return
        for name, trial in names.items():
            if not self._runs(trial):  # told before a kill that its round did not outlive
                continue
            model, cost = made[name]
            if trial.user_attrs.get("pruned") is None and trial.user_attrs.get("metrics") is None:
                result = self.task.score(model, self.corpus, **self.config.scoring)
                trial.set_user_attr("metrics", to_json(self.task.metrics([result])))
            trial.set_user_attr("parameters", model.count_parameters())
            trial.set_user_attr("updates", cost.updates)
            trial.set_user_attr("seconds", cost.seconds)
            self._tell(trial, trial.user_attrs.get("metrics"))

    def _tell(self, trial: Trial, metrics: Mapping[str, Any] | None) -> None:
        """Finish a trial, pruned where it was not scored; a line says what came of it."""
        values = ", ".join(
            f"{key.split('.')[-1]}={_short(value)}" for key, value in trial.user_attrs["values"].items()
        )
        if metrics is None:
            self.study.tell(trial, state=TrialState.PRUNED)
            stopped = trial.user_attrs.get("pruned")
            what = "training failed" if stopped is None else f"pruned after {stopped} updates"
        else:
            rate = metrics[self.task.metric]["value"]
            self.study.tell(trial, 1 - rate if higher_is_better(self.task.metric) else rate)
            what = f"dev {self.task.metric.upper()} {rate:.1%}"
        print(f"trial {trial.number}: {what}  ({values})", flush=True)


class _Watching:
    """Reports each member's dev losses to the study, and stops it where the pruner says so."""

    def __init__(self, trials: Mapping[str, Trial], updates: int) -> None:
        self.trials, self.updates = trials, updates

    def __call__(self, name: str, done: int, figures: Mapping[str, float]) -> bool:
        trial = self.trials[name]
        if trial.user_attrs.get("pruned") is not None:  # before a kill, after the last checkpoint
            return bool(done >= trial.user_attrs["pruned"])
        losses = dict(trial.user_attrs.get("losses", {}))
        if str(done) not in losses:
            losses[str(done)] = figures["loss"]
            trial.report(figures["loss"], len(losses))
            trial.set_user_attr("losses", to_json(losses))
        elif done < max(map(int, losses)):  # decided already, and gone on from
            return False
        if done == self.updates or not trial.should_prune():  # at its end there is nothing left to save
            return False
        trial.set_user_attr("pruned", done)
        return True


def whole_corpus(experiment: Experiment) -> Corpus:
    """The one split that a recipe finds, with dev data. Raises ConfigError for folds, or no dev data."""
    corpora = list(experiment.find())
    if len(corpora) != 1:
        raise ConfigError(f"{len(corpora)} folds: a sweep takes one split; give --train, --dev and --test.")
    if corpora[0].dev is None:
        raise ConfigError("a sweep chooses on dev data, and here is none; give --dev.")
    return corpora[0]


def on_dev(corpus: Corpus) -> Corpus:
    """The corpus with dev data in the place of the test set."""
    assert corpus.dev is not None
    return replace(corpus, test=corpus.dev)


def _plain(trial: FrozenTrial) -> dict[str, Any]:
    return {"number": trial.number, "state": trial.state.name.lower(), **trial.user_attrs}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
