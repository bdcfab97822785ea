"""What the requests' fields have in common."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from speech_adapters.serving.catalog import Served
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http.keys import allowed

Channel = Annotated[
    str | None,
    Field(pattern=r"^(mix|\d{1,3})$", description='of audio with several channels: a number from 0, or "mix"'),
]


class Fields(BaseModel):
    """A request's fields; one that is not known is an error."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=300, description="an adapter's name, base:adapter, or a composition's name")


def find(request: Request, model: str) -> tuple[Engine, Served]:
    """The engine and the model that a request names, among those that its client may use."""
    engine: Engine = request.app.state.engine
    served = engine.catalog.find(model, allowed(request.state.key, (one.name for one in engine.catalog)))
    request.state.asked = served.name
    return engine, served


def identity(served: Served) -> dict[str, str]:
    """Which weights an answer is of."""
    return {"model": served.name, "fingerprint": served.fingerprint}


def headers(served: Served) -> dict[str, str]:
    """The same, for answers that are not JSON."""
    return {"x-speech-adapters-model": served.name, "x-speech-adapters-fingerprint": served.fingerprint}


def answer(served: Served, content: dict[str, Any]) -> Response:
    """A JSON answer of a model."""
    return JSONResponse({**content, **identity(served)}, headers=headers(served))
