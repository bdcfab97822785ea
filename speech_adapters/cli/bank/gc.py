"""Free the space of what no version names, and of what killed processes left.

speech-adapters bank gc --bank drawer --dry-run
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import add_bank, open_bank, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to."""
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say how much."""
    from speech_adapters.errors import counted

    count, freed = open_bank(arguments).gc(dry_run=arguments.dry_run)
    print(f"{counted(count, 'object')}, {size(freed)}{' would go' if arguments.dry_run else ' removed'}")
