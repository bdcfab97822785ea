"""Compare runs: their figures side by side, and whether their differences are more than chance.

speech-adapters compare runs/a runs/b        a difference is paired where both runs kept what they predicted
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_adapters.errors import ConfigError, InputError

if TYPE_CHECKING:
    from speech_adapters.metrics.bootstrap import Interval
    from speech_adapters.metrics.wer import WERResult
    from speech_adapters.runs.results import Results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="run", help="run folders with results.json")


def run(arguments: argparse.Namespace) -> None:
    """The table, and a line per pair."""
    from speech_adapters.reports.summary import summary_table
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import Results

    if len(arguments.runs) < 2:
        raise ConfigError("give two runs or more")
    found: dict[str, tuple[Path, Results]] = {}
    for folder in arguments.runs:
        results = Results.read(RunFolder(folder).results_file)
        found[f"{folder}: {results.adapter}"] = (folder, results)
    tasks = sorted({results.task for _, results in found.values()})
    if len(tasks) > 1:
        raise ConfigError(f"the runs are of different tasks ({', '.join(tasks)}); compare runs of one")
    print(summary_table([{"method": name, **results.own.to_dict()} for name, (_, results) in found.items()]))
    hashes = {_test_hash(results) for _, results in found.values()}
    if len(hashes) > 1:
        print("\nscored on different test sets: the figures say nothing about which is better")
        return
    print()
    for (one, a), (other, b) in combinations(found.items(), 2):
        print(f"{one}\n  - {other}\n  = {_difference(a, b)}")


def _test_hash(results: Results) -> Any:
    return (results.data.get("test") or {}).get("sha256")


def _difference(a: tuple[Path, Results], b: tuple[Path, Results]) -> str:
    try:
        metric, interval = _paired(_predictions(*a), _predictions(*b))
    except InputError as error:
        return f"not paired, look at the intervals above ({error})"
    said = "no difference beyond chance" if interval.low <= 0 <= interval.high else "a difference"
    return f"{metric} {interval.percent()}: {said} (paired, 95 % interval)"


def _predictions(folder: Path, results: Results) -> list[Path]:
    """The files of the run's own adapter, one per fold and seed."""
    name = results.adapter.replace("+", "-")
    every = sorted((folder / "predictions").glob("*.jsonl"))
    own = [file for file in every if file.stem == name or file.stem.startswith((f"{name}-fold", f"{name}-seed"))]
    single = [folder / "predictions.jsonl"] if (folder / "predictions.jsonl").is_file() else []
    if files := own or single or (every if len(every) == 1 else []):
        return files
    raise InputError(f"{folder}: no predictions were kept")


def _paired(a: list[Path], b: list[Path]) -> tuple[str, Interval]:
    """The metric and the difference of two runs' predictions, those of all folds and seeds taken together."""
    if len(a) != len(b):
        raise InputError(f"{len(a)} and {len(b)} trainings: give runs of as many folds and seeds")
    with a[0].open(encoding="utf-8") as file:
        is_text = '"hypothesis"' in file.readline()
    if is_text:
        from speech_adapters.metrics.wer import compare

        return "WER", compare(_transcripts(a), _transcripts(b))
    from speech_adapters.data.predictions import read_predictions
    from speech_adapters.metrics.classification import ClassificationResult, compare_ua

    one, other = (ClassificationResult.combine([read_predictions(file) for file in files]) for files in (a, b))
    return "UA", compare_ua(one, other)


def _transcripts(files: list[Path]) -> WERResult:
    from speech_adapters.data.transcripts import read_transcripts

    results = [read_transcripts(file) for file in files]
    scores = [
        replace(score, id=f"{number} {score.id}") for number, one in enumerate(results) for score in one.utterances
    ]
    return replace(results[0], utterances=tuple(scores))
