"""Adapters for several domains on one encoder: trained one by one, combined, and each scored on every domain.

    python recipes/call_center.py                                        # demo corpus: studio, telephone, noisy
    python recipes/call_center.py --train train.jsonl --dev dev.jsonl --test test.jsonl   # by their `domain` fields
    python recipes/call_center.py --config my_domains.yaml               # manifests by domain; see recipes/call_center

What is trained, on the same updates:

1. an adapter and the head on the first domain, or those that --start-adapter and --start-head name: the start of
   everything below; from here on the head is shared, frozen;
2. one adapter a domain, from that start;
3. AdapterFusion and a router over them, on equal shares of all domains' data, the adapters frozen (they are not told
   the domain when scored);
4. beside them: one adapter on such a pool with as many updates as a domain's, the domain adapters' uniform average,
   oracle routing (each domain's own adapter), and full fine-tuning on one domain after the other (from the
   bare encoder, also where a start is named: what it shows is forgetting).

The report shows the matrix of WERs. Down a column: what each method makes of a domain. Along a row: transfer. An
adapter forgets nothing when the next one comes, since its weights are its own; what full fine-tuning forgets is the
difference between its row for a domain and the rows after it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest, Utterance, check_disjoint, equal_shares
from speech_adapters.errors import ConfigError
from speech_adapters.training.settings import TrainingConfig

PRESETS = {path.stem: path for path in (Path(__file__).parent / "call_center").glob("*.yaml")}


@dataclass(kw_only=True)
class DomainFiles:
    """The manifests of one domain."""

    train: Path
    test: Path
    dev: Path | None = None
    shared_speakers: bool = False
    """The same voices read other texts in training and test, as in prompts of one voice; else that is refused."""


@dataclass(kw_only=True)
class Config:
    """Domains, an adapter for each, and ways to combine them."""

    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    adapter: str = option("el", "preset of every domain's adapter")
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the preset to change."""
    domains: dict[str, DomainFiles] = field(default_factory=dict)
    """Manifests by domain, the first one the start of the others: ``{studio: {train: a.jsonl, test: b.jsonl}}``."""
    train: Path | None = option(None, "one manifest for all domains, told apart by `domain`; then --test too")
    dev: Path | None = option(None, "the same for dev losses")
    test: Path | None = option(None, "the same for scoring")
    first: str | None = option(None, "the domain to start from; the first one found by default")
    start_adapter: Path | None = option(None, "saved adapter to start all domains from; then --start-head too")
    start_head: Path | None = option(None, "saved CTC head of that adapter; its vocabulary and normaliser are taken")
    vocabulary: str = option("wav2vec2", "wav2vec2, or characters: built from the training text")
    normalizer: str = option("librispeech", "text normaliser, saved with the head")
    rank: int | None = option(16, "rank of the fusion's matrices; null for full ones, as published")
    guide: float = option(1.0, "weight of the guide loss: fusion and router learn which adapter is the domain's own")
    full: bool = option(True, "also fine-tune all layers, one domain after the other")
    seeds: tuple[int, ...] = option((0,), "runs; figures are over all of them")
    output: Path | None = option(None, "run folder; runs/call_center/<time> by default")
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Of each stage."""
    combination: TrainingConfig = field(default_factory=TrainingConfig)
    """Of the fusion and the router."""

    def __post_init__(self) -> None:
        if (self.start_adapter is None) != (self.start_head is None):
            raise ConfigError(
                "give --start-adapter and --start-head together: a head fits the adapter it learnt with."
            )

    @property
    def shared_speakers(self) -> list[str]:
        """Domains whose training and test speakers are the same."""
        return [name for name, files in self.domains.items() if files.shared_speakers]


@dataclass(frozen=True)
class Domain:
    """One domain's data."""

    name: str
    train: Manifest
    dev: Manifest | None
    test: Manifest


