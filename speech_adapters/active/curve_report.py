"""An experiment's curves for people: a page with the chart, and a table.

``found`` holds ``strategies`` (by name: ``curve``, ``metrics``, but for random ``area_minus_random``), ``full`` (the
whole pool's labels and score) and ``target``, a score.
"""

from __future__ import annotations

from typing import Any

from speech_adapters.reports.charts import Line, line_chart
from speech_adapters.reports.page import render


def curve_page(found: dict[str, Any], unit: str, score: str) -> str:
    """The strategies' mean curves with their intervals, and the score of the whole pool."""
    lines = []
    for color, (name, figures) in enumerate(found["strategies"].items()):
        mean = [(point["labels"], point["value"]) for point in figures["curve"]]
        # Of few seeds the interval is wider than what a rate can be.
        band = [(point["labels"], max(point["low"], 0.0), min(point["high"], 1.0)) for point in figures["curve"]]
        lines.append(Line(name, mean, color, band=band))
    ends = [p["labels"] for figures in found["strategies"].values() for p in figures["curve"]]
    whole = [(min(ends), found["full"]["value"]), (max(ends), found["full"]["value"])]
    lines.append(Line(f"whole pool ({found['full']['labels']:.0f} {unit})", whole, len(lines), dashed=True))
    chart = line_chart(lines, f"labelled {unit}", f"{score}, %", percent=True)
    return render("curves.html.j2", title=f"Label curves: {score}", chart=chart)


def curve_table(found: dict[str, Any], unit: str, score: str) -> str:
    """One line a strategy: area, its difference from random, and the labels to reach the target."""
    full = found["full"]

    def shown(rate: dict[str, float] | None) -> str:
        return "" if rate is None else f"{rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"

    goal = f"{unit} to {found['target']:.1%}"
    lines = [
        f"\nwhole pool, {full['labels']:.0f} {unit}: {score} {shown(full)}",
        f"{'strategy':18s} {'mean ' + score:>24s} {'minus random':>24s} {goal:>22s}",
    ]
    for name, figures in found["strategies"].items():
        needed = figures["metrics"]["labels_to_reach"]
        reached = "not reached" if needed is None else f"{needed:.0f}"
        area, gain = figures["metrics"]["area"], figures.get("area_minus_random")
        lines.append(f"{name:18s} {shown(area):>24s} {shown(gain):>24s} {reached:>22s}")
    return "\n".join(lines)
