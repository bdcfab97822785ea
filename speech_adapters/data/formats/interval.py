"""What annotation tools call an interval: a text between two times of a recording."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """What an interval of a tier says.

    Attributes:
        line: of the file, where it begins.
        start: in seconds, as is ``end``.
        speaker: who says it, where the file tells.
    """

    line: int
    start: float
    end: float
    text: str
    speaker: str | None = None
