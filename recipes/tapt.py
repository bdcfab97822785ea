"""Adapt an encoder to a domain from audio without text, and see what that is worth with few labels.

    python recipes/tapt.py                                             # demo corpus, packaged encoder, minutes
    python recipes/tapt.py --train calls.jsonl --output runs/calls     # again with the same --output: goes on
    python recipes/tapt.py --train calls.jsonl --downstream-train ten_minutes.jsonl --downstream-test test.jsonl

Task-adaptive pre-training (Chen and Rudnicky, ICASSP 2023) with adapters alone keeps the base as it is (DRAFT: Fan and
Alwan, Interspeech 2022); ``--adapter last-2`` trains the top layers and ``--adapter full`` all, as adapters too.
``--save-base`` also writes the adapted encoder as a Hugging Face folder (lora, last-2 and full).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.corpus_check import check_apart
from speech_adapters.data.manifest import Channel, Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.objectives.choice import ObjectiveChoice, read_noises
from speech_adapters.objectives.pretraining import MaskedPrediction, PretrainingConfig, pretrain
from speech_adapters.ranges import Rate, Seed
from speech_adapters.runs.results import MethodResults, Results
from speech_adapters.tasks.base import chosen_rates
from speech_adapters.tasks.downstream import Downstream

PRESETS = {path.stem: path for path in (Path(__file__).parent / "tapt").glob("*.yaml")}


@dataclass(kw_only=True)
class Config(ObjectiveChoice):
    """Label-free adaptation, and its effect on a task."""

    train: Path | None = option(None, "manifest of the domain's audio; no text is needed", file=True)
    held_out: Path | None = option(None, "manifest for early stopping; a tenth of --train by default", file=True)
    channel: Channel | None = option(
        None, "heard of files with several, where a line does not say it: a number, or mix"
    )
    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    adapter: str = option("e", "preset to train: e, houlsby, lora, ..., last-2 or full")
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the preset to change."""
    noise: Path | None = option(None, "manifest of noises for the wavlm objective", file=True)
    rates: dict[str, Rate] = field(default_factory=dict)
    """Learning rates by parameter group, over the published ones; groups that the adapter has not may be named.
    ``training.learning_rates`` goes over them, and must be used."""
    training: PretrainingConfig = field(default_factory=PretrainingConfig)
    second_pass: PretrainingConfig | None = option(None, "a further pass on the subdomain with the highest loss")
    subdomain: str = option("domain", "key of the manifest that divides it into subdomains")
    save_base: bool = option(False, "also write the adapted encoder")
    downstream_train: Path | None = option(None, "labelled manifest to train a task on, with and without", file=True)
    downstream_test: Path | None = option(None, "labelled manifest to score that task on", file=True)
    downstream_also: tuple[Path, ...] = option((), "further labelled manifests to score both on, such as clean speech")
    downstream: Downstream = field(default_factory=Downstream)
    downstream_use: Literal["continue", "stack"] = option(
        "continue", "the task's adapter starts from the adapted one, or lies above it, which stays frozen"
    )
    seeds: tuple[Seed, ...] = option((0, 1, 2), "of the task's training")
    output: Path | None = option(None, "run folder; one that holds the same run goes on")
    resume: str | None = option(None, "latest, or a run folder: go on with that run")

    def __post_init__(self) -> None:
        if (self.downstream_train is None) != (self.downstream_test is None):
            raise ConfigError("give --downstream-train and --downstream-test together, or neither.")
        if self.downstream_also and self.downstream_test is None:
            raise ConfigError("--downstream-also goes with --downstream-test.")
        if not self.seeds:
            raise ConfigError("seeds: give one or more, such as --seeds 0,1,2.")
        if self.save_base and self.adapter not in ("lora", "lora-ffn", "last-2", "full"):
            raise ConfigError(
                f"--save-base: a {self.adapter!r} adapter is not part of the base; use lora, last-2 or full."
            )

    @property
    def task(self) -> Downstream:
        """What is trained with labels: where it continues the adapted adapter, one of the same kind."""
        if self.downstream_use == "stack":
            return self.downstream
        return replace(self.downstream, adapter=self.adapter, adapter_options=self.adapter_options)


