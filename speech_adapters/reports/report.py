"""One self-contained HTML page about a run; it needs no network and no file beside it.

Made from the run folder's ``results.json`` and, where they are there, ``config.yaml``, ``metrics.jsonl``,
``worst.json`` (:class:`~speech_adapters.reports.run_files.Mistake`), ``layer_weights.json``
(``{"adapter": [weight of layer 1, ...]}``, or ``{"adapter": {"name": weight}}``) and ``detection.json``
(``{"system": what`` :func:`~speech_adapters.reports.detection_charts.chart_data` ``gives}``). A run over domains
adds ``domains.json`` (``metric``, ``cells``: method -> domain -> ``{value, low, high}``, ``outside``: the domains that
nothing was trained on) and ``attention.json`` (domain -> place -> member -> mean weight).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from speech_adapters.files import write_text
from speech_adapters.reports.charts import Line, bar_chart, line_chart, scatter_chart
from speech_adapters.reports.detection_charts import det_chart, score_histogram
from speech_adapters.reports.page import Cell, Table, render
from speech_adapters.reports.run_files import Confusion, Domains, Mistake, Rate, RunFiles
from speech_adapters.reports.sound import Sound, sound_of
from speech_adapters.reports.summary import RATES, columns_of, figure, method_rows, summary_table
from speech_adapters.reports.usage import how_to_use
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.results import Results, method_of_training

__all__ = ["method_rows", "method_table", "report_results", "summary_table", "write_report"]

Row = Mapping[str, Any]
Colors = dict[str, int]


def report_results(run: RunFolder, results: Results) -> tuple[str, Path]:
    """Write a run's ``results.json`` and ``report.html``; returns the figures as a table, and the report's path."""
    results.write(run.results_file)
    return summary_table(method_rows(results.to_dict())), write_report(run.path)


def write_report(run_folder: str | os.PathLike[str], *, most_audio_bytes: int = 12_000_000) -> Path:
    """Write ``report.html`` into the run folder and return its path; worst utterances keep their audio up to the cap.

    Raises :class:`InputError` where ``results.json`` is missing or a file is not what it should be.
    """
    folder = Path(run_folder)
    run = RunFiles.read(folder)
    rows = method_rows(run.results)
    methods = [str(row["method"]) for row in rows]
    log = [{**line, "method": method_of_training(str(line.get("method") or methods[0]), methods)} for line in run.log]
    colors: Colors = {}  # one of each method through all charts, the order of the table first
    for name in (*methods, *(line["method"] for line in log), *run.detection, *run.layer_weights):
        colors.setdefault(name, len(colors))
    title = f"{run.results.get('task', 'run')}: {run.results.get('adapter', '')}"
    title += f" on {run.results['encoder']}" if run.results.get("encoder") else ""  # ready scores come from nowhere
    page = render(
        "report.html.j2",
        title=title,
        facts=_facts(run.results, folder.resolve().name),
        methods=method_table(rows),
        usage=how_to_use(run.results, folder),
        parameters=_against_parameters(rows, colors),
        domains=_domains(run.domains),
        attention=_attention(run.attention),
        classes=_classes(rows),
        data=_data_table(run.results["data"]),
        curves=_curves(log, colors),
        layer_weights=_layer_weights(run.layer_weights, colors),
        det=det_chart(run.detection, colors),
        histograms=[(name, score_histogram(data, colors[name])) for name, data in run.detection.items()],
        mistakes=_mistakes(run.worst, folder, most_audio_bytes),
        config=run.config.strip(),
        environment=_environment(run.results),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _facts(results: Row, run: str) -> dict[str, str]:
    seeds = results.get("seeds", results.get("seed"))
    train = results["data"].get("train")
    facts = {
        "Task": results.get("task"),
        "Encoder": results.get("encoder"),
        "Adapter": results.get("adapter"),
        "Training data": _amount(train) if isinstance(train, Mapping) else "",
        "Run": run,
        "Seed": ", ".join(map(str, seeds)) if isinstance(seeds, list) else seeds,
        "Device": results.get("device"),
        "Commit": str(results.get("git_commit") or "")[:12],
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _amount(split: Row) -> str:
    """``5.0 hours, 120 speakers``, as far as it is known."""
    units = ("hours", "speakers", "utterances")
    amounts = ((_datum(unit, split[unit]), unit) for unit in units if split.get(unit))
    return ", ".join(f"{amount} {unit[:-1] if amount == '1' else unit}" for amount, unit in amounts)


def method_table(rows: Sequence[Row]) -> Table:
    """The figures of each method (or run), the best of a column bold where no interval overlaps its own."""
    columns = columns_of(rows)
    cells = [
        [Cell(c.cells[i], c.intervals[i] if c.intervals else "", bold=i == c.best) for c in columns]
        for i in range(len(rows))
    ]
    return Table([c.title for c in columns], cells, [c.numeric for c in columns])


def _against_parameters(rows: Sequence[Row], colors: Colors) -> Markup:
    """The main metric over the trained parameters, one point per method, where there are three or more."""
    name = next((key for row in rows for key in row.get("metrics") or {} if key.lower() in RATES), None)
    points = {}
    for row in rows if name is not None else ():
        trained = figure((row.get("parameters") or {}).get("trainable"))
        value = figure((row.get("metrics") or {}).get(name))
        if trained and trained > 0 and value is not None:
            points[str(row["method"])] = (trained, 100 * value)
    if name is None or len(points) < 3:
        return Markup()
    return scatter_chart(points, "trained parameters, head included", f"{name.upper()} %", colors)


def _classes(rows: Sequence[Row]) -> list[tuple[str, Table, Table]]:
    """Of each method that classified: its confusion matrix, and recall, precision and F1 of each class."""
    found = []
    for row in rows:
        metrics = row.get("metrics") or {}
        confusion, per_class = metrics.get("confusion"), metrics.get("per_class")
        if confusion and per_class:
            cells = [
                [Cell(name), Cell(f"{c.support:g}"), *map(_rate, (c.recall, c.precision, c.f1))]
                for name, c in per_class.items()
            ]
            titles = ["class", "utterances", "recall %", "precision %", "F1 %"]
            figures = Table(titles, cells, [False, True, True, True, True])
            found.append((str(row["method"]), confusion_table(confusion), figures))
    return found


def confusion_table(confusion: Confusion) -> Table:
    """Counts of true classes (rows) by predictions (columns), shaded by their share of the row."""
    rows = []
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        total = sum(counts)
        cells = [Cell(label)]
        for guess, count in zip(confusion.labels, counts, strict=True):
            share = max(0.0, count / total) if total > 0 else 0.0
            tip = f"{label} taken for {guess}: {round(count, 1):g} of {round(total, 1):g}"
            cells.append(Cell(f"{100 * share:.0f} %" if total else "", f"{round(count, 1):g}", share=share, tip=tip))
        rows.append(cells)
    numeric = [False, *[True] * len(confusion.labels)]
    return Table(["true class", *confusion.labels], rows, numeric, corner="predicted, % of the true class")


def _rate(rate: Rate, share: float | None = None) -> Cell:
    """A rate in percent, its interval below."""
    if rate.value is None:
        return Cell("")
    interval = "" if rate.low is None or rate.high is None else f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    note = "" if rate.resampled == "speaker" else f" by {rate.resampled}"
    return Cell(f"{100 * rate.value:.1f}", interval + note, share=share)


def _data_table(data: Row) -> Table | None:
    if not data:
        return None
    splits = {name: entry for name, entry in data.items() if isinstance(entry, Mapping)} or {"all": data}
    keys = list(dict.fromkeys(key for entry in splits.values() for key in entry))
    titles = ["SHA-256" if key == "sha256" else key for key in keys]
    rows = [[Cell(name), *(Cell(_datum(key, entry.get(key))) for key in keys)] for name, entry in splits.items()]
    numeric = [all(isinstance(entry.get(key, 0), int | float | list) for entry in splits.values()) for key in keys]
    return Table(["split", *titles], rows, [False, *numeric])


def _datum(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value)[:12] if key in ("sha256", "hash") else str(value)


def _curves(log: Sequence[Row], colors: Colors) -> list[Markup]:
    """Losses and held-out rates over steps, the mean of a method's folds and seeds; held-out ones are dashed."""
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for index, line in enumerate(log):
        step = figure(line.get("step"))
        for key, value in line.items():
            if figure(value) is not None:
                steps = found.setdefault((line["method"], key), {})
                steps.setdefault(float(index if step is None else step), []).append(float(figure(value) or 0.0))
    curves = {
        name: [(step, sum(values) / len(values)) for step, values in sorted(steps.items())]
        for name, steps in found.items()
    }

    def lines(wanted: Iterable[tuple[str, str]]) -> list[Line]:
        return [
            Line(f"{method}: {_curve_name(key)}", curves[method, key], colors[method], key != "loss")
            for method, key in wanted
        ]

    # `train_loss` is a trainer's mean over the whole run: a single point that belongs on no curve.
    losses = lines(key for key in curves if key[1] == "loss" or (key[1].endswith("_loss") and key[1] != "train_loss"))
    rates = lines(key for key in curves if key[1].removeprefix("eval_") in RATES)
    charts = (line_chart(losses, "step", "loss"), line_chart(rates, "step", "dev rate, %", percent=True))
    return [chart for chart in charts if chart]


