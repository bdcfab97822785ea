"""Frozen speech encoders: loading, one forward for all families, one attention."""

from speech_adapters.encoders.forward import EncoderOutput, encode
from speech_adapters.encoders.loading import Encoder, load_encoder, packaged_encoders
from speech_adapters.encoders.plan import BASE, Plan

__all__ = ["BASE", "Encoder", "EncoderOutput", "Plan", "encode", "load_encoder", "packaged_encoders"]
