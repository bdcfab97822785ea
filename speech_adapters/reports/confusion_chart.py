"""Confusion matrix as inline SVG, in the style of :mod:`speech_adapters.reports.charts`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from speech_adapters.reports.charts import COLORS

_WIDTH, _LETTER = 640, 7  # of the drawing, and of one letter on average
_LARGEST, _SMALLEST, _READABLE = 64.0, 12.0, 34.0  # sides of a cell; below the last, numbers do not fit


def confusion_chart(labels: Sequence[str], counts: Sequence[Sequence[float]]) -> str:
    """Counts (C, C) of true labels (rows) by predictions (columns), shaded by their share of the row.

    A cell shows the share in percent, and below it the count. Where there are too many classes for that, the shade
    and the tooltip tell. A class without an utterance has an empty row.
    """
    if not labels:
        return ""
    names = [label if len(label) <= 22 else label[:21] + "…" for label in labels]
    longest = max(map(len, names)) * _LETTER
    left, top = 34 + longest, 34
    cell = max(_SMALLEST, min(_LARGEST, (_WIDTH - left) / len(labels)))
    slanted = longest > cell
    right, bottom = (0.5 * longest, 34 + 0.9 * longest) if slanted else (12, 34)
    side = cell * len(labels)
    foot = top + side + 16
    parts = []
    for i, (label, name, row) in enumerate(zip(labels, names, counts, strict=True)):
        x, y, total = left + (i + 0.5) * cell, top + (i + 0.5) * cell, sum(row)
        turn = f' transform="rotate(60 {x:.1f} {foot:.1f})"' if slanted else ""
        parts.append(_text(left - 8, y + 4, name, "end"))
        parts.append(_text(x, foot, name, "start" if slanted else "middle", turn))
        for j, (guess, count) in enumerate(zip(labels, row, strict=True)):
            share = count / total if total else 0.0
            tip = f"{label} taken for {guess}: {round(count, 1):g} of {round(total, 1):g}"
            parts.append(
                f'<rect x="{left + j * cell + 1:.1f}" y="{top + i * cell + 1:.1f}" width="{cell - 2:.1f}" '
                f'height="{cell - 2:.1f}" fill="{COLORS[0]}" fill-opacity="{0.05 + 0.95 * share:.3f}">'
                f"<title>{escape(tip)}</title></rect>"
            )
            if cell >= _READABLE and total:
                # A style outranks the page's rule for chart text; black reads better on all but the darkest cells.
                style = f' style="opacity:1{";fill:#fff" if share > 0.85 else ""}"'
                middle = left + (j + 0.5) * cell
                parts.append(_text(middle, y, f"{100 * share:.0f} %", "middle", style))
                parts.append(_text(middle, y + 14, f"{round(count, 1):g}", "middle", style))
    middle = top + side / 2
    parts.append(_text(left + side / 2, top - 14, "prediction", "middle"))
    parts.append(_text(0, 0, "true label", "middle", f' transform="translate(14 {middle:.1f}) rotate(-90)"'))
    width = left + side + right
    return (
        f'<svg class="chart" viewBox="0 0 {width:.0f} {top + side + bottom:.0f}" style="max-width:{width:.0f}px" '
        f'role="img" aria-label="confusion matrix">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
