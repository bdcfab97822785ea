"""Who may ask for what: API keys from a file, each with its adapters and its rate.

    keys:
      - name: call-center-a
        sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08   # printf %s KEY | sha256sum
        adapters: [asr-a, emotion-a]       # all of them where this is left out
        requests_per_minute: 600           # no limit where this is left out
        admin: false                       # true: may add and remove adapters

The file holds hashes alone, so that it gives no key away.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from speech_adapters.config import load_config
from speech_adapters.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One client. ``sha256`` is that of its key."""

    name: str
    sha256: str
    adapters: tuple[str, ...] | None = None
    requests_per_minute: float | None = None
    admin: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"key {self.name!r}: sha256 is 64 hexadecimal digits: printf %s KEY | sha256sum")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ConfigError(f"key {self.name!r}: requests_per_minute={self.requests_per_minute}; above 0, or none")


@dataclass(frozen=True, kw_only=True)
class KeyFile:
    """What a file of keys holds."""

    keys: tuple[ApiKey, ...] = ()


@dataclass
class _Bucket:
    tokens: float
    when: float


@dataclass
class Keys:
    """The keys of a server. Without any, everyone may ask for everything."""

    keys: tuple[ApiKey, ...] = ()
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Keys:
        """The keys of a file. Raises ConfigError for one without keys, or with a name or key twice."""
        found = load_config(KeyFile, path).keys
        if not found:
            raise ConfigError(f"{path}: holds no keys; nobody could ask for anything.")
        for values in ([key.name for key in found], [key.sha256 for key in found]):
            if len(set(values)) < len(values):
                raise ConfigError(f"{path}: a name or a key stands there twice; give each client its own.")
        return cls(found)

    def of(self, given: str | None) -> ApiKey | None:
        """The client that a key belongs to; None for no or an unknown key. Takes the same time for all keys."""
        digest = hashlib.sha256((given or "").encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def wait(self, key: ApiKey) -> float:
        """Take one request from a client's rate: 0, or the seconds after which one is free again.

        A bucket holds a quarter of a minute's requests, at least one, and fills evenly.
        """
        if key.requests_per_minute is None:
            return 0.0
        rate, now = key.requests_per_minute / 60, self.clock()
        most = max(key.requests_per_minute / 4, 1.0)
        bucket = self._buckets.setdefault(key.name, _Bucket(most, now))
        bucket.tokens, bucket.when = min(most, bucket.tokens + (now - bucket.when) * rate), now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / rate
        bucket.tokens -= 1
        return 0.0


def allowed(key: ApiKey | None, names: Iterable[str]) -> list[str] | None:
    """The models that a client may know of; None for all."""
    return None if key is None or key.adapters is None else [name for name in names if name in key.adapters]
