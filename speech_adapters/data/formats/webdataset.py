"""Shards of WebDataset: tar files whose members go together by their name, ``1.flac``, ``1.json``, ``1.txt``.

The audio stays where it is: each utterance names its bytes in the shard (:mod:`~speech_adapters.data.members`), so
that training reads any of them without unpacking. Of each key there is one recording, with

- ``.json``: an object with the keys of a manifest, under the names that tools give them;
- ``.txt``: its text; ``.cls``: its label. Other members are left alone.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speech_adapters.data.audio import SAMPLE_RATE, audio_info
from speech_adapters.data.formats.columns import NAMES
from speech_adapters.data.manifest import TEXT_KEYS, Manifest, Utterance
from speech_adapters.data.members import Member, located, member_of
from speech_adapters.errors import AudioError, ManifestError
from speech_adapters.files import new_folder

AUDIO = ("wav", "flac", "mp3", "ogg", "opus")
SHARD_BYTES = 1 << 30
"""Of a shard that is written, about: WebDataset's advice is 100 MB to a few GB."""

_TEXTS = {"txt": "text", "cls": "label"}


def read(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a shard, or of a folder of shards; ids are those of the ``.json``, else ``SHARD-KEY``.

    Raises:
        ManifestError: no shards, a compressed or damaged one, a key without or with several recordings, a ``.json`` or
            ``.txt`` that cannot be read.
    """
    path = Path(path)
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not shards:
        raise ManifestError(f"{path}: no shards (*.tar) there; check the path")
    entries = (entry for shard in shards for entry in _entries(shard))
    return Manifest.from_entries(entries, str(path), ".")


def _entries(shard: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, members in _samples(shard):
        where = f" ({shard.name}: {key})"
        audio = [name for name in members if name in AUDIO]
        if len(audio) != 1:
            raise ManifestError(f"{shard}: {key}: {len(audio)} recordings; give it one of {', '.join(AUDIO)}")
        entry: dict[str, Any] = {"id": f"{shard.stem}-{key.replace('/', '-')}"}
        try:
            if "json" in members:
                said = json.loads(_content(members["json"]))
                if not isinstance(said, dict):
                    raise ValueError(f"a {type(said).__name__}, expected an object")
                entry |= _named(said, f"{shard}: {key}.json")
            for name, column in _TEXTS.items():
                if name in members:
                    entry[column] = _content(members[name]).decode().strip()
        except (ValueError, RecursionError) as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError(f"{shard}: {key}: its .json, .txt or .cls cannot be read ({error})") from error
        entry["audio_filepath"] = str(members[audio[0]])
        yield where, entry


def _named(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An entry under the keys of a manifest; what names the audio is left out: the shard says where it is."""
    known = {name: key for key, names in NAMES.items() for name in names}
    entry: dict[str, Any] = {}
    for name, value in said.items():
        key = known.get(name.lower(), name)
        if key in entry:
            raise ManifestError(f"{where}: {name!r} and another could both hold {key}; keep one of them")
        if key != "audio_filepath" and value is not None:
            entry[key] = value
    return entry


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key -> extension -> member, of members of one key that follow each other, as WebDataset reads them."""
    shard = shard.absolute()
    current: tuple[str, dict[str, Member]] | None = None
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                folder, _, file = info.name.rpartition("/")
                base, dot, extension = file.partition(".")
                if not info.isreg() or not base or not dot:
                    continue
                key = f"{folder}/{base}" if folder else base
                if current is None or current[0] != key:
                    if current is not None:
                        yield current
                    current = key, {}
                current[1][extension.lower()] = Member(shard, info.offset_data, info.size)
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
    except (tarfile.TarError, OSError) as error:
        raise ManifestError(f"{shard}: no tar file that can be read ({error}); unpack a compressed one") from error
    if current is not None:
        yield current


def _content(member: Member) -> bytes:
    with member.open() as file:
        return file.read()


def write(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write a folder of shards. Files go in as they are; pieces, and files of other formats, as FLAC of 16 kHz and
    16 bit.

    Raises:
        AudioError: a recording that cannot be read.
    """
    with new_folder(path) as folder, ExitStack() as opened:
        tar: tarfile.TarFile | None = None
        for place, utterance in enumerate(manifest):
            if tar is None or tar.offset > SHARD_BYTES:
                opened.close()
                tar = opened.enter_context(tarfile.open(folder / f"{place:09d}.tar", "w"))
            said = _said(utterance)
            if (suffix := _suffix(utterance)) is not None:
                audio = _bytes(utterance.audio_filepath)
                said |= {} if utterance.channel is None else {"channel": utterance.channel}
            else:
                suffix, audio = "flac", _flac(utterance)  # of the one channel that is heard
            for extension, content in ((suffix, audio), ("json", json.dumps(said).encode())):
                info = tarfile.TarInfo(f"{place:09d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _said(u: Utterance) -> dict[str, Any]:
    texts = {key: value for key in TEXT_KEYS if (value := getattr(u, key)) is not None}
    return {"id": u.id, "duration": u.duration, **texts, **u.extra}


def _is_piece(utterance: Utterance) -> bool:
    return bool(utterance.offset) or utterance.duration < audio_info(utterance.audio_filepath).duration - 0.01


def _suffix(utterance: Utterance) -> str | None:
    """What a file's bytes are that go in as they are; None of a piece, and of what WebDataset's readers lack."""
    path = utterance.audio_filepath
    if _is_piece(utterance):
        return None
    if (member := member_of(path)) is None:
        suffix = path.suffix.lower().removeprefix(".")
        return suffix if suffix in AUDIO else None
    with member.open() as file, soundfile.SoundFile(file) as sound:
        return {"WAV": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}.get(sound.format)


def _bytes(path: Path) -> bytes:
    place = located(path)
    return _content(place) if isinstance(place, Member) else place.read_bytes()


def _flac(utterance: Utterance) -> bytes:
    samples = utterance.waveform().numpy()
    if (peak := float(np.abs(samples).max())) > 1:
        raise AudioError(
            f"{utterance.audio_filepath}: peaks of {peak:.3g} do not fit into FLAC; give it as a file of its own"
        )
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, "PCM_16", format="FLAC")
    return content.getvalue()
