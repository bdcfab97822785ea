"""The errors a user can mend: each message names the file, line, key or argument, and the remedy.

Command lines turn an :class:`InputError` into one line on stderr and exit code 2; anything else is a bug and keeps
its traceback.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something handed to the toolkit cannot be used as it is."""


class AudioError(InputError):
    """An audio file or waveform that cannot be used."""


class ManifestError(InputError):
    """A manifest or trial list that breaks its schema; the message starts with ``file:line``."""


class TextError(InputError):
    """A transcript, vocabulary or normaliser that cannot be used."""


class ConfigError(InputError):
    """An unknown or ill-typed key, preset, encoder, method or argument."""


class CheckpointError(InputError):
    """A checkpoint or saved adapter that is cut short, changed, or made for another base."""
