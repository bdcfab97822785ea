"""Train a fusion (or router) over saved adapters, which stay as they are, and score it beside each of them.

speech-adapters fuse --adapters adapters/studio,adapters/telephone --head heads/studio --train t.jsonl --dev d.jsonl
speech-adapters fuse --method router ...
"""

from __future__ import annotations

from collections.abc import Sequence

from speech_adapters.cli.recipes import run_recipe


def main(prog: str, argv: Sequence[str]) -> None:
    """Run the recipe."""
    run_recipe("fuse_adapters", [prog, *argv])
