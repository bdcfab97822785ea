"""The benchmarks' records and page: what is written is what was measured. None of these tests is a measurement."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
sys.path.insert(0, str(FOLDER))

import run_all  # noqa: E402
import timing  # noqa: E402

SCRIPTS = sorted({command.split()[0] for command in [*run_all.ON_CPU.values(), *run_all.ON_GPU.values()]})


def figures(text: str) -> list[list[str]]:
    """The cells of the tables' rows in Markdown."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] not in ("", "---") and not row[0].startswith("CPU s")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One benchmark in tiny sizes, run as a user runs it."""
    folder = tmp_path_factory.mktemp("records")
    command = [sys.executable, "benchmarks/run_all.py", "inference", "--quick", "--folder", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_page_holds_what_was_measured(measured: Path) -> None:
    record = json.loads((measured / "inference.json").read_text())
    assert record["command"] == "python benchmarks/inference.py --quick" and record["quick"]
    assert record["versions"]["torch"] and record["machine"] and len(record["load"]) == 2
    rows = record["tables"][0]["rows"]
    assert record["tables"][0]["baseline"] == "base" and rows["base"]["ratio"] == 1.0
    assert all(row["cpu_seconds"] > 0 and row["wall_seconds"] > 0 for row in rows.values())
    page = (measured / "benchmarks.md").read_text()
    assert page == run_all.page_of(run_all.records(measured))
    shown = {row[0]: row[1:] for row in figures(page)}
    assert shown.keys() == rows.keys()
    for name, row in rows.items():
        assert shown[name][:3] == [f"{row[key]:.3f}" for key in ("cpu_seconds", "wall_seconds", "ratio")]
    for told in (record["command"], record["date"], record["machine"], record["versions"]["torch"], "Tiny sizes"):
        assert told in page


def test_another_record_gives_another_page(measured: Path, tmp_path: Path) -> None:
    record = json.loads((measured / "inference.json").read_text())
    record["tables"][0]["rows"]["lora"]["ratio"] = 7.125
    record["quick"] = False
    (tmp_path / "inference.json").write_text(json.dumps(record))
    page = run_all.page_of(run_all.records(tmp_path))
    assert "7.125" in page and "Tiny sizes" not in page


def test_the_committed_page_is_that_of_the_committed_records() -> None:
    records = run_all.records(FOLDER / "results")
    assert records and not any(record["quick"] for record in records.values())
    assert (ROOT / "docs" / "benchmarks.md").read_text() == run_all.page_of(records), "run make benchmarks"
    for name, record in records.items():
        known = run_all.ON_GPU if name.startswith(run_all.GPU) else run_all.ON_CPU
        assert re.fullmatch(r"python benchmarks/\w+\.py( \S+)*", record["command"])
        assert name.removeprefix(run_all.GPU) in known


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_measures_in_the_one_way(script: str) -> None:
    text = (FOLDER / script).read_text()
    assert "from timing import" in text and "record.write()" in text
    assert "perf_counter" not in text or script == "serving.py"  # requests overlap there
    assert f"`{script}`" in (FOLDER / "README.md").read_text()


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    order, seconds = [], iter([9.0, 9.0, 1.0, 3.0, 2.0, 4.0])

    def way(name: str) -> None:
        order.append(name)

    def once(call, device):
        call()
        time = next(seconds)
        return {"cpu_seconds": time, "wall_seconds": 10 * time}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "once", once)
        rows = timing.in_turns({"a": lambda: way("a"), "b": lambda: way("b")}, 2, torch.device("cpu"))
    assert order == ["a", "b"] * 3
    assert rows["a"] == {"cpu_seconds": 1.5, "wall_seconds": 15.0, "ratio": 1.0}
    assert rows["b"] == {"cpu_seconds": 3.5, "wall_seconds": 35.0, "ratio": 2.5}  # of 3 / 1 and 4 / 2


def test_a_failed_benchmark_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run_all, "chosen", lambda *_: {"one": "one.py", "other": "other.py"})
    monkeypatch.setattr(run_all, "run", lambda command, record, seconds: command == "other.py")
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--folder", str(tmp_path)])
    assert run_all.main() == 1
    assert "without one" in capsys.readouterr().out


def test_the_gpu_script_parses_and_says_how_it_is_called() -> None:
    script = FOLDER / "gpu.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode == 2 and "MINUTES" in done.stdout and "benchmarks/gpu.sh FOLDER" in done.stdout
