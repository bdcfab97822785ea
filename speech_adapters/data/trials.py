"""Speaker-verification trial lists and enrolment maps: reading, checks, and what their names stand for.

A trial list has VoxCeleb's format, ``1 enrol test`` per line (1: same speaker, 0: different speakers), or the label
last (``enrol test target``, as Kaldi has it: its first line says which), or is a table (CSV, TSV, JSON Lines) with the
columns ``label``, ``enrol`` and ``test`` or their usual other names. ``enrol`` and ``test`` name utterances, by id or
by audio path; with an enrolment map, ``model utterance utterance ...`` per line, ``enrol`` names a model made from
several utterances. Names with spaces need tabs between the columns, or a table. Lists are held as integer arrays, 13
bytes per trial, so that tens of millions fit. Errors start with ``file:line``.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path, PurePath

import numpy as np

from speech_adapters.data.audio_suffixes import READABLE, UNREADABLE
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.records import Names, is_table, read_records
from speech_adapters.data.text_files import check_no_utf16, reading
from speech_adapters.errors import ManifestError
from speech_adapters.files import write_text


@dataclass(frozen=True)
class Trial:
    """One verification trial: is ``test`` spoken by the speaker of ``enrol``? ``label`` is 1 for yes, 0 for no."""

    label: int
    enrol: str
    test: str


@dataclass(frozen=True, eq=False)
class TrialList(Sequence[Trial]):
    """Trials as arrays; trial i compares ``enrol_names[enrol[i]]`` with ``test_names[test[i]]``.

    Attributes:
        enrol_names, test_names: each name once.
        enrol, test: (n,) int32. labels: (n,) boolean. lines: (n,) int32 lines of the file, for messages.
        name: where it came from; opens error messages.
        allow_repeats: whether a pair may be there twice, under one spelling or two.
    """

    enrol_names: tuple[str, ...]
    test_names: tuple[str, ...]
    enrol: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    name: str = "trials"
    allow_repeats: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Trial:  # type: ignore[override]  # slices are not needed
        names = self.enrol_names[self.enrol[index]], self.test_names[self.test[index]]
        return Trial(int(self.labels[index]), *names)

    def __iter__(self) -> Iterator[Trial]:
        return (self[index] for index in range(len(self)))

    def error(self, index: int, message: str) -> ManifestError:
        """An error about trial ``index``, to be raised."""
        return ManifestError(f"{self.name}:{self.lines[index]}: {message}")


@dataclass(frozen=True)
class Enrolment:
    """Which utterances make up each model, and the line that says so."""

    models: dict[str, tuple[str, ...]]
    lines: dict[str, int]
    name: str


@dataclass(frozen=True)
class ResolvedTrials:
    """Trials whose names have been found among N utterances.

    Attributes:
        models: for each of ``trials.enrol_names`` the numbers of its utterances. tests: for each of
            ``trials.test_names`` the number of its utterance.
    """

    trials: TrialList
    models: tuple[tuple[int, ...], ...]
    tests: np.ndarray

    def utterances(self) -> np.ndarray:
        """The numbers of the utterances that the trials need, ascending."""
        return np.unique([*self.tests, *(number for model in self.models for number in model)])


def read_rows(path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the columns of each line of a text file that is not blank.

    White space is between columns; of a line with two tabs or more, these alone, so that names may have spaces.
    """
    with reading(path, what), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                check_no_utf16(path, raw, what)
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            columns = line.split("\t") if line.strip().count("\t") > 1 else line.split()
            if columns := [column.strip() for column in columns if column.strip()]:
                yield number, columns


LABELS = {"1": True, "target": True, "true": True, "0": False, "nontarget": False, "non-target": False, "false": False}
"""What a trial's label may be."""

COLUMNS: Names = {
    "label": ("target", "is_target", "same", "same_speaker", "key"),
    "enrol": ("enroll", "enrolment", "enrollment", "model", "modelid", "utt1", "file1", "wav1", "path1", "id1"),
    "test": ("segment", "segmentid", "utt2", "file2", "wav2", "path2", "id2"),
}
"""Keys of a table of trials, and the names that tools give them."""


