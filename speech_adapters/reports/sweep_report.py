"""What a sweep found, for people: trials by their settings, error against parameters, finalists with intervals.

Made from the folder's ``trials.json`` (:meth:`~speech_adapters.sweeps.study.Sweep.found`) and the finalists' figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from speech_adapters.adapters.base import choose_layers
from speech_adapters.files import read_json, write_text
from speech_adapters.reports.charts import Dots, dot_chart
from speech_adapters.reports.page import Cell, Table, render
from speech_adapters.reports.summary import figure, higher_is_better, interval_of


@dataclass(frozen=True)
class Finished:
    """A trial that was trained to its end; ``rate`` is the metric on dev data, in percent."""

    number: int
    adapter: str
    values: Mapping[str, Any]
    rate: float
    parameters: float

    @property
    def tip(self) -> str:
        """What the pointer shows."""
        return f"trial {self.number}, {self.adapter}: {self.rate:.1f} %, {self.parameters:,.0f} parameters"


@dataclass(frozen=True)
class _Found:
    """A sweep's files."""

    content: Mapping[str, Any]
    folder: Path

    @property
    def metric(self) -> str:
        return str(self.content["metric"])

    @property
    def title(self) -> str:
        return f"{self.metric.upper()} %"

    @property
    def sign(self) -> int:
        """-1 where more is better, so that the least of sign times rate is the best."""
        return -1 if higher_is_better(self.metric) else 1

    @property
    def trials(self) -> list[Mapping[str, Any]]:
        return list(self.content["trials"])

    @property
    def finished(self) -> list[Finished]:
        """Best first."""
        found = [
            Finished(
                trial["number"],
                adapter_of(trial, self.content),
                trial["values"],
                100 * rate,
                trial["parameters"]["trainable"],
            )
            for trial in self.trials
            if (rate := figure((trial.get("metrics") or {}).get(self.metric))) is not None and "parameters" in trial
        ]
        return sorted(found, key=lambda trial: (self.sign * trial.rate, trial.number))

    @property
    def colors(self) -> dict[str, int]:
        names = dict.fromkeys(adapter_of(trial, self.content) for trial in self.trials if "values" in trial)
        return {name: color for color, name in enumerate(names)}


