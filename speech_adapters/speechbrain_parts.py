"""Parts of speechbrain, without what its import does to everybody else in the process."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any


def from_speechbrain(module: str) -> Any:
    """``speechbrain.MODULE``, imported when it is asked for: that takes seconds.

    speechbrain lets torch multiply in TF32, ten bits of each factor, on every GPU as soon as it is imported; encoders
    and scores in float32 would then depend on whether a head of its kind was built before. It is asked not to, by the
    variable that it has for it. Where somebody else imported it first, that stands.
    """
    name = "SB_DISABLE_QUIRKS"
    before = os.environ.get(name)
    os.environ[name] = ",".join(filter(None, (before, "allow_tf32")))
    try:
        return import_module(f"speechbrain.{module}")
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
