"""One experiment: an adapter and its baselines trained alike, scored, and written down.

All methods see the same data, updates and seeds, on each corpus (a fold is one). Whatever can be checked is checked
before the first update; what is trained is saved before it is scored.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from speech_adapters.adapters import preset
from speech_adapters.adapters.base import AdapterConfig
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.loading import load_encoder
from speech_adapters.files import write_json
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.reports.card import write_cards
from speech_adapters.reports.report import report_results
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.processes import processes
from speech_adapters.runs.results import MethodResults, Results
from speech_adapters.tasks.base import Corpus, ExperimentConfig, Task
from speech_adapters.tasks.start import Start
from speech_adapters.training.loop import Watcher
from speech_adapters.training.result import TrainingResult, mean_costs
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import batches_of, check_hearing
from speech_adapters.training.together import Member, train_together

R = TypeVar("R")


class Experiment(NamedTuple):
    """What a recipe trains and scores: the arguments of :func:`run_experiment`."""

    recipe: str
    config: ExperimentConfig
    task: Task[Any]
    find: Callable[[], Iterable[Corpus]]


@dataclass(frozen=True)
class Training:
    """One method to train on one corpus with one seed; ``name`` is that of its files in the run folder."""

    name: str
    method: str
    adapter: AdapterConfig
    settings: TrainingConfig
    fold: int
    seed: int
    start: Start = field(default_factory=Start)
    groups: frozenset[str] = frozenset()
    """Its parameter groups."""


@dataclass(frozen=True)
class _Scored(Generic[R]):
    """What came of a training."""

    training: Training
    result: R
    parameters: dict[str, float]
    cost: TrainingResult
    layer_weights: list[float] | None


def run_experiment(
    recipe: str, config: ExperimentConfig, task: Task[Any], find: Callable[[], Iterable[Corpus]]
) -> Results | None:
    """Train and score the adapter and the baselines of ``config``.

    Args:
        recipe: names the run folder.
        find: gives one corpus, or the folds of a cross-validation, whose results are pooled. Several processes call it
            one after the other, the main one first.

    Returns:
        What ``results.json`` holds; under torchrun None beside the main process.

    Raises:
        InputError: found in the encoder, the data, a preset or a setting, before any training.
    """
    encoder = load_encoder(config.encoder, quantize=config.quantize)
    with processes().main_process_first():
        corpora = list(find())
    start = Start.read(config, encoder, task.own_head)
    task.start_head = start.head_config
    for corpus in corpora:
        check(config, task, corpus, encoder)
    trainings = plan(config, task, corpora, encoder, start)
    data = _describe(corpora)
    run = RunFolder.open(recipe, config, config.output, resume=config.resume, data=data, base=encoder.identity)
    splits = corpora[0].splits
    facts = [f"{split:5s} {splits[split].summary()}" for split in ("train", corpora[0].scored)]
    facts += [*start.notes(config), *task.notes(corpora[0])]
    if rates := next(one.settings.learning_rates for one in trainings if one.method == config.adapter):
        shown = ", ".join(f"{group} {rate:g}" for group, rate in rates.items())
        facts.append(f"rates {shown}, in place of the published ones")
    processes().print("\n".join([f"{encoder!r}", *facts, f"run   {run.path}\n"]))

    started = time.perf_counter()
    figures = _train_and_score(config, task, corpora, encoder, trainings, run)
    if not processes().is_main_process:
        return None
    results = Results(
        task=task.name,
        encoder=config.encoder,
        adapter=config.adapter,
        data=data,
        own=figures.pop(config.adapter),
        baselines=figures,
        seeds=list(config.seeds),
        more={
            "updates": config.training.updates,
            **run.took("total_seconds", started),
            **({"notes": notes} if (notes := task.notes(corpora[0])) else {}),
        },
    )
    table, report = report_results(run, results)
    write_cards(run.path)
    print(f"\n{table}\n\nreport  {report}\nadapter {run.path / 'adapters'}")
    return results


def _train_and_score(
    config: ExperimentConfig,
    task: Task[Any],
    corpora: Sequence[Corpus],
    encoder: Encoder,
    trainings: Sequence[Training],
    run: RunFolder,
) -> dict[str, MethodResults]:
    """The figures of each method. Under torchrun all processes train, and the main one scores."""
    options = config.scoring
    figures: dict[str, MethodResults] = {}
    if processes().is_main_process:
        figures = task.untrained(encoder, corpora[0], run, **options)
    for method, entry in figures.items():
        print(_line(method, task, entry))
    expected = Counter(training.method for training in trainings)
    scored_of: dict[str, list[_Scored[Any]]] = {method: [] for method in expected}
    for name, members in _passes(trainings, config.together).items():
        corpus = corpora[members[0].fold]
        if config.together:
            trained = train_in_one_pass(task, corpus, encoder, members, run, name)
        else:
            trained = {name: _train(task, corpus, encoder, members[0], run)}
        if not processes().is_main_process:
            continue
        for training in members:
            method, scored = training.method, scored_of[training.method]
            scored.append(_score(task, corpus, *trained.pop(training.name), training, run, options))
            if len(scored) < expected[method]:
                continue
            figures[method] = _combine(task, scored)
            print(_line(method, task, figures[method]))
            if method == config.adapter:
                task.show(method, scored[0].result, corpora[0], run)
                if scored[0].layer_weights:
                    write_json(run.layer_weights_file, {method: scored[0].layer_weights})
    return figures


def check(config: ExperimentConfig, task: Task[Any], corpus: Corpus, encoder: Encoder) -> None:
    """Find what of the data training and scoring would fail of; raises an InputError that names the utterances."""
    if config.windows is not None:
        config.windows.check(encoder.max_samples, encoder.name)
    task.check(corpus, encoder, crops=config.training.crop_seconds is not None, windows=config.windows)
    for stage, settings in task.stages(config.training).items():
        check_hearing(corpus.train, encoder, settings, stage)
        data, _ = task.data(corpus, task.chosen_head(corpus), settings)
        batches_of(data, settings, 0, processes().num_processes)


def plan(
    config: ExperimentConfig, task: Task[Any], corpora: Sequence[Corpus], encoder: Encoder, start: Start
) -> list[Training]:
    """All that is to be trained, each method tried on the encoder: settings that do not fit are found here."""
    for method, options in config.options.items():
        preset(method, task.name, **options)  # a name that is no preset is a mistake, also where it is not used
    adapters = {method: preset(method, task.name, **options) for method, options in config.trained_methods.items()}
    adapters[config.adapter] = start.adapter_config(config, adapters[config.adapter])
    starts = {method: start if method == config.adapter else start.baseline() for method in adapters}
    groups = {}
    for method, adapter in adapters.items():
        model = _model(task, corpora[0], encoder, "adapter", adapter, starts[method], 0)
        groups[method] = set(model.parameter_groups())
        for settings in task.stages(config.training).values():
            model.registry.adapter("adapter").check_updates(settings.updates)
    rates = config.rates_for(groups)
    trainings = []
    for method, adapter in adapters.items():
        for fold in range(len(corpora)):
            for seed in config.seeds:
                name = method.replace("+", "-")  # "lora+l": a name of folders and adapters too
                name += f"-fold{fold + 1}" if len(corpora) > 1 else ""
                name += f"-seed{seed}" if len(config.seeds) > 1 else ""
                settings = replace(config.training, seed=seed, learning_rates=rates[method])
                trainings.append(
                    Training(name, method, adapter, settings, fold, seed, starts[method], frozenset(groups[method]))
                )
    return trainings


def _model(
    task: Task[Any], corpus: Corpus, encoder: Encoder, name: str, adapter: AdapterConfig, start: Start, seed: int
) -> SpeechAdapterModel:
    """An adapter and a head on a base of their own, fresh or where they start from, ready to train."""
    return _model_on(copy.deepcopy(encoder), task, corpus, name, adapter, start, seed)


def _model_on(
    encoder: Encoder, task: Task[Any], corpus: Corpus, name: str, adapter: AdapterConfig, start: Start, seed: int
) -> SpeechAdapterModel:
    torch.manual_seed(seed)
    model = SpeechAdapterModel(encoder)
    model.add_adapter(name, adapter)
    start.load_adapter(model, name)
    start.add_head(model, task.name, task.chosen_head(corpus))
    model.train_adapter(name, head=task.name)
    return model


def _train(
    task: Task[Any], corpus: Corpus, encoder: Encoder, training: Training, run: RunFolder
) -> tuple[SpeechAdapterModel, TrainingResult]:
    """Train and save; a finished training is read back."""
    name = training.name
    model = _model(task, corpus, encoder, name, training.adapter, training.start, training.seed)
    cost = task.train(model, corpus, training.settings, run, name)
    _save(task, model, name, run)
    return model, cost


def _passes(trainings: Sequence[Training], together: bool) -> dict[str, list[Training]]:
    """What is trained at once, by the pass's name: each training alone, or together those that hear the same batches,
    which are those of one fold and seed."""
    passes: dict[str, list[Training]] = {}
    for training in trainings:
        name = f"together-fold{training.fold + 1}-seed{training.seed}" if together else training.name
        passes.setdefault(name, []).append(training)
    return passes


def train_in_one_pass(
    task: Task[Any],
    corpus: Corpus,
    encoder: Encoder,
    trainings: Sequence[Training],
    run: RunFolder,
    name: str,
    watcher: Watcher | None = None,
) -> dict[str, tuple[SpeechAdapterModel, TrainingResult]]:
    """Train on one encoder, and save; by the trainings' names. ``watcher`` may stop any of them."""
    shared, head, settings = copy.deepcopy(encoder), task.chosen_head(corpus), trainings[0].settings
    data, dev = task.data(corpus, head, settings)
    members = [
        Member(
            name=training.name,
            model=_model_on(shared, task, corpus, training.name, training.adapter, training.start, training.seed),
            dataset=data,
            dev=dev,
            config=training.settings,
        )
        for training in trainings
    ]
    costs, made = train_together(members, run, name, watcher), {}
    for member in members:
        further = task.further(member.model, corpus, member.config, run, member.name)
        cost = costs[member.name] if further is None else costs[member.name] + further
        _save(task, member.model, member.name, run)
        made[member.name] = member.model, cost
    return made