def read_trials(
    path: str | os.PathLike[str], *, allow_repeats: bool = False, columns: Mapping[str, str] | None = None
) -> TrialList:
    """Read a trial list.

    Args:
        columns: key -> column of a table, where :data:`COLUMNS` does not have its name.

    Raises:
        ManifestError: with ``file:line``: not three columns, a label other than 0 or 1, a repeated pair (unless
            ``allow_repeats``), no trials, trials of one kind only.
    """
    path = Path(path)
    enrol_names: dict[str, int] = {}
    test_names: dict[str, int] = {}
    enrol, test, labels, lines = array("i"), array("i"), array("b"), array("i")
    for number, (label, first, second), place in _table(path, columns) if is_table(path) else _lines(path):
        if (same := LABELS.get(label.lower())) is None:
            expected = f"expected 1 or target (same speaker), or 0 or nontarget (different), in {place}"
            raise ManifestError(f"{path}:{number}: label {label!r}; {expected}")
        labels.append(same)
        enrol.append(enrol_names.setdefault(first, len(enrol_names)))
        test.append(test_names.setdefault(second, len(test_names)))
        lines.append(number)
    if not lines:
        raise ManifestError(f'{path}:1: empty trial list; write "1 enrol test" lines')
    trials = TrialList(
        tuple(enrol_names), tuple(test_names), np.frombuffer(enrol, np.int32), np.frombuffer(test, np.int32),
        np.frombuffer(labels, np.bool_), np.frombuffer(lines, np.int32), str(path), allow_repeats,
    )  # fmt: skip
    targets = int(np.count_nonzero(trials.labels))
    if targets in (0, len(trials)):
        kind, other = ("targets (1)", "non-targets (0)") if targets else ("non-targets (0)", "targets (1)")
        raise trials.error(-1, f"all {len(trials)} trials up to here are {kind}; error rates need {other} as well")
    if not allow_repeats:
        _check_repeats(trials, trials.enrol, trials.test)
    return trials


SPEAKERS = ("enrol_speaker", "test_speaker")
"""Columns of a table of trials whose speakers are known."""


def write_trials(
    path: str | os.PathLike[str], trials: TrialList, speakers: tuple[np.ndarray, np.ndarray] | None = None
) -> None:
    """Write a table (TSV) that :func:`read_trials` reads, and :func:`read_speakers` where ``speakers`` are given: of
    both sides of each trial, as numbers."""
    names, numbers = ("label", "enrol", "test"), () if speakers is None else speakers
    header = [*names, *(SPEAKERS if speakers is not None else ())]
    rows = zip(trials, zip(*numbers, strict=True) if numbers else repeat(()), strict=False)
    lines = ([trial.label, trial.enrol, trial.test, *both] for trial, both in rows)
    write_text(path, ("\t".join(map(str, line)) + "\n" for line in chain([header], lines)))


