"""Make an empty bank.

speech-adapters bank init drawer
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where."""
    parser.add_argument("folder", help="folder for the bank, which must be new or empty")


def run(arguments: argparse.Namespace) -> None:
    """Say how it is named from now on."""
    from speech_adapters.bank.bank import Bank
    from speech_adapters.saving.bank_layout import ENVIRONMENT

    bank = Bank.create(arguments.folder)
    print(f"{bank.folder}\nuse it in this shell: export {ENVIRONMENT}={bank.folder.resolve()}")
