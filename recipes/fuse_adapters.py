"""Train AdapterFusion, or a router, over saved adapters, and score it beside each of them alone.

    python recipes/fuse_adapters.py --adapters adapters/studio,adapters/telephone --head heads/studio \\
        --train train.jsonl --dev dev.jsonl --test test.jsonl
    python recipes/fuse_adapters.py --method router ...

The adapters stay as they are, and so does the head unless --train-head: one head must fit them all. With --guide the
fusion is told whose domain an utterance is of: its `domain` is then an adapter's name. The run folder gets the fusion
(fusions/), copies of the adapters that it stands on, and the head.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Channel
from speech_adapters.data.windows import Windows
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import NotNegative, Positive, Size, check_values
from speech_adapters.tasks.base import Corpus
from speech_adapters.training.settings import TrainingConfig


@dataclass(kw_only=True)
class Config:
    """What is combined, how, and on what."""

    adapters: tuple[Path, ...] = option((), "folders of two saved adapters or more; required")
    names: tuple[str, ...] = option((), "what they are called; the names of their folders by default")
    head: Path | None = option(None, "folder of the saved head that reads them all; required")
    encoder: str | None = option(None, "packaged name, local folder or hub id; the adapters' own base by default")
    method: Literal["fusion", "router"] = option("fusion", "AdapterFusion, or a gate that chooses among them")
    rank: Size | None = option(16, "rank of the fusion's matrices; null for full ones, as published")
    guide: NotNegative = option(0.0, "weight of the guide loss; 1.0 as published")
    train_head: bool = option(False, "also train the head")
    train: Path | None = option(None, "manifest to train on, of all domains; then --dev too", file=True)
    dev: Path | None = option(None, "manifest that chooses the state to keep (training.evaluate_every)", file=True)
    test: Path | None = option(None, "manifest to score; --dev without one", file=True)
    channel: Channel | None = option(
        None, "heard of files with several, where a line does not say it: a number, or mix"
    )
    label_field: str = option("label", "key of the manifest that holds the class, under a classification head")
    windows: Windows | None = option(
        None, "score recordings in pieces, as transcribe hears them: windows.seconds=20; none: each in one forward"
    )
    learning_rate: Positive | None = option(None, "of the fusion or router, over the published one")
    output: Path | None = option(None, "run folder; one that holds the same run goes on")
    resume: str | None = option(None, "latest, or a run folder: go on with that run")
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(updates=400, batch_seconds=16.0))

    def __post_init__(self) -> None:
        check_values(self)
        if not self.names:
            self.names = tuple(path.resolve().name.replace(".", "-").replace("+", "-") for path in self.adapters)
        if len(set(self.names)) != len(self.adapters):
            raise ConfigError(
                f"names={list(self.names)}: give each of the {len(self.adapters)} adapters its own (--names)."
            )


def load_model(config: Config) -> Any:
    from speech_adapters import SpeechAdapterModel
    from speech_adapters.saving.adapters import read_base

    if len(config.adapters) < 2 or config.head is None or config.train is None:
        raise ConfigError("give --adapters (two folders or more), --head, --train and --dev.")
    base, _ = read_base(config.adapters[0])
    named = {"name_or_path": base.name, "revision": base.revision_here}
    model = SpeechAdapterModel.from_pretrained(**({"name_or_path": config.encoder} if config.encoder else named))
    for name, folder in zip(config.names, config.adapters, strict=True):
        model.set_active()
        model.load_adapter(folder, name)
    model.set_active(config.names[0])
    model.load_head(config.head, "head")
    return model


def find_task(config: Config, head: Any) -> tuple[Any, tuple[str, ...]]:
    """What the head does, and the keys of the manifest that it needs."""
    from speech_adapters import ClassificationHead, CTCHead, SlotsHead
    from speech_adapters.tasks.asr import SpeechRecognition, main_metric
    from speech_adapters.tasks.classification import Classification
    from speech_adapters.tasks.slots import SlotFilling

    if isinstance(head, CTCHead):
        task = SpeechRecognition()  # texts are written and scored as the head says
        task.metric = main_metric(head.vocabulary)
        return task, ("text",)
    if isinstance(head, ClassificationHead):
        return Classification(head.label_field, label_field=head.label_field), (head.label_field,)
    if isinstance(head, SlotsHead):
        return SlotFilling(tuple(head.slots)), tuple(head.slots)
    raise ConfigError(f"--head {config.head}: a head of type {head.head_type!r}; give one of text, classes or slots.")


def main(config: Config) -> None:
    import torch

    from speech_adapters import Fuse, FusionConfig, Route, RouterConfig
    from speech_adapters.data.batches import GuidedDataset, SpeechDataset
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.training.supervised import train

    started = time.perf_counter()
    model = load_model(config)
    head = model.head.config
    task, keys = find_task(config, head)
    corpus = Corpus.given(config.train, config.dev, config.test, keys, config.channel).check_speakers()
    if config.windows is not None:
        config.windows.check(model.encoder.max_samples, model.encoder.name)
    for split, manifest in corpus.splits.items():
        head.check(manifest, model.encoder, any_length=split == "test" and config.windows is not None)
    if config.guide and (unknown := sorted(set(corpus.train.values("domain")) - set(config.names))):
        raise ConfigError(
            f"--guide: no adapter is called {unknown[0]}, as a domain in {config.train} is; see --names."
        )
    torch.manual_seed(config.training.seed)
    if config.method == "fusion":
        composition: Any = Fuse(*config.names, name="fusion")
        model.add_fusion(composition, FusionConfig(rank=config.rank, guide_weight=config.guide))
    else:
        composition = Route(*config.names, name="router")
        model.add_fusion(composition, RouterConfig(guide_weight=config.guide))
    model.train_fusion(composition, head="head", train_head=config.train_head)
    settings = config.training
    if config.learning_rate is not None:
        group = model.registry.fusion(config.method).group
        settings = replace(settings, learning_rates={group: config.learning_rate, **settings.learning_rates})

    data = {name: manifest.describe() for name, manifest in corpus.splits.items()}
    known = {"data": data, "base": model.encoder.identity}
    run = RunFolder.open("fuse_adapters", config, config.output, resume=config.resume, **known)
    print(f"{model.encoder!r}\ntrain {corpus.train.summary()}\ntest  {corpus.test.summary()}\nrun   {run.path}\n")
    dataset = (
        GuidedDataset(corpus.train, config.names, target=head.target, **settings.dataset_options)
        if config.guide
        else SpeechDataset(corpus.train, head.target, **settings.dataset_options)
    )
    trained = train(model, dataset, settings, run, SpeechDataset(corpus.dev, head.target), config.method)
    for name in config.names:
        model.save_adapter(name, run.adapter(name))
    model.save_fusion(config.method, run.path / "fusions" / config.method)
    model.save_head("head", run.head(config.method))

    figures = {}
    scoring = {"batch_seconds": 2 * settings.batch_seconds, "precision": settings.precision, "windows": config.windows}
    for name, active in {config.method: composition, **{name: name for name in config.names}}.items():
        model.set_active(active)
        result = task.score(model, corpus, **scoring)
        task.write(result, corpus, run, name)
        figures[name] = MethodResults(metrics=task.metrics([result]), parameters=model.count_parameters())
        value = figures[name].metrics[task.metric]["value"]
        print(f"{name}: {task.metric.upper()} {value:.1%}", flush=True)
    own = figures.pop(config.method)
    own.seconds, own.audio_seconds_per_second = trained.seconds, trained.audio_seconds_per_second
    own.peak_memory_bytes = trained.peak_memory_bytes
    results = Results(
        task=task.name,
        encoder=model.encoder.name,
        adapter=config.method,
        data=data,
        own=own,
        baselines=figures,
        more={"updates": settings.updates, **run.took("total_seconds", started)},
    )
    table, report = report_results(run, results)
    print(f"\n{table}\n\nreport  {report}\nfusion  {run.path / 'fusions' / config.method}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__, recipe="fuse_adapters")))
