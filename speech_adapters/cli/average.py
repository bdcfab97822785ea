"""Average the weights of adapters of the same configuration into one.

  speech-adapters average adapters/studio adapters/telephone -o adapters/both
  speech-adapters average A B C --weights 0.5,0.3,0.2 --method ties --density 0.3 -o D

Their heads, where each has its own: --heads HEAD_A HEAD_B --head-output DIR. The methods: linear, svd (LoRA), ties,
dare_linear, dare_ties, magnitude_prune, tsv (task singular vectors, at full strength with the default weights).
"""

from __future__ import annotations

import argparse
import re

from speech_adapters.cli.models import add_encoder, base_of
from speech_adapters.errors import ConfigError, counted


def weights(text: str) -> list[float]:
    """``0.5,0.5`` as numbers."""
    return [float(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The adapters, their weights, and where to."""
    parser.add_argument(
        "adapters", nargs="+", metavar="adapter", help="folders of saved adapters, or of runs that hold one each"
    )
    parser.add_argument("--weights", type=weights, help="one each; equal ones of 1 in all by default")
    parser.add_argument("--method", default="linear", help="how (default: linear)")
    parser.add_argument("--density", type=float, help="share of values that ties, dare and pruning keep")
    parser.add_argument("--heads", nargs="+", metavar="HEAD", help="folders of the adapters' heads, averaged alike")
    parser.add_argument("--head-output", metavar="DIR", help="folder for the averaged head")
    add_encoder(parser)
    parser.add_argument("--output", "-o", required=True, metavar="DIR", help="folder for the averaged adapter")


def run(arguments: argparse.Namespace) -> None:
    """Say what was written."""
    from pathlib import Path

    from speech_adapters.saving.finding import find_adapter

    folders, heads = arguments.adapters, arguments.heads or []
    if len(folders) < 2:
        raise ConfigError("give two adapters or more")
    factors = arguments.weights or [1 / len(folders)] * len(folders)
    if len(factors) != len(folders):
        raise ConfigError(f"--weights: {counted(len(factors), 'weight')} for {len(folders)} adapters; give one each")
    if bool(heads) != bool(arguments.head_output) or (heads and len(heads) != len(folders)):
        raise ConfigError("--heads and --head-output belong together; give as many heads as adapters")
    for folder in filter(None, (arguments.output, arguments.head_output)):
        if Path(folder).exists():
            raise ConfigError(f"{folder}: exists already; name a new folder")
    names = [f"{number}-{re.sub('[^A-Za-z0-9]+', '-', name)}" for number, name in enumerate(folders, 1)]  # for errors
    places = [find_adapter(folder) for folder in folders]
    model = base_of(places[0], arguments.encoder)
    for name, folder in zip(names, places, strict=True):
        model.load_adapter(folder, name)
        model.set_active()
    options = {} if arguments.density is None else {"density": arguments.density}
    model.average_adapters("average", dict(zip(names, factors, strict=True)), arguments.method, **options)
    if heads:
        for name, head in zip(names, heads, strict=True):
            model.set_active(name)
            model.load_head(head, name)
        model.set_active("average")
        model.average_heads("average", dict(zip(names, factors, strict=True)), arguments.method, **options)
    shown = " + ".join(f"{factor:g} {folder}" for factor, folder in zip(factors, folders, strict=True))
    print(model.save_adapter("average", arguments.output, average=shown, method=arguments.method))
    if heads:
        print(model.save_head("average", arguments.head_output))
