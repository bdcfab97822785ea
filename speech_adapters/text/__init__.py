"""Transcripts to symbols and back: normalisers, and the vocabulary of a CTC head."""

from speech_adapters.text.changes import Change, changes, check_letters, describe_changes
from speech_adapters.text.normalizers import (
    NORMALIZERS,
    Normalizer,
    ReplacementTable,
    choose_normalizer,
    normalize,
    normalizer_name,
)
from speech_adapters.text.vocabulary import Vocabulary, utterance_names

__all__ = [
    "NORMALIZERS", "Change", "Normalizer", "ReplacementTable", "Vocabulary", "changes", "check_letters",
    "choose_normalizer", "describe_changes", "normalize", "normalizer_name", "utterance_names",
]  # fmt: skip
