"""Let the tag production point at a version whose files are whole; previous keeps what it was.

speech-adapters bank promote --bank drawer client-a/asr@4
speech-adapters bank promote --bank drawer client-a/asr@previous      takes it back
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import REFERENCE, add_bank, figures, open_bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which."""
    parser.add_argument("reference", help=REFERENCE)
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say what is in use now, and what was."""
    from speech_adapters.bank.bank import PREVIOUS

    bank = open_bank(arguments)
    found = bank.promote(arguments.reference)
    print(f"{found} is production  {figures(found.facts.metrics)}".rstrip())
    entry = bank.layout.entry(found.name)
    if (before := entry.tags.get(PREVIOUS)) is not None and before != found.number:
        print(f"{found.name}@{before} is previous  {figures(entry.versions[str(before)].facts.metrics)}".rstrip())
