"""HuBERT (Hsu et al., TASLP 2021): wav2vec 2.0's modules, pre-trained on clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

from torch import Tensor

from speech_adapters.encoders.families.wav2vec2 import Model, Wav2Vec2


class HuBERT(Wav2Vec2):
    """HuBERT."""

    model_type = "hubert"
    title = "HuBERT"
    #: facebook/hubert-large-ll60k and hubert-xlarge-ls960-ft; Base was pre-trained otherwise than it was published.
    normalize: ClassVar[Mapping[str, bool]] = {"layer": True}

    def project(self, model: Model, features: Tensor) -> Tensor:
        return cast(Tensor, model.feature_projection(features))  # the projected frames alone
