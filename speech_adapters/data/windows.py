"""Recordings of any length as windows that an encoder can hear, cut while they stream by.

A recording is speech with pauses in it. Each stretch of speech, with a little silence on both sides, is one window; a
stretch that has lasted long ends in a shorter pause. One that outlasts the longest window is cut at its quietest
moment in the window's second half, and both windows hear ``context`` seconds beyond the cut; what is kept of each ends
at the cut, in the middle of their overlap, where both have heard as much on either side::

    speech     ________=====================================______====____
    windows          [  heard and kept  |context]
                              [ context|  kept         ]
                                                           [ kept ]

Without voice activity, everything is one stretch, cut at equal distances. Every sample of a stretch is kept by exactly
one window; what lies between stretches is a pause, heard by none. Windows begin on the encoder's frames, so that the
frames kept are those of one forward over the whole recording, as far as the context reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.voice_activity import CHUNK, DETECTORS, VoiceActivity
from speech_adapters.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How long recordings are cut."""

    seconds: float = 20.0
    """The longest window. Utterances of LibriSpeech, on which most checkpoints were fine-tuned, end at 16 s, and
    Whisper's positions at 30 s."""
    context: float | None = None
    """Seconds that a window hears beyond a cut inside speech, on each side; None for 2, or a quarter of a window
    shorter than 8."""
    voice_activity: Literal["energy", "silero", "none"] = "energy"
    """What finds the pauses: energy, silero (of the extra vad), or none, which hears all."""
    pause: float = 0.5
    """Seconds without speech that part two stretches, up to 0.2 of which are heard with each; a quarter of a second
    does where a stretch has lasted 8."""

    def __post_init__(self) -> None:
        if self.voice_activity not in ("none", *DETECTORS):
            raise ConfigError(
                f"voice_activity={self.voice_activity!r} is unknown: choose {', '.join(DETECTORS)} or none."
            )
        if not 1.0 <= self.seconds < float("inf"):
            raise ConfigError(f"window seconds={self.seconds}: choose 1 second or more.")
        if self.context is None:
            object.__setattr__(self, "context", min(2.0, self.seconds / 4))
        if not 0.1 <= float(self.context or 0) <= self.seconds / 4:
            raise ConfigError(
                f"window context={self.context}: choose 0.1 seconds or more, and up to a quarter of the window's "
                f"{self.seconds:g} seconds."
            )
        if not LEAST_PAUSE <= self.pause < float("inf"):
            raise ConfigError(f"pause={self.pause}: choose {LEAST_PAUSE:g} seconds or more.")

    def check(self, max_samples: int | None, name: str) -> None:
        """Raise a ConfigError for windows longer than an encoder called ``name`` can hear."""
        if max_samples is not None and self.seconds * SAMPLE_RATE > max_samples:
            raise ConfigError(
                f"window seconds={self.seconds:g}: {name} hears up to {max_samples / SAMPLE_RATE:.1f} s at once; "
                "choose shorter windows."
            )


MARGIN = 0.2
"""Seconds of silence that are heard before and behind speech."""

LEAST_PAUSE = 0.5
"""Seconds of the shortest pause: more than both margins and a chunk on either side."""

LONG, SHORT_PAUSE = 8.0, 0.25
"""Seconds after which a stretch ends in a shorter pause, and that pause: what is cut in silence need not be cut in
speech, and the text hangs less on the longest window."""

_STEP = 10 * SAMPLE_RATE // CHUNK
"""Chunks between two looks at what has streamed in (10 s): the pauses found must not depend on how samples arrive."""


