"""Connectionist temporal classification over characters (Graves et al., 2006).

``logits = W dropout(x) + b`` with one row of ``W`` a symbol, and the CTC loss over all alignments. A single linear
layer is what wav2vec 2.0, HuBERT and WavLM are fine-tuned with, and what the ELP adapters use on the L-adapters' sum
(Otake et al., ICASSP 2023: ``nn.Linear(512, 32)``).

A hidden layer may stand below it, ``x = gelu(sum_k W_k x_{t+k} + b)`` over ``kernel_size`` neighbouring frames. A
frozen encoder puts what a letter needs into several frames; a linear layer reads each alone.

With ``consistency`` the loss asks two passes of the head, each with a dropout of its own, to agree (R-Drop: Wu et al.,
NeurIPS 2021; for CTC, from two maskings of the input, CR-CTC: Yao et al., ICLR 2025)::

    (CTC(z) + CTC(z')) / 2 + consistency * sum_t (KL(sg(p'_t) || p_t) + KL(sg(p_t) || p'_t)) / 2

The encoder and its adapters are run once; it costs the head alone a second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import frame_mask
from speech_adapters.errors import ConfigError, ManifestError, TextError, shown
from speech_adapters.heads.base import HeadConfig, HeadModule, HeadOutput, check_audible
from speech_adapters.heads.decoding import greedy_decode
from speech_adapters.ranges import Dropout, NotNegative, Size
from speech_adapters.text import (
    Normalizer,
    Vocabulary,
    check_letters,
    normalize,
    normalizer_name,
    utterance_names,
)

IGNORE = -100
"""Fills targets behind an utterance's last symbol (Hugging Face's convention for labels)."""


@dataclass(kw_only=True)
class CTCHead(HeadConfig):
    """A CTC head: ``CTCHead(vocabulary)``; saved with its vocabulary and its normaliser."""

    head_type: ClassVar[str] = "ctc"

    vocabulary: Vocabulary = field(default_factory=Vocabulary.wav2vec2, kw_only=False)
    """Output symbols; the default is that of ``facebook/wav2vec2-base-960h``."""
    normalizer: Normalizer = "librispeech"
    """How transcripts are written before they are encoded or scored: a name, or a custom table; see
    :mod:`speech_adapters.text.normalizers`."""
    accept_letters: str = ""
    """Letters that the normaliser may change into others or drop; ``"all"`` for any. Others it would lose are an
    error of :meth:`check`."""
    hidden_size: Size | None = None
    """Width of a GELU layer before the linear one; the published heads have none."""
    kernel_size: Size = 1
    """Frames that the hidden layer joins, an odd number: half before and half after. With 7, at 50 frames a second,
    60 ms to each side."""
    dropout: Dropout = 0.1
    """On the features, while training; ``final_dropout`` of wav2vec 2.0 Base and WavLM Base."""
    consistency: NotNegative = 0.0
    """Weight of the divergence between two passes that drop other features, 0 for a single pass. 0.2 in CR-CTC."""
    reduction: Literal["mean", "sum"] = "mean"
    """``mean``: each utterance's loss by its number of symbols, then the batch's mean (that of Hugging Face's
    fine-tuning recipes), so that the learning rate does not depend on batch size; ``sum``: plain sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.vocabulary, dict) and "tokens" in self.vocabulary:
            self.vocabulary = Vocabulary.from_dict(self.vocabulary)
        if not isinstance(self.vocabulary, Vocabulary):
            raise ConfigError(
                f"CTCHead: vocabulary={shown(self.vocabulary)}: give Vocabulary.from_texts(transcripts), "
                "Vocabulary.load('vocab.json'), Vocabulary.wav2vec2(), or Vocabulary(tokens)."
            )
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"CTCHead: kernel_size={self.kernel_size}: give an odd number, as many before as after.")
        if self.kernel_size > 1 and self.hidden_size is None:
            raise ConfigError(f"CTCHead: kernel_size={self.kernel_size} is the hidden layer's: set hidden_size too.")
        if self.consistency and not self.dropout:
            raise ConfigError(f"CTCHead: consistency={self.consistency} compares two dropouts: set dropout above 0.")
        normalize("", self.normalizer)  # an unknown name is an error here, not after training

    def encode(self, text: str, source: str = "") -> list[int]:
        """A transcript, normalised, as target ids; ``source`` (an utterance id) is named in the error."""
        return self.vocabulary.encode(normalize(text, self.normalizer), source)

    def target(self, utterance: Utterance) -> list[int]:
        """The transcript's token ids."""
        if utterance.text is None:
            raise ManifestError(f"utterance {utterance.id!r} has no text; give its transcript, or leave it out.")
        return self.encode(utterance.text, source=utterance.id)

    def check(self, manifest: Manifest, encoder: Encoder, *, any_length: bool = False) -> None:
        """Besides audio and symbols: no letter that the normaliser loses, no transcript that is empty once
        normalised, which cannot be scored and in training outweighs all others (the loss is divided by its symbols),
        and none longer than its frames allow.

        Raises:
            ManifestError, AudioError, TextError: naming the utterances.
        """
        manifest.require("text")
        check_audible(manifest, encoder, any_length)
        ids = [utterance.id for utterance in manifest]
        written = [str(utterance.text) for utterance in manifest]
        check_letters(written, self.normalizer, self.accept_letters, manifest.name)
        texts = [normalize(text, self.normalizer) for text in written]
        if empty := [name for name, text in zip(ids, texts, strict=True) if not text.strip()]:
            raise TextError(
                f"{manifest.name}: the transcripts of {utterance_names(empty)} have no words after the normaliser "
                f"{normalizer_name(self.normalizer)!r}; give their texts, or leave these utterances out"
            )
        try:
            targets = [self.vocabulary.encode(text, name) for name, text in zip(ids, texts, strict=True)]
        except TextError as error:
            raise TextError(f"{manifest.name}: {error}") from error
        samples = torch.tensor([round(utterance.duration * SAMPLE_RATE) for utterance in manifest])
        check_ctc_lengths(targets, encoder.output_lengths(samples).tolist(), ids)

    def build(self, input_size: int) -> CTCHeadModule:
        return CTCHeadModule(self, input_size)


