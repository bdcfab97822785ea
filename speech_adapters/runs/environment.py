"""What a run ran on, and how much memory it took: for ``results.json``."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from speech_adapters.errors import counted


def environment(device: Any = None) -> dict[str, Any]:
    """``versions``, ``git_commit`` (``...-dirty`` with local changes; None if unknown) and ``device``, for results."""
    import torch

    packages = ("speech-adapters", "torch", "torchaudio", "transformers", "peft", "numpy")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cpu = f"{platform.machine()} CPU, {counted(torch.get_num_threads(), 'thread')}"
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def peak_memory_bytes(device: Any = "cpu") -> int:
    """Peak memory in bytes: allocated by torch on a GPU, resident on a CPU; since :func:`reset_peak_memory`."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux: getrusage would count the memory of the process that started this one as well
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])  # type: ignore[index]
    except (OSError, TypeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others KiB


def reset_peak_memory(device: Any = "cpu") -> None:
    """Begin a new measurement, so that each method of a run gets its own peak (on a CPU: on Linux only)."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # "5" resets the high-water mark of resident memory; see proc(5)
            Path("/proc/self/clear_refs").write_text("5")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return None


def _git_commit() -> str | None:
    """The commit this code is of; None where it does not lie in a repository that tracks it."""
    here = Path(__file__)
    try:
        for command in (
            ("ls-files", "--error-unmatch", here.name),
            ("describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"),
        ):
            done = subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True, timeout=20
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
