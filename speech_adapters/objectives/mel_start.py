"""A stock convolutional front-end that starts as a log-mel filterbank and its teacher's two convolutions.

The stock block is a convolution, LayerNorm over the channels, GELU. Made of it, nearly exactly:

- magnitudes: three copies of a windowed Fourier filter whose phases lie a third of a turn apart. Summed after the
  GELUs, its odd part (half the input) cancels and its even part leaves what rises with the magnitude alone;
- logarithms: ``sum_j GELU(s - s z / t_j)``, the thresholds ``t_j`` in geometric progression, falls as ``log z`` rises,
  and each term is bounded, however loud it gets;
- LayerNorms that only scale: *constants*, channels whose large biases dominate the variance, and *balances*, channels
  that keep the sum over all channels at zero.

Two blocks give logarithmic mel magnitudes; two more and the projection are fitted, by ridge regression, to the
teacher's two convolutions. To start as the classical features and then to learn is the idea of Zeghidour et al.,
"Learning filterbanks from raw speech" (ICASSP 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv1d, gelu

from speech_adapters.data.joined import LEVEL
from speech_adapters.encoders.families.wav2vec2 import ConvBlock, Model
from speech_adapters.encoders.families.whisper import HOP, WINDOW, mel_filters
from speech_adapters.objectives.whisper_student import wav2vec2_like, whisper_student
from speech_adapters.objectives.whisper_teacher import STRIDE, WhisperTeacher

FIELD = 1040
"""Receptive field in samples of :func:`mel_stack`'s frames: five frames of the spectrum."""
FROZEN = 2
"""Blocks that :func:`mel_student` leaves as they start: the filterbank and its logarithms."""
FAINT = 0.2
"""Scale of the student's positional convolution, which has to add to a front-end that is right already."""
BINS, PHASES = WINDOW // 2 - 1, 3
STEPS = 6
"""Terms of a band's logarithm, some 9 dB each."""
SHARPNESS = 3.0
"""``s`` above: how suddenly a term ends at its threshold."""
RANGE = 500.0
"""Magnitudes under a band's loudest that still count: 54 dB. More would strain half precision."""
BALANCES = CONSTANTS = 16
DOMINANCE = 3.0
"""The constants' norm over the largest norm of the other channels: LayerNorm's scale moves by 5 % at most."""
RIDGE = 1e-4
"""Added to the fits' variances, as a share of their mean."""


