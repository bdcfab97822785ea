"""What waits for the encoder, and which of it makes the next batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from speech_adapters.data.windows import Window
from speech_adapters.inference.hearing import Heard
from speech_adapters.serving.residents import Loaded


@dataclass(eq=False)
class Waiting:
    """One window of a request, with what it is to be heard by; ``future`` gets what was heard.

    Attributes:
        task: whose head reads it; None for none.
        name: of its recording, for errors.
        since: when it came, by the clock of ``time.monotonic``.
    """

    window: Window
    loaded: Loaded
    task: str | None
    future: asyncio.Future[Heard]
    name: str
    since: float = field(default_factory=time.monotonic)

    @property
    def lane(self) -> str:
        """Windows of one lane can share a batch: "" is that of the base and of all adapters that can be mixed; what
        acts on a whole batch has one of its own for each task."""
        return f"{self.loaded.served.key} {self.task}" if self.loaded.alone else ""


class BatchQueue:
    """Windows in the order in which they came. A batch is closed when it is full, in seconds of audio, or when its
    oldest window has waited for ``deadline`` seconds.

    The oldest window is always in the next batch, so that none starves; of the others those come along that are
    nearest in length, since padding is wasted work. Used from the event loop alone.

    Args:
        seconds: of audio in a batch, padding included. A single window may be longer.
        most: different adapters in a batch.
    """

    def __init__(self, *, seconds: float, deadline: float, most: int) -> None:
        self.seconds, self.deadline, self.most = seconds, deadline, most
        self._waiting: list[Waiting] = []
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting_seconds(self) -> float:
        """Audio that waits."""
        return sum(item.window.seconds for item in self._waiting)

    def put(self, item: Waiting) -> None:
        """Let a window wait."""
        self._waiting.append(item)
        self._changed.set()

    def close(self) -> None:
        """Let :meth:`batch` give what is left, and then nothing."""
        self._closed = True
        self._changed.set()

    async def batch(self, clock: Callable[[], float] = time.monotonic) -> list[Waiting]:
        """The next batch; empty when the queue is closed and nothing is left."""
        while True:
            self._waiting = [item for item in self._waiting if not item.future.done()]  # clients that went away
            if not self._waiting:
                if self._closed:
                    return []
                self._changed.clear()
                await self._changed.wait()
                continue
            chosen, full = self.choose()
            left = self._waiting[0].since + self.deadline - clock()
            if full or left <= 0 or self._closed:
                taken = set(map(id, chosen))
                self._waiting = [item for item in self._waiting if id(item) not in taken]
                return chosen
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def choose(self) -> tuple[list[Waiting], bool]:
        """What would go into a batch now, and whether it is full: nothing else that waits has room in it."""
        oldest = self._waiting[0]
        others = [item for item in self._waiting[1:] if item.lane == oldest.lane]
        others.sort(key=lambda item: (abs(item.window.seconds - oldest.window.seconds), item.since))
        chosen, longest, keys = [oldest], oldest.window.seconds, {oldest.loaded.served.key}
        full = longest >= self.seconds
        for item in others:
            padded = max(longest, item.window.seconds)
            if padded * (len(chosen) + 1) > self.seconds or len(keys | {item.loaded.served.key}) > self.most:
                full = True
                continue
            chosen.append(item)
            longest = padded
            keys.add(item.loaded.served.key)
        return chosen, full or longest * (len(chosen) + 1) > self.seconds
