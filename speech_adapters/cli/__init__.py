"""Adapters on frozen speech encoders, from the command line.

speech-adapters encoders                          packaged encoders and their sizes
speech-adapters adapters --encoder tiny-wavlm     every preset: where it acts and what it trains
speech-adapters check train.jsonl test.jsonl      decode all audio, find all that training would trip over
speech-adapters prepare ravdess FOLDER manifests  a corpus as its publisher lays it out -> manifests
speech-adapters transcribe --encoder tiny-wavlm --adapter DIR --head DIR call.wav ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from speech_adapters.cli.verbs import run_verb
from speech_adapters.config import run_main

VERBS = {
    "Use what was trained": ("transcribe",),
    "Data": ("check", "prepare"),
    "Look around": ("encoders", "adapters"),
}
"""The verbs as ``--help`` lists them; each is a module here (:mod:`speech_adapters.cli.verbs` says what it holds)."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, by default the process's own, and exit."""
    given = list(sys.argv[1:] if argv is None else argv)
    run_main(lambda: run_verb(__name__, "speech-adapters", given))
