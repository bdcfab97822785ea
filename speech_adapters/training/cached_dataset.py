"""A dataset of activations in place of waveforms: whatever no update changes, computed once for all epochs.

What is kept follows from the lowest place that trains (:mod:`~speech_adapters.training.frozen`): the CNN's output, the
input of a layer, or the hidden states that heads, L-adapters and weighted sums read; with the last the encoder need
not run at all. :mod:`~speech_adapters.training.cache` keeps it on disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from speech_adapters.data.audio import SAMPLE_RATE, check_waveform, pack, unpack
from speech_adapters.data.batches import Item, SpeechDataset, UtteranceDataset, evaluation_loader
from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import sweep_folder, write_json
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.processes import processes
from speech_adapters.training.cache import PREFIX, TYPES, Activations, about, encoder_key, folder_bytes
from speech_adapters.training.frozen import Frozen, Tap, compute_taps, frozen_part, hint, width_of
from speech_adapters.training.settings import Cache

PART_SECONDS = 900.0
"""Audio of one part."""


class CachedDataset(UtteranceDataset):
    """A dataset of ``{"cached": (T, widths), "taps": what stands side by side in these, "target": ..., ...}``.

    Utterances that the budget leaves out come with their waveform, and are computed in each epoch.

    Args:
        dataset: without augmentation. Crops are cut from the CNN's frames, at the frame before the place drawn.
        model: its active adapters and head decide what is kept.
        cache: the folder, precision and budget.
        batch_seconds: audio per batch while computing. Encoders whose CNN normalises over time (group norm) change
            with padding; they compute one utterance at a time.
        frozen: what is constant, by default what :func:`~speech_adapters.training.frozen.frozen_part` says.
        taps: what is kept, by default what ``frozen`` needs; several trainings may share more.

    Raises:
        ConfigError: an augmented dataset, crops of an encoder that hears them otherwise than as a piece of the whole,
            an adapter inside the CNN, or activations that half precision cannot hold.
        InputError: a disk that is too small.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        model: SpeechAdapterModel,
        cache: Cache | str | os.PathLike[str],
        batch_seconds: float,
        *,
        frozen: Frozen | None = None,
        taps: Sequence[Tap] = (),
    ) -> None:
        self.dataset, self.manifest, self.settings = dataset, dataset.manifest, Cache.of(cache)
        encoder, crop = model.encoder, dataset.crop_seconds
        if dataset.augmentation is not None:
            raise ConfigError("training.cache: augmentation changes the audio in each epoch; set one of them to null.")
        if model.folded_adapter is not None:
            raise ConfigError(
                f"training.cache: adapter {model.folded_adapter!r} is folded into the base, which is then no longer "
                "the one that caches are known by; call unfold_adapter first."
            )
        check_crops(encoder, crop)
        self.frozen = frozen or frozen_part(model, whole=crop is None)
        if self.frozen.kind == "waveform":
            raise ConfigError("training.cache: an active adapter acts inside the CNN; set training.cache to null.")
        self.crop = None if crop is None else int(encoder.frame_lengths(round(crop * SAMPLE_RATE)))
        self.stride, self.crop_samples = encoder.stride, None if crop is None else round(crop * SAMPLE_RATE)
        folder = self.settings.path / (PREFIX + encoder_key(encoder))
        self.taps = {
            tap: Activations(
                folder / f"{tap}-{self.settings.precision}", width_of(tap, encoder), self.settings.precision
            )
            for tap in taps or self.frozen.taps
        }
        self.keys = self.manifest.content_keys()
        self.hint = hint(model) if self.frozen.kind == "input" else ""
        _Filling(self, encoder, batch_seconds).run(folder)

    @property
    def durations(self) -> Sequence[float] | np.ndarray:
        """As without a cache: batches are the same."""
        return self.dataset.durations

    def part(self, dataset: SpeechDataset) -> CachedPart:
        """The utterances of another dataset, all of which this one holds, with that one's targets."""
        return CachedPart(self, dataset)

    def __getitem__(self, index: int) -> Item:
        told = {"frozen": self.frozen, "taps": tuple(self.taps)}
        key, labels = self.keys[index], {**told, **self.dataset.labels(index)}
        if any(key not in tap for tap in self.taps.values()):
            return {"waveform": self._heard(index), **labels}
        taps = list(self.taps.values())
        start, frames = self._piece(index, taps[0].frames(key))
        number, dtype = TYPES[self.settings.precision]
        cached = torch.from_numpy(np.concatenate([tap.read(key, start, frames) for tap in taps], axis=1, dtype=number))
        return {"cached": cached.view(dtype) if cached.dtype != dtype else cached, **labels}

    def _piece(self, index: int, frames: int) -> tuple[int, int]:
        """First frame and number of frames of this epoch's crop."""
        if self.crop is None:
            return 0, frames
        rng = np.random.default_rng((self.dataset.seed, self.epoch, index))
        return int(rng.integers(max(frames - self.crop, 0) + 1)), min(self.crop, frames)

    def _heard(self, index: int) -> Tensor:
        audio = heard(self.dataset, index)
        if self.crop is None or self.crop_samples is None or len(audio) <= self.crop_samples:
            return audio
        frames = self.crop + (len(audio) - self.crop_samples) // self.stride
        start, _ = self._piece(index, frames)
        return audio[start * self.stride : start * self.stride + self.crop_samples]


