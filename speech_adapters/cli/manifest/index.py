"""Index manifests of millions of lines, so that they open at once.

  speech-adapters manifest index train.jsonl

All lines are checked, and train.jsonl.index is written beside the manifest. Whatever reads the manifest then uses it:
training starts without reading the lines, in little memory. A manifest that changes needs its index made anew.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The manifests."""
    parser.add_argument("manifest", nargs="+")


def run(arguments: argparse.Namespace) -> None:
    """Say what each holds."""
    from speech_adapters.data.manifest import Manifest

    for path in arguments.manifest:
        print(f"{path}.index: {Manifest.make_index(path).summary()}")
