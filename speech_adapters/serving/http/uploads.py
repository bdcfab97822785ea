"""Uploaded audio as recordings.

A file is copied to a private folder under a name of our own and opened by libsndfile, which reads WAV, FLAC, Ogg
(Opus, Vorbis) and MP3; no shell and no other program sees it. What a client called it is used nowhere.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import UploadFile

from speech_adapters.errors import AudioError
from speech_adapters.inference.recordings import Recording, recordings_of
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http.errors import ApiError


@asynccontextmanager
async def recordings(
    engine: Engine, files: Sequence[UploadFile], channel: str | None, param: str = "file"
) -> AsyncIterator[list[Recording]]:
    """The recordings in uploaded files, headers checked, for as long as the context lasts.

    Args:
        channel: of files with several: a number, or "mix".

    Raises:
        ApiError: a file that is no audio, too long, or of several channels with none named; a broken one is found
            while it is heard, and becomes an ApiError here too.
    """
    with tempfile.TemporaryDirectory(prefix="speech-adapters-") as folder:
        paths = [Path(folder) / f"upload-{number}" for number in range(len(files))]
        try:
            for file, path in zip(files, paths, strict=True):
                await engine.in_decoder(_copy, file, path)
                await file.close()
            found = await engine.in_decoder(_open, paths, channel, engine.settings.max_seconds)
            yield found
        except AudioError as error:
            # the library's message names the file where it lies here, and Python's or the command line's remedies
            message = str(error)
            for path in paths:
                message = message.replace(str(path), "the audio")
            message = message.replace(" (on the command line: --channel, --speakers)", "")
            raise ApiError(400, message, param=param, code="invalid_audio") from error
        finally:
            for file in files:
                await file.close()


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target)


def _open(paths: Sequence[Path], channel: str | None, most: float) -> list[Recording]:
    from speech_adapters.data.audio import audio_info

    for path in paths:
        info = audio_info(path)
        if info.channels > 1 and channel is None:
            raise AudioError(
                f'{path} has {info.channels} channels; name one in the field channel ("0" to "{info.channels - 1}"), '
                'or their mean ("mix")'
            )
        if info.duration > most and info.frames < 1 << 62:
            raise AudioError(f"{path} lasts {info.duration:.0f} s, longer than the {most:g} s that are taken; cut it")
    index = None if channel is None else channel if channel == "mix" else int(channel)
    return [each[0] for each in recordings_of(list(paths), channel=index, names=["the audio"] * len(paths))]
