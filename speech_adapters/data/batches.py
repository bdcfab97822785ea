"""From a manifest to batches: reading, batching by length, padding."""

from __future__ import annotations

import os
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from speech_adapters.data.audio import SAMPLE_RATE, check_waveform, pack, unpack
from speech_adapters.data.augmentation import Augmentation
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import InputError

IGNORE = -100

JITTER = 0.03
"""Share of its length by which an utterance's place among the others is drawn anew each epoch: neighbours change, and
padding stays at 2 to 3 % of the audio in LibriSpeech and RAVDESS (8 % at 0.1; random batches pad by 73 and 18 %)."""


T = TypeVar("T")

Item = dict[str, Any]
"""What a dataset gives of one utterance; see :class:`SpeechDataset`."""


class UtteranceDataset(Dataset[Item]):
    """What training and evaluation read: an item per utterance of ``manifest``.

    Attributes:
        epoch: of the training, which random crops and augmentation follow.
    """

    manifest: Manifest
    epoch: int = 0

    @property
    def durations(self) -> Sequence[float] | np.ndarray:
        """Seconds of each utterance, as it will be heard."""
        return self.manifest.durations

    def __len__(self) -> int:
        return len(self.manifest)


class SpeechDataset(UtteranceDataset):
    """Utterances of a manifest as ``{"waveform": (samples,), "target": (U,) or None, "index": int}``.

    Args:
        target: what the head learns from an utterance, as a tensor of ids; None for audio alone.
        augmentation: applied on reading; the random numbers follow from the seed, the epoch and the utterance, so that
            a resumed run or another number of workers sees the same.
        crop_seconds: a piece of each utterance of at most this length, its place drawn likewise; None for all of it.
        keep_in_memory: hold decoded audio (as 16-bit samples: 115 MB per hour).
    """

    def __init__(
        self,
        manifest: Manifest,
        target: Callable[[Utterance], list[int]] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        crop_seconds: float | None = None,
        keep_in_memory: bool = True,
    ) -> None:
        self.manifest, self.target, self.augmentation, self.seed = manifest, target, augmentation, seed
        self.crop_seconds = crop_seconds
        self._kept: dict[int, tuple[Tensor, float]] | None = {} if keep_in_memory else None

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each utterance, or of its crop."""
        durations = self.manifest.durations
        return durations if self.crop_seconds is None else np.minimum(durations, self.crop_seconds)

    @property
    def kept(self) -> bool:
        """Whether decoded audio is held."""
        return self._kept is not None

    def waveform(self, index: int) -> Tensor:
        """(samples,) at 16 kHz, as recorded; held in memory exact to 16 bits of its own peak."""
        if self._kept is not None and index in self._kept:
            return unpack(*self._kept[index])
        utterance = self.manifest[index]
        audio = utterance.waveform()
        if self._kept is not None:
            self._kept[index] = pack(audio)
            return unpack(*self._kept[index])
        return audio

    def __getitem__(self, index: int) -> Item:
        audio = self.waveform(index)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        if self.augmentation is not None:
            audio = self.augmentation(audio, rng)
        if self.crop_seconds is not None:
            size = round(self.crop_seconds * SAMPLE_RATE)
            start = int(rng.integers(max(len(audio) - size, 0) + 1))
            audio = audio[start : start + size]
        check_waveform(audio, self.manifest[index].audio_filepath)
        return {"waveform": audio, **self.labels(index)}

    def labels(self, index: int) -> Item:
        """All but the sound: ``target``, what the head learns from an utterance as ids or None, and ``index``."""
        target = None if self.target is None else torch.tensor(self.target(self.manifest[index]))
        return {"target": target, "index": index}


class GuidedDataset(SpeechDataset):
    """A dataset that also gives ``guide``: the place of each utterance's domain in ``domains``, -100 for others.

    For the guide loss of ``Fuse(*domains)`` and ``Route(*domains)``.
    """

    def __init__(self, manifest: Manifest, domains: Sequence[str], **options: Any) -> None:
        super().__init__(manifest, **options)
        self.domains = list(domains)

    def labels(self, index: int) -> Item:
        domain = self.manifest[index].domain
        guide = self.domains.index(domain) if domain in self.domains else IGNORE
        return {**super().labels(index), "guide": guide}


def collate(items: Sequence[Item]) -> Item:
    """Pad to ``waveforms`` (B, S), ``lengths`` (B,), ``targets`` (B, U) padded with -100, ``indices`` (B,); with
    ``guide`` (B,) where the dataset has one.

    Of a dataset with cached activations: ``frozen`` and ``taps``, what they are, and for the utterances that have them
    ``cached`` (B, T, widths) with ``frames`` (B,) in place of waveforms; ``places`` (B,) are those of the cached
    ones in the batch, then of the others.
    """
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    batch: Item = {"indices": torch.tensor([item["index"] for item in items])}
    cached = [place for place, item in enumerate(items) if "cached" in item]
    heard = [place for place, item in enumerate(items) if "cached" not in item]
    if "frozen" in items[0]:
        batch |= {key: items[0][key] for key in ("frozen", "taps")} | {"places": torch.tensor(cached + heard)}
    if cached:
        batch["cached"] = pad([items[place]["cached"] for place in cached])
        batch["frames"] = torch.tensor([len(items[place]["cached"]) for place in cached])
    if heard:
        batch["waveforms"] = pad([items[place]["waveform"] for place in heard])
        batch["lengths"] = torch.tensor([len(items[place]["waveform"]) for place in heard])
    if items[0]["target"] is not None:
        batch["targets"] = pad([item["target"] for item in items], padding_value=IGNORE)
    if "guide" in items[0]:
        batch["guide"] = torch.tensor([item["guide"] for item in items])
    return batch


class Batches(Sequence[list[int]]):
    """Batches as lists of places, in two arrays: millions of utterances take 16 bytes each.

    Args:
        order: (utterances,) places, batch after batch.
        starts: (batches + 1,) where each begins in ``order``.
        chosen: those that are meant, in this order; all by default.
    """

    def __init__(self, order: np.ndarray, starts: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self.order, self.starts = order, starts
        self.chosen = np.arange(len(starts) - 1) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> list[int] | Batches:
        if isinstance(index, slice):
            return Batches(self.order, self.starts, self.chosen[index])
        batch = self.chosen[index]
        places: list[int] = self.order[self.starts[batch] : self.starts[batch + 1]].tolist()
        return places


class LengthBatches(Sampler[list[int]]):
    """Batches of like length, at most ``batch_seconds`` of audio each, padding included.

    Padding is wasted work, and in encoders whose CNN normalises over time it even changes the result; utterances of
    like length keep both small. With ``shuffle``, lengths are jittered by :data:`JITTER` before sorting, and the
    batches drawn in random order. Processes of a distributed run take turns: process r of n gets batches r, r + n, ...

    Raises:
        InputError: too few utterances for one update; ``name`` says whose.
    """

    def __init__(
        self,
        durations: Sequence[float] | np.ndarray,
        batch_seconds: float,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        name: str = "these",
    ) -> None:
        self.durations = np.asarray(durations, dtype=float)
        self.batch_seconds, self.shuffle, self.seed = batch_seconds, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._drawn: tuple[int, Batches] | None = None  # the latest epoch's
        # Every epoch has as many batches as the first, whatever the jitter: schedulers count on it.
        self._count = len(self._batches(0))
        update = world_size * accumulation
        if shuffle:
            self._count -= self._count % update
        if not len(self.durations):
            raise InputError(f"{name}: no utterances; name a manifest that has some.")
        if self._count == 0:
            raise InputError(
                f"{name}: {len(self.durations)} utterances make fewer batches of {batch_seconds:g} s than one update "
                f"takes ({world_size} process(es) x {accumulation}); lower its batch_seconds or accumulation."
            )

    def _batches(self, epoch: int) -> Batches:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self._draw(epoch)
        return self._drawn[1]

    def _draw(self, epoch: int) -> Batches:
        rng = np.random.default_rng((self.seed, epoch))
        key = self.durations
        if self.shuffle:
            key = key * rng.uniform(1 - JITTER, 1 + JITTER, len(key))
        order = np.argsort(key, kind="stable")
        starts, longest = array("q"), 0.0
        for first in range(0, len(order), _CHUNK):
            for place, seconds in enumerate(self.durations[order[first : first + _CHUNK]].tolist(), first):
                longest = max(longest, seconds)
                if not starts or longest * (place - starts[-1] + 1) > self.batch_seconds:
                    starts.append(place)
                    longest = seconds
        starts.append(len(order))
        chosen = np.arange(len(starts) - 1)
        if self.shuffle:
            rng.shuffle(chosen)
        return Batches(order, np.asarray(starts), chosen)

    def of_epoch(self) -> Batches:
        """This process's batches of the epoch."""
        batches = self._batches(self.epoch)
        if self.shuffle:
            batches = Batches(batches.order, batches.starts, np.resize(batches.chosen, self._count))
        return batches[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.of_epoch())

    def __len__(self) -> int:
        return len(range(self.rank, self._count, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of this epoch from now on."""
        self.epoch = epoch


_CHUNK = 65_536
"""Utterances that become Python numbers at once."""


def training_loader(
    dataset: UtteranceDataset, batches: LengthBatches, epoch: int, start: int = 0, workers: int = 0
) -> DataLoader[Item]:
    """The batches of one epoch from place ``start`` on; batches and augmentation know the epoch."""
    batches.set_epoch(epoch)
    dataset.epoch = epoch
    return DataLoader(
        dataset,
        batch_sampler=batches.of_epoch()[start:],
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=ignore_interrupts,
    )


def ahead(batches: Iterable[T]) -> Iterator[T]:
    """The same batches, each prepared by a thread while the one before it is used."""
    source = iter(batches)
    with ThreadPoolExecutor(1, "batches") as pool:
        coming = pool.submit(next, source, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield batch


GRACE = 5
"""Seconds in which a main process reads what its last update needs."""


def ignore_interrupts(_: int) -> None:
    """For processes that read data: the main process, which gets the same signals, decides when to stop.

    After SIGTERM, by which a main process that ends takes them along too, they go on for :data:`GRACE` seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # Windows has none, and no signals to groups
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))


def evaluation_loader(dataset: UtteranceDataset, batch_seconds: float) -> DataLoader[Item]:
    """Every utterance once, sorted by length, at most ``batch_seconds`` per batch."""
    batches = LengthBatches(dataset.durations, batch_seconds, shuffle=False, name=dataset.manifest.name)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
