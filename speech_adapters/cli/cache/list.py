"""List what is kept of frozen encoders' activations: each encoder, how much of what, its size, when it was written."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder."""
    parser.add_argument("folder", nargs="?", type=Path, help="of training.cache; default: the toolkit's own")


def run(arguments: argparse.Namespace) -> None:
    """A line per encoder, one per kind of activation below it, and the sum."""
    from speech_adapters.errors import counted
    from speech_adapters.training.cache import list_caches
    from speech_adapters.training.settings import Cache

    entries = list_caches(arguments.folder)
    for entry in entries:
        written = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        state = "" if entry.current else "  (of another version: never read again)"
        print(f"{entry.path.name}  {entry.about.get('encoder', '?')}  {entry.size / 1e6:.1f} MB  {written}{state}")
        for tap, count in sorted(entry.taps.items()):
            print(f"  {tap}: {counted(count, 'utterance')}")
    folder = arguments.folder or Cache().path
    print(f"{folder}: {counted(len(entries), 'encoder')}, {sum(entry.size for entry in entries) / 1e6:.1f} MB")
