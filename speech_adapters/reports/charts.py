"""Charts as inline SVG: no file beside the page, sharp at any size, readable on light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

# Narrow, so that letters stay readable on a phone.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 240, 50, 20, 10, 38  # right of the last tick, half its label
_MOST_POINTS = 400  # a polyline; more cannot be seen at this width
_INKS = 12


def ink(color: int) -> str:
    """A colour of the page's style sheet, which has one for light and one for dark."""
    return f"var(--c{color % _INKS})"


@dataclass(frozen=True)
class Line:
    """One curve of a chart; ``dashed`` for what was measured on held-out data, ``band`` for (x, low, high)."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, percent: bool = False) -> Markup:
    """Curves over a shared axis; logarithmic where the positive values span more than a factor of 20."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup()
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, *ends in line.band for y in ends]
    ys = [y * (100 if percent else 1) for y in ys]
    logarithmic = not percent and min(ys) > 0 and max(ys) / min(ys) > 20
    x_ticks = ticks(min(xs), max(xs))
    y_ticks = (_log_ticks if logarithmic else ticks)(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    scale = math.log if logarithmic else float
    y_low, y_high = scale(y_ticks[0]), scale(y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - x_low) / (x_high - x_low)
        up = (scale(y) - y_low) / (y_high - y_low)
        return _LEFT + right * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_horizontal(place(x_low, y)[1], number(y)) for y in y_ticks]
    parts += [_below(place(x, y_ticks[0])[0], number(x)) for x in x_ticks if x_low <= x <= x_high]
    for line in lines:
        if line.band:
            edge = [(x, low) for x, low, _ in line.band] + [(x, high) for x, _, high in reversed(line.band)]
            outline = [place(x, y * (100 if percent else 1)) for x, y in edge]
            shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
            parts.append(f'<polygon points="{shape}" style="fill:{ink(line.color)}" fill-opacity="0.13"/>')
        step = math.ceil(len(line.points) / _MOST_POINTS)
        kept = [*line.points[::step], line.points[-1]]
        places = [place(x, y * (100 if percent else 1)) for x, y in kept]
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(
            f'<polyline points="{path}" fill="none" style="stroke:{ink(line.color)}" stroke-width="1.8"{dash}/>'
        )
        if len(line.points) <= 30:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" style="fill:{ink(line.color)}"/>' for x, y in places]
    return _svg(parts, x_label, y_label) + legend(lines)


def bar_chart(values: Mapping[str, float], x_label: str, y_label: str, color: int = 0) -> Markup:
    """One bar a name; bars of negative values hang from the zero line."""
    if not values:
        return Markup()
    y_ticks = ticks(min(0.0, *values.values()), max(0.0, *values.values()))
    span = y_ticks[-1] - y_ticks[0]
    slot = (_WIDTH - _LEFT - _RIGHT) / len(values)

    def height(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_ticks[0]) / span * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_horizontal(height(y), number(y)) for y in y_ticks]
    every = math.ceil(len(values) * max(map(len, values)) / 48)  # about so many letters fit
    for index, (name, value) in enumerate(values.items()):
        left, top = _LEFT + (index + 0.15) * slot, min(height(value), height(0.0))
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{0.7 * slot:.1f}" '
            f'height="{abs(height(value) - height(0.0)):.1f}" style="fill:{ink(color)}">'
            f"<title>{escape(name)}: {value:.4g}</title></rect>"
        )
        if index % every == 0:
            parts.append(_below(left + 0.35 * slot, name))
    return _svg(parts, x_label, y_label)


def scatter_chart(
    points: Mapping[str, tuple[float, float]], x_label: str, y_label: str, colors: Mapping[str, int] | None = None
) -> Markup:
    """One named point each, over a logarithmic x axis; every x is above 0."""
    if not points:
        return Markup()
    xs, ys = [x for x, _ in points.values()], [y for _, y in points.values()]
    x_ticks = _log_ticks(min(xs), max(max(xs), 1.01 * min(xs)))
    y_ticks = ticks(min(ys), max(ys))
    place, parts = _axes(x_ticks, y_ticks, math.log)
    labels: list[tuple[float, float, float]] = []  # left, right and height of those that stand
    for name, (x, y) in sorted(points.items(), key=lambda point: -point[1][1]):  # from the top down
        left, top = place(x, y)
        anchor, shift = ("end", -6) if left > 0.6 * _WIDTH else ("start", 6)
        wide = 6.2 * len(name) + 6
        begin = left - wide if anchor == "end" else left
        height = top + 4
        while any(b < begin + wide and begin < e and abs(h - height) < 11 for b, e, h in labels):
            height += 1
        labels.append((begin, begin + wide, height))
        parts.append(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3.5" style="fill:{ink((colors or {}).get(name, 0))}">'
            f"<title>{escape(name)}: {number(x)}, {y:.4g}</title></circle>"
            f'<text x="{left + shift:.1f}" y="{height:.1f}" text-anchor="{anchor}">'
            f"{escape(name)}</text>"
        )
    return _svg(parts, x_label, y_label)


