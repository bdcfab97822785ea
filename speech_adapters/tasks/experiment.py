"""One experiment: an adapter and its baselines trained alike, scored, and written down.

Every training recipe is a :class:`Task` (which corpus and head, how to score, how to sum up) and one call of
:func:`run_experiment`, which trains each method on each corpus (a fold is one) with each seed and writes
``results.json`` and the report. All methods see the same data, updates and seeds.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch

from speech_adapters.config import option
from speech_adapters.data.manifest import Manifest, check_disjoint
from speech_adapters.errors import ConfigError
from speech_adapters.training.settings import TrainingConfig

if TYPE_CHECKING:  # the rest is imported where it is used, so that a recipe's --help answers at once
    from speech_adapters.encoders import Encoder
    from speech_adapters.heads import HeadConfig
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.training.loop import TrainingResult

R = TypeVar("R")

KEPT_HOURS = 50.0
"""Training sets below this stay decoded in memory (6 GB at most); larger ones are read anew each epoch."""


@dataclass(kw_only=True)
class ExperimentConfig:
    """What every training recipe is asked: an adapter and its baselines on one encoder."""

    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    quantize: Literal["int8", "int4", "nf4"] | None = option(None, "hold the frozen base in so many bits; null: as is")
    adapter: str = option("elp", "preset of the adapter: elp, el, lora, houlsby, ..., or several as one: lora+l")
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the adapter's preset to change, such as ``e_size`` or ``rank``."""
    baselines: tuple[str, ...] = option(("head-only",), "presets trained beside it; add full for full fine-tuning")
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same by preset, for any of them: ``{lora: {rank: 16}}`` (also as part of ``lora+l``); presets that this run
    leaves out may be named."""
    seeds: tuple[int, ...] = option((0,), "one training run a method and seed; figures are means over seeds")
    output: Path | None = option(None, "run folder; runs/<recipe>/<time> by default")
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={list(self.seeds)}: give one or more different numbers, such as --seeds 0,1,2.")


@dataclass(frozen=True)
class Corpus:
    """What a method trains on, watches and is scored on; ``dev`` is None for tasks without a dev loss."""

    train: Manifest
    dev: Manifest | None
    test: Manifest
    name: str

    @classmethod
    def read(cls, train: Path, dev: Path | None, test: Path, name: str, require: Sequence[str], **options) -> Corpus:
        """Read manifests; ``require`` and ``options`` are those of :meth:`Manifest.read`."""
        sets = (None if path is None else Manifest.read(path, require, **options) for path in (train, dev, test))
        return cls(*sets, name=name)

    @classmethod
    def given(cls, train: Path | None, dev: Path | None, test: Path | None, require: Sequence[str]) -> Corpus | None:
        """The manifests that --train, --dev and --test name, every audio file checked; None when none is given."""
        if not (train or dev or test):
            return None
        if not (train and dev and test):
            raise ConfigError("give --train, --dev and --test together, or none of them.")
        return cls.read(train, dev, test, name=train.stem, require=require, check_files=True)

    @property
    def splits(self) -> dict[str, Manifest]:
        named = {"train": self.train, "dev": self.dev, "test": self.test}
        return {name: manifest for name, manifest in named.items() if manifest is not None}

    def check_speakers(self) -> Corpus:
        """Itself when no speaker of the training set is in another split.

        Raises:
            ManifestError: names the shared speakers.
        """
        for name, manifest in self.splits.items():
            if name != "train":
                check_disjoint(self.train, manifest)
        return self


class Task(ABC, Generic[R]):
    """What a recipe knows that others do not; ``R`` is the result of scoring one trained model."""

    name: ClassVar[str]
    """The task, as presets and ``results.json`` call it: "asr", "emotion", "speaker", "intent"."""
    metric: ClassVar[str]
    """The main figure, printed after each method; a key of the metrics."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config

    @abstractmethod
    def corpora(self) -> Sequence[Corpus]:
        """One corpus, or the folds of a cross-validation, whose results are pooled. Called by one process first."""

    @abstractmethod
    def head(self, corpus: Corpus) -> HeadConfig:
        """The head that every method trains on this corpus."""

    @abstractmethod
    def score(self, model: SpeechAdapterModel, corpus: Corpus, run: RunFolder, name: str) -> R:
        """Score a trained model on the test set; ``name`` is that of this training run in the run folder."""

    @abstractmethod
    def combine(self, results: Sequence[R]) -> dict[str, Any]:
        """``metrics`` (``{name: {value, low, high}}``), and other entries, of one method over seeds and folds."""

    def check(self, corpus: Corpus, encoder: Encoder) -> None:
        """Find what would fail hours later; raises an InputError that names the utterances."""
        from speech_adapters.data.batches import check_before_training

        head = self.head(corpus)
        for manifest in corpus.splits.values():
            check_before_training(manifest, encoder, head)

    def untrained(self, encoder: Encoder, corpora: Sequence[Corpus], run: RunFolder) -> dict[str, dict[str, Any]]:
        """Baselines that need no training: name -> ``metrics`` and costs, as ``results.json`` holds them."""
        return {}

    def keep(self, result: R, corpus: Corpus, run: RunFolder) -> None:
        """Write what the report shows of the adapter's first result, such as its worst utterances."""
        return

    def train(
        self, model: SpeechAdapterModel, corpus: Corpus, settings: TrainingConfig, run: RunFolder, name: str
    ) -> TrainingResult:
        """Train what is trainable; tasks with further stages add them."""
        from speech_adapters.data.batches import SpeechDataset
        from speech_adapters.training.supervised import train

        target = model.head.config.target
        data = SpeechDataset(
            corpus.train,
            target,
            settings.augmentation,
            settings.seed,
            settings.crop_seconds,
            keep_in_memory=corpus.train.hours < KEPT_HOURS,
        )
        dev = None if corpus.dev is None else SpeechDataset(corpus.dev, target)
        return train(model, data, settings, run, dev, name)


