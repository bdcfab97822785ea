"""The lines of a manifest: the schema, its checks, and what a line says.

A line is one JSON object, with the keys of NVIDIA NeMo's manifests so that existing ones load: ``audio_filepath``
(relative to the manifest's folder, or absolute) and ``duration`` (seconds) always; ``offset`` (seconds), ``channel``
(of a file with several: its number from 0, or "mix" for their mean), ``text``, ``speaker``, ``emotion``, ``label``,
``domain``, ``lang`` and ``id`` where they are known. Further keys are kept in :attr:`Utterance.extra`. Lines end at a
line feed only.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from speech_adapters.data.problems import Problems
from speech_adapters.data.text_files import check_no_utf16, reading
from speech_adapters.data.utterance import (
    KEYS,
    TEXT_KEYS,
    Channel,
    Utterance,
    check_names,
    hears,
    require_keys,
)
from speech_adapters.errors import ManifestError

LONGEST_LINE = 16_000_000
"""Bytes of a line, at which something else is being read, such as an archive."""


def read_lines(
    path: Path, problems: Problems, require: Sequence[str] = ()
) -> Iterator[tuple[int, int, int, Utterance]]:
    """Of each sound line its number from 1, its first byte, its size, its utterance; ``problems`` gets the others."""
    parse, root, shared = _decoder().decode, Root.of(path.parent), Shared()
    start = 0
    for number, raw in _raw_lines(path):
        size = len(raw)
        try:
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if (utterance := _parsed(line, root, parse, shared)) is not None:
                if require:
                    require_keys(utterance, require)
                yield number, start, size, utterance
        except ManifestError as error:
            problems.add(f":{number}: {error}")
        start += size


def raise_problems(path: Path, problems: Problems) -> None:
    """Raise the problems of a manifest; of a table there is only one: that it is not a manifest."""
    if problems.count and path.suffix.lower() in (".csv", ".tsv"):
        raise ManifestError(
            f"{path}: a table, expected a manifest of JSON lines; make one of it and the folder of its recordings: "
            f"speech-adapters manifest make FOLDER --table {path} -o {path.with_suffix('.jsonl')}"
        )
    problems.raise_any()


def _parsed(raw: bytes, root: Root, parse: Callable[[str], Any], shared: Shared) -> Utterance | None:
    """The utterance of a line, None of a blank one. Raises ManifestError."""
    try:
        line = raw.decode()
        if not line.strip():
            return None
        entry = parse(line)
    except ManifestError:  # a ValueError, too
        raise
    except UnicodeDecodeError as error:
        raise ManifestError(f"not UTF-8 text ({error.reason}); convert the manifest to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"not JSON ({error}); each line must be one JSON object") from error
    if not isinstance(entry, dict):
        raise ManifestError(f"a {type(entry).__name__}; each line must be one JSON object {{...}}")
    utterance = utterance_of(entry, root, shared)
    if b"\\" in raw or b"\x7f" in raw:  # JSON escapes control characters, UTF-8 has no surrogates
        check_names(utterance)
    return utterance


def utterance_of_line(line: bytes, root: Root, channel: Channel | None = None) -> Utterance:
    """The utterance of a line that has been checked; ``channel`` where the line names none."""
    utterance = utterance_of(json.loads(line.removeprefix(codecs.BOM_UTF8)), root, Shared())
    if channel is None or utterance.channel is not None or not hears(channel, utterance.audio_filepath):
        return utterance
    return replace(utterance, channel=channel)


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with reading(path, "manifest"), path.open("rb") as file:
        for number in itertools.count(1):
            raw = file.readline(LONGEST_LINE)
            if len(raw) == LONGEST_LINE:
                raise ManifestError(
                    f"{path}:{number}: a line of {LONGEST_LINE:,} bytes or more is too long for a manifest"
                )
            if not raw:
                break
            if number == 1:
                check_no_utf16(path, raw, "manifest")
            yield number, raw


def _decoder() -> json.JSONDecoder:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON value")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ManifestError(f"the key {repeated!r} is there twice; keep one of the two")
        return entry

    return json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse)


class Root(NamedTuple):
    """The folder of relative audio paths, by the name it was given and by its own: from a link, ``..`` leads to where
    the folder itself is, as for every other program."""

    path: str
    real: str

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> Root:
        """A folder by both names."""
        return cls(os.path.abspath(folder), os.path.realpath(folder))


def relative_audio(audio: Path, folder: str | os.PathLike[str]) -> str:
    """An audio path as a file in ``folder`` writes it, which reads as the same path."""
    relative = Path(os.path.relpath(audio, folder)).as_posix()
    if relative.startswith("../"):
        relative = Path(os.path.relpath(audio, os.path.realpath(folder))).as_posix()
    return relative


class Shared(dict[str, str]):
    """One string for all lines that say the same: speakers, classes and keys come again in most of a million lines."""

    def __missing__(self, text: str) -> str:
        self[text] = text
        return text


def utterance_of(entry: dict[str, Any], root: Root, shared: Shared) -> Utterance:
    """Check one entry's fields and types; ``root`` is the folder of relative audio paths."""
    audio, seconds = entry.get("audio_filepath"), entry.get("duration")
    if audio is not None and (not isinstance(audio, str) or not audio):
        raise ManifestError(f"audio_filepath is {audio!r}, expected a path as a string")
    if audio is None or seconds is None:
        missing = "duration" if audio is not None else "audio_filepath"
        raise ManifestError(f"lacks {missing!r}; every line needs audio_filepath and duration")
    duration, offset = _seconds(seconds, "duration"), _seconds(entry.get("offset") or 0.0, "offset")
    if duration <= 0:
        raise ManifestError(f"duration is {duration:g} s, expected more than 0; drop the line or measure it")
    if offset < 0:
        raise ManifestError(f"offset is {offset:g} s, expected at least 0")
    values = []
    for key in TEXT_KEYS:
        value = entry.get(key)
        if value is not None:
            value = _text(value, key)
            if key != "text":
                value = shared[value]
        values.append(value)
    channel = entry.get("channel")
    if not (channel == "mix" or (type(channel) is int and channel >= 0)):
        channel = None  # another word names the telephone channel, as in the demo corpus, and is kept
    file = audio.rpartition("/")[2]
    if not file or file in (".", ".."):
        raise ManifestError(f"audio_filepath is {audio!r}, which is not the name of a file")
    name = _text(entry["id"], "id") if entry.get("id") is not None else ""
    if not name:
        name = usual_id(os.path.splitext(file)[0], {"offset": offset, "channel": channel})
    extra = {shared[key]: value for key, value in entry.items() if key not in KEYS}
    if channel is None and entry.get("channel") is not None:
        extra["channel"] = entry["channel"]
    if extra:
        _check_extra(extra)
    path = os.path.join(root.real if audio.startswith("../") else root.path, audio)
    if "./" in path or "//" in path or os.sep != "/":
        path = os.path.normpath(path)  # not resolve(): a link's own name may be the id
    texts = dict(zip(TEXT_KEYS, values, strict=True))
    return Utterance(name, path, duration, offset, **texts, extra=extra, channel=channel)  # type: ignore[arg-type]


