"""What is wrong with a file, all of it in one error."""

from __future__ import annotations

from speech_adapters.errors import ManifestError

SHOWN_PROBLEMS = 20
"""How many of a manifest's problems an error lists; it counts them all."""


class Problems:
    """What is wrong with a file: the first few are kept for the message, all are counted."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.shown: list[str] = []

    @property
    def open(self) -> bool:
        """Whether the next problem will be shown."""
        return len(self.shown) < SHOWN_PROBLEMS

    def add(self, problem: str) -> None:
        """``problem`` follows the name at once, as in ``:17: not JSON``."""
        self.count += 1
        if self.open:
            self.shown.append(f"{self.name}{problem}")

    def raise_any(self) -> None:
        """Raises a ManifestError with the problems, where there are any."""
        if self.shown:
            more = self.count - len(self.shown)
            tail = [f"... and {more:,} more: {self.count:,} problems in {self.name}"] if more else []
            raise ManifestError("\n".join([*self.shown, *tail]), self.count)
