"""The errors a user can mend: each message names the file, line, key or argument, and the remedy.

Command lines turn an :class:`InputError` into one line on stderr and exit code 2; anything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import errno
import re
import reprlib
import textwrap
from typing import Any

_NO_MEMORY = re.compile("can(no|')t allocate memory|out of memory", re.IGNORECASE)

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 4, 12, 12, 12
_SHORT.maxstring = _SHORT.maxother = 200


def shown(value: Any) -> str:
    """A value as messages quote it: its ``repr``, of a long one the beginning and the end."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 file``, ``1,200 files``; ``plural`` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def first_line(error: Exception) -> str:
    """What another library's exception says, in one line without its full stop; its type where it says nothing."""
    line = str(error).strip().partition("\n")[0].rstrip(".")
    return textwrap.shorten(line, 300, placeholder=" ...") or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory, a GPU's perhaps, has no room; most of PyTorch's errors say so in words alone."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


class InputError(ValueError):
    """Something handed to the toolkit cannot be used as it is."""


class InUseError(InputError):
    """A folder that another process writes to."""


class AudioError(InputError):
    """An audio file or waveform that cannot be used."""


class ManifestError(InputError):
    """A manifest or trial list that breaks its schema; the message starts with ``file:line``.

    Attributes:
        problems: how many there are; where the message does not show them all, its last line is "... and N more".
    """

    def __init__(self, message: str, problems: int = 1) -> None:
        super().__init__(message)
        self.problems = problems


class TextError(InputError):
    """A transcript, vocabulary or normaliser that cannot be used."""


class ConfigError(InputError):
    """An unknown or ill-typed key, preset, encoder, method or argument."""


class MethodError(ConfigError):
    """A form that an adapter's method cannot take: weights to fold in, a folder of ``peft``."""


class CheckpointError(InputError):
    """A checkpoint or saved adapter that is cut short, changed, or made for another base."""


class TrainingError(InputError):
    """A training that cannot go on: losses or gradients that are not finite, update after update."""


class Interrupted(KeyboardInterrupt):
    """Asked to stop by Ctrl-C or SIGTERM, after what was trained so far has been saved.

    Args:
        message: what was saved.
        exit_code: of the process: 130 for Ctrl-C, 143 for SIGTERM.
        folder: of the run, which the same command with ``--output`` goes on with; None where nothing was saved.
    """

    def __init__(self, message: str, exit_code: int, folder: str | None = None) -> None:
        super().__init__(message)
        self.exit_code, self.folder = exit_code, folder
