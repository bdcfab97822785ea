"""Score a saved adapter and head, or others' predictions and scores, on any manifest.

speech-adapters evaluate asr --adapter DIR --head DIR --manifest test.jsonl
speech-adapters evaluate classification --predictions theirs.csv
speech-adapters evaluate verification --trials trials.txt --scores scores.txt
"""

from __future__ import annotations

from collections.abc import Sequence

from speech_adapters.cli.recipes import run_named

RECIPES = {
    "asr": "evaluate_asr",
    "classification": "evaluate_emotion",
    "emotion": "evaluate_emotion",
    "slots": "evaluate_slots",
    "verification": "evaluate_verification",
}
"""What is scored -> its recipe."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Run the recipe."""
    run_named(prog, RECIPES, argv, __doc__ or "")
