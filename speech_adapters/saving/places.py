"""What a user may give where a saved part is asked for: a folder, or a reference to a bank or to a hub."""

from __future__ import annotations

import os
from pathlib import Path

from speech_adapters.saving import bank_layout, hub


def folder_of(place: str | os.PathLike[str]) -> Path:
    """The folder that ``place`` means: itself, or where ``bank:client-a/asr@production`` or the files of
    ``user/repo@<commit>`` lie. A folder of that name comes before a repository.

    Raises:
        ConfigError, CheckpointError: the bank or repository, or that version of it, does not exist or is refused.
    """
    text = os.fspath(place)
    if text.startswith(bank_layout.PREFIX):
        return bank_layout.locate(text)
    if hub.REFERENCE.fullmatch(text) and not Path(text).exists():
        return hub.fetch(text)
    return Path(text)
