"""Families of encoders, one file each: what a family is called inside, how it hears, how its layers run.

A new family is a file with a subclass of :class:`Family`, and a name in ``FAMILIES``.
"""

from __future__ import annotations

from typing import Any

from speech_adapters.encoders.families.base import PARTS, Family
from speech_adapters.encoders.families.data2vec_audio import Data2VecAudio
from speech_adapters.encoders.families.hubert import HuBERT
from speech_adapters.encoders.families.unispeech_sat import UniSpeechSAT
from speech_adapters.encoders.families.wav2vec2 import Wav2Vec2
from speech_adapters.encoders.families.wav2vec2_bert import Wav2Vec2BERT
from speech_adapters.encoders.families.wavlm import WavLM
from speech_adapters.encoders.families.whisper import Whisper
from speech_adapters.errors import ConfigError

#: ``model_type`` of ``config.json`` -> family.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (Wav2Vec2(), HuBERT(), WavLM(), Data2VecAudio(), UniSpeechSAT(), Whisper(), Wav2Vec2BERT())
}

__all__ = ["FAMILIES", "PARTS", "Family", "family_of"]


def family_of(config: Any) -> Family:
    """The family that a stock model's configuration belongs to.

    Raises:
        ConfigError: one that is not supported.
    """
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None:
        raise ConfigError(
            f"model_type {getattr(config, 'model_type', None)!r} is not supported; supported: {', '.join(FAMILIES)}."
        )
    return family