def read_speakers(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """(n,) the speakers of both sides of each trial of :func:`write_trials`; None where it was given none."""
    names: Names = dict.fromkeys(SPEAKERS, ())
    rows = [row for _, row in read_records(Path(path), "the trial list", names, (), None)]
    if not all(name in row for row in rows for name in SPEAKERS):
        return None
    first, second = (np.array([int(row[name]) for row in rows]) for name in SPEAKERS)
    return first, second


def _lines(path: Path) -> Iterator[tuple[int, tuple[str, str, str], str]]:
    """(line, (label, enrol, test), where the label stands); the label is last if it is on the first line."""
    last: bool | None = None
    for number, columns in read_rows(path, "trial list"):
        if len(columns) != 3:
            raise ManifestError(f'{path}:{number}: {len(columns)} columns, expected 3: "1 enrol test"')
        if last is None:
            last = columns[0].lower() not in LABELS and columns[2].lower() in LABELS
        first, second, third = columns
        yield number, (third, first, second) if last else (first, second, third), f"column {3 if last else 1}"


def _table(path: Path, said: Mapping[str, str] | None) -> Iterator[tuple[int, tuple[str, str, str], str]]:
    for number, row in read_records(path, "the trial list", COLUMNS, tuple(COLUMNS), said):
        for key in COLUMNS:
            if not isinstance(row.get(key), str | int):
                raise ManifestError(f"{path}:{number}: {key} is {row.get(key)!r}; each trial needs it")
        yield number, (str(row["label"]), str(row["enrol"]), str(row["test"])), "its column"


def read_enrolment(path: str | os.PathLike[str]) -> Enrolment:
    """Read an enrolment map, ``model utterance utterance ...`` per line.

    Raises:
        ManifestError: with ``file:line``: a model without utterances, a repeated model or utterance, no lines.
    """
    path = Path(path)
    models: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, (model, *utterances) in read_rows(path, "enrolment map"):
        where = f"{path}:{number}"
        if not utterances:
            raise ManifestError(f'{where}: model {model!r} has no utterances; write "model utterance utterance ..."')
        if model in models:
            raise ManifestError(f"{where}: model {model!r} repeats that of line {lines[model]}; join the two lines")
        if len(set(utterances)) < len(utterances):
            repeated = next(name for name in utterances if utterances.count(name) > 1)
            raise ManifestError(f"{where}: utterance {repeated!r} is there twice; name it once")
        models[model], lines[model] = tuple(utterances), number
    if not models:
        raise ManifestError(f'{path}:1: empty enrolment map; write "model utterance utterance ..." lines')
    return Enrolment(models, lines, str(path))


@dataclass(frozen=True)
class UtteranceIndex:
    """Finds utterances by id, or by audio path: ``a/b.wav`` is the one whose path ends so, or so but for the suffix.

    ``ids`` may be paths themselves, as in saved embeddings. ``name`` says where the utterances come from.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    name: str
    remedy: str = "add it there, or correct the name"
    _by_id: dict[str, int] = field(init=False, repr=False)
    _by_tail: dict[tuple[int, bool], dict[tuple[str, ...], int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_id", {identity: number for number, identity in enumerate(self.ids)})

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> UtteranceIndex:
        """The utterances of a manifest, numbered as they stand in it."""
        return cls([u.id for u in manifest], [u.audio_filepath.as_posix() for u in manifest], manifest.name)

    @classmethod
    def of_ids(cls, ids: Sequence[str], name: str) -> UtteranceIndex:
        """Utterances known by id alone; an id that is a path is found by its end as well."""
        return cls(ids, ids, name, "give the manifest of these ids too, which knows their paths, or correct the name")

    def find(self, name: str, error: Callable[[str], ManifestError]) -> int:
        """The number of an utterance; an unknown or ambiguous name raises ``error`` of what is wrong with it."""
        number = self._by_id.get(name)
        for with_suffix in (True, False):
            if number is None:
                number = self._find_tail(PurePath(name), with_suffix)
        if number is None:
            what = "neither as an id nor as the end of an audio path"
            raise error(f"utterance {name!r} is not in {self.name}, {what}; {self.remedy}")
        if number < 0:
            raise error(f"{name!r} is the end of several audio paths in {self.name}; name the utterance by its id")
        return number

    def _find_tail(self, name: PurePath, with_suffix: bool) -> int | None:
        """The number of the utterance whose path ends with ``name``; -1 for several."""

        def parts(path: PurePath) -> tuple[str, ...]:
            # of audio alone: the end of "call.speakerB" names a speaker
            audio = path.suffix.lower() in READABLE | UNREADABLE
            return path.with_suffix("").parts if audio and not with_suffix else path.parts

        if not name.name:  # "." or "/"
            return None
        length = len(name.parts)
        if (length, with_suffix) not in self._by_tail:
            tails: dict[tuple[str, ...], int] = {}
            for number, path in enumerate(self.paths):
                tail = parts(PurePath(path))[-length:]
                tails[tail] = -1 if tail in tails else number
            self._by_tail[length, with_suffix] = tails
        return self._by_tail[length, with_suffix].get(parts(name))


def resolve(trials: TrialList, index: UtteranceIndex, enrolment: Enrolment | None = None) -> ResolvedTrials:
    """Find what the names of ``trials`` stand for.

    Raises:
        ManifestError: with ``file:line``: an utterance or a model that is unknown, a test utterance that its model was
            made from, a pair that is repeated under other names.
    """

    def at(numbers: np.ndarray, name: int) -> Callable[[str], ManifestError]:
        return lambda message: trials.error(int(np.argmax(numbers == name)), message)

    def in_map(enrolment: Enrolment, model: str) -> Callable[[str], ManifestError]:
        return lambda message: ManifestError(f"{enrolment.name}:{enrolment.lines[model]}: {message}")

    models: list[tuple[int, ...]] = []
    for number, name in enumerate(trials.enrol_names):
        if enrolment is None:
            models.append((index.find(name, at(trials.enrol, number)),))
        elif name in enrolment.models:
            error = in_map(enrolment, name)
            models.append(tuple(index.find(utterance, error) for utterance in enrolment.models[name]))
        else:
            raise at(trials.enrol, number)(f"model {name!r} is not in {enrolment.name}; add its line there")
    tests = [index.find(name, at(trials.test, number)) for number, name in enumerate(trials.test_names)]
    resolved = ResolvedTrials(trials, tuple(models), np.array(tests))
    _check_apart(resolved, len(index.ids))
    if not trials.allow_repeats:
        first: dict[tuple[int, ...], int] = {}
        same = np.array([first.setdefault(tuple(sorted(model)), number) for number, model in enumerate(models)])
        _check_repeats(trials, same[trials.enrol], resolved.tests[trials.test])
    return resolved


def trial_speakers(resolved: ResolvedTrials, speakers: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray] | None:
    """(n,) each trial's speakers, of enrolment and test, as numbers; None where a speaker is unknown.

    Args:
        speakers: of the N utterances.

    Raises:
        ManifestError: with ``file:line``: a label that contradicts the speakers, a model of several speakers.
    """
    trials = resolved.trials
    if any(speakers[number] is None for number in resolved.utterances()):
        return None
    numbers: dict[str, int] = {}
    of = [numbers.setdefault(speaker, len(numbers)) if speaker is not None else -1 for speaker in speakers]
    for number, model in enumerate(resolved.models):
        if len({of[utterance] for utterance in model}) > 1:
            message = f"model {trials.enrol_names[number]!r} mixes several speakers; correct the enrolment map"
            raise trials.error(int(np.argmax(trials.enrol == number)), message)
    enrol = np.array([of[model[0]] for model in resolved.models], dtype=np.int32)[trials.enrol]
    test = np.array([of[number] for number in resolved.tests], dtype=np.int32)[trials.test]
    wrong = (enrol == test) != trials.labels
    if wrong.any():
        at, names = int(wrong.argmax()), tuple(numbers)
        who = f"{names[enrol[at]]!r} and {names[test[at]]!r}"
        message = f"label {int(trials.labels[at])}, but the speakers are {who}; correct the label or the manifest"
        raise trials.error(at, message)
    return enrol, test


def _check_apart(resolved: ResolvedTrials, count: int) -> None:
    """No trial compares a recording with itself: ``count`` utterances numbered from 0."""
    trials = resolved.trials
    used = [number * count + utterance for number, model in enumerate(resolved.models) for utterance in model]
    same = np.isin(trials.enrol.astype(np.int64) * count + resolved.tests[trials.test], used)
    if same.any():
        at = int(same.argmax())
        message = f"{trials[at].test!r} is compared with itself; a recording is always like itself: remove the trial"
        raise trials.error(at, message)


def _check_repeats(trials: TrialList, enrol: np.ndarray, test: np.ndarray) -> None:
    """No two trials have the same numbers on both sides, be they those of names or of what these stand for."""
    pairs = enrol.astype(np.int64) * (int(test.max()) + 1) + test
    order = np.argsort(pairs, kind="stable")
    again = order[1:][pairs[order[1:]] == pairs[order[:-1]]]
    if len(again):
        second = int(again.min())
        first = int(np.argmax(pairs == pairs[second]))
        raise trials.error(second, f"repeats the pair of line {trials.lines[first]}; remove one of the two")
