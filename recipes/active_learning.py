"""Label what teaches most: rounds of picks, for people (a labelling sheet a round) or as an experiment (an oracle).

    python recipes/active_learning.py                                   # demo corpus: strategies against random
    python recipes/active_learning.py --preset ravdess --pool train.jsonl --test test.jsonl
    python recipes/active_learning.py --mode sheet --pool calls.jsonl --test test.jsonl --output runs/calls
    python recipes/active_learning.py ... --output runs/calls --filled sheet_filled.jsonl     # the next round

An experiment runs every strategy with every seed on the pool's own labels, which it shows round by round, and compares
their curves with random sampling and with the whole pool labelled. The same --output goes on where a run was stopped.
A score is UA for emotion (or any label) and word accuracy, 1 - WER, for speech recognition.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from speech_adapters.active.loop import ActiveLearner, LoopConfig
from speech_adapters.active.strategies import STRATEGIES, PoolView
from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.downstream import ADAPTER, Downstream

PRESETS = {path.stem: path for path in (Path(__file__).parent / "active_learning").glob("*.yaml")}
MEMBER = "member"  # the committee's second adapter


@dataclass(kw_only=True)
class Config:
    """Active learning on one pool."""

    pool: Path | None = option(None, "manifest to choose from; for an experiment with its labels")
    test: Path | None = option(None, "labelled manifest to score on")
    mode: Literal["oracle", "sheet"] = option("oracle", "oracle: an experiment; sheet: people label")
    filled: Path | None = option(None, "a filled labelling sheet of the round that waits (.jsonl or .csv)")
    labels: tuple[str, ...] = option((), "the classes, where the pool does not tell them")
    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    start: Path | None = option(None, "adapter from recipes/tapt.py that every training starts from")
    task: Downstream = field(default_factory=Downstream)
    loop: LoopConfig = field(default_factory=LoopConfig)
    strategies: tuple[str, ...] = option(
        ("random", "hybrid"), "of an experiment; random is what others are held against"
    )
    seeds: tuple[int, ...] = option((0, 1, 2), "of an experiment: loops a strategy")
    target_gap: float = option(0.02, "labels are counted to the whole pool's score minus this")
    clusters: int = option(20, "k-means clusters of the cold start and of hybrid")
    passes: int = option(5, "stochastic passes of the dropout strategy")
    dropout: float = option(0.1, "probability in these passes")
    member: str = option("lora", "preset of the second adapter of the committee strategy")
    member_options: dict[str, Any] = field(default_factory=dict)
    """Settings of that preset; with ``task.adapter=lora`` r=8, ``{rank: 16}``."""
    output: Path | None = option(None, "run folder; one that holds the same run goes on")

    def __post_init__(self) -> None:
        if unknown := [name for name in self.strategies if name not in STRATEGIES]:
            raise ConfigError(f"strategies: {unknown[0]!r} is unknown; choose from {', '.join(STRATEGIES)}.")
        if not self.strategies or not self.seeds:
            raise ConfigError(
                "give one strategy and one seed or more, such as --strategies random,badge --seeds 0,1,2."
            )
        if self.mode == "sheet" and self.pool is None:
            raise ConfigError("--mode sheet needs --pool: what is to be labelled?")
        if (self.pool is None) != (self.test is None) and self.mode == "oracle":
            raise ConfigError("give --pool and --test together, or neither.")
        if self.filled is not None and (self.mode != "sheet" or self.output is None):
            raise ConfigError("--filled belongs to --mode sheet and to the --output of the run that wrote the sheet.")


class Loop:
    """One strategy with one seed: its learner, and the models it trains, kept in its folder."""

    def __init__(self, config: Config, encoder, pool: Manifest, test: Manifest | None, folder: Path, loop: LoopConfig):
        from speech_adapters.runs.folder import RunFolder

        self.config, self.encoder, self.test, self.task = config, encoder, test, config.task
        self.learner = ActiveLearner(pool, loop, folder)
        self.run = RunFolder(folder)
        key = self.task.label_field
        self.labels = () if self.task.task == "asr" else tuple(config.labels) or pool.values(key)

    @property
    def key(self) -> str:
        """What a label is."""
        return self.task.required[0]

    def next_round(self):
        """The round that waits for labels, after whatever training is still owed; None when the loop is over."""
        if self.learner.waits_for_score:
            self.train()
        return self.learner.next_round(self.view)

    def train(self) -> None:
        """Train on all labels so far, keep the model, report its score."""
        labelled, number = self.learner.labelled, self.learner.rounds_done
        name, seed, score = f"round{number}", self.learner.config.seed, None
        model = self._trained(self.task, labelled, f"{name}-{ADAPTER}", seed, self.config.start)
        if self.learner.config.strategy == "committee":
            member = replace(self.task, adapter=self.config.member, adapter_options=self.config.member_options)
            self._trained(member, labelled, f"{name}-{MEMBER}", seed)
        if self.test is not None:
            metric = self.task.metrics([self.task.score(model, self.test)])[self.task.metric]["value"]
            score = 1 - metric if self.task.metric == "wer" else metric
        self.learner.report(score, utterances=len(labelled), hours=labelled.hours)

    def _trained(self, task: Downstream, labelled: Manifest, name: str, seed: int, start: Path | None = None):
        model = task.train(
            self.encoder,
            task.head(labelled, self.labels),
            labelled,
            self.run,
            name,
            seed,
            start,
            pool=self.learner.pool,
        )
        model.save_adapter(ADAPTER, self.run.adapter(name))
        model.save_head(task.task, self.run.head(name))
        return model

    def model(self, kind: str = ADAPTER):
        """The model of the last scored round; the frozen base before the first."""
        from speech_adapters import SpeechAdapterModel

        model = SpeechAdapterModel(copy.deepcopy(self.encoder))
        if rounds := self.learner.rounds_done:
            model.load_adapter(self.run.adapter(f"round{rounds - 1}-{kind}"))
            model.load_head(self.run.head(f"round{rounds - 1}-{kind}"))
        return model.eval()

    def view(self) -> PoolView:
        """What the last model says of the pool."""
        from speech_adapters.active.pool_predictions import committee_disagreement, dropout_disagreement, observe

        config, learner, model = self.config, self.learner, self.model()
        pool, labelled = learner.unlabelled, learner.labelled
        options = {"batch_seconds": 2 * self.task.training.batch_seconds}
        cached = None
        if self.task.training.cache is not None:  # passes with dropout, which begins below, read the waveforms
            cached = self.task.cached(model, learner.pool)
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


def experiment(config: Config, encoder, pool: Manifest, test: Manifest, run) -> dict[str, Any]:
    """Every strategy and seed, the whole pool, and what is said about them."""
    from speech_adapters.active.curves import Curve, area_difference, over_seeds

    curves = {}
    for strategy in config.strategies:
        runs = []
        for seed in config.seeds:
            loop = replace(config.loop, strategy=strategy, seed=seed)
            runs.append(
                Loop(config, encoder, pool, test, run.path / "loops" / f"{strategy}-seed{seed}", loop).oracle()
            )
            print(f"{strategy} seed {seed}: " + ", ".join(f"{x:.0f}: {100 * y:.1f}" for x, y in runs[-1]))
        curves[strategy] = Curve.of(runs)
    full = []
    for seed in config.seeds:  # one round that labels everything
        total = sum(u.duration for u in pool) if config.loop.unit == "seconds" else len(pool)
        everything = LoopConfig(
            strategy="random",
            budget=total,
            unit=config.loop.unit,
            initial=1.0,
            cold_start="random",
            rounds=1,
            seed=seed,
        )
        full.append(
            Loop(config, encoder, pool, test, run.path / "loops" / f"full-seed{seed}", everything).oracle()[-1]
        )
    whole = over_seeds([score for _, score in full])
    target = whole.value - config.target_gap
    figures = {
        name: {
            "metrics": {
                "area": curve.area().to_dict(),
                "labels_to_reach": curve.labels_to_reach(target),
                "final": over_seeds(curve.scores[:, -1]).to_dict(),
            },
            "curve": [{"labels": x, **interval.to_dict()} for x, interval in curve.points],
            **(
                {"area_minus_random": area_difference(curve, curves["random"]).to_dict()}
                if "random" in curves and name != "random"
                else {}
            ),
        }
        for name, curve in curves.items()
    }
    return {"strategies": figures, "full": {"labels": full[0][0], **whole.to_dict()}, "target": target}


def run_sheet(config: Config, encoder, pool: Manifest, test: Manifest | None, run) -> None:
    """Take in a filled sheet if one is given, train, and write the next round's sheet."""
    from speech_adapters.active.sheet import read_sheet, sheet_rows, write_sheet

    loop = Loop(config, encoder, pool, test, run.path / "loops" / "people", config.loop)
    learner = loop.learner
    if config.filled is not None:
        if learner.pending is None:
            raise ConfigError(
                f"--filled {config.filled}: no round waits for labels; run without it for the next sheet."
            )
        learner.label(read_sheet(config.filled, learner.pending.picks, loop.key, loop.labels))
    turn = loop.next_round()
    if turn is None:
        labelled = learner.labelled
        labelled.write(run.path / "labelled.jsonl")
        last = f"round{learner.rounds_done - 1}-{ADAPTER}"
        print(f"The loop is over: {labelled.summary()}\nlabels  {run.path / 'labelled.jsonl'}\n"
              f"adapter {loop.run.adapter(last)}\nhead    {loop.run.head(last)}")  # fmt: skip
        return
    view, folder = loop.view(), run.path / f"round{turn.number}"
    picks = Manifest(turn.picks, "picks")
    from speech_adapters.active.pool_predictions import observe

    observed = observe(loop.model(), picks)
    rows = sheet_rows(turn.picks, picks, observed, learner.labelled, view.labelled, loop.key)
    page = write_sheet(folder, rows, loop.key, loop.labels)
    print(f"Round {turn.number} ({turn.stage}, {turn.strategy}): {picks.summary()}\nsheet   {page}\n"
          f"Label it, then: --output {run.path} --filled FILE")  # fmt: skip


