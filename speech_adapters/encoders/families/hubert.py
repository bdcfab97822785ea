"""HuBERT (Hsu et al., TASLP 2021): wav2vec 2.0's modules, pre-trained on clusters.

With ``conv_pos_batch_norm`` (mhubert-base-25hz) a batch norm stands before the positional convolution and wakes the
zeros behind an utterance, which stock HuBERT then reads as if they were speech; here they are zero again before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

from torch import Tensor, nn

from speech_adapters.encoders.families.wav2vec2 import Model, Wav2Vec2


class PositionalConvolution(nn.Module):
    """``HubertPositionalConvEmbedding``."""

    batch_norm: nn.BatchNorm1d | None
    conv: nn.Conv1d
    padding: nn.Module
    activation: nn.Module


class HuBERT(Wav2Vec2):
    """HuBERT."""

    model_type = "hubert"
    title = "HuBERT"
    #: facebook/hubert-large-ll60k and hubert-xlarge-ls960-ft; Base was pre-trained otherwise than it was published.
    normalize: ClassVar[Mapping[str, bool]] = {"layer": True}

    def positions(self, model: Model, hidden: Tensor, mask: Tensor | None) -> Tensor:
        embedding = cast(PositionalConvolution, model.encoder.pos_conv_embed)
        if embedding.batch_norm is None or mask is None:
            return cast(Tensor, embedding(hidden))
        signal = embedding.batch_norm(hidden.transpose(1, 2)).masked_fill(~mask.unsqueeze(1), 0)
        return cast(Tensor, embedding.activation(embedding.padding(embedding.conv(signal)))).transpose(1, 2)

    def project(self, model: Model, features: Tensor) -> Tensor:
        return cast(Tensor, model.feature_projection(features))  # the projected frames alone
