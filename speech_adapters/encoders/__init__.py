"""Frozen speech encoders: loading, one forward for all families, one attention."""

from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.families import Family, register_family
from speech_adapters.encoders.forward import EncoderOutput, encode
from speech_adapters.encoders.loading import load_encoder
from speech_adapters.encoders.plan import BASE, Plan
from speech_adapters.encoders.shipped import packaged_encoders

__all__ = [
    "BASE", "Encoder", "EncoderOutput", "Family", "Plan", "encode", "load_encoder", "packaged_encoders",
    "register_family",
]  # fmt: skip