def find_domains(config: Config) -> list[Domain]:
    """The domains as configured, the one to start from first; speakers of training sets are in no test set.

    Raises:
        ConfigError, ManifestError: fewer than two domains, a domain without a split, a speaker in two splits (of any
            two domains; of one and the same only where it does not say ``shared_speakers``).
    """
    if config.domains:
        if config.train or config.dev or config.test:
            raise ConfigError("give domains, or --train, --dev and --test, not both.")
        domains = []
        for name, files in config.domains.items():
            paths = {"train": files.train, "dev": files.dev, "test": files.test}
            sets = {split: path and _read(path).map(partial(_of_domain, name)) for split, path in paths.items()}
            domains.append(Domain(name, **sets))
    else:
        domains = _by_field(config)
    if len(domains) < 2:
        raise ConfigError(f"{len(domains)} domain(s) found; a comparison needs at least two.")
    names = [domain.name for domain in domains]
    if config.first is not None and config.first not in names:
        raise ConfigError(f"first={config.first!r} is none of the domains {', '.join(names)}.")
    for one in domains:
        for other in domains:
            if one is not other or one.name not in config.shared_speakers:
                check_disjoint(one.train, other.test)
    return sorted(domains, key=lambda domain: domain.name != (config.first or names[0]))


def _of_domain(name: str, utterance: Utterance) -> Utterance:
    """A corpus and its telephone-coded copy have the same ids; pooled, each needs its own."""
    return replace(utterance, domain=name, id=f"{name}-{utterance.id}")


def _by_field(config: Config) -> list[Domain]:
    if config.train and config.test:
        paths = {"train": config.train, "dev": config.dev, "test": config.test}
    elif config.train or config.dev or config.test:
        raise ConfigError("give --train and --test together, or none of them.")
    else:
        from speech_adapters.corpora.demo import prepare_demo

        demo = prepare_demo()
        paths = {"train": demo.train, "dev": demo.dev, "test": demo.test}
    sets = {split: None if path is None else _read(path).require("domain") for split, path in paths.items()}
    domains = []
    for name in sets["train"].values("domain"):
        parts = {s: m and m.filter(lambda u, name=name: u.domain == name) for s, m in sets.items()}
        if not parts["test"]:
            raise ConfigError(f"{paths['test']}: no utterance of domain {name!r}, which {paths['train']} has.")
        domains.append(Domain(name, **parts))
    return domains


def _read(path: Path) -> Manifest:
    return Manifest.read(path, require=("text",), check_files=True)


