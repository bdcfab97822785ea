"""Transcribe or embed an archive on many machines, with Ray Data.

    pip install 'speech-adapters[ray]'
    speech-adapters manifest index archive.jsonl
    python examples/ray/archive.py transcribe archive.jsonl runs/asr_librispeech/latest texts --workers 2
    python examples/ray/archive.py embed archive.jsonl runs/speaker_verification/latest embeddings

What travels are places in the manifest, and small rows back: every worker opens the manifest (its index makes that
quick), reads the audio itself and holds one model. Manifest and audio must be reachable from all machines by one path.
The output is a folder of Parquet files with ``id`` and ``text`` or ``embedding``; a recording that cannot be heard has
an ``error`` in place of them, and does not stop the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import AudioError
from speech_adapters.inference.recordings import Recording, of_utterances
from speech_adapters.inference.transcripts import transcribe
from speech_adapters.inference.utterances import embed
from speech_adapters.model import SpeechAdapterModel


class Worker:
    """One model, which hears the places in the manifest that it is given."""

    def __init__(self, task: str, manifest: str, adapter: str, encoder: str | None, device: str) -> None:
        self.task, self.manifest = task, Manifest.read(manifest)
        self.model = SpeechAdapterModel.from_adapter(adapter, encoder=encoder, device=device)

    def __call__(self, rows: Mapping[str, np.ndarray]) -> dict[str, Sequence[Any]]:
        utterances = [self.manifest[int(place)] for place in rows["id"]]
        recordings = of_utterances(utterances)
        try:
            answers, errors = self._hear(recordings), [None] * len(recordings)
        except AudioError:  # one of them: each by itself
            answers, errors = map(list, zip(*map(self._alone, recordings), strict=True))
        what = "text" if self.task == "transcribe" else "embedding"
        return {"id": [utterance.id for utterance in utterances], what: answers, "error": errors}

    def _hear(self, recordings: Sequence[Recording]) -> list[Any]:
        if self.task == "transcribe":
            return [found.text for found in transcribe(self.model, [[recording] for recording in recordings])]
        return [embedding.tolist() for embedding in embed(self.model, recordings)]

    def _alone(self, recording: Recording) -> tuple[Any, str | None]:
        try:
            return self._hear([recording])[0], None
        except AudioError as error:
            return None, str(error)


def hear(
    task: str,
    manifest: str | Path,
    adapter: str | Path,
    *,
    encoder: str | None = None,
    workers: int = 2,
    gpus: float = 0,
    cpus: float = 1,
    batch: int = 64,
) -> ray.data.Dataset:
    """The rows, which are made when they are written or taken.

    Args:
        task: "transcribe" or "embed".
        workers: models, each with so many ``gpus`` and ``cpus``.
        batch: recordings that a worker gets at once, and sorts by length.
    """
    count = len(Manifest.read(manifest))
    blocks = max(min(-(-count // batch), 16 * workers), 1)
    settings = (task, str(Path(manifest).absolute()), str(adapter), encoder, "cuda" if gpus else "cpu")
    return ray.data.range(count, override_num_blocks=blocks).map_batches(
        Worker, fn_constructor_args=settings, batch_size=batch, num_gpus=gpus, num_cpus=cpus,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["transcribe", "embed"])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("adapter", help="its folder, a run's, or bank:NAME@TAG")
    parser.add_argument("output", type=Path, help="folder to write, which must be new")
    parser.add_argument("--encoder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--cpus", type=float, default=1, help="of each worker")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists already; name a new folder")
    options = {key: getattr(arguments, key) for key in ("encoder", "workers", "gpus", "cpus", "batch")}
    rows = hear(arguments.task, arguments.manifest, arguments.adapter, **options)
    rows.write_parquet(str(arguments.output.absolute()))


if __name__ == "__main__":
    main()
