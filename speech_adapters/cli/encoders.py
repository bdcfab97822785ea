"""List the packaged encoders."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(arguments: argparse.Namespace) -> None:
    """Print a line per encoder."""
    from speech_adapters.encoders import load_encoder, packaged_encoders

    for name in packaged_encoders():
        encoder = load_encoder(name)
        print(f"{encoder.extra_repr()}, {sum(p.numel() for p in encoder.parameters()):,} parameters")