class CTCHeadModule(HeadModule):
    """Features (B, T, D) to logits (B, T, V)."""

    config: CTCHead

    @property
    def blank(self) -> int:  # type: ignore[override]  # it follows from the vocabulary
        """Id of the blank."""
        return self.config.vocabulary.blank_id

    @property
    def sums_losses(self) -> bool:  # type: ignore[override]  # it follows from the config
        """Whether the loss is the sum over a batch, rather than its mean."""
        return self.config.reduction == "sum"

    def __init__(self, config: CTCHead, input_size: int) -> None:
        super().__init__(config, input_size)
        width = config.hidden_size or input_size
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = _hidden_layer(config, input_size)
        self.linear = nn.Linear(width, len(config.vocabulary))

    @classmethod
    def from_linear(
        cls, weight: Tensor, bias: Tensor, vocabulary: Vocabulary, *, normalizer: Normalizer = "librispeech"
    ) -> CTCHeadModule:
        """The ``lm_head`` of a Hugging Face ``*ForCTC`` checkpoint: ``weight`` (V, D), ``bias`` (V,)."""
        if len(weight) != len(vocabulary):
            raise ConfigError(
                f"vocabulary: {len(vocabulary)} tokens for a CTC head of {len(weight)} outputs; "
                "load the vocab.json that belongs to this checkpoint"
            )
        head = CTCHead(vocabulary, normalizer=normalizer).build(weight.shape[1])
        with torch.no_grad():
            head.linear.weight.copy_(weight)
            head.linear.bias.copy_(bias)
        return head

    def forward(self, features: Tensor, lengths: Tensor) -> HeadOutput:
        if self.config.kernel_size > 1:  # what pads a batch is no neighbour
            features = features.masked_fill(~frame_mask(lengths, features.shape[1]).unsqueeze(-1), 0)
        twice = self.training and self.config.consistency > 0
        return HeadOutput(
            logits=self._logits(features), lengths=lengths, second=self._logits(features) if twice else None
        )

    def _logits(self, features: Tensor) -> Tensor:
        return self.linear(self.hidden(self.dropout(features)))

    def loss(self, output: HeadOutput, targets: Tensor) -> Tensor:
        """CTC loss of ``targets`` (B, L), padded with -100; computed in fp32 under any autocast.

        An utterance with too few frames for its symbols has no alignment and an infinite loss; it counts as zero here
        (speed augmentation may do this to a few), so run :func:`check_ctc_lengths` on the data before training.
        """
        lengths = output.lengths
        assert lengths is not None, "a frame-wise head gives them"
        with torch.autocast(output.logits.device.type, enabled=False):
            first = output.logits.float().log_softmax(-1)
            if output.second is None:
                return self._ctc(first, lengths, targets)
            second = output.second.float().log_softmax(-1)
            both = (self._ctc(first, lengths, targets) + self._ctc(second, lengths, targets)) / 2
            return both + self.config.consistency * self._divergence(first, second, lengths, targets)

    def _ctc(self, log_probs: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """The loss of one pass's log probabilities (B, T, V), reduced as the config says."""
        return F.ctc_loss(
            log_probs.transpose(0, 1),
            targets.clamp(min=0),
            lengths,
            (targets >= 0).sum(-1),
            blank=self.config.vocabulary.blank_id,
            reduction=self.config.reduction,
            zero_infinity=True,
        )

    def _divergence(self, first: Tensor, second: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """How far the log probabilities of two passes (B, T, V) are apart, in nats over real frames, reduced as the
        loss is; each learns from the other as it stands."""
        pairs = ((first, second), (second, first))
        each = [F.kl_div(one, other.detach(), reduction="none", log_target=True).sum(-1) for one, other in pairs]
        padding = ~frame_mask(lengths, first.shape[1])
        per_utterance = ((each[0] + each[1]) / 2).masked_fill(padding, 0).sum(1)
        if self.config.reduction == "sum":
            return per_utterance.sum()
        return (per_utterance / (targets >= 0).sum(-1).clamp(min=1)).mean()

    def mistakes(self, output: HeadOutput, targets: Tensor) -> tuple[int, int]:
        """Errors of the best path and words of ``targets`` (B, L); of symbols, where the vocabulary has no words."""
        vocabulary = self.config.vocabulary
        units: Any = str.split if vocabulary.has_words or vocabulary.separator else list
        meant = [units(vocabulary.decode(row[row >= 0].tolist())) for row in targets.cpu()]
        said = [units(text) for text in self.predict(output)]
        errors = sum(Levenshtein.distance(one, other) for one, other in zip(meant, said, strict=True))
        return errors, sum(map(len, meant))

    def predict(self, output: HeadOutput) -> list[str]:
        """The best path's text of each utterance."""
        assert output.lengths is not None, "a frame-wise head gives them"
        return greedy_decode(output.logits, output.lengths, self.config.vocabulary)


class FrameConvolution(nn.Conv1d):
    """(B, T, ``input_size``) to (B, T, ``width``): each frame with its neighbours, zeros beyond the ends."""

    def __init__(self, input_size: int, width: int, kernel_size: int) -> None:
        super().__init__(input_size, width, kernel_size, padding=kernel_size // 2)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.transpose(1, 2)).transpose(1, 2)


def _hidden_layer(config: CTCHead, input_size: int) -> nn.Module:
    if config.hidden_size is None:
        return nn.Identity()
    if config.kernel_size == 1:
        return nn.Sequential(nn.Linear(input_size, config.hidden_size), nn.GELU())
    return nn.Sequential(FrameConvolution(input_size, config.hidden_size, config.kernel_size), nn.GELU())


def check_ctc_lengths(targets: Sequence[Sequence[int]], frame_lengths: Sequence[int], ids: Sequence[str]) -> None:
    """Raise a TextError that names the utterances CTC cannot align.

    CTC needs one frame a symbol and one blank between equal neighbours: ``frames >= len(target) + repeats``.
    """
    needed = [len(t) + sum(a == b for a, b in pairwise(t)) for t in targets]
    bad = [i for i, (need, frames) in enumerate(zip(needed, frame_lengths, strict=True)) if frames < need]
    if bad:
        first = bad[0]
        raise TextError(
            f"{len(bad)} transcripts are longer than their audio allows: {utterance_names([ids[i] for i in bad])} "
            f"({ids[first]!r} has {int(frame_lengths[first])} frames and needs {needed[first]}); "
            "correct their text, offset or duration in the manifest, or remove these lines"
        )
