"""One utterance: a piece of a recording, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speech_adapters.data.audio import audio_channels, read_audio
from speech_adapters.errors import AudioError, ManifestError
from speech_adapters.ranges import Count

if TYPE_CHECKING:
    import torch

TEXT_KEYS = ("text", "speaker", "emotion", "label", "domain", "lang")
"""Optional keys that hold a string. A number is read as its digits: NeMo writes speakers as integers."""

KEYS = frozenset({"audio_filepath", "duration", "offset", "id", "channel", *TEXT_KEYS})
"""All keys of the schema; what else a line holds is kept in :attr:`Utterance.extra`."""

Channel = Count | Literal["mix"]
"""What is heard of a file with several channels: one by its number from 0, or the mean of all."""


class _PathField:
    """A field that takes a path and gives a Path, made on access: Paths took most of the memory of a million lines."""

    def __init__(self, slot: Any) -> None:
        self.slot = slot

    def __get__(self, utterance: Any, owner: type) -> Any:
        return self if utterance is None else Path(self.slot.__get__(utterance))

    def __set__(self, utterance: Any, path: str | os.PathLike[str]) -> None:
        self.slot.__set__(utterance, path)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest. ``duration`` and ``offset`` are in seconds; ``audio_filepath`` is absolute.

    ``channel`` chooses one of a file's several: its number from 0, or "mix" for their mean.
    """

    id: str
    audio_filepath: Path
    duration: float
    offset: float = 0.0
    text: str | None = None
    speaker: str | None = None
    emotion: str | None = None
    label: str | None = None
    domain: str | None = None
    lang: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)
    channel: int | str | None = None

    def get(self, key: str) -> Any:
        """The value of a key of the schema or of ``extra``; None when absent. Whole numbers of either are text."""
        value = getattr(self, key) if key in self.__dataclass_fields__ and key != "extra" else None
        if value is None:
            value = self.extra.get(key)
            return str(value) if type(value) is int else value
        return value

    def has(self, key: str) -> bool:
        """Whether the line says something under a key: a blank value says nothing, but a ``text`` may be empty."""
        value = self.get(key)
        return value is not None and (key == "text" or not isinstance(value, str) or bool(value.strip()))

    def place(self) -> dict[str, Any]:
        """Where it is heard, under the keys of a manifest."""
        piece = {"offset": self.offset, "duration": self.duration, "channel": self.channel}
        return {"audio_filepath": str(self.audio_filepath), **piece}

    def waveform(self, channel: int | str | None = None) -> torch.Tensor:
        """(samples,) the utterance's audio at 16 kHz; ``channel`` where the line itself names none.

        Raises:
            AudioError: see :func:`~speech_adapters.data.audio.read_audio`.
        """
        channel = channel if self.channel is None else self.channel
        return read_audio(self.audio_filepath, offset=self.offset, duration=self.duration, channel=channel)


Utterance.audio_filepath = _PathField(Utterance.audio_filepath)  # type: ignore[assignment, misc]


def check_names(utterance: Utterance, where: str = "") -> None:
    """Names go into lines of text files; no text may hold half a surrogate pair, which no file can."""
    u = utterance
    for key in ("id", "audio_filepath", *TEXT_KEYS):
        value = None if key == "text" or getattr(u, key) is None else str(getattr(u, key))
        if value is not None and not value.isprintable() and any(s < " " or s == "\x7f" for s in value):
            raise ManifestError(f"{where}{key} is {value!r}, with a control character; remove it")
    for key in ("id", "audio_filepath", *TEXT_KEYS):
        value = getattr(u, key)
        if value is not None and not (text := str(value)).isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ManifestError(
                    f"{where}{key} is {text!r}, with half of a surrogate pair; export it as UTF-8"
                ) from None


def require_keys(utterance: Utterance, keys: Iterable[str]) -> None:
    """Raise a ManifestError for the first key that a task needs and the utterance does not have."""
    for key in keys:
        if (fault := fault_of(utterance, key)) is not None:
            raise ManifestError(fault)


def fault_of(utterance: Utterance, key: str) -> str | None:
    """Why a task that needs a key cannot take the utterance's; reading checks the keys of the schema alone."""
    if not utterance.has(key):
        return f"lacks {key!r}, which this task needs; add it to every line"
    value = utterance.get(key)
    if key in KEYS or isinstance(value, str):
        return None
    return f"{key} is {value!r}, which is not the name of a class; write text or a whole number"


def hears(channel: Channel, path: Path) -> bool:
    """Whether a run's choice of a channel is one for this file; 0 and the mean of a file with one are the file."""
    return channel in (0, "mix") or channels_of(path) != 1


def channels_of(path: Path) -> int:
    """How many channels a file has; 0 where it cannot be read, which others report."""
    try:
        return audio_channels(path)
    except AudioError:
        return 0
