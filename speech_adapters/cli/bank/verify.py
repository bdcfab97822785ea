"""Read every file of a bank and hold it against its checksum; exit code 1 where something is wrong.

speech-adapters bank verify --bank drawer
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import add_bank, open_bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which bank."""
    add_bank(parser)


def run(arguments: argparse.Namespace) -> int:
    """One line per fault."""
    from speech_adapters.errors import counted

    bank = open_bank(arguments)
    faults = bank.verify()
    for fault in faults:
        print(fault)
    count = len(list(bank.index().versions(every=True)))
    print(f"{counted(count, 'version')}, {counted(len(faults), 'fault') if faults else 'no faults'}")
    return 1 if faults else 0
