"""One self-contained HTML page about a run; it needs no network and no file beside it.

Made from the run folder's ``results.json`` and, where they are there, ``config.yaml``, ``metrics.jsonl``,
``worst.json`` (utterances: ``id``, ``speaker``, ``audio_filepath``, ``offset``, ``duration``, ``reference``,
``hypothesis``, ``alignment``, ``errors``, ``words``), ``layer_weights.json``
(``{"adapter": [weight of layer 1, ...]}``, or ``{"adapter": {"name": weight}}``) and ``detection.json``
(``{"system": what`` :func:`~speech_adapters.reports.detection_charts.chart_data` ``gives}``). A run over domains
adds ``domains.json`` (``metric`` and ``cells``: method -> domain -> ``{value, low, high}``) and ``attention.json``
(domain -> place -> member -> mean weight).
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from speech_adapters.data.audio import SAMPLE_RATE, read_audio
from speech_adapters.errors import InputError
from speech_adapters.files import read_json, read_log, write_text
from speech_adapters.metrics.bootstrap import Interval
from speech_adapters.reports.charts import Line, bar_chart, heat_map, line_chart, scatter_chart
from speech_adapters.reports.confusion_chart import confusion_chart
from speech_adapters.reports.detection_charts import det_chart, score_histogram
from speech_adapters.reports.summary import RATES, columns_of, figure, method_rows, summary_table

__all__ = ["method_rows", "summary_table", "write_report"]

_MOST_SECONDS = 30.0  # of one utterance's audio in the page


def write_report(run_folder: str | os.PathLike[str], *, most_audio_bytes: int = 12_000_000) -> Path:
    """Write ``report.html`` into the run folder and return its path; worst utterances keep their audio up to the cap.

    Raises :class:`InputError` where ``results.json`` is missing or a file is not what it should be.
    """
    folder = Path(run_folder)
    results = _read(folder / "results.json", dict, needed=True)
    config = folder / "config.yaml"
    title = f"{results.get('task', 'run')}: {results.get('adapter', '')}"
    title += f" on {results['encoder']}" if results.get("encoder") else ""  # ready scores come from nowhere
    sections = (
        f"<h1>{escape(title)}</h1>",
        _facts(results, folder.resolve().name),
        _section("Methods", _method_table(method_rows(results))),
        _section("Domains", _domains(_read(folder / "domains.json", dict))),
        _section("Attention of each place", _attention(_read(folder / "attention.json", dict))),
        _section("Figures against parameters", _against_parameters(method_rows(results))),
        _section("Classes", _classes(method_rows(results))),
        _section("Data", _data_table(results.get("data"))),
        _section("Training", _curves(read_log(folder / "metrics.jsonl"), str(results.get("adapter") or "this run"))),
        _section("Weight of each layer", _layer_weights(_read(folder / "layer_weights.json", dict))),
        _section("Detection", _detection(_read(folder / "detection.json", dict))),
        _section("Worst utterances", _worst(_read(folder / "worst.json", list), folder, most_audio_bytes)),
        _details("Configuration", config.read_text(encoding="utf-8") if config.exists() else ""),
        _details("Environment", _environment(results)),
    )
    page = _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, sections)))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _facts(results: Mapping[str, Any], run: str) -> str:
    seeds = results.get("seeds", results.get("seed"))
    facts = {
        "Task": results.get("task"),
        "Encoder": results.get("encoder"),
        "Adapter": results.get("adapter"),
        "Training data": _amount((results.get("data") or {}).get("train")),
        "Run": run,
        "Seed": ", ".join(map(str, seeds)) if isinstance(seeds, list) else seeds,
        "Device": results.get("device"),
        "Commit": str(results.get("git_commit") or "")[:12],
    }
    shown = {name: value for name, value in facts.items() if value not in (None, "")}
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in shown.items())
    return f'<dl class="facts">{items}</dl>'


def _amount(split: Any) -> str:
    """``5.0 h, 120 speakers``, as far as it is known."""
    known = split if isinstance(split, Mapping) else {}
    units = ("hours", "speakers", "utterances")
    return ", ".join(f"{_datum(unit, known[unit])} {unit}" for unit in units if known.get(unit))


def _method_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = columns_of(rows)
    body = [
        [f"<strong>{escape(c.cells[i])}</strong>" if i in c.best else escape(c.cells[i]) for c in columns]
        for i in range(len(rows))
    ]
    note = "Rates in percent with 95 % bootstrap intervals; the best figure of a column is bold."
    return _table([c.title for c in columns], body, [c.numeric for c in columns]) + f'<p class="note">{note}</p>'


def _against_parameters(rows: Sequence[Mapping[str, Any]]) -> str:
    """The main metric over the trained parameters, one point a method, where there are three or more."""
    name = next((key for row in rows for key in row.get("metrics") or {} if key.lower() in RATES), None)
    if name is None:
        return ""
    points = {}
    for row in rows:
        trained = figure((row.get("parameters") or {}).get("trainable"))
        value = figure((row.get("metrics") or {}).get(name))
        if trained and value is not None:
            points[str(row.get("method", ""))] = (trained, 100 * value)
    chart = scatter_chart(points, "trained parameters, head included", f"{name.upper()} %")
    return chart if len(points) >= 3 else ""


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of each method that classified: its confusion matrix, and recall, precision and F1 of each class."""
    figures = []
    for row in rows:
        metrics = row.get("metrics") or {}
        confusion, per_class = metrics.get("confusion"), metrics.get("per_class")
        if not confusion or not per_class:
            continue
        keys = ("recall", "precision", "f1")
        cells = [
            [escape(name), str(entry["support"]), *(_rate(entry[key]) for key in keys)]
            for name, entry in per_class.items()
        ]
        titles = ["class", "utterances", "recall %", "precision %", "F1 %"]
        chart = confusion_chart(confusion["labels"], confusion["counts"])
        table = _table(titles, cells, [False, True, True, True, True])
        figures.append(f'<h3>{escape(str(row["method"]))}</h3><div class="pair">{chart}{table}</div>')
    return "".join(figures)


