"""Models from folders: what the verbs that combine and ship saved parts share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speech_adapters.model import SpeechAdapterModel


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """``--encoder``."""
    parser.add_argument("--encoder", help="packaged name, local folder or hub id; by default the one that is named "
                        "in the adapter's folder")  # fmt: skip


def base_of(folder: str | Path, encoder: str | None = None) -> SpeechAdapterModel:
    """A model of the frozen base that the adapter in ``folder`` was made on, or of ``encoder``."""
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.saving.parts import load_part

    if encoder is not None:
        return SpeechAdapterModel.from_pretrained(encoder)
    base = load_part(folder, "adapter")[0]["base"]
    return SpeechAdapterModel.from_pretrained(base["name"], revision=base.get("revision"))
