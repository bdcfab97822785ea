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

from speech_adapters.errors import CheckpointError, ConfigError

WINDOW, HOP, STRIDE = 400, 160, 320


class WhisperTeacher(nn.Module):
    """``forward(waveforms) -> hidden states``, one (B, T, D) tensor a layer; the last is after the final LayerNorm.

    Args:
        weights: safetensors file of an encoder (names as in ``transformers``' ``WhisperEncoder``, no prefix).
        receptive_field: samples that one student frame covers.

    Waveforms (B, samples) at 16 kHz must share one length: the encoder knows no padding mask. Sizes are read off the
    tensors; the number of heads follows from Whisper's 64 channels a head.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, weights: str | Path, receptive_field: int) -> None:
        super().__init__()
        from safetensors.torch import load_file
        from transformers import WhisperConfig
        from transformers.audio_utils import mel_filter_bank
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        if not Path(weights).is_file():
            raise CheckpointError(f"{weights}: no such file; give the teacher's safetensors file.")
        tensors = load_file(str(weights))
        width, mels = tensors["conv1.weight"].shape[:2]
        layers = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
        config = WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=width // 64,
            encoder_ffn_dim=tensors["layers.0.fc1.weight"].shape[0],
            num_mel_bins=mels,
            max_source_positions=tensors["embed_positions.weight"].shape[0],
            activation_function="gelu",
        )
        self.encoder = WhisperEncoder(config)
        self.encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        self.encoder.eval().requires_grad_(False)
        self.receptive_field = receptive_field
        filters = mel_filter_bank(WINDOW // 2 + 1, mels, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32))
        self.register_buffer("window", torch.hann_window(WINDOW))

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """(B, samples) -> (B, mels, 2 T), T the student's number of frames."""
        frames = (waveforms.shape[-1] - self.receptive_field) // STRIDE + 1
        start = self.receptive_field // 2 - WINDOW // 2
        padded = nn.functional.pad(waveforms, (max(0, -start), WINDOW + HOP))[:, max(0, start) :]
        power = torch.stft(padded, WINDOW, HOP, window=self.window, center=False, return_complex=True).abs().square()
        log = (self.filters.T @ power[..., : 2 * frames]).clamp_min(1e-10).log10()
        log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0

    @property
    def max_samples(self) -> int:
        """Longest input: the teacher has positions for so many samples (30 s)."""
        return self.receptive_field + (len(self.encoder.embed_positions.weight) - 1) * STRIDE + STRIDE - 1

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
        encoder = self.encoder
        hidden = nn.functional.gelu(encoder.conv1(self.log_mel(waveforms)))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        states = [hidden]
        for layer in encoder.layers[:stop_layer]:
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
            states.append(hidden)
        if len(states) == len(encoder.layers) + 1:
            states[-1] = encoder.layer_norm(hidden)
        return tuple(states)
