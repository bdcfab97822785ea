"""Runs side by side: the table of their figures, each pair's difference, and what to listen to.

Of a run its own adapter's predictions are compared, those of all folds and seeds taken together; of a run alone, those
of each of its methods with its own adapter's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.predictions import read_predictions
from speech_adapters.data.score_files import read_scores
from speech_adapters.data.transcripts import read_transcripts
from speech_adapters.data.trials import read_speakers, read_trials
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import write_text
from speech_adapters.metrics.classification import ClassificationResult
from speech_adapters.metrics.comparison import (
    Change,
    Comparison,
    TrialScores,
    compare_classes,
    compare_transcripts,
    compare_trials,
    correct,
)
from speech_adapters.metrics.wer import WERResult
from speech_adapters.reports.page import Cell, Table, render
from speech_adapters.reports.report import method_table
from speech_adapters.reports.sound import Sound, sound_of
from speech_adapters.reports.summary import summary_table
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.results import Results


@dataclass(frozen=True)
class Run:
    """A run to compare: its folder, a name that tells it from the others, and its results."""

    folder: Path
    name: str
    results: Results

    @property
    def row(self) -> dict[str, Any]:
        """For the table of figures."""
        return {"method": self.name, **self.results.own.to_dict()}


@dataclass(frozen=True)
class PairOfRuns:
    """Two runs and how they differ, or why that cannot be said."""

    a: Run
    b: Run
    found: Comparison | None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """In one sentence."""
        found = self.found
        if found is None:
            return f"not paired, look at the intervals above ({self.reason})"
        if not found.differs:
            return "no difference beyond chance"
        return f"{self.a.name if found.a_is_better else self.b.name} is better"

    @property
    def figures(self) -> str:
        """Difference, p-value, wins, ties and losses."""
        found = self.found
        if found is None:
            return ""
        return (
            f"{found.metric.upper()} {found.difference.percent(2)}, p = {found.p_value:.3g}, {found.items} won "
            f"{found.wins}, tied {found.ties}, lost {found.losses}"
        )


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in order, each under a name of its own; of a single one its methods, each as if it were a run.

    Raises:
        ConfigError: none, a single one with one method, or runs of different tasks.
        InputError: a run that did not finish.
    """
    if not folders:
        raise ConfigError("give a run whose methods are to be compared, or several runs")
    if len(folders) == 1:
        return _methods(Path(folders[0]))
    found = [(Path(folder), Results.read(RunFolder(folder).results_file)) for folder in folders]
    tasks = sorted({results.task for _, results in found})
    if len(tasks) > 1:
        raise ConfigError(f"the runs are of different tasks ({', '.join(tasks)}); compare runs of one")
    return [Run(folder, f"{folder}: {results.adapter}", results) for folder, results in found]


def _methods(folder: Path) -> list[Run]:
    results = Results.read(RunFolder(folder).results_file)
    methods = {results.adapter: results.own, **results.baselines}
    if len(methods) == 1:
        raise ConfigError(f"{folder}: {results.adapter} is its only method; give two runs or more")
    return [Run(folder, name, replace(results, adapter=name, own=own)) for name, own in methods.items()]


def same_test_set(runs: Sequence[Run]) -> bool:
    """Whether all were scored on the same test set, by its hash."""
    return len({(run.results.data.get("test") or {}).get("sha256") for run in runs}) == 1


def compare_runs(runs: Sequence[Run], *, against: str | None = None, seed: int = 0) -> list[PairOfRuns]:
    """Every pair of runs; of a run alone, the method ``against`` (its own adapter) with each other, since fifteen
    methods are a hundred pairs. p-values hold for all pairs together (Holm).

    Raises:
        ConfigError: ``against`` is no method of a run alone.
    """
    pairs = []
    for a, b in _pairs_of(runs, against):
        try:
            pairs.append(PairOfRuns(a, b, _compare(_predictions(a), _predictions(b), seed)))
        except InputError as error:
            pairs.append(PairOfRuns(a, b, None, str(error)))
    corrected = iter(correct([pair.found for pair in pairs if pair.found is not None]))
    return [pair if pair.found is None else replace(pair, found=next(corrected)) for pair in pairs]


