"""Write the manifests of a corpus that lies there as its publisher unpacks it."""

from __future__ import annotations

import argparse

from speech_adapters.corpora import CORPORA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The corpus, where it lies, where its manifests go."""
    parser.add_argument("corpus", choices=[name for name in CORPORA if name != "demo"])
    parser.add_argument(
        "root", help="folder it was unpacked in; the layout stands in speech_adapters/corpora/<corpus>.py"
    )
    parser.add_argument("output", help="folder for the manifests")


def run(arguments: argparse.Namespace) -> None:
    """Print each manifest that was written."""
    from speech_adapters import corpora
    from speech_adapters.data.manifest import Manifest

    written = getattr(corpora, f"prepare_{arguments.corpus}")(arguments.root, arguments.output)
    for path in written.values() if isinstance(written, dict) else [written]:
        print(f"{path}: {Manifest.read(path).summary()}")
