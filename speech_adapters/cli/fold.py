"""Fold an adapter into its base's weights: a stock checkpoint for AutoModel.from_pretrained, without a head.

speech-adapters fold adapters/lora folded        export also takes the head, the processor and the vocabulary along
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.models import add_encoder, base_of, told_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The adapter, and where to."""
    parser.add_argument(
        "adapter",
        help="folder of a saved adapter, or of a run that holds one: of the LoRA family, ia3, bitfit, full, ...",
    )
    parser.add_argument("output", help="folder for the checkpoint, which must be new")
    add_encoder(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say where it lies."""
    from speech_adapters.saving.finding import find_adapter

    adapter = find_adapter(arguments.adapter)
    model = base_of(adapter, arguments.encoder)
    with told_of(arguments.adapter):
        folder = model.save_folded(model.load_adapter(adapter), arguments.output)
    print(f"{folder}\nload it: transformers.AutoModel.from_pretrained({str(folder)!r})")
