"""Where verbs write one file per recording, checked before anything is heard."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from speech_adapters.errors import ConfigError, InputError


def check_formats(given: str, known: Sequence[str], output: str | None) -> list[str]:
    """The formats of ``a,b``. Raises ConfigError for an unknown one, or for several without a folder."""
    formats = [name.strip() for name in given.split(",")]
    for name in formats:
        if name not in known:
            raise ConfigError(
                f"--format {name!r} is unknown: choose {', '.join(known)}, or several: {known[1]},{known[0]}"
            )
    if len(formats) > 1 and output is None:
        raise ConfigError(f"--format {given}: several formats need a folder: --output FOLDER.")
    return formats


def check_place(folder: Path) -> None:
    """Raise an InputError where a folder cannot be made or written, before anything is computed for it."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{folder}: {there} is a file, not a folder; choose another --output.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: {there} cannot be written; choose another --output, or mend its permissions.")


def outputs(
    folder: str | None, names: Sequence[str], suffixes: Sequence[str], *, overwrite: bool
) -> dict[str, list[Path]]:
    """Name of each recording -> its file per suffix: the recording's own name in ``folder``; where two have the same,
    all lie there as they lie below the folder that they share.

    Raises:
        ConfigError: two recordings of one name in one folder, or a file that is there already.
        InputError: a folder that cannot be written.
    """
    if folder is None:
        return {}
    check_place(Path(folder))
    stems = {name: PurePath(name).stem for name in names}
    if len(set(stems.values())) < len(names):
        stems = _below_shared_folder(names)
    stem, count = Counter(stems.values()).most_common(1)[0]
    if count > 1:
        alike = [name for name in names if stems[name] == stem]
        raise ConfigError(f"{alike[0]} and {alike[1]} would both be written to {stem}{suffixes[0]}; hear them apart.")
    places = {name: [Path(folder) / f"{stem}{suffix}" for suffix in suffixes] for name, stem in stems.items()}
    there = [path for paths in places.values() for path in paths if path.exists()]
    if there and not overwrite:
        raise ConfigError(
            f"{there[0]} is there already ({len(there)} in all); choose another --output, or --overwrite."
        )
    return places


def _below_shared_folder(names: Sequence[str]) -> dict[str, str]:
    """Name of each recording -> its path from the folder that all of them share, without suffix."""
    paths = {name: os.path.abspath(name) for name in names}
    shared = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    return {name: str(PurePath(os.path.relpath(path, shared)).with_suffix("")) for name, path in paths.items()}
