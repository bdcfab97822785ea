"""Adapt an encoder to a domain from audio without text, and see what that is worth with few labels.

    python recipes/tapt.py                                             # demo corpus, packaged encoder, minutes
    python recipes/tapt.py --train calls.jsonl --output runs/calls     # again with the same --output: goes on
    python recipes/tapt.py --train calls.jsonl --downstream-train ten_minutes.jsonl --downstream-test test.jsonl

Task-adaptive pre-training (Chen and Rudnicky, ICASSP 2023) with adapters alone keeps the base as it is (DRAFT: Fan and
Alwan, Interspeech 2022); ``--adapter last-2`` trains the top layers and ``--adapter full`` all, as adapters too.
``--save-base`` also writes the adapted encoder as a Hugging Face folder (lora, last-2 and full).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.objectives.hubert import HuBERTObjectiveConfig
from speech_adapters.objectives.pretraining import Pretraining, PretrainingConfig
from speech_adapters.objectives.wav2vec2 import Wav2Vec2ObjectiveConfig
from speech_adapters.objectives.wavlm import WavLMObjectiveConfig
from speech_adapters.tasks.downstream import Downstream

PRESETS = {path.stem: path for path in (Path(__file__).parent / "tapt").glob("*.yaml")}
UNIT_BATCHES = 40  # of crops, to cluster: 40 batches of 8 crops of 5 s are 27 minutes


@dataclass(kw_only=True)
class Config:
    """Label-free adaptation, and its effect on a task."""

    train: Path | None = option(None, "manifest of the domain's audio; no text is needed")
    held_out: Path | None = option(None, "manifest for early stopping; a tenth of --train by default")
    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    adapter: str = option("e", "preset to train: e, houlsby, lora, ..., last-2 or full")
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the preset to change."""
    objective: Literal["auto", "wav2vec2", "hubert", "wavlm"] = option("auto", "auto: that of the encoder's family")
    wav2vec2: Wav2Vec2ObjectiveConfig = field(default_factory=Wav2Vec2ObjectiveConfig)
    hubert: HuBERTObjectiveConfig = field(default_factory=HuBERTObjectiveConfig)
    wavlm: WavLMObjectiveConfig = field(default_factory=WavLMObjectiveConfig)
    noise: Path | None = option(None, "manifest of noises for the wavlm objective")
    training: PretrainingConfig = field(default_factory=PretrainingConfig)
    second_pass: PretrainingConfig | None = option(None, "a further pass on the subdomain with the highest loss")
    subdomain: str = option("domain", "key of the manifest that divides it into subdomains")
    save_base: bool = option(False, "also write the adapted encoder")
    downstream_train: Path | None = option(None, "labelled manifest to train a task on, with and without")
    downstream_test: Path | None = option(None, "labelled manifest to score that task on")
    downstream_also: tuple[Path, ...] = option((), "further labelled manifests to score both on, such as clean speech")
    downstream: Downstream = field(default_factory=Downstream)
    downstream_use: Literal["continue", "stack"] = option(
        "continue", "the task's adapter starts from the adapted one, or lies above it, which stays frozen"
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "of the task's training")
    output: Path | None = option(None, "run folder; one that holds the same run goes on")

    def __post_init__(self) -> None:
        if (self.downstream_train is None) != (self.downstream_test is None):
            raise ConfigError("give --downstream-train and --downstream-test together, or neither.")
        if self.downstream_also and self.downstream_test is None:
            raise ConfigError("--downstream-also goes with --downstream-test.")
        if not self.seeds:
            raise ConfigError("seeds: give one or more, such as --seeds 0,1,2.")
        if self.save_base and self.adapter not in ("lora", "lora-ffn", "last-2", "full"):
            raise ConfigError(
                f"--save-base: a {self.adapter!r} adapter is no part of the base; use lora, last-2 or full."
            )