def mel_stack(width: int, mels: int = 80) -> dict[str, tuple[int, ...]]:
    """``conv_dim``, ``conv_kernel`` and ``conv_stride`` of a front-end that :func:`start_as_mel` fills.

    ``width`` and ``mels`` are the teacher's; (640, 512, 544, 544) channels for Whisper base.
    """
    extra = BALANCES + CONSTANTS
    channels = (-(-BINS * PHASES // 64) * 64, mels * STEPS + extra, width + extra, width + extra)
    return {"conv_dim": channels, "conv_kernel": (WINDOW, 1, 3, 3), "conv_stride": (HOP, 1, 1, 2)}


def samples_of(frames: int) -> int:
    """Length of the waveform that gives this many frames."""
    return FIELD + STRIDE * (frames - 1)


@torch.no_grad()
def mel_student(teacher: WhisperTeacher, heard: Tensor) -> tuple[Model, list[float]]:
    """A WavLM student on the teacher's device that starts as its teacher, positions apart.

    Args:
        heard: (B, samples), see :func:`start_as_mel`.

    Returns: the student, whose first blocks are frozen at the values that fp16 will save; the explained shares.
    """
    whisper = teacher.encoder.config
    stack = mel_stack(whisper.d_model, whisper.num_mel_bins)
    student = whisper_student(
        teacher,
        "wavlm",
        conv_dim=stack["conv_dim"],
        conv_kernel=stack["conv_kernel"],
        conv_stride=stack["conv_stride"],
    ).to(heard.device)
    family = wav2vec2_like(student)
    family.quieten_positions(student, FAINT)
    explained = start_as_mel(student, teacher, heard, LEVEL * heard)
    for block in family.blocks(student)[:FROZEN]:
        for parameter in block.parameters():
            parameter.requires_grad_(False).copy_(parameter.half())
    return student, explained


@torch.no_grad()
def start_as_mel(model: Model, teacher: WhisperTeacher, heard: Tensor, taught: Tensor) -> list[float]:
    """Fill the front-end of ``model`` (built with :func:`mel_stack`) so that it gives the teacher's layer 0.

    Args:
        heard, taught: (B, samples), the same speech as the student (zero mean, unit variance) and as the teacher hear
            it. Some minutes: the thresholds and the fits are taken from it.

    Returns: the share of variance that the fits explain of the teacher's first and second convolution and of its
        layer 0, whose positions are left out.
    """
    family = wav2vec2_like(model)
    blocks = family.blocks(model)
    one, two = (teacher.family.convolution(block) for block in teacher.family.blocks(teacher.encoder))
    quiet = _filterbank(blocks[0], heard)
    magnitudes = _run(blocks[:1], heard)
    _logarithms(blocks[1], magnitudes, quiet, mel_filters(one.in_channels).T.to(heard))
    bands = _run(blocks[1:2], magnitudes)
    # The teacher's convolutions without padding: their first outputs are the student's third and second.
    inner = conv1d(teacher.log_mel(taught), one.weight, one.bias)
    outer = conv1d(gelu(inner), two.weight, two.bias, stride=2)
    inner, outer = inner.transpose(1, 2), outer.transpose(1, 2)
    explained = [_fit_block(blocks[2], bands, inner, 2)]
    hidden = _run(blocks[2:3], bands)
    explained.append(_fit_block(blocks[3], hidden, outer, 1))
    # The projection's own LayerNorm needs constants as well: those of block 3, half of which GELU lets through.
    norm, width = blocks[3].layer_norm, outer.shape[-1] + BALANCES
    largest = float(_run(blocks[3:4], hidden)[..., :width].square().sum(-1).max().sqrt())
    norm.weight[width:] = DOMINANCE * largest / math.sqrt(CONSTANTS / 2) / math.sqrt(len(norm.weight) / CONSTANTS)
    projection = family.projection(model)
    normed = family.latents(model, _run(blocks[3:4], hidden))[:, 1 : 1 + outer.shape[1]]
    weight, bias, share = _ridge(normed.flatten(0, 1), gelu(outer).flatten(0, 1))
    projection.weight.copy_(weight)
    projection.bias.copy_(bias)
    return [*explained, share]


def _run(blocks: Sequence[ConvBlock], signal: Tensor) -> Tensor:
    """Waveforms (B, samples) or frames (B, T, C) through stock blocks -> (B, T', C')."""
    signal = signal.unsqueeze(1) if signal.dim() == 2 else signal.transpose(1, 2)
    for block in blocks:
        signal = block(signal)
    return signal.transpose(1, 2)


def _filterbank(block: ConvBlock, heard: Tensor) -> Tensor:
    """Block 0: bins 1 to 199 in three phases, in units of each bin's quiet level (bins,), which it returns."""
    window = torch.hann_window(WINDOW, device=heard.device)
    spectrum = torch.stft(heard, WINDOW, HOP, window=window, center=False, return_complex=True)[:, 1:-1].abs()
    quiet, loud = (_quantile(spectrum.transpose(0, 1).flatten(1), q) for q in (0.1, 0.998))
    quiet = torch.maximum(quiet, loud / RANGE)
    bins = torch.arange(1, BINS + 1, dtype=torch.float64)[:, None, None]
    phases = torch.arange(PHASES, dtype=torch.float64)[:, None] / PHASES
    turns = (bins * torch.arange(WINDOW) / WINDOW + phases) % 1
    filters = (window * (2 * math.pi * turns).cos().to(window)).flatten(0, 1)
    block.conv.weight.zero_()[: len(filters), 0] = filters
    block.conv.bias.zero_()
    loudest = math.sqrt(PHASES / 2 * float(spectrum.square().sum(1).max()))
    scale = _constants(block, len(filters), loudest)
    block.layer_norm.weight[: len(filters)] = scale / quiet.repeat_interleave(PHASES)
    return quiet


def _logarithms(block: ConvBlock, magnitudes: Tensor, quiet: Tensor, filters: Tensor) -> None:
    """Block 1: the steps of each band. ``magnitudes`` (B, T, C) is what block 0 gives, ``filters`` (201, mels)."""
    mel = filters[1:-1].T / filters.sum(0)[:, None]
    # Of three phases far above the quiet level, GELU leaves 3 / pi of the magnitude.
    mel = mel * quiet * math.pi / PHASES
    mel = mel.repeat_interleave(PHASES, dim=1)
    bands = magnitudes[..., : BINS * PHASES] @ mel.T
    low, high = (_quantile(bands.flatten(0, 1).T, q) for q in (0.02, 0.998))
    low = torch.maximum(low, high / RANGE)
    share = torch.linspace(0, 1, STEPS, device=mel.device)
    thresholds = 2 * low[:, None] * (high / (2 * low))[:, None] ** share  # (mels, steps)
    rows = -(mel[:, None] / thresholds[..., None]).flatten(0, 1)
    total = _with_balances(block, rows.unsqueeze(-1), torch.zeros(len(rows), device=mel.device))
    largest = float((magnitudes[..., : BINS * PHASES] @ total[..., 0].T).square().sum(-1).max().sqrt())
    scale = _constants(block, len(total), largest)
    block.layer_norm.weight[: len(rows)] = SHARPNESS * scale
    block.layer_norm.bias[: len(rows)] = SHARPNESS


def _fit_block(block: ConvBlock, frames: Tensor, target: Tensor, start: int) -> float:
    """Let a block's convolution of ``frames`` (B, T, C), from output ``start`` on, be ``target`` (B, T', D)."""
    kernel, stride = block.conv.kernel_size[0], block.conv.stride[0]
    pieces = frames.unfold(1, kernel, stride)[:, start : start + target.shape[1]]  # (B, T', C, kernel)
    weight, bias, share = _ridge(pieces.flatten(2).flatten(0, 1), target.flatten(0, 1))
    block.conv.weight.zero_()
    block.conv.bias.zero_()
    total = _with_balances(block, weight.unflatten(1, (-1, kernel)), bias)
    found = block.conv(frames.transpose(1, 2))[:, : len(total)]
    scale = _constants(block, len(total), float(found.square().sum(1).max().sqrt()))
    block.layer_norm.weight[: len(total)] = scale
    return share


def _with_balances(block: ConvBlock, weight: Tensor, bias: Tensor) -> Tensor:
    """Set the first channels to ``weight`` (D, C, kernel), and the next to what keeps their sum at zero."""
    balance = -weight.sum(0, keepdim=True).expand(BALANCES, -1, -1) / BALANCES
    total = torch.cat([weight, balance])
    block.conv.weight.zero_()[: len(total), : total.shape[1]] = total
    block.conv.bias.zero_()[: len(total)] = torch.cat([bias, -bias.sum().expand(BALANCES) / BALANCES])
    return total


def _constants(block: ConvBlock, start: int, largest: float) -> float:
    """Let the channels from ``start`` on be constants that dominate a norm of ``largest``; their outputs are 0.

    Returns: the deviation that LayerNorm then divides by.
    """
    bias, norm = block.conv.bias, block.layer_norm
    count = (len(bias) - start) // 2 * 2
    bias[start:] = 0
    bias[start : start + count] = DOMINANCE * largest / math.sqrt(count)
    bias[start + 1 : start + count : 2] *= -1
    norm.weight.zero_()
    norm.bias.zero_()
    return DOMINANCE * largest / math.sqrt(len(bias))


def _ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weights (D, C), bias (D,) and explained share of variance of the fit of ``targets`` (N, D) to (N, C)."""
    x_mean, y_mean = inputs.mean(0), targets.mean(0)
    x, y = (inputs - x_mean).double(), (targets - y_mean).double()
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ y).T
    share = 1 - float((y - x @ weight.T).square().sum() / y.square().sum())
    weight = weight.float()
    return weight, y_mean - weight @ x_mean, share


def _quantile(values: Tensor, q: float) -> Tensor:
    """Of each row of (rows, N)."""
    return values.kthvalue(max(1, round(q * values.shape[1])), dim=1).values
