"""Copy an adapter from a hub to a folder, and name its commit.

  speech-adapters pull user/telephone-asr adapters/telephone
  speech-adapters pull user/telephone-asr@9f2c... adapters/telephone

Only descriptions, safetensors and the card are fetched; a repository with a pickle is refused. Every verb takes
user/repo@COMMIT where it takes an adapter's folder.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What, and where to."""
    parser.add_argument("repository", help="user/name, user/name@BRANCH or user/name@COMMIT")
    parser.add_argument("folder", help="must be new")


def run(arguments: argparse.Namespace) -> None:
    """Name the commit."""
    from speech_adapters.bank.hub import pull

    commit = pull(arguments.repository, arguments.folder)
    name = arguments.repository.partition("@")[0]
    print(f"{arguments.folder}\nload it from anywhere: SpeechAdapterModel.from_adapter('{name}@{commit}')")
