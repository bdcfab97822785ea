"""Active learning with models: a loop that trains after each round; strategies compared by what their picks teach."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from speech_adapters.active.curves import Curve, area_difference, over_seeds
from speech_adapters.active.loop import ActiveLearner, LabellingConfig, Labels, Round
from speech_adapters.active.pool_predictions import committee_disagreement, dropout_disagreement, observe
from speech_adapters.active.strategies import STRATEGIES, PoolView
from speech_adapters.config import option
from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.ranges import NotNegative, Prior, Range, Seed, Size, check_values
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.results import MethodResults
from speech_adapters.tasks.base import check_seeds
from speech_adapters.tasks.downstream import ADAPTER, Downstream

MEMBER = "member"
"""The committee's second adapter."""


@dataclass(kw_only=True)
class ActiveConfig:
    """What is trained after each round, and how the next round is chosen."""

    labels: tuple[str, ...] = option((), "the classes, where the pool does not tell them")
    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    start: Path | None = option(None, "adapter from recipes/tapt.py that every training starts from")
    task: Downstream = field(default_factory=Downstream)
    loop: LabellingConfig = field(default_factory=LabellingConfig)
    strategies: tuple[str, ...] = option(
        ("random", "hybrid"), "of an experiment; random is what others are held against"
    )
    seeds: tuple[Seed, ...] = option((0, 1, 2), "of an experiment: loops per strategy")
    target_gap: NotNegative = option(0.02, "labels are counted to the whole pool's score minus this")
    clusters: Size = option(20, "k-means clusters of the cold start and of hybrid")
    passes: Annotated[int, Range(2, 1000)] = option(5, "stochastic passes of the dropout strategy")
    dropout: Prior = option(0.1, "probability in these passes")
    member: str = option("lora", "preset of the second adapter of the committee strategy")
    member_options: dict[str, Any] = field(default_factory=dict)
    """Settings of that preset; with ``task.adapter=lora`` r=8, ``{rank: 16}``."""

    def __post_init__(self) -> None:
        check_values(self)
        check_seeds(self.seeds)
        if unknown := [name for name in self.strategies if name not in STRATEGIES]:
            raise ConfigError(f"strategies: {unknown[0]!r} is unknown; choose from {', '.join(STRATEGIES)}.")
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            raise ConfigError("strategies: give one or more different ones, such as --strategies random,badge.")

    @property
    def member_task(self) -> Downstream:
        """The task with the committee's second adapter."""
        settings = self.task.training  # rates that must be used are the task's adapter's: the member may lack them
        return replace(
            self.task,
            adapter=self.member,
            adapter_options=self.member_options,
            rates={**self.task.rates, **settings.learning_rates},
            training=replace(settings, learning_rates={}),
        )

    def classes(self, pool: Manifest) -> tuple[str, ...]:
        """All classes, said or told by the pool; none for recognition."""
        return () if self.task.task == "asr" else tuple(self.labels) or pool.values(self.task.label_field)

    def check_adapters(self, encoder: Encoder, strategies: Sequence[str]) -> None:
        """Find what of the adapters' settings does not fit, that of a committee among them; raises an InputError."""
        self.task.check_adapter(encoder, self.start)
        if "committee" in strategies:
            self.member_task.check_adapter(encoder)


