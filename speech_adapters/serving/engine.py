"""The engine: windows of all requests in mixed batches, through one encoder per device.

A request's recording is cut into windows in a decoding thread, a few ahead of what has been heard, so that a long one
shares its batches with short ones and takes little memory. Each window waits in the one queue with the adapter and the
task that it is for; each device has a worker thread, which takes the next batch as soon as it is free: one forward of
the encoder over all of it, each sample under its own adapter, then each head on its rows.

A CPU has two workers on the same frozen weights: under load each takes half of the cores, since two batches side by
side wait less for one another than the threads of one batch do, for each other and for the threads that decode. A
batch that is alone gets all cores.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.windows import Window, Windows, cut
from speech_adapters.errors import AudioError, CheckpointError, ConfigError
from speech_adapters.inference.hearing import BATCH_SECONDS, Frames, Heard, hear_windows
from speech_adapters.inference.recordings import Recording
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.serving.catalog import Catalog
from speech_adapters.serving.queue import BatchQueue, Waiting
from speech_adapters.serving.residents import Loaded, Shelf, Slots, load
from speech_adapters.serving.served import Served

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How the engine batches, and what it keeps."""

    batch_seconds: float = BATCH_SECONDS
    """Audio of one forward, padding included."""
    deadline: float = 0.01
    """Seconds that a window waits for others at most while a worker is free. Under load batches fill while the one
    before is being heard, so that a longer one would only cost the lone client."""
    adapters: int = 32
    """Different adapters in a batch, and attached to the encoder at once."""
    memory: int = 2 << 30
    """Bytes of adapters and heads that are kept in main memory, in float32."""
    ahead: int = 4
    """Windows of one request that wait or are being heard at once."""
    decoders: int = 2
    """Threads that decode audio and write down what was heard."""
    cpu_workers: int = 2
    """Batches that a CPU hears at once under load, at most one per core."""
    precision: str = "fp32"
    """"fp32", or "bf16" for autocast."""
    windows: Windows = field(default_factory=Windows)
    """How recordings are cut."""
    max_seconds: float = 4 * 3600.0
    """The longest recording."""

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "adapters", "memory", "ahead", "decoders", "cpu_workers", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be above 0.")
        if not self.deadline >= 0:
            raise ConfigError(f"deadline={self.deadline}: choose 0 seconds or more.")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision={self.precision!r}: choose fp32 or bf16.")


@dataclass
class Counts:
    """What the engine has done since it started; ``busy`` is the workers' time in seconds."""

    batches: int = 0
    windows: int = 0
    seconds: float = 0.0
    padded_seconds: float = 0.0
    mixed: int = 0
    busy: float = 0.0
    waited: float = 0.0


class Source:
    """A recording that counts what is read of it, and refuses to be longer than ``most`` seconds."""

    def __init__(self, recording: Recording, most: float) -> None:
        self.recording, self.most, self.samples = recording, most, 0

    @property
    def duration(self) -> float:
        """Seconds that have been read."""
        return self.samples / SAMPLE_RATE

    def blocks(self) -> Iterator[Tensor]:
        """Those of the recording."""
        for block in self.recording.blocks():
            self.samples += len(block)
            if self.duration > self.most:
                raise AudioError(f"{self.recording.name}: longer than the {self.most:g} s taken here; cut it")
            yield block


