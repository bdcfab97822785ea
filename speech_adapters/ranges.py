"""Which numbers a setting may have, written where the setting is: ``dropout: Dropout = 0.1``.

A range is part of a field's type, ``Annotated[float, Range(...)]``. :func:`check_values` holds a configuration against
all of them, and against its ``Literal`` fields; configurations call it in their ``__post_init__``, and
:func:`~speech_adapters.schema.from_dict` calls it for whatever it builds. NaN lies in no range, and infinity in those
alone that say so.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from speech_adapters.errors import ConfigError, shown


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; with ``above`` or ``below``, an end is left out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: Real) -> bool:
        try:
            number = float(value)
        except OverflowError:  # an integer of 400 digits
            return False
        lowest = self.low < number if self.above else self.low <= number
        return lowest and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:.12g}" if self.above else f"at least {self.low:.12g}"
        high = f"below {self.high:.12g}" if self.below else f"at most {self.high:.12g}"
        bounds = [low] * math.isfinite(self.low) + [high] * math.isfinite(self.high)
        return " and ".join(bounds) or "finite"


LARGEST = 2**20
"""No width, rank or length of a network comes near; what a slip of the pen makes is beyond it."""

Size = Annotated[int, Range(1, LARGEST)]
"""A width, rank or length."""
Count = Annotated[int, Range(1, below=True)]
"""Of something that there is."""
CountOrNone = Annotated[int, Range(0, below=True)]
"""Of something that there may be."""
Index = Annotated[int, Range(-1000, 999)]
"""Of a layer; negative ones count from the top."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""Of numpy's and torch's generators."""
Positive = Annotated[float, Range(0, above=True, below=True)]
NotNegative = Annotated[float, Range(0, below=True)]
Rate = NotNegative
"""A learning rate."""
Finite = Annotated[float, Range(above=True, below=True)]
Decibels = Annotated[float, Range(-100, 100)]
Share = Annotated[float, Range(0, 1)]
Prior = Annotated[float, Range(0, 1, above=True, below=True)]
"""A probability of what may or may not be."""
Dropout = Annotated[float, Range(0, 1, below=True)]
"""A probability with which all would not be dropped."""


def check_values(config: Any, where: str = "") -> None:
    """Hold the fields of a dataclass against their ranges and choices.

    Args:
        where: opens the message, before the field's name.

    Raises:
        ConfigError: names the field, its value and what it may be.
    """
    cls: Any = type(config)
    for name, hint in _limits_of(cls).items():
        for path, value, wanted in _faults(hint, getattr(config, name), name):
            raise ConfigError(f"{where}{path}={shown(value)}: must be {wanted}.")


@cache
def _limits_of(cls: Any) -> dict[str, Any]:
    """The types of the fields that have limits."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls) if _has_limits(hints[field.name])}


def _has_limits(hint: Any) -> bool:
    return get_origin(hint) in (Annotated, Literal) or any(map(_has_limits, get_args(hint)))


def _faults(hint: Any, value: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    """Where a value, or one inside of it, is not what its type allows: its path, itself, what it may be."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, limits = hint.__origin__, hint.__metadata__[0]
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        if not number or value not in limits:
            yield path, value, f"{'a whole number, ' if kind is int else 'a number, '}{limits}"
    elif origin is Literal:
        if value not in arguments:
            yield path, value, f"one of {', '.join(map(str, arguments))}"
    elif origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not types.NoneType]
        if value is not None or len(members) == len(arguments):
            taken = any(isinstance(value, member) for member in members if isinstance(member, type))
            found = [list(_faults(member, value, path)) for member in members if _has_limits(member)]
            yield from () if taken or [] in found else found[0]
    elif origin in (tuple, dict) and not isinstance(value, tuple | list if origin is tuple else Mapping):
        yield path, value, "a list" if origin is tuple else "keys with values"
    elif origin is tuple:
        hints = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(hints) != len(value):
            yield path, value, f"{len(hints)} values"
        for index, (inner, item) in enumerate(zip(hints, value, strict=False)):
            yield from _faults(inner, item, f"{path}.{index}")
    elif origin is dict:
        for key, item in value.items():
            yield from _faults(arguments[1], item, f"{path}.{key}")
