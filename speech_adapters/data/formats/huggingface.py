"""Local folders of Hugging Face ``datasets``.

``audiofolder``: audio files under a ``metadata.csv`` or ``metadata.jsonl`` with the column ``file_name``, or in one
folder per class. ``save_to_disk`` folders (``data-*.arrow``) and parquet files, whose audio stands in the tables, need
pyarrow: ``pip install 'speech-adapters[datasets]'``; their audio is written to files of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speech_adapters.data.audio import write_audio
from speech_adapters.data.audio_suffixes import recordings_in, unreadable_message
from speech_adapters.data.formats.columns import match_columns
from speech_adapters.data.formats.names import distinct_names
from speech_adapters.data.formats.tables import read_table
from speech_adapters.data.manifest import TEXT_KEYS, Manifest
from speech_adapters.errors import ConfigError, ManifestError
from speech_adapters.files import atomic, new_folder, read_json_lines, write_text


def read(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    audio: str | os.PathLike[str] | None = None,
) -> Manifest:
    """The manifest of a folder (or parquet file) of one of the three kinds.

    Args:
        columns: key of the manifest -> column, where the column's name does not tell.
        audio: folder for audio that stands in tables; needed where it does.

    Raises:
        ManifestError: none of the three kinds, a column that is missing, audio without bytes and without a file.
        ConfigError: pyarrow is missing, or ``audio`` where it is needed.
    """
    path = Path(path)
    said = dict(columns or {})
    metadata = [file for name in ("metadata.csv", "metadata.jsonl") for file in sorted(path.rglob(name))]
    if metadata:
        return _sum([_audiofolder(file, said) for file in metadata])
    tables = [path] if path.is_file() else sorted((*path.rglob("*.arrow"), *path.rglob("*.parquet")))
    if tables:
        if audio is None:
            raise ConfigError(f"{path}: its audio stands in the tables; name a folder to write it to with --audio")
        return Manifest.from_entries(list(_of_tables(tables, said, Path(audio))), str(path), audio)
    return _folder_per_class(path)


def _sum(manifests: list[Manifest]) -> Manifest:
    return sum(manifests[1:], manifests[0])


def write(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Write an audiofolder: each utterance as a WAV file of its own (16 kHz, 16 bit) under ``metadata.jsonl``.

    Raises:
        ManifestError: two ids that are one as a file's name.
    """
    lines = []
    names = distinct_names(manifest, lambda utterance: f"audio/{utterance.id.replace('/', '-')}.wav")
    with new_folder(path) as folder:
        (folder / "audio").mkdir()
        for utterance, name in zip(manifest, names, strict=True):
            write_audio(folder / name, utterance.waveform(), loud="scale")
            labels = {key: value for key in TEXT_KEYS if (value := utterance.get(key)) is not None}
            entry = {**utterance.extra, "file_name": name, "id": utterance.id, **labels}
            lines.append(json.dumps(entry, ensure_ascii=False))
        write_text(folder / "metadata.jsonl", (line + "\n" for line in lines))


def _audiofolder(metadata: Path, said: dict[str, str]) -> Manifest:
    if metadata.suffix == ".csv":
        table = read_table(metadata, said)
        return Manifest.from_entries(table.entries(), str(metadata), metadata.parent)
    rows = read_json_lines(metadata)
    names = list(dict.fromkeys(key for row in rows for key in row))
    found = match_columns(names, said, str(metadata))
    entries = [(f":{n}", _named(row, found)) for n, row in enumerate(rows, 1)]
    return Manifest.from_entries(entries, str(metadata), metadata.parent)


def _named(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a manifest, and other columns with plain values under their own names."""
    others = {
        name: value
        for name, value in row.items()
        if name not in columns.values() and name not in columns and isinstance(value, str | int | float | bool)
    }
    return others | {key: row[name] for key, name in columns.items() if row.get(name) not in (None, "")}


def _folder_per_class(path: Path) -> Manifest:
    files, unreadable = recordings_in(path)
    if unreadable:
        raise ManifestError(unreadable_message(unreadable, path))
    if not files or any(file.parent == path for file in files):
        raise ManifestError(
            f"{path}: no metadata.csv, no metadata.jsonl, no .arrow or .parquet files and no folder per class; check "
            "the path"
        )
    entries = [
        (f": {file.relative_to(path)}", {"audio_filepath": str(file.absolute()), "label": file.parent.name,
                                         "id": "-".join(file.relative_to(path).with_suffix("").parts)})
        for file in files
    ]  # fmt: skip
    return Manifest.from_entries(entries, str(path), path)


def _of_tables(tables: list[Path], said: dict[str, str], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for path in tables:
        table = _table(path)
        classes = _class_names(table.schema.metadata or {})
        found = match_columns(table.column_names, said, str(path))
        for row in table.to_pylist():
            entry = _named(row, found)
            for key, name in {**{name: name for name in row}, **found}.items():
                if key in entry and name in classes and isinstance(row[name], int):
                    if (label := _class(classes[name], row[name], f"{path}, row {number + 1}: {name}")) is None:
                        del entry[key]
                    else:
                        entry[key] = label
            entry["audio_filepath"] = _audio_file(
                entry.get("audio_filepath"), folder, number, f"{path}, row {number + 1}"
            )
            yield f", row {number + 1}", entry
            number += 1


def _class(names: list[str], number: int, what: str) -> str | None:
    """The name of a class; None for -1, by which datasets says that there is none. Raises ManifestError."""
    if not -1 <= number < len(names):
        raise ManifestError(f"{what} is {number}; its classes are 0 to {len(names) - 1}, and -1 for none")
    return None if number == -1 else names[number]


def _table(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{path}: pyarrow reads it; pip install 'speech-adapters[datasets]'") from None
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        with pyarrow.memory_map(str(path)) as source:
            return pyarrow.ipc.open_stream(source).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise ManifestError(f"{path}: cannot be read ({str(error).splitlines()[0]}); get it again") from error


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of its classes, which the tables number."""
    described = json.loads(metadata.get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {})
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and "names" in feature
    }


def _audio_file(value: Any, folder: Path, number: int, where: str) -> str:
    """The path of a row's audio, whose bytes are written to ``folder`` where they stand in the table."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.get("bytes"):
        named = Path(value.get("path") or "").name
        file = (folder / (f"{number:06d}-{named}" if named else f"{number:06d}.wav")).absolute()
        with atomic(file) as out:
            out.write(value["bytes"])
        return str(file)
    if isinstance(value, dict) and value.get("path"):
        return str(value["path"])
    raise ManifestError(f"{where}: no audio, neither bytes nor a path")
