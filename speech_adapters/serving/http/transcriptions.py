"""``POST /v1/audio/transcriptions``: the request and the answers of OpenAI's clients.

What has no meaning here is refused, or named in ``warnings``; docs/serving.md lists it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from pydantic import BeforeValidator, Field
from starlette.types import Receive, Scope, Send

from speech_adapters.heads.decoding import Segment
from speech_adapters.inference.formats import as_srt, as_vtt
from speech_adapters.inference.transcripts import Transcript, TranscriptSegment
from speech_adapters.serving.answers import transcribe
from speech_adapters.serving.http import errors
from speech_adapters.serving.http.errors import ApiError
from speech_adapters.serving.http.events import DONE, event
from speech_adapters.serving.http.fields import Channel, Fields, answer, check_once, headers, identity, load
from speech_adapters.serving.http.uploads import recordings
from speech_adapters.serving.served import Served

router = APIRouter(dependencies=[Depends(check_once)])

Parts = AsyncGenerator[list[TranscriptSegment] | Transcript]


_NO_SPEAKERS = "speakers are not told apart here; hear each channel with channel"


def _not_diarized(value: object) -> object:
    """Tell OpenAI's other formats from unknown words."""
    if value == "diarized_json":
        raise ValueError(_NO_SPEAKERS)
    return value


class TranscriptionFields(Fields):
    """OpenAI's fields, and ``channel``."""

    file: UploadFile
    language: str = Field("", max_length=20, description="ISO-639-1; returned in verbose_json, changes nothing")
    languages: list[str] = Field([], alias="languages[]", max_length=100)
    prompt: str = Field("", max_length=10_000, description="a CTC head has no use for it: the answer warns")
    keywords: list[str] = Field([], alias="keywords[]", max_length=1000)
    response_format: Annotated[
        Literal["json", "text", "srt", "verbose_json", "vtt"], BeforeValidator(_not_diarized)
    ] = "json"
    temperature: float = Field(0.0, description="only 0: the best path is taken, nothing is sampled")
    timestamp_granularities: list[Literal["word", "segment"]] = Field([], alias="timestamp_granularities[]")
    include: list[Literal["logprobs"]] = Field([], alias="include[]")
    stream: bool = False
    chunking_strategy: str = Field("auto", max_length=1000, description="only auto: cut in pauses")
    known_speaker_names: list[str] = Field([], alias="known_speaker_names[]")
    known_speaker_references: list[str] = Field([], alias="known_speaker_references[]")
    channel: Channel = None

    def check(self) -> list[str]:
        """What is asked and has no meaning here, as warnings.

        Raises:
            ApiError: what would change the answer and cannot be done.
        """
        verbose = self.response_format == "verbose_json"
        if self.temperature != 0:
            raise _refused("temperature", "choose 0: the best path is taken, nothing is sampled")
        if self.known_speaker_names or self.known_speaker_references:
            raise _refused("known_speaker_names[]", _NO_SPEAKERS)
        if self.chunking_strategy != "auto":
            raise _refused("chunking_strategy", "choose auto: the operator sets how recordings are cut")
        if self.keywords:
            raise _refused("keywords[]", "this server has no language model to weigh keywords with")
        if self.timestamp_granularities and not verbose:
            raise _refused("timestamp_granularities[]", "word and segment times are part of verbose_json")
        if self.include and self.response_format not in ("json", "verbose_json"):
            raise _refused("include[]", "logprobs are part of json and verbose_json")
        if self.stream and self.response_format in ("srt", "vtt"):
            raise _refused("stream", f"events carry text; ask for {self.response_format} without stream")
        return ["prompt: a CTC head has no use for it; it was left out"] if self.prompt.strip() else []


@router.post("/v1/audio/transcriptions", tags=["audio"], response_model=None)
async def create_transcription(
    request: Request, form: Annotated[TranscriptionFields, Form(media_type="multipart/form-data")]
) -> Response:
    """What is said in a recording, as text, with times, as subtitles, or as events while it is heard."""
    warnings = form.check()
    engine, loaded = await load(request, form.model)
    served, files = loaded.served, {"the audio": ("file", form.file)}
    async with AsyncExitStack() as stack:
        (recording,) = await stack.enter_async_context(recordings(engine, files, form.channel))
        parts = await stack.enter_async_context(aclosing(transcribe(engine, loaded, recording)))
        if not form.stream:
            transcript = None
            async for part in parts:
                transcript = part
            assert isinstance(transcript, Transcript), "the last part is the whole"
            return _whole(form, served, transcript, warnings)
        # what is wrong with a request shows before its first part: it is answered with a status, not with an event
        first = await anext(parts)
        later = stack.pop_all()
    return _Streamed(_events(form, served, first, parts, warnings), later, headers(served))


