"""What a training costs besides time and memory: floating-point operations and energy."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the CPU packages' energy counters."""


class FlopCounter(TorchDispatchMode):
    """Counts the floating-point operations of all products and convolutions inside a ``with``, from their shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


class EnergyMeter:
    """Joules that the GPU (NVML, with ``nvidia-ml-py``) and the CPU packages (RAPL, where it may be read) have taken
    since it was made, whoever used them."""

    def __init__(self, device: Any = "cpu") -> None:
        self.device = device
        self._before = self._counters()

    def joules(self) -> float | None:
        """None where no counter can be read."""
        now = self._counters()
        spent = [now[key] - before for key, before in self._before.items() if key in now]
        return sum(spent) if spent else None

    def _counters(self) -> dict[str, float]:
        found = {}
        for package in POWERCAP.glob("intel-rapl:[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if ":" not in package.name.removeprefix("intel-rapl:"):  # a package, not a part of one
                    found[package.name] = int((package / "energy_uj").read_text()) / 1e6
        if torch.device(self.device).type == "cuda":
            with contextlib.suppress(Exception):  # no library, or a driver that does not tell
                import pynvml

                pynvml.nvmlInit()
                uuid = str(torch.cuda.get_device_properties(self.device).uuid)
                handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                found["gpu"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        return found
