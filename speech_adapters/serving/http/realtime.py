"""``WS /v1/realtime``: live transcription in the events of OpenAI's transcription sessions.

docs/serving.md lists what differs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import json
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import soxr
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.heads.decoding import Segment
from speech_adapters.serving.answers import check_task
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http import errors
from speech_adapters.serving.http.errors import ApiError
from speech_adapters.serving.http.fields import identity
from speech_adapters.serving.http.guard import SUBPROTOCOL
from speech_adapters.serving.http.keys import allowed
from speech_adapters.serving.http.settings import HttpSettings
from speech_adapters.serving.live import LiveItem
from speech_adapters.serving.residents import Loaded

router = APIRouter()
log = logging.getLogger("speech_adapters.serving")

RATES = (16_000, 24_000)
"""Hz of the PCM16 that clients send; OpenAI's own is 24 kHz."""

PREFIX = "conversation.item.input_audio_transcription"

PENDING = 4
"""Commits of one session that are being answered; no further event is read until one of them is."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Format(_Part):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: int = 24_000


class _Transcription(_Part):
    model: str | None = Field(default=None, max_length=300)
    language: str | None = Field(default=None, max_length=20)
    prompt: str | None = Field(default=None, max_length=10_000)


class _Input(_Part):
    format: _Format = _Format()
    transcription: _Transcription = _Transcription()
    turn_detection: None = None
    noise_reduction: None = None


class _Audio(_Part):
    input: _Input = _Input()


class SessionFields(_Part):
    """A session as ``session.update`` gives it."""

    type: Literal["transcription"] = "transcription"
    audio: _Audio = _Audio()
    include: list[str] = Field(default=[], max_length=0)


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """One live session."""
    protocols = [name for name in websocket.scope.get("subprotocols", []) if not name.startswith(SUBPROTOCOL)]
    await websocket.accept(subprotocol=protocols[0] if protocols else None)
    session = Session(websocket)
    try:
        await session.run()
    except WebSocketDisconnect:
        log.info("a live session ended: its client went away")
    finally:
        await session.close()


@router.websocket("/{path:path}")
async def elsewhere(websocket: WebSocket) -> None:
    """Told as other routes tell it; without this, it would seem to be forbidden."""
    await websocket.send_denial_response(
        errors.response(ApiError(404, "no such address; live sessions are at /v1/realtime"))
    )


class Session:
    """What one client has configured and what it is saying."""

    def __init__(self, websocket: WebSocket) -> None:
        self.websocket = websocket
        self.engine: Engine = websocket.app.state.engine
        self.settings: HttpSettings = websocket.app.state.settings
        self.fields = SessionFields()
        self.fields.audio.input.transcription.model = websocket.query_params.get("model")
        self.loaded: Loaded | None = None
        self.item: LiveItem | None = None
        self.item_id = ""
        self.previous: str | None = None
        self.converter: Any = None
        self._numbers = itertools.count(1)
        self._ending: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Answer events until the client goes away or falls silent."""
        await self._send("session.created", session=self._described())
        await self._start()
        handlers: dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, None]]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }
        while True:
            try:
                text = await self._next()
                if text is None:
                    await self._end()
                    return
            except TimeoutError:
                await self._failed(
                    ApiError(408, f"silent for {self.settings.max_idle:g} s", code="session_idle"), None
                )
                await self._close(1001, "idle")
                return
            except KeyError:  # a message of bytes
                await self._failed(ApiError(400, "send events as text, one JSON object each"), None)
                continue
            event: Any = None
            try:
                event = _parsed(text)
                handler = handlers.get(event["type"])
                if handler is None:
                    raise ApiError(400, f"no event {event['type']!r}; there are {', '.join(handlers)}", param="type")
                await handler(event)
            except WebSocketDisconnect:
                raise
            except Exception as error:
                await self._failed(_told(error), event)

    async def _next(self) -> str | None:
        """The next message; None when the server stops. Raises TimeoutError for a client that is silent."""
        stopping = asyncio.ensure_future(self.websocket.app.state.stopping.wait())
        message = asyncio.ensure_future(self.websocket.receive_text())
        try:
            done, _ = await asyncio.wait(
                (message, stopping), timeout=self.settings.max_idle, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise TimeoutError
            return message.result() if message in done else None
        finally:
            for waiting in (message, stopping):
                waiting.cancel()

    async def _end(self) -> None:
        """The server stops: answer what has been heard as if it had been committed, then close."""
        if self.item is not None and self.item.samples:
            await self._commit({})
        await asyncio.gather(*self._ending)
        await self._failed(ApiError(503, "the server is stopping; connect again", code="stopping"), None)
        await self._close(1012, "the server is stopping")

    async def close(self) -> None:
        """Drop what is unfinished."""
        for task in list(self._ending):
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self.item is not None:
            await self.item.cancel()

    # ------------------------------------------------------------------ events

    async def _start(self) -> None:
        """Load the model that the address names; a session without it can still be given another by an update."""
        if model := self.fields.audio.input.transcription.model:
            try:
                self.loaded = await self._load(model)
            except Exception as error:
                await self._failed(_told(error), None)

    async def _update(self, event: dict[str, Any]) -> None:
        if self.item is not None:
            raise ApiError(400, "audio is in the buffer; commit or clear it before the session changes")
        try:
            fields = SessionFields.model_validate(_over(self.fields.model_dump(), event.get("session")))
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join(["session", *(str(part) for part in first["loc"])])
            raise ApiError(400, f"{param}: {errors.said_of(first)}", param=param, code="invalid_value") from None
        if fields.audio.input.format.rate not in RATES:
            raise ApiError(400, "rate: choose 16000 or 24000", param="session.audio.input.format.rate")
        wanted = fields.audio.input.transcription
        wanted.model = wanted.model or self.fields.audio.input.transcription.model
        if wanted.prompt:
            raise ApiError(
                400, "prompt: a CTC head has no use for it", param="session.audio.input.transcription.prompt"
            )
        self.loaded = await self._load(wanted.model)
        self.fields = fields
        await self._send("session.updated", session=self._described())

    async def _append(self, event: dict[str, Any]) -> None:
        try:
            data = base64.b64decode(event["audio"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise ApiError(400, "audio: give base64", param="audio", code="invalid_audio") from None
        if len(data) % 2:
            raise ApiError(400, "audio: an odd number of bytes is not PCM16", param="audio", code="invalid_audio")
        if not data:
            return
        if self.item is None:
            if self.loaded is None:
                self.loaded = await self._load(self.fields.audio.input.transcription.model)
            self._begin(self.loaded)
        assert self.item is not None
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        if self.converter is not None:
            samples = self.converter.resample_chunk(samples)
        await self.item.add(samples)

    def _begin(self, loaded: Loaded) -> None:
        self.item_id = f"item_{next(self._numbers):04d}"
        item_id, said = self.item_id, False

        async def told(words: list[Segment]) -> None:
            nonlocal said
            delta = " " * said + " ".join(word.text for word in words)
            said = True
            await self._send(f"{PREFIX}.delta", item_id=item_id, content_index=0, delta=delta)

        rate = self.fields.audio.input.format.rate
        self.converter = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        self.item = LiveItem(self.engine, loaded, told)

    async def _commit(self, event: dict[str, Any]) -> None:
        if self.item is None or self.loaded is None:
            raise ApiError(400, "the buffer is empty; append audio first", code="input_audio_buffer_commit_empty")
        if self.converter is not None:
            await self.item.add(self.converter.resample_chunk(np.empty(0, np.float32), last=True))
        item, item_id, loaded = self.item, self.item_id, self.loaded
        self.item = None
        await self._send("input_audio_buffer.committed", item_id=item_id, previous_item_id=self.previous)
        self.previous = item_id
        task = asyncio.create_task(self._complete(item, item_id, loaded))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        if len(self._ending) >= PENDING:
            await asyncio.wait(self._ending, return_when=asyncio.FIRST_COMPLETED)

    async def _complete(self, item: LiveItem, item_id: str, loaded: Loaded) -> None:
        with suppress(WebSocketDisconnect):
            await self._answer(item, item_id, loaded)

    async def _answer(self, item: LiveItem, item_id: str, loaded: Loaded) -> None:
        try:
            transcript = await item.finish()
            usage = {"type": "duration", "seconds": round(item.duration, 3)}
            await self._send(
                f"{PREFIX}.completed", item_id=item_id, content_index=0, transcript=transcript.text, usage=usage,
                words=[{"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
                       for word in transcript.words], **identity(loaded.served),
            )  # fmt: skip
        except WebSocketDisconnect:
            raise
        except Exception as error:
            told = _told(error)
            content = errors.content_of(told)
            await self._send(f"{PREFIX}.failed", item_id=item_id, content_index=0, **content)
        finally:
            await item.cancel()

    async def _clear(self, event: dict[str, Any]) -> None:
        if self.item is not None:
            await self.item.cancel()
            self.item = None
        await self._send("input_audio_buffer.cleared")

    # ------------------------------------------------------------------ inner

    async def _load(self, model: str | None) -> Loaded:
        if not model:
            raise ApiError(
                400, "name a model: /v1/realtime?model=NAME, or session.update", param="model", code="model_missing"
            )
        catalog = self.engine.catalog
        key = self.websocket.scope["state"]["key"]
        served = catalog.find(model, allowed(key, (one.name for one in catalog)))
        check_task(served, "transcription")
        return await self.engine.shelf.get(served)

    def _described(self) -> dict[str, Any]:
        return {"object": "realtime.transcription_session", **self.fields.model_dump()}

    async def _failed(self, error: ApiError, event: Any) -> None:
        content = errors.content_of(error)["error"]
        if isinstance(event, dict) and isinstance(event.get("event_id"), str):
            content["event_id"] = event["event_id"][:100]
        await self._send("error", error=content)

    async def _send(self, kind: str, **content: Any) -> None:
        async with self._sending:
            event = {"type": kind, "event_id": f"event_{next(self._numbers):06d}", **content}
            with _gone_is_gone():
                await self.websocket.send_text(json.dumps(event))  # in ASCII: halves of letters are told back, too

    async def _close(self, code: int, reason: str) -> None:
        with _gone_is_gone():
            await self.websocket.close(code, reason)


@contextmanager
def _gone_is_gone() -> Iterator[None]:
    """Starlette has a RuntimeError for what is sent after the client has gone, and the engine others of its own."""
    try:
        yield
    except RuntimeError as error:
        raise WebSocketDisconnect(1006) from error


def _over(before: dict[str, Any], changes: Any) -> Any:
    """``changes`` over ``before``: what they do not name, at any depth, stays as it is."""
    if not isinstance(changes, dict):
        return changes
    kept = {key: value for key, value in before.items() if isinstance(value, dict)}
    return before | {key: _over(kept[key], value) if key in kept else value for key, value in changes.items()}


def _told(error: Exception) -> ApiError:
    """As other routes tell it, by the name of the field that audio has here."""
    told = errors.of(error)
    if told.param == "file":
        told.param = "audio"
    return told


def _parsed(text: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, "not JSON; send one object an event") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise ApiError(400, 'an event is an object with a "type"', param="type")
    return event
