"""What a user may give where a saved part is asked for: a folder, or a reference to a bank."""

from __future__ import annotations

import os
from pathlib import Path

from speech_adapters.saving import bank_layout


def folder_of(place: str | os.PathLike[str]) -> Path:
    """The folder that ``place`` means: itself, or where ``bank:client-a/asr@production`` lies.

    Raises:
        ConfigError, CheckpointError: the bank, or that version in it, does not exist.
    """
    text = os.fspath(place)
    return bank_layout.locate(text) if text.startswith(bank_layout.PREFIX) else Path(text)
