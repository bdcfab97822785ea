"""Frozen speech encoders: loading, one forward for all families, one attention."""

from speech_adapters.encoders.forward import BASE, EncoderOutput, Plan, encode
from speech_adapters.encoders.loading import Encoder, load_encoder, packaged_encoders

__all__ = ["BASE", "Encoder", "EncoderOutput", "Plan", "encode", "load_encoder", "packaged_encoders"]
