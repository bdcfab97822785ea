"""Families of encoders, one file each: what a family is called inside, how it hears, how its layers run.

A new family is a file with a subclass of :class:`Family`, and a name in ``FAMILIES``. One outside of this package is
made known by :func:`register_family`, or by an entry point of the group ``speech_adapters.families`` in a package of
its own: its name is the ``model_type``, and it loads the class.
"""

from __future__ import annotations

from importlib.metadata import entry_points
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

GROUP = "speech_adapters.families"
"""Entry points of families in other packages."""

__all__ = ["FAMILIES", "PARTS", "Family", "family_named", "family_of", "register_family"]


def register_family(family: Family) -> None:
    """Make a custom family known, for this process: its encoders load, and take every method.

    Raises:
        ConfigError: a ``model_type`` that another family has.
    """
    known = FAMILIES.get(family.model_type)
    if known is not None and type(known) is not type(family):
        raise ConfigError(
            f"register_family: model_type {family.model_type!r} is {known.title}'s; give your family one of its own."
        )
    FAMILIES[family.model_type] = family


def family_named(model_type: Any) -> Family:
    """The family of a ``model_type``.

    Raises:
        ConfigError: one that is not supported.
    """
    if isinstance(model_type, str) and model_type not in FAMILIES:
        for entry in entry_points(group=GROUP, name=model_type):
            register_family(entry.load()())
    if model_type is None:
        raise ConfigError(f"no model_type, which names the family; supported: {', '.join(FAMILIES)}.")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}; if your model wraps one "
            "of these, save its encoder alone with save_pretrained; to add a family, see register_family."
        )
    return FAMILIES[model_type]


def family_of(config: Any) -> Family:
    """The family that a stock model's configuration belongs to.

    Raises:
        ConfigError: one that is not supported.
    """
    return family_named(getattr(config, "model_type", None))
