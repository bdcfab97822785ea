"""What a saved part says of itself: the facts that a bank is searched by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.runs.results import results_of
from speech_adapters.saving.adapters import named_method
from speech_adapters.saving.bank_layout import Facts
from speech_adapters.saving.parts import load_part

LABELS = ("task", "domain", "language", "licence", "data", "note")
"""Facts that whoever adds a part may state."""


def read_facts(parts: Mapping[str, Path], size: int, labels: Mapping[str, str | None]) -> Facts:
    """The facts of saved parts that go together.

    What is stated (``labels``) holds before what the adapter's card says, and that before ``results.json`` of the run
    that the adapter lies in.

    Args:
        parts: kind -> folder; of an adapter and its head, both.
        size: bytes of all files.

    Raises:
        CheckpointError: a damaged part, or one of an unknown base.
        ConfigError: an unknown label.
    """
    if unknown := labels.keys() - set(LABELS):
        raise ConfigError(f"unknown label {sorted(unknown)[0]!r}; there are {', '.join(LABELS)}.")
    kind = next(kind for kind in ("adapter", "fusion", "head") if kind in parts)
    described, tensors = load_part(parts[kind], kind)
    base = described.get("base") or (described.get("features") or {}).get("base")
    if not isinstance(base, Mapping) or not all(isinstance(base.get(key), str) for key in ("name", "fingerprint")):
        raise CheckpointError(f"{parts[kind]}: this {kind} keeps no record of its base; save it again on its base.")
    head = load_part(parts["head"], "head")[0] if "head" in parts else None
    card = described.get("card") or {}
    run = _of_run(parts[kind], card.get("domain"))
    said: dict[str, Any] = {"task": None if head is None else _TASKS.get(_head_type(head)), **run}
    said |= {key: str(card[key]) for key in LABELS if card.get(key) is not None}
    said |= {key: value for key, value in labels.items() if value is not None}
    return Facts(
        kind=kind,
        base=base["name"],
        fingerprint=base["fingerprint"],
        method=_method(described, kind),
        bytes=size,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        head=None if head is None else _head_type(head),
        **{key: said.get(key) for key in LABELS},
        metrics={**run.get("metrics", {}), **_figures(card)},
    )


_TASKS = {"ctc": "asr", "speaker": "speaker"}  # a classifier may be of any task


def _head_type(head: Mapping[str, Any]) -> str:
    return str(head["config"].get("head_type"))


def _method(described: Mapping[str, Any], kind: str) -> str:
    if kind == "head":
        return _head_type(described)
    if kind == "fusion":
        return str(described["composition"].get("kind", "fuse"))
    return named_method(described["config"])


def _figures(card: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with intervals."""
    return {
        name: value for name, value in card.items() if isinstance(value, dict) and {"value", "low", "high"} <= {*value}
    }


def _of_run(part: Path, domain: str | None) -> dict[str, Any]:
    """Task, test data and figures of a part that lies in a run; the figures in its domain, where it has one."""
    found = results_of(part, domain)
    if found is None:
        return {}
    results, own = found
    test = results.data.get("test")
    return {
        "task": results.task,
        "data": test.get("name") if isinstance(test, Mapping) else None,
        "metrics": _figures(own.to_dict()["metrics"]),
    }