def _pairs_of(runs: Sequence[Run], against: str | None) -> list[tuple[Run, Run]]:
    if len({run.folder for run in runs}) > 1:
        if against is not None:
            raise ConfigError(f"against {against}: it names a method of one run; leave it out for several")
        return list(combinations(runs, 2))
    names = [run.name for run in runs]
    if against is not None and against not in names:
        raise ConfigError(f"{runs[0].folder}: no method {against!r} in it; choose from {', '.join(names)}")
    one = runs[0 if against is None else names.index(against)]  # the run's own adapter is the first
    return [(one, other) for other in runs if other is not one]


def _unpaired(pairs: Sequence[PairOfRuns]) -> list[list[PairOfRuns]]:
    """The pairs of which nothing can be said, those of one run and for one reason together."""
    groups: dict[tuple[str, str], list[PairOfRuns]] = {}
    for pair in pairs:
        if pair.found is None:
            groups.setdefault((pair.a.name, pair.reason), []).append(pair)
    return list(groups.values())


def comparison_text(runs: Sequence[Run], pairs: Sequence[PairOfRuns], listen: int = 5) -> str:
    """For the terminal: the table, each pair's verdict, and up to ``listen`` utterances that changed."""
    lines, letters = [summary_table([run.row for run in runs])], _letters(runs)
    wide = max(len("said"), *map(len, letters.values()))
    for pair in pairs:
        if pair.found is None:
            continue
        a, b = letters[pair.a.name], letters[pair.b.name]
        lines += ["", f"{a}  {pair.a.name}", f"{b}  {pair.b.name}", f"  = {pair.verdict}", f"    {pair.figures}"]
        if pair.found.warning:
            lines.append(f"    warning: {pair.found.warning}")
        for change in pair.found.changes[:listen]:
            better = f"{abs(change.gain):g} {'better' if change.gain > 0 else 'worse'}" if change.gain else "other"
            lines.append(f"    {change.id} ({better})")
            heard = {"said": change.reference, a: change.a or "(nothing)", b: change.b or "(nothing)"}
            lines += [f"      {who:{wide}s}  {text}" for who, text in heard.items()]
    for group in _unpaired(pairs):
        lines += ["", f"{group[0].a.name} with {', '.join(pair.b.name for pair in group)}: {group[0].verdict}"]
    return "\n".join(lines)


def write_comparison(
    path: str | os.PathLike[str],
    runs: Sequence[Run],
    pairs: Sequence[PairOfRuns],
    *,
    listen: int = 20,
    most_audio_bytes: int = 12_000_000,
) -> Path:
    """Write the page: complete in itself, with players of what changed where the test set's audio is found."""
    audio, left, changes = _test_audio(runs), most_audio_bytes, []
    for pair in pairs:
        shown: list[tuple[Change, Sound]] = []
        for change in () if pair.found is None else pair.found.changes[:listen]:
            utterance = audio.get(change.id) or audio.get(change.id.partition(" ")[2])  # "2 id", "enrol test"
            sound = (
                Sound()
                if utterance is None
                else sound_of(utterance.audio_filepath, utterance.offset, utterance.duration, utterance.channel, left)
            )
            left -= sound.size
            shown.append((change, sound))
        changes.append((pair, shown))
    letters = _letters(runs)
    page = render(
        "comparison.html.j2",
        letters=letters,
        title=f"{runs[0].results.task}: {len(runs)} compared",
        methods=method_table([run.row | {"method": letters[run.name]} for run in runs]),
        pairs=_pair_table(pairs, letters),
        warnings=sorted({pair.found.warning for pair in pairs if pair.found is not None and pair.found.warning}),
        changes=changes,
    )
    write_text(path, page)
    return Path(path)