def check_crops(encoder: Encoder, seconds: float | None, of: str = "training") -> None:
    """ConfigError where crops, of a training or of one of its stages, are no pieces of what is kept."""
    if seconds is not None and not encoder.local_frames:
        raise ConfigError(
            f"training.cache: {encoder.name} hears a crop otherwise than as a piece of the whole utterance, since its "
            f"front-end or its waveforms are normalised over all of it, and {of}.crop_seconds is {seconds:g}; set "
            "training.cache to null, or leave out what crops."
        )


class CachedPart(UtteranceDataset):
    """Some utterances of a :class:`CachedDataset` under targets of their own; see :meth:`CachedDataset.part`."""

    def __init__(self, whole: CachedDataset, dataset: SpeechDataset) -> None:
        places = {utterance.id: place for place, utterance in enumerate(whole.manifest)}
        self.whole, self.dataset, self.manifest = whole, dataset, dataset.manifest
        self.places = [places[utterance.id] for utterance in dataset.manifest]

    def __getitem__(self, index: int) -> Item:
        return {**self.whole[self.places[index]], **self.dataset.labels(index)}


def heard(dataset: SpeechDataset, index: int) -> Tensor:
    """(samples,) as a training hears it, exact to 16 bits of its peak, whether the dataset keeps audio or not."""
    audio = dataset.waveform(index)
    check_waveform(audio, dataset.manifest[index].audio_filepath)
    return audio if dataset.kept else unpack(*pack(audio))


class _Audio(UtteranceDataset):
    """What is to be computed: some utterances, whole."""

    def __init__(self, manifest: Manifest, places: Sequence[int]) -> None:
        self.manifest, self.numbers = Manifest((manifest[place] for place in places), manifest.name), places
        self.dataset = SpeechDataset(self.manifest, keep_in_memory=False)

    def __getitem__(self, index: int) -> Item:
        return {"waveform": heard(self.dataset, index), "target": None, "index": self.numbers[index]}


