"""Train an adapter and its baselines for a task, and score them.

  speech-adapters train asr --train train.jsonl --dev dev.jsonl --test test.jsonl --adapter lora
  speech-adapters train emotion --preset demo --updates 200
  speech-adapters train asr --resume latest

Each name is a recipe: a script that speech-adapters copy-recipe gives you to read and change. What is left of its run
lies in runs/<recipe>/latest: adapters, heads, results.json, report.html.
"""

from __future__ import annotations

from collections.abc import Sequence

from speech_adapters.cli.recipes import run_named

RECIPES = {
    "asr": "asr_librispeech",
    "emotion": "emotion_recognition",
    "keyword": "keyword_spotting",
    "intent": "intent_classification",
    "verification": "speaker_verification",
    "domains": "call_center",
    "tapt": "tapt",
    "active": "active_learning",
    "methods": "compare_methods",
}
"""What is trained -> its recipe."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Run the recipe."""
    run_named(prog, RECIPES, argv, __doc__ or "")
