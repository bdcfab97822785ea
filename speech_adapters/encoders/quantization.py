"""A frozen base held in 8 or 4 bits: weights are stored as small integers and unfolded for each product.

    int8   W = code * scale            one scale an output channel, code in -127 .. 127
    int4   W = level[code] * scale     one scale 64 weights, 16 equally spaced levels
    nf4    W = level[code] * scale     the same with the levels of QLoRA, quantiles of a normal distribution

Linear maps take the asked form; convolutions (a tenth of the weights, near the waveform) are kept in int8 in all
three. Norms, biases and what is smaller than 4096 weights stay as they are. The backward pass unfolds the weights
again rather than keeping them, so that training too holds one unfolded matrix at a time. Plain tensor code, which runs
on CPU and GPU; the codes of nf4 lie as bitsandbytes packs them, whose kernel unfolds them on a GPU where it is
installed.

Source: Dettmers et al., "QLoRA" (NeurIPS 2023, section 3 and appendix E for the levels).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from speech_adapters.errors import ConfigError

Quantization = Literal["int8", "int4", "nf4"]

GROUP = 64
SMALLEST = 4096
CONV_SETTINGS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
LEVELS = {
    "int4": tuple((code - 8) / 7 for code in range(16)),
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
}  # fmt: skip


def quantize_model(model: nn.Module, kind: Quantization) -> nn.Module:
    """Replace the weights of a stock encoder, in place.

    Raises:
        ConfigError: an unknown kind.
    """
    if kind not in ("int8", *LEVELS):
        raise ConfigError(f"quantize={kind!r}: choose int8, int4 or nf4, or None for the weights as they are.")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv1d) and module.weight.numel() >= SMALLEST:
            quantized = QuantizedLinear(module, kind) if isinstance(module, nn.Linear) else QuantizedConv1d(module)
            model.set_submodule(name, quantized)
    return model


def weight_bytes(model: nn.Module) -> int:
    """Memory of a model's parameters and buffers in bytes."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


class QuantizedLinear(nn.Linear):
    """A frozen linear map (..., D_in) -> (..., D_out); ``weight`` is unfolded at each look."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)  # not Linear's: it would make a weight of its own
        self.in_features, self.out_features, self.kind = linear.in_features, linear.out_features, kind
        weight = linear.weight.detach().float()
        codes, scales = _to_int8(weight) if kind == "int8" else _to_4_bits(weight, kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # read-only here: nothing trains or replaces it
        """(D_out, D_in), float32."""
        if self.kind == "int8":
            return self.codes * self.scales.float()
        unfold = _by_bitsandbytes if self.kind == "nf4" and self.codes.is_cuda and has_bitsandbytes() else _from_4_bits
        return unfold(self.codes, self.scales, self.kind, (self.out_features, self.in_features))

    def forward(self, hidden: Tensor) -> Tensor:
        return _FrozenLinear.apply(hidden, self)  # type: ignore[no-untyped-call]  # torch leaves apply untyped

    def unfolded(self) -> nn.Linear:
        """An ordinary linear map with the same weights, e.g. to be trained."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=self.codes.device)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


class QuantizedConv1d(nn.Conv1d):
    """A frozen convolution in int8, weight norm folded in; ``weight`` is unfolded at each look."""

    codes: Tensor
    scales: Tensor

    def __init__(self, conv: nn.Conv1d) -> None:
        nn.Module.__init__(self)
        for name in CONV_SETTINGS:
            setattr(self, name, getattr(conv, name))
        codes, scales = _to_int8(conv.weight.detach().float())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = conv.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # read-only here: nothing trains or replaces it
        """(D_out, D_in / groups, kernel), float32."""
        return self.codes * self.scales.float()

    def forward(self, signal: Tensor) -> Tensor:
        return functional.conv1d(
            signal, self.weight.to(signal.dtype), self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def unfolded(self) -> nn.Conv1d:
        """An ordinary convolution with the same weights, e.g. to be trained."""
        settings = {name: getattr(self, name) for name in CONV_SETTINGS}
        conv = nn.Conv1d(**settings, bias=self.bias is not None, device=self.codes.device)
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        return conv

    extra_repr = nn.Module.extra_repr


class _FrozenLinear(torch.autograd.Function):
    """``hidden W' + b`` that keeps nothing but the module for the backward pass: no gradient reaches W."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        bias = None if linear.bias is None else linear.bias.to(hidden.dtype)
        return functional.linear(hidden, linear.weight.to(hidden.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.linear.weight.to(gradient.dtype), None


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(D_out, ...) -> codes of the same shape, scales (D_out, 1, ...)."""
    scales = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp_min(1e-12) / 127
    return (weight / scales).round().to(torch.int8), scales


def _to_4_bits(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(D_out, D_in) -> two codes a byte, the first in the upper half, (groups, GROUP / 2), and scales (groups, 1)."""
    flat = functional.pad(weight.flatten(), (0, -weight.numel() % GROUP)).view(-1, GROUP)
    scales = flat.abs().amax(1, keepdim=True).clamp_min(1e-6).half()
    table = torch.tensor(LEVELS[kind], device=weight.device)
    between = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(flat / scales.float(), between).to(torch.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2], scales


def _from_4_bits(codes: Tensor, scales: Tensor, kind: str, shape: tuple[int, int]) -> Tensor:
    table = torch.tensor(LEVELS[kind], device=codes.device)
    pairs = torch.stack([codes >> 4, codes & 15], dim=-1).flatten(1)
    values = table[pairs.int()] * scales.float()
    return values.flatten()[: shape[0] * shape[1]].view(shape)


@cache
def has_bitsandbytes() -> bool:
    """True where bitsandbytes can be imported; importing it defines the kernel that :func:`_by_bitsandbytes` calls."""
    if find_spec("bitsandbytes") is None:
        return False
    import bitsandbytes  # noqa: F401

    return True


def _by_bitsandbytes(codes: Tensor, scales: Tensor, kind: str, shape: tuple[int, int]) -> Tensor:
    unfold = torch.ops.bitsandbytes.dequantize_4bit
    packed = codes.flatten()[: (shape[0] * shape[1] + 1) // 2]  # it takes no padding of the last group
    return unfold(packed, scales.float().flatten(), GROUP, kind, list(shape), torch.float32)