def read_speech(config: Config) -> tuple[Manifest, Manifest]:
    """What trains and what is held out."""
    if config.train is None:
        from speech_adapters.corpora.demo import prepare_demo

        print("No data was named: using the demo corpus (synthetic speech). See --help for real ones.\n")
        demo = prepare_demo()
        return Manifest.read(demo.train), Manifest.read(demo.dev)
    train = Manifest.read(config.train, check_files=True, channel=config.channel)
    if config.held_out is not None:
        return train, Manifest.read(config.held_out, check_files=True, channel=config.channel)
    if len(train) < 2:
        raise ConfigError(f"{config.train}: one utterance cannot be divided; give --held-out.")
    held_out = train.subset(size=max(1, len(train) // 10), seed=config.training.seed)
    ids = {utterance.id for utterance in held_out}
    return train.filter(lambda utterance: utterance.id not in ids), held_out


def check_subdomains(config: Config, train: Manifest, held_out: Manifest) -> None:
    """Each subdomain, one of which a second pass will train on, needs held-out speech."""
    key = config.subdomain
    if not train.values(key):
        raise ConfigError(f"second_pass: no utterance of {train.name} has a {key!r}; name another --subdomain.")
    if lacking := sorted(set(train.values(key)) - set(held_out.values(key))):
        raise ConfigError(f"second_pass: no held-out utterance has {key} {lacking[0]!r}; give a --held-out with some.")


def second_pass(config: Config, learner: MaskedPrediction, train: Manifest, held_out: Manifest, run):
    """What a further pass on the hardest subdomain gave; which one that is, and the losses of all."""
    parts = {value: [m.filter(lambda u, value=value: u.get(config.subdomain) == value) for m in (train, held_out)]
             for value in train.values(config.subdomain)}  # fmt: skip
    losses = {value: learner.held_out_loss(learner.read(part))["loss"] for value, (part, _) in parts.items()}
    hardest = max(losses, key=losses.get)
    learner.model.train()
    done = pretrain(learner.model, learner.objective, *parts[hardest], config.second_pass, run, "tapt-second")
    return done, {"subdomain": hardest, "losses": losses}


def with_rates(config: Config, groups: set[str]) -> Config:
    """The rates that each pass trains the adapter's groups with, in its own settings."""
    passes = {key: settings for key in ("training", "second_pass") if (settings := getattr(config, key)) is not None}
    chosen = {
        key: chosen_rates(config.rates, settings.learning_rates, {config.adapter: groups})[config.adapter]
        for key, settings in passes.items()
    }
    return replace(config, **{key: replace(passes[key], learning_rates=rates) for key, rates in chosen.items()})


def read_downstream(config: Config) -> tuple[Manifest, Manifest, dict[str, Manifest]] | None:
    """What the task trains on, what it is scored on, and the further test sets; None where there is no task."""
    if config.downstream_train is None:
        return None
    read = partial(Manifest.read, require=config.downstream.required, check_files=True, channel=config.channel)
    train, test, *others = map(read, (config.downstream_train, config.downstream_test, *config.downstream_also))
    for scored in (test, *others):
        check_apart(train, scored)
    return train, test, dict(zip(map(str, config.downstream_also), others, strict=True))


def compare_downstream(config: Config, encoder, data, run) -> dict[str, MethodResults]:
    """The task with and without the adapted start: same labels, seeds and updates."""
    task, (train, test, others) = config.task, data
    labels = sorted({*train.values(task.label_field), *test.values(task.label_field)}) if task.task != "asr" else ()
    head, figures, also = task.head(train, labels), {}, {}
    for method, start in (("tapt", run.adapter("tapt")), ("without", None)):
        results: dict[str, list[Any]] = {name: [] for name in ("", *others)}
        for seed in config.seeds:
            name = f"{method}-seed{seed}"
            model = task.train(encoder, head, train, run, name, seed, start, config.downstream_use)
            for place, manifest in {"": test, **others}.items():
                results[place].append(task.score(model, manifest))
        by_seed = [task.metrics([result])[task.metric]["value"] for result in results[""]]
        also[method] = {place: task.metrics(results[place]) for place in others}
        figures[method] = MethodResults(
            metrics=task.metrics(results[""]),
            parameters=model.count_parameters(),
            more={f"{task.metric}_by_seed": by_seed, "also": also[method]},
        )
        scored = {str(config.downstream_test): figures[method].metrics, **also[method]}
        shown = ", ".join(f"{name} {metrics[task.metric]['value']:.1%}" for name, metrics in scored.items())
        print(f"{method}: {task.metric.upper()} on {shown}")
    return figures


def main(argv: list[str] | None = None) -> None:
    config = parse_cli(Config, argv, presets=PRESETS, description=__doc__, recipe="tapt")
    import torch

    from speech_adapters import SpeechAdapterModel
    from speech_adapters.adapters import preset
    from speech_adapters.encoders import load_encoder
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.folder import RunFolder

    train, held_out = read_speech(config)
    if config.second_pass is not None:
        check_subdomains(config, train, held_out)
    downstream = read_downstream(config)
    noises = () if config.noise is None else read_noises(Manifest.read(config.noise, check_files=True))
    encoder = load_encoder(config.encoder, device="cuda" if torch.cuda.is_available() else "cpu")
    data = {"train": train.describe(), "held_out": held_out.describe()}
    if downstream is not None:
        labelled, test, others = downstream
        for scored in (test, *others.values()):
            config.downstream.check(labelled, scored, encoder)
        config.task.check_adapter(encoder)
        data |= {f"downstream {s}": m.describe() for s, m in zip(("train", "test"), (labelled, test), strict=True)}
    torch.manual_seed(config.training.seed)
    model = SpeechAdapterModel(encoder)
    model.add_adapter("tapt", preset(config.adapter, "asr", **config.adapter_options))
    model.train_adapter("tapt")
    asked, config = config, with_rates(config, set(model.parameter_groups()))
    run = RunFolder.open("tapt", asked, config.output, resume=config.resume, data=data, base=encoder.identity)
    objective = config.build(model, train, config.training, run, noises)
    print(f"{encoder!r}\ntrain {train.summary()}\nheld  {held_out.summary()}")
    print(f"{objective.name} objective, prediction head: {objective.head_source}\nrun   {run.path}\n")

    passes = {"first": pretrain(model, objective, train, held_out, config.training, run)}
    found: dict[str, Any] = {"objective": objective.name, "prediction_head": objective.head_source}
    card = {"objective": objective.name, "held_out_loss": passes["first"].best_dev_loss, "data": train.name}
    model.save_adapter("tapt", run.adapter("tapt"), **card)
    if config.second_pass is not None:
        learner = MaskedPrediction(model, objective, train, held_out, config.training, run)
        passes["second"], found["second_pass"] = second_pass(config, learner, train, held_out, run)
        model.save_adapter("tapt", run.adapter("tapt"), **card, second_pass=found["second_pass"]["subdomain"])
    if config.save_base and not (run.path / "encoder").exists():
        model.save_folded("tapt", run.path / "encoder")

    compared = {} if downstream is None else compare_downstream(config, load_encoder(config.encoder), downstream, run)
    results = Results(
        task="tapt",
        encoder=config.encoder,
        adapter="tapt",
        data=data,
        own=MethodResults(
            metrics={"held_out_loss": passes["first"].best_dev_loss} | (compared["tapt"].metrics if compared else {}),
            parameters=model.count_parameters(),
            seconds=sum(one.seconds for one in passes.values()),
            more=compared["tapt"].more if compared else {},
        ),
        baselines={"without": compared["without"]} if compared else {},
        seeds=list(config.seeds),
        more=found | {"passes": {name: asdict(one) for name, one in passes.items()}},
    )
    table, report = report_results(run, results)
    print(f"\n{table}\n\nreport  {report}\nadapter {run.adapter('tapt')}")


if __name__ == "__main__":
    run_main(main)