def _rate(entry: Mapping[str, float]) -> str:
    """``61.2 [50.1, 70.3]``"""
    value, low, high = (f"{100 * entry[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _data_table(data: Any) -> str:
    if not isinstance(data, Mapping) or not data:
        return ""
    splits = {name: entry for name, entry in data.items() if isinstance(entry, Mapping)} or {"all": data}
    keys = list(dict.fromkeys(key for entry in splits.values() for key in entry))
    titles = {key: "SHA-256" if key == "sha256" else key for key in keys}
    rows = [[escape(name), *(escape(_datum(key, entry.get(key))) for key in keys)] for name, entry in splits.items()]
    numeric = [all(isinstance(entry.get(key, 0), int | float | list) for entry in splits.values()) for key in keys]
    return _table(["split", *titles.values()], rows, [False, *numeric])


def _datum(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value)[:12] if key in ("sha256", "hash") else str(value)


def _curves(log: Sequence[Mapping[str, Any]], own: str) -> str:
    """Losses and held-out rates over steps, the mean of a method's seeds; a log line may say its ``method``."""

    def method_of(line: Mapping[str, Any]) -> str:
        return re.sub(r"-seed\d+$", "", str(line.get("method", own)))

    methods = list(dict.fromkeys(map(method_of, log)))
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for index, line in enumerate(log):
        step = figure(line.get("step"))
        for key, value in line.items():
            if figure(value) is not None:
                steps = found.setdefault((method_of(line), key), {})
                steps.setdefault(float(index if step is None else step), []).append(float(value))
    curves = {
        name: [(step, sum(values) / len(values)) for step, values in sorted(steps.items())]
        for name, steps in found.items()
    }

    def lines(wanted: Iterable[tuple[str, str]]) -> list[Line]:
        return [
            Line(f"{method}: {key.replace('_', ' ')}", curves[method, key], methods.index(method), key != "loss")
            for method, key in wanted
        ]

    # `train_loss` is a trainer's mean over the whole run: a single point that belongs on no curve.
    losses = lines(key for key in curves if key[1] == "loss" or (key[1].endswith("_loss") and key[1] != "train_loss"))
    rates = lines(key for key in curves if key[1].removeprefix("eval_") in RATES)
    charts = (line_chart(losses, "step", "loss"), line_chart(rates, "step", "held-out rate, %", percent=True))
    return _side_by_side("", *charts)


def _layer_weights(weights: Any) -> str:
    figures = []
    for index, (adapter, values) in enumerate(weights.items()):
        named = values if isinstance(values, Mapping) else {str(i): value for i, value in enumerate(values, 1)}
        known = {str(name): value for name, value in named.items() if figure(value) is not None}
        figures.append(f"<h3>{escape(adapter)}</h3>{bar_chart(known, 'layer', 'weight', index)}")
    return _side_by_side(*figures)


def _domains(matrix: Mapping[str, Any]) -> str:
    """Every method on every domain: a heat map, and a table with intervals."""
    cells = matrix.get("cells")
    if not cells:
        return ""
    domains = list(next(iter(cells.values())))
    values = [[row[domain]["value"] for domain in domains] for row in cells.values()]
    metric = str(matrix.get("metric", "")).upper()
    chart = heat_map(list(cells), domains, values, "tested on", f"{metric}, %", percent=True, color=3)
    body = [
        [escape(method), *(Interval.from_dict(row[domain]).percent() for domain in domains)]
        for method, row in cells.items()
    ]
    return chart + _table([f"{metric}, %", *domains], body, [False, *[True] * len(domains)])


def _attention(attention: Mapping[str, Any]) -> str:
    """Where a fusion looks on each domain's test set."""
    figures = []
    for domain, places in attention.items():
        members = list(next(iter(places.values())))
        values = [[weights[member] for member in members] for weights in places.values()]
        figures.append(f"<h3>{escape(domain)}</h3>{heat_map(list(places), members, values, 'adapter', 'weight')}")
    return _side_by_side(*figures)


def _detection(systems: Mapping[str, Any]) -> str:
    """One DET chart of all systems, and a histogram of scores for each."""
    histograms = [f"<h3>{escape(name)}</h3>{score_histogram(data)}" for name, data in systems.items()]
    return _side_by_side(det_chart(systems), *histograms)


def _worst(utterances: Any, folder: Path, most_audio_bytes: int) -> str:
    cards = []
    for utterance in utterances:
        player, size = audio_player(utterance, folder, most_audio_bytes)
        most_audio_bytes -= size
        errors, words = utterance.get("errors"), utterance.get("words")
        score = "" if errors is None else f"{errors} errors" + (f" in {words} words" if words is not None else "")
        speaker = f"speaker {utterance['speaker']}" if utterance.get("speaker") else ""
        who = " · ".join(filter(None, (speaker, score)))
        texts = utterance.get("alignment") or f"REF: {utterance.get('reference')}\nHYP: {utterance.get('hypothesis')}"
        cards.append(
            f"<article><header><b>{escape(str(utterance.get('id', '')))}</b> <span>{escape(who)}</span></header>"
            f"{player}<pre>{escape(str(texts).rstrip())}</pre></article>"
        )
    return "".join(cards)


def audio_player(utterance: Mapping[str, Any], folder: Path, bytes_left: int) -> tuple[str, int]:
    """An audio player that carries its sound, and its size in bytes; or a line that says why there is none."""
    import soundfile

    if not utterance.get("audio_filepath"):
        return "", 0
    seconds = min(utterance.get("duration") or _MOST_SECONDS, _MOST_SECONDS)
    try:
        path = folder / str(utterance["audio_filepath"])  # an absolute path stays itself
        waveform = read_audio(path, offset=utterance.get("offset") or 0.0, duration=utterance.get("duration"))
    except InputError as error:
        return f'<p class="note">no audio: {escape(str(error))}</p>', 0
    buffer = io.BytesIO()
    samples = waveform[: int(seconds * SAMPLE_RATE)].clamp(-1.0, 1.0).numpy()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    if len(encoded) > bytes_left:
        return '<p class="note">no audio: the page is at its size limit</p>', 0
    return f'<audio controls preload="metadata" src="data:audio/flac;base64,{encoded}"></audio>', len(encoded)


def _environment(results: Mapping[str, Any]) -> str:
    keys = ("device", "git_commit", "versions")
    return json.dumps({key: results[key] for key in keys if key in results}, indent=2)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _details(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>" if text.strip("{} \n") else ""


def _side_by_side(*figures: str) -> str:
    shown = [f"<figure>{figure}</figure>" for figure in figures if figure]
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """``rows`` hold HTML; ``titles`` are escaped here."""
    align = [' class="number"' if is_numeric else "" for is_numeric in numeric]
    head = "".join(f"<th{a}>{escape(title)}</th>" for title, a in zip(titles, align, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{a}>{cell}</td>" for cell, a in zip(row, align, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _read(path: Path, kind: type[Any], needed: bool = False) -> Any:
    """What a JSON file holds, or an empty ``kind`` where it is missing and not needed."""
    content = read_json(path) if needed or path.exists() else kind()
    if not isinstance(content, kind):
        raise InputError(f"{path}: expected a JSON {'list' if kind is list else 'object'}; repeat what writes it")
    return content


_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent);
  --soft: color-mix(in srgb, currentColor 6%, transparent); }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; max-width: 76rem; margin: 0 auto;
  padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .75rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 0 0 .3rem; font-weight: 600; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0; }
.facts dt, .note, th, article header span { opacity: .68; font-size: .82rem; }
.facts dd { margin: 0; font-weight: 600; }
.scroll, pre { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .35rem .5rem; text-align: left; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; }
th { font-weight: 600; } .number { text-align: right; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem; }
.pair { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: center; margin-bottom: 1.5rem; }
.pair .chart { flex: 1 1 24rem; } .pair .scroll { max-width: 100%; }
figure { margin: 0; min-width: 0; } .chart { width: 100%; max-width: 40rem; height: auto; }
.square { max-width: 28rem; }
.chart text { font-size: 12px; fill: currentColor; opacity: .75; } .grid { stroke: var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .2rem 0 0 2rem; font-size: .85rem; }
article { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; margin: .7rem 0; }
article header { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; }
audio { width: 100%; max-width: 30rem; height: 2.2rem; margin-top: .5rem; display: block; }
pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; background: var(--soft);
  padding: .6rem .8rem; border-radius: 6px; margin: .6rem 0 0; }
details { margin-top: 1.5rem; } summary { cursor: pointer; font-weight: 600; }
"""

# The policy lets the page fetch nothing, so that it stays complete in itself.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; media-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