@dataclass(frozen=True)
class _Trained(Generic[R]):
    """One method trained on one corpus with one seed."""

    fold: int
    seed: int
    result: R
    parameters: dict[str, float]
    training: TrainingResult
    layer_weights: list[float] | None


def run_experiment(recipe: str, task: Task) -> dict[str, Any]:
    """Train and score the adapter and the baselines of ``task.config``; ``recipe`` names the run folder.

    Returns what ``results.json`` holds; under torchrun {} beside the main process.

    Raises:
        InputError: found in the encoder, the data or a preset, before any training.
    """
    from accelerate import PartialState

    from speech_adapters.adapters import preset
    from speech_adapters.encoders import load_encoder
    from speech_adapters.files import write_json
    from speech_adapters.reports.report import method_rows, summary_table, write_report
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder

    config = task.config
    processes = PartialState(cpu=not torch.cuda.is_available())
    encoder = load_encoder(config.encoder, quantize=config.quantize)
    with processes.main_process_first():
        corpora = task.corpora()
    for corpus in corpora:
        task.check(corpus, encoder)
    methods = {name: _settings(config.options, name) for name in (config.adapter, *config.baselines)}
    methods[config.adapter] = methods[config.adapter] | config.adapter_options
    adapters = {name: preset(name, task.name, **options) for name, options in methods.items()}
    for name in config.options.keys() - methods.keys():
        preset(name, task.name, **config.options[name])  # a name that is no preset is a mistake
    run = RunFolder.create(recipe, path=config.output)
    run.save_config(config)
    facts = [f"{s:5s} {manifest.summary()}" for s, manifest in corpora[0].splits.items() if s != "dev"]
    processes.print("\n".join([f"{encoder!r}", *facts, f"run   {run.path}\n"]))

    started = time.perf_counter()
    figures = task.untrained(encoder, corpora, run) if processes.is_main_process else {}
    for method, entry in figures.items():
        print(_line(method, task, entry))
    for method, adapter in adapters.items():
        trained = [
            _train_and_score(task, corpora, fold, encoder, method, adapter, seed, run)
            for fold in range(len(corpora))
            for seed in config.seeds
        ]
        if not processes.is_main_process:
            continue
        figures[method] = _combine(task, trained)
        print(_line(method, task, figures[method]))
        if method == config.adapter:
            task.keep(trained[0].result, corpora[0], run)
            if trained[0].layer_weights:
                write_json(run.layer_weights_file, {method: trained[0].layer_weights})

    if not processes.is_main_process:
        return {}
    results = {
        "task": task.name,
        "encoder": config.encoder,
        "adapter": config.adapter,
        "data": _describe(corpora),
        **figures.pop(config.adapter),
        "baselines": figures,
        "updates": config.training.updates,
        "seeds": list(config.seeds),
        "total_seconds": time.perf_counter() - started,
        **environment(),
    }
    run.write_results(results)
    report = write_report(run.path)
    print(f"\n{summary_table(method_rows(results))}\n\nreport  {report}\nadapter {run.path / 'adapters'}")
    return results


