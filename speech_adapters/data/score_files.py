"""Score files: Kaldi's text, ``enrol test score`` per line; tables (CSV, TSV, JSON Lines) with these columns or their
usual other names; and numpy's arrays in the order of the trial list."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from speech_adapters.data.arrays import read_arrays
from speech_adapters.data.records import Names, is_table, read_records
from speech_adapters.data.trials import COLUMNS as TRIAL_COLUMNS
from speech_adapters.data.trials import TrialList, read_rows
from speech_adapters.errors import InputError, counted
from speech_adapters.files import write_text


def write_scores(path: str | os.PathLike[str], trials: TrialList, scores: np.ndarray) -> None:
    """Write ``enrol test score`` lines in the order of the trials, with digits enough to read the same scores back.

    Tabs are between the columns where a name has a space.
    """
    enrol, test = trials.enrol_names, trials.test_names
    gap = "\t" if any(any(map(str.isspace, name)) for name in (*enrol, *test)) else " "
    rows = zip(trials.enrol, trials.test, scores, strict=True)
    write_text(path, (f"{enrol[i]}{gap}{test[j]}{gap}{score:.9g}\n" for i, j, score in rows))


COLUMNS: Names = {
    **{key: names for key, names in TRIAL_COLUMNS.items() if key != "label"},
    "score": ("llr", "similarity", "cosine"),
}
"""Keys of a table of scores, and the names that tools give them."""


def read_scores(
    path: str | os.PathLike[str], trials: TrialList, columns: Mapping[str, str] | None = None
) -> np.ndarray:
    """(n,) the trials' scores, higher for targets, from a file that covers them.

    A ``.npy`` file holds them in the order of the trials, so does the array ``scores`` of an ``.npz`` file; any other
    file is a table or text, in any order, and may hold further pairs.

    Args:
        columns: key -> column of a table, where :data:`COLUMNS` does not have its name.

    Raises:
        InputError: a file that cannot be read, a trial without a score, a line that is not ``enrol test score``, a
            pair scored twice.
    """
    path = Path(path)
    if path.suffix in (".npy", ".npz"):
        scores = _read_numpy(path)
        if scores.shape != (len(trials),):
            raise InputError(
                f"{path}: scores {scores.shape} for the {len(trials)} trials of {trials.name}; give one each."
            )
    else:
        rows = _table(path, columns) if is_table(path) else read_rows(path, "score file")
        scores = _read_pairs(path, rows, trials)
    if np.isnan(scores).any():
        trial = trials[int(np.isnan(scores).argmax())]
        raise InputError(f"{path}: the score of the trial {trial.enrol} {trial.test} is NaN; score it again.")
    return scores


def _read_numpy(path: Path) -> np.ndarray:
    [scores] = read_arrays(path, "scores")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiu":
        raise InputError(f"{path}: scores of type {getattr(scores, 'dtype', type(scores))}; give numbers.")
    return np.array(scores, scores.dtype if scores.dtype in (np.float32, np.float64) else float)


def _table(path: Path, said: Mapping[str, str] | None) -> Iterator[tuple[int, list[str]]]:
    for number, row in read_records(path, "the score file", COLUMNS, tuple(COLUMNS), said):
        yield number, [str(row[key]) for key in COLUMNS if key in row]


def _read_pairs(path: Path, rows: Iterator[tuple[int, list[str]]], trials: TrialList) -> np.ndarray:
    enrol = {name: number for number, name in enumerate(trials.enrol_names)}
    test = {name: number for number, name in enumerate(trials.test_names)}
    width = len(test)
    pairs, values, lines = array("q"), array("d"), array("q")
    for number, columns in rows:
        if len(columns) != 3:
            raise InputError(f'{path}:{number}: {len(columns)} columns, expected 3: "enrol test score"')
        i, j = enrol.get(columns[0]), test.get(columns[1])
        if i is None or j is None:
            continue
        try:
            values.append(float(columns[2]))
        except ValueError:
            raise InputError(f"{path}:{number}: score {columns[2]!r}; expected a number in column 3") from None
        pairs.append(i * width + j)
        lines.append(number)
    found, scores = np.frombuffer(pairs, np.int64), np.frombuffer(values, float)
    order = np.argsort(found, kind="stable")
    found = found[order]
    again = order[1:][found[1:] == found[:-1]]
    if len(again):
        raise InputError(f"{path}:{lines[int(again.min())]}: this pair has a score already; keep one of the two lines")
    wanted = trials.enrol.astype(np.int64) * width + trials.test
    at = np.searchsorted(found, wanted)
    missing = (at == len(found)) | (found[np.minimum(at, len(found) - 1)] != wanted) if len(found) else wanted >= 0
    if missing.any():
        trial = trials[int(missing.argmax())]
        raise InputError(
            f"{path}: no score of {counted(int(missing.sum()), 'trial')} of {trials.name}, such as "
            f"{trial.enrol} {trial.test}; score every trial, with the names of the trial list."
        )
    found_scores: np.ndarray = scores[order][at]
    return found_scores