class _Filling:
    """Computes what a dataset lacks, as far as the budget and the disk allow; processes share the work."""

    def __init__(self, data: CachedDataset, encoder: Encoder, batch_seconds: float) -> None:
        self.data, self.encoder, self.batch_seconds = data, encoder, batch_seconds
        self.processes = processes()

    def run(self, folder: Path) -> None:
        """What is not there afterwards (it did not fit, or another run got in between) is computed in each epoch."""
        self.processes.wait_for_everyone()  # all have seen the same, of which each takes its share
        if lacking := self._lacking():
            chosen = self._choose(lacking)
            if self.processes.is_main_process:
                write_json(folder / "about.json", about(self.encoder))
            self._compute({place: lacking[place] for place in chosen})
        self.processes.wait_for_everyone()
        for tap in self.data.taps.values():
            tap.refresh()

    def _lacking(self) -> dict[int, list[Tap]]:
        """The taps that each utterance lacks."""
        taps = self.data.taps.items()
        found = {place: [tap for tap, held in taps if key not in held] for place, key in enumerate(self.data.keys)}
        return {place: lacking for place, lacking in found.items() if lacking}

    def _bytes(self, place: int, taps: Sequence[Tap]) -> int:
        """What these of an utterance take."""
        samples = round(self.data.manifest[place].duration * SAMPLE_RATE)
        frames = 1 if "mean" in self.data.taps else int(self.encoder.frame_lengths(samples))
        width = sum(self.data.taps[tap].width for tap in taps)
        return frames * width * np.dtype(TYPES[self.data.settings.precision][0]).itemsize

    def _choose(self, lacking: Mapping[int, Sequence[Tap]]) -> list[int]:
        """The utterances that are to be kept: the longest, so that neighbours in length, which share batches, share
        their fate."""
        data, root = self.data, self.data.settings.path
        try:
            root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(root).free
        except OSError as error:
            raise InputError(f"{root}: cannot be written to ({error.strerror}); name another folder") from error
        sizes = {place: self._bytes(place, taps) for place, taps in lacking.items()}
        needed, limit = sum(sizes.values()), data.settings.max_gb
        hours = sum(data.manifest[place].duration for place in lacking) / 3600
        what = f"training.cache: {data.frozen} of {hours:.2f} h of {data.manifest.name} in {data.settings.precision}"
        if limit is None and needed > free:
            raise InputError(
                f"{what} take {_size(needed)}, and {root} has {_size(free)} free; name a folder on another disk, or "
                "set training.cache.max_gb to keep a part."
            )
        held = sum(folder_bytes(path) for path in root.glob(f"{PREFIX}*"))
        room = free if limit is None else min(free, max(limit * 1e9 - held, 0))
        chosen, used = [], 0
        for place in sorted(sizes, key=lambda place: -data.manifest[place].duration):
            if used + sizes[place] <= room:
                chosen.append(place)
                used += sizes[place]
        rest = f"; {used / needed:.0%} of it fit, the rest is computed in each epoch" if used < needed else ""
        self.processes.print(f"{what}: {_size(needed)} in {root}, {_size(free)} free{rest}{data.hint}")
        return chosen

    @torch.no_grad()
    def _compute(self, lacking: Mapping[int, Sequence[Tap]]) -> None:
        """This process's share of what these utterances lack, in parts."""
        if not lacking:
            return
        data, state = self.data, self.processes
        taps = [tap for tap in data.taps if any(tap in own for own in lacking.values())]
        loader = evaluation_loader(_Audio(data.manifest, list(lacking)), self.batch_seconds)
        batches = list(loader.batch_sampler)[state.process_index :: state.num_processes]  # type: ignore[arg-type]
        loader = torch.utils.data.DataLoader(loader.dataset, batch_sampler=batches, collate_fn=loader.collate_fn)
        for tap in taps:
            sweep_folder(data.taps[tap].folder)
        kept: dict[Tap, list[tuple[str, Tensor]]] = {tap: [] for tap in taps}
        seconds = 0.0
        for batch in tqdm(loader, desc="frozen layers, once", unit="batch", leave=False, disable=None):
            found, frames = compute_taps(self.encoder, taps, batch["waveforms"], batch["lengths"])
            for tap, values in found.items():
                self._check_range(values)
                values = values.float().cpu()
                for row, place in enumerate(batch["indices"].tolist()):
                    if tap in lacking[place]:
                        kept[tap].append((data.keys[place], values[row, : frames[row]].clone()))
            seconds += float(batch["lengths"].sum()) / SAMPLE_RATE
            if seconds >= PART_SECONDS:
                self._write(kept)
                seconds = 0.0
        self._write(kept)

    def _write(self, kept: dict[Tap, list[tuple[str, Tensor]]]) -> None:
        for tap, entries in kept.items():
            if unique := dict(entries):
                self.data.taps[tap].add(list(unique), list(unique.values()))
            entries.clear()

    def _check_range(self, values: Tensor) -> None:
        limit = torch.finfo(TYPES[self.data.settings.precision][1]).max
        if not values.abs().max() < limit:
            raise ConfigError(
                f"training.cache: activations beyond the range of {self.data.settings.precision}; set "
                "cache.precision to bf16 or fp32."
            )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
