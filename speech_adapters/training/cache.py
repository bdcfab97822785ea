"""Activations below the lowest adapter, computed once: no update changes them, so no epoch need compute them again.

A frozen CNN, and the frozen layers below the first one that an adapter changes or reads, give the same output for an
utterance in every epoch, for every seed and every method. :class:`CachedDataset` gives that output in place of the
waveform, and training starts from there. A head alone trains from the last layer's output; adapters in the top half
train at twice the speed. Waveform augmentation and time masks would change the output and are refused.

An hour of speech takes ``180,000 * D`` numbers of two bytes: 0.28 GB for Base (D = 768).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.batches import Item, SpeechDataset, UtteranceDataset, evaluation_loader
from speech_adapters.data.store import Store
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel

VERSION = 2
"""Of what is stored, part of the key: a change of the frozen forward raises it."""

PREFIX = "activations-"
"""Of the names of the stores."""


class CachedDataset(UtteranceDataset):
    """A dataset of ``{"cached": (T, D), "start": layer, "target": ..., "index": ..., ...}``, D the width at the start.

    ``start`` is the layer whose input is cached, or None when it is the CNN's output, for adapters that act before the
    layers (P-adapters). Values are kept in half precision in a :class:`Store` in ``folder``, which methods, seeds and
    runs share; its name follows from the encoder's weights and normalisation, the start, and the audio itself.

    Args:
        dataset: without augmentation and crops.
        model: its active adapters decide the start.
        batch_seconds: audio per batch while computing. Encoders whose CNN normalises over time (group norm) change
            with padding; they compute one utterance at a time.

    Raises:
        ConfigError: an augmented or cropped dataset, or activations that half precision cannot hold.
    """

    def __init__(
        self, dataset: SpeechDataset, model: SpeechAdapterModel, folder: str | os.PathLike[str], batch_seconds: float
    ) -> None:
        if dataset.augmentation is not None or dataset.crop_seconds is not None:
            raise ConfigError("training.cache: augmentation and crops change what is cached; set one of them to null.")
        if model.first_layer < -1:
            raise ConfigError("training.cache: an active adapter acts inside the CNN; set training.cache to null.")
        self.dataset, self.manifest = dataset, dataset.manifest
        self.start = None if model.first_layer < 0 else model.first_layer
        encoder = model.encoder
        self.width = encoder.cnn_width if self.start is None else encoder.hidden_size
        shaping = (
            VERSION,
            encoder.fingerprint,
            encoder.normalize,
            encoder.quantization,
            encoder.model.dtype,
            self.start,
        )
        key = f"{shaping} {dataset.manifest.content_key()}"
        base = Path(folder) / f"{PREFIX}{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if not Store.exists(base):
            frames = sum(int(encoder.frame_lengths(round(u.duration * SAMPLE_RATE))) for u in dataset.manifest)
            found = self._compute(model, 0.0 if encoder.group_norm else batch_seconds)
            Store.write(base, np.float16, self.width, found, len(dataset), 2 * frames * self.width)
        self._store = Store(base, np.float16, self.width)

    @torch.no_grad()
    def _compute(self, model: SpeechAdapterModel, batch_seconds: float) -> Iterator[tuple[int, np.ndarray]]:
        encoder = model.encoder
        loader = evaluation_loader(self.dataset, batch_seconds)
        for batch in tqdm(loader, desc="frozen layers, once", unit="batch", leave=False):
            lengths = batch["lengths"]
            output = encoder(
                batch["waveforms"].to(encoder.device), lengths.to(encoder.device), stop_layer=self.start or 0
            )
            found = output.cnn_output if self.start is None else output.hidden_states[-1]
            if not found.abs().max() < torch.finfo(torch.float16).max:
                raise ConfigError("training.cache: activations beyond half precision's range; set it to null.")
            frames = encoder.frame_lengths(lengths).tolist()
            values = found.float().cpu().numpy()
            yield from zip(
                batch["indices"].tolist(), (v[:n] for v, n in zip(values, frames, strict=True)), strict=True
            )

    def part(self, dataset: SpeechDataset) -> CachedPart:
        """The utterances of another dataset, all of which this one holds, with that one's targets."""
        return CachedPart(self, dataset)

    def __getitem__(self, index: int) -> Item:
        cached = torch.from_numpy(self._store[index].astype(np.float32))
        return {"cached": cached, "start": self.start, **self.dataset.labels(index)}


class CachedPart(UtteranceDataset):
    """Some utterances of a :class:`CachedDataset` under targets of their own; see :meth:`CachedDataset.part`."""

    def __init__(self, whole: CachedDataset, dataset: SpeechDataset) -> None:
        places = {utterance.id: place for place, utterance in enumerate(whole.manifest)}
        self.whole, self.dataset, self.manifest = whole, dataset, dataset.manifest
        self.places = [places[utterance.id] for utterance in dataset.manifest]

    def __getitem__(self, index: int) -> Item:
        return {**self.whole[self.places[index]], **self.dataset.labels(index)}


@dataclass(frozen=True)
class StoreFiles:
    """A store on the disk; ``made`` is in seconds since 1970, ``utterances`` None where it is not whole."""

    name: str
    bytes: int
    made: float
    utterances: int | None
    files: tuple[Path, ...]

    def remove(self) -> None:
        """Delete its files, the index first: what is left of a removal that was cut short counts as not whole."""
        for file in sorted(self.files, key=lambda file: file.suffix != ".npz"):
            file.unlink(missing_ok=True)


def stores_in(folder: str | os.PathLike[str]) -> list[StoreFiles]:
    """The stores of a cache folder by name; none where there is no such folder. Other files are left alone."""
    by_name: dict[str, list[Path]] = {}
    for file in Path(folder).glob(f"{PREFIX}*"):
        if file.suffix in (".bin", ".npz"):
            by_name.setdefault(file.stem, []).append(file)
    found = []
    for name, files in sorted(by_name.items()):
        base = Path(folder) / name
        count = None
        if Store.exists(base):
            with np.load(base.with_name(f"{name}.npz"), allow_pickle=False) as index:
                count = len(index["counts"])
        stats = [file.stat() for file in files]
        found.append(
            StoreFiles(name, sum(s.st_size for s in stats), max(s.st_mtime for s in stats), count, tuple(files))
        )
    return found