@dataclass(frozen=True)
class Window:
    """A piece of a recording. Positions are samples of it at 16 kHz.

    Attributes:
        waveform: (samples,) what is heard: from ``start`` on.
        start: its place; a multiple of the encoder's stride.
        first, last: what is kept, the rest being context. ``first`` is a multiple of the stride, and ``last`` too
            unless the recording ends there.
    """

    waveform: Tensor
    start: int
    first: int
    last: int

    @property
    def seconds(self) -> float:
        """Length of what is heard."""
        return len(self.waveform) / SAMPLE_RATE

    def kept_frames(self, frames: int, stride: int) -> slice:
        """Which of the ``frames`` that an encoder makes of the waveform are kept."""
        begin = (self.first - self.start) // stride
        return slice(min(begin, frames), min(frames, -(-(self.last - self.start) // stride)))

    def first_frame(self, stride: int) -> int:
        """The place of the first kept frame among those of the whole recording."""
        return self.first // stride


def cut(
    blocks: Iterable[Tensor], settings: Windows | None = None, *, stride: int = 320, receptive_field: int = 400
) -> Iterator[Window]:
    """Cut a recording, given as consecutive blocks ``(samples,)`` at 16 kHz of any size, into windows, in order.

    Windows depend on the samples alone, not on the blocks. At no time more than a window and some ten seconds are
    held.

    Args:
        stride, receptive_field: of the encoder, in samples.
    """
    settings = settings or Windows()
    cutter = Cutter(settings, stride, receptive_field)
    for block in blocks:
        yield from cutter.add(block.numpy())
    yield from cutter.finish()


class Cutter:
    """:func:`cut` for a recording that is still going on: ``add`` takes a block ``(samples,)`` and gives the windows
    that are complete, ``finish`` those that are left. It holds the samples, and the chunks' speech, from ``base`` on.
    """

    def __init__(self, settings: Windows, stride: int, receptive_field: int) -> None:
        name = settings.voice_activity
        self.detector: VoiceActivity | None = None if name == "none" else DETECTORS[name]()
        self.stride, self.tail = stride, max(receptive_field - stride, 0)
        self.size = int(settings.seconds * SAMPLE_RATE) // stride * stride
        self.context = round((settings.context or 0.0) * SAMPLE_RATE) // stride * stride
        self.margin, self.pause = round(MARGIN * SAMPLE_RATE), round(settings.pause * SAMPLE_RATE)
        self.long, self.short_pause = round(LONG * SAMPLE_RATE), round(SHORT_PAUSE * SAMPLE_RATE)
        self.samples, self.base = np.empty(0, np.float32), 0
        self.amount = np.empty(0)  # of speech in each chunk from ``base_chunk`` on
        self.base_chunk = 0
        self.waiting: list[np.ndarray] = []  # not yet looked at
        self.waiting_size = 0
        self.chunks = 0  # looked at
        self.first: int | None = None  # of the open stretch, as far as it is not yet cut off
        self.inside = False  # whether the open stretch has been cut before
        self.voiced = 0  # where its latest speech ends
        self.free = 0  # where the last stretch ended

    @property
    def end(self) -> int:
        """Samples that have been looked at."""
        return self.base + len(self.samples)

    def add(self, block: np.ndarray) -> Iterator[Window]:
        """The windows that are complete with a further block ``(samples,)``."""
        self.waiting.append(block)
        self.waiting_size += len(block)
        step = _STEP * CHUNK
        if self.waiting_size < step:
            return
        joined = np.concatenate(self.waiting)
        whole = len(joined) // step * step
        for place in range(0, whole, step):
            yield from self._look(joined[place : place + step], last=False)
        self.waiting, self.waiting_size = [joined[whole:]], len(joined) - whole

    def finish(self) -> Iterator[Window]:
        """The windows that are left when the recording has ended."""
        rest = np.concatenate(self.waiting) if self.waiting else np.empty(0, np.float32)
        yield from self._look(rest, last=True)
        if self.first is not None:
            end = self.end if self.detector is None else min(self.end, self.voiced + self.margin)
            yield from self._close(end)

    def _look(self, samples: np.ndarray, last: bool) -> Iterator[Window]:
        """Find speech in further samples (whole chunks, but for the last), and give the windows that are complete."""
        self.samples = np.concatenate([self.samples, samples])
        missing = (0, -len(samples) % CHUNK)
        padded = np.pad(samples, missing, mode="edge" if len(samples) else "constant").reshape(-1, CHUNK)
        if self.detector is None:
            speech, amount = np.ones(len(padded), dtype=bool), np.zeros(len(padded))
        else:
            speech, amount = self.detector(padded)
        self.amount = np.concatenate([self.amount, amount])
        for chunk in np.flatnonzero(speech).tolist():
            begin = (self.chunks + chunk) * CHUNK
            margin, pause = self.margin, begin - self.voiced
            if self.first is not None and pause >= self._needed_pause():
                margin = min(margin, (pause - 3 * self.stride) // 2)  # a frame or more stays between the two
                yield from self._close(self.voiced + margin)
            if self.first is None:
                whole = self.detector is None
                self.first = 0 if whole else self._on_frame(max(begin - margin, self.free))
            self.voiced = min(begin + CHUNK, self.end)
        self.chunks += len(padded)
        if self.first is not None:
            if not last and self.end - self.voiced >= self.pause:
                yield from self._close(self.voiced + self.margin)
            else:
                known = self.end - self.tail if self.detector is None else self.voiced
                while self.first is not None and known - self._heard_from() > self.size:
                    yield self._cut_off(self.first)
        self._forget()

    def _needed_pause(self) -> int:
        """Samples of silence that end the open stretch: fewer once it is long."""
        assert self.first is not None
        return self.pause if self.voiced - self.first < self.long else min(self.pause, self.short_pause)

    def _heard_from(self) -> int:
        """Where the next window of the open stretch begins to hear."""
        assert self.first is not None
        return self.first - self.context if self.inside else self.first

    def _on_frame(self, sample: int) -> int:
        return sample // self.stride * self.stride

    def _cut_off(self, first: int) -> Window:
        """A window of the open stretch that ends at a cut."""
        latest = self._heard_from() + self.size - self.context - self.tail
        if self.detector is None:
            seam = self._on_frame(latest)
        else:  # the quietest 160 ms in the second half
            begin, end = ((place - self.base_chunk * CHUNK) // CHUNK for place in ((first + latest) // 2, latest))
            smooth = np.convolve(self.amount[begin:end], np.full(5, 0.2), mode="same")
            smooth[:2], smooth[-2:] = np.inf, np.inf  # beyond its ends the sum has zeros
            seam = self._on_frame((self.base_chunk + begin + int(smooth.argmin())) * CHUNK + CHUNK // 2)
        window = self._window(self._heard_from(), first, seam, seam + self.context)
        self.first, self.inside = seam, True
        return window

    def _close(self, end: int) -> Iterator[Window]:
        """The last windows of the open stretch, which ends at ``end``."""
        assert self.first is not None
        if end < self.end:
            end = -(-end // self.stride) * self.stride
        end = min(end, self.end)
        while end + self.tail - self._heard_from() > self.size:
            yield self._cut_off(self.first)
        yield self._window(self._heard_from(), self.first, end, end)
        self.first, self.inside, self.free = None, False, end

    def _window(self, start: int, first: int, last: int, end: int) -> Window:
        end = min(end + self.tail, self.end)
        samples = self.samples[start - self.base : end - self.base]
        return Window(torch.from_numpy(samples.copy()), start, first, last)

    def _forget(self) -> None:
        """Drop what no later window can hear."""
        if self.first is None:
            keep = max(self.free, self.end - self.margin - CHUNK - self.stride)
        else:
            keep = self._heard_from()
        drop = min(max(keep // CHUNK - self.base_chunk, 0), len(self.amount))
        self.amount, self.base_chunk = self.amount[drop:], self.base_chunk + drop
        self.samples, self.base = self.samples[self.base_chunk * CHUNK - self.base :], self.base_chunk * CHUNK
