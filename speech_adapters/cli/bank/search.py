"""Versions by base, task, domain, language, method, figures, date or words.

speech-adapters bank search --bank drawer --task asr --domain telephone --metric 'wer<0.2' --since 2026-01-01
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import add_bank, add_query, open_bank, query_of, say_damaged, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is looked for."""
    add_query(parser)
    parser.add_argument("--json", action="store_true", help="JSON Lines with all facts")
    add_bank(parser)


def run(arguments: argparse.Namespace) -> int:
    """The table; exit code 1 where nothing fits."""
    query, index = query_of(arguments), open_bank(arguments).index()
    versions = [found for found in index.versions(every=arguments.every) if query.fits(found)]
    show(versions, as_json=arguments.json)
    say_damaged(index.damaged)
    return 0 if versions else 1
