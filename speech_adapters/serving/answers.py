"""From what the engine hears to what clients ask: transcripts, classes, embeddings, verifications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import torch
from torch import Tensor

from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.inference.hearing import Collector, Stitched
from speech_adapters.inference.recordings import Recording
from speech_adapters.inference.transcripts import Transcriber, Transcript, TranscriptSegment
from speech_adapters.inference.utterances import (
    Classification,
    Verification,
    classification_of,
    embedding_of,
    verify,
)
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.model_output import ModelOutput
from speech_adapters.serving.catalog import UnsupportedTask
from speech_adapters.serving.engine import Engine, Source
from speech_adapters.serving.residents import Loaded
from speech_adapters.serving.served import Served


async def transcribe(
    engine: Engine, loaded: Loaded, recording: Recording
) -> AsyncGenerator[list[TranscriptSegment] | Transcript]:
    """New segments as soon as they are final, and at last the whole transcript.

    Raises:
        UnsupportedTask: a model without a CTC head. AudioError, CheckpointError: see :meth:`Engine.hear`.
    """
    check_task(loaded.served, "transcription")
    source = Source(recording, engine.settings.max_seconds)
    head = loaded.heads["transcription"]
    assert isinstance(head, CTCHeadModule), "the catalog looked"
    pause = engine.settings.windows.pause
    collector = Transcriber(head, engine.frames(loaded).feature_stride, recording, pause, None)
    told = 0
    async with aclosing(engine.hear(loaded, "transcription", source)) as windows:
        async for window, heard in windows:
            await engine.in_decoder(collector.add, window, heard)
            if len(collector.segments) > told:
                yield collector.segments[told:]
                told = len(collector.segments)
    transcript = await engine.in_decoder(collector.result, source.duration)
    if len(collector.segments) > told:
        yield collector.segments[told:]
    yield transcript


async def whole_transcript(engine: Engine, loaded: Loaded, recording: Recording) -> Transcript:
    """The transcript at once; errors of :func:`transcribe`."""
    found = None
    async with aclosing(transcribe(engine, loaded, recording)) as parts:
        async for part in parts:
            found = part
    assert isinstance(found, Transcript), "the last part is the whole"
    return found


async def classify(engine: Engine, loaded: Loaded, recording: Recording) -> tuple[Classification, float]:
    """The class of a recording, and its duration in seconds.

    Raises:
        UnsupportedTask: a model without a head of classes. AudioError: no speech; see also :meth:`Engine.hear`.
    """
    check_task(loaded.served, "classification")
    output, duration = await stitched(engine, loaded, "classification", recording)
    return classification_of(loaded.heads["classification"].config, output, recording), duration


async def embed(engine: Engine, loaded: Loaded, recording: Recording) -> tuple[Tensor, float]:
    """(E,) the speaker head's embedding of a recording, or (F,) the mean of the features of a model without one, and
    the recording's duration in seconds.

    Raises:
        AudioError: no speech; see also :meth:`Engine.hear`.
    """
    output, duration = await stitched(engine, loaded, "embedding" if "embedding" in loaded.heads else None, recording)
    return embedding_of(output), duration


async def verify_speaker(
    engine: Engine, loaded: Loaded, enrolment: Sequence[Recording], test: Recording
) -> tuple[Verification, float]:
    """Whether ``test`` is of the speaker of ``enrolment``, and the seconds heard.

    Raises:
        UnsupportedTask: a model without a speaker head. AudioError: see :func:`embed`.
    """
    check_task(loaded.served, "verification")
    try:
        async with asyncio.TaskGroup() as group:  # which ends all of them with the first that fails
            tasks = [group.create_task(embed(engine, loaded, recording)) for recording in (*enrolment, test)]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    found = [task.result() for task in tasks]
    *enrolled, tested = [embedding for embedding, _ in found]
    calibration: Calibration | None = getattr(loaded.heads["embedding"].config, "calibration", None)
    return verify(torch.stack(enrolled), tested, calibration), sum(duration for _, duration in found)


async def stitched(
    engine: Engine, loaded: Loaded, task: str | None, recording: Recording
) -> tuple[ModelOutput, float]:
    """A whole recording's output, as :class:`~speech_adapters.inference.hearing.Stitched` puts it together, and its
    duration in seconds."""
    source = Source(recording, engine.settings.max_seconds)
    head = None if task is None else loaded.heads[task]
    collector: Collector[ModelOutput] = Stitched(engine.frames(loaded), head, recording, engine.settings.windows)
    async with aclosing(engine.hear(loaded, task, source)) as windows:
        async for window, heard in windows:
            collector.add(window, heard)
    return collector.result(source.duration), source.duration


def check_task(served: Served, task: str) -> None:
    """Raise UnsupportedTask for what a model cannot be asked."""
    if task not in served.tasks:
        raise UnsupportedTask(f"the model {served.name!r} does no {task}; it does: {', '.join(served.tasks)}")
