"""Files of predictions: what a classifier, of this toolkit or any other, said of each utterance.

JSON Lines: ``{"id": "a1", "speaker": "a", "label": "happy", "prediction": "angry", "probabilities": {"happy": 0.2,
"angry": 0.8}}``; or CSV with the columns ``id``, ``label`` (the true class), ``prediction`` and, where known,
``speaker``. ``speaker`` and ``probabilities`` may be left out; ``run`` (a number) tells runs of several seeds apart.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_adapters.errors import InputError
from speech_adapters.files import write_text
from speech_adapters.metrics.classification import ClassificationResult, score_classification

_NEEDED = ("id", "label", "prediction")


def write_predictions(path: str | os.PathLike[str], result: ClassificationResult) -> None:
    """Write one JSON line an utterance (and run, where there are several), whole file or nothing."""
    lines = []
    for number, run in enumerate(result.runs, start=1):
        for utterance in run:
            entry: dict[str, Any] = {"id": utterance.id, "speaker": utterance.speaker, "label": utterance.label}
            entry["prediction"] = utterance.prediction
            if utterance.probabilities is not None:
                shown = (round(probability, 6) for probability in utterance.probabilities)
                entry["probabilities"] = dict(zip(result.labels, shown, strict=True))
            if len(result.runs) > 1:
                entry["run"] = number
            lines.append(json.dumps({k: v for k, v in entry.items() if v is not None}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_predictions(path: str | os.PathLike[str], *, n: int = 1000, seed: int = 0) -> ClassificationResult:
    """Score a file of predictions; ``.csv`` and ``.tsv`` are read as tables, anything else as JSON Lines.

    The classes are those of the probabilities where there are any, else those that occur.

    Raises:
        InputError: with ``file:line``: a missing file or key, a value of another type, lines with and without
            probabilities or with those of other classes; and all that :func:`score_classification` raises.
    """
    path = Path(path)
    rows = list(_csv_rows(path) if path.suffix.lower() in (".csv", ".tsv") else _json_rows(path))
    if not rows:
        raise InputError(f"{path}: no predictions in it; write one line an utterance with {', '.join(_NEEDED)}")
    first_where, first = rows[0]
    labels = list(first["probabilities"]) if first.get("probabilities") else None
    runs: dict[str, list[dict[str, Any]]] = {}
    for where, row in rows:
        for key in _NEEDED:
            if not isinstance(row.get(key), str) or not row[key]:
                raise InputError(f"{where}: {key} is {row.get(key)!r}, expected text; each line needs it")
        given = row.get("probabilities")
        if given is not None and not isinstance(given, dict) or set(given or ()) != set(labels or ()):
            raise InputError(
                f"{where}: the probabilities are not of the classes of {first_where}; give all lines alike"
            )
        for label, value in (given or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"{where}: the probability of {label!r} is {value!r}, expected a number from 0 to 1")
        if not isinstance(row.get("speaker"), str | None):
            raise InputError(f"{where}: speaker is {row['speaker']!r}, expected text")
        runs.setdefault(str(row.get("run", "")), []).append(row)
    everything = labels or sorted({row[key] for _, row in rows for key in ("label", "prediction")})
    try:
        results = [
            score_classification(
                [row["label"] for row in run],
                [row["prediction"] for row in run],
                [row.get("speaker") or None for row in run],
                [row["id"] for row in run],
                labels=everything,
                probabilities=[[row["probabilities"][label] for label in labels] for row in run] if labels else None,
                n=n,
                seed=seed,
            )
            for run in runs.values()
        ]
        return results[0] if len(results) == 1 else ClassificationResult.combine(results, n=n, seed=seed)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: not JSON ({error}); each line must be a JSON object") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected a JSON object with {', '.join(_NEEDED)}, got {row!r}")
            yield f"{path}:{number}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter)
    try:
        if missing := [key for key in _NEEDED if key not in (rows.fieldnames or ())]:
            raise InputError(f"{path}:1: no column {missing[0]!r}; there are {', '.join(rows.fieldnames or ())}")
        for row in rows:
            given = {key: row.get(key) for key in (*_NEEDED, "speaker", "run") if row.get(key)}
            yield f"{path}:{rows.line_num}", given
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not a table ({error}); check its delimiter") from error


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: the predictions cannot be read ({reason}); check the path") from error
