"""The page at ``/``: one file, whose own script and style are all that its content security policy lets run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

router = APIRouter()

FILE = Path(__file__).with_name("page.html")


@cache
def page() -> tuple[str, dict[str, str]]:
    """The text of the page, and its headers."""
    text = FILE.read_text(encoding="utf-8")
    sources = {}
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashes = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in found)
        sources[tag] = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = {
        "default-src": "'none'",
        "script-src": sources["script"],
        "style-src": sources["style"],
        "connect-src": "'self'",
        "media-src": "blob:",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    }
    return text, headers


@router.get("/", include_in_schema=False, response_model=None)
async def show() -> Response:
    """A page to try the models on."""
    text, headers = page()
    return HTMLResponse(text, headers=headers)


@router.get("/favicon.ico", include_in_schema=False, response_model=None)
async def icon() -> Response:
    """None; the page brings its own."""
    return Response(status_code=204)
