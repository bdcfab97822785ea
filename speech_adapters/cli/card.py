"""Write the card (README.md) of a saved adapter, from what its files and its run say.

speech-adapters card runs/asr_librispeech/latest --licence cc-by-4.0 --language en
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from speech_adapters.errors import ConfigError

if TYPE_CHECKING:
    from speech_adapters.reports.card import CardOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """What no file says."""
    parser.add_argument("--licence", help="of the adapter, as the hub writes it: cc-by-4.0, apache-2.0, ...")
    parser.add_argument("--language", help="en, ...")
    parser.add_argument("--dataset", metavar="USER/NAME", help="the test set's id on the hub, for .eval_results")
    parser.add_argument("--task-id", default="default", help="its task there (default: default)")


def options_of(arguments: argparse.Namespace) -> CardOptions:
    """What :func:`add_options` was told."""
    from speech_adapters.reports.card import CardOptions

    return CardOptions(
        licence=arguments.licence, language=arguments.language, dataset=arguments.dataset, task_id=arguments.task_id
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The adapter."""
    parser.add_argument("adapter", help="folder of a saved adapter, or of a run that holds one")
    parser.add_argument("--overwrite", action="store_true", help="in place of a card that is there")
    add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say where it lies."""
    from speech_adapters.reports.card import write_card
    from speech_adapters.saving.finding import find_parts

    folder = find_parts(arguments.adapter).adapter
    if folder is None:
        raise ConfigError(f"{arguments.adapter}: a card describes an adapter, and there is none here")
    if (folder / "README.md").exists() and not arguments.overwrite:
        raise ConfigError(f"{folder / 'README.md'} is there already; replace it with --overwrite")
    print(write_card(folder, options_of(arguments)))
