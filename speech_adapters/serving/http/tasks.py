"""What OpenAI has no route for: classes, embeddings and verifications of recordings."""

from __future__ import annotations

import base64
import math
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from fastapi.responses import Response
from pydantic import Field

from speech_adapters.serving.answers import classify, embed, verify_speaker
from speech_adapters.serving.http.fields import Channel, Fields, answer, check_once, load
from speech_adapters.serving.http.uploads import recordings

router = APIRouter(dependencies=[Depends(check_once)])


class RecordingFields(Fields):
    """One recording."""

    file: UploadFile
    channel: Channel = None


class EmbeddingFields(RecordingFields):
    """One recording, and how its embedding is written."""

    encoding_format: Literal["float", "base64"] = "float"


class VerificationFields(Fields):
    """A recording, and one or several of the speaker that it may be of."""

    enrolment: list[UploadFile] = Field(min_length=1, max_length=20)
    test: UploadFile
    channel: Channel = None


@router.post("/v1/audio/classifications", tags=["audio"], response_model=None)
async def create_classification(
    request: Request, form: Annotated[RecordingFields, Form(media_type="multipart/form-data")]
) -> Response:
    """The class of a recording (its emotion, its intent), and the probability of each."""
    engine, loaded = await load(request, form.model)
    async with recordings(engine, {"the audio": ("file", form.file)}, form.channel) as (recording,):
        found, duration = await classify(engine, loaded, recording)
    probabilities = {label: round(value, 6) for label, value in found.probabilities.items()}
    return answer(
        loaded.served,
        {"object": "classification", "label": found.label, "probabilities": probabilities, "usage": _usage(duration)},
    )


@router.post("/v1/audio/embeddings", tags=["audio"], response_model=None)
async def create_embedding(
    request: Request, form: Annotated[EmbeddingFields, Form(media_type="multipart/form-data")]
) -> Response:
    """The embedding of a recording, in the form of OpenAI's text embeddings."""
    engine, loaded = await load(request, form.model)
    async with recordings(engine, {"the audio": ("file", form.file)}, form.channel) as (recording,):
        found, duration = await embed(engine, loaded, recording)
    vector: object = found.tolist()
    if form.encoding_format == "base64":
        vector = base64.b64encode(found.numpy().astype("<f4").tobytes()).decode()
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    return answer(loaded.served, {"object": "list", "data": data, "usage": _usage(duration)})


@router.post("/v1/audio/verifications", tags=["audio"], response_model=None)
async def create_verification(
    request: Request, form: Annotated[VerificationFields, Form(media_type="multipart/form-data")]
) -> Response:
    """Whether a recording is of the speaker of others: the cosine of their embeddings and, where the head has been
    calibrated, the natural log-likelihood ratio of one speaker against two, and its probability at even odds."""
    engine, loaded = await load(request, form.model)
    files = {f"enrolment {number}": ("enrolment", file) for number, file in enumerate(form.enrolment, 1)}
    async with recordings(engine, files | {"test": ("test", form.test)}, form.channel) as (*enrolment, test):
        found, duration = await verify_speaker(engine, loaded, enrolment, test)
    probability = None if found.llr is None else round(0.5 * (1 + math.tanh(found.llr / 2)), 6)
    content = {
        "object": "verification",
        "score": round(found.score, 6),
        "llr": None if found.llr is None else round(found.llr, 6),
        "probability": probability,
        "usage": _usage(duration),
    }
    return answer(loaded.served, content)


def _usage(duration: float) -> dict[str, object]:
    return {"type": "duration", "seconds": round(duration, 3)}
