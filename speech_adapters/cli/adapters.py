"""Show every adapter preset on an encoder: where it acts and what it trains."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The encoder, and whose published settings."""
    parser.add_argument("--encoder", default="tiny-wavlm", help="packaged name, local folder or hub id")
    parser.add_argument("--task", default="asr", choices=["asr", "emotion", "speaker", "intent"])


def run(arguments: argparse.Namespace) -> None:
    """Print each preset."""
    from speech_adapters.adapters import PRESETS
    from speech_adapters.model import SpeechAdapterModel

    model = SpeechAdapterModel.from_pretrained(arguments.encoder)
    print(model.encoder)
    for name in PRESETS:
        model.add_adapter(name, name, arguments.task)
        count = model.count_parameters()
        print(f"\n{name}: {count['trainable']:,} trainable ({count['percent']:.2f} %)")
        for line in model.registry.adapter(name).describe():
            print(f"  {line}")
        model.delete_adapter(name)
