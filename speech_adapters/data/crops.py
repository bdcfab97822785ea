"""Random crops of unlabelled speech for training without labels: decoded once, every batch reproducible by its place.

speech = Speech(manifest, "runs/cache")
for clean, heard in crop_batches(Crops(speech, key=(seed, epoch), crop_seconds=5, crops=6)): ...
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from speech_adapters.data.audio import MIN_SAMPLES, SAMPLE_RATE, pack, unpack
from speech_adapters.data.augmentation import speed
from speech_adapters.data.batches import JITTER, ignore_interrupts
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.store import Store
from speech_adapters.errors import ConfigError

BLOCK = 256
"""Utterances drawn together and then sorted by length: batches of like lengths, in random company."""


class Speech:
    """All utterances of a manifest, decoded once into a :class:`Store` in ``folder`` that runs share.

    An hour takes 115 MB. Utterances under ``shortest`` samples are never drawn.
    """

    def __init__(self, manifest: Manifest, folder: str | os.PathLike[str], shortest: int = MIN_SAMPLES) -> None:
        base = Path(folder) / f"audio-{manifest.content_key()[:16]}"
        if not Store.exists(base):
            size = round(2 * SAMPLE_RATE * 3600 * manifest.hours)
            scales = np.zeros(len(manifest))
            Store.write(base, np.int16, 1, _decoded(manifest, scales), len(manifest), size, {"scales": scales})
        self.store = Store(base, np.int16)
        self.lengths, self.scales = self.store.counts, self.store.arrays["scales"]
        self.usable = np.flatnonzero(self.lengths >= shortest)
        if not len(self.usable):
            raise ConfigError(f"{manifest.name}: no utterance has {shortest} samples or more; give longer speech")

    def piece(self, index: int, length: int, rng: np.random.Generator) -> Tensor:
        """A random piece (length,) of an utterance, as it was recorded."""
        start = int(rng.integers(self.lengths[index] - length + 1))
        samples = torch.from_numpy(self.store.piece(index, start, length).copy())
        return unpack(samples, float(self.scales[index]))


def _decoded(manifest: Manifest, scales: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for number, u in enumerate(tqdm(manifest, desc="decoding", unit="utterance", leave=False, disable=None)):
        wave = u.waveform("mix")
        samples, scales[number] = pack(wave)
        yield number, samples.numpy()


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """One pass over the speech as batches (clean, heard), each (B, samples) with ``crops * crop_seconds`` of audio.

    Every usable utterance is in it; those that are left over fill the last batch with others like them, which come
    twice. Utterances shorter than a crop come whole, cut to the shortest of their batch. One factor of ``speeds`` is
    drawn per batch; ``augment(waveform, rng)``, which must keep lengths, makes ``heard`` of ``clean``. Order and
    augmentation follow from ``key`` and the batch's place alone, so that a run can go on anywhere.
    """

    def __init__(
        self,
        speech: Speech,
        key: Sequence[int],
        *,
        crop_seconds: float,
        crops: int,
        speeds: Sequence[float] = (1.0,),
        augment: Callable[[Tensor, np.random.Generator], Tensor] | None = None,
    ) -> None:
        self.speech, self.key, self.speeds, self.augment = speech, tuple(key), tuple(speeds), augment
        self.crop = round(crop_seconds * SAMPLE_RATE)
        rng, heard = np.random.default_rng(self.key), np.minimum(speech.lengths, self.crop)
        order = rng.permutation(speech.usable)
        groups: list[list[int]] = []
        group: list[int] = []
        for drawn in np.array_split(order, max(1, len(order) // BLOCK)):
            block = np.array([*group, *drawn], dtype=int)
            block = block[np.argsort(heard[block] * rng.uniform(1 - JITTER, 1 + JITTER, len(block)))]
            group = []
            for index in block.tolist():
                group.append(index)
                if len(group) * heard[index] >= crops * self.crop:
                    groups.append(group)
                    group = []
        if group:
            groups.append(block[-math.ceil(crops * self.crop / heard[block[-1]]) :].tolist())
        self.groups = [groups[i] for i in rng.permutation(len(groups))]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        rng, group = np.random.default_rng((*self.key, place)), self.groups[place]
        length = min(self.crop, *(int(self.speech.lengths[i]) for i in group))
        factor = self.speeds[rng.integers(len(self.speeds))]
        clean = torch.stack([speed(self.speech.piece(i, length, rng), factor) for i in group])
        return clean, clean if self.augment is None else torch.stack([self.augment(wave, rng) for wave in clean])


def crop_batches(
    crops: Crops, places: Sequence[int] | None = None, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches at ``places``, by default all, prepared by ``workers`` processes."""
    order = range(len(crops)) if places is None else places
    return iter(
        DataLoader(crops, batch_size=None, sampler=order, num_workers=workers, worker_init_fn=ignore_interrupts)
    )
