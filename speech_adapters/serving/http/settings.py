"""What the server allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from speech_adapters.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Limits of the HTTP side."""

    max_body: int = 100 << 20
    """Bytes of one request: an hour of 16-bit WAV at 16 kHz is 115 MB, of FLAC about half. OpenAI takes 25 MB."""
    max_requests: int = 256
    """Requests that are taken at once; further ones are told to come again (429)."""
    max_waiting: float = 600.0
    """Seconds of audio that may wait for the encoder before further requests are told to come again."""
    timeout: float = 300.0
    """Seconds that one request may take, upload included."""
    max_sessions: int = 32
    """Live sessions at once."""
    max_idle: float = 60.0
    """Seconds that a live session may be silent."""
    origins: tuple[str, ...] = ()
    """Web pages of other origins that may ask: "https://intranet.example". The server's own page always may."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    """Names under which the server answers, without ports; ("*",) for any. Others are refused, so that no web page can
    reach a server on this machine under a name of its own (DNS rebinding)."""
    uploads: Path | None = None
    """Folder for adapters that clients add; none may be added without."""
    log_requests: bool = False
    """Whether the log says which client asked which model for how much audio, not only which route was asked."""
    page: bool = True
    """Whether the page to try it is at /."""

    def __post_init__(self) -> None:
        for name in ("max_body", "max_requests", "max_waiting", "timeout", "max_sessions", "max_idle"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: must be a number above 0, and not infinite.")