def _settings(options: dict[str, dict[str, Any]], method: str) -> dict[str, Any]:
    """A preset's settings; those of presets joined by "+" go to their parts."""
    if "+" not in method:
        return options.get(method, {})
    parts = {part: options[part] for part in method.split("+") if part in options}
    return parts | options.get(method, {})


def _line(method: str, task: Task, entry: dict[str, Any]) -> str:
    main = entry["metrics"][task.metric]
    shown = f"{main['value']:.1%} [{main['low']:.1%}, {main['high']:.1%}]"
    return f"{method}: {task.metric.upper()} {shown}, {entry['seconds']:.0f} s"


def _train_and_score(task, corpora, fold, encoder, method, adapter, seed, run) -> _Trained | None:
    """Train one method on one corpus with one seed, score it, keep it; None beside the main process."""
    from accelerate import PartialState

    from speech_adapters.model import SpeechAdapterModel

    config, corpus = task.config, corpora[fold]
    name = method.replace("+", "-")  # "lora+l": a name of folders and adapters too
    name += (f"-fold{fold + 1}" if len(corpora) > 1 else "") + (f"-seed{seed}" if len(config.seeds) > 1 else "")
    torch.manual_seed(seed)
    model = SpeechAdapterModel(copy.deepcopy(encoder))
    model.add_adapter(name, adapter)
    model.add_head(task.name, task.head(corpus))
    model.train_adapter(name, head=task.name)
    groups = model.parameter_groups()  # a baseline need not have every group that the settings give a rate
    rates = {group: rate for group, rate in config.training.learning_rates.items() if group in groups}
    training = task.train(model, corpus, replace(config.training, seed=seed, learning_rates=rates), run, name)
    if not PartialState().is_main_process:  # under torchrun all train, one scores
        return None
    result = task.score(model, corpus, run, name)
    card = {task.metric: task.combine([result])["metrics"][task.metric], "data": corpus.test.name}
    model.save_adapter(name, run.adapter(name), **card)
    model.save_head(task.name, run.head(name))
    weights = (p for n, p in model.adapters[name].named_parameters() if "layer_weights" in n)
    layer_weights = next((p.softmax(0).tolist() for p in weights), None)
    return _Trained(fold, seed, result, model.count_parameters(), training, layer_weights)


def _combine(task: Task, trained: Sequence[_Trained]) -> dict[str, Any]:
    """Figures of one method: the task's over all runs, the main one by seed and by fold, and mean costs."""

    def by(key: str) -> list[float]:
        groups: dict[int, list[Any]] = {}
        for run in trained:
            groups.setdefault(getattr(run, key), []).append(run.result)
        return [task.combine(results)["metrics"][task.metric]["value"] for results in groups.values()]

    costs = [run.training for run in trained]
    several = len({run.fold for run in trained}) > 1
    return {
        **task.combine([run.result for run in trained]),
        f"{task.metric}_by_seed": by("seed"),
        **({f"{task.metric}_by_fold": by("fold")} if several else {}),
        "parameters": trained[0].parameters,
        "seconds": sum(cost.seconds for cost in costs) / len(costs),
        "audio_seconds_per_second": sum(cost.audio_seconds_per_second for cost in costs) / len(costs),
        "peak_memory_bytes": max(cost.peak_memory_bytes for cost in costs),
    }


def _describe(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """``data`` of ``results.json``: each split, or each split of each fold."""
    if len(corpora) == 1:
        splits = corpora[0].splits
    else:
        splits = {f"fold {i} {s}": m for i, corpus in enumerate(corpora, 1) for s, m in corpus.splits.items()}
    return {"corpus": corpora[0].name} | {name: manifest.describe() for name, manifest in splits.items()}
