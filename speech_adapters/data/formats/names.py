"""Names that a format asks of utterances in place of their ids."""

from __future__ import annotations

from collections.abc import Callable

from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ManifestError


def distinct_names(manifest: Manifest, name_of: Callable[[Utterance], str]) -> list[str]:
    """The name of each utterance.

    Raises:
        ManifestError: two of one name, of which one would be written over the other.
    """
    ids: dict[str, str] = {}
    for utterance in manifest:
        name = name_of(utterance)
        if name in ids:
            raise ManifestError(
                f"{manifest.name}: utterances {ids[name]!r} and {utterance.id!r} would both be called {name!r} in "
                "this format; rename one of them"
            )
        ids[name] = utterance.id
    return list(ids)
