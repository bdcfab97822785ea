"""The application: routes, behind the guard, around one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from speech_adapters import __version__
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http import errors, health, models, page, realtime, tasks, transcriptions
from speech_adapters.serving.http.guard import Guard
from speech_adapters.serving.http.keys import Keys
from speech_adapters.serving.http.metrics import Metrics
from speech_adapters.serving.http.settings import HttpSettings

DESCRIPTION = """Adapters on one frozen speech encoder. `model` is an adapter's name, `base:adapter`, or the name of a
composition. Every answer carries the fingerprint of the weights that it is of."""


def routes(settings: HttpSettings | None = None) -> FastAPI:
    """The routes alone, without an engine: what the OpenAPI document is made of."""
    app = FastAPI(
        title="speech_adapters", version=__version__, description=DESCRIPTION, redoc_url=None, docs_url=None,
        generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    errors.install(app)
    for part in (transcriptions, tasks, models, realtime, health):
        app.include_router(part.router)
    if settings is None or settings.page:
        app.include_router(page.router)
    return app


def create_app(engine: Engine, settings: HttpSettings, keys: Keys | None = None) -> Guard:
    """The server's ASGI application; it starts and stops the engine with its own life."""
    app = routes(settings)
    metrics = Metrics(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        app.state.changing = asyncio.Lock()
        await engine.start()
        try:
            yield
        except asyncio.CancelledError:  # after a second Ctrl-C, which waits for nothing that the engine has taken
            return
        await engine.stop()

    app.router.lifespan_context = lifespan
    app.state.engine, app.state.settings, app.state.metrics = engine, settings, metrics
    guard = Guard(app, engine, settings, keys or Keys(), metrics)
    app.state.stopping = guard.stopping
    return guard


def openapi() -> dict[str, Any]:
    """The OpenAPI document."""
    return routes().openapi()
