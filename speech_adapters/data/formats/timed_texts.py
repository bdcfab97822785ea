"""Texts with times beside long recordings: subtitles (SubRip, WebVTT) and Audacity's labels.

::

    1                                                                   0.000000	3.275000	Good morning.
    00:00:00,000 --> 00:00:03,275                                       3.900000	5.120000	How are you?
    Good morning.

Each subtitle, or label, is an utterance. Tags go, those without text too; WebVTT's ``<v Anna>`` tells the speaker.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_adapters.data.text_files import read_utf8
from speech_adapters.errors import ManifestError

SUFFIXES = (".txt", ".srt", ".vtt")
"""Of files beside a recording that tell what is said in it; Audacity's labels are ``.txt``, as a plain text is."""

_ARROW = "-->"
_TIME = r"(?:(\d+):)?(\d+):(\d+)(?:[.,](\d+))?"
_CUE = re.compile(rf"\s*{_TIME}\s*{_ARROW}\s*{_TIME}(?:\s.*)?")
_LABEL = re.compile(r"(\d+(?:[.,]\d+)?)\t(\d+(?:[.,]\d+)?)(?:\t(.*))?")
_VOICE = re.compile(r"<v(?:\.\S+)?\s+([^>]+)>")
_ROLLING = re.compile(r"<[\d:.]+>")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")


def read_texts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, entry) of each utterance, the keys those of a manifest; of a plain text the one for the whole recording,
    without a place.

    Raises:
        ManifestError: with the line, one that breaks the format.
    """
    lines = read_utf8(path, "transcript").splitlines()
    if path.suffix.lower() != ".txt":
        return _subtitles(path, lines)
    if _LABEL.fullmatch(next(filter(str.strip, lines), "")):
        return _labels(path, lines)
    return iter([("", {"text": " ".join(" ".join(lines).split())})])


def _labels(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("\\\t"):  # the latter is a label's range of frequencies
            continue
        if (found := _LABEL.fullmatch(line)) is None:
            raise ManifestError(
                f"{path}:{number}: expected a label of Audacity's: start, end and text, parted by tabs"
            )
        start, end, text = found.groups(default="")
        if text.strip():
            times = (float(time.replace(",", ".")) for time in (start, end))
            yield f":{number}", dict(zip(("offset", "end"), times, strict=True)) | {"text": " ".join(text.split())}


def _subtitles(path: Path, lines: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    left, web = iter(enumerate(lines, 1)), path.suffix.lower() == ".vtt"
    for number, line in left:
        if _ARROW not in line:  # a number, or WebVTT's header, names and comments
            if not web and line.strip() and not line.strip().isdecimal():
                raise ManifestError(
                    f"{path}:{number}: {line.strip()[:40]!r} stands outside of a subtitle; remove the blank "
                    "line before it, or give it times"
                )
            continue
        if (found := _CUE.fullmatch(line)) is None:
            raise ManifestError(f"{path}:{number}: expected times such as 00:01:02,500 {_ARROW} 00:01:04,000")
        said = []
        for at, more in left:
            if not (more if web else more.strip()):
                break
            if web and _ROLLING.search(more):
                raise ManifestError(
                    f"{path}:{at}: captions that roll, with times within the text: each repeats the one before; "
                    "export subtitles that do not"
                )
            if _ARROW in more:
                raise ManifestError(
                    f"{path}:{at}: times within a subtitle's text; put a blank line before the subtitle"
                )
            said.append(more)
        times = found.groups(default="0")
        entry: dict[str, Any] = {"offset": _seconds(*times[:4]), "end": _seconds(*times[4:])}
        text = " ".join(said)
        if len(voices := set(_VOICE.findall(text))) == 1:
            entry["speaker"] = voices.pop().strip()
        text = _TAG.sub("", text)
        if text := " ".join((html.unescape(text) if web else text).split()):
            yield f":{number}", entry | {"text": text}


def _seconds(hours: str, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{int(seconds)}.{fraction}")
