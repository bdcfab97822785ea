"""Compare runs: their figures side by side, whether they differ by more than chance, and what to listen to.

  speech-adapters compare runs/a                             a run's own adapter with each of its baselines
  speech-adapters compare runs/a --against head-only         another of its methods with each of the others
  speech-adapters compare runs/a runs/b                      paired where both runs kept what they predicted
  speech-adapters compare runs/a runs/b runs/c --report compared.html

Differences are paired by utterance, or by trial, and drawn by speaker; p-values hold for all pairs together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FEW_PAIRS = 5
"""So many can be shown with what changed; that of more would bury the verdicts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="run", help="run folders with results.json; one alone: its methods"
    )
    parser.add_argument(
        "--against", metavar="METHOD", help="of one run: the method to pair each other one with (default: its own)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with players of what changed")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there already")
    parser.add_argument(
        "--listen", type=int, help=f"utterances that changed, per pair (default: 5; of over {FEW_PAIRS} pairs none)"
    )


def run(arguments: argparse.Namespace) -> None:
    """The table, and a verdict per pair."""
    from speech_adapters.errors import ConfigError
    from speech_adapters.reports.comparison import (
        compare_runs,
        comparison_text,
        read_runs,
        same_test_set,
        write_comparison,
    )

    page = arguments.report
    if page is not None and page.exists() and not arguments.overwrite:
        raise ConfigError(f"{page} is there already; choose another --report, or --overwrite.")
    runs = read_runs(arguments.runs)
    same = same_test_set(runs)
    pairs = compare_runs(runs, against=arguments.against) if same else []
    listen = arguments.listen if arguments.listen is not None else 5 if len(pairs) <= FEW_PAIRS else 0
    print(comparison_text(runs, pairs, listen))
    if len(pairs) > FEW_PAIRS and arguments.listen is None:
        print("\nwhat changed: --listen 5, or --report FILE with players")
    if not same:
        print("\nscored on different test sets: the figures say nothing about which is better")
    if page is not None:
        print(f"\nreport  {write_comparison(page, runs, pairs, listen=max(20, listen))}")
