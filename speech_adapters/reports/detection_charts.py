"""Charts of detection: the DET curve and the histogram of scores, as inline SVG like the other charts.

What they are drawn from fits JSON (``detection.json`` of a run folder): a few hundred points, however many the trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from statistics import NormalDist
from typing import Any

import numpy as np

from speech_adapters.metrics.detection import DetectionCurve
from speech_adapters.reports.charts import COLORS, Line, histogram, legend, number

_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 56, 12, 10, 38  # a DET plot is square
_RATES = (0.0001, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
_MOST_POINTS, _BINS = 300, 60


def chart_data(curve: DetectionCurve, p_targets: Sequence[float]) -> dict[str, Any]:
    """What the charts of one system need: points of the DET curve, marks for EER and minDCF, a histogram of scores."""
    kept = _evenly(curve.p_miss, curve.p_fa)
    point = curve.eer()
    marks = [{"name": f"EER {100 * point.value:.2f} %", "p_miss": point.p_miss, "p_fa": point.p_fa}]
    for p in p_targets:
        point = curve.min_dcf(p)
        marks.append({"name": f"minDCF({p:g}) {point.value:.3f}", "p_miss": point.p_miss, "p_fa": point.p_fa})
    finite = np.isfinite(curve.thresholds)
    thresholds = curve.thresholds[finite]
    edges = np.linspace(
        thresholds[0], thresholds[-1] if thresholds[-1] > thresholds[0] else thresholds[0] + 1, _BINS + 1
    )
    shares = {
        kind: np.histogram(thresholds, edges, weights=counts[finite])[0] / counts.sum()
        for kind, counts in (("target", curve.targets), ("non-target", curve.nontargets))
    }
    return {
        "p_miss": curve.p_miss[kept].tolist(),
        "p_fa": curve.p_fa[kept].tolist(),
        "resolution": {"p_miss": 1 / float(curve.targets.sum()), "p_fa": 1 / float(curve.nontargets.sum())},
        "marks": marks,
        "histogram": {"edges": edges.tolist(), **{kind: share.tolist() for kind, share in shares.items()}},
        "threshold": curve.eer().threshold,
    }


def det_chart(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """DET curves on probit axes, on which two normal score distributions give a straight line (Martin et al., "The DET
    curve in assessment of detection task performance", Eurospeech 1997). ``systems``: :func:`chart_data` by name.

    Axes begin below the least rate that the trials can show; where an error rate is 0, the curve leaves the frame.
    """
    if not systems:
        return ""
    rates = [rate for data in systems.values() for rate in (data["resolution"]["p_miss"], data["resolution"]["p_fa"])]
    low = max([rate for rate in _RATES[:5] if rate <= min(rates)], default=_RATES[0])
    marked = [mark[rate] for data in systems.values() for mark in data["marks"] for rate in ("p_miss", "p_fa")]
    high = min([rate for rate in _RATES if rate >= max(0.5, *marked)], default=_RATES[-1])
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
        color = COLORS[index % len(COLORS)]
        inside = [
            place(p_fa, p_miss)
            for p_fa, p_miss in zip(data["p_fa"], data["p_miss"], strict=True)
            if low <= p_fa <= high and low <= p_miss <= high
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        entries.append(Line(name, (), index))
        parts += _marks(data["marks"], place, color, name if len(systems) > 1 else None)
    middle = _LEFT + side / 2
    return (
        f'<svg class="chart square" viewBox="0 0 {_SIZE} {_TOP + side + _BOTTOM}" role="img" aria-label="DET curve">'
        f"{''.join(parts)}"
        f'<text x="{middle}" y="{_TOP + side + 34}" text-anchor="middle">false alarms, %</text>'
        f'<text transform="translate(12 {_TOP + side / 2}) rotate(-90)" text-anchor="middle">misses, %</text></svg>'
        f"{legend(entries) if len(systems) > 1 else ''}"
        '<p class="note">Circle: EER; squares: minDCF.</p>'
    )


def score_histogram(data: Mapping[str, Any]) -> str:
    """Histograms of non-target and target scores, each as percent of its kind, with the threshold of the EER."""
    edges = data["histogram"]["edges"]
    kinds = {kind: [100 * share for share in data["histogram"][kind]] for kind in ("target", "non-target")}
    return histogram(edges, kinds, "score", "% of its kind", ("EER", data["threshold"]))


def _evenly(p_miss: np.ndarray, p_fa: np.ndarray) -> np.ndarray:
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
    marks: Sequence[Mapping[str, Any]],
    place: Callable[[float, float], tuple[float, float]],
    color: str,
    system: str | None,
) -> list[str]:
    """A circle for the EER, squares for detection costs, named beside them; among other systems, in their titles."""
    names: dict[tuple[float, float], list[str]] = {}
    for mark in marks:
        names.setdefault(place(mark["p_fa"], mark["p_miss"]), []).append(mark["name"])
    parts = []
    for (x, y), here in names.items():
        text = escape(", ".join(here))
        title = f"<title>{escape(system)}: {text}</title>" if system is not None else ""
        if here[0].startswith("EER"):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}">{title}</circle>')
        else:
            parts.append(
                f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="none" stroke="{color}" '
                f'stroke-width="1.8">{title}</rect>'
            )
        if system is None:
            left, down = x > _SIZE * 0.6, y < _TOP + 20  # beside the mark, and inside the frame
            at = f'x="{x - 9 if left else x + 9:.1f}" y="{y + 16 if down else y - 5:.1f}"'
            anchor = "end" if left else "start"
            parts.append(f'<text {at} text-anchor="{anchor}">{text}</text>')
    return parts