def _curve_name(key: str) -> str:
    if key == "loss":
        return "training loss"
    return key.replace("eval_", "dev ", 1).replace("_", " ")


def _layer_weights(
    weights: Mapping[str, list[float | None] | dict[str, float | None]], colors: Colors
) -> list[tuple[str, Markup]]:
    found = []
    for adapter, values in weights.items():
        named = values if isinstance(values, dict) else {str(i): value for i, value in enumerate(values, 1)}
        known = {name: value for name, value in named.items() if value is not None}
        found.append((adapter, bar_chart(known, "layer", "weight", colors[adapter])))
    return found


def _domains(matrix: Domains) -> Table | None:
    """Every method on every domain, the largest figure darkest."""
    names = list(dict.fromkeys(name for row in matrix.cells.values() for name in row))
    values = [rate.value for row in matrix.cells.values() for rate in row.values() if rate.value is not None]
    if not values:
        return None
    rows = []
    for method, row in matrix.cells.items():
        rates = [row.get(name, Rate(None)) for name in names]
        rows.append([Cell(method), *(_rate(rate, _share(rate.value, values)) for rate in rates)])
    titles = [f"{name}, not trained on" if name in matrix.outside else name for name in names]
    return Table([f"{matrix.metric.upper()} %", *titles], rows, [False, *[True] * len(names)], corner="tested on")


