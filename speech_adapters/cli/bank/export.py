"""Copy versions with their tags to another place, as a bank: a folder, or a URL that fsspec opens.

  speech-adapters bank export --bank drawer backup
  speech-adapters bank export --bank drawer s3://models/client-a --name client-a --tag production

An entry that cannot be read is left out and named on standard error (exit code 1).
"""

from __future__ import annotations

import argparse
import sys

from speech_adapters.cli.bank.arguments import add_bank, add_query, open_bank, query_of, say_damaged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and which."""
    parser.add_argument("address", help="folder or URL where nothing is yet")
    add_query(parser)
    add_bank(parser)


def run(arguments: argparse.Namespace) -> int:
    """Say how much, and what was left out; exit code 1 where that is an entry that cannot be read."""
    from speech_adapters.bank.transfer import export_bank
    from speech_adapters.errors import counted

    bank = open_bank(arguments)
    query = query_of(arguments)
    index = bank.index()
    fitting = [found for found in index.versions(every=True) if query.fits(found)]
    chosen = [found for found in index.versions(every=arguments.every) if query.fits(found)]
    say_damaged(index.damaged, "left out")
    count = export_bank(bank, chosen, arguments.address)
    print(f"{arguments.address}: {counted(len(chosen), 'version')}, {counted(count, 'object')}")
    if left := len(fitting) - len(chosen):
        print(f"left out: {counted(left, 'older version')} without a tag; --every takes them along", file=sys.stderr)
    return 1 if index.damaged else 0
