"""Kill a command at random moments, then let it end: what is left must be what an undisturbed run leaves."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file


def run(command: Sequence[str]) -> float:
    """Let a command end; returns its wall seconds."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.perf_counter() - started


def kill(command: Sequence[str], after: float) -> bool:
    """SIGKILL a command after so many seconds; False where it had ended by then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def kill_often(command: Sequence[str], kills: int, seconds: float, seed: int, start: float = 0.0) -> int:
    """Kill a command, begun anew each time, at random moments of its first ``seconds``, from ``start`` on; then let it
    end. Returns how often it was killed."""
    draw, killed = random.Random(seed), 0
    for _ in range(kills):
        killed += kill(command, draw.uniform(start, seconds))
    run(command)
    return killed


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """All tensors that a run has saved as adapters, heads and fusions, by file and name."""
    files = sorted(run_folder.rglob("*.safetensors"))
    assert files
    parts = {file.relative_to(run_folder).parent.as_posix(): load_file(file) for file in files}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def rubbish(folder: Path) -> list[Path]:
    """Temporary files that were left behind."""
    return [path for path in folder.rglob(".*") if path.name.endswith((".tmp", ".part"))]
