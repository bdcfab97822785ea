"""UniSpeech-SAT (Chen et al., ICASSP 2022): wav2vec 2.0's modules, pre-trained to tell speakers apart too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from speech_adapters.encoders.families.wav2vec2 import Wav2Vec2


class UniSpeechSAT(Wav2Vec2):
    """UniSpeech-SAT; its checkpoints differ in how waveforms are prepared, so a folder must say it."""

    model_type = "unispeech-sat"
    title = "UniSpeech-SAT"
    normalize: ClassVar[Mapping[str, bool]] = {}