class LabellingLoop:
    """One strategy with one seed: its learner, and the models it trains, kept in its folder."""

    def __init__(
        self,
        config: ActiveConfig,
        encoder: Encoder,
        pool: Manifest,
        test: Manifest | None,
        folder: Path,
        loop: LabellingConfig,
    ) -> None:
        self.config, self.encoder, self.test, self.task = config, encoder, test, config.task
        self.learner = ActiveLearner(pool, loop, folder)
        self.run = RunFolder(folder)
        self.labels = config.classes(pool)

    @property
    def key(self) -> str:
        """What a label is."""
        return self.task.required[0]

    @property
    def last(self) -> str:
        """The name of the last scored round's adapter and head."""
        return f"round{self.learner.rounds_done - 1}-{ADAPTER}"

    def next_round(self) -> Round | None:
        """The round that waits for labels, after whatever training is still owed; None when the loop is over."""
        if self.learner.waits_for_score:
            self.train()
        return self.learner.next_round(self.view)

    def label(self, labels: Labels, name: str) -> set[str] | None:
        """Take in what people said, from ``name``; what training cannot use is refused while it can be corrected.
        Training that is still owed comes before corrections, on the labels that it was begun with.

        Returns: what :meth:`ActiveLearner.label` does.

        Raises:
            InputError: names the utterances whose labels no training can use.
            ConfigError: nothing would be labelled at all; see also :meth:`ActiveLearner.label`.
        """
        picked = set(self.learner.picked)
        if labels.keys() <= picked and len(said := self.learner.with_labels(labels, name)):
            self.task.check_labels(said, self.encoder, self.labels)
        if labels.keys() <= picked and all(said is None for said in {**self.learner.said, **labels}.values()):
            raise ConfigError(f"{name}: no utterance has a label, and a model learns from one at least; label one.")
        if self.learner.waits_for_score:
            self.train()
        return self.learner.label(labels)

    def train(self) -> None:
        """Train on all labels so far, keep the model, report its score."""
        labelled, name = self.learner.labelled, f"round{self.learner.rounds_done}"
        score = None
        model = self._trained(self.task, f"{name}-{ADAPTER}", self.config.start)
        if self.learner.config.strategy == "committee":
            self._trained(self.config.member_task, f"{name}-{MEMBER}")
        if self.test is not None:
            metric = self.task.metrics([self.task.score(model, self.test)])[self.task.metric]["value"]
            score = 1 - metric if self.task.metric == "wer" else metric
        self.learner.report(score, utterances=len(labelled), hours=labelled.hours)

    def _trained(self, task: Downstream, name: str, start: Path | None = None) -> SpeechAdapterModel:
        labelled, learner = self.learner.labelled, self.learner
        head = task.head(labelled, self.labels)
        return task.train(self.encoder, head, labelled, self.run, name, learner.config.seed, start, pool=learner.pool)

    def model(self, kind: str = ADAPTER) -> SpeechAdapterModel:
        """The model of the last scored round; the frozen base before the first."""
        model = SpeechAdapterModel(copy.deepcopy(self.encoder))
        if rounds := self.learner.rounds_done:
            model.load_adapter(self.run.adapter(f"round{rounds - 1}-{kind}"))
            model.load_head(self.run.head(f"round{rounds - 1}-{kind}"))
        return model.eval()

    def view(self) -> PoolView:
        """What the last model says of the pool."""
        config, learner, model = self.config, self.learner, self.model()
        pool, labelled = learner.unlabelled, learner.labelled
        options: dict[str, Any] = {"batch_seconds": 2 * self.task.training.batch_seconds}
        cached = self.task.cached(model, learner.pool)  # passes with dropout, which begins below, read the waveforms
        return PoolView(
            len(pool),
            lambda gradients: observe(model, pool, gradients=gradients, cached=cached, **options),
            (lambda: observe(model, labelled, cached=cached, **options)) if len(labelled) else None,
            lambda: dropout_disagreement(
                model, pool, passes=config.passes, dropout=config.dropout, seed=learner.config.seed, **options
            ),
            lambda: committee_disagreement([model, self.model(MEMBER)], pool, **options),
            clusters=config.clusters,
        )

    def oracle(self) -> list[tuple[float, float]]:
        """All rounds on the pool's own labels; (budget spent, score) after each."""
        while (turn := self.next_round()) is not None:
            self.learner.label({u.id: {self.key: u.get(self.key)} for u in turn.picks})
        return self.learner.scores


def compare_strategies(
    config: ActiveConfig, encoder: Encoder, pool: Manifest, test: Manifest, folder: Path
) -> tuple[dict[str, MethodResults], dict[str, Any]]:
    """Every strategy and seed, and the whole pool labelled: figures by strategy, and what all are held against."""

    def run(loop: LabellingConfig, name: str) -> list[tuple[float, float]]:
        return LabellingLoop(config, encoder, pool, test, folder / f"{name}-seed{loop.seed}", loop).oracle()

    curves = {}
    for strategy in config.strategies:
        runs = []
        for seed in config.seeds:
            runs.append(run(replace(config.loop, strategy=strategy, seed=seed), strategy))
            print(f"{strategy} seed {seed}: " + ", ".join(f"{x:.0f}: {100 * y:.1f}" for x, y in runs[-1]))
        curves[strategy] = Curve.of(runs)
    unit = config.loop.unit
    total = sum(u.duration for u in pool) if unit == "seconds" else len(pool)
    full = []
    for seed in config.seeds:  # one round that labels everything
        everything = LabellingConfig(
            strategy="random", budget=total, unit=unit, initial=1.0, cold_start="random", rounds=1, seed=seed
        )
        full.append(run(everything, "full")[-1])
    whole = over_seeds([score for _, score in full])
    target = whole.value - config.target_gap
    figures = {}
    for name, curve in curves.items():
        metrics = {
            "area": curve.area().to_dict(),
            "labels_to_reach": curve.labels_to_reach(target),
            "final": over_seeds(curve.scores[:, -1]).to_dict(),
        }
        more: dict[str, Any] = {"curve": [{"labels": x, **interval.to_dict()} for x, interval in curve.points]}
        if "random" in curves and name != "random":
            more["area_minus_random"] = area_difference(curve, curves["random"]).to_dict()
        figures[name] = MethodResults(metrics=metrics, more=more)
    return figures, {"full": {"labels": full[0][0], **whole.to_dict()}, "target": target}