class Seed:
    """One seed's models and their scores: method -> domain -> WER result."""

    def __init__(self, config: Config, domains: Sequence[Domain], encoder, head, seed: int, run) -> None:
        self.config, self.domains, self.encoder, self.run, self.seed = config, domains, encoder, run, seed
        self.names = [domain.name for domain in domains]
        self.head = head
        self.scores: dict[str, dict[str, Any]] = {}
        self.costs: dict[str, dict[str, Any]] = {}
        self.suffix = "" if len(config.seeds) == 1 else f"-seed{seed}"
        dev = [domain.dev for domain in domains]
        self.all_dev = None if None in dev else sum(dev[1:], dev[0])

    def model(self, fresh: str | None = None):
        """A model with adapter "start" and head "asr": those that were named, or untrained ones; with ``fresh``, an
        untrained one of that preset."""
        import torch

        from speech_adapters.adapters import preset
        from speech_adapters.model import SpeechAdapterModel

        torch.manual_seed(self.seed)
        model = SpeechAdapterModel(copy.deepcopy(self.encoder))
        config = self.config
        if fresh is None and config.start_adapter:
            model.load_adapter(config.start_adapter, "start")
            model.load_head(config.start_head, "asr")
            return model
        options = config.adapter_options if fresh is None else {}
        model.add_adapter("start", preset(fresh or config.adapter, "asr", **options))
        model.add_head("asr", self.head)
        return model

    def all_train(self, settings: TrainingConfig) -> Manifest:
        """Equal shares of the domains: what the training can hear in all, the longest domain at most once."""
        manifests = [domain.train for domain in self.domains]
        heard = settings.updates * settings.accumulation * settings.batch_seconds / 3600
        most = len(manifests) * max(manifest.hours for manifest in manifests)
        return equal_shares(manifests, min(heard, most), self.seed)

    def train(self, model, manifest: Manifest, dev: Manifest | None, method: str, settings: TrainingConfig) -> None:
        """Train what is trainable; fusions and routers are told each utterance's domain."""
        from speech_adapters.data.batches import GuidedDataset, SpeechDataset
        from speech_adapters.training.supervised import train

        target = self.head.target
        groups = model.parameter_groups()
        rates = {group: rate for group, rate in settings.learning_rates.items() if group in groups}
        settings = replace(settings, seed=self.seed, learning_rates=rates)
        options = {"target": target, "augmentation": settings.augmentation, "seed": self.seed}
        data = (
            GuidedDataset(manifest, self.names, **options)
            if model.active_fusions
            else SpeechDataset(manifest, **options)
        )
        held_out = None if dev is None else SpeechDataset(dev, target)
        trained = train(model, data, settings, self.run, held_out, method + self.suffix)
        self.costs[method] = {
            "parameters": model.count_parameters(),
            "seconds": trained.seconds,
            "audio_seconds_per_second": trained.audio_seconds_per_second,
            "peak_memory_bytes": trained.peak_memory_bytes,
        }

    def score(self, model, method: str) -> None:
        """Score the active composition on every domain."""
        from speech_adapters.tasks.asr import evaluate_asr

        row = self.scores.setdefault(method, {})
        settings = self.config.training
        for domain in self.domains:
            scored = evaluate_asr(
                model, domain.test, batch_seconds=2 * settings.batch_seconds, precision=settings.precision
            )
            row[domain.name] = scored.result
            scored.result.save_trn(self.run.trn(f"{method}{self.suffix}-on-{domain.name}"))
        self.costs.setdefault(method, {"parameters": model.count_parameters()})
        print(
            f"{method:28s} " + "  ".join(f"{name} {result.wer.value:.1%}" for name, result in row.items()), flush=True
        )

    def adapters(self):
        """Stages 1 and 2; returns the model that holds all domains' adapters."""
        from speech_adapters.composition import Average

        config, first, model = self.config, self.domains[0], self.model()
        if config.start_adapter is None:
            model.train_adapter("start", head="asr")
            self.train(model, first.train, first.dev, "start", config.training)
        model.save_head("asr", self.run.head("asr" + self.suffix))
        for domain in self.domains:
            model.average_adapters(domain.name, {"start": 1.0})
            model.train_adapter(domain.name, head="asr", train_head=False)
            self.train(model, domain.train, domain.dev, domain.name, config.training)
            self.score(model, domain.name)
            model.save_adapter(domain.name, self.run.adapter(domain.name + self.suffix), domain=domain.name)
        model.delete_adapter("start")
        model.set_active(Average(*self.names))
        self.costs["average"] = {"parameters": self.costs[self.names[0]]["parameters"]}  # averaged: one adapter
        self.score(model, "average")
        self.scores["oracle-routing"] = {name: self.scores[name][name] for name in self.names}
        self.costs["oracle-routing"] = self.costs[self.names[0]]
        return model

    def combine(self, model) -> dict[str, Any]:
        """Stage 3; returns where the fusion and the router look on each domain."""
        from speech_adapters.composition import Fuse, FusionConfig, Route, RouterConfig
        from speech_adapters.data.batches import SpeechDataset, evaluation_loader
        from speech_adapters.tasks.fusion_attention import mean_attention

        guide, attention = self.config.guide, {}
        settings = self.config.combination
        for method, value, config in (
            ("fusion", Fuse(*self.names, name="fusion"), FusionConfig(rank=self.config.rank, guide_weight=guide)),
            ("router", Route(*self.names, name="router"), RouterConfig(guide_weight=guide)),
        ):
            model.add_fusion(value, config)
            model.train_fusion(value, head="asr", train_head=False)
            self.train(model, self.all_train(settings), self.all_dev, method, settings)
            self.score(model, method)
            model.save_fusion(method, self.run.path / "fusions" / f"{method}{self.suffix}")
            for domain in self.domains:
                data = SpeechDataset(domain.test, keep_in_memory=False)
                found = mean_attention(model, evaluation_loader(data, 2 * self.config.training.batch_seconds))
                attention.setdefault(domain.name, {}).update(found)
        return attention

    def baselines(self) -> None:
        """Stage 4."""
        config = self.config
        twice = replace(config.training, updates=2 * config.training.updates)  # the start's, and a domain's
        model = self.model()
        model.train_adapter("start", head="asr")
        pooled = config.training if config.start_adapter else twice
        self.train(model, self.all_train(pooled), self.all_dev, "pooled", pooled)
        self.score(model, "pooled")
        if not config.full:
            return
        model = self.model("full")
        for number, domain in enumerate(self.domains):
            model.train_adapter("start", head="asr")
            method = f"full-after-{domain.name}"
            self.train(model, domain.train, domain.dev, method, twice if number == 0 else config.training)
            self.score(model, method)


