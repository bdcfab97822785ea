"""What is to be heard: files, arrays and manifests' utterances as recordings that are read block by block."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speech_adapters.data.audio import (
    MIN_SAMPLES,
    SAMPLE_RATE,
    audio_channels,
    channel_of_several,
    check_waveform,
    no_such_channel,
    resample,
    stream_audio,
)
from speech_adapters.data.manifest import Utterance
from speech_adapters.data.problems import SHOWN_PROBLEMS
from speech_adapters.errors import AudioError, ConfigError, counted

_BLOCK = 10 * SAMPLE_RATE

Audio = str | os.PathLike[str] | np.ndarray | Tensor
"""A path, or samples ``(samples,)`` as floating point, full scale at 1."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One channel of a file or array, or a piece of it.

    Attributes:
        name: as results and errors call it.
        source: the file, or (samples,) at 16 kHz.
        offset, duration: in seconds, the piece of the file; None for all of it.
        channel: of a file with several: its number from 0, or "mix" for their mean.
        speaker: whose channel it is, where that is known.
    """

    name: str
    source: Path | Tensor
    offset: float = 0.0
    duration: float | None = None
    channel: int | str | None = None
    speaker: str | None = None

    @classmethod
    def of_utterance(cls, utterance: Utterance) -> Recording:
        """The audio of a manifest's line."""
        u = utterance
        return cls(u.id, u.audio_filepath, u.offset, u.duration, u.channel, u.speaker)

    def blocks(self) -> Iterator[Tensor]:
        """Consecutive (samples,) at 16 kHz, ten seconds or so each.

        Raises:
            AudioError: see :func:`~speech_adapters.data.audio.read_audio`.
        """
        if isinstance(self.source, Tensor):
            yield from self.source.split(_BLOCK)
        else:
            yield from stream_audio(
                self.source, offset=self.offset, duration=self.duration, channel=self.channel, block_seconds=10.0
            )


LeftOut = dict[str, str]
"""What cannot be heard among many recordings, by name (and speaker, where a file's channels are heard apart): why."""


def leave_out(left_out: LeftOut | None, name: str, error: AudioError, speaker: str | None = None) -> None:
    """Note why a recording, or a speaker's channel of it, is left out; without a place to note it, raise the error."""
    if left_out is None:
        raise error
    left_out[name if speaker is None else f"{name} ({speaker})"] = str(error).removeprefix(f"{name}: ")


def recordings_of(
    audio: Audio | Sequence[Audio],
    *,
    channel: int | str | None = None,
    speakers: Sequence[str] | None = None,
    sample_rate: int = SAMPLE_RATE,
    names: Sequence[str] | None = None,
    left_out: LeftOut | None = None,
) -> list[list[Recording]]:
    """Each file or array as its recordings: one, or one per channel where ``speakers`` names the channels.

    Headers are read here, so that missing files and unnamed channels are found, all of them, before anything is heard.

    Args:
        channel: of files with several, of which there must be one at least: a number, or "mix". There is no default:
            the two sides of a call are two speakers.
        speakers: a name for each channel, such as ("agent", "customer").
        sample_rate: of arrays, in Hz.
        names: of the results; by default the paths, and "waveform 0", "waveform 1", ... of arrays.
        left_out: takes in the files that cannot be heard, unless these are all of them.

    Raises:
        AudioError, ConfigError: what cannot be heard, named.
    """
    if speakers is not None and channel is not None:
        raise ConfigError("give channel= to hear one channel or their mix, or speakers= to hear each; not both.")
    if isinstance(speakers, str) or (
        speakers is not None and (len(set(speakers)) < max(len(speakers), 1) or not all(map(str.strip, speakers)))
    ):
        raise ConfigError(
            f'speakers={speakers!r}: give different names, one per channel, such as ("agent", "customer").'
        )
    items: list[Any] = [*audio] if isinstance(audio, list | tuple) else [audio]
    if not items:
        raise ConfigError("no audio was given; give a path, an array, or a list of them.")
    found: list[list[Recording]] = []
    problems: list[tuple[str, AudioError]] = []
    for number, item in enumerate(items):
        name = names[number] if names is not None else _name(item, number)
        if isinstance(item, str | os.PathLike):
            try:
                found.append(_of_file(name, Path(item), channel, speakers))
            except AudioError as error:  # all of a folder's are said at once
                problems.append((name, error))
        else:
            if speakers is not None or channel not in (None, 0, "mix"):
                raise ConfigError(f"{name}: an array of samples has one channel; give one recording a channel.")
            found.append([Recording(name, _samples(item, name, sample_rate))])
    if channel not in (None, 0, "mix") and all(one.channel is None for (one, *_) in found):  # of no file: a mistake
        problems += [(one.name, no_such_channel(one.name, channel, 1)) for (one, *_) in found]
        found = []
    if left_out is not None and found:
        for name, problem in problems:
            leave_out(left_out, name, problem)
    elif problems:
        more = len(problems) - SHOWN_PROBLEMS
        tail = [f"... and {more:,} more: {len(problems):,} files that cannot be heard"] if more > 0 else []
        raise AudioError("\n".join([*(str(problem) for _, problem in problems[:SHOWN_PROBLEMS]), *tail]))
    return found


def of_utterances(utterances: Iterable[Utterance]) -> list[Recording]:
    """The audio of a manifest's lines."""
    return [Recording.of_utterance(utterance) for utterance in utterances]


def _name(item: Any, number: int) -> str:
    return os.fspath(item) if isinstance(item, str | os.PathLike) else f"waveform {number}"


def _of_file(name: str, path: Path, channel: int | str | None, speakers: Sequence[str] | None) -> list[Recording]:
    channels = audio_channels(path)
    if speakers is not None:
        if len(speakers) != channels:
            raise AudioError(
                f"{path}: {counted(channels, 'channel')}, but {counted(len(speakers), 'name')} of speakers "
                f"({', '.join(speakers)}); name one per channel."
            )
        return [Recording(name, path, channel=place, speaker=speaker) for place, speaker in enumerate(speakers)]
    if channel is None and channels > 1:
        raise AudioError(
            f'{path}: {channels} channels; choose one (channel=0), their mean (channel="mix"), or hear each as a '
            'speaker: speakers=("agent", "customer") (on the command line: --channel, --speakers)'
        )
    return [Recording(name, path, channel=channel_of_several(path, channel))]


def _samples(item: Any, name: str, sample_rate: int) -> Tensor:
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.ascontiguousarray(item))
    if not isinstance(item, Tensor):
        raise ConfigError(f"{name}: a {type(item).__name__}; give a path, or samples as a numpy array or tensor.")
    check_waveform(item, name, min_samples=MIN_SAMPLES * sample_rate // SAMPLE_RATE)
    return resample(item.detach().to("cpu", torch.float32), sample_rate, SAMPLE_RATE)