class Engine:
    """Hears recordings under the adapters of a catalog: ``await engine.start()``, then :meth:`hear`, then
    ``await engine.stop()``, which finishes what was taken.

    Args:
        models: one per device, of the same encoder and without adapters.
    """

    def __init__(self, models: Sequence[SpeechAdapterModel], catalog: Catalog, settings: EngineSettings) -> None:
        self.catalog, self.settings = catalog, settings
        self.encoder = models[0].encoder
        settings.windows.check(self.encoder.max_samples, self.encoder.name)
        # one thread each: torch would spread the check of a waveform over the cores that workers are busy on
        self.decoders = ThreadPoolExecutor(settings.decoders, "decoder", torch.set_num_threads, (1,))
        self.loader = ThreadPoolExecutor(1, "loader")
        self.shelf = Shelf(self.encoder, settings.memory, self.loader)
        self.queue = BatchQueue(seconds=settings.batch_seconds, deadline=settings.deadline, most=settings.adapters)
        self.counts = Counts()
        self._cores = torch.get_num_threads()
        self._workers = [
            _Worker(one, settings) for model in models for one in _beside(model.eval(), settings, self._cores)
        ]
        self._busy = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether workers run and none has died."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    async def start(self) -> None:
        """Attach as many adapters as there are slots, some of each method, and let the workers run."""
        loop = asyncio.get_running_loop()
        alike: dict[str, list[Served]] = {}
        for served in self.catalog:
            if served.adapter is not None:
                alike.setdefault(served.method, []).append(served)
        turns = (served for turn in zip_longest(*alike.values()) for served in turn if served is not None)
        loaded = [await self.shelf.get(served) for served in islice(turns, self.settings.adapters)]
        for worker in self._workers:
            await loop.run_in_executor(worker.thread, worker.warm, [one for one in loaded if not one.alone])
        self._tasks = [asyncio.create_task(self._work(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """Hear what waits, then stop."""
        self.queue.close()
        await asyncio.gather(*self._tasks)
        for pool in (self.decoders, self.loader, *(worker.thread for worker in self._workers)):
            pool.shutdown(wait=True)
        self._tasks = []

    async def hear(self, loaded: Loaded, task: str | None, source: Source) -> AsyncGenerator[tuple[Window, Heard]]:
        """The windows of a recording and what was heard of each, in order. Cancelling, or closing the generator, takes
        what waits out of the queue.

        Args:
            loaded: what hears it, from the shelf.
            task: whose head reads it, one of ``loaded.heads``; None for the features alone.

        Raises:
            AudioError: a recording that cannot be read, or that is too long.
            CheckpointError: an output that is not finite.
        """
        stride, receptive_field = self.frames(loaded).feature_stride, self.encoder.receptive_field
        windows = cut(source.blocks(), self.settings.windows, stride=stride, receptive_field=receptive_field)
        futures: asyncio.Queue[tuple[Window, asyncio.Future[Heard]]] = asyncio.Queue()
        pending = 0
        more = True
        try:
            while more or pending:
                while more and pending < self.settings.ahead:
                    window: Window | None = await self.in_decoder(next, windows, None)
                    if window is None:
                        more = False
                        break
                    futures.put_nowait((window, self.submit(loaded, task, window, source.recording.name)))
                    pending += 1
                if pending:
                    window, future = futures.get_nowait()
                    heard = await future
                    pending -= 1
                    yield window, heard
        finally:
            while not futures.empty():
                futures.get_nowait()[1].cancel()

    async def probe(self, served: Served) -> None:
        """Run a model once on half a second of noise, and the base: each alone, since the places of one batch
        need not round alike.

        Raises:
            CheckpointError: it cannot be read, its output is not finite, or it changes nothing of what the base hears:
                served, it would answer as the base alone does, and nobody would know.
            ConfigError: it does not fit the encoder.
        """
        generator = torch.Generator().manual_seed(0)
        noise = Window(0.1 * torch.randn(SAMPLE_RATE // 2, generator=generator), 0, 0, SAMPLE_RATE // 2)
        base = Loaded(next(one for one in self.catalog if one.method == "base"))
        loaded = await self.in_loader(load, served, self.encoder)
        own, plain = [await self._hear_alone(one, noise) for one in (loaded, base)]
        has_tensors = loaded.adapter is not None and bool(loaded.adapter.tensors)
        if has_tensors and own.features.shape == plain.features.shape and torch.equal(own.features, plain.features):
            raise CheckpointError(f"the adapter {served.name!r} changes nothing of what the base hears.")

    def frames(self, loaded: Loaded) -> Frames:
        """The frames that a model's heads read."""
        return Frames(self.encoder, loaded.reads_layers)

    def submit(
        self, loaded: Loaded, task: str | None, window: Window, name: str = "the recording"
    ) -> asyncio.Future[Heard]:
        """Let one window of the recording that errors call ``name`` wait for its batch; cancelling the future takes it
        out."""
        future = asyncio.get_running_loop().create_future()
        self.queue.put(Waiting(window, loaded, task, future, name))
        return future

    async def _hear_alone(self, loaded: Loaded, window: Window) -> Heard:
        """A window in no batch with others."""
        loop, worker = asyncio.get_running_loop(), self._workers[0]
        alone = [Waiting(window, loaded, None, loop.create_future(), "noise")]
        (result,) = await loop.run_in_executor(worker.thread, worker.hear, alone, self._cores)
        if isinstance(result, Exception):
            raise result
        return result

    async def in_loader(self, function: Callable[..., R], *arguments: Any) -> R:
        """Run what reads from disk beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self.loader, function, *arguments)

    async def in_decoder(self, function: Callable[..., R], *arguments: Any) -> R:
        """Run what takes the CPU beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, function, *arguments)

    async def _work(self, worker: _Worker) -> None:
        loop = asyncio.get_running_loop()
        while batch := await self.queue.batch():
            started = time.monotonic()
            self._busy += 1
            alone = self._busy == 1 and not len(self.queue)
            threads = self._cores if alone else max(self._cores // len(self._workers), 1)
            results = await loop.run_in_executor(worker.thread, worker.hear, batch, threads)
            self._busy -= 1
            self._count(batch, started)
            for item, result in zip(batch, results, strict=True):
                if item.future.done():  # cancelled meanwhile
                    continue
                if isinstance(result, Exception):
                    item.future.set_exception(result)
                else:
                    item.future.set_result(result)

    def _count(self, batch: Sequence[Waiting], started: float) -> None:
        counts, lengths = self.counts, [item.window.seconds for item in batch]
        counts.batches += 1
        counts.windows += len(batch)
        counts.seconds += sum(lengths)
        counts.padded_seconds += max(lengths) * len(batch)
        counts.mixed += len({item.loaded.served.key for item in batch}) > 1
        counts.busy += time.monotonic() - started
        counts.waited += sum(started - item.since for item in batch)


def _beside(model: SpeechAdapterModel, settings: EngineSettings, cores: int) -> list[SpeechAdapterModel]:
    """The model, and on a CPU others beside it that share its frozen weights and have adapters of their own."""
    more = min(settings.cpu_workers, cores) - 1 if model.encoder.device.type == "cpu" else 0
    shared = [*model.parameters(), *model.buffers()]
    return [model, *(copy.deepcopy(model, {id(tensor): tensor for tensor in shared}) for _ in range(more))]


class _Worker:
    """A model on its device, its thread, and what is attached there."""

    def __init__(self, model: SpeechAdapterModel, settings: EngineSettings) -> None:
        self.model, self.settings = model, settings
        self.slots = Slots(model, settings.adapters)
        self.thread = ThreadPoolExecutor(1, "worker")

    def warm(self, loaded: Sequence[Loaded]) -> None:
        """Attach adapters before the first request comes."""
        self.slots.place(loaded)

    def hear(self, batch: Sequence[Waiting], threads: int) -> list[Heard | Exception]:
        """What is heard of each window. Where a batch fails, its halves are heard alone, down to the one at fault.

        Args:
            threads: of this batch on a CPU; torch counts them for each thread that calls it.
        """
        torch.set_num_threads(threads)
        try:
            return list(self._hear(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            half = len(batch) // 2
        return [*self.hear(batch[:half], threads), *self.hear(batch[half:], threads)]

    def _hear(self, batch: Sequence[Waiting]) -> list[Heard]:
        model, slots = self.model, self.slots
        windows, names = [item.window for item in batch], [item.name for item in batch]
        loaded = [item.loaded for item in batch]
        heads = [slots.head(item.loaded, item.task) for item in batch]
        if batch[0].lane:  # one composition acts on the whole batch
            model.set_active(slots.alone(loaded[0]))
            model.set_head(heads[0])
            try:
                return hear_windows(model, windows, names, precision=self.settings.precision)
            finally:
                model.set_active()
                model.set_head(None)
        places = slots.place(loaded)
        adapters = [places[one.served.key] for one in loaded]
        return hear_windows(model, windows, names, precision=self.settings.precision, adapter=adapters, head=heads)
