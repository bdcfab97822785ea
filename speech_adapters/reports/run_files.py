"""A run folder's JSON files as typed values: what a page draws is checked here, once.

A file that is missing is empty; what is not as it should be is an :class:`InputError` that names the file and the key.
Numbers that no chart can show (NaN, infinities, magnitudes above 1e19) count as missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech_adapters.data.manifest import Channel
from speech_adapters.errors import InputError
from speech_adapters.files import read_json, read_log
from speech_adapters.reports.detection_charts import DetectionData
from speech_adapters.schema import convert

_LARGEST, _LEAST = 1e19, 1e-30  # magnitudes


@dataclass(frozen=True)
class Rate:
    """A figure with its interval, as fractions."""

    value: float | None
    low: float | None = None
    high: float | None = None
    resampled: str = "speaker"


@dataclass(frozen=True)
class Mistake:
    """An utterance of ``worst.json``. With ``alignment`` or ``words``, ``reference`` and ``hypothesis`` are texts;
    without, the true class and the predicted one."""

    id: str
    reference: str = ""
    hypothesis: str = ""
    speaker: str | None = None
    alignment: str | None = None
    errors: int | None = None
    words: int | None = None
    audio_filepath: str | None = None
    offset: float | None = None
    duration: float | None = None
    channel: Channel | None = None

    def __post_init__(self) -> None:
        if (self.offset or 0.0) < 0 or (self.duration is not None and self.duration <= 0):
            raise ValueError(f"offset {self.offset} and duration {self.duration} name no part of a file")

    @property
    def is_text(self) -> bool:
        """Whether it is one of words, not of a label."""
        return self.alignment is not None or self.words is not None


@dataclass(frozen=True)
class Domains:
    """``domains.json``: of each method, the metric on each domain's test set."""

    metric: str = ""
    cells: dict[str, dict[str, Rate]] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClassFigures:
    """Of one class among ``per_class`` in ``results.json``."""

    support: float
    recall: Rate
    precision: Rate
    f1: Rate


@dataclass(frozen=True)
class Confusion:
    """Counts (C, C) of true classes (rows) by predictions (columns)."""

    labels: list[str]
    counts: list[list[float]]

    def __post_init__(self) -> None:
        if {len(self.counts), *map(len, self.counts)} - {len(self.labels)}:
            raise ValueError(f"the counts of {len(self.labels)} classes are as many rows of as many numbers")


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds for its report; ``results`` as it stands in the file, its mappings checked."""

    results: dict[str, Any]
    config: str
    log: list[dict[str, Any]]
    worst: list[Mistake]
    layer_weights: dict[str, list[float | None] | dict[str, float | None]]
    detection: dict[str, DetectionData]
    domains: Domains
    attention: dict[str, dict[str, dict[str, float | None]]]

    @classmethod
    def read(cls, run_folder: str | os.PathLike[str]) -> RunFiles:
        """Raises :class:`InputError` where ``results.json`` is missing or a file is not what it should be."""
        folder = Path(run_folder)
        config = folder / "config.yaml"
        results = folder / "results.json"
        return cls(
            results=_check_results(results, _clean(results, read_json(results))),
            config=config.read_bytes().decode("utf-8", "replace") if config.is_file() else "",
            log=_clean(folder / "metrics.jsonl", read_log(folder / "metrics.jsonl")),
            worst=_read(folder / "worst.json", list[Mistake], []),
            layer_weights=_read(
                folder / "layer_weights.json", dict[str, list[float | None] | dict[str, float | None]], {}
            ),
            detection=_read(folder / "detection.json", dict[str, DetectionData], {}),
            domains=_read(folder / "domains.json", Domains, {}),
            attention=_read(folder / "attention.json", dict[str, dict[str, dict[str, float | None]]], {}),
        )


def _read(path: Path, shape: Any, missing: Any) -> Any:
    return convert(shape, _clean(path, read_json(path)) if path.exists() else missing, str(path))


def _check_results(path: Path, results: Any) -> dict[str, Any]:
    found: dict[str, Any] = convert(dict[str, Any], results, str(path))
    found["data"] = convert(dict[str, Any], found.get("data") or {}, str(path), "data")
    baselines = convert(dict[str, dict[str, Any]], found.get("baselines") or {}, str(path), "baselines")
    found["baselines"] = baselines
    for place, entry in [("", found), *((f"baselines.{name}.", entry) for name, entry in baselines.items())]:
        for name in ("metrics", "parameters"):
            entry[name] = convert(dict[str, Any], entry.get(name) or {}, str(path), place + name)
        metrics = entry["metrics"]
        for name, shape in (("per_class", dict[str, ClassFigures]), ("confusion", Confusion)):
            if metrics.get(name) is not None:
                metrics[name] = convert(shape, metrics[name], str(path), f"{place}metrics.{name}")
    return found


def _clean(path: Path, content: Any) -> Any:
    """JSON without what no page can hold: such numbers become null, halves of surrogate pairs the replacement sign."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {clean(key): clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, str):
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not abs(value) < _LARGEST:
                return None
            return 0.0 if 0 < abs(value) < _LEAST else value
        return value

    try:
        return clean(content)
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; repeat what writes it") from None
