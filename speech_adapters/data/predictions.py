"""Files of predictions: what a classifier, of this toolkit or any other, said of each utterance.

JSON Lines: ``{"id": "a1", "speaker": "a", "label": "happy", "prediction": "angry", "probabilities": {"happy": 0.2,
"angry": 0.8}}``; or CSV or TSV with the columns ``id``, ``label`` (the true class), ``prediction`` and, where known,
``speaker``. Usual other names of them are known (:data:`COLUMNS`). ``speaker`` and ``probabilities`` may be left out;
``run`` (a number) tells runs of several seeds apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from speech_adapters.data.formats.columns import NAMES
from speech_adapters.data.records import UTTERANCE, Names, read_records
from speech_adapters.data.trials import UtteranceIndex
from speech_adapters.errors import InputError, ManifestError
from speech_adapters.files import write_text
from speech_adapters.metrics.classification import ClassificationResult, score_classification

_NEEDED = ("id", "label", "prediction")

COLUMNS: Names = {
    "id": UTTERANCE,
    "label": ("reference", "truth", "true_label", "target", "class", "emotion", "ground_truth"),
    "prediction": ("predicted", "hypothesis", "pred", "predicted_label"),
    "speaker": NAMES["speaker"],
    "probabilities": (),
    "run": (),
}
"""Keys of a file of predictions, and the names that tools give them."""


def write_predictions(path: str | os.PathLike[str], result: ClassificationResult) -> None:
    """Write one JSON line per utterance (and run, where there are several), whole file or nothing."""
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


def read_predictions(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    index: UtteranceIndex | None = None,
    n: int = 1000,
    seed: int = 0,
) -> ClassificationResult:
    """Score a file of predictions; ``.csv`` and ``.tsv`` are read as tables, anything else as JSON Lines.

    Args:
        columns: key -> its name in the file, where :data:`COLUMNS` does not have it.
        index: of the utterances that the rows may name by audio path as well; their ids are taken.

    The classes are those of the probabilities where there are any, else those that occur.

    Raises:
        InputError: with ``file:line``: a missing file or key, a value of another type, lines with and without
            probabilities or with those of other classes; and all that :func:`score_classification` raises.
    """
    path = Path(path)
    rows = [(f"{path}:{at}", row) for at, row in read_records(path, "the predictions", COLUMNS, _NEEDED, columns)]
    if not rows:
        raise InputError(f"{path}: no predictions in it; write one line per utterance with {', '.join(_NEEDED)}")
    first_where, first = rows[0]
    labels = list(first["probabilities"]) if first.get("probabilities") else None
    runs: dict[str, list[dict[str, Any]]] = {}
    for where, row in rows:
        for key in _NEEDED:
            if not isinstance(row.get(key), str) or not row[key]:
                raise InputError(f"{where}: {key} is {row.get(key)!r}, expected text; each line needs it")
        given = row.get("probabilities")
        if (given is not None and not isinstance(given, dict)) or set(given or ()) != set(labels or ()):
            raise InputError(
                f"{where}: the probabilities are not of the classes of {first_where}; give all lines alike"
            )
        for label, value in (given or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"{where}: the probability of {label!r} is {value!r}, expected a number from 0 to 1")
        if not isinstance(row.get("speaker"), str | None):
            raise InputError(f"{where}: speaker is {row['speaker']!r}, expected text")
        if index is not None:
            row["id"] = index.ids[index.find(row["id"], partial(_at, where))]
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


def _at(where: str, message: str) -> ManifestError:
    return ManifestError(f"{where}: {message}")
