"""Remove kept activations; trainings compute anew what they need."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, and what of it."""
    parser.add_argument("folder", nargs="?", type=Path, help="of training.cache; default: the toolkit's own")
    parser.add_argument("--stale", action="store_true", help="only those of another version, never read again")


def run(arguments: argparse.Namespace) -> None:
    """Say what was freed; nothing but activations is removed."""
    from speech_adapters.training.cache import clear_cache
    from speech_adapters.training.settings import Cache

    freed = clear_cache(arguments.folder, stale_only=arguments.stale)
    print(f"{arguments.folder or Cache().path}: {freed / 1e6:.1f} MB freed")
