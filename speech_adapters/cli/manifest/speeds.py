"""Add copies of every utterance at other speeds, for a training from the cache of a frozen encoder.

speech-adapters manifest speeds train.jsonl -o fast.jsonl        speeds 0.9 and 1.1 beside 1, their files in fast/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speech_adapters.cli.manifest.arguments import add_output


def factors(text: str) -> tuple[float, ...]:
    """``0.9,1.1`` as numbers."""
    return tuple(float(part) for part in text.split(","))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The manifest and the speeds."""
    parser.add_argument("manifest")
    parser.add_argument("--speeds", type=factors, default=(0.9, 1.1), help="of the copies (default: 0.9,1.1)")
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say what the new manifest holds."""
    from speech_adapters.data.manifest import Manifest
    from speech_adapters.data.speed_copies import with_speeds

    output = Path(arguments.output)
    manifest = with_speeds(Manifest.read(arguments.manifest), arguments.speeds, output.with_suffix(""))
    manifest.write(output)
    print(f"{output}: {manifest.summary()}")
