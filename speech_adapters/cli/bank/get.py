"""The folder of a version: where it lies, or a copy of it.

speech-adapters bank get --bank drawer client-a/asr@production     its folder, not to be changed
speech-adapters bank get --bank drawer client-a/asr@3 --output adapters/asr
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import REFERENCE, add_bank, open_bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which, and where to."""
    parser.add_argument("reference", help=REFERENCE)
    parser.add_argument("--output", help="copy it to this folder, which must be new")
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the folder."""
    bank = open_bank(arguments)
    if arguments.output is None:
        print(bank.path(arguments.reference))
        return
    bank.copy(arguments.reference, arguments.output)
    print(arguments.output)
