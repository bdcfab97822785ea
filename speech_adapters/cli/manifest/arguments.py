"""Arguments that the verbs of manifests share."""

from __future__ import annotations

import argparse
from pathlib import Path


def pairs(text: str) -> dict[str, str]:
    """``speaker=client_id,text=sentence`` as a dictionary."""
    found = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise argparse.ArgumentTypeError(f"{part!r}: write key=column, such as text=sentence,speaker=client_id")
        found[key] = value
    return found


def names(text: str) -> list[str]:
    """``agent,customer`` as a list."""
    found = [part.strip() for part in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: name one, or several that differ, such as agent,customer")
    return found


def channel(text: str) -> int | str:
    """``mix`` or a number from 0."""
    if text == "mix" or text.isdecimal():
        return text if text == "mix" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: give the channel's number, from 0, or mix for the mean of all")


def manifest(text: str) -> str:
    """A new file's name that ends in ``.jsonl``, so that neither a table nor a manifest is written over by mistake."""
    if not text.endswith(".jsonl"):
        raise argparse.ArgumentTypeError(f"{text!r}: a manifest's name ends in .jsonl")
    if Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text!r}: exists already; name another file, or remove it")
    return text


def add_output(parser: argparse.ArgumentParser) -> None:
    """``--output``."""
    parser.add_argument("--output", "-o", type=manifest, required=True, help="manifest to write (.jsonl)")


COLUMNS = "our key = the table's column, where its name does not tell: text=sentence,speaker=client_id"
