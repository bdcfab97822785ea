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
    from speech_adapters.data.corpus_check import check_corpus, corpus_notes, read_all
    from speech_adapters.errors import counted

    manifests, findings, count = read_all(arguments.manifests, arguments.channel)
    for manifest in manifests:
        print(f"{manifest.name}: {manifest.summary()}")
    found = check_corpus(manifests)
    for finding in [*findings, *found]:
        print(finding, file=sys.stderr)
    for note in corpus_notes(manifests):
        print(f"note: {note}", file=sys.stderr)
    count += len(found)
    disjoint = len(manifests) > 1 and all(u.speaker is not None for manifest in manifests for u in manifest)
    fit = "nothing found: audio decodes" + (", splits share no speaker" if disjoint else "")
    print(counted(count, "finding") if count else fit)
    return 2 if count else 0
