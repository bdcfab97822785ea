"""What a run found: figures with their intervals, what they cost, and what they were made of and with.

``results.json`` holds ``task``, ``encoder``, ``adapter``, ``data`` (each split's name, hours, speakers and hash), the
adapter's own ``metrics`` (``{name: {value, low, high}}``: 95 % bootstrap intervals, rates as fractions),
``parameters`` and costs, ``baselines`` (the same by method), ``seeds``, and the environment (``versions``,
``git_commit``, ``device``); besides these whatever a recipe adds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from speech_adapters.errors import InputError
from speech_adapters.files import read_json, write_json
from speech_adapters.metrics.bootstrap import Interval
from speech_adapters.runs.environment import environment


@dataclass(kw_only=True)
class MethodResults:
    """Figures of one method, and their price."""

    metrics: dict[str, Any]
    """Name -> :class:`Interval`, or a number; tables such as those by class are nested in the same way."""
    parameters: dict[str, float] | None = None
    """``trainable``, ``total``, ``percent``."""
    seconds: float | None = None
    """Wall time of one training (of the evaluation, where nothing was trained)."""
    audio_seconds_per_second: float | None = None
    peak_memory_bytes: int | None = None
    flops: float | None = None
    """Operations of all products and convolutions of one training, by their shapes."""
    energy_joules: float | None = None
    """What GPU and CPU took while it ran, whoever used them; not known where no counter can be read."""
    more: dict[str, Any] = field(default_factory=dict)
    """What a task adds, such as figures by seed; written beside the others."""

    def to_dict(self) -> dict[str, Any]:
        """As ``results.json`` holds it, without what is not known."""
        known = {f.name: getattr(self, f.name) for f in fields(MethodResults) if f.name not in ("metrics", "more")}
        return {
            "metrics": _plain(self.metrics),
            **_plain(self.more),
            **{name: value for name, value in known.items() if value is not None},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MethodResults:
        """What :meth:`to_dict` wrote."""
        own = [f.name for f in fields(MethodResults) if f.name not in ("metrics", "more")]
        return cls(
            metrics=_intervals(values.get("metrics") or {}),
            **{name: values[name] for name in own if name in values},
            more={key: value for key, value in values.items() if key not in (*own, "metrics")},
        )


@dataclass(kw_only=True)
class Results:
    """A run's ``results.json``."""

    task: str
    encoder: str | None = None
    """None for scores and predictions from elsewhere."""
    adapter: str
    """The method whose figures are ``own``."""
    data: dict[str, Any]
    """Split -> :meth:`Manifest.describe`."""
    own: MethodResults
    baselines: dict[str, MethodResults] = field(default_factory=dict)
    seeds: list[int] | None = None
    more: dict[str, Any] = field(default_factory=dict)
    """What a recipe adds; written beside the others."""
    environment: dict[str, Any] = field(default_factory=environment)
    """``versions``, ``git_commit``, ``device``: of this process, by default."""

    def to_dict(self) -> dict[str, Any]:
        """The plain content of ``results.json``."""
        return {
            "task": self.task,
            "encoder": self.encoder,
            "adapter": self.adapter,
            "data": self.data,
            **self.own.to_dict(),
            "baselines": {name: entry.to_dict() for name, entry in self.baselines.items()},
            **({} if self.seeds is None else {"seeds": self.seeds}),
            **_plain(self.more),
            **self.environment,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all; figures that are not finite are written as null."""
        write_json(path, self.to_dict())

    def in_domain(self, domain: str) -> Results:
        """What a run over several domains (``domains`` beside each method's figures) found in one of them: its splits,
        and the methods that were scored on it, as the run's own was."""
        methods = {self.adapter: replace(self.own, more=self.more), **self.baselines}
        figures = {
            name: replace(entry, metrics=entry.more["domains"][domain], more={})
            for name, entry in methods.items()
            if domain in entry.more.get("domains", {})
        }
        splits = {split: f"{domain} {split}" for split in ("train", "dev", "test")}
        data = {split: self.data[name] for split, name in splits.items() if name in self.data}
        return replace(
            self,
            task=self.task.removesuffix(" domains"),
            data=data,
            own=figures.pop(self.adapter),
            baselines=figures,
            more={},
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Results:
        """The results that :meth:`write` wrote.

        Raises:
            InputError: a missing file, one that is not JSON, or one that lacks what every run has.
        """
        values = read_json(path)
        needed = ("task", "adapter", "data", "metrics")
        lacking = [key for key in needed if key not in values] if isinstance(values, dict) else list(needed)
        if lacking:
            raise InputError(f"{Path(path)}: not the results of a run, {lacking[0]!r} is missing; repeat the run.")
        own = {"task", "encoder", "adapter", "data", "baselines", "seeds", *_ENVIRONMENT}
        of_method = MethodResults.from_dict({key: value for key, value in values.items() if key not in own})
        more, of_method.more = of_method.more, {}
        return cls(
            task=values["task"],
            encoder=values.get("encoder"),
            adapter=values["adapter"],
            data=values["data"],
            own=of_method,
            baselines={name: MethodResults.from_dict(entry) for name, entry in values.get("baselines", {}).items()},
            seeds=values.get("seeds"),
            more=more,
            environment={key: values[key] for key in _ENVIRONMENT if key in values},
        )


def results_of(part: str | os.PathLike[str], domain: str | None = None) -> tuple[Results, MethodResults] | None:
    """What the run found of the part that lies in its ``adapters/NAME`` (or ``heads``, ``fusions``): all results, and
    those of the part's method. None where it lies in no finished run, or is none of its methods.

    Args:
        domain: that the part is for; of a run over several, the results in this one.

    Raises:
        InputError: a ``results.json`` that cannot be read.
    """
    folder = Path(part).resolve()
    file = folder.parent.parent / "results.json"
    if folder.parent.name not in ("adapters", "heads", "fusions") or not file.is_file():
        return None
    results = Results.read(file)
    if domain is not None and domain in results.more.get("domains", {}):
        results = results.in_domain(domain)
    methods = {results.adapter: results.own, **results.baselines}
    name = method_of_training(folder.name, list(methods))
    return (results, methods[name]) if name in methods else None


def method_of_training(training: str, methods: Sequence[str]) -> str:
    """The method that a training was of: ``lora-l-fold2-seed1`` of ``lora+l``; where it is none of them, its name
    without fold and seed."""
    stem = re.sub(r"(-fold\d+)?(-seed\d+)?$", "", training)
    return next((method for method in methods if method.replace("+", "-") == stem), stem)


_ENVIRONMENT = ("versions", "git_commit", "device")


def _plain(value: Any) -> Any:
    """Intervals, at any depth, as their plain values."""
    if isinstance(value, Interval):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _intervals(value: Any) -> Any:
    """Mappings of value, low and high, at any depth, as intervals."""
    if not isinstance(value, Mapping):
        return value
    if {"value", "low", "high"} <= value.keys() <= {"value", "low", "high", "resampled"}:
        return Interval.from_dict(dict(value))
    return {key: _intervals(entry) for key, entry in value.items()}
