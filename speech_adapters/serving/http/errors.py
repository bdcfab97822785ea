"""Every error as OpenAI's clients read it: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from speech_adapters.errors import AudioError, CheckpointError, InputError, shown
from speech_adapters.serving.catalog import UnknownModel, UnsupportedTask
from speech_adapters.serving.http.events import DONE, event

log = logging.getLogger("speech_adapters.serving")

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


UNKEPT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says of a folder that was removed, or is not written to any more."""


class ApiError(HTTPException):
    """An answer other than success.

    Args:
        param: the field at fault.
        code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The error as a JSON object."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def of(error: Exception) -> ApiError:
    """What a client is told of an error of the library. What is no fault of the client's stays in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownModel):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, UnsupportedTask):
        return ApiError(400, str(error), param="model", code="unsupported_task")
    if isinstance(error, AudioError):
        return ApiError(400, str(error), param="file", code="invalid_audio")
    if isinstance(error, CheckpointError):
        log.error("a model cannot be used: %s", error)
        return ApiError(503, "this model cannot be used now; the server's log says why", code="model_unavailable")
    if isinstance(error, InputError):
        return ApiError(400, str(error), code="invalid_request")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("no room for what a client sent: %s; free some, or name another place (TMPDIR, --uploads)", error)
        return ApiError(507, "the server's disk is full; ask again when its operator has freed some", code="disk_full")
    if isinstance(error, OSError) and error.errno in UNKEPT:
        log.error("what a client sent cannot be kept: %s; mend that place, or name another (TMPDIR, --uploads)", error)
        return ApiError(503, "the server has no place for what was sent; its log says why", code="no_storage")
    log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed at this request; its log says why", code="internal_error")


def said_of(fault: Mapping[str, Any]) -> str:
    """What pydantic finds wrong with a field, in words for who sent it."""
    kind, limits = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return "no such field"
    if kind == "none_required":
        return "choose null"
    if kind == "model_type":
        return "give an object"
    if kind in ("too_short", "too_long"):
        bound = f"at least {limits['min_length']}" if kind == "too_short" else f"at most {limits['max_length']}"
        return f"sent {limits['actual_length']}, {bound} expected"
    return str(fault["msg"]).removeprefix("Value error, ")


def content_of(error: ApiError) -> dict[str, Any]:
    """The error as a JSON object; :func:`body` of what is none of ours."""
    return body(error.status_code, str(error.detail), error.param, error.code)


def response(error: ApiError) -> JSONResponse:
    """The error as an answer."""
    return JSONResponse(content_of(error), error.status_code, error.headers)


def last_events(error: ApiError) -> str:
    """The error at the end of a stream of events."""
    return event(content_of(error)) + DONE


def install(app: FastAPI) -> None:
    """Have all errors of an application answered in this form."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return response(of(error))

    async def plain(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, ApiError):
            return response(error)
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, OSError):  # met as a body was read: FastAPI takes it for the client's fault
            return response(of(error.__cause__))
        message, code = str(error.detail), None
        if error.status_code == 400:  # in the words of a library, of which none says what to do
            message, code = f"{message.rstrip('.')}; send a whole form, as curl -F does", "invalid_request"
        elif message == "Not Found":
            path = shown(request.url.path)
            message = f"{path}: no such address; a client's base_url ends in /v1, and /openapi.json lists all"
        elif error.status_code == 405:
            message = f"{shown(request.url.path)}: takes {(error.headers or {}).get('Allow', 'another method')}"
        return JSONResponse(body(error.status_code, message, code=code), error.status_code, error.headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        faults = error.errors()
        # a name that is written otherwise makes two of them, and the unknown one tells why the other is missing
        first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        message = said_of(first)
        if first["type"] == "extra_forbidden":
            missing = "".join(f"; {fault['loc'][-1]} is missing" for fault in faults if fault["type"] == "missing")
            message += f"{missing}; see /openapi.json for those there are"
        elif "UploadFile" in message:
            message = f"that is text, not a file; with curl write -F '{first['loc'][1]}=@PATH'"
        elif first["type"] in ("too_short", "too_long"):
            message += "; /openapi.json says what each is"
        elif first["type"] == "missing":
            kind = request.headers.get("content-type", "").partition(";")[0].strip()
            if kind != "multipart/form-data":
                message += f", in a form (multipart/form-data){f', not as {shown(kind)}' if kind else ''}"
        return response(
            ApiError(400, f"{param}: {message}" if param else message, param=param, code="invalid_request")
        )

    app.add_exception_handler(InputError, known)
    app.add_exception_handler(OSError, known)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, known)
