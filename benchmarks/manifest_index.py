"""How long does a manifest of ten thousand hours take to open, how much memory, and when is the first batch there?

    python benchmarks/manifest_index.py                  # 3.6 million lines; about ten minutes, most of it indexing
    python benchmarks/manifest_index.py --lines 200000

The manifest is made up: lines of 3 to 17 s, 50,000 speakers, a text each; their audio is one of 16 files of noise.
Each figure is that of a process of its own: seconds and megabytes of resident memory that it takes beyond its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech_adapters.data.audio import SAMPLE_RATE, write_audio
from speech_adapters.data.batches import LengthBatches, SpeechDataset, training_loader
from speech_adapters.data.manifest import Manifest, check_disjoint


def make_up(folder: Path, lines: int) -> Path:
    generator = np.random.default_rng(0)
    for number in range(16):
        samples = 0.1 * generator.standard_normal(17 * SAMPLE_RATE).astype(np.float32)
        write_audio(folder / f"{number}.flac", torch.from_numpy(samples))
    draw, words = random.Random(0), "the quick brown fox jumps over a lazy dog and runs away from it".split()
    with (folder / "train.jsonl").open("w") as file:
        for number in range(lines):
            entry = {
                "id": f"utterance-{number:08d}", "audio_filepath": f"{number % 16}.flac",
                "duration": round(draw.uniform(3, 17), 3), "text": " ".join(draw.choices(words, k=25)),
                "speaker": f"speaker-{draw.randrange(50_000):05d}", "lang": "en",
            }  # fmt: skip
            file.write(json.dumps(entry) + "\n")
    (folder / "dev.jsonl").write_text(
        json.dumps({"audio_filepath": "0.flac", "duration": 5.0, "speaker": "nobody", "text": "a"}) + "\n"
    )
    return folder / "train.jsonl"


def resident() -> float:
    """Megabytes of this process that are in memory, without what it shares with others through files."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def measure(path: Path, workers: int) -> dict[str, Any]:
    """Of this process: opening, checking the split, batches, and the first batch of audio."""
    before, figures, clock = resident(), {}, time.perf_counter
    started, used = clock(), time.process_time()
    manifest = Manifest.read(path, require=("text", "speaker"))
    figures["open s"] = clock() - started
    figures["open MB"] = resident() - before
    begun = clock()
    check_disjoint(manifest, Manifest.read(path.with_name("dev.jsonl")))
    figures["speakers checked s"] = clock() - begun
    figures["hours"] = manifest.hours
    begun = clock()
    dataset = SpeechDataset(manifest, keep_in_memory=False)
    batches = LengthBatches(dataset.durations, 600.0)
    figures["batches s"] = clock() - begun
    first = next(iter(training_loader(dataset, batches, epoch=0, workers=workers)))
    figures["first batch s"] = clock() - started
    figures["first batch, CPU s"] = time.process_time() - used
    figures["batch"] = len(first["indices"])
    figures["MB"] = resident() - before
    return {name: round(value, 2) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=3_600_000)
    parser.add_argument("--plain", action="store_true", help="measure the manifest without its index too")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = make_up(Path(folder), arguments.lines)
        command = [sys.executable, __file__, "--workers", str(arguments.workers), "--measure", str(path)]
        found = {"lines": arguments.lines, "manifest MB": round(path.stat().st_size / 2**20)}
        if arguments.plain:
            found["plain"] = json.loads(subprocess.check_output(command))
        started = time.perf_counter()
        Manifest.make_index(path)
        found["index made s"] = round(time.perf_counter() - started, 1)
        found["index MB"] = round(os.path.getsize(f"{path}.index") / 2**20)
        time.sleep(2.5)  # until the hash of a file that young is remembered
        for run in ("indexed, first time", "indexed"):
            found[run] = json.loads(subprocess.check_output(command))
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
