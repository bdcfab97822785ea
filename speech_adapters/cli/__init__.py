"""Adapters on frozen speech encoders: train, combine, prove, use."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from speech_adapters.cli.verbs import run_verb
from speech_adapters.config import run_main

VERBS = {
    "Train": ("train", "evaluate", "sweep", "adapt", "compare", "copy-recipe"),
    "Use what was trained": ("transcribe", "classify", "embed", "verify", "serve"),
    "Combine and ship": ("fuse", "average", "fold", "export"),
    "Keep and share": ("bank", "card", "push", "pull"),
    "Data": ("manifest", "check", "prepare"),
    "Look around": ("info", "encoders", "adapters", "cache", "doctor"),
}
"""The verbs as ``--help`` lists them; each is a module here (:mod:`speech_adapters.cli.verbs` says what it holds)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, by default the process's own, and exit."""
    given = list(sys.argv[1:] if argv is None else argv)
    run_main(lambda: run_verb(__name__, "speech-adapters", given))
