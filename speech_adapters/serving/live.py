"""Live audio: words while they are spoken, and in the end the text that the whole recording has.

The encoder hears both ways, so that a word can change until what follows it has been heard. What has been said of late
is heard again and again, a little more each time; a word is told when two hearings in a row agree on it and on all
before it (LocalAgreement-2 of Macháček et al., "Turning Whisper into a real-time transcription system", 2023) and it
does not touch the end. Words that have been told leave the window, but for a second of context.

Beside it, the audio runs through the same windows as a file's, and the text in the end is theirs: word for word that
of the offline transcript. Where it differs from what was told on the way, it is the better one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import torch

from speech_adapters.data.audio import MIN_SAMPLES, SAMPLE_RATE
from speech_adapters.data.windows import Cutter, Window
from speech_adapters.errors import AudioError
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.heads.decoding import Segment
from speech_adapters.inference.recordings import Recording
from speech_adapters.inference.transcripts import Transcriber, Transcript
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.residents import Loaded

LONGEST, CONTEXT, STEP, EDGE = 8.0, 1.0, 0.3, 0.2
"""Seconds: the longest window that is heard again and again, what it keeps of words that have been told, what must be
new in it before it is heard again, and how far from its end a word must end to be told."""


class Agreement:
    """Which words two hearings in a row agree on."""

    def __init__(self) -> None:
        self.before: list[Segment] = []
        self.told = 0.0

    def __call__(self, words: Sequence[Segment], end: float) -> list[Segment]:
        """The words that are final now, of a hearing of audio that ends at ``end`` seconds; each is given once."""
        fresh = [word for word in words if (word.start + word.end) / 2 > self.told]
        final = []
        for word, earlier in zip(fresh, self.before, strict=False):
            if word.text != earlier.text or word.end > end - EDGE:
                break
            final.append(word)
        self.before = fresh[len(final) :]
        if final:
            self.told = final[-1].end
        return final

    def force(self, until: float) -> list[Segment]:
        """The words before ``until`` seconds, agreed or not: they are about to leave the window."""
        final = [word for word in self.before if word.end <= until]
        self.before = self.before[len(final) :]
        self.told = max(self.told, until)
        return final


class LiveItem:
    """One stretch of live audio, from its first sample to its commit.

    Args:
        told: called with the words that have become final, as they do.
    """

    def __init__(self, engine: Engine, loaded: Loaded, told: Callable[[list[Segment]], Awaitable[None]]) -> None:
        head = loaded.heads["transcription"]
        assert isinstance(head, CTCHeadModule), "the catalog looked"
        self.engine, self.loaded, self.head, self.told = engine, loaded, head, told
        settings, self.stride = engine.settings.windows, engine.frames(loaded).feature_stride
        self.recording = Recording("the audio", torch.empty(0))
        self.cutter = Cutter(settings, self.stride, engine.encoder.receptive_field)
        self.transcriber = Transcriber(head, self.stride, self.recording, settings.pause, None)
        self.agreement = Agreement()
        self.samples = 0  # taken in
        self.heard = 0  # of them, at the last hearing of the window
        self.window = np.empty(0, np.float32)
        self.start = 0  # of the window
        self._new = asyncio.Event()
        self._complete: asyncio.Queue[Window | None] = asyncio.Queue(engine.settings.ahead)
        self._whole = asyncio.create_task(self._hear_whole())
        self._live = asyncio.create_task(self._hear_window())

    @property
    def duration(self) -> float:
        """Seconds taken in."""
        return self.samples / SAMPLE_RATE

    async def add(self, samples: np.ndarray) -> None:
        """Take in (samples,) at 16 kHz; waits where they come faster than they are heard.

        Raises:
            AudioError: longer than the server takes at once.
        """
        if self.duration + len(samples) / SAMPLE_RATE > self.engine.settings.max_seconds:
            raise AudioError(f"longer than the {self.engine.settings.max_seconds:g} s taken at once; commit")
        self.samples += len(samples)
        self.window = np.concatenate([self.window, samples])
        self._new.set()
        for window in await self.engine.in_decoder(lambda: list(self.cutter.add(samples))):
            await self._put(window)

    async def finish(self) -> Transcript:
        """The transcript of all of it.

        Raises:
            AudioError: less than 25 ms. CheckpointError: an output that is not finite.
        """
        if self.samples < MIN_SAMPLES:
            raise AudioError("less than 25 ms of audio; append some before the commit")
        self._live.cancel()
        for window in await self.engine.in_decoder(lambda: list(self.cutter.finish())):
            await self._put(window)
        await self._put(None)
        await self._whole
        return await self.engine.in_decoder(self.transcriber.result, self.duration)

    async def cancel(self) -> None:
        """Drop what is being heard."""
        for task in (self._live, self._whole):
            task.cancel()
        await asyncio.gather(self._live, self._whole, return_exceptions=True)

    async def _put(self, window: Window | None) -> None:
        """Let a complete window be heard, unless that has failed."""
        putting = asyncio.ensure_future(self._complete.put(window))
        await asyncio.wait((putting, self._whole), return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            await self._whole

    async def _hear_whole(self) -> None:
        while (window := await self._complete.get()) is not None:
            heard = await self.engine.submit(self.loaded, "transcription", window)
            await self.engine.in_decoder(self.transcriber.add, window, heard)

    async def _hear_window(self) -> None:
        while True:
            await self._new.wait()
            self._new.clear()
            if self.samples - self.heard < STEP * SAMPLE_RATE or len(self.window) < MIN_SAMPLES:
                continue
            if lost := self._trim():
                await self.told(lost)
            self.heard = end = self.samples
            window = Window(torch.from_numpy(self.window.copy()), self.start, self.start, end)
            heard = await self.engine.submit(self.loaded, "transcription", window)
            transcriber = Transcriber(self.head, self.stride, self.recording, self.engine.settings.windows.pause, None)
            transcriber.add(window, heard)
            transcript = transcriber.result(end / SAMPLE_RATE)
            if final := self.agreement(transcript.words, end / SAMPLE_RATE):
                await self.told(final)
            if self.samples - self.heard >= STEP * SAMPLE_RATE:
                self._new.set()

    def _trim(self) -> list[Segment]:
        """Leave behind what has been told; and what has not, where the window becomes too long: these words are
        returned."""
        stride, end, lost = self.stride, self.samples, []
        keep = self.agreement.told - CONTEXT
        longest = end / SAMPLE_RATE - LONGEST
        if longest > keep:
            lost = self.agreement.force(longest)
            keep = longest
        start = max(int(keep * SAMPLE_RATE) // stride * stride, self.start)
        self.window, self.start = self.window[start - self.start :], start
        return lost
