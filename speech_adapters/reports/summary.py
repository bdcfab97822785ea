"""The table at the end of a run: each method's figures with their intervals, what it cost and how fast it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RATES = {"wer", "cer", "eer", "ua", "uar", "wa", "war", "accuracy", "f1", "macro_f1"}  # fractions, shown as percent
_HIGHER_IS_BETTER = {"ua", "uar", "wa", "war", "accuracy", "f1", "macro_f1"}
_WRITTEN = {"min dcf": "minDCF", "act dcf": "actDCF", "min cllr": "minCllr", "cllr": "Cllr", "macro f1": "macro F1"}
_COUNTS = {"substitutions": "sub", "deletions": "del", "insertions": "ins"}


def method_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The run's own adapter and its baselines as rows for :func:`summary_table`, from a ``results.json`` mapping."""
    own = {"method": results.get("adapter") or "this run", **results}
    return [own, *({"method": name, **entry} for name, entry in (results.get("baselines") or {}).items())]


def summary_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned plain-text table; a row holds ``method`` and the keys of ``results.json`` that its run measured.

    Columns that no row fills are left out. Metrics are ``{value, low, high}`` or plain numbers; ``substitutions``,
    ``deletions`` and ``insertions`` stand among them as counts.
    """
    columns = columns_of(rows)
    lines = [[column.title for column in columns], ["-" * column.width for column in columns]]
    lines += [[column.cells[i] for column in columns] for i in range(len(rows))]
    return "\n".join(
        "  ".join(
            cell.rjust(column.width) if column.numeric else cell.ljust(column.width)
            for cell, column in zip(line, columns, strict=True)
        ).rstrip()
        for line in lines
    )


@dataclass(frozen=True)
class Column:
    title: str
    cells: list[str]
    numeric: bool = True
    best: frozenset[int] = frozenset()
    """The rows that hold the best figure."""

    @property
    def width(self) -> int:
        return max(map(len, [self.title, *self.cells]))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    names = dict.fromkeys(name for row in rows for name, entry in _metrics(row).items() if figure(entry) is not None)
    columns = [Column("method", [str(row.get("method", "")) for row in rows], numeric=False)]
    for name in names:
        if name in _COUNTS or name in ("words", "characters", "utterances", "trials", "targets"):
            continue
        entries = [_metrics(row).get(name) for row in rows]
        values = [figure(entry) for entry in entries]
        known = [value for value in values if value is not None]
        best = (max if name.lower() in _HIGHER_IS_BETTER else min)(known)
        winners = frozenset(i for i, value in enumerate(values) if value == best and len(known) > 1)
        columns.append(Column(_title(name), [_show(name, value) for value in values], best=winners))
        columns.append(Column("95 % interval", [_interval(name, entry) for entry in entries]))
    parameters = [row.get("parameters") or {} for row in rows]
    columns += [
        *(Column(short, [_count(_metrics(row).get(name)) for row in rows]) for name, short in _COUNTS.items()),
        Column("trainable", [_count(p.get("trainable")) for p in parameters]),
        Column("% of all", [_decimal(p.get("percent"), 2) for p in parameters]),
        Column("seconds", [_decimal(row.get("seconds"), 1) for row in rows]),
        Column("audio s/s", [_decimal(row.get("audio_seconds_per_second"), 1) for row in rows]),
        Column("peak memory", [_bytes(row.get("peak_memory_bytes")) for row in rows]),
    ]
    return [column for column in columns if any(column.cells)]


def _metrics(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("metrics") or {}


def figure(entry: Any) -> float | None:
    value = entry.get("value") if isinstance(entry, Mapping) else entry
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _title(name: str) -> str:
    shown = name.upper() if len(name) <= 3 else name.replace("_", " ")
    for plain, written in _WRITTEN.items():
        shown = shown.replace(plain, written)
    return f"{shown} %" if name.lower() in RATES else shown


def _show(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if name.lower() in RATES else f"{value:.3f}"


def _interval(name: str, entry: Any) -> str:
    ends = [figure(entry.get(end)) for end in ("low", "high")] if isinstance(entry, Mapping) else [None]
    return "" if None in ends else "[" + ", ".join(_show(name, end) for end in ends) + "]"


def _count(value: Any) -> str:
    return "" if figure(value) is None else f"{value:,.0f}"


def _decimal(value: Any, digits: int) -> str:
    return "" if figure(value) is None else f"{value:,.{digits}f}"


def _bytes(value: Any) -> str:
    if not figure(value):
        return ""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
