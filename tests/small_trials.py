"""A small corpus for verification: four voices, three utterances each, all trials, models of several utterances."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.trials import read_trials


def small_corpus(folder: Path, first: int = 0) -> SimpleNamespace:
    """Speakers s<first>, ..., each a tone of an own pitch in noise; ``folder`` gets audio, a manifest and lists."""
    rng = np.random.default_rng(first)
    utterances = []
    for number in range(12):
        speaker, take = first + number // 3, number % 3
        time = np.arange(int((0.3 + 0.1 * take) * 16000)) / 16000
        tone = 0.3 * np.sin(2 * np.pi * (150 + 170 * speaker) * time) + rng.normal(0, 0.1, len(time))
        path = folder / "audio" / f"s{speaker}" / f"{take}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, torch.tensor(tone, dtype=torch.float32))
        utterances.append(Utterance(f"s{speaker}-{take}", path, len(time) / 16000, speaker=f"s{speaker}"))
    names = [f"{utterance.speaker}/{utterance.audio_filepath.name}" for utterance in utterances]
    pairs = [(i, j) for i in range(12) for j in range(i)]
    lines = [f"{int(i // 3 == j // 3)} {names[i]} {names[j]}\n" for i, j in pairs]
    speakers = range(first, first + 4)
    (folder / "trials.txt").write_text("".join(lines))
    (folder / "map.txt").write_text("".join(f"m{s} s{s}-0 s{s}-1\n" for s in speakers))
    (folder / "models.txt").write_text("".join(f"{int(s == t)} m{s} s{t}-2\n" for s in speakers for t in speakers))
    manifest = Manifest(utterances, "test.jsonl")
    manifest.write(folder / "test.jsonl")
    return SimpleNamespace(folder=folder, manifest=manifest, trials=read_trials(folder / "trials.txt"), pairs=pairs)