def _pair_table(pairs: Sequence[PairOfRuns], letters: Mapping[str, str]) -> Table:
    titles = ["runs", "verdict", "difference %", "p", "won", "tied", "lost", "speakers"]
    rows = []
    for pair in pairs:
        found = pair.found
        if found is None:
            continue
        a, b, d = letters[pair.a.name], letters[pair.b.name], found.difference
        rows.append(
            [
                Cell(f"{a} minus {b}"),
                Cell(pair.verdict.replace(pair.a.name, a).replace(pair.b.name, b)),
                Cell(f"{100 * d.value:+.2f}", f"[{100 * d.low:+.2f}, {100 * d.high:+.2f}]"),
                Cell(f"{found.p_value:.3g}"),
                *(Cell(str(count)) for count in (found.wins, found.ties, found.losses, found.speakers)),
            ]
        )
    for group in _unpaired(pairs):
        others = ", ".join(letters[pair.b.name] for pair in group)
        rows.append([Cell(f"{letters[group[0].a.name]} minus {others}"), Cell(group[0].verdict), *[Cell("")] * 6])
    return Table(titles, rows, [False, False, True, True, True, True, True, True])


def _letters(runs: Sequence[Run]) -> dict[str, str]:
    """A short name for each run: A, B, ... Z, A1, ..."""
    return {run.name: chr(65 + i % 26) + (str(i // 26) if i >= 26 else "") for i, run in enumerate(runs)}


def _predictions(run: Run) -> list[Path]:
    """The files of the run's own adapter, one per fold and seed: what it said, or its scores of trials."""
    name, folder = run.results.adapter.replace("+", "-"), run.folder
    every = sorted([*(folder / "predictions").glob("*.jsonl"), *(folder / "scores").glob("*.txt")])
    own = [file for file in every if file.stem == name or file.stem.startswith((f"{name}-fold", f"{name}-seed"))]
    single = [folder / "predictions.jsonl"] if (folder / "predictions.jsonl").is_file() else []
    if files := own or single or (every if len(every) == 1 else []):
        return files
    raise InputError(f"{folder}: no predictions of {run.results.adapter} were kept")


def _compare(a: list[Path], b: list[Path], seed: int) -> Comparison:
    if a[0].suffix == b[0].suffix == ".txt":  # means over trainings, of which an untrained system has one
        return compare_trials(_trials(a), _trials(b), seed=seed)
    if len(a) != len(b):
        raise InputError(f"{len(a)} and {len(b)} trainings: give runs of as many folds and seeds")
    with a[0].open(encoding="utf-8") as file:
        is_text = '"hypothesis"' in file.readline()
    if is_text:
        return compare_transcripts(_transcripts(a), _transcripts(b), seed=seed)
    one, other = (ClassificationResult.combine([read_predictions(file) for file in files]) for files in (a, b))
    return compare_classes(one, other, seed=seed)


def _trials(files: list[Path]) -> TrialScores:
    path = RunFolder(files[0].parent.parent).trials_file
    if not path.is_file():
        raise InputError(f"{path.parent}: from before runs kept their trials; score them again")
    trials = read_trials(path, allow_repeats=True)
    scores = np.stack([read_scores(file, trials) for file in files])
    names = tuple(f"{trial.enrol} {trial.test}" for trial in trials)
    return TrialScores(scores, trials.labels, names, read_speakers(path))


def _transcripts(files: list[Path]) -> WERResult:
    results = [read_transcripts(file) for file in files]
    if len(results) == 1:
        return results[0]
    scores = [
        replace(score, id=f"{number} {score.id}") for number, one in enumerate(results, 1) for score in one.utterances
    ]
    return replace(results[0], utterances=tuple(scores))


def _test_audio(runs: Sequence[Run]) -> dict[str, Utterance]:
    """The test set's utterances by id, where a run's configuration names a manifest that is still there."""
    for run in runs:
        try:
            config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
            return {utterance.id: utterance for utterance in Manifest.read(config["test"])}
        except (OSError, LookupError, TypeError, yaml.YAMLError, InputError):
            continue
    return {}
