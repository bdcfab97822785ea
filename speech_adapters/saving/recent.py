"""What was used lately, within a budget of bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by key within ``budget`` bytes in all: the least recently used ones make room. Safe among threads.

    Attributes:
        bytes: of what is kept now.
        hits, misses: how often :meth:`get` found something, and nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes, self.hits, self.misses = budget, 0, 0, 0
        self._kept: dict[str, tuple[T, int]] = {}  # the latest used last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[T]:
        """What is kept, the longest unused first."""
        with self._lock:
            return iter([value for value, _ in self._kept.values()])

    def get(self, key: str) -> T | None:
        """The value of a key, which counts as used now; None where it is not kept."""
        with self._lock:
            if (found := self._kept.pop(key, None)) is None:
                self.misses += 1
                return None
            self._kept[key] = found
            self.hits += 1
            return found[0]

    def put(self, key: str, value: T, size: int) -> None:
        """Keep a value of ``size`` bytes; one beyond the whole budget is not kept at all."""
        with self._lock:
            self._drop(key)
            if size > self.budget:
                return
            self._kept[key] = value, size
            self.bytes += size
            while self.bytes > self.budget:
                self._drop(next(iter(self._kept)))

    def drop(self, key: str) -> None:
        """Keep a value no longer, if it was kept."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        if (found := self._kept.pop(key, None)) is not None:
            self.bytes -= found[1]
