"""Old names of public methods and attributes, kept for one version."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


def renamed(old: str, new: str) -> Callable[..., Any]:
    """The method ``old``, which warns and calls ``new``."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        _warn(old, new)
        return getattr(self, new)(*args, **kwargs)

    method.__name__, method.__doc__ = old, f"Deprecated: the old name of :meth:`{new}`."
    return method


def renamed_attribute(old: str, new: str) -> property:
    """The attribute ``old``, which warns and reads ``new``."""

    def read(self: Any) -> Any:
        _warn(old, new)
        return getattr(self, new)

    return property(read, doc=f"Deprecated: the old name of ``{new}``.")


def _warn(old: str, new: str) -> None:
    message = f"{old} is now {new}; the old name goes with the next version."
    warnings.warn(message, DeprecationWarning, stacklevel=3)
