"""Label Studio's addresses of recordings, as its exports hold them.

::

    /data/upload/3/0f1e2d3c-anna%201.wav              uploaded: 8 digits before the recording's own name
    /data/local-files/?d=calls%2Fmay%2Fanna.wav       read from a folder of its server, the path within that
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_UPLOAD = re.compile(r"(?:https?://[^/]+)?/data/upload/\d+/([0-9a-f]{8}-([^/]+))")
_LOCAL = re.compile(r"(?:https?://[^/]+)?/data/local-files/\?d=(.+)")


def names_of(address: str) -> tuple[str, ...]:
    """What a recording may be called: its path, or of an upload Label Studio's name and its own; none where the
    address is not one of these."""
    if found := _UPLOAD.fullmatch(address) or _LOCAL.fullmatch(address):
        return tuple(map(unquote, found.groups()))
    return ()
