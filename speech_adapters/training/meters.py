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
        self._last = self._counters()
        self._spent = dict.fromkeys(self._last, 0.0)

    def joules(self) -> float | None:
        """None where no counter can be read. A CPU's begins again at 0 after an hour or so: ask more often."""
        now = self._counters()
        for key in self._spent.keys() & now.keys():
            step, wrap = now[key][0] - self._last[key][0], now[key][1]
            self._spent[key] += step if step >= 0 else step + wrap
            self._last[key] = now[key]
        return sum(self._spent.values()) if self._spent else None

    def _counters(self) -> dict[str, tuple[float, float]]:
        """Joules of each counter, and where it begins again."""
        found = {}
        for package in POWERCAP.glob("intel-rapl:[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if ":" not in package.name.removeprefix("intel-rapl:"):  # a package, not a part of one
                    now, most = (int((package / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
                    found[package.name] = now / 1e6, most / 1e6
        if torch.device(self.device).type == "cuda":
            with contextlib.suppress(Exception):  # no library, or a driver that does not tell
                import pynvml

                pynvml.nvmlInit()
                uuid = str(torch.cuda.get_device_properties(self.device).uuid)
                handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                found["gpu"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0
        return found
