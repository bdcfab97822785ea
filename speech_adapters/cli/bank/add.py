"""Keep a saved adapter with its head, a head, or a fusion as the next version of a name.

  speech-adapters bank add --bank drawer runs/asr_librispeech/latest --name client-a/asr --domain telephone
  speech-adapters bank add --bank drawer adapters/lora --name emotion/lora --tag candidate

Its files are read whole first. What is known of its data and figures comes from the adapter's card and from the
results.json of the run that it lies in; the options say the rest.
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import add_bank, open_bank

LABELS = {
    "task": "asr, emotion, speaker, ...",
    "domain": "telephone, studio, ...",
    "language": "en, ...",
    "licence": "of the adapter, such as cc-by-4.0",
    "data": "what it was tested on",
    "note": "one line about it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The part, and what it is called."""
    parser.add_argument("part", help="folder of a saved adapter, head or fusion, or of a run that holds one")
    parser.add_argument("--name", required=True, help="such as client-a/asr")
    parser.add_argument("--head", help="folder of the head that goes along (default: the one trained on the adapter)")
    parser.add_argument("--tag", action="append", default=[], help="to set on it; may be repeated")
    for label, text in LABELS.items():
        parser.add_argument(f"--{label}", help=text)
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say which version it became, and how to load it."""
    labels = {label: getattr(arguments, label) for label in LABELS}
    bank = open_bank(arguments)
    found = bank.add(arguments.part, arguments.name, head=arguments.head, tags=tuple(arguments.tag), **labels)
    loader = {"adapter": "from_adapter" if found.facts.head else "load_adapter"}.get(found.facts.kind)
    print(f"{found}\nload it: model.{loader or f'load_{found.facts.kind}'}('bank:{found}')")