def summarise(config: Config, domains: Sequence[Domain], seeds: Sequence[Seed]) -> tuple[dict, dict]:
    """``results.json`` and ``domains.json`` over all seeds."""
    from speech_adapters.tasks.asr import pooled_metrics

    cells, figures = {}, {}
    for method in seeds[0].scores:
        rows = [seed.scores[method] for seed in seeds]
        metrics = {name: pooled_metrics([row[name] for row in rows]) for name in rows[0]}
        cells[method] = {name: metrics[name]["wer"] for name in metrics}
        values = [metrics[name]["wer"]["value"] for name in metrics]
        figures[method] = {
            "metrics": pooled_metrics([result for row in rows for result in row.values()]),
            "mean_wer": sum(values) / len(values),
            **seeds[0].costs[method],
        }
    oracle = figures["oracle-routing"]["mean_wer"]
    for entry in figures.values():
        entry["relative_to_oracle"] = entry["mean_wer"] / oracle - 1 if oracle else None
    results = {
        "task": "asr domains",
        "encoder": config.encoder,
        "adapter": "fusion",
        "data": {f"{d.name} {s}": getattr(d, s).describe() for d in domains for s in ("train", "test")},
        **figures.pop("fusion"),
        "baselines": figures,
        "shared_speakers": config.shared_speakers,
        "forgetting": forgetting(cells, [domain.name for domain in domains]),
        "updates": config.training.updates,
        "seeds": list(config.seeds),
    }
    return results, {"metric": "wer", "cells": cells}


def forgetting(cells: dict[str, dict[str, dict[str, float]]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """WER that each domain has gained when the last one has been learnt; an adapter's weights do not change: 0."""
    lost = {"adapters": dict.fromkeys(names[:-1], 0.0)}
    last = f"full-after-{names[-1]}"
    if last in cells:
        lost["full"] = {n: cells[last][n]["value"] - cells[f"full-after-{n}"][n]["value"] for n in names[:-1]}
    return lost


def make_head(config: Config, domains: Sequence[Domain]):
    """The CTC head that all domains share."""
    if config.start_head is not None:
        from speech_adapters.heads.base import head_from_dict
        from speech_adapters.saving.parts import load_part

        head = head_from_dict(load_part(config.start_head, "head")[0]["config"])
        if head.head_type != "ctc":
            raise ConfigError(
                f"--start-head {config.start_head}: its type is {head.head_type!r}; recognition needs ctc."
            )
        return head
    from speech_adapters.heads import CTCHead
    from speech_adapters.text import Vocabulary, normalize

    if config.vocabulary == "wav2vec2":
        vocabulary = Vocabulary.wav2vec2()
    elif config.vocabulary == "characters":
        texts = (u.text for domain in domains for u in domain.train)
        vocabulary = Vocabulary.from_texts(normalize(text, config.normalizer) for text in texts)
    else:
        raise ConfigError(f"vocabulary={config.vocabulary!r}: choose wav2vec2 or characters.")
    return CTCHead(vocabulary, normalizer=config.normalizer)


def main(config: Config) -> None:
    from speech_adapters.adapters import preset
    from speech_adapters.data.batches import check_before_training
    from speech_adapters.encoders import load_encoder
    from speech_adapters.files import write_json
    from speech_adapters.reports.report import method_rows, summary_table, write_report
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder

    started = time.perf_counter()
    encoder, domains = load_encoder(config.encoder), find_domains(config)
    head = make_head(config, domains)
    preset(config.adapter, "asr", **config.adapter_options)
    for domain in domains:
        for manifest in (domain.train, domain.dev, domain.test):
            if manifest is not None:
                check_before_training(manifest, encoder, head)
    run = RunFolder.create("call_center", path=config.output)
    run.save_config(config)
    facts = [f"{domain.name:12s} train {domain.train.summary()}, test {domain.test.summary()}" for domain in domains]
    print("\n".join([f"{encoder!r}", *facts, f"run {run.path}\n"]))
    seeds, attention = [], {}
    for seed in config.seeds:
        one = Seed(config, domains, encoder, head, seed, run)
        found = one.combine(one.adapters())
        attention = attention or found
        one.baselines()
        seeds.append(one)
    results, matrix = summarise(config, domains, seeds)
    run.write_results(results | {"total_seconds": time.perf_counter() - started, **environment()})
    write_json(run.path / "domains.json", matrix)
    write_json(run.path / "attention.json", attention)
    report = write_report(run.path)
    print(f"\n{summary_table(method_rows(results))}\n\nreport  {report}\nadapters {run.path / 'adapters'}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, default_preset="demo", description=__doc__)))
