"""Whisper's encoder (Radford et al., ICML 2023): log-mel spectrogram, two convolutions, sinusoids, pre-norm layers.

It hears an utterance as long as it is: stock Whisper pads everything to 30 s of silence, which changes little and
costs much. Positions end at 30 s, and a longer utterance is refused. Checkpoints of the whole model load too; their
decoder is left out. The keys have no bias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from speech_adapters.encoders.families.base import Family, Samples, count_layers, from_weights
from speech_adapters.encoders.plan import Frames, Plan, Site
from speech_adapters.encoders.stock import StockModel
from speech_adapters.errors import AudioError

SAMPLE_RATE, WINDOW, HOP = 16_000, 400, 160
"""Samples per second, under a window of the spectrogram, and from one window to the next (section 2.2)."""

ENCODER_PREFIX = r"^(?:model\.)?encoder\."
"""Of the encoder's tensors in a checkpoint of the whole model."""


class Model(StockModel):
    """``WhisperEncoder``."""

    conv1: nn.Conv1d
    conv2: nn.Conv1d
    embed_positions: nn.Embedding
    layers: Sequence[nn.Module]
    layer_norm: nn.LayerNorm


class Whisper(Family):
    """Whisper's encoder; its "CNN" are the two convolutions over the spectrogram."""

    model_type = "whisper"
    title = "Whisper"
    layers = "layers"
    hears_normalized = False
    settings = ("activation_function", "encoder_attention_heads")
    names: ClassVar[Mapping[str, str]] = {
        "attention": "self_attn",
        **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
        "layer_norm": "self_attn_layer_norm",
        "dropout": "dropout",
        "intermediate_dense": "fc1",
        "intermediate_act": "activation_fn",
        "intermediate_dropout": "activation_dropout",
        "output_dense": "fc2",
        "output_dropout": "dropout",
        "final_layer_norm": "final_layer_norm",
    }

    def pre_norm(self, config: Any) -> bool:
        return True

    def local_front_end(self, config: Any) -> bool:
        return False  # the loudest band of the utterance sets the floor of all others

    def cnn_width(self, config: Any) -> int:
        return int(config.d_model)

    def intermediate_size(self, config: Any) -> int:
        return int(config.encoder_ffn_dim)

    def layer_norm_eps(self, config: Any) -> float:
        return 1e-5  # PyTorch's own: Whisper's configuration has none

    def frame_lengths(self, config: Any, samples: Samples) -> Samples:
        return (samples // HOP + 1) // 2

    def receptive_field(self, config: Any) -> int:
        """One window: the spectrogram mirrors half of one at both ends, and the convolutions pad."""
        return WINDOW

    def stride(self, config: Any) -> int:
        return 2 * HOP

    def first_centre(self, config: Any) -> int:
        return 0  # of the mirrored start

    def max_samples(self, config: Any) -> int | None:
        return int(2 * HOP * config.max_source_positions + HOP - 1)

    def front_end_name(self, config: Any) -> str:
        return f"{config.num_mel_bins} mel bands"

    def blocks(self, model: Model) -> Sequence[nn.Module]:
        return model.conv1, model.conv2

    def run_block(self, block: nn.Module, signal: Tensor) -> Tensor:
        return nn.functional.gelu(block(signal))

    def convolution(self, block: nn.Module) -> nn.Conv1d:
        return cast(nn.Conv1d, block)

    def front_end(self, model: Model, waveforms: Tensor, lengths: Tensor | None, plan: Plan) -> Tensor:
        """As :meth:`Family.front_end`. Raises AudioError for utterances that outlast the positions."""
        longest = self.max_samples(model.config)
        if longest is not None and waveforms.shape[1] > longest:
            raise AudioError(
                f"an utterance of {waveforms.shape[1] / SAMPLE_RATE:.1f} s is longer than Whisper's positions, which "
                f"end at {longest // SAMPLE_RATE} s; cut it into pieces."
            )
        signal = log_mel(waveforms, model.config.num_mel_bins, lengths).to(model.dtype)
        for index, block in enumerate(self.blocks(model)):
            if lengths is not None:  # behind an utterance a convolution reads zeros, as it does without padding
                real = torch.arange(signal.shape[-1], device=signal.device) < (lengths // HOP).unsqueeze(1)
                signal = signal.masked_fill(~real.unsqueeze(1), 0)
            signal = plan.site("cnn", index, Site(signal, self.run_block(block, signal)))
        return signal.transpose(1, 2)

    def add_positions(self, model: Model, extended: Frames, real: int | Tensor) -> Tensor:
        """Sinusoids by the frame's own time; pseudo frames stand at none, so that they move no real frame."""
        hidden, table = extended.frames, model.embed_positions.weight
        time = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        before, count = (n if isinstance(n, int) else n.unsqueeze(1) for n in (extended.before, real))
        time = time - before
        timed = ((time >= 0) & (time < count)).unsqueeze(-1)
        return hidden + table[time.clamp(0, len(table) - 1)] * timed

    def final_norm(self, model: Model) -> nn.Module | None:
        return model.layer_norm

    def after_layer(self, layer: nn.Module, hidden: Tensor, pre_norm: bool) -> Tensor:
        if hidden.dtype != torch.float16:
            return hidden
        largest = torch.finfo(hidden.dtype).max - 1000  # as stock Whisper: its residual stream outgrows fp16
        return hidden.clamp(-largest, largest)

    def published_normalize(self, config: Any) -> bool | None:
        return False

    def preprocessor(self, config: Any, normalize: bool) -> dict[str, Any]:
        return {
            "chunk_length": 30,
            "do_normalize": normalize,
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": config.num_mel_bins,
            "hop_length": HOP,
            "n_fft": WINDOW,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "sampling_rate": SAMPLE_RATE,
        }

    def fault(self, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        own = {re.sub(ENCODER_PREFIX, "", name): shape for name, shape in shapes.items() if "decoder." not in name}
        width, heads = config.d_model, config.encoder_attention_heads
        expected = {
            "d_model and num_mel_bins": ("conv1.weight", (width, config.num_mel_bins, 3)),
            "max_source_positions": ("embed_positions.weight", (config.max_source_positions, width)),
            "encoder_ffn_dim": ("layers.0.fc1.weight", (config.encoder_ffn_dim, width)),
        }
        for keys, (name, shape) in expected.items():
            if own.get(name) != shape:
                return f"by {keys} {name} is {shape}, and the weights have {own.get(name)}"
        if (stored := count_layers(own, "layers.*.")) != config.encoder_layers:
            return f"encoder_layers is {config.encoder_layers!r}, and the weights have {stored}"
        if type(heads) is not int or heads < 1 or width % heads:
            return f"encoder_attention_heads is {heads!r}, which does not divide d_model={width}"
        return None

    def load(self, folder: Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        def wanted(name: str) -> bool:
            return "decoder." not in name  # which is most of the weights

        config = self.read_config(folder)
        return from_weights(WhisperEncoder, folder, config, wanted, key_mapping={ENCODER_PREFIX: ""}, **options)


def from_tensors(tensors: Mapping[str, Tensor]) -> Model:
    """``WhisperEncoder`` in float32 of its tensors alone; a head has 64 channels in every size of Whisper."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    width, mels, _ = tensors["conv1.weight"].shape
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=mels,
        encoder_layers=count_layers(tensors, "layers.*."),
        encoder_attention_heads=width // 64,
        encoder_ffn_dim=len(tensors["layers.0.fc1.weight"]),
        max_source_positions=len(tensors["embed_positions.weight"]),
        activation_function="gelu",
    )
    encoder = WhisperEncoder(config)
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return cast(Model, encoder)


def log_mel(waveforms: Tensor, mels: int, lengths: Tensor | None = None) -> Tensor:
    """Waveforms (B, samples) at 16 kHz -> log-mel spectrograms (B, mels, samples // 160), 100 frames a second.

    What ``WhisperFeatureExtractor`` computes of each utterance as long as it is: mirrored at its ends, floored 80 dB
    below its own loudest frame. ``lengths`` (B,) in samples; frames behind an utterance mean nothing. At least in
    float32, whatever the encoder's precision.
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        waveforms = waveforms if waveforms.dtype == torch.float64 else waveforms.float()
        count, half = waveforms.shape[1] // HOP, WINDOW // 2
        if lengths is None:
            mirrored = nn.functional.pad(waveforms, (half, half), mode="reflect")
        else:
            last = lengths.unsqueeze(1) - 1
            place = (
                torch.arange(-half, waveforms.shape[1] + half, device=waveforms.device).abs().expand(last.shape[0], -1)
            )
            place = torch.where(place > last, 2 * last - place, place).clamp(0, waveforms.shape[1] - 1)
            mirrored = waveforms.gather(1, place)
        log = power_to_log_mel(power_spectrum(mirrored)[..., :count], mels)
        heard = log
        if lengths is not None:
            real = torch.arange(count, device=log.device) < (lengths // HOP).unsqueeze(1)
            heard = log.masked_fill(~real.unsqueeze(1), -torch.inf)
        return compress(log, heard.amax((1, 2), keepdim=True))


def power_spectrum(waveforms: Tensor) -> Tensor:
    """Waveforms (B, samples) -> power (B, 201, windows) under each Hann window, without mirrored ends.

    In an exported graph by a product with Fourier's waves: onnxruntime's STFT takes half of a forward in 8 bits, and
    is off by 4e-3 in the logits of speech.
    """
    if torch.compiler.is_exporting():
        products = waveforms.unfold(-1, WINDOW, HOP) @ fourier_waves().to(waveforms)
        cosine, sine = products.split(WINDOW // 2 + 1, dim=-1)
        return (cosine.square() + sine.square()).transpose(1, 2)
    window = torch.hann_window(WINDOW, dtype=waveforms.dtype, device=waveforms.device)
    spectrum = torch.stft(waveforms, WINDOW, HOP, window=window, center=False, return_complex=True)
    return spectrum.abs().square()


def fourier_waves() -> Tensor:
    """(400, 402) in float64: cosines, then sines, of the 201 frequencies under a Hann window."""
    turns = torch.outer(torch.arange(WINDOW), torch.arange(WINDOW // 2 + 1)) % WINDOW  # whole turns taken off exactly
    angles = turns.double() * (2 * torch.pi / WINDOW)
    return torch.cat((angles.cos(), angles.sin()), 1) * torch.hann_window(WINDOW, dtype=torch.float64).unsqueeze(1)


def power_to_log_mel(power: Tensor, mels: int) -> Tensor:
    """Power spectra (B, 201, T) -> decimal logarithms (B, mels, T) of their energy in mel bands."""
    return (mel_filters(mels).to(power) @ power.contiguous()).clamp_min(1e-10).log10()


def compress(log: Tensor, loudest: Tensor) -> Tensor:
    """Whisper's scale: floored 8 decades below ``loudest`` (B, 1, 1), about -1 to 1."""
    return (torch.maximum(log, loudest - 8.0) + 4.0) / 4.0


@cache
def mel_filters(mels: int) -> Tensor:
    """Slaney's filters (mels, 201), up to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(WINDOW // 2 + 1, mels, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.tensor(filters.T, dtype=torch.float32)
