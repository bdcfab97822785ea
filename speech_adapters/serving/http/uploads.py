"""Uploaded audio as recordings.

A file is copied to a private folder under a name of our own and opened by libsndfile, which reads WAV, FLAC, Ogg
(Opus, Vorbis) and MP3; no shell and no other program sees it. What a client called it is used nowhere.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import UploadFile

from speech_adapters.errors import AudioError
from speech_adapters.files import sweep, temporary_of
from speech_adapters.inference.hearing import OTHER_DETECTOR
from speech_adapters.inference.recordings import Recording, recordings_of
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http.errors import ApiError


@asynccontextmanager
async def recordings(
    engine: Engine, files: Mapping[str, tuple[str, UploadFile]], channel: str | None
) -> AsyncIterator[list[Recording]]:
    """The recordings in uploaded files, headers checked, for as long as the context lasts.

    Args:
        files: each with its field, by what it is called in errors.
        channel: of files with several: a number, or "mix".

    Raises:
        ApiError: a file that is no audio, too long, or of several channels with none named; a broken one is found
            while it is heard, and becomes an ApiError here too.
    """
    place = _all_uploads()
    folder = temporary_of(place.with_name(f"{place.name}.{uuid.uuid4().hex}"))
    # no path is a part of another one: the message below names the one that it means
    paths = {name: folder / f"{number}-upload" for number, name in enumerate(files)}
    sent = [file for _, file in files.values()]
    copied = asyncio.ensure_future(engine.in_decoder(_copy, sent, list(paths.values())))
    try:
        await asyncio.shield(copied)  # to its end, though the client goes away: a folder in use cannot be removed
        yield await engine.in_decoder(_open, paths, channel, engine.settings.max_seconds)
    except AudioError as error:
        # the library's message names the file where it lies here, and Python's or the command line's remedies
        message = str(error)
        for name, path in paths.items():
            message = message.replace(str(path), name)
        for remedy in (" (on the command line: --channel, --speakers)", OTHER_DETECTOR):
            message = message.replace(remedy, "")
        param = next((field for name, (field, _) in files.items() if name in message), None)
        raise ApiError(400, message, param=param, code="invalid_audio") from error
    finally:
        copied.add_done_callback(lambda _: forget(engine, folder))


def clear_uploads() -> None:
    """Remove what servers that were killed had not forgotten yet; before this one takes anything."""
    sweep(_all_uploads(), at_start=True)


def _all_uploads() -> Path:
    """What the folders of all requests are called after."""
    return Path(tempfile.gettempdir(), "speech-adapters")


def forget(engine: Engine, folder: Path) -> None:
    """Remove a request's files, beside the loop while there is a thread for it."""
    try:
        engine.decoders.submit(shutil.rmtree, folder, ignore_errors=True)
    except RuntimeError:  # the engine has stopped
        shutil.rmtree(folder, ignore_errors=True)


def _copy(files: Sequence[UploadFile], paths: Sequence[Path]) -> None:
    paths[0].parent.mkdir(mode=0o700)
    for file, path in zip(files, paths, strict=True):
        with file.file, path.open("xb") as target:  # closed at once: what was received is not kept twice
            shutil.copyfileobj(file.file, target)


def _open(paths: Mapping[str, Path], channel: str | None, most: float) -> list[Recording]:
    from speech_adapters.data.audio import audio_info

    for path in paths.values():
        info = audio_info(path, count_to=most)
        if info.channels > 1 and channel is None:
            raise AudioError(
                f'{path} has {info.channels} channels; name one in the field channel ("0" to "{info.channels - 1}"), '
                'or their mean ("mix")'
            )
        if info.duration > most:
            raise AudioError(f"{path} lasts more than the {most:g} s taken here; cut it")
    index = None if channel is None else channel if channel == "mix" else int(channel)
    return [each[0] for each in recordings_of(list(paths.values()), channel=index, names=list(paths))]
