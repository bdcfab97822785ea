"""Take versions out; bank gc frees their space. Their numbers are not given again.

speech-adapters bank rm --bank drawer client-a/asr@1
speech-adapters bank rm --bank drawer client-a/asr      every version
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import REFERENCE, add_bank, open_bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which."""
    parser.add_argument("references", nargs="+", metavar="reference", help=REFERENCE)
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """Name what went."""
    bank = open_bank(arguments)
    for reference in arguments.references:
        name = reference.partition("@")[0]
        print("removed " + ", ".join(f"{name}@{number}" for number in bank.remove(reference)))
