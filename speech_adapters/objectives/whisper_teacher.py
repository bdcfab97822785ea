"""Whisper's encoder as a distillation teacher for raw-waveform encoders.

Its frames are centred on the student's: student frame ``i`` covers ``receptive_field`` samples from ``i * 320``, and
the log-mel frames are taken at the same centres, so that no time shift has to be learnt.

Source of the front-end: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022, section
2.2): 80 log-mel channels, 25 ms windows every 10 ms, two convolutions, sinusoidal positions, pre-norm layers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from speech_adapters.encoders.families.whisper import (
    HOP,
    WINDOW,
    Whisper,
    compress,
    from_tensors,
    power_spectrum,
    power_to_log_mel,
)
from speech_adapters.encoders.forward import encode
from speech_adapters.errors import CheckpointError, ConfigError

STRIDE = 2 * HOP


class WhisperTeacher(nn.Module):
    """``forward(waveforms) -> hidden states``, one (B, T, D) tensor per layer; the last is after the final LayerNorm.

    Args:
        weights: safetensors file of an encoder (names as in ``transformers``' ``WhisperEncoder``, no prefix).
        receptive_field: samples that one student frame covers.

    Waveforms (B, samples) at 16 kHz must share one length: the encoder knows no padding mask. Sizes are read off the
    tensors.
    """

    def __init__(self, weights: str | Path, receptive_field: int) -> None:
        super().__init__()
        from safetensors.torch import load_file

        if not Path(weights).is_file():
            raise CheckpointError(f"{weights}: no such file; give the teacher's safetensors file.")
        self.encoder = from_tensors(load_file(str(weights)))
        self.encoder.eval().requires_grad_(False)
        self.receptive_field, self.family = receptive_field, Whisper()

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """(B, samples) -> (B, mels, 2 T), T the student's number of frames."""
        frames = (waveforms.shape[-1] - self.receptive_field) // STRIDE + 1
        start = self.receptive_field // 2 - WINDOW // 2
        padded = nn.functional.pad(waveforms, (max(0, -start), WINDOW + HOP))[:, max(0, start) :]
        log = power_to_log_mel(power_spectrum(padded)[..., : 2 * frames], self.encoder.config.num_mel_bins)
        return compress(log, log.amax((1, 2), keepdim=True))

    @property
    def max_samples(self) -> int:
        """Longest input: the samples that the teacher has positions for (30 s)."""
        return self.receptive_field + (self.encoder.config.max_source_positions - 1) * STRIDE + STRIDE - 1

    @torch.no_grad()
    def forward(self, waveforms: Tensor, stop_layer: int | None = None) -> tuple[Tensor, ...]:
        """Waveforms (B, samples) -> the states 0 to ``stop_layer``, by default all.

        Raises ConfigError for waveforms under one student frame or over ``max_samples``.
        """
        samples = waveforms.shape[-1]
        if not self.receptive_field <= samples <= self.max_samples:
            raise ConfigError(
                f"waveforms of {samples} samples: the teacher takes {self.receptive_field} to {self.max_samples}; "
                "cut longer ones into pieces, leave shorter ones out."
            )
        signal = self.log_mel(waveforms)
        for block in self.family.blocks(self.encoder):
            signal = self.family.run_block(block, signal)
        output = encode(self.encoder, cnn_output=signal.transpose(1, 2), stop_layer=stop_layer)
        return (*output.hidden_states[:-1], output.last_hidden_state)
