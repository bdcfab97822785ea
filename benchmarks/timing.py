"""How every benchmark here measures and tells: ways that take turns, medians, CPU and wall seconds, one JSON record.

Ways take turns in one process, so that what else the machine does hits all of them alike; the first round is thrown
away. On a CPU the CPU seconds of the process are compared (``process_time``: other programs count little), on a GPU
wall seconds, after it has finished. A ratio is the median over rounds of a way's seconds to the baseline's of the same
round: neighbours in time. Joules stand beside them where a counter can be read, whoever used them.

A record is what one command measured: its tables, the machine and how busy it was, versions, date, and the command.
``run_all.py`` writes docs/benchmarks.md from these.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from speech_adapters.files import write_json
from speech_adapters.runs.environment import environment
from speech_adapters.training.meters import EnergyMeter

Row = dict[str, Any]
"""Figures by name; ``ratio`` is to the table's baseline."""

#: Name of a figure -> heading and format; others stand under their own names.
COLUMNS = {
    "cpu_seconds": ("CPU s", "{:.3f}"),
    "wall_seconds": ("wall s", "{:.3f}"),
    "full_seconds": ("full's s", "{:.3f}"),
    "ratio": ("of {baseline}", "{:.3f}"),
    "faster": ("times as fast", "{:.2f}"),
    "joules": ("J", "{:.1f}"),
    "peak_gib": ("peak GiB", "{:.2f}"),
    "peak_ratio": ("of {baseline}'s", "{:.2f}"),
    "above_gib": ("GiB above the model", "{:.2f}"),
    "above_ratio": ("of {baseline}'s above", "{:.2f}"),
    "gflop": ("GFLOP", "{:.1f}"),
    "gflop_ratio": ("of {baseline}'s GFLOP", "{:.2f}"),
    "megabytes": ("MB", "{:.1f}"),
    "loss_difference": ("greatest difference of losses", "{:.1e}"),
    "wer_change": ("change of WER", "{:+.2%}"),
}


def the_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parser_of(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed ones, after a first")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, and measures nothing")
    parser.add_argument("--json", type=Path, help="write the record there")
    return parser


def parse(parser: argparse.ArgumentParser, quick: Mapping[str, Any]) -> argparse.Namespace:
    """The command line; ``quick`` holds the defaults under ``--quick``."""
    if "--quick" in sys.argv:
        parser.set_defaults(**{"rounds": 1, **quick})
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments


def compared(device: torch.device) -> str:
    """The figure that ratios are of."""
    return "wall_seconds" if device.type == "cuda" else "cpu_seconds"


def in_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, baseline: str | None = None
) -> dict[str, Row]:
    """Median seconds of each way and its ratio to the ``baseline``'s, by default the first's."""
    found: dict[str, list[Row]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            found[name].append(once(way, device))
    base, key = found[baseline or next(iter(ways))][1:], compared(device)
    rows = {}
    for name, (_, *own) in found.items():
        row = {figure: _middle(figure)(each[figure] for each in own) for figure in own[0]}
        ratios = [mine[key] / other[key] for mine, other in zip(own, base, strict=True)]
        rows[name] = row | {"ratio": statistics.median(ratios)}
    return rows


def _middle(figure: str) -> Callable[[Iterable[float]], float]:
    """The mean of joules: a GPU's counter moves ten times a second, so that short steps took none or too many."""
    return statistics.mean if figure == "joules" else statistics.median


def once(way: Callable[[], object], device: torch.device) -> Row:
    """CPU and wall seconds of a call, and joules where they can be read."""
    meter, cpu, wall = EnergyMeter(device), time.process_time(), time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    row = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    joules = meter.joules()
    return row if joules is None else row | {"joules": joules}


class Record:
    """What one command measured, printed as it comes."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.path, self.device, self.load = arguments.json, device, [round(os.getloadavg()[0], 1)]
        self.content: dict[str, Any] = {
            "benchmark": Path(sys.argv[0]).stem,
            "command": command(sys.argv),
            "quick": arguments.quick,
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "tables": [],
        }

    def add(self, title: str, rows: Mapping[str, Row], baseline: str = "") -> None:
        """Print a table, and keep it."""
        table = {"title": title, "baseline": baseline, "rows": dict(rows)}
        self.content["tables"].append(table)
        print(f"{title}\n\n{markdown(table)}\n", flush=True)

    def write(self) -> None:
        """Write the record where ``--json`` says."""
        if self.path is not None:
            load = [*self.load, round(os.getloadavg()[0], 1)]
            write_json(self.path, {**self.content, **environment(self.device), "load": load})


def command(words: Sequence[str]) -> str:
    """As a person would type it, without the place of the record."""
    return re.sub(r" --json[= ]\S+", "", " ".join([f"python benchmarks/{Path(words[0]).name}", *words[1:]]))


def machine() -> str:
    """The processor and its cores."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{cpu[1] if cpu else 'unnamed CPU'}, {os.cpu_count()} cores"


def markdown(table: Mapping[str, Any]) -> str:
    """A table of a record as GitHub's Markdown."""
    keys = list(dict.fromkeys(key for row in table["rows"].values() for key in row))
    heads = [COLUMNS.get(key, (key.replace("_", " "), ""))[0].format(baseline=table["baseline"]) for key in keys]
    lines = [["", *heads], ["---", *("---:" for _ in keys)]]
    lines += [[name, *(cell(key, row.get(key)) for key in keys)] for name, row in table["rows"].items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return COLUMNS.get(key, ("", "{:.4g}"))[1].format(value)
    return str(value)