def _save(task: Task[Any], model: SpeechAdapterModel, name: str, run: RunFolder) -> None:
    if processes().is_main_process:
        model.save_adapter(name, run.adapter(name))
        model.save_head(task.name, run.head(name))


def _score(
    task: Task[R],
    corpus: Corpus,
    model: SpeechAdapterModel,
    cost: TrainingResult,
    training: Training,
    run: RunFolder,
    options: dict[str, Any],
) -> _Scored[R]:
    """Score a trained model, and add the main figure to what is saved of its adapter."""
    name = training.name
    result = task.score(model, corpus, **options)
    task.write(result, corpus, run, name)
    card = {task.metric: task.metrics([result])[task.metric], "data": corpus.test.file_names}
    model.save_adapter(name, run.adapter(name), **card)
    weights = (p for n, p in model.adapters[name].named_parameters() if "layer_weights" in n)
    layer_weights = next((p.softmax(0).tolist() for p in weights), None)
    return _Scored(training, result, model.count_parameters(), cost, layer_weights)


def _combine(task: Task[R], scored: Sequence[_Scored[R]]) -> MethodResults:
    """Figures of one method: the task's over all runs, the main one by seed and by fold, and mean costs."""

    def by(key: str) -> list[float]:
        groups: dict[int, list[R]] = {}
        for one in scored:
            groups.setdefault(getattr(one.training, key), []).append(one.result)
        return [task.metrics(results)[task.metric]["value"] for results in groups.values()]

    costs = [one.cost for one in scored]
    several = len({one.training.fold for one in scored}) > 1
    return MethodResults(
        metrics=task.metrics([one.result for one in scored]),
        parameters=scored[0].parameters,
        **mean_costs([cost.costs for cost in costs]),
        more={
            f"{task.metric}_by_seed": by("seed"),
            **({f"{task.metric}_by_fold": by("fold")} if several else {}),
            **({"together": costs[0].together} if costs[0].together > 1 else {}),
        },
    )


def _line(method: str, task: Task[Any], entry: MethodResults) -> str:
    main = entry.metrics[task.metric]
    shown = f"{main['value']:.1%} [{main['low']:.1%}, {main['high']:.1%}]"
    return f"{method}: {task.metric.upper()} {shown}, {entry.seconds:.0f} s{task.doubt(entry.metrics)}"


def _describe(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """``data`` of ``results.json``: each split, or each split of each fold."""
    if len(corpora) == 1:
        splits = corpora[0].splits
    else:
        splits = {f"fold {i} {s}": m for i, corpus in enumerate(corpora, 1) for s, m in corpus.splits.items()}
    return {"corpus": corpora[0].name} | {name: manifest.describe() for name, manifest in splits.items()}
