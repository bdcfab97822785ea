"""One frozen encoder with named adapters and named heads: a file for each thing that a model does."""

from speech_adapters.model.model import SpeechAdapterModel
from speech_adapters.model_output import ModelOutput

__all__ = ["ModelOutput", "SpeechAdapterModel"]
