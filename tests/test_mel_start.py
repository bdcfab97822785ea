"""The front-end that starts as a log-mel filterbank: it gives the teacher's layer 0, also in half precision."""

from __future__ import annotations

import pytest
import torch
from test_distillation import save_tiny_teacher
from torch import Tensor, nn

from speech_adapters.encoders.families.wav2vec2 import receptive_field
from speech_adapters.objectives.mel_start import BALANCES, mel_stack, start_as_mel
from speech_adapters.objectives.whisper_student import whisper_student
from speech_adapters.objectives.whisper_teacher import WhisperTeacher

LEVEL = 0.06


def voices(count: int, seed: int) -> Tensor:
    """(count, 3 s) harmonic tones that glide, swell and fall silent over faint noise; zero mean, unit variance."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: low + (high - low) * torch.rand(count, 1, generator=generator)  # noqa: E731
    time = torch.arange(48_000) / 16_000
    pitch = draw(90, 220) * (1 + 0.2 * torch.sin(2 * torch.pi * draw(0.3, 2) * time))
    phase = 2 * torch.pi * pitch.cumsum(1) / 16_000
    tones = sum(torch.sin(k * phase) * draw(0, 1) / k for k in range(1, 30))
    swell = torch.sin(2 * torch.pi * draw(1, 3) * time).clamp_min(0) ** 2
    hiss = torch.randn(count, 48_000, generator=generator)
    waves = tones * swell + 0.3 * hiss * swell.roll(4000, 1) * draw(0, 1) + 0.003 * hiss
    waves = waves - waves.mean(1, keepdim=True)
    return waves / waves.square().mean(1, keepdim=True).sqrt()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[WhisperTeacher, nn.Module, list[float]]:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_tiny_teacher(path)
    stack, heard = mel_stack(64), voices(24, 0)
    teacher = WhisperTeacher(path, 1040)
    torch.manual_seed(0)
    student = whisper_student(teacher, "wavlm", **stack, position_kernel=8, position_groups=4)
    assert receptive_field(student.config) == 1040
    return teacher, student, start_as_mel(student, teacher, heard, LEVEL * heard)


@torch.no_grad()
def explained(teacher: WhisperTeacher, student: nn.Module, waves: Tensor) -> float:
    """Share of the variance of the teacher's layer 0, positions removed, that the student's front-end gives."""
    found = student.feature_projection(student.feature_extractor(waves).transpose(1, 2))[0]
    wanted = teacher(LEVEL * waves, 0)[0] - teacher.encoder.embed_positions.weight[: found.shape[1]]
    found, wanted = found[:, 1:-1], wanted[:, 1:-1]  # the teacher pads its ends with zeros
    error, spread = (found - wanted).square().sum(), (wanted - wanted.mean((0, 1))).square().sum()
    return 1 - float(error / spread)


def test_it_starts_as_the_teachers_layer_0(made) -> None:
    teacher, student, shares = made
    assert min(shares) > 0.9
    assert explained(teacher, student, voices(8, 1)) > 0.9, "speech that was not fitted"


def test_it_survives_half_precision(made) -> None:
    teacher, student, _ = made
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    before = explained(teacher, student, voices(8, 1))
    assert all(tensor.half().isfinite().all() for tensor in state.values())
    try:
        student.load_state_dict({name: tensor.half() for name, tensor in state.items()})
        assert explained(teacher, student, voices(8, 1)) > before - 0.01
    finally:
        student.load_state_dict(state)


@torch.no_grad()
def test_layer_norms_only_scale(made) -> None:
    """Balances keep the mean at zero and constants the deviation, from silence to the loudest frame."""
    _, student, _ = made
    signal = voices(8, 1).unsqueeze(1)
    for block in student.feature_extractor.conv_layers:
        inner = block.conv(signal)
        deviation = inner.std(1, correction=0)
        assert float(deviation.max() / deviation.min()) < 1.2
        assert float((inner.mean(1).abs() / deviation).max()) < 1e-3
        signal = block(signal)


def test_channels(made) -> None:
    assert mel_stack(512)["conv_dim"] == (640, 512, 544, 544)
    assert made[1].config.conv_dim == (640, 512, 64 + 2 * BALANCES, 64 + 2 * BALANCES)
