"""Push an adapter with its head and its card to a hub, as one commit.

  speech-adapters push runs/asr_librispeech/latest user/telephone-asr --licence cc-by-4.0
  speech-adapters push bank:client-a/asr@production user/telephone-asr --private

It needs a login (hf auth login). HF_ENDPOINT names a hub of your own.
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.card import add_options, options_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What, and where to."""
    parser.add_argument("adapter", help="folder of a saved adapter or of a run, or bank:NAME@TAG")
    parser.add_argument("repository", help="user/name; made where it is missing")
    parser.add_argument("--message", default="Adapter", help="of the commit")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Name the commit, and how to load it."""
    from speech_adapters.bank.hub import push

    commit = push(
        arguments.adapter,
        arguments.repository,
        options_of(arguments),
        message=arguments.message,
        private=arguments.private,
    )
    print(f"{commit}\nload it: SpeechAdapterModel.from_adapter('{arguments.repository}@{commit}')")