def _attention(attention: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[tuple[str, Table]]:
    """Where a fusion looks on each domain's test set."""
    found = []
    for domain, places in attention.items():
        members = list(dict.fromkeys(member for weights in places.values() for member in weights))
        rows = []
        for place, weights in places.items():
            shown = [weights.get(member) for member in members]
            cells = [Cell("" if weight is None else f"{weight:.2f}", share=_share(weight, (0, 1))) for weight in shown]
            rows.append([Cell(place), *cells])
        found.append((domain, Table(["place", *members], rows, [False, *[True] * len(members)], corner="adapter")))
    return found


def _share(value: float | None, values: Sequence[float]) -> float | None:
    """Where ``value`` lies between the least and the largest of ``values``, 0 to 1."""
    low, high = min(values), max(values)
    return None if value is None or high <= low else min(max((value - low) / (high - low), 0.0), 1.0)


def _mistakes(utterances: Sequence[Mistake], folder: Path, bytes_left: int) -> list[tuple[Mistake, Sound]]:
    found = []
    for utterance in utterances:
        sound = Sound()
        if utterance.audio_filepath:
            path = folder / utterance.audio_filepath  # an absolute path stays itself
            sound = sound_of(path, utterance.offset or 0.0, utterance.duration, utterance.channel, bytes_left)
        bytes_left -= sound.size
        found.append((utterance, sound))
    return found


def _environment(results: Row) -> str:
    known = {key: results[key] for key in ("device", "git_commit", "versions") if results.get(key)}
    return json.dumps(known, indent=2, ensure_ascii=False) if known else ""
