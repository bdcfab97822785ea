"""Arguments that the verbs of manifests share."""

from __future__ import annotations

import argparse


def pairs(text: str) -> dict[str, str]:
    """``speaker=client_id,text=sentence`` as a dictionary."""
    found = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise argparse.ArgumentTypeError(f"{part!r}: write key=column, such as text=sentence,speaker=client_id")
        found[key] = value
    return found


def channel(text: str) -> int | str:
    """``mix`` or a number from 0."""
    if text == "mix" or text.isdecimal():
        return text if text == "mix" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: give the channel's number, from 0, or mix for the mean of all")


def add_output(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """``--output``."""
    said = f" (default: {default})" if default else ""
    parser.add_argument("--output", "-o", default=default, required=default is None, help=f"manifest to write{said}")


COLUMNS = "our key = the table's column, where its name does not tell: text=sentence,speaker=client_id"
