"""Transcripts of recordings of any length: text, words and segments with times and confidences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.windows import Window, Windows
from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.heads.decoding import BeamSearch, Segment, align, timed_text
from speech_adapters.inference.hearing import Collector, Heard, Model, active_head, hear_each
from speech_adapters.inference.recordings import LeftOut, Recording, leave_out


@dataclass(frozen=True)
class TranscriptSegment:
    """What is said between two pauses, ``start`` and ``end`` in seconds of the recording.

    ``confidence`` is the geometric mean of those of its words (:class:`~speech_adapters.heads.decoding.Segment`), from
    0 to 1; it ranks what to listen to again, and is no probability of being right.
    """

    text: str
    start: float
    end: float
    confidence: float
    words: tuple[Segment, ...]
    speaker: str | None = None


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording called ``name`` of ``duration`` seconds; segments in order of time."""

    name: str
    duration: float
    segments: tuple[TranscriptSegment, ...]

    @property
    def text(self) -> str:
        """All of it, on one line."""
        return " ".join(segment.text for segment in self.segments)

    @property
    def words(self) -> tuple[Segment, ...]:
        """The words of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)

    def to_dict(self) -> dict[str, Any]:
        """What the JSON output holds; times in seconds, to the millisecond."""
        return {
            "name": self.name,
            "duration": round(self.duration, 3),
            "text": self.text,
            "segments": [
                {
                    **({} if segment.speaker is None else {"speaker": segment.speaker}),
                    **_plain(segment),
                    "words": [_plain(word) for word in segment.words],
                }
                for segment in self.segments
            ],
        }


def transcribe(
    model: Model,
    recordings: Iterable[Sequence[Recording]],
    windows: Windows | None = None,
    *,
    beam: BeamSearch | None = None,
    left_out: LeftOut | None = None,
    **options: Any,
) -> Iterator[Transcript]:
    """The transcript of each file, in order, as soon as it is there, by the active CTC head.

    Args:
        recordings: of each file, its channels: see :func:`~speech_adapters.inference.recordings.recordings_of`.
        windows: how recordings are cut.
        beam: a beam search; the best path without one.
        left_out: takes in the recordings that cannot be read; of such a file no channel is written down.
        options: of :func:`~speech_adapters.inference.hearing.hear_each`.

    Raises:
        ConfigError: the active head is no CTC head.
        AudioError: without ``left_out``, a recording that cannot be read.
    """
    head, windows = model.head, windows or Windows()
    if not isinstance(head, CTCHeadModule):
        raise ConfigError(
            f"transcribing needs a CTC head, and {active_head(model)} is active; give an adapter that was "
            "trained to recognise (in Python: load_head, SpeechAdapterModel.from_adapter or set_head)."
        )
    files = list(recordings)
    channels = [recording for file in files for recording in file]

    def collector(recording: Recording) -> Transcriber:
        return Transcriber(head, model.feature_stride, recording, windows.pause, beam)

    found = hear_each(model, channels, collector, windows, **options)
    for file in files:
        parts = []
        for recording, part in [(recording, next(found)) for recording in file]:
            if isinstance(part, AudioError):
                leave_out(left_out, recording.name, part, recording.speaker)
            else:
                parts.append(part)
        if len(parts) < len(file):
            continue
        segments = sorted((s for part in parts for s in part.segments), key=lambda s: (s.start, s.end))
        yield Transcript(parts[0].name, max(part.duration for part in parts), tuple(segments))


class Transcriber(Collector[Transcript]):
    """Decodes a recording stretch by stretch: at its pauses, or where the best path is silent for as long.

    Attributes:
        segments: what has been taken down so far.
    """

    #: Frames after which a stretch without pauses is searched for a silence in the best path, to bound memory.
    LONGEST = 3000

    def __init__(
        self, head: CTCHeadModule, stride: int, recording: Recording, pause: float, beam: BeamSearch | None
    ) -> None:
        self.vocabulary, self.stride, self.recording, self.beam = head.config.vocabulary, stride, recording, beam
        self.seconds = stride / SAMPLE_RATE
        self.pause = max(round(pause / self.seconds), 1)
        self.parts: list[Tensor] = []
        self.first, self.frames = 0, 0  # of the parts
        self.segments: list[TranscriptSegment] = []

    def add(self, window: Window, heard: Heard) -> None:
        assert heard.logits is not None, "a CTC head gives them"
        first = window.first_frame(self.stride)
        if first != self.first + self.frames:
            self._decode(last=True)
            self.first, self.frames = first, 0
        self.parts.append(heard.logits.log_softmax(-1))
        self.frames += len(heard.logits)
        if self.frames > self.LONGEST:
            self._decode(last=False)

    def result(self, duration: float) -> Transcript:
        self._decode(last=True)
        return Transcript(self.recording.name, duration, tuple(self.segments))

    def _decode(self, last: bool) -> None:
        """Take down what has been said; without ``last``, up to the last silence."""
        if not self.parts:
            return
        log_probs = torch.cat(self.parts)
        cuts = self._silences(log_probs)
        ends = [*cuts, len(log_probs)] if last else cuts
        start = 0
        for end in ends:
            self._take_down(log_probs[start:end], self.first + start)
            start = end
        rest = log_probs[start:]
        self.parts = [rest] if len(rest) else []
        self.first, self.frames = self.first + start, len(rest)

    def _silences(self, log_probs: Tensor) -> list[int]:
        """The middles of runs in which the best path says nothing for as long as a pause, at a word's end."""
        ids, spelled = log_probs.argmax(-1).numpy(), self.vocabulary.spelled
        quiet = np.isin(ids, [place for place, text in enumerate(spelled) if not text.strip()])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8))).reshape(-1, 2)

        def ends_word(begin: int, end: int) -> bool:
            run = "".join(spelled[symbol] for symbol in ids[begin : end + 1])
            return run.startswith(" ") or not self.vocabulary.has_words

        return [
            int(begin + end) // 2
            for begin, end in edges
            if end - begin >= self.pause and begin > 0 and end < len(ids) and ends_word(begin, end)
        ]

    def _take_down(self, log_probs: Tensor, first: int) -> None:
        if self.beam is None:
            path = log_probs.argmax(-1).numpy()
        else:
            lengths = torch.tensor([len(log_probs)])
            path = align(log_probs, self.beam.tokens(log_probs[None], lengths)[0], self.vocabulary.blank_id)
        along = log_probs.numpy()[np.arange(len(path)), path].astype(np.float64)
        timed = timed_text(path, along, self.vocabulary, self.seconds)
        if timed.words:
            offset = first * self.seconds
            words = tuple(replace(w, start=w.start + offset, end=w.end + offset) for w in timed.words)
            mean = math.exp(sum(math.log(max(word.confidence, 1e-12)) for word in words) / len(words))
            speaker = self.recording.speaker
            self.segments.append(TranscriptSegment(timed.text, words[0].start, words[-1].end, mean, words, speaker))


def _plain(segment: Segment | TranscriptSegment) -> dict[str, Any]:
    times = {"start": round(segment.start, 3), "end": round(segment.end, 3)}
    return {"text": segment.text, **times, "confidence": round(segment.confidence, 4)}
