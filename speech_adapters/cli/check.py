"""Decode all audio of manifests, find all that training or scoring would trip over."""

from __future__ import annotations

import argparse
import sys

from speech_adapters.cli.manifest.arguments import channel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The manifests."""
    parser.add_argument("manifests", nargs="+", metavar="manifest.jsonl")
    parser.add_argument("--channel", type=channel, help="of lines that do not name one: a number from 0, or mix")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 2 where there is anything."""
    from speech_adapters.data.corpus_check import check_corpus, read_all

    manifests, findings, count = read_all(arguments.manifests, arguments.channel)
    for manifest in manifests:
        print(f"{manifest.name}: {manifest.summary()}")
    found = check_corpus(manifests)
    for finding in [*findings, *found]:
        print(finding, file=sys.stderr)
    count += len(found)
    found_all = f"{count:,} finding{'' if count == 1 else 's'}"
    print(found_all if count else "nothing found: audio decodes, splits share no speaker")
    return 2 if count else 0
