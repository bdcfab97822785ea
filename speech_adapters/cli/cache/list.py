"""List what a cache folder holds: each store, its size, how much is in it, when it was made."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder."""
    parser.add_argument("folder", nargs="?", default="runs/cache", type=Path, help="default: runs/cache")


def run(arguments: argparse.Namespace) -> None:
    """A line per store, and the sum."""
    from speech_adapters.training.cache import stores_in

    stores = stores_in(arguments.folder)
    for store in stores:
        made = datetime.fromtimestamp(store.made).strftime("%Y-%m-%d %H:%M")
        held = f"{store.utterances} utterances" if store.utterances is not None else "incomplete"
        print(f"{store.name}  {store.bytes / 1e6:10.1f} MB  {held:>18}  {made}")
    print(f"{arguments.folder}: {len(stores)} stores, {sum(store.bytes for store in stores) / 1e6:.1f} MB")
