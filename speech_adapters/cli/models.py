"""The base that a saved adapter was made on: for the verbs that need no head."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speech_adapters.model import SpeechAdapterModel


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """``--encoder``."""
    parser.add_argument("--encoder", help="packaged name, local folder or hub id (default: the base of the adapter)")


def base_of(folder: str | Path, encoder: str | None = None) -> SpeechAdapterModel:
    """A model of the frozen base that the adapter in ``folder`` names, or of ``encoder``."""
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.saving.adapters import read_base

    if encoder is not None:
        return SpeechAdapterModel.from_pretrained(encoder)
    base, _ = read_base(folder)
    return SpeechAdapterModel.from_pretrained(base.name, revision=base.revision_here)
