"""What the requests' fields have in common."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http.errors import ApiError
from speech_adapters.serving.http.keys import allowed
from speech_adapters.serving.residents import Loaded
from speech_adapters.serving.served import Served


def written(pattern: str, words: str) -> BeforeValidator:
    """A field's pattern in words, which its error says; the pattern itself says it to programs."""

    def check(value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise ValueError(words)
        return value

    return BeforeValidator(check)


_CHANNEL = r"^(mix|[0-9]{1,3})$"

Channel = Annotated[
    str | None,
    Field(pattern=_CHANNEL, description='of audio with several channels: a number from 0, or "mix"'),
    written(_CHANNEL, 'give a number from 0, or "mix"'),
]


LISTS = ("enrolment",)
"""Fields that may be sent several times, beside those whose names end in []."""


class Fields(BaseModel):
    """A request's fields; one that is not known is an error."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=300, description="an adapter's name, base:adapter, or a composition's name")


async def check_once(request: Request) -> None:
    """Raise an ApiError for a field that is sent several times and is no list: one of them would be left out."""
    counts = Counter(name for name, _ in (await request.form()).multi_items())
    for name, count in counts.items():
        if count > 1 and not name.endswith("[]") and name not in LISTS:
            raise ApiError(400, f"{name}: sent {count} times; once is expected", param=name, code="invalid_request")


def find(request: Request, model: str) -> tuple[Engine, Served]:
    """The engine and the model that a request names, among those that its client may use."""
    engine: Engine = request.app.state.engine
    served = engine.catalog.find(model, allowed(request.state.key, (one.name for one in engine.catalog)))
    request.state.asked = served.name
    return engine, served


async def load(request: Request, model: str) -> tuple[Engine, Loaded]:
    """The same with its parts in memory: whatever becomes of the files, the request is answered of these."""
    engine, served = find(request, model)
    return engine, await engine.shelf.get(served)


def identity(served: Served) -> dict[str, str]:
    """Which weights an answer is of."""
    return {"model": served.name, "fingerprint": served.fingerprint}


def headers(served: Served) -> dict[str, str]:
    """The same, for answers that are not JSON."""
    return {"x-speech-adapters-model": served.name, "x-speech-adapters-fingerprint": served.fingerprint}


def answer(served: Served, content: dict[str, Any]) -> Response:
    """A JSON answer of a model."""
    return JSONResponse({**content, **identity(served)}, headers=headers(served))
