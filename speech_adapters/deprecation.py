"""Old names of public methods, kept for one version."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


def renamed(old: str, new: str) -> Callable[..., Any]:
    """The method ``old``, which warns and calls ``new``."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"{old} is now {new}; the old name goes with the next version.", DeprecationWarning, stacklevel=2
        )
        return getattr(self, new)(*args, **kwargs)

    method.__name__, method.__doc__ = old, f"Deprecated: the old name of :meth:`{new}`."
    return method
