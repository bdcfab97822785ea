"""Copy versions with their tags to another place, as a bank: a folder, or a URL that fsspec opens.

speech-adapters bank export --bank drawer backup
speech-adapters bank export --bank drawer s3://models/client-a --name client-a --tag production
"""

from __future__ import annotations

import argparse
import sys

from speech_adapters.cli.bank.arguments import add_bank, add_query, open_bank, query_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and which."""
    parser.add_argument("address", help="folder or URL where nothing is yet")
    add_query(parser)
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say how much, and what was left out."""
    from speech_adapters.bank.transfer import export_bank
    from speech_adapters.errors import counted

    bank = open_bank(arguments)
    query = query_of(arguments)
    chosen = bank.search(query, every=arguments.every)
    count = export_bank(bank, chosen, arguments.address)
    print(f"{arguments.address}: {counted(len(chosen), 'version')}, {counted(count, 'object')}")
    if left := len(bank.search(query, every=True)) - len(chosen):
        print(f"left out: {counted(left, 'older version')} without a tag; --every takes them along", file=sys.stderr)
