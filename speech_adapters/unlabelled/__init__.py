"""Adaptation at test time, from speech without text: one file per method."""

from speech_adapters.unlabelled.adaptation import Adaptation, Method, adapted, transcribe_adapted
from speech_adapters.unlabelled.entropy import Entropy
from speech_adapters.unlabelled.prompt import Prompt, SourceStatistics, source_statistics
from speech_adapters.unlabelled.speaker_code import SpeakerCode

__all__ = [
    "Adaptation", "Entropy", "Method", "Prompt", "SourceStatistics", "SpeakerCode", "adapted", "source_statistics",
    "transcribe_adapted",
]  # fmt: skip
