"""What a bank holds: of each name the newest version and those with tags.

speech-adapters bank list --bank drawer
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import add_bank, open_bank, say_damaged, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--every", action="store_true", help="every version")
    parser.add_argument("--json", action="store_true", help="JSON Lines with all facts")
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """The table."""
    index = open_bank(arguments).index()
    show(list(index.versions(every=arguments.every)), as_json=arguments.json)
    say_damaged(index.damaged)
