"""Remove the stores of a cache folder; trainings make anew what they need."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, and what of it."""
    parser.add_argument("folder", nargs="?", default="runs/cache", type=Path, help="default: runs/cache")
    parser.add_argument("--store", metavar="NAME", help="one store, by its name in cache list; all by default")


def run(arguments: argparse.Namespace) -> None:
    """Say what was freed; nothing but stores is removed."""
    from speech_adapters.errors import ConfigError
    from speech_adapters.training.cache import stores_in

    stores = stores_in(arguments.folder)
    if arguments.store is not None:
        stores = [store for store in stores if store.name == arguments.store]
        if not stores:
            raise ConfigError(f"{arguments.folder}: no store {arguments.store!r}; see speech-adapters cache list")
    for store in stores:
        store.remove()
    print(
        f"{arguments.folder}: {len(stores)} stores removed, {sum(store.bytes for store in stores) / 1e6:.1f} MB freed"
    )
