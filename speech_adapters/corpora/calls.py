"""Two-channel recordings of calls: one mono file for each side, since the two sides are two speakers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from speech_adapters.data.audio import audio_info, read_audio, write_audio
from speech_adapters.errors import AudioError, ConfigError

ROLES = ("caller", "agent")
"""The sides in the order of the channels that HarperValleyBank's transcripts number 1 and 2."""


def split_call(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], roles: Sequence[str] = ROLES
) -> dict[str, Path]:
    """Write each channel as ``<folder>/<role>/<stem>.wav`` at its own rate, and return role -> file.

    ``roles`` names the channels in their order. A recording that is split already is left alone.

    Raises:
        AudioError: a broken file, another number of channels than roles, or two channels with the same sound: that
            is a mono recording in a stereo file, whose sides cannot be told apart; a side of another recording there.
        ConfigError: a role that is repeated or no file name.
    """
    if len(set(roles)) < len(roles) or any(not role or Path(role).name != role for role in roles):
        raise ConfigError(f"roles={list(roles)}: give each channel its own name, usable as a folder's")
    path, info = Path(path), audio_info(path)
    if info.channels != len(roles):
        raise AudioError(
            f"{path}: {info.channels} channel(s) for the roles {', '.join(roles)}; name one role a channel"
        )
    files = {role: Path(folder) / role / f"{path.stem}.wav" for role in roles}
    there = [file for file in files.values() if file.exists()]
    for file in there:
        written = audio_info(file)
        if (written.frames, written.sample_rate) != (info.frames, info.sample_rate):
            raise AudioError(
                f"{file}: a side of another recording called {path.stem!r}; give {path} another folder, or name"
            )
    if len(there) == len(files):
        return files
    sides = [read_audio(path, channel=index, sample_rate=info.sample_rate) for index in range(len(roles))]
    for index, side in enumerate(sides[1:], start=1):
        if torch.equal(sides[0], side):
            raise AudioError(
                f"{path}: channels 0 and {index} hold the same sound, so that the sides cannot be told apart; "
                "use the original two-channel recording"
            )
    for file, side in zip(files.values(), sides, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_audio(file, side, info.sample_rate, loud="scale")
    return files
