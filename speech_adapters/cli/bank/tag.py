"""Let a tag point at a version, or take it away.

speech-adapters bank tag --bank drawer client-a/asr@3 candidate
speech-adapters bank tag --bank drawer client-a/asr candidate --delete
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import REFERENCE, add_bank, open_bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which version, which tag."""
    parser.add_argument("reference", help=REFERENCE)
    parser.add_argument("tag", help="a word, such as candidate")
    parser.add_argument("--delete", action="store_true", help="take the tag away; give the name alone")
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say where it points."""
    bank = open_bank(arguments)
    if arguments.delete:
        bank.untag(arguments.reference, arguments.tag)
        print(f"{arguments.reference}: no tag {arguments.tag} any more")
        return
    print(f"{bank.tag(arguments.reference, arguments.tag)} is {arguments.tag}")
