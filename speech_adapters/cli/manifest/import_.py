"""A manifest out of another tool's files.

  speech-adapters manifest import kaldi data/train -o train.jsonl
  speech-adapters manifest import lhotse cuts_train.jsonl.gz -o train.jsonl
  speech-adapters manifest import huggingface emotions/ -o train.jsonl --columns label=class

kaldi: a data folder. lhotse: cuts, or supervisions beside their recordings. speechbrain: a CSV. nemo: a manifest.
huggingface: an audiofolder; a save_to_disk folder or parquet, whose audio goes to --audio. webdataset: a folder of
tar shards, where the audio stays. csv: any table.
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.manifest.arguments import COLUMNS, add_output, pairs
from speech_adapters.data.formats import FORMATS, read_format, reader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The format, the files, and what it needs besides."""
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("path", help="file or folder")
    parser.add_argument("--root", help="where relative audio paths start (kaldi, lhotse, speechbrain, csv)")
    parser.add_argument("--columns", type=pairs, help=f"{COLUMNS} (huggingface, csv)")
    parser.add_argument("--audio", help="folder to write audio to that stands in tables (huggingface)")
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say what the manifest holds."""
    import inspect

    from speech_adapters.errors import ConfigError

    given = {name: value for name in ("root", "columns", "audio") if (value := getattr(arguments, name)) is not None}
    known = inspect.signature(reader(arguments.format)).parameters
    if unused := [name for name in given if name not in known]:
        raise ConfigError(f"--{unused[0]}: means nothing for {arguments.format}; leave it out")
    manifest = read_format(arguments.format, arguments.path, **given)
    manifest.write(arguments.output)
    print(f"{arguments.output}: {manifest.summary()}")