def write_sweep_report(folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into a sweep's folder and return its path."""
    found = _Found(read_json(Path(folder) / "trials.json"), Path(folder))
    finished = found.finished
    front = pareto_front(finished, found.sign)
    page = render(
        "sweep.html.j2",
        title=f"Sweep: {found.content['task']} on {found.content['encoder']}",
        facts=_facts(found),
        pareto=_against_parameters(found, finished, front),
        front=_trial_table(found, front),
        finalists=_finalists(found),
        settings=[(name, *_ablation(found, finished, name)) for name in _setting_names(found)],
        trials=_trial_table(found, finished[:30]),
    )
    write_text(Path(folder) / "report.html", page)
    return Path(folder) / "report.html"


def sweep_table(folder: str | os.PathLike[str], most: int = 10) -> str:
    """The best trials as aligned text, and the finalists."""
    found = _Found(read_json(Path(folder) / "trials.json"), Path(folder))
    tables = [_trial_table(found, found.finished[:most]), _finalists(found)]
    return "\n\n".join(_aligned(table) for table in tables if table is not None)


def pareto_front(trials: Iterable[Finished], sign: int) -> list[Finished]:
    """The trials that no other beats in both parameters and figure, fewest parameters first."""
    front: list[Finished] = []
    for trial in sorted(trials, key=lambda one: (one.parameters, sign * one.rate, one.number)):
        if not front or sign * trial.rate < sign * front[-1].rate:
            front.append(trial)
    return front


def adapter_of(trial: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """The preset that a trial trained."""
    return str(trial.get("values", {}).get("adapter", content["adapter"]))


def _facts(found: _Found) -> dict[str, str]:
    states = [trial["state"] for trial in found.trials]
    best = found.finished[:1]
    facts = {
        "Task": found.content["task"],
        "Encoder": found.content["encoder"],
        "Trials": f"{len(states)}, of which {states.count('complete')} to their end, {states.count('pruned')} pruned",
        "Updates": f"{found.content['updates']:,} per trial",
        "Best": f"{best[0].rate:.1f} {found.title} on dev data" if best else "none yet",
    }
    return {name: str(value) for name, value in facts.items()}


def _against_parameters(found: _Found, finished: Sequence[Finished], front: Sequence[Finished]) -> Markup:
    kinds = _by_adapter(found, finished, lambda trial: (trial.parameters, trial.rate))
    edge = [(trial.parameters, trial.rate) for trial in front]
    kinds.append(Dots("no other is better and smaller", edge, len(kinds), joined=True))
    return dot_chart(kinds if finished else [], "trained parameters, head included", f"dev {found.title}")


def _by_adapter(found: _Found, trials: Sequence[Finished], point: Any) -> list[Dots]:
    kinds = []
    for adapter, color in found.colors.items():
        own = [trial for trial in trials if trial.adapter == adapter]
        if own:
            kinds.append(Dots(adapter, [point(trial) for trial in own], color, tips=[trial.tip for trial in own]))
    return kinds


def _trial_table(found: _Found, trials: Sequence[Finished]) -> Table:
    rows = [
        [
            Cell(str(trial.number)),
            Cell(f"{trial.rate:.1f}"),
            Cell(f"{trial.parameters:,.0f}"),
            Cell(trial.adapter),
            Cell(", ".join(f"{key}={_shown(value)}" for key, value in _settings(trial.values).items())),
        ]
        for trial in trials
    ]
    return Table(
        ["trial", f"dev {found.title}", "parameters", "adapter", "settings"], rows, [False, True, True, False, False]
    )


# ---------------------------------------------------------------------- by setting


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the setting's name, the same for all adapters: ``options.lora.rank`` is ``rank``."""
    return {_setting(key): value for key, value in values.items() if key != "adapter"}


def _setting(key: str) -> str:
    root, _, rest = key.partition(".")
    return rest.partition(".")[2] if root == "options" else rest if root == "adapter_options" else key


def _setting_names(found: _Found) -> list[str]:
    names = dict.fromkeys(name for trial in found.trials for name in _settings(trial.get("values", {})))
    several = len({adapter_of(trial, found.content) for trial in found.trials}) > 1
    return [*(["adapter"] if several else []), *names]


def _ablation(found: _Found, finished: Sequence[Finished], name: str) -> tuple[Table | None, list[Markup]]:
    """A table of a setting's values, and charts of figure and parameters over it where it is a number."""

    def value_of(values: Mapping[str, Any], adapter: str) -> Any:
        return adapter if name == "adapter" else _settings(values).get(name, _ABSENT)

    chosen: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    continuous = False
    for trial in found.trials:
        adapter = adapter_of(trial, found.content)
        value = value_of(trial.get("values", {}), adapter)
        if value is not _ABSENT:
            continuous = continuous or isinstance(value, float)
            chosen.setdefault((adapter, _shown(value)), []).append(trial)
    ends = {trial.number: trial for trial in finished}
    rows = []
    for (adapter, value), trials in sorted(chosen.items(), key=lambda item: (item[0][0], _order(item[0][1]))):
        own = [ends[trial["number"]] for trial in trials if trial["number"] in ends]
        rates = [trial.rate for trial in own]
        rows.append(
            [
                Cell(adapter),
                *([] if name == "adapter" else [Cell(value)]),
                Cell(str(len(trials))),
                Cell(str(sum(trial["state"] == "pruned" for trial in trials))),
                Cell(f"{min(rates, key=lambda rate: found.sign * rate):.1f}" if rates else ""),
                Cell(f"{median(rates):.1f}" if rates else ""),
                Cell(f"{median(trial.parameters for trial in own):,.0f}" if own else ""),
            ]
        )
    titles = ["adapter", *([] if name == "adapter" else [name]), "trials", "pruned"]
    titles += [f"best dev {found.title}", "median", "median parameters"]
    numeric = [False] * (len(titles) - 5) + [True] * 5
    points = [
        (trial, x)
        for trial in finished
        if name != "adapter"
        and (x := _number(name, value_of(trial.values, trial.adapter), found.content["layers"])) is not None
    ]
    charts = []
    if len({x for _, x in points}) > 1:
        label = "layers that get an adapter" if name == "layers" else name
        places, trials_ = {trial.number: x for trial, x in points}, [trial for trial, _ in points]
        for y_label, read in (
            (f"dev {found.title}", lambda trial: trial.rate),
            ("trained parameters", lambda trial: trial.parameters),
        ):
            kinds = _by_adapter(found, trials_, lambda trial, read=read: (places[trial.number], read(trial)))
            charts.append(dot_chart(kinds, label, y_label))
        if continuous:
            charts = charts[:1]  # a rate takes no parameters
    return (None if continuous else Table(titles, rows, numeric)), charts


_ABSENT = object()


def _number(name: str, value: Any, layers: int) -> float | None:
    """Where a value stands on an axis; of ``layers``, how many they are."""
    if name == "layers" and (value is None or isinstance(value, str | list)):
        return float(len(choose_layers(tuple(value) if isinstance(value, list) else value, layers, name)))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(_shown, value))
    return "all" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


# ---------------------------------------------------------------------- finalists


def _finalists(found: _Found) -> Table | None:
    rows = []
    for folder in sorted((found.folder / "finalists").glob("trial-*")):
        if not (folder / "results.json").is_file():
            continue
        results = read_json(folder / "results.json")
        tested = read_json(folder / "test.json") if (folder / "test.json").is_file() else {}
        seeds = results.get(f"{found.metric}_by_seed") or []
        rows.append(
            [
                Cell(folder.name.removeprefix("trial-").lstrip("0") or "0"),
                Cell(str(results["adapter"])),
                _rate(results["metrics"].get(found.metric)),
                Cell(" ".join(f"{100 * rate:.1f}" for rate in seeds)),
                _rate((tested.get("metrics") or {}).get(found.metric)),
                Cell(f"{(results.get('parameters') or {}).get('trainable', 0):,.0f}"),
            ]
        )
    if not rows:
        return None
    titles = ["trial", "adapter", f"dev {found.title}", "by seed", f"test {found.title}", "parameters"]
    return Table(titles, rows, [False, False, True, True, True, True])


def _rate(entry: Any) -> Cell:
    value = figure(entry)
    if value is None:
        return Cell("not asked for")
    ends = interval_of(entry)
    return Cell(f"{100 * value:.1f}", "" if ends is None else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]")


def _aligned(table: Table) -> str:
    lines = [list(table.titles)]
    lines += [[f"{cell.text} {cell.small}".strip() for cell in row] for row in table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.titles))]
    pad = [str.rjust if numeric else str.ljust for numeric in table.numeric]
    return "\n".join(
        "  ".join(p(text, width) for p, text, width in zip(pad, line, widths, strict=True)).rstrip() for line in lines
    )
