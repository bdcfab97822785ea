"""Other tools' lists of speech, one file each: what the tool calls it -> our manifest, and back.

>>> from speech_adapters.data.formats import read_format, write_format
>>> read_format("kaldi", "data/train").write("train.jsonl")   # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from speech_adapters.errors import ConfigError
from speech_adapters.schema import near

if TYPE_CHECKING:  # the command line lists the formats without loading torch
    from speech_adapters.data.manifest import Manifest

FORMATS = {
    "kaldi": "kaldi",
    "lhotse": "lhotse",
    "nemo": "nemo",
    "speechbrain": "speechbrain",
    "huggingface": "huggingface",
    "webdataset": "webdataset",
    "csv": "tables",
}
"""The formats by the name that the command line gives them -> the module here, with ``read`` and ``write``."""


def read_format(name: str, path: str | os.PathLike[str], **options: Any) -> Manifest:
    """The manifest of another tool's files; ``options`` are those of the format's ``read``.

    Raises:
        ConfigError: no such format. ManifestError: files that are not of it, with the line.
    """
    return reader(name)(path, **options)


def write_format(name: str, manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write a manifest for another tool.

    Raises:
        ConfigError: no such format. ManifestError: an utterance that the format cannot hold.
    """
    _module(name).write(manifest, path)


def reader(name: str) -> Callable[..., Manifest]:
    """The format's ``read``."""
    return _module(name).read


def _module(name: str) -> Any:
    if name not in FORMATS:
        raise ConfigError(f"there is no format '{name}'; {near(name, FORMATS)}")
    return import_module(f"{__name__}.{FORMATS[name]}")
