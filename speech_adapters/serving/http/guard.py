"""What stands before every request: whose it is, whether there is room, how large and how long it may be.

All of this comes before a body is parsed. It is plain ASGI, so that uploads are counted as they stream in, whatever
their headers say, and so that a client that goes away takes its work with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from urllib.parse import SplitResult, urlsplit

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speech_adapters.errors import shown
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http import errors
from speech_adapters.serving.http.errors import ApiError
from speech_adapters.serving.http.keys import ApiKey, Keys
from speech_adapters.serving.http.metrics import Metrics
from speech_adapters.serving.http.settings import HttpSettings

log = logging.getLogger("speech_adapters.serving")

PUBLIC = {"/health", "/ready", "/", "/favicon.ico", "/openapi.json"}
"""Answered without a key: they tell nothing of models or clients."""

LAST_WORD = 1.0
"""Seconds for a client to take the last event of a stream that is given up."""

SUBPROTOCOL = "openai-insecure-api-key."
"""How a browser hands a key to a WebSocket, which takes no headers: OpenAI's own word for it."""


class Guard:
    """The ASGI application behind its limits."""

    def __init__(self, app: ASGIApp, engine: Engine, settings: HttpSettings, keys: Keys, metrics: Metrics) -> None:
        self.app, self.engine, self.settings, self.keys, self.metrics = app, engine, settings, keys, metrics
        self.open = 0
        self.sessions = 0
        self.stopping = asyncio.Event()
        self._answer: ASGIApp = self._http
        if settings.origins:  # around all else: pages read the guard's own errors, too
            self._answer = CORSMiddleware(
                self._http, allow_origins=settings.origins, allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["authorization"],
                expose_headers=["x-speech-adapters-model", "x-speech-adapters-fingerprint", "retry-after"],
            )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    # ------------------------------------------------------------------ HTTP

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.monotonic(), 499  # nginx's word for a client that went away
        begun = open_events = False

        async def counted(message: Message) -> None:
            nonlocal status, begun, open_events
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                open_events = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
            elif not message.get("more_body", False):
                open_events = False
            await send(message)

        method = scope["method"]
        if method == "HEAD":  # as GET, which watchers of /health spare themselves; uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        self.metrics.open.inc()
        heavy = scope["method"] == "POST" and scope["path"].startswith("/v1/")
        taken = False
        try:
            try:
                headers = Headers(scope=scope)
                self._check_origin(headers)
                key = self._key(scope, headers)
                if heavy:
                    self._check_room(headers, key)
                    self.open += 1
                    taken = True
                await self._limited(scope, receive, counted)
            except (ApiError, asyncio.CancelledError) as error:
                told = error if isinstance(error, ApiError) else _stopped()
                if not begun:
                    await errors.response(told)(scope, receive, counted)
                elif open_events:  # the status has been sent; without a last event the text would seem to end here
                    last = {"type": "http.response.body", "body": errors.last_events(told).encode()}
                    with contextlib.suppress(TimeoutError):  # whoever does not read keeps no place by that
                        await asyncio.wait_for(counted(last), LAST_WORD)
        finally:
            self.open -= taken
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - started
            self.metrics.open.dec()
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            said, place = "", route
            if self.settings.log_requests:
                place = ascii(scope["path"][:200])[1:-1] if route == "other" else route  # no line ends from outside
                asked = scope.get("state", {}).get("asked", "")
                said = f" {getattr(scope.get('state', {}).get('key'), 'name', '-')} {asked}"
            log.info("%s %s %s %.0f ms%s", method, place, status, seconds * 1000, said)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application within its time, until its client goes away."""
        body = _Body(receive, self.settings.max_body, _end_of(Headers(scope=scope)))
        running: asyncio.Task[None] = asyncio.ensure_future(self._run(scope, body.receive, send))
        watching = asyncio.create_task(body.watch())
        try:
            done, _ = await asyncio.wait(
                (running, watching), timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if running in done:
                await running
            elif watching in done:
                watching.result()
                log.debug("a client went away")
            else:
                raise ApiError(
                    504, f"not done within {self.settings.timeout:g} s; send less audio at once", code="timeout"
                )
        finally:
            for task in (running, watching):
                task.cancel()
            await asyncio.gather(running, watching, return_exceptions=True)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    # ------------------------------------------------------------------ WebSocket

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            headers = Headers(scope=scope)
            self._check_origin(headers)
            key = self._key(scope, headers)
            if self.stopping.is_set():
                raise ApiError(503, "the server is stopping", code="stopping")
            if self.sessions >= self.settings.max_sessions:
                raise _busy(f"{self.sessions} live sessions are open, as many as may be", 10)
            self._check_rate(key)
        except ApiError as error:
            if "websocket.http.response" in scope.get("extensions", {}):
                answer = errors.response(error)
                start = {"type": "websocket.http.response.start", "status": answer.status_code,
                         "headers": answer.raw_headers}  # fmt: skip
                await send(start)
                await send({"type": "websocket.http.response.body", "body": answer.body})
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": str(error.detail)[:120]})
            return
        self.sessions += 1
        self.metrics.sessions.inc()
        try:
            await self.app(scope, receive, send)
        finally:
            self.sessions -= 1
            self.metrics.sessions.dec()

    async def end_sessions(self) -> None:
        """Let live sessions answer what they have heard and end, for as long as a request may take."""
        self.stopping.set()
        until = time.monotonic() + self.settings.timeout
        while self.sessions and time.monotonic() < until:
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------------ checks

    def _check_origin(self, headers: Headers) -> None:
        host = headers.get("host", "")
        name = _parts(f"//{host}").hostname if host else None
        if "*" not in self.settings.hosts and name not in self.settings.hosts:
            raise ApiError(
                421, f"this server does not answer as {name!r}; its operator adds names with --host-name",
                code="unknown_host",
            )  # fmt: skip
        origin = headers.get("origin")
        if origin is None or origin in self.settings.origins or _parts(origin).netloc == host:
            return
        raise ApiError(
            403, f"pages of {origin!r} may not ask here; the server's operator allows origins with --origin",
            code="origin_not_allowed",
        )  # fmt: skip

    def _key(self, scope: Scope, headers: Headers) -> ApiKey | None:
        state = scope.setdefault("state", {})
        state["key"] = None
        if not self.keys.keys or scope["path"] in PUBLIC or scope.get("method") == "OPTIONS":  # browsers' preflights
            return None
        word, _, given = headers.get("authorization", "").partition(" ")
        if word.lower() != "bearer":
            protocols = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
            given = next((p.removeprefix(SUBPROTOCOL) for p in protocols if p.startswith(SUBPROTOCOL)), "")
        key = self.keys.of(given.strip())
        if key is None:
            raise ApiError(
                401, "no or an unknown API key; send the header Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        state["key"] = key
        return key

    def _check_room(self, headers: Headers, key: ApiKey | None) -> None:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.settings.max_body:
            raise too_large(self.settings.max_body)
        self._check_rate(key)
        waiting = self.engine.queue.waiting_seconds
        if self.open >= self.settings.max_requests or waiting > self.settings.max_waiting:
            counts = self.engine.counts
            speed = counts.seconds / counts.busy if counts.busy else 10.0
            raise _busy(f"{self.open} requests are being answered and {waiting:.0f} s of audio wait", waiting / speed)

    def _check_rate(self, key: ApiKey | None) -> None:
        if key is not None and (wait := self.keys.wait(key)) > 0:
            raise ApiError(
                429, f"more than {key.requests_per_minute:g} requests a minute; come again in {math.ceil(wait)} s",
                code="rate_limit_exceeded", headers={"Retry-After": str(math.ceil(wait))},
            )  # fmt: skip


class _Body:
    """A request's body, counted as it comes and held against what a form ends with, and then the watch over its
    client."""

    def __init__(self, receive: Receive, most: int, end: bytes) -> None:
        self._receive, self.most, self.end = receive, most, end
        self.size, self.tail = 0, b""
        self.complete, self.gone = asyncio.Event(), asyncio.Event()

    async def receive(self) -> Message:
        if self.complete.is_set():
            await self.gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone.set()
            self.complete.set()  # which ends the watch, and with it the request: there is nobody to answer
            await asyncio.get_running_loop().create_future()
        body = message.get("body", b"")
        self.size += len(body)
        if self.size > self.most:
            raise too_large(self.most)
        if self.end:
            seen = self.tail + body  # it may lie across two pieces
            if self.end in seen:
                self.end = self.tail = b""
            else:
                self.tail = seen[-len(self.end) :]
        if not message.get("more_body", False):
            self.complete.set()
            if self.end:  # the parser would leave out the last field and say nothing
                raise ApiError(
                    400, f"the form is cut short: it does not end with {shown(self.end.decode('latin-1'))}; send a "
                    "whole form, as curl -F does", code="invalid_request",
                )  # fmt: skip
        return message

    async def watch(self) -> None:
        """Return when the client has gone away."""
        await self.complete.wait()
        while not self.gone.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone.set()


def _end_of(headers: Headers) -> bytes:
    """What a form ends with, by the boundary between its fields (RFC 2046, section 5.1.1); nothing for no form."""
    kind, options = parse_options_header(headers.get("content-type"))
    boundary = options.get(b"boundary") if kind == b"multipart/form-data" else None
    return b"--" + boundary + b"--" if boundary else b""


def _stopped() -> ApiError:
    """The error of a request that uvicorn cancels, as it does after a second Ctrl-C."""
    return ApiError(503, "the server was stopped before it had answered; ask again", code="stopping")


def too_large(most: int) -> ApiError:
    """The error of a body above the limit."""
    return ApiError(
        413, f"more than the {most / 2**20:.3g} MB taken at once; send FLAC or Opus, or cut the recording",
        code="request_too_large",
    )  # fmt: skip


def _parts(address: str) -> SplitResult:
    """Those of a URL; none of what cannot be one, such as ``//[abc``."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _busy(why: str, seconds: float) -> ApiError:
    wait = str(min(max(math.ceil(seconds), 1), 60))
    return ApiError(429, f"busy: {why}; come again in {wait} s", code="busy", headers={"Retry-After": wait})
