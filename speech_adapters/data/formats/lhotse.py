"""lhotse's manifests: cuts, or recordings and supervisions; ``.jsonl`` or ``.jsonl.gz``.

Each supervision becomes an utterance; a cut without one becomes an utterance without text. Recordings of several
channels give each utterance the channel of its supervision; one of all channels leaves the choice to ``--channel``.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speech_adapters.data.audio import audio_info
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ManifestError
from speech_adapters.files import atomic

_FIELDS = {"text": "text", "speaker": "speaker", "language": "lang", "gender": "gender"}
"""Field of a supervision -> key of a manifest."""


def read(path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> Manifest:
    """The manifest of a file of cuts or supervisions, or of a folder that holds the one or the other.

    Args:
        path: a file of supervisions needs that of its recordings beside it, under the name that lhotse gives it
            (``librispeech_supervisions_dev.jsonl.gz`` and ``librispeech_recordings_dev.jsonl.gz``).
        root: where relative audio paths start; the working folder by default, as in lhotse.

    Raises:
        ManifestError: with the line: not JSON, an unknown recording, audio that is no file.
    """
    path = _find(Path(path))
    lines = list(_lines(path))
    if "supervisions" in lines[0][1] or "recording" in lines[0][1]:
        entries = [entry for place, cut in lines for entry in _of_cut(path, place, cut)]
    elif "recording_id" in lines[0][1]:
        recordings = _recordings(path)
        entries = [
            _entry(path, place, recordings, supervision, 0.0, supervision.get("recording_id"))
            for place, supervision in lines
        ]
    else:
        raise ManifestError(f"{path}:1: neither cuts nor supervisions; give the file of one of them")
    return Manifest.from_entries(entries, str(path), root or ".")


def write(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write cuts (``CutSet.from_file`` reads them), an utterance each; gzipped where the name ends in ``.gz``.

    Raises:
        ManifestError: an utterance that hears the mean of several channels, which a MonoCut cannot.
    """
    path = Path(path)
    lines = [json.dumps(_cut(manifest, utterance), ensure_ascii=False) + "\n" for utterance in manifest]
    content = "".join(lines).encode()
    with atomic(path) as file:
        file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    for kind in ("cuts", "supervisions"):
        found = sorted(file for file in path.glob(f"*{kind}*.jsonl*"))
        if len(found) == 1:
            return found[0]
        if found:
            raise ManifestError(f"{path}: {len(found)} files of {kind}, such as {found[0].name}; give one of them")
    raise ManifestError(f"{path}: no *cuts*.jsonl.gz or *supervisions*.jsonl.gz there; check the path")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ManifestError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    number = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path}:{number}: not JSON ({error}); lhotse writes one object per line") from error
        if not isinstance(entry, dict):
            raise ManifestError(f"{path}:{number}: expected a JSON object; lhotse writes one per line")
        yield f":{number}", entry
    if not text.strip():
        raise ManifestError(f"{path}:1: an empty file")


def _recordings(supervisions: Path) -> dict[str, dict[str, Any]]:
    path = supervisions.with_name(supervisions.name.replace("supervisions", "recordings"))
    if path == supervisions or not path.is_file():
        raise ManifestError(f"{supervisions}: supervisions need their recordings beside them, as {path.name}")
    return {str(recording.get("id")): recording for _, recording in _lines(path)}


def _of_cut(path: Path, place: str, cut: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    recording, start = cut.get("recording"), cut.get("start", 0.0)
    if not isinstance(recording, dict):
        raise ManifestError(f"{path}{place}: cut {cut.get('id')!r} has no recording; of mixed cuts, give the parts")
    recordings = {None: recording}
    whole = {"id": cut.get("id"), "start": 0.0, "duration": cut.get("duration"), "channel": cut.get("channel")}
    for supervision in cut.get("supervisions") or [whole]:
        yield _entry(path, place, recordings, supervision, start, None)


def _entry(
    path: Path, place: str, recordings: Mapping[Any, Any], supervision: dict[str, Any], start: float, name: Any
) -> tuple[str, dict[str, Any]]:
    if name not in recordings:
        raise ManifestError(f"{path}{place}: the recording {name!r} is not among the recordings")
    sources = recordings[name].get("sources") or [{}]
    kinds = {source.get("type") for source in sources}
    if kinds != {"file"}:
        raise ManifestError(f"{path}{place}: audio of the type {', '.join(map(str, kinds))}; only files are read")
    channel = supervision.get("channel", 0)
    channels = channel if isinstance(channel, list) else [channel]
    source = next((one for one in sources if channels and set(channels) <= set(one.get("channels", [0]))), None)
    if source is None:
        raise ManifestError(f"{path}{place}: no file of the recording has the channel {channel!r}")
    there = source.get("channels", [0])
    if 1 < len(channels) < len(there):
        raise ManifestError(
            f"{path}{place}: a supervision of the channels {channel} of a file with {there}; an utterance hears one "
            "or the mean of all: give each channel a supervision of its own"
        )
    entry = {
        **(supervision.get("custom") or {}),  # first: it renames nothing of lhotse's own
        "id": supervision.get("id"),
        "audio_filepath": source.get("source"),
        "offset": round(start + supervision.get("start", 0.0), 6),
        "duration": supervision.get("duration"),
        **{key: supervision[field] for field, key in _FIELDS.items() if supervision.get(field) is not None},
    }
    if len(there) > 1 and len(channels) == 1:
        entry["channel"] = there.index(channels[0])
    return place, entry


def _cut(manifest: Manifest, utterance: Any) -> dict[str, Any]:
    if utterance.channel == "mix":
        where = f"{manifest.name}: utterance {utterance.id!r}"
        raise ManifestError(f"{where}: the mean of its channels, which a cut cannot name; write it to a file first")
    info, channel = audio_info(utterance.audio_filepath), utterance.channel or 0
    channels = list(range(info.channels))
    custom = {key: value for key in ("emotion", "label", "domain") if (value := getattr(utterance, key)) is not None}
    custom |= {key: value for key, value in utterance.extra.items() if key not in _FIELDS.values()}
    named = {field: utterance.get(key) for field, key in _FIELDS.items() if utterance.get(key) is not None}
    source = str(utterance.audio_filepath)
    return {
        "id": utterance.id,
        "start": utterance.offset,
        "duration": utterance.duration,
        "channel": channel,
        "supervisions": [
            {
                "id": utterance.id,
                "recording_id": utterance.audio_filepath.stem,
                "start": 0.0,
                "duration": utterance.duration,
                "channel": channel,
                **named,
                **({"custom": custom} if custom else {}),
            }
        ],
        "recording": {
            "id": utterance.audio_filepath.stem,
            "sources": [{"type": "file", "channels": channels, "source": source}],
            "sampling_rate": info.sample_rate,
            "num_samples": info.frames,
            "duration": info.duration,
            "channel_ids": channels,
        },
        "type": "MonoCut",
    }
