"""NVIDIA NeMo's manifests, whose keys ours are."""

from __future__ import annotations

import os

from speech_adapters.data.manifest import Manifest


def read(path: str | os.PathLike[str]) -> Manifest:
    """The manifest: keys that only NeMo knows are kept."""
    return Manifest.read(path)


def write(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write it; audio paths are relative to the file, which NeMo follows."""
    manifest.write(path)
