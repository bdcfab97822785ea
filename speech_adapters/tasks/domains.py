"""Speech recognition in several domains: an adapter for each, ways to combine them, and each scored on every domain.

What is trained, on the same updates:

1. an adapter and the head on the first domain, or those that are given: the start of everything below; from here on
   the head is shared, frozen;
2. one adapter per domain, from that start;
3. AdapterFusion, a router and one that reads the posterior of a layer, over them, on equal shares of all domains'
   data, the adapters frozen (they are not told the domain when scored);
4. beside them: one adapter on such a pool with as many updates as a domain's, the domain adapters' uniform average
   and merges of their weights (one adapter, untrained), oracle routing (each domain's own adapter), and full
   fine-tuning on one domain after the other (from the bare encoder, also where a start is given: what it shows is
   forgetting).

A domain without training data is out of domain: all are scored on it, and no figure over domains holds it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from speech_adapters.adapters import preset
from speech_adapters.composition import Average, Fuse, FusionConfig, Route, RouterConfig
from speech_adapters.config import option
from speech_adapters.data.batches import GuidedDataset, SpeechDataset
from speech_adapters.data.manifest import Manifest, equal_shares
from speech_adapters.data.transcripts import write_transcripts
from speech_adapters.data.windows import Windows
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.heads.base import head_from_dict
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.metrics.wer import WERResult, pooled_metrics
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.ranges import Count, NotNegative, Range, Rate, Seed, Size, check_values
from speech_adapters.runs.folder import RunFolder, file_name
from speech_adapters.runs.results import MethodResults
from speech_adapters.saving.parts import load_part
from speech_adapters.tasks.asr import evaluate_asr
from speech_adapters.tasks.base import check_seeds, chosen_rates
from speech_adapters.tasks.predict import mean_attention
from speech_adapters.tasks.recognition_settings import RecognitionSettings
from speech_adapters.training.result import mean_costs
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train


@dataclass(frozen=True)
class Domain:
    """One domain's data."""

    name: str
    train: Manifest
    dev: Manifest | None
    test: Manifest


#: How the weights of the domains' adapters are merged, and how much each counts: equal parts of one where the method
#: sums, one where it elects signs and takes the mean of what agrees, as published.
MERGES: dict[str, Callable[[int], float]] = {
    "linear": lambda count: 1 / count,
    "ties": lambda count: 1.0,
    "dare_linear": lambda count: 1 / count,
    "dare_ties": lambda count: 1.0,
    "tsv": lambda count: 1 / count,
}


COMBINATIONS = ("fusion", "router", "posterior")
"""What is trained over the domains' adapters: AdapterFusion, a router, and one that reads the posterior of a layer."""


@dataclass(kw_only=True)
class DomainsConfig(RecognitionSettings):
    """What is trained in each domain, and how they are combined."""

    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    adapter: str = option("el", "preset of every domain's adapter")
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the preset to change."""
    start_adapter: Path | None = option(None, "saved adapter to start all domains from; then --start-head too")
    start_head: Path | None = option(None, "saved CTC head of that adapter; its vocabulary and normaliser are taken")
    rank: Size | None = option(16, "rank of the fusion's matrices; null for full ones, as published")
    guide: NotNegative = option(
        1.0, "weight of the guide loss: fusion and router learn which adapter is the domain's own"
    )
    posterior_layer: Count | None = option(
        None, "layer whose input the posterior is read from; the middle one by default"
    )
    combinations: tuple[Literal["fusion", "router", "posterior"], ...] = option(
        COMBINATIONS, "what is trained over the domains' adapters; LoRA and its kin have no fusion"
    )
    merges: tuple[Literal["linear", "ties", "dare_linear", "dare_ties", "tsv"], ...] = option(
        tuple(MERGES), "ways to merge the weights of the domains' adapters into one"
    )
    density: Annotated[float, Range(0, 1, above=True)] = option(
        0.2, "share of each change that TIES and DARE keep; 0.2 in TIES"
    )
    windows: Windows | None = option(
        None, "score recordings in pieces: windows.seconds=20; the report then leaves out what fusion and router chose"
    )
    full: bool = option(True, "also fine-tune all layers, one domain after the other")
    rates: dict[str, Rate] = field(default_factory=dict)
    """Learning rates by parameter group, over the published ones; groups that this run has not may be named. Those of
    ``training`` and ``combination`` go over them, and must be used."""
    seeds: tuple[Seed, ...] = option((0,), "runs; figures are over all of them")
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Of each stage."""
    combination: TrainingConfig = field(default_factory=TrainingConfig)
    """Of the fusion and the router."""

    def __post_init__(self) -> None:
        check_values(self)
        check_seeds(self.seeds)
        if (self.start_adapter is None) != (self.start_head is None):
            raise ConfigError(
                "give --start-adapter and --start-head together: a head fits the adapter it learnt with."
            )
        for stage in ("training", "combination"):
            if (seconds := getattr(self, stage).crop_seconds) is not None:
                raise ConfigError(
                    f"{stage}.crop_seconds={seconds:g}: cuts speech but not its text; a CTC head needs it whole."
                )


