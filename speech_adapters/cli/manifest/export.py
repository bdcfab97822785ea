"""Another tool's files out of a manifest.

  speech-adapters manifest export kaldi train.jsonl data/train
  speech-adapters manifest export lhotse train.jsonl cuts_train.jsonl.gz

huggingface is an audiofolder: each utterance as a WAV file of its own, with its metadata. webdataset is a folder of
tar shards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speech_adapters.data.formats import FORMATS, write_format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The format, the manifest, and where to."""
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("manifest")
    parser.add_argument("path", type=Path, help="file or folder to write, which must be new")


def run(arguments: argparse.Namespace) -> None:
    """Say where it lies."""
    from speech_adapters.data.manifest import Manifest
    from speech_adapters.errors import ConfigError, counted

    manifest = Manifest.read(arguments.manifest)
    if arguments.path.exists():
        raise ConfigError(f"{arguments.path}: exists already; name a new one")
    write_format(arguments.format, manifest, arguments.path)
    print(f"{arguments.path}: {counted(len(manifest), 'utterance')} for {arguments.format}")