@dataclass(frozen=True)
class Dots:
    """Points of one kind; ``joined`` by a line in the order of x, with ``tips`` for the pointer, one each."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    joined: bool = False
    tips: Sequence[str] = ()


def dot_chart(kinds: Sequence[Dots], x_label: str, y_label: str) -> Markup:
    """Dots over a shared x axis, logarithmic where its values are positive and span more than a factor of 8."""
    kinds = [kind for kind in kinds if kind.points]
    if not kinds:
        return Markup()
    xs, ys = ([point[axis] for kind in kinds for point in kind.points] for axis in (0, 1))
    logarithmic = min(xs) > 0 and max(xs) / min(xs) > 8
    x_ticks, y_ticks = (_log_ticks if logarithmic else ticks)(min(xs), max(xs)), ticks(min(ys), max(ys))
    place, parts = _axes(x_ticks, y_ticks, math.log if logarithmic else float)
    for kind in kinds:
        places = [place(x, y) for x, y in kind.points]
        if kind.joined:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(places))
            parts.append(
                f'<polyline points="{path}" fill="none" style="stroke:{ink(kind.color)}" stroke-width="1.4" '
                'stroke-dasharray="5 4"/>'
            )
            continue
        for (x, y), tip in zip(places, kind.tips or [kind.name] * len(places), strict=True):
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:{ink(kind.color)}" fill-opacity="0.75">'
                f"<title>{escape(tip)}</title></circle>"
            )
    entries = [(kind.name, ink(kind.color), "5 4" if kind.joined else "") for kind in kinds]
    return _svg(parts, x_label, y_label) + _legend(entries)


def histogram(
    edges: Sequence[float],
    kinds: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    mark: tuple[str, float | None],
    color: int = 0,
) -> Markup:
    """Outlines of two kinds over the bins between ``edges``: the first in ``color``, the second in grey; and a dashed
    line at the named place."""
    y_ticks = ticks(0.0, max(map(max, kinds.values())))
    inks = [ink(color), "var(--other)"]

    def across(x: float) -> float:
        return _LEFT + (x - edges[0]) / (edges[-1] - edges[0]) * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / y_ticks[-1] * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_horizontal(up(y), number(y)) for y in y_ticks]
    parts += [_below(across(x), number(x)) for x in ticks(edges[0], edges[-1]) if edges[0] <= x <= edges[-1]]
    for shade, heights in zip(inks, kinds.values(), strict=True):
        places = [(across(edges[0]), up(0))]
        for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
            places += [(across(left), up(height)), (across(right), up(height))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*places, (across(edges[-1]), up(0))])
        parts.append(f'<polygon points="{path}" style="fill:{shade};stroke:{shade}" fill-opacity="0.35"/>')
    name, x = mark
    if x is not None and edges[0] <= x <= edges[-1]:
        parts.append(
            f'<line x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
            f'stroke="currentColor" stroke-dasharray="4 3"/>'
            f'<text x="{across(x) + 5:.1f}" y="{_TOP + 10}">{escape(name)}</text>'
        )
    return _svg(parts, x_label, y_label) + _legend(zip(kinds, inks, ("", ""), strict=True))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover ``low`` to ``high``, at least two."""
    if high - low <= max(1e-10, 1e-9 * max(abs(low), abs(high))):
        around = 0.5 * abs(low) if abs(low) > 1e-9 else 0.5
        low, high = low - around, high + around
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    steps = [
        m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    first = max(i for i, step in enumerate(steps) if step <= low * 1.0001)
    last = min(i for i, step in enumerate(steps) if step >= high * 0.9999)
    chosen = steps[first : last + 1]
    return chosen if len(chosen) <= 9 else [chosen[0], *(s for s in chosen[1:-1] if f"{s:e}"[0] == "1"), chosen[-1]]


def number(value: float) -> str:
    """A short label: ``2M``, ``12k``, ``0.05``."""
    if abs(value) >= 1_000_000:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def legend(lines: Sequence[Line]) -> Markup:
    """The names of curves beside a sample of their lines."""
    return _legend((line.name, ink(line.color), "6 4" if line.dashed else "") for line in lines)


def _legend(entries: Iterable[tuple[str, str, str]]) -> Markup:
    samples = [
        f'<span><svg width="26" height="10" aria-hidden="true"><line x2="26" y1="5" y2="5" stroke-width="2.5" '
        f'style="stroke:{color}" stroke-dasharray="{dash or "none"}"/></svg> {escape(name)}</span>'
        for name, color, dash in entries
    ]
    return Markup(f'<p class="legend">{"".join(samples)}</p>')


def _axes(
    x_ticks: Sequence[float], y_ticks: Sequence[float], scale: Callable[[float], float]
) -> tuple[Callable[[float, float], tuple[float, float]], list[str]]:
    """Where (x, y) lies between the outer ticks, x on ``scale``; and the lines and labels of both axes."""
    x_low, x_high = scale(x_ticks[0]), scale(x_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = (scale(x) - x_low) / (x_high - x_low), (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + right * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_horizontal(place(x_ticks[0], y)[1], number(y)) for y in y_ticks]
    return place, parts + [_below(place(x, y_ticks[0])[0], number(x)) for x in x_ticks]


def _horizontal(y: float, label: str) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
    )


def _below(x: float, label: str) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{escape(label)}</text>'


def _svg(parts: Sequence[str], x_label: str, y_label: str) -> Markup:
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(y_label)} by {escape(x_label)}">{"".join(parts)}'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text></svg>'
    )
