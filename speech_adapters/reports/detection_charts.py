"""Charts of detection: the DET curve and the histogram of scores, as inline SVG like the other charts.

What they are drawn from fits JSON (``detection.json`` of a run folder): a few hundred points, however many the trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from speech_adapters.metrics.detection import DetectionCurve
from speech_adapters.reports.charts import Line, histogram, ink, legend, number

_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 56, 12, 10, 38  # a DET plot is square
_RATES = (0.0001, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
_MOST_POINTS, _BINS = 300, 60


@dataclass(frozen=True)
class Mark:
    """A named operating point."""

    name: str
    p_miss: float
    p_fa: float


@dataclass(frozen=True)
class DetectionData:
    """What the charts of one system need; rates are fractions."""

    p_miss: list[float]
    p_fa: list[float]
    """Points of the DET curve."""
    least_miss: float
    least_fa: float
    """The smallest rates above 0 that the trials can show."""
    marks: list[Mark]
    """The EER first, then detection costs."""
    edges: list[float]
    target: list[float]
    nontarget: list[float]
    """The histogram: shares of each kind between ``edges``."""
    threshold: float | None
    """Of the EER."""

    def __post_init__(self) -> None:
        rates = [self.least_miss, self.least_fa, *self.p_miss, *self.p_fa]
        rates += [rate for mark in self.marks for rate in (mark.p_miss, mark.p_fa)]
        if not all(0 <= rate <= 1 for rate in rates):
            raise ValueError("error rates lie between 0 and 1")
        if not 0 < len(self.p_miss) == len(self.p_fa):
            raise ValueError("p_miss and p_fa are as many numbers each, one or more")
        if not 1 < len(self.edges) == len(self.target) + 1 == len(self.nontarget) + 1:
            raise ValueError("target and nontarget have one number for each bin between two edges")
        if any(right <= left for left, right in pairwise(self.edges)) or min(self.target + self.nontarget) < 0:
            raise ValueError("edges grow, and shares are 0 or more")


def chart_data(curve: DetectionCurve, p_targets: Sequence[float]) -> DetectionData:
    """What the charts draw of one system: the curve, marks for EER and minDCF, a histogram of scores."""
    kept = _evenly(curve.p_miss, curve.p_fa)
    eer = curve.eer()
    marks = [Mark(f"EER {100 * eer.value:.2f} %", eer.p_miss, eer.p_fa)]
    for p in p_targets:
        point = curve.min_dcf(p)
        marks.append(Mark(f"minDCF({p:g}) {point.value:.3f}", point.p_miss, point.p_fa))
    finite = np.isfinite(curve.thresholds)
    scores = curve.thresholds[finite]
    edges = np.linspace(scores[0], scores[-1] if scores[-1] > scores[0] else scores[0] + 1, _BINS + 1)
    target, nontarget = (
        (np.histogram(scores, edges, weights=counts[finite])[0] / counts.sum()).tolist()
        for counts in (curve.targets, curve.nontargets)
    )
    return DetectionData(
        p_miss=curve.p_miss[kept].tolist(),
        p_fa=curve.p_fa[kept].tolist(),
        least_miss=1 / float(curve.targets.sum()),
        least_fa=1 / float(curve.nontargets.sum()),
        marks=marks,
        edges=edges.tolist(),
        target=target,
        nontarget=nontarget,
        threshold=eer.threshold,
    )


def det_chart(systems: Mapping[str, DetectionData], colors: Mapping[str, int] | None = None) -> Markup:
    """DET curves on probit axes, on which two normal score distributions give a straight line (Martin et al., "The DET
    curve in assessment of detection task performance", Eurospeech 1997).

    Axes begin below the least rate that the trials can show; where an error rate is 0, the curve leaves the frame.
    """
    if not systems:
        return Markup()
    rates = [rate for data in systems.values() for rate in (data.least_miss, data.least_fa)]
    low = max([rate for rate in _RATES[:5] if rate <= min(rates)], default=_RATES[0])
    marked = [rate for data in systems.values() for mark in data.marks for rate in (mark.p_miss, mark.p_fa)]
    high = min([rate for rate in _RATES if rate >= max([0.5, *marked])], default=_RATES[-1])
    start, span = _probit(low), _probit(high) - _probit(low)
    side = _SIZE - _LEFT - _RIGHT

    def place(p_fa: float, p_miss: float) -> tuple[float, float]:
        right, up = ((_probit(min(max(rate, low), high)) - start) / span for rate in (p_fa, p_miss))
        return _LEFT + right * side, _TOP + (1 - up) * side

    parts = []
    for rate in _RATES:
        if low <= rate <= high:
            x, y = place(rate, rate)
            label = number(100 * rate)
            parts.append(
                f'<line x1="{_LEFT}" x2="{_LEFT + side}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TOP + side}" class="grid"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
                f'<text x="{x:.1f}" y="{_TOP + side + 16}" text-anchor="middle">{label}</text>'
            )
    entries = []
    for index, (name, data) in enumerate(systems.items()):
        color = (colors or {}).get(name, index)
        inside = [
            place(p_fa, p_miss)
            for p_fa, p_miss in zip(data.p_fa, data.p_miss, strict=True)
            if low <= p_fa <= high and low <= p_miss <= high
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
        parts.append(f'<polyline points="{path}" fill="none" style="stroke:{ink(color)}" stroke-width="1.8"/>')
        entries.append(Line(name, (), color))
        parts += _marks(data.marks, place, ink(color), name if len(systems) > 1 else None)
    middle = _LEFT + side / 2
    return Markup(
        f'<svg class="chart square" viewBox="0 0 {_SIZE} {_TOP + side + _BOTTOM}" role="img" aria-label="DET curve">'
        f"{''.join(parts)}"
        f'<text x="{middle}" y="{_TOP + side + 34}" text-anchor="middle">false alarms, %</text>'
        f'<text transform="translate(12 {_TOP + side / 2}) rotate(-90)" text-anchor="middle">misses, %</text></svg>'
        f"{legend(entries) if len(systems) > 1 else ''}"
        '<p class="note">Circle: EER; squares: minDCF.</p>'
    )


def score_histogram(data: DetectionData, color: int = 0) -> Markup:
    """Histograms of target and non-target scores, each as percent of its kind, with the threshold of the EER."""
    kinds = {"target": data.target, "non-target": data.nontarget}
    shares = {kind: [100 * share for share in found] for kind, found in kinds.items()}
    return histogram(data.edges, shares, "score", "% of its kind", ("EER", data.threshold), color)


def _evenly(p_miss: NDArray[Any], p_fa: NDArray[Any]) -> NDArray[Any]:
    """Points that a reader can tell apart: about evenly spread over the probit plane, the ends among them."""
    floor = 0.5 / len(p_miss)
    axis = NormalDist()
    grid = np.array([axis.cdf(x) for x in np.linspace(-4.2, 4.2, _MOST_POINTS)])
    by_miss = np.searchsorted(p_miss, grid[grid > floor])
    by_fa = len(p_fa) - 1 - np.searchsorted(p_fa[::-1], grid[grid > floor])
    return np.unique(np.clip(np.concatenate([[0], by_miss, by_fa, [len(p_miss) - 1]]), 0, len(p_miss) - 1))


def _probit(rate: float) -> float:
    return NormalDist().inv_cdf(rate)


def _marks(
    marks: Sequence[Mark],
    place: Callable[[float, float], tuple[float, float]],
    color: str,
    system: str | None,
) -> list[str]:
    """A circle for the EER, squares for detection costs, named beside them; among other systems, in their titles."""
    names: dict[tuple[float, float], list[str]] = {}
    for mark in marks:
        names.setdefault(place(mark.p_fa, mark.p_miss), []).append(mark.name)
    parts = []
    for (x, y), here in names.items():
        text = escape(", ".join(here))
        title = f"<title>{escape(system)}: {text}</title>" if system is not None else ""
        if here[0].startswith("EER"):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" style="fill:{color}">{title}</circle>')
        else:
            parts.append(
                f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="none" style="stroke:{color}" '
                f'stroke-width="1.8">{title}</rect>'
            )
        if system is None:
            left, down = x > _SIZE * 0.6, y < _TOP + 20  # beside the mark, and inside the frame
            at = f'x="{x - 9 if left else x + 9:.1f}" y="{y + 16 if down else y - 5:.1f}"'
            anchor = "end" if left else "start"
            parts.append(f'<text {at} text-anchor="{anchor}">{text}</text>')
    return parts