def read_speech(config: Config) -> tuple[Manifest, Manifest]:
    """What trains and what is held out."""
    if config.train is None:
        from speech_adapters.corpora.demo import prepare_demo

        print("No data was named: using the demo corpus (synthetic speech). See --help for real ones.\n")
        demo = prepare_demo()
        return Manifest.read(demo.train), Manifest.read(demo.dev)
    train = Manifest.read(config.train, check_files=True)
    if config.held_out is not None:
        return train, Manifest.read(config.held_out, check_files=True)
    if len(train) < 2:
        raise ConfigError(f"{config.train}: one utterance cannot be divided; give --held-out.")
    held_out = train.subset(size=max(1, len(train) // 10), seed=config.training.seed)
    ids = {utterance.id for utterance in held_out}
    return train.filter(lambda utterance: utterance.id not in ids), held_out


def make_objective(config: Config, model, train: Manifest, run):
    """The objective, its units clustered on the training speech (and kept in the run folder)."""
    import torch

    from speech_adapters.data.audio import read_audio
    from speech_adapters.data.crops import Crops, Speech, crop_batches
    from speech_adapters.objectives.hubert import HuBERTObjective
    from speech_adapters.objectives.units import KMeansUnits
    from speech_adapters.objectives.wav2vec2 import Wav2Vec2Objective
    from speech_adapters.objectives.wavlm import WavLMObjective

    family = model.encoder.family
    name = config.objective
    if name == "auto":
        name = family if family in ("wav2vec2", "hubert", "wavlm") else "hubert"
    device = next(model.encoder.model.parameters()).device
    torch.manual_seed(config.training.seed)
    if name == "wav2vec2":
        return Wav2Vec2Objective(config.wav2vec2, model.encoder, model.feature_size).to(device)
    settings = getattr(config, name)
    units = KMeansUnits.for_model(model, settings.units, settings.clusters).to(device)
    path = run.path / "objective" / "units.pt"
    if path.is_file():
        units.centroids.copy_(torch.load(path, weights_only=True))
    else:
        speech = Speech(train, run.path / "audio", model.encoder.receptive_field + model.encoder.stride)
        training = config.training
        crops = Crops(speech, (training.seed, 0), crop_seconds=training.crop_seconds, crops=training.crops)
        batches = (clean for _, (clean, _) in zip(range(UNIT_BATCHES), crop_batches(crops), strict=False))
        units.fit(model, batches, training.seed)
        path.parent.mkdir(exist_ok=True)
        torch.save(units.centroids.cpu(), path)
    if name == "hubert":
        return HuBERTObjective(settings, model.encoder, model.feature_size, units).to(device)
    noises = () if config.noise is None else Manifest.read(config.noise, check_files=True)
    read = [read_audio(u.audio_filepath, offset=u.offset, duration=u.duration) for u in noises]
    return WavLMObjective(settings, model.encoder, model.feature_size, units, read).to(device)


def second_pass(config: Config, first: Pretraining, train: Manifest, held_out: Manifest):
    """The hardest subdomain, all their losses, and what the pass on it gave."""
    from speech_adapters.data.crops import Speech

    key, losses = config.subdomain, {}
    if not train.values(key):
        raise ConfigError(f"second_pass: no utterance of {train.name} has a {key!r}; name another --subdomain.")
    for value in train.values(key):
        part = train.filter(lambda u, value=value: u.get(key) == value)
        losses[value] = first.loss(Speech(part, first.run.path / "audio"))["loss"]
    hardest = max(losses, key=losses.get)
    parts = [m.filter(lambda u: u.get(key) == hardest) for m in (train, held_out)]
    if not len(parts[1]):
        raise ConfigError(f"second_pass: no held-out utterance has {key} {hardest!r}; give a --held-out with some.")
    first.model.train()
    second = Pretraining(first.model, first.objective, *parts, config.second_pass, first.run, "tapt-second")
    return {"subdomain": hardest, "losses": losses, **second.train()}


def compare_downstream(config: Config, encoder, run) -> dict[str, Any]:
    """The task with and without the adapted start: same labels, seeds and updates."""
    task = config.downstream
    if config.downstream_use == "continue":
        task.adapter, task.adapter_options = config.adapter, config.adapter_options
    train = Manifest.read(config.downstream_train, task.required, check_files=True)
    test = Manifest.read(config.downstream_test, task.required, check_files=True)
    others = {str(path): Manifest.read(path, task.required, check_files=True) for path in config.downstream_also}
    labels = sorted({*train.values(task.label_field), *test.values(task.label_field)}) if task.task != "asr" else ()
    figures = {}
    for method, start in (("tapt", run.adapter("tapt")), ("without", None)):
        results, also = [], {path: [] for path in others}
        for seed in config.seeds:
            name = f"{method}-seed{seed}"
            model = task.train(encoder, task.head(train, labels), train, run, name, seed, start, config.downstream_use)
            results.append(task.score(model, test))
            for path, manifest in others.items():
                also[path].append(task.score(model, manifest))
            model.save_adapter("task", run.adapter(name))
            model.save_head(task.task, run.head(name))
        by_seed = [task.metrics([result])[task.metric]["value"] for result in results]
        figures[method] = {
            "metrics": task.metrics(results),
            f"{task.metric}_by_seed": by_seed,
            "also": {path: task.metrics(found) for path, found in also.items()},
            "parameters": model.count_parameters(),
        }
        scored = {str(config.downstream_test): figures[method]["metrics"], **figures[method]["also"]}
        shown = ", ".join(f"{name} {metrics[task.metric]['value']:.1%}" for name, metrics in scored.items())
        print(f"{method}: {task.metric.upper()} on {shown}")
    return {"train": train.describe(), "test": test.describe(), "figures": figures}


def main(argv: list[str] | None = None) -> None:
    config = parse_cli(Config, argv, presets=PRESETS, default_preset="demo", description=__doc__)
    import torch

    from speech_adapters import SpeechAdapterModel
    from speech_adapters.adapters import preset
    from speech_adapters.encoders import load_encoder
    from speech_adapters.reports.report import method_rows, summary_table, write_report
    from speech_adapters.runs.folder import RunFolder, environment

    train, held_out = read_speech(config)
    encoder = load_encoder(config.encoder, device="cuda" if torch.cuda.is_available() else "cpu")
    run = RunFolder.resume_or_create("tapt", config, config.output)
    torch.manual_seed(config.training.seed)
    model = SpeechAdapterModel(encoder)
    model.add_adapter("tapt", preset(config.adapter, "asr", **config.adapter_options))
    model.train_adapter("tapt")
    objective = make_objective(config, model, train, run)
    print(f"{encoder!r}\ntrain {train.summary()}\nheld  {held_out.summary()}")
    print(f"{objective.name} objective, prediction head: {objective.head_source}\nrun   {run.path}\n")

    first = Pretraining(model, objective, train, held_out, config.training, run)
    passes = {"first": first.train()}
    if config.second_pass is not None:
        passes["second"] = second_pass(config, first, train, held_out)
    loss = passes["first"]["best"]["loss"]
    model.save_adapter("tapt", run.adapter("tapt"), objective=objective.name, held_out_loss=loss, data=train.name)
    torch.save(objective.state_dict(), run.path / "objective.pt")
    if config.save_base and not (run.path / "encoder").exists():
        model.save_folded("tapt", run.path / "encoder")

    results = {
        "task": "tapt",
        "encoder": config.encoder,
        "adapter": "tapt",
        "objective": objective.name,
        "prediction_head": objective.head_source,
        "data": {"train": train.describe(), "held_out": held_out.describe()},
        "passes": passes,
        "metrics": {"held_out_loss": loss},
        "parameters": model.count_parameters(),
        "seconds": sum(one["seconds"] for one in passes.values()),
        "seeds": list(config.seeds),
        **environment(),
    }
    if config.downstream_train is not None:
        compared = compare_downstream(config, load_encoder(config.encoder), run)
        figures = compared.pop("figures")
        results["data"] |= {f"downstream {split}": facts for split, facts in compared.items()}
        results |= {"baselines": {"without": figures["without"]}, "downstream": figures}
        results["metrics"] |= figures["tapt"]["metrics"]
    run.write_results(results)
    report = write_report(run.path)
    print(f"\n{summary_table(method_rows(results))}\n\nreport  {report}\nadapter {run.adapter('tapt')}")


if __name__ == "__main__":
    run_main(main)
