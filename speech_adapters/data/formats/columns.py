"""Which column of somebody's table is which key of a manifest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Mapping, Sequence

from speech_adapters.errors import ManifestError

NAMES: dict[str, tuple[str, ...]] = {
    "audio_filepath": (
        "audio_filepath", "audio", "path", "file", "filename", "file_name", "filepath", "file_path", "wav", "wav_path",
        "audio_path", "audio_file", "recording",
    ),
    "text": ("text", "transcript", "transcription", "sentence", "normalized_text", "wrd", "words", "utterance"),
    "speaker": ("speaker", "speaker_id", "spk_id", "spk", "client_id", "speakerid"),
    "emotion": ("emotion", "emo"),
    "label": ("label", "class", "intent", "keyword", "category"),
    "domain": ("domain",),
    "lang": ("lang", "language", "locale"),
    "offset": ("offset", "start", "start_time", "begin"),
    "duration": ("duration", "dur", "length_seconds"),
    "channel": ("channel",),
    "id": ("id", "utt_id", "utterance_id", "uttid"),
    "end": ("end", "stop", "end_time"),
}  # fmt: skip
"""Key -> the names that tools and people give its column; case does not count. ``end`` is no key of a manifest: beside
an offset it tells the duration, where no column does."""


def value_of(key: str, text: str) -> str | int:
    """What a manifest holds of a cell: its text, in one line, but for the number of a channel."""
    return int(text) if key == "channel" and text.isdecimal() else one_line(text)


def one_line(text: str) -> str:
    """A cell's text without the line ends that people put into it."""
    return " ".join(map(str.strip, re.split(r"[\r\n]+", text.strip())))


def check_distinct(names: Sequence[str], where: str) -> None:
    """ManifestError, opened by ``where``, if two columns have the same name: one would be read in place of the other.
    Columns without a name do not count."""
    for number, name in enumerate(names):
        if name and name in names[:number]:
            raise ManifestError(f"{where}: two columns are called {name!r}; rename one of them, or remove it")


def zeros_lost(name: str, known: Container[str]) -> str:
    """Of a name that is unknown, what to do where one of the known ones is the same number with zeros in front."""
    if not name.isdecimal():
        return ""
    longer = (name.rjust(length, "0") for length in range(len(name) + 1, 20))
    first = next((one for one in longer if one in known), None)
    lost = "spreadsheets drop the zeros in front; give that column the format of text before it is filled"
    return "" if first is None else f" ({first!r} is there: {lost})"


def match_columns(names: Sequence[str], said: Mapping[str, str], where: str) -> dict[str, str]:
    """Key -> column: what was said, and what is known by its name.

    Args:
        names: the columns there. said: key -> column, which goes first.
        where: opens the errors.

    Raises:
        ManifestError: an unknown key, a column that is not there, two that could hold the same key, none that names
            the audio.
    """
    shown = ", ".join(map(repr, names))
    for key, column in said.items():
        own = key == column and not any(key in names for names in NAMES.values())  # said under its own name
        if key not in NAMES and not own:
            raise ManifestError(
                f"{where}: --columns {key}={column}: {key!r} is not a key that a table can have; {_nearest(key)} "
                "(a column that is not named here keeps its own name)"
            )
        if column not in names:
            raise ManifestError(f"{where}: no column {column!r} for {key}; there are {shown}")
    found = dict(said)
    for key, known in NAMES.items():
        fitting = [name for name in names if name.strip().lower() in known and name not in said.values()]
        if key in found or not fitting or (key == "end" and ("offset" not in found or "duration" in found)):
            continue
        if len(fitting) > 1:
            raise ManifestError(
                f"{where}: {' and '.join(map(repr, fitting))} could both hold {key}; say which, such as "
                f"--columns {key}={fitting[0]}"
            )
        found[key] = fitting[0]
    if "audio_filepath" not in found:
        raise ManifestError(
            f"{where}: no column names the audio files; there are {shown}: say which, such as "
            f"--columns audio_filepath={names[0] if names else 'COLUMN'}"
        )
    return found


def _nearest(key: str) -> str:
    """The key that an unknown one stands for: what tools call a column is often taken for the key."""
    keys = {name: known for known, names in NAMES.items() for name in names}
    close = difflib.get_close_matches(key.lower(), keys, n=1)
    return f"did you mean {keys[close[0]]!r}?" if close else f"there are {', '.join(NAMES)}"