def read_data(config: Config) -> tuple[Manifest, Manifest | None]:
    """The pool and the test set."""
    labels = config.task.required
    if config.pool is None:
        from speech_adapters.corpora.demo import prepare_demo

        print("No data was named: using the demo corpus (synthetic speech). See --help for real ones.\n")
        demo = prepare_demo()
        return Manifest.read(demo.train, labels), Manifest.read(demo.test, labels)
    pool = Manifest.read(config.pool, labels if config.mode == "oracle" else (), check_files=True)
    test = None if config.test is None else Manifest.read(config.test, labels, check_files=True)
    if config.mode == "sheet" and config.task.task != "asr" and not config.labels and not pool.values(labels[0]):
        raise ConfigError(
            "--mode sheet needs --labels, such as --labels angry,happy,sad: the pool does not tell them."
        )
    return pool, test


def main(argv: list[str] | None = None) -> None:
    config = parse_cli(Config, argv, presets=PRESETS, default_preset="demo", description=__doc__)
    import torch

    from speech_adapters.active.curve_report import curve_page, curve_table
    from speech_adapters.data.batches import check_before_training
    from speech_adapters.encoders import load_encoder
    from speech_adapters.files import write_text
    from speech_adapters.reports.report import write_report
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder

    pool, test = read_data(config)
    encoder = load_encoder(config.encoder, device="cuda" if torch.cuda.is_available() else "cpu")
    check_before_training(pool, encoder)
    run = RunFolder.resume_or_create("active_learning", config, config.output, ignore=("output", "filled"))
    print(f"{encoder!r}\npool  {pool.summary()}\nrun   {run.path}\n")
    if config.mode == "sheet":
        return run_sheet(config, encoder, pool, test, run)

    found = experiment(config, encoder, pool, test, run)
    own = next((name for name in config.strategies if name != "random"), "random")
    score = "word accuracy" if config.task.metric == "wer" else "UA"
    run.write_results({
        "task": f"active learning, {config.task.task}",
        "encoder": config.encoder,
        "adapter": own,
        "score": score,
        "unit": config.loop.unit,
        "data": {"pool": pool.describe(), "test": test.describe()},
        **found["strategies"][own],
        "baselines": {name: figures for name, figures in found["strategies"].items() if name != own},
        "full": found["full"],
        "target": found["target"],
        "seeds": list(config.seeds),
        **environment(),
    })  # fmt: skip
    write_text(run.path / "curves.html", curve_page(found, config.loop.unit, score))
    print(curve_table(found, config.loop.unit, score))
    print(f"\nreport  {write_report(run.path)}\ncurves  {run.path / 'curves.html'}")
    return None


if __name__ == "__main__":
    run_main(main)