def usual_id(name: str, entry: Mapping[str, Any]) -> str:
    """The id of an utterance that is given none: the name of its file, with the offset and the channel heard."""
    offset, channel = entry.get("offset"), entry.get("channel")
    with contextlib.suppress(ValueError):  # no number, which the check of the entry says
        name += f"-{float(offset):.3f}" if offset and float(offset) else ""
    return name + (f"-channel{channel}" if type(channel) is int else "")


def _seconds(value: Any, key: str) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if math.isfinite(value):
            return float(value)
    raise ManifestError(f"{key} is {value!r}, expected seconds as a number")


def _text(value: Any, key: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ManifestError(f"{key} is {value!r}, expected a string")
    return value


def _check_extra(extra: dict[str, Any]) -> None:
    """Further keys hold what JSON and UTF-8 can: 1e999 reads as infinity, and half a surrogate pair as a symbol."""
    plain = all(value.isascii() if type(value) is str else type(value) is int for value in extra.values())
    if plain and all(map(str.isascii, extra)):
        return
    try:
        json.dumps(extra, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ManifestError("half of a surrogate pair in a further key; export the manifest as UTF-8") from None
    except ValueError:
        raise ManifestError("an infinite number in a further key; leave the key out") from None


def entry_of(utterance: Utterance, audio: str) -> dict[str, Any]:
    """The JSON object of one utterance, its audio called ``audio``, without what is absent."""
    entry: dict[str, Any] = {"id": utterance.id, "audio_filepath": audio, "duration": utterance.duration}
    if utterance.offset:
        entry["offset"] = utterance.offset
    if utterance.channel is not None:
        entry["channel"] = utterance.channel
    entry |= {key: value for key in TEXT_KEYS if (value := getattr(utterance, key)) is not None}
    return entry | utterance.extra
