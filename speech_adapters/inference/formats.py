"""Transcripts in the formats that other tools open.

    text   a line per segment, the speaker in front where there are several
    json   all there is: segments, words, times in seconds, confidences
    srt    SubRip subtitles; vtt: WebVTT, with the speaker as its voice
    ctm    NIST's time marks, one word per line: file, channel, start, duration, word, confidence
    trn    what sclite scores: the text and (id) on one line

Subtitles show at most two lines of 42 characters for at most 7 seconds, and stay for a second where the next leaves
room: CTC marks where words begin and hardly where they end.
"""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePath

from speech_adapters.heads.decoding import Segment
from speech_adapters.inference.transcripts import Transcript, TranscriptSegment
from speech_adapters.metrics.wer import sclite_name, trn_line

WIDTH, LINES, LONGEST, LEAST = 42, 2, 7.0, 1.0
"""Characters of a subtitle's line (Netflix's and the BBC's guides agree within a few), its lines, and the most and
least seconds that it is shown."""


@dataclass(frozen=True)
class Cue:
    """One subtitle: what is shown from ``start`` to ``end``, in milliseconds."""

    start: int
    end: int
    lines: tuple[str, ...]
    speaker: str | None


def cues(transcript: Transcript) -> list[Cue]:
    """The subtitles of a transcript, by their starts; those of one speaker do not overlap."""
    found = [cue for segment in transcript.segments for cue in _cues(segment)]
    found.sort(key=lambda cue: (cue.start, cue.end))
    following: dict[str | None, int] = {}
    timed = []
    for cue in reversed(found):
        room = following.get(cue.speaker, max(round(transcript.duration * 1000), cue.end))
        end = min(max(cue.end, cue.start + round(LEAST * 1000)), room)
        following[cue.speaker] = cue.start
        timed.append(replace(cue, end=max(end, cue.start + 1)))
    return timed[::-1]


def _cues(segment: TranscriptSegment) -> Iterator[Cue]:
    # Where words are not told apart, each symbol is one, and nothing stands between them.
    space = " " if segment.text == " ".join(word.text for word in segment.words) else ""

    def wrapped(words: list[Segment]) -> list[str]:
        return textwrap.wrap(space.join(word.text for word in words), WIDTH, break_on_hyphens=False)

    def cue(words: list[Segment]) -> Cue:
        return Cue(round(words[0].start * 1000), round(words[-1].end * 1000), tuple(wrapped(words)), segment.speaker)

    words: list[Segment] = []
    for word in segment.words:
        together = [*words, word]
        if words and (len(wrapped(together)) > LINES or word.end - words[0].start > LONGEST):
            yield cue(words)
            together = [word]
        words = together
    yield cue(words)


def as_text(transcript: Transcript) -> str:
    """A line per segment."""
    return "".join(f"{_named(segment.speaker)}{segment.text}\n" for segment in transcript.segments)


def as_json(transcript: Transcript) -> str:
    """One JSON object, on one line."""
    return json.dumps(transcript.to_dict(), ensure_ascii=False) + "\n"


def as_srt(transcript: Transcript) -> str:
    """Numbered cues; an arrow in the text would end it, so that it is written as a short one."""
    blocks = []
    for number, cue in enumerate(cues(transcript), start=1):
        lines = "\n".join(cue.lines).replace("-->", "->")
        blocks.append(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_named(cue.speaker)}{lines}\n")
    return "\n".join(blocks)


def as_vtt(transcript: Transcript) -> str:
    """Cues with ``&``, ``<`` and ``>`` escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript):
        voice = "" if cue.speaker is None else f"<v {html.escape(cue.speaker, quote=False)}>"
        lines = html.escape("\n".join(cue.lines), quote=False)
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{voice}{lines}\n")
    return "\n".join(blocks)


def as_ctm(transcript: Transcript) -> str:
    """One word per line; the channel is the speaker, or 1. Names that a field cannot hold are percent-encoded."""
    rows = []
    for segment in transcript.segments:
        channel = sclite_name(segment.speaker or "1")
        rows += [
            (channel, word.start, f"{word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.4f}")
            for word in segment.words
        ]
    name = sclite_name(identity(transcript))
    return "".join(f"{name} {channel} {row}\n" for channel, _, row in sorted(rows, key=lambda row: row[:2]))


def as_trn(transcript: Transcript) -> str:
    """The whole text and (speaker-name), a line per speaker: see :func:`~speech_adapters.metrics.wer.write_trn`."""
    texts: dict[str | None, list[str]] = {}
    for segment in transcript.segments:
        texts.setdefault(segment.speaker, []).append(segment.text)
    spoken = texts or {None: []}
    return "".join(trn_line(" ".join(said), identity(transcript), speaker) for speaker, said in spoken.items())


def identity(transcript: Transcript) -> str:
    """The name of the recording, without folders and suffix."""
    return PurePath(transcript.name).stem


FORMATS: dict[str, tuple[str, Callable[[Transcript], str]]] = {
    "text": (".txt", as_text),
    "json": (".json", as_json),
    "srt": (".srt", as_srt),
    "vtt": (".vtt", as_vtt),
    "ctm": (".ctm", as_ctm),
    "trn": (".trn", as_trn),
}
"""Suffix and writer of each format."""


def _named(speaker: str | None) -> str:
    return "" if speaker is None else f"{speaker}: "


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"
