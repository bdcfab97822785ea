"""Divide a manifest into train, dev and test sets that share no speaker.

speech-adapters manifest split calls.jsonl -o data        writes data/train.jsonl, data/dev.jsonl, data/test.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The manifest and the shares."""
    parser.add_argument("manifest")
    parser.add_argument("--output", "-o", type=Path, default=".", help="folder for the sets (default: here)")
    parser.add_argument("--dev", type=float, default=0.1, help="share of the audio (default: 0.1)")
    parser.add_argument("--test", type=float, default=0.2, help="share of the audio (default: 0.2); 0 for no test set")
    parser.add_argument(
        "--by", default="speaker", help="whose values stay together: audio_filepath, ... (default: speaker)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Say what each set holds; a set that is there already is not written over."""
    from speech_adapters.data.corpus_check import divided_notes, placeholder_findings, spelling_findings
    from speech_adapters.data.manifest import Manifest
    from speech_adapters.data.splits import split
    from speech_adapters.errors import ConfigError

    shares = {"test": arguments.test, "dev": arguments.dev, "train": 1.0}
    if not arguments.test:
        del shares["test"]
    manifest = Manifest.read(arguments.manifest)
    sets = split(manifest, shares, arguments.by, arguments.seed)
    paths = {name: arguments.output / f"{name}.jsonl" for name in reversed(shares)}
    if taken := [path for path in paths.values() if path.exists()]:
        raise ConfigError(f"{taken[0]}: exists already; name another folder with --output, or remove it")
    if arguments.by not in ("id", "audio_filepath"):
        for finding in [*placeholder_findings(manifest, arguments.by), *spelling_findings([manifest], arguments.by)]:
            print(finding, file=sys.stderr)
    for name, path in paths.items():
        sets[name].write(path)
        print(f"{path}: {sets[name].summary()}")
    if arguments.by != "speaker":
        for note in divided_notes([sets[name] for name in paths], "--by audio_filepath keeps"):
            print(f"note: {note}", file=sys.stderr)
    for key in ("emotion", "label"):
        known = set(sets["train"].values(key))
        for name in paths:
            if unknown := sorted(set(sets[name].values(key)) - known):
                print(f"{paths[name]}: {key} {', '.join(unknown)} is in no training utterance", file=sys.stderr)
