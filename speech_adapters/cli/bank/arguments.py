"""What the verbs of a bank share: which bank, what is looked for, how it is shown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech_adapters.bank.bank import Bank
    from speech_adapters.bank.index import Found, Query

REFERENCE = "NAME, NAME@VERSION or NAME@TAG"


def add_bank(parser: argparse.ArgumentParser) -> None:
    """``--bank``."""
    parser.add_argument("--bank", metavar="DIR", help="the bank (default: what SPEECH_ADAPTERS_BANK names)")


def open_bank(arguments: argparse.Namespace) -> Bank:
    """The bank that the arguments, or the environment, name."""
    from speech_adapters.bank.bank import Bank

    return Bank(arguments.bank)


def add_query(parser: argparse.ArgumentParser) -> None:
    """What a version must be."""
    parser.add_argument("words", nargs="*", help="words that occur in its name, tags or facts")
    for key, text in (
        ("name", "this name, or those below it: client-a"),
        ("tag", "with this tag"),
        ("base", "name of the frozen encoder, or the beginning of its fingerprint"),
        ("task", "asr, emotion, speaker, ..."),
        ("domain", "telephone, ..."),
        ("language", "en, ..."),
        ("method", "lora, elp, ..."),
        ("since", "added on this day or later: 2026-01-31"),
        ("until", "added on this day or before"),
    ):
        parser.add_argument(f"--{key}", help=text)
    parser.add_argument(
        "--metric", action="append", default=[], metavar="CONDITION", help="'wer<0.2', as a fraction; may be repeated"
    )
    parser.add_argument("--every", action="store_true", help="every version, not the newest and the tagged ones alone")


def query_of(arguments: argparse.Namespace) -> Query:
    """What :func:`add_query` asked for."""
    from speech_adapters.bank.index import Query

    keys = ("words", "name", "tag", "base", "task", "domain", "language", "method", "since", "until")
    return Query(**{key: getattr(arguments, key) for key in keys}, metrics=arguments.metric)


def show(versions: Sequence[Found], *, as_json: bool) -> None:
    """A table, or JSON Lines."""
    if as_json:
        for found in versions:
            print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    rows = [["name", "tags", "base", "method", "head", "task", "domain", "lang", "figures", "size", "added"]]
    for found in versions:
        facts = found.facts
        rows.append([
            str(found), ",".join(found.tags), facts.base, facts.method, facts.head or "", facts.task or "",
            facts.domain or "", facts.language or "", figures(facts.metrics), size(facts.bytes),
            found.version.added[:10],
        ])  # fmt: skip
    if not versions:
        print("no versions", file=sys.stderr)
        return
    kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    for row in zip(*kept, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def figures(metrics: dict[str, Any]) -> str:
    """``wer 0.132 [0.110, 0.150]``: the first figure."""
    for name, entry in metrics.items():
        if isinstance(entry, dict) and all(
            isinstance(entry.get(key), int | float) for key in ("value", "low", "high")
        ):
            return f"{name} {entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
    return ""


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def say_damaged(damaged: dict[str, str], what: str = "not shown") -> None:
    """Name the entries that could not be read, and ``what`` is for that reason, on stderr."""
    for message in damaged.values():
        print(f"{what}: {message}", file=sys.stderr)