def domains_head(config: DomainsConfig, domains: Sequence[Domain]) -> CTCHead:
    """The CTC head that all domains share: that of ``start_head``, or a new one.

    Raises:
        ConfigError: the saved head is of another type.
    """
    if config.start_head is None:
        trains = [domain.train for domain in domains]
        texts = Manifest((u for manifest in trains for u in manifest), "all domains")
        return config.recognition(config.encoder).head_for(texts)
    head = head_from_dict(load_part(config.start_head, "head")[0]["config"])
    if not isinstance(head, CTCHead):
        raise ConfigError(f"--start-head {config.start_head}: its type is {head.head_type!r}; recognition needs ctc.")
    return head


class DomainsRun:
    """One seed's models and their scores.

    Attributes:
        scores: method -> domain -> WER result. costs: method -> parameters, seconds and memory.
        attention: domain -> place -> member -> mean weight, of the fusion and the router.

    Raises:
        ConfigError: settings that do not fit the encoder, or would not be used.
    """

    def __init__(
        self,
        config: DomainsConfig,
        domains: Sequence[Domain],
        encoder: Encoder,
        head: CTCHead,
        seed: int,
        outside: Mapping[str, Manifest] | None = None,
    ) -> None:
        self.config, self.domains, self.encoder, self.seed = config, domains, encoder, seed
        self.tests = {domain.name: domain.test for domain in domains} | dict(outside or {})
        self.names = [domain.name for domain in domains]
        self.head = head
        self.scores: dict[str, dict[str, WERResult]] = {}
        self.costs: dict[str, dict[str, Any]] = {}
        self.attention: dict[str, dict[str, Any]] = {}
        self.suffix = "" if len(config.seeds) == 1 else f"-seed{seed}"
        dev = [domain.dev for domain in domains if domain.dev is not None]
        self.all_dev = sum(dev[1:], dev[0]) if len(dev) == len(domains) else None
        if config.posterior_layer is not None and config.posterior_layer >= encoder.num_layers:
            raise ConfigError(
                f"posterior_layer={config.posterior_layer}: the encoder's layers are 0 to {encoder.num_layers - 1}."
            )
        for name in self.tests:
            file_name(name)
        for stage in ("training", "combination"):
            every, lacking = getattr(config, stage).evaluate_every, [d.name for d in domains if d.dev is None]
            if every and lacking:
                raise ConfigError(
                    f"{stage}.evaluate_every={every}: domain {lacking[0]!r} has no dev set; give it one, or set 0."
                )
        groups = {}
        for method in (None, "full") if config.full else (None,):
            model = self.model(method)
            model.train_adapter("start", head="asr")
            groups[method or config.adapter] = set(model.parameter_groups())
            for merge in config.merges if method is None else ():
                self.merge(model, ["start"], merge)  # an adapter that cannot be merged so is refused here
                model.delete_adapter("merged")
            if method is None:
                self.check_combinations(model)
        chosen_rates(config.rates, config.training.learning_rates, groups)
        chosen_rates({}, config.combination.learning_rates, {"fusion": {"fusion"}, "router": {"router"}})

    def check_combinations(self, model: SpeechAdapterModel) -> None:
        """Refuse now what the adapter "start" of the model cannot be a member of."""
        for name in self.names:
            model.average_adapters(name, {"start": 1.0})
        for name, (value, settings) in self.combinations().items():
            try:
                model.add_fusion(value, settings)
            except ConfigError as error:
                others = ",".join(other for other in self.config.combinations if other != name)
                raise ConfigError(f"{error} Or leave it out: --combinations {others or '[]'}.") from error

    def combinations(self) -> dict[str, tuple[Fuse | Route, FusionConfig | RouterConfig]]:
        """What stage 3 trains, by name."""
        guide, members = self.config.guide, self.names
        layer = self.config.posterior_layer or max(1, self.encoder.num_layers // 2)
        known: dict[str, tuple[Fuse | Route, FusionConfig | RouterConfig]] = {
            "fusion": (Fuse(*members, name="fusion"), FusionConfig(rank=self.config.rank, guide_weight=guide)),
            "router": (Route(*members, name="router"), RouterConfig(guide_weight=guide)),
            "posterior": (Route(*members, name="posterior"), RouterConfig(guide_weight=guide, layer=layer)),
        }
        return {name: known[name] for name in self.config.combinations}

    def all(self, run: RunFolder) -> None:
        """Every stage, into a run folder."""
        self.run = run
        self.combine(self.adapters())
        self.baselines()

    def model(self, fresh: str | None = None) -> SpeechAdapterModel:
        """A model with adapter "start" and head "asr": those that were named, or untrained ones; with ``fresh``, an
        untrained one of that preset."""
        torch.manual_seed(self.seed)
        model = SpeechAdapterModel(copy.deepcopy(self.encoder))
        config = self.config
        if fresh is None and config.start_adapter and config.start_head:
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

    def train(
        self,
        model: SpeechAdapterModel,
        manifest: Manifest,
        dev: Manifest | None,
        method: str,
        settings: TrainingConfig,
    ) -> None:
        """Train what is trainable; fusions and routers are told each utterance's domain."""
        groups = model.parameter_groups()
        wanted = {**self.config.rates, **settings.learning_rates}
        rates = {group: rate for group, rate in wanted.items() if group in groups}
        settings = replace(settings, seed=self.seed, learning_rates=rates)
        target = self.head.target
        data = (
            GuidedDataset(manifest, self.names, target=target, **settings.dataset_options)
            if model.active_fusions
            else SpeechDataset(manifest, target, **settings.dataset_options)
        )
        held_out = None if dev is None else SpeechDataset(dev, target)
        trained = train(model, data, settings, self.run, held_out, method + self.suffix)
        self.costs[method] = {
            "parameters": model.count_parameters(),
            **trained.costs,
        }

    def save(self, model: SpeechAdapterModel, name: str, method: str, **card: Any) -> None:
        """Save the active adapter, and beside it the head that all share, as what reads its features: each is found,
        served and shared by itself."""
        model.save_adapter(name, self.run.adapter(method + self.suffix), **card)
        model.save_head("asr", self.run.head(method + self.suffix))

    def score(self, model: SpeechAdapterModel, method: str) -> None:
        """Score the active composition on every test set."""
        row = self.scores.setdefault(method, {})
        for name, test in self.tests.items():
            row[name] = evaluate_asr(model, test, **self._options).result
            row[name].save_trn(self.run.trn(f"{method}{self.suffix}-on-{name}"))
        self.keep(method)
        self.costs.setdefault(method, {"parameters": model.count_parameters()})
        shown = "  ".join(f"{name} {result.wer.value:.1%}" for name, result in row.items())
        print(f"{method:28s} {shown}", flush=True)

    def keep(self, method: str) -> None:
        """Write what was heard in all domains' test sets, which the method's figure is over, for a comparison."""
        row = self.scores[method]
        heard = tuple(utterance for name in self.names for utterance in row[name].utterances)
        write_transcripts(self.run.predictions(method + self.suffix), replace(row[self.names[0]], utterances=heard))

    def adapters(self) -> SpeechAdapterModel:
        """Stages 1 and 2; the model that holds all domains' adapters."""
        config, first, model = self.config, self.domains[0], self.model()
        if config.start_adapter is None:
            model.train_adapter("start", head="asr")
            self.train(model, first.train, first.dev, "start", config.training)
            self.save(model, "start", "start")
        for domain in self.domains:
            model.average_adapters(domain.name, {"start": 1.0})
            model.train_adapter(domain.name, head="asr", train_head=False)
            self.train(model, domain.train, domain.dev, domain.name, config.training)
            self.save(model, domain.name, domain.name, domain=domain.name)
            self.score(model, domain.name)
        one_adapter = {"parameters": self.costs[self.names[0]]["parameters"]}
        for method in config.merges:
            self.merge(model, self.names, method)
            self.costs[f"merge-{method}"] = one_adapter
            self.score(model, f"merge-{method}")
            model.delete_adapter("merged")
        model.delete_adapter("start")
        model.set_active(Average(*self.names))
        self.costs["average"] = one_adapter
        self.score(model, "average")
        self.scores["oracle-routing"] = {name: self.scores[name][name] for name in self.names}
        self.costs["oracle-routing"] = self.costs[self.names[0]]
        self.keep("oracle-routing")
        return model

    def merge(self, model: SpeechAdapterModel, names: Sequence[str], method: str) -> None:
        """Add adapter "merged" and make it active: what ``names`` have learnt since the start."""
        options = {} if method in ("linear", "tsv") else {"density": self.config.density, "seed": self.seed}
        weights = dict.fromkeys(names, MERGES[method](len(names)))
        model.average_adapters("merged", weights, method, base="start", **options)

    def combine(self, model: SpeechAdapterModel) -> None:
        """Stage 3."""
        settings = self.config.combination
        for method, (value, config) in self.combinations().items():
            torch.manual_seed(self.seed)  # whatever was trained before it in this process
            model.add_fusion(value, config)
            model.train_fusion(value, head="asr", train_head=False)
            self.train(model, self.all_train(settings), self.all_dev, method, settings)
            model.save_fusion(method, self.run.path / "fusions" / f"{method}{self.suffix}")
            model.save_head("asr", self.run.head(method + self.suffix))
            self.score(model, method)
            for name, test in self.tests.items() if self.config.windows is None else ():
                found = mean_attention(model, test, **self._options)
                self.attention.setdefault(name, {}).update(found)

    def baselines(self) -> None:
        """Stage 4."""
        config = self.config
        twice = replace(config.training, updates=2 * config.training.updates)  # the start's, and a domain's
        model = self.model()
        model.train_adapter("start", head="asr")
        pooled = config.training if config.start_adapter else twice
        self.train(model, self.all_train(pooled), self.all_dev, "pooled", pooled)
        self.save(model, "start", "pooled")
        self.score(model, "pooled")
        if not config.full:
            return
        model = self.model("full")
        for number, domain in enumerate(self.domains):
            model.train_adapter("start", head="asr")
            method = f"full-after-{domain.name}"
            self.train(model, domain.train, domain.dev, method, twice if number == 0 else config.training)
            self.score(model, method)

    @property
    def _options(self) -> dict[str, Any]:
        settings = self.config.training
        return {
            "batch_seconds": 2 * settings.batch_seconds,
            "precision": settings.precision,
            "windows": self.config.windows,
            "cache": settings.cache if self.config.windows is None else None,
        }


Cells = dict[str, dict[str, dict[str, Any]]]
"""Method -> domain -> WER with its interval."""


def summarise(seeds: Sequence[DomainsRun]) -> tuple[dict[str, MethodResults], Cells]:
    """The figures of each method over all seeds and domains, and its WER on each test set."""
    cells: Cells = {}
    names = seeds[0].names
    figures = {}
    for method in seeds[0].scores:
        rows = [seed.scores[method] for seed in seeds]
        by_domain = {name: pooled_metrics([row[name] for row in rows]) for name in rows[0]}
        cells[method] = {name: metrics["wer"] for name, metrics in by_domain.items()}
        values = [cells[method][name]["value"] for name in names]
        figures[method] = MethodResults(
            metrics=pooled_metrics([row[name] for row in rows for name in names]),
            more={"mean_wer": sum(values) / len(values), "domains": by_domain},
            parameters=seeds[0].costs[method]["parameters"],
            **mean_costs([{key: c for key, c in seed.costs[method].items() if key != "parameters"} for seed in seeds]),
        )
    oracle = figures["oracle-routing"].more["mean_wer"]
    for entry in figures.values():
        entry.more["relative_to_oracle"] = entry.more["mean_wer"] / oracle - 1 if oracle else None
    return figures, cells


def forgetting(cells: Mapping[str, Mapping[str, Mapping[str, float]]], names: Sequence[str]) -> dict[str, Any]:
    """WER that each domain has gained when the last one has been learnt; an adapter's weights do not change: 0."""
    lost = {"adapters": dict.fromkeys(names[:-1], 0.0)}
    last = f"full-after-{names[-1]}"
    if last in cells:
        lost["full"] = {n: cells[last][n]["value"] - cells[f"full-after-{n}"][n]["value"] for n in names[:-1]}
    return lost
