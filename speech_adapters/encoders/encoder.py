"""A frozen stock encoder and what must be known of it, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from speech_adapters.encoders.ctc import CTCWeights
from speech_adapters.encoders.families import family_of
from speech_adapters.encoders.families.base import Family, Samples
from speech_adapters.encoders.forward import EncoderOutput, encode
from speech_adapters.encoders.pickling import let_pickle
from speech_adapters.encoders.quantization import Quantization, quantize_model
from speech_adapters.encoders.stock import StockModel
from speech_adapters.encoders.tensors import fingerprints
from speech_adapters.errors import ConfigError


class Encoder(nn.Module):
    """A frozen stock encoder and what must be known of it.

    Attributes:
        model: the stock ``transformers`` module; its parameters need no gradient and it never leaves eval mode.
        name, revision: where it came from.
        architecture: the family that the model belongs to, which knows its parts by name.
        normalize: whether waveforms are brought to zero mean and unit variance first (``do_normalize`` of
            ``preprocessor_config.json`` or ``processor_config.json``, else as the family's published checkpoints).
        ctc: the checkpoint's own CTC head, or None.
        folder: where its files lie, or None for a model made in memory.
        language: the one that was asked of a checkpoint of several (MMS); None for its weights' own.
        num_parameters: of the stock model, however it is held.
        quantization: "int8", "int4" or "nf4" when :meth:`quantize` was called, else None.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        revision: str | None = None,
        normalize: bool = True,
        ctc: CTCWeights | None = None,
        *,
        folder: Path | None = None,
        language: str | None = None,
    ) -> None:
        super().__init__()
        self.model = cast(StockModel, model.requires_grad_(False).eval())
        self.architecture: Family = family_of(self.model.config)
        self.name, self.revision = name, revision
        self.normalize, self.ctc = normalize, ctc
        self.folder, self.language = folder, language
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.quantization: Quantization | None = None
        self._fingerprints: tuple[str, ...] = ()
        let_pickle(model)

    # ------------------------------------------------------------------ its parts

    def layer(self, index: int) -> nn.Module:
        """A transformer layer."""
        return self.architecture.layer_list(self.model)[index]

    def layer_name(self, index: int) -> str:
        """Full name of a layer inside the stock model."""
        return f"{self.architecture.layers}.{index}"

    def part(self, layer: int, name: str) -> nn.Module:
        """A part of a layer, without what ``peft`` has put around it.

        Args:
            name: "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "intermediate_act", "output_dense",
                "layer_norm", "final_layer_norm" or "attention", whatever the family calls it.
        """
        found = self.architecture.part(self.layer(layer), name)
        return cast(nn.Module, getattr(found, "base_layer", found))

    def part_name(self, layer: int, name: str) -> str:
        """Full name of a part inside the stock model, as its tensors and ``peft``'s files have it."""
        return f"{self.layer_name(layer)}.{self.architecture.names[name]}"

    @property
    def final_norm(self) -> nn.Module | None:
        """The LayerNorm behind the last layer of a pre-norm encoder, else None."""
        return self.architecture.final_norm(self.model)

    @property
    def cnn_blocks(self) -> Sequence[nn.Module]:
        """The blocks of the convolutional front-end."""
        return self.architecture.blocks(self.model)

    @property
    def mask_embedding(self) -> Tensor | None:
        """(D,) in place of a hidden frame, or None in a family that was never pre-trained by masking."""
        return self.architecture.mask_embedding(self.model)

    def latents(self, cnn_output: Tensor) -> Tensor:
        """The front-end's output (B, T, C) as the feature projection reads it."""
        return self.architecture.latents(self.model, cnn_output)

    @property
    def preprocessor(self) -> dict[str, Any]:
        """What ``preprocessor_config.json`` says of this encoder."""
        return self.architecture.preprocessor(self.config, self.normalize)

    # ------------------------------------------------------------------ what it is

    @property
    def config(self) -> Any:
        """The ``transformers`` configuration."""
        return self.model.config

    @property
    def family(self) -> str:
        """``model_type`` of the configuration."""
        return self.architecture.model_type

    @property
    def hidden_size(self) -> int:
        """Width D of the layers."""
        return int(self.config.hidden_size)

    @property
    def output_size(self) -> int:
        """Width of the last hidden state: another one than the layers' behind an output adapter."""
        return self.architecture.output_size(self.config)

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward's hidden layer."""
        return self.architecture.intermediate_size(self.config)

    @property
    def cnn_width(self) -> int:
        """Channels C of the front-end's output."""
        return self.architecture.cnn_width(self.config)

    @property
    def layer_norm_eps(self) -> float:
        """Of the layers' LayerNorms."""
        return self.architecture.layer_norm_eps(self.config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return len(self.architecture.layer_list(self.model))

    @property
    def pre_norm(self) -> bool:
        """True for Large-style layers (LayerNorm before each sub-layer), False for Base-style ones (after)."""
        return self.architecture.pre_norm(self.config)

    @property
    def group_norm(self) -> bool:
        """True when the CNN normalises over time (Base models): padding then changes what it computes."""
        return self.architecture.group_norm(self.config)

    @property
    def local_frames(self) -> bool:
        """True when a frame of the front-end's output depends on the samples around it alone, so that the output of a
        piece of an utterance is a piece of the utterance's; normalised waveforms depend on all."""
        return self.architecture.local_front_end(self.config) and not self.normalize

    @property
    def receptive_field(self) -> int:
        """Samples under one frame: the shortest usable input."""
        return self.architecture.receptive_field(self.config)

    @property
    def max_samples(self) -> int | None:
        """Samples of the longest usable input, or None where there is no limit."""
        return self.architecture.max_samples(self.config)

    @property
    def stride(self) -> int:
        """Samples from one frame to the next (320: 20 ms)."""
        return self.architecture.stride(self.config)

    @property
    def output_stride(self) -> int:
        """Samples from one frame of the last hidden state to the next: more than :attr:`stride` behind an output
        adapter."""
        return self.architecture.output_stride(self.config)

    def frame_lengths(self, samples: Samples) -> Samples:
        """How many frames this many samples give; number or tensor (B,)."""
        return self.architecture.frame_lengths(self.config, samples)

    def output_lengths(self, samples: Samples) -> Samples:
        """The same of the last hidden state: fewer than the layers' behind an output adapter."""
        return self.architecture.output_lengths(self.config, self.frame_lengths(samples))

    def frame_centres(self, frames: int) -> Tensor:
        """The samples (T,) on which the first ``frames`` frames are centred."""
        return self.architecture.first_centre(self.config) + self.stride * torch.arange(frames)

    @property
    def settings(self) -> dict[str, Any]:
        """What in ``config.json`` changes what it computes and no tensor tells, as JSON holds it."""
        family, config = self.architecture, self.config
        names = (*family.settings, *(family.adapter_settings if getattr(config, "add_adapter", False) else ()))
        values = {name: getattr(config, name, None) for name in names}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its frozen weights, as they were loaded; of all but those that a checkpoint may lack, which are
        random in a copy that was saved after they had been missing."""
        return self.fingerprints[0]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """What saved parts may know it by: the fingerprint, and that of all weights, which older files hold."""
        if not self._fingerprints:
            self._fingerprints = fingerprints(self.model.state_dict(), self.architecture.may_lack)
        return self._fingerprints

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others wherever it lies: its frozen weights, and what else shapes what they compute."""
        return {"fingerprint": self.fingerprint, "normalize": self.normalize, "settings": self.settings}

    def quantize(self, kind: Quantization) -> Encoder:
        """Hold the weights in 8 or 4 bits from now on; the fingerprint stays that of the weights as loaded.

        Raises:
            ConfigError: an unknown kind, or an encoder that is quantised or has LoRA layers in it already.
        """
        if self.quantization is not None or getattr(self.model, "peft_config", None):
            raise ConfigError(f"{self.name}: quantise an encoder once, before adapters are added.")
        _ = self.fingerprint
        quantize_model(self.model, kind)
        self.quantization = kind
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoder:
        """Devices and precisions: in another precision the weights are no longer those that they were loaded as."""
        weight = next(self.model.parameters(), None)
        if weight is not None and fn(weight.detach().flatten()[:1].clone()).dtype != weight.dtype:
            _ = self.fingerprint
        return cast(Encoder, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]  # torch has no types for it

    def train(self, mode: bool = True) -> Encoder:
        """A frozen encoder stays in eval mode: dropout and LayerDrop in it would only add noise to the adapters."""
        return super().train(False)

    def normalized(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveforms (B, samples) at zero mean and unit variance over each one's real samples, zero after them."""
        if not self.normalize:
            return waveforms
        if lengths is None:
            mean, variance = waveforms.mean(1, keepdim=True), waveforms.var(1, correction=0, keepdim=True)
            return (waveforms - mean) / (variance + 1e-7).sqrt()
        real = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths.unsqueeze(1)
        count = lengths.unsqueeze(1).to(waveforms.dtype)
        mean = (waveforms * real).sum(1, keepdim=True) / count
        centred = (waveforms - mean) * real
        return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()

    def forward(self, waveforms: Tensor | None = None, lengths: Tensor | None = None, **options: Any) -> EncoderOutput:
        """:func:`~speech_adapters.encoders.forward.encode` on raw waveforms (normalised if the model wants it)."""
        if waveforms is not None:
            waveforms = self.normalized(waveforms, lengths)
        return encode(self.model, waveforms, lengths, **options)

    def extra_repr(self) -> str:
        norms = "pre-norm" if self.pre_norm else "post-norm"
        cnn = self.architecture.front_end_name(self.config)
        return (
            f"{self.name}: {self.architecture.title}, {self.num_layers} layers x {self.hidden_size}, "
            f"{norms}, {cnn}, frozen{f', {self.quantization}' if self.quantization else ''}"
        )

    def __repr__(self) -> str:
        return f"Encoder({self.extra_repr()})"
