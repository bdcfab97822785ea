"""What a forward computes with: fp32, or autocast to 16 bits where the hardware has instructions for that."""

from __future__ import annotations

import platform
import warnings
from typing import TYPE_CHECKING, Any

from speech_adapters.errors import ConfigError

if TYPE_CHECKING:
    import torch

X86 = ("x86_64", "AMD64")
"""What ``platform.machine`` calls processors whose instructions torch tells."""

PRECISIONS = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}
"""Name in settings -> torch's name of what products are computed in."""


def autocast(device: torch.device | str, precision: str, *, scaled: bool = False, **options: Any) -> torch.autocast:
    """What a forward in this precision runs under; weights, losses and optimizer stay in fp32.

    Warns where bf16 is emulated: there it is slower than fp32, and without AVX512 some 80 times.

    Args:
        scaled: whether it is of a training that scales its loss, as fp16 needs; others run in fp32 in place of fp16,
            beyond whose range an activation may be.

    Raises:
        ConfigError: an unknown precision.
    """
    import torch

    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}: choose from {', '.join(PRECISIONS)}.")
    kind = torch.device(device).type
    name = None if precision == "fp16" and not scaled else PRECISIONS[precision]
    if precision == "bf16" and kind == "cpu" and platform.machine() in X86 and not cpu_has_bfloat16():
        warnings.warn(
            "precision bf16: this CPU has no instructions for it and emulates them, far slower than fp32; use fp32.",
            stacklevel=2,
        )
    return torch.autocast(kind, None if name is None else getattr(torch, name), enabled=name is not None, **options)


def fast_bfloat16(device: str | None = None) -> bool:
    """True where bf16 is faster than fp32: a GPU or CPU with instructions for it (AMX, AVX512-BF16); by default of the
    GPU where there is one."""
    import torch

    if torch.cuda.is_available() and device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """True where this x86 processor has instructions for bf16: AMX or AVX512-BF16."""
    import torch

    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
