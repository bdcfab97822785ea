"""SUTA: make the frames surer of what they say, one utterance at a time.

    L    = alpha L_em + (1 - alpha) L_mcc                       p_t = softmax(logits_t / T)
    L_em = mean over frames t whose best symbol is not blank of   -sum_c p_tc log p_tc
    L_mcc = 1/V  sum_{j != k} Z_jk / sum_l Z_jl                 Z = sum_t w_t p_t p_t',  w_t ~ 1 + exp(-H(p_t))

The first term is the entropy, the second the minimum class confusion (Jin et al., ECCV 2020), which keeps symbols
apart; its weights ``w`` have mean 1 and carry no gradient. The LayerNorms change and, as published, the CNN; they are
put back before the next utterance.

Source: Lin, Li and Lee, "Listen, Adapt, Better WER: Source-free Single-utterance Test-time Adaptation for Automatic
Speech Recognition" (Interspeech 2022, arXiv 2203.14222) and the authors' code; wav2vec 2.0 Base with 960 h of labels
goes from 31.2 to 25.0 % WER on CHiME-3 there. It sharpens what the model believes, be it right or wrong: try it on dev
speakers first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.model_output import ModelOutput
from speech_adapters.ranges import Count, Positive, Rate, Share, check_values
from speech_adapters.unlabelled.adaptation import Method, Model, Piece, Place, descend, restored

Part = Literal["norms", "cnn", "adapters"]


@dataclass(frozen=True, kw_only=True)
class Entropy(Method):
    """Entropy and class confusion of the CTC head's frames."""

    steps: Count = 10
    """Updates; 10 as published. The authors' table goes up to 40, with little gain after 10."""
    learning_rate: Rate = 2e-5
    """Of AdamW; the authors' scripts."""
    alpha: Share = 0.3
    """Weight of the entropy; the rest is the confusion's."""
    temperature: Positive = 2.5
    """Flattens what is nearly sure, whose gradients would vanish."""
    change: tuple[Part, ...] = ("norms", "cnn")
    """``norms``: the LayerNorms above the CNN, those of active adapters in place of the base's where they have copies;
    ``cnn``: the convolutions and their norms; ``adapters``: all of the active adapters. The authors change the norms,
    the CNN and the projection behind it, of which the LayerNorm changes here."""

    def __post_init__(self) -> None:
        check_values(self, "Entropy: ")
        if not self.change:
            raise ConfigError("Entropy: change is empty; name some of norms, cnn and adapters.")

    @contextmanager
    def place(self, model: Model) -> Iterator[Place]:
        parameters = [p for part in self.change for p in _parameters(model, part)]
        parameters = list({id(p): p for p in parameters}.values())
        if half := [p for p in parameters if p.dtype != torch.float32]:
            raise ConfigError(
                f"Entropy: changes parameters in float32, and {len(half)} are in {half[0].dtype}, in which steps this "
                "small are lost; load the base in float32, or use SpeakerCode, which changes none of it."
            )
        _ = model.encoder.fingerprint  # of the base, not of what it becomes
        with restored(parameters):
            yield Place(parameters, in_cnn="cnn" in self.change)

    def adapt(self, model: Model, head: CTCHeadModule, place: Place, speech: Sequence[Piece]) -> tuple[float, ...]:
        def loss(output: ModelOutput) -> Tensor | None:
            assert isinstance(output.logits, Tensor), "one head reads the whole batch"
            return entropy_loss(output.logits[0].float(), head.blank, self.alpha, self.temperature)

        return descend(loss, model, place, speech, self.steps, self.learning_rate)


def entropy_loss(logits: Tensor, blank: int, alpha: float, temperature: float) -> Tensor | None:
    """SUTA's loss of one utterance's logits (T, V); None where no frame says anything but blank."""
    entropy = frame_entropy(logits, blank, temperature)
    if entropy is None:
        return None
    return alpha * entropy + (1 - alpha) * class_confusion(logits / temperature)


def frame_entropy(logits: Tensor, blank: int, temperature: float) -> Tensor | None:
    """Mean entropy in nats of the frames of (T, V) whose best symbol is not blank; None without any."""
    spoken = logits[logits.argmax(-1) != blank]
    return _entropy(spoken / temperature).mean() if len(spoken) else None


def class_confusion(logits: Tensor) -> Tensor:
    """How far symbols share frames in (T, V): the off-diagonal part of their normalised co-occurrence, over V."""
    p = logits.softmax(-1)
    weight = 1 + torch.exp(-_entropy(logits.detach()))
    together = (p * (weight / weight.mean()).unsqueeze(-1)).T @ p
    together = together / together.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    return (together.sum() - together.trace()) / p.shape[-1]


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def _parameters(model: Model, part: Part) -> list[nn.Parameter]:
    """What a part comes to, of the encoder and of the adapters that act."""
    blocks = list(model.encoder.cnn_blocks)
    if part == "cnn":
        if not blocks:
            encoder = model.encoder
            raise ConfigError(
                f"Entropy: {encoder.name} hears {encoder.architecture.front_end_name(encoder.config)} and has no "
                'convolutions before its layers; leave "cnn" out of change.'
            )
        return [p for block in blocks for p in block.parameters()]
    adapters = [model.registry.adapter(name) for name in model.active_adapters]
    if part == "adapters":
        if not adapters:
            raise ConfigError('Entropy: no adapter is active; leave "adapters" out of change, or use set_active.')
        return [p for adapter in adapters for p in adapter.parameters()]
    in_cnn = {module for block in blocks for module in block.modules()}
    modules = (module for whole in (model.encoder.model, *adapters) for module in whole.modules())
    return [p for m in modules if isinstance(m, nn.LayerNorm) and m not in in_cnn for p in m.parameters()]
