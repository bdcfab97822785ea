"""SpeechBrain's CSV: a row per utterance with ``ID``, ``duration`` (seconds), ``wav``, ``spk_id``, ``wrd``.

``start`` and ``stop``, in samples, cut a piece out of ``wav``; ``emo`` and ``label`` hold classes. ``$data_root`` and
``{data_root}`` in paths stand for a folder that the reader is told.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_adapters.data.audio import DURATION_TOLERANCE, audio_info
from speech_adapters.data.formats.tables import read_table
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import AudioError, ManifestError
from speech_adapters.files import write_text

_COLUMNS = {"id": "ID", "duration": "duration", "audio_filepath": "wav"}
_OPTIONAL = {"text": "wrd", "speaker": "spk_id", "emotion": "emo", "label": "label"}


def read(path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> Manifest:
    """The manifest of a CSV file.

    Args:
        root: what ``$data_root`` stands for, and where relative paths start; by default the table's folder.

    Raises:
        ManifestError: with the line: a missing column, or one of ``start`` and ``stop`` without the other.
    """
    path = Path(path)
    table = read_table(path, _COLUMNS, _OPTIONAL)
    return Manifest.from_entries(_entries(table, root), str(path), root or path.parent)


def _entries(table: Any, root: str | os.PathLike[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for (place, entry), (_, row) in zip(table.entries(), table.rows, strict=True):
        for name in ("start", "stop", "offset"):  # in samples
            entry.pop(name, None)
        audio = str(entry.get("audio_filepath", ""))
        for name in ("$data_root", "{data_root}"):
            if name in audio and root is None:
                raise ManifestError(f"{table.path}{place}: {audio} starts at {name}; say where that is with --root")
            audio = audio.replace(name, str(root))
        entry["audio_filepath"] = audio
        start, stop = row.get("start") or None, row.get("stop") or None
        if (start is None) != (stop is None):
            raise ManifestError(f"{table.path}{place}: start and stop belong together; fill in both or none")
        if start is not None and stop is not None:
            try:
                rate = audio_info(Path(root or table.path.parent, audio)).sample_rate
                entry |= {"offset": int(start) / rate, "duration": (int(stop) - int(start)) / rate}
            except ValueError as error:  # an AudioError is one
                told = error if isinstance(error, AudioError) else f"start {start!r}, stop {stop!r}: expected samples"
                raise ManifestError(f"{table.path}{place}: {told}") from error
        yield place, entry


def write(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write a CSV file with absolute paths; pieces of files get ``start`` and ``stop``, in samples.

    Raises:
        ManifestError: an utterance of one of several channels, which the format cannot name.
    """
    optional = {key: name for key, name in _OPTIONAL.items() if manifest.values(key)}
    infos = [audio_info(u.audio_filepath) for u in manifest]
    pieces = any(
        u.offset or info.duration - u.duration > DURATION_TOLERANCE for u, info in zip(manifest, infos, strict=True)
    )
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_COLUMNS.values(), *(("start", "stop") if pieces else ()), *optional.values()])
    for utterance, info in zip(manifest, infos, strict=True):
        if utterance.channel is not None:
            where = f"{manifest.name}: utterance {utterance.id!r}"
            raise ManifestError(f"{where}: one of several channels, which this format cannot name; write it to a file")
        row: list[Any] = [utterance.id, utterance.duration, utterance.audio_filepath]
        if pieces:
            ends = (utterance.offset, utterance.offset + utterance.duration)
            row += [round(seconds * info.sample_rate) for seconds in ends]
        writer.writerow([*row, *("" if (v := utterance.get(key)) is None else v for key in optional)])
    write_text(path, out.getvalue())
