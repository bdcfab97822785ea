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

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speech_adapters.active.experiment import ActiveConfig
from speech_adapters.config import is_run, option, parse_cli, run_main
from speech_adapters.data.corpus_check import check_apart
from speech_adapters.data.manifest import Channel, Manifest
from speech_adapters.errors import ConfigError, counted

PRESETS = {path.stem: path for path in (Path(__file__).parent / "active_learning").glob("*.yaml")}


@dataclass(kw_only=True)
class Config(ActiveConfig):
    """Active learning on one pool."""

    pool: Path | None = option(None, "manifest to choose from; for an experiment with its labels", file=True)
    test: Path | None = option(None, "labelled manifest to score on", file=True)
    channel: Channel | None = option(
        None, "heard of files with several, where a line does not say it: a number, or mix"
    )
    mode: Literal["oracle", "sheet"] = option("oracle", "oracle: an experiment; sheet: people label")
    filled: Path | None = option(
        None,
        "a filled labelling sheet (.jsonl or .csv), of the round that waits, or a corrected one before",
        file=True,
    )
    output: Path | None = option(None, "run folder; one that holds the same run goes on")
    resume: str | None = option(None, "latest, or a run folder: go on with that run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "sheet" and self.pool is None:
            raise ConfigError("--mode sheet needs --pool: what is to be labelled?")
        if (self.pool is None) != (self.test is None) and self.mode == "oracle":
            raise ConfigError("give --pool and --test together, or neither.")
        if self.filled is not None and (self.mode != "sheet" or (self.output is None and self.resume is None)):
            raise ConfigError("--filled belongs to --mode sheet and to the --output of the run that wrote the sheet.")


def take_in(config: Config, loop) -> None:
    """Take in the filled sheet, of the round that waits or of one before, and say what was skipped or corrected."""
    from speech_adapters.active.sheet import SKIP, read_sheet

    if not loop.learner.rounds:
        raise ConfigError(f"--filled {config.filled}: no round waits for labels; run without it for the next sheet.")
    *earlier, last = (turn.picks for turn in loop.learner.rounds)
    before = loop.learner.said
    labels = read_sheet(config.filled, last, loop.key, loop.labels, earlier)
    changed = loop.label(labels, str(config.filled))
    if changed is None:
        if skipped := sum(said is None for said in labels.values()):
            print(f"skipped {counted(skipped, 'utterance')}, not asked again")
        return
    if not changed:
        print(f"{config.filled}: taken in before, and nothing in it has changed")
    for name in sorted(changed):
        was, now = (SKIP if said is None else said[loop.key] for said in (before[name], labels[name]))
        print(f"corrected {name}: {was} -> {now}")


def run_sheet(config: Config, encoder, pool: Manifest, test: Manifest | None, run) -> None:
    """Take in a filled sheet if one is given, train, and write the next round's sheet, unless it is there: somebody
    may be filling it in."""
    from speech_adapters.active.experiment import LabellingLoop
    from speech_adapters.active.pool_predictions import observe
    from speech_adapters.active.sheet import SKIP, sheet_rows, write_sheet

    loop = LabellingLoop(config, encoder, pool, test, run.path / "loops" / "people", config.loop)
    learner = loop.learner
    if config.filled is not None:
        take_in(config, loop)
    turn = loop.next_round()
    if turn is None:
        labelled = learner.labelled
        labelled.write(run.path / "labelled.jsonl")
        print(f"The loop is over: {labelled.summary()}\nlabels  {run.path / 'labelled.jsonl'}\n"
              f"adapter {loop.run.adapter(loop.last)}\nhead    {loop.run.head(loop.last)}")  # fmt: skip
        if learner.corrected:
            print("note: labels were corrected after this adapter was trained; train anew on labelled.jsonl")
        return
    folder, picks = run.path / f"round{turn.number}", Manifest(turn.picks, "picks")
    page = folder / "sheet.html"
    if not page.exists():
        view, observed = loop.view(), observe(loop.model(), picks)
        rows = sheet_rows(turn.picks, picks, observed, learner.labelled, view.labelled, loop.key)
        write_sheet(folder, rows, loop.key, loop.labels)
    print(f"Round {turn.number} ({turn.stage}, {turn.strategy}): {picks.summary()}\nsheet   {page}\n"
          f"Label it ({SKIP} where that cannot be done), then: --output {run.path} --filled FILE")  # fmt: skip


def read_data(config: Config) -> tuple[Manifest, Manifest | None]:
    """The pool and the test set."""
    labels = config.task.required
    if config.pool is None:
        from speech_adapters.corpora.demo import prepare_demo

        print("No data was named: using the demo corpus (synthetic speech). See --help for real ones.\n")
        demo = prepare_demo()
        return Manifest.read(demo.train, labels), Manifest.read(demo.test, labels)
    pool = Manifest.read(
        config.pool, labels if config.mode == "oracle" else (), check_files=True, channel=config.channel
    )
    test = (
        None if config.test is None else Manifest.read(config.test, labels, check_files=True, channel=config.channel)
    )
    if config.mode == "sheet" and config.task.task != "asr" and not config.labels and not pool.values(labels[0]):
        raise ConfigError(
            "--mode sheet needs --labels, such as --labels angry,happy,sad: the pool does not tell them."
        )
    begun = config.resume is not None or (config.output is not None and is_run(config.output))
    if test is not None and not begun:  # a loop that has labels goes on: its data can no more be changed
        check_apart(pool, test)
    return pool, test


def main(argv: list[str] | None = None) -> None:
    config = parse_cli(Config, argv, presets=PRESETS, description=__doc__, recipe="active_learning")
    import torch

    from speech_adapters.active.curve_report import curve_page, curve_table
    from speech_adapters.active.experiment import compare_strategies
    from speech_adapters.encoders import load_encoder
    from speech_adapters.files import write_text
    from speech_adapters.heads.base import check_audible
    from speech_adapters.reports.report import write_report
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import Results

    pool, test = read_data(config)
    encoder = load_encoder(config.encoder, device="cuda" if torch.cuda.is_available() else "cpu")
    check_audible(pool, encoder)
    config.check_adapters(encoder, config.strategies if config.mode == "oracle" else (config.loop.strategy,))
    if config.mode == "oracle":
        config.task.check(pool, test, encoder)
    elif test is not None:
        config.task.check_test(test, encoder, config.classes(pool))
    data = {name: manifest.describe() for name, manifest in (("pool", pool), ("test", test)) if manifest is not None}
    known = {"ignore": ("filled",), "data": data, "base": encoder.identity}
    run = RunFolder.open("active_learning", config, config.output, resume=config.resume, **known)
    print(f"{encoder!r}\npool  {pool.summary()}\nrun   {run.path}\n")
    if config.mode == "sheet":
        return run_sheet(config, encoder, pool, test, run)

    figures, compared = compare_strategies(config, encoder, pool, test, run.path / "loops")
    own = next((name for name in config.strategies if name != "random"), "random")
    score = "word accuracy" if config.task.metric == "wer" else "UA"
    Results(
        task=f"active learning, {config.task.task}",
        encoder=config.encoder,
        adapter=own,
        data=data,
        own=figures[own],
        baselines={name: entry for name, entry in figures.items() if name != own},
        seeds=list(config.seeds),
        more={"score": score, "unit": config.loop.unit, **compared},
    ).write(run.results_file)
    found = {"strategies": {name: entry.to_dict() for name, entry in figures.items()}, **compared}
    write_text(run.path / "curves.html", curve_page(found, config.loop.unit, score))
    print(curve_table(found, config.loop.unit, score))
    print(f"\nreport  {write_report(run.path)}\ncurves  {run.path / 'curves.html'}")
    return None


if __name__ == "__main__":
    run_main(main)
