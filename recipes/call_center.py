"""Adapters for several domains on one encoder: trained one by one, combined, and each scored on every domain.

    python recipes/call_center.py                                        # demo corpus: studio, telephone, noisy
    python recipes/call_center.py --train train.jsonl --dev dev.jsonl --test test.jsonl   # by their `domain` fields
    python recipes/call_center.py --config my_domains.yaml               # manifests by domain; see recipes/call_center

Trained on the same updates: an adapter and a shared head on the first domain (or --start-adapter and --start-head),
from there one adapter per domain, AdapterFusion and routers over them; beside these one adapter on all domains, the
average of the domain adapters and merges of their weights, oracle routing, and full fine-tuning on one domain after
the other. See speech_adapters/tasks/domains.py. With outside.NAME=test.jsonl all are scored on other speech too.

The report shows the matrix of WERs. Down a column: what each method makes of a domain. Along a row: transfer. An
adapter forgets nothing when the next one comes, since its weights are its own; what full fine-tuning forgets is the
difference between its row for a domain and the rows after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.corpus_check import check_apart
from speech_adapters.data.manifest import Channel, Manifest, Utterance
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.domains import Domain, DomainsConfig

PRESETS = {path.stem: path for path in (Path(__file__).parent / "call_center").glob("*.yaml")}
DEMO_FIRST = "studio"
"""The domain of the demo corpus that the head and every adapter start from."""


@dataclass(kw_only=True)
class DomainFiles:
    """The manifests of one domain."""

    train: Path
    test: Path
    dev: Path | None = None
    shared_speakers: bool = False
    """The same voices read other texts in training and test, as in prompts of one voice; else that is refused."""


@dataclass(kw_only=True)
class Config(DomainsConfig):
    """Domains, an adapter for each, and ways to combine them."""

    domains: dict[str, DomainFiles] = field(default_factory=dict)
    """Manifests by domain, the first one the start of the others: ``{studio: {train: a.jsonl, test: b.jsonl}}``."""
    outside: dict[str, Path] = field(default_factory=dict)
    """Test manifests by name, of domains that nothing is trained on: ``{meetings: meetings_test.jsonl}``."""
    train: Path | None = option(
        None, "one manifest for all domains, told apart by `domain`; then --test too", file=True
    )
    dev: Path | None = option(None, "the same for dev losses", file=True)
    test: Path | None = option(None, "the same for scoring", file=True)
    channel: Channel | None = option(
        None, "heard of files with several, where a line does not say it: a number, or mix"
    )
    first: str | None = option(None, "the domain to start from; the first one found by default")
    output: Path | None = option(None, "run folder; one that holds the same run goes on")
    resume: str | None = option(None, "latest, or a run folder: go on with that run")

    @property
    def shared_speakers(self) -> list[str]:
        """Domains whose training and test speakers are the same."""
        return [name for name, files in self.domains.items() if files.shared_speakers]


def find_domains(config: Config) -> list[Domain]:
    """The domains as configured, the one to start from first; speakers of training sets are in no test set.

    Raises:
        ConfigError, ManifestError: fewer than two domains, a domain without a split, a recording in two splits, a
            speaker in two (of any two domains; of one and the same only where it does not say ``shared_speakers``).
    """
    if config.domains:
        if config.train or config.dev or config.test:
            raise ConfigError("give domains, or --train, --dev and --test, not both.")
        domains = []
        for name, files in config.domains.items():
            paths = {"train": files.train, "dev": files.dev, "test": files.test}
            sets = {
                split: path and _read(path, config.channel).map(partial(_of_domain, name))
                for split, path in paths.items()
            }
            domains.append(Domain(name, **sets))
    else:
        domains = _by_field(config)
    if len(domains) < 2:
        raise ConfigError(f"{len(domains)} domain(s) found; a comparison needs at least two.")
    names = [domain.name for domain in domains]
    first = config.first or (names[0] if config.domains or config.train else DEMO_FIRST)
    if first not in names:
        raise ConfigError(f"first={first!r} is none of the domains {', '.join(names)}.")
    for one in domains:
        for other in domains:
            check_apart(one.train, other.test, speakers=one is not other or one.name not in config.shared_speakers)
    return sorted(domains, key=lambda domain: domain.name != first)


def find_outside(config: Config, domains: list[Domain]) -> dict[str, Manifest]:
    """The test sets out of domain; their speakers are in no training set.

    Raises:
        ConfigError, ManifestError: a name that a domain has, a speaker that a training set has.
    """
    names = {domain.name for domain in domains}
    if taken := sorted(names & set(config.outside)):
        raise ConfigError(f"outside.{taken[0]}: a domain that is trained on has this name; give another.")
    found = {name: _read(path, config.channel).map(partial(_of_domain, name)) for name, path in config.outside.items()}
    for test in found.values():
        for domain in domains:
            check_apart(domain.train, test)
    return found


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
    sets = {
        split: None if path is None else _read(path, config.channel).require("domain") for split, path in paths.items()
    }
    domains = []
    for name in sets["train"].values("domain"):
        parts = {s: m and m.filter(lambda u, name=name: u.domain == name) for s, m in sets.items()}
        if not parts["test"]:
            raise ConfigError(f"{paths['test']}: no utterance of domain {name!r}, which {paths['train']} has.")
        domains.append(Domain(name, parts["train"], parts["dev"] or None, parts["test"]))
    return domains


def _read(path: Path, channel: Channel | None) -> Manifest:
    return Manifest.read(path, require=("text",), check_files=True, channel=channel)


def main(config: Config) -> None:
    from speech_adapters.encoders import load_encoder
    from speech_adapters.files import write_json
    from speech_adapters.reports.card import write_cards
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import Results
    from speech_adapters.tasks.domains import DomainsRun, domains_head, forgetting, summarise
    from speech_adapters.training.supervised import check_hearing

    started = time.perf_counter()
    domains = find_domains(config)
    outside = find_outside(config, domains)
    encoder = load_encoder(config.encoder)
    head = domains_head(config, domains)
    if config.windows is not None:
        config.windows.check(encoder.max_samples, encoder.name)
    for domain in domains:
        for manifest in (domain.train, domain.dev):
            if manifest is not None:
                head.check(manifest, encoder)
        for stage in ("training", "combination"):
            check_hearing(domain.train, encoder, getattr(config, stage), stage)
    for test in (*(domain.test for domain in domains), *outside.values()):
        head.check(test, encoder, any_length=config.windows is not None)
    seeds = [DomainsRun(config, domains, encoder, head, seed, outside) for seed in config.seeds]
    data = {f"{d.name} {s}": getattr(d, s).describe() for d in domains for s in ("train", "test")}
    data |= {f"{name} test": test.describe() for name, test in outside.items()}
    run = RunFolder.open("call_center", config, config.output, resume=config.resume, data=data, base=encoder.identity)
    facts = [f"{domain.name:12s} train {domain.train.summary()}, test {domain.test.summary()}" for domain in domains]
    print("\n".join([f"{encoder!r}", *facts, f"run {run.path}\n"]))

    for seed in seeds:
        seed.all(run)

    figures, cells = summarise(seeds)
    shown = next(iter(config.combinations), "average")
    results = Results(
        task="asr domains",
        encoder=config.encoder,
        adapter=shown,
        data=data,
        own=figures.pop(shown),
        baselines=figures,
        seeds=list(config.seeds),
        more={
            "shared_speakers": config.shared_speakers,
            "forgetting": forgetting(cells, [domain.name for domain in domains]),
            "updates": config.training.updates,
            **run.took("total_seconds", started),
        },
    )
    write_json(run.path / "domains.json", {"metric": "wer", "cells": cells, "outside": list(outside)})
    write_json(run.path / "attention.json", seeds[0].attention)
    table, report = report_results(run, results)
    write_cards(run.path)
    print(f"\n{table}\n\nreport  {report}\nadapters {run.path / 'adapters'}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, description=__doc__, recipe="call_center")))
