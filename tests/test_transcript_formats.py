"""What we write, others read: subtitles by pysubs2, time marks and trn by their definitions."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from urllib.parse import unquote

import pysubs2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_adapters.heads.decoding import Segment
from speech_adapters.inference.formats import FORMATS, LEAST, LINES, LONGEST, WIDTH, cues
from speech_adapters.inference.transcripts import Transcript, TranscriptSegment


def transcript(*segments: tuple[float, str, str | None], name: str = "calls/call (2).wav") -> Transcript:
    """Segments that start at times, a word each 0.3 s for 0.2 s."""
    made = []
    for start, text, speaker in segments:
        words = tuple(
            Segment(word, start + 0.3 * place, start + 0.3 * place + 0.2, 0.5)
            for place, word in enumerate(text.split())
        )
        made.append(TranscriptSegment(text, words[0].start, words[-1].end, 0.5, words, speaker))
    return Transcript(name, max((s.end for s in made), default=0.0) + 5.0, tuple(made))


TALK = transcript((0.5, "HELLO YOU", "agent"), (1.2, "A & B <i> --> C", "customer"), (3661.25, "BYE", "agent"))


def test_text_and_json():
    assert FORMATS["text"][1](TALK).splitlines()[1] == "customer: A & B <i> --> C"
    read = json.loads(FORMATS["json"][1](TALK))
    assert read["text"] == TALK.text and read["duration"] == TALK.duration
    assert read["segments"][0]["words"][1] == {"text": "YOU", "start": 0.8, "end": 1.0, "confidence": 0.5}
    assert read["segments"][2]["speaker"] == "agent"


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_subtitles_are_read_by_others(name: str):
    written = FORMATS[name][1](TALK)
    events = pysubs2.SSAFile.from_string(written, format_=name).events
    assert [(event.start, event.end) for event in events] == [(500, 1500), (1200, 2900), (3661250, 3662250)]
    shown = [event.plaintext for event in events]
    assert "HELLO YOU" in shown[0] and "BYE" in shown[2]
    if name == "vtt":
        assert "<v customer>A &amp; B &lt;i&gt; --&gt; C" in written and written.startswith("WEBVTT\n\n")
        assert "\n01:01:01.250 --> 01:01:02.250\n" in written
    else:
        assert "customer: A & B <i> -> C" in written and "\n01:01:01,250 --> 01:01:02,250\n" in written
    assert FORMATS[name][1](transcript()) in ("", "WEBVTT\n")


words = st.text("abcdefghij", min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.lists(words, min_size=1, max_size=40), st.sampled_from([None, "a"])), max_size=5
    )
)
def test_any_text_is_shown_whole_in_readable_pieces(parts):
    start, segments = 0.0, []
    for pause, text, speaker in parts:
        segments.append((start + pause, " ".join(text), speaker))
        start += pause + 0.3 * len(text)
    made = transcript(*segments)
    shown = cues(made)
    assert "".join("".join(cue.lines) for cue in shown).replace(" ", "") == made.text.replace(" ", "")
    assert [cue.start for cue in shown] == sorted(cue.start for cue in shown)
    for cue in shown:
        assert cue.start < cue.end and len(cue.lines) <= LINES and max(map(len, cue.lines)) <= WIDTH
        assert cue.end - cue.start <= 1000 * max(LONGEST, LEAST)
    for speaker in (None, "a"):
        assert all(one.end <= other.start for one, other in pairwise(c for c in shown if c.speaker == speaker))
    for name in ("srt", "vtt"):
        events = pysubs2.SSAFile.from_string(FORMATS[name][1](made), format_=name).events
        assert [(e.start, e.end) for e in events] == [(cue.start, cue.end) for cue in shown]


def test_time_marks_and_trn():
    rows = [line.split() for line in FORMATS["ctm"][1](TALK).splitlines()]
    assert all(len(row) == 6 and unquote(row[0]) == "call (2)" for row in rows)
    assert [row[1] for row in rows] == ["agent"] * 3 + ["customer"] * 6
    assert [(float(row[2]), float(row[3]), row[4], float(row[5])) for row in rows[:2]] == [
        (0.5, 0.2, "HELLO", 0.5), (0.8, 0.2, "YOU", 0.5),
    ]  # fmt: skip
    assert "1" in FORMATS["ctm"][1](transcript((0.0, "A", None))).split()
    lines = FORMATS["trn"][1](TALK).splitlines()
    read = [re.fullmatch(r"(.*) \(([^()\s]+)-([^()\s]+)\)", line).groups() for line in lines]
    assert [(text, speaker, unquote(name)) for text, speaker, name in read] == [
        ("HELLO YOU BYE", "agent", "call (2)"), ("A & B <i> --> C", "customer", "call (2)"),
    ]  # fmt: skip
    assert FORMATS["trn"][1](transcript(name="a.wav")) == " (unknown-a)\n"


def test_symbols_that_are_no_words_stand_together():
    symbols = tuple(Segment(symbol, 0.1 * place, 0.1 * place + 0.1, 0.9) for place, symbol in enumerate("你好吗"))
    made = Transcript("a.wav", 2.0, (TranscriptSegment("你好吗", 0.0, 0.3, 0.9, symbols),))
    assert cues(made)[0].lines == ("你好吗",)
