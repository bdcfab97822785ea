"""The table at the end of a run: each method's figures with their intervals, what it cost and how fast it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RATES = {"wer", "cer", "eer", "ua", "uar", "wa", "war", "accuracy", "f1", "macro_f1"}  # fractions, shown as percent
_HIGHER_IS_BETTER = {"ua", "uar", "wa", "war", "accuracy", "f1", "macro_f1"}
_LOWER_IS_BETTER = ("wer", "cer", "eer", "min_dcf", "act_dcf", "min_cllr", "cllr")  # or names that begin so
_WRITTEN = {"min dcf": "minDCF", "act dcf": "actDCF", "min cllr": "minCllr", "cllr": "Cllr", "macro f1": "macro F1"}
_COUNTS = {"substitutions": "sub", "deletions": "del", "insertions": "ins"}


def higher_is_better(metric: str) -> bool:
    """Whether more of a rate is better."""
    return metric.lower() in _HIGHER_IS_BETTER


def method_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The run's own adapter and its baselines as rows for :func:`summary_table`, from a ``results.json`` mapping."""
    own = {"method": results.get("adapter") or "this run", **results}
    return [own, *({"method": name, **entry} for name, entry in (results.get("baselines") or {}).items())]


def summary_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned plain-text table; a row holds ``method`` and the keys of ``results.json`` that its run measured.

    Columns that no row fills are left out. Metrics are ``{value, low, high}`` or plain numbers; ``substitutions``,
    ``deletions`` and ``insertions`` stand among them as counts.
    """
    columns: list[tuple[str, Sequence[str], bool]] = []  # title, cells, whether they are numbers
    for column in columns_of(rows):
        columns.append((column.title, column.cells, column.numeric))
        if any(column.intervals):
            columns.append(("95 % interval", column.intervals, True))
    lines = [[title, *cells] for title, cells, _ in columns]
    widths = [max(map(len, line)) for line in lines]
    for line, width in zip(lines, widths, strict=True):
        line.insert(1, "-" * width)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, (_, _, numeric) in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in zip(*lines, strict=True)
    )


@dataclass(frozen=True)
class Column:
    """One column of the table, a cell per method."""

    title: str
    cells: Sequence[str]
    numeric: bool = True
    intervals: Sequence[str] = ()
    """Of a metric: ``[low, high]`` beside each cell, empty where it is not known."""
    best: int | None = None
    """The row that is better than all others, its interval apart from each of theirs."""


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of the table, those that no row fills left out."""
    names = dict.fromkeys(name for row in rows for name, entry in _metrics(row).items() if figure(entry) is not None)
    columns = [Column("method", [str(row.get("method", "")) for row in rows], numeric=False)]
    for name in names:
        if name in _COUNTS or name in ("words", "characters", "utterances", "trials", "targets"):
            continue
        entries = [_metrics(row).get(name) for row in rows]
        cells, intervals = [_show(name, figure(entry)) for entry in entries], [_interval(name, e) for e in entries]
        columns.append(Column(_title(name), cells, intervals=intervals, best=_best(name, entries)))
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


def _best(name: str, entries: Sequence[Any]) -> int | None:
    """The row whose whole interval is better than every other row's; none where two overlap or one is not known."""
    if higher_is_better(name):
        sign = -1
    elif name.lower().startswith(_LOWER_IS_BETTER):
        sign = 1
    else:
        return None
    ends: dict[int, tuple[float, float]] = {}
    for row, entry in enumerate(entries):
        if figure(entry) is not None:
            if (known := interval_of(entry)) is None:
                return None
            low, high = sorted(sign * end for end in known)
            ends[row] = (low, high)
    first = min(ends, key=lambda row: ends[row])
    others = [low for row, (low, _) in ends.items() if row != first]
    return first if others and ends[first][1] < min(others) else None


def _metrics(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("metrics") or {}


def figure(entry: Any) -> float | None:
    """The value of a metric, plain or with its interval; none where it is no finite number."""
    value = entry.get("value") if isinstance(entry, Mapping) else entry
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def interval_of(entry: Any) -> tuple[float, float] | None:
    """The ends of a metric's interval; None where it has none, or one that is not known."""
    if not isinstance(entry, Mapping):
        return None
    low, high = figure(entry.get("low")), figure(entry.get("high"))
    return None if low is None or high is None else (low, high)


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
    ends = interval_of(entry)
    return "" if ends is None else "[" + ", ".join(_show(name, end) for end in ends) + "]"


def _count(value: Any) -> str:
    return "" if figure(value) is None else f"{value:,.0f}"


def _decimal(value: Any, digits: int) -> str:
    return "" if figure(value) is None else f"{value:,.{digits}f}"


def _bytes(value: Any) -> str:
    if not figure(value):
        return ""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
