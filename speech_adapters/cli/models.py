"""A saved adapter and the base that it was made on: for the verbs that make something else of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from speech_adapters.errors import ConfigError, MethodError

if TYPE_CHECKING:
    from speech_adapters.model import SpeechAdapterModel


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """``--encoder``."""
    parser.add_argument("--encoder", help="packaged name, local folder or hub id (default: the base of the adapter)")


@contextmanager
def told_of(folder: str | Path) -> Iterator[None]:
    """Have what an adapter's method cannot be made into say which adapter that is."""
    try:
        yield
    except MethodError as error:
        raise ConfigError(f"{folder}: {error}") from error


def base_of(folder: str | Path, encoder: str | None = None) -> SpeechAdapterModel:
    """A model of the frozen base that the adapter in ``folder`` names, or of ``encoder``."""
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.saving.adapters import read_base

    if encoder is not None:
        return SpeechAdapterModel.from_pretrained(encoder)
    base, _ = read_base(folder)
    return SpeechAdapterModel.from_pretrained(base.name, revision=base.revision_here)
