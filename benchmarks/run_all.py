"""Run the benchmarks of speed and memory, one after the other, and write what they measured into a page.

    python benchmarks/run_all.py                    # make benchmarks: docs/benchmarks.md; half an hour of an idle core
    python benchmarks/run_all.py --quick            # each once, in tiny sizes: runs/benchmarks/benchmarks.md
    python benchmarks/run_all.py inference step     # some of them; the others' last records stay
    python benchmarks/run_all.py --folder FOLDER --minutes 5    # records and page there; on a GPU the GPU's commands

Each benchmark is a process that writes a record (:mod:`timing`); the page is made of the records that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

#: Name -> command on a CPU. One of each script runs under --quick.
ON_CPU = {
    "step": "step.py --methods full everything lora bottleneck --seconds 6 --rounds 2",
    "step_peft": "step.py --family wav2vec2 --methods peft full lora bottleneck --seconds 6 --rounds 2",
    "adapters_library_step": "adapters_library_step.py",
    "step_packaged": "step.py --encoder tiny-wav2vec2 --methods peft full lora bottleneck l-frozen head-only",
    "step_checkpointing": "step.py --methods full lora --seconds 6 --rounds 1 --checkpointing",
    "step_selective": "step.py --methods full lora bottleneck --batch 4 --seconds 12 --rounds 2 --selective",
    "step_compiled": "step.py --encoder tiny-wavlm --methods full lora --compile",
    "inference": "inference.py",
    "encoder_forward": "encoder_forward.py --rounds 3",
    "together": "together.py",
    "mixed_batch": "mixed_batch.py --rounds 3",
    "evaluators": "evaluators.py",
    "quantized_base": "quantized_base.py",
    "onnx_export": "onnx_export.py",
    "serving": "serving.py load switch",
    "cache": "cache.py --minutes 2 --rounds 2",
    "curves": "curves.py --rounds 2",
}

#: Name -> command on a GPU, the most wanted first.
ON_GPU = {
    "encoder_forward": "encoder_forward.py --seconds 15 --batch 8 --precision bf16",
    "step": "step.py --batch 8 --seconds 15 --precision bf16 --rounds 10",
    "step_peft": "step.py --family wav2vec2 --batch 8 --seconds 15 --precision bf16 --methods peft full lora",
    "step_selective": "step.py --batch 8 --seconds 15 --precision bf16 --methods full lora bottleneck --selective",
    "step_compiled": "step.py --batch 8 --seconds 15 --precision bf16 --methods full lora --compile",
    "inference": "inference.py --batch 8 --precision bf16 --rounds 20",
    "mixed_batch": "mixed_batch.py --encoder base --seconds 5 --rounds 20",
    "quantized_base": "quantized_base.py --encoder base",
    "together": "together.py --encoder base --precision bf16 --updates 8",
    "cache": "cache.py --encoder small-wavlm --minutes 10",
    "curves": "curves.py --precision bf16 --rounds 10",
}

INTRODUCTION = """# Benchmarks

Written by `make benchmarks` from what each command measured, on the machine that stands beside it. Ways of a table
took turns in one process. Seconds are medians; a ratio is the median over rounds of a way's seconds to the baseline's
of the same round: of CPU seconds on a CPU, of wall seconds on a GPU. Load is the number of programs that wanted to run
when the command began and ended: above the number of cores, wall seconds say little, and CPU seconds grow too, since
programs share caches and memory. `benchmarks/README.md` says what each command does.
"""

#: Packages whose versions the page tells; records hold more.
SHOWN = ("torch", "transformers", "peft")

GPU = "gpu_"

OTHER = "ADAPTERS_LIBRARY_PYTHON"

#: Script -> the variable that names what it needs.
NEEDS = {
    "cache.py": "SPEECH_ADAPTERS_DATA",
    "together.py": "SPEECH_ADAPTERS_DATA",
    "adapters_library_step.py": OTHER,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(dict.fromkeys([*ON_CPU, *ON_GPU]))}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, and measures nothing")
    parser.add_argument("--folder", type=Path, help="where records and page go")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    arguments = parser.parse_args()
    commands = chosen(arguments.names, arguments.quick, parser)
    folder = arguments.folder or (Path("runs/benchmarks") if arguments.quick else HERE / "results")
    page = HERE.parent / "docs" / "benchmarks.md" if folder == HERE / "results" else folder / "benchmarks.md"
    folder.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * arguments.minutes, []
    for name, command in commands.items():
        if not run(command, folder / f"{on_gpu()}{name}.json", end - time.monotonic()):
            failed.append(name)
        page.write_text(page_of(records(folder)), encoding="utf-8")
    print(f"{page}: written" + (f"; without {', '.join(failed)}" if failed else ""))
    return int(bool(failed) and arguments.minutes == float("inf"))


def on_gpu() -> str:
    """What the names of a GPU's records begin with, so that they stand beside a CPU's."""
    import torch

    return GPU if torch.cuda.is_available() else ""


def chosen(names: Sequence[str], quick: bool, parser: argparse.ArgumentParser) -> dict[str, str]:
    """The commands to run on this machine."""
    commands = ON_GPU if on_gpu() else ON_CPU
    if quick:
        commands = {Path(command.split()[0]).stem: f"{command.split()[0]} --quick" for command in commands.values()}
    if unknown := [name for name in names if name not in commands]:
        parser.error(f"no benchmark here is called {', '.join(unknown)}; choose of {', '.join(commands)}")
    optional = [] if OTHER in os.environ else ["adapters_library_step"]  # left out unless asked for
    return {name: commands[name] for name in names or commands if names or name not in optional}


def run(command: str, record: Path, seconds: float) -> bool:
    """One benchmark in a process of its own; whether it wrote its record."""
    script, *words = command.split()
    if script in NEEDS and NEEDS[script] not in os.environ:
        print(f"## {command}: not run; set {NEEDS[script]}, benchmarks/README.md says to what\n", flush=True)
        return False
    if seconds < 10:
        print(f"## {command}: not run, the time is up\n", flush=True)
        return False
    print(f"## {command}\n", flush=True)
    own = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    limit = None if seconds == float("inf") else seconds
    try:
        done = subprocess.run([sys.executable, str(HERE / script), *words, f"--json={record}"], env=own, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"{command}: stopped, the time is up\n", flush=True)
        return False
    return done.returncode == 0


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder by name, in the order of the commands."""
    order = [*(f"{GPU}{name}" for name in ON_GPU), *ON_CPU]
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    return dict(sorted(found.items(), key=lambda pair: (order.index(pair[0]) if pair[0] in order else -1, pair[0])))


def page_of(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: machine and versions, then each record's command, date, load and tables."""
    from timing import markdown

    lines = [INTRODUCTION]
    if any(record["quick"] for record in found.values()):
        lines += ["**Tiny sizes (`--quick`): these figures show that the commands run, and no more.**", ""]
    for name, record in found.items():
        versions = ", ".join(f"{package} {record['versions'][package]}" for package in SHOWN)
        load = " to ".join(str(load) for load in record["load"])
        title = f"{name.removeprefix(GPU)} on a GPU" if name.startswith(GPU) else name
        lines += [f"## {title.replace('_', ' ')}", "", f"`{record['command']}`", ""]
        lines += [f"{record['date']}, {record['device']} of {record['machine']}, load {load}; {versions}", ""]
        for table in record["tables"]:
            lines += [table["title"][:1].upper() + table["title"][1:], "", markdown(table), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
