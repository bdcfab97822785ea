"""Take in the versions of another bank: a folder, or a URL that fsspec opens.

  speech-adapters bank import --bank drawer s3://models/client-a
  speech-adapters bank import --bank drawer ../other/drawer client-b/asr

A version that is here already is not taken twice. New ones keep their numbers, as in an empty bank; where the name has
had some as high, they get the next ones.
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import add_bank, open_bank, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where from, and which."""
    parser.add_argument("address", help="folder or URL of a bank")
    parser.add_argument("names", nargs="*", help="such as client-a/asr (default: all)")
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """Name what is new, or newly tagged."""
    from speech_adapters.bank.transfer import import_bank
    from speech_adapters.errors import counted

    new = import_bank(open_bank(arguments), arguments.address, arguments.names)
    show(new, as_json=False)
    print(f"{counted(len(new), 'version')} new or newly tagged")
