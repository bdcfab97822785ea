"""Where real speech lies: relative paths start at a folder that is named, or at ``$SPEECH_ADAPTERS_DATA``."""

from __future__ import annotations

import os
from pathlib import Path

from speech_adapters.errors import ConfigError


def data_path(path: Path, folder: Path | None = None) -> Path:
    """``path`` itself where it is absolute, else its place in ``folder``, by default ``$SPEECH_ADAPTERS_DATA``.

    Raises:
        ConfigError: a relative path, and neither is set.
    """
    if path.is_absolute():
        return path
    start = folder or os.environ.get("SPEECH_ADAPTERS_DATA")
    if not start:
        raise ConfigError(f"where is {path}? Give an absolute path, or set SPEECH_ADAPTERS_DATA to the data's folder.")
    return Path(start) / path
