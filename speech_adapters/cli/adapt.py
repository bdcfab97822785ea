"""Adapt a trained recogniser to recordings without their texts, next to itself as it is.

  speech-adapters adapt --adapter runs/asr_librispeech/latest --dev dev.jsonl --test test.jsonl
  speech-adapters adapt --methods speaker-code ...

transcribe --adapt does the same without comparing.
"""

from __future__ import annotations

from collections.abc import Sequence

from speech_adapters.cli.recipes import run_recipe


def main(prog: str, argv: Sequence[str]) -> None:
    """Run the recipe."""
    run_recipe("adapt_unlabelled", [prog, *argv])
