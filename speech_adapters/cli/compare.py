"""Compare runs: their figures side by side, whether they differ by more than chance, and what to listen to.

  speech-adapters compare runs/a                             the methods of one run: adapter, baselines
  speech-adapters compare runs/a runs/b                      paired where both runs kept what they predicted
  speech-adapters compare runs/a runs/b runs/c --report compared.html

Differences are paired by utterance, or by trial, and drawn by speaker; p-values hold for all pairs together.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="run", help="run folders with results.json; one alone: its methods"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with players of what changed")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there already")
    parser.add_argument("--listen", type=int, default=5, help="utterances that changed, per pair (default: 5)")


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
    pairs = compare_runs(runs) if same else []
    print(comparison_text(runs, pairs, arguments.listen))
    if not same:
        print("\nscored on different test sets: the figures say nothing about which is better")
    if page is not None:
        print(f"\nreport  {write_comparison(page, runs, pairs, listen=max(20, arguments.listen))}")
