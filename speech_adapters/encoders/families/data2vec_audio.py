"""data2vec-audio (Baevski et al., ICML 2022): wav2vec 2.0's modules with a stack of positional convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from speech_adapters.encoders.families.wav2vec2 import Wav2Vec2


class Data2VecAudio(Wav2Vec2):
    """data2vec-audio."""

    model_type = "data2vec-audio"
    title = "data2vec-audio"
    #: facebook/data2vec-audio-base-10m; as in pre-training.
    normalize: ClassVar[Mapping[str, bool]] = {"layer": True}