class _Streamed(StreamingResponse):
    """Events, and the context that they come from, which ends with the answer: also where the client goes away."""

    def __init__(self, events: AsyncGenerator[str], context: AsyncExitStack, said: Mapping[str, str]) -> None:
        unbuffered = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers={**said, **unbuffered})
        self.events, self.context = events, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.context, aclosing(self.events):
            await super().__call__(scope, receive, send)


def _whole(form: TranscriptionFields, served: Served, transcript: Transcript, warnings: list[str]) -> Response:
    texts = {"text": lambda t: t.text + "\n", "srt": as_srt, "vtt": as_vtt}
    if form.response_format in texts:
        kind = "text/vtt" if form.response_format == "vtt" else "text/plain"
        return PlainTextResponse(texts[form.response_format](transcript), headers=headers(served), media_type=kind)
    content: dict[str, Any] = {"text": transcript.text}
    if form.response_format == "verbose_json":
        content |= {"task": "transcribe", "language": form.language or "unknown", "duration": transcript.duration}
        asked = form.timestamp_granularities or ["segment"]
        if "segment" in asked:
            content["segments"] = [_verbose(number, one) for number, one in enumerate(transcript.segments)]
        if "word" in asked:
            content["words"] = [
                {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3),
                 "confidence": round(word.confidence, 4)}
                for word in transcript.words
            ]  # fmt: skip
    if form.include:
        content["logprobs"] = _logprobs(transcript.words)
    content["usage"] = {"type": "duration", "seconds": round(transcript.duration, 3)}
    if warnings:
        content["warnings"] = warnings
    return answer(served, content)


async def _events(
    form: TranscriptionFields,
    served: Served,
    part: list[TranscriptSegment] | Transcript,
    parts: Parts,
    warnings: list[str],
) -> AsyncGenerator[str]:
    try:
        number = 0
        while not isinstance(part, Transcript):
            for segment in part:
                delta: dict[str, Any] = {
                    "type": "transcript.text.delta",
                    "delta": " " * bool(number) + segment.text,
                }
                if form.include:
                    delta["logprobs"] = _logprobs(segment.words)
                yield event(delta)
                if form.response_format == "verbose_json":
                    times = {"start": round(segment.start, 3), "end": round(segment.end, 3)}
                    yield event(
                        {"type": "transcript.text.segment", "id": f"seg_{number}", **times, "text": segment.text,
                         "speaker": segment.speaker or ""}
                    )  # fmt: skip
                number += 1
            part = await anext(parts)
        done: dict[str, Any] = {"type": "transcript.text.done", "text": part.text, **identity(served)}
        if form.include:
            done["logprobs"] = _logprobs(part.words)
        done["usage"] = {"type": "duration", "seconds": round(part.duration, 3)}
        yield event(done | ({"warnings": warnings} if warnings else {}))
    except Exception as error:  # the status has been sent: what went wrong becomes the last event
        yield errors.last_events(errors.of(error))
    else:
        yield DONE


def _verbose(number: int, segment: TranscriptSegment) -> dict[str, Any]:
    """A segment as Whisper's are; what only a decoder has (tokens, its own doubts of speech) is empty or 0."""
    data = segment.text.encode()
    return {
        "id": number,
        "seek": 0,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(_log(segment.confidence), 4),
        "compression_ratio": round(len(data) / max(len(zlib.compress(data)), 1), 3),
        "no_speech_prob": 0.0,
    }


def _logprobs(words: Sequence[Segment]) -> list[dict[str, Any]]:
    return [
        {"token": word.text, "logprob": round(_log(word.confidence), 4), "bytes": list(word.text.encode())}
        for word in words
    ]


def _log(confidence: float) -> float:
    return math.log(max(confidence, 1e-12))


def _refused(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code="unsupported_parameter")
