"""What the files of annotation tools say in tiers: Praat's ``.TextGrid``, ELAN's ``.eaf``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech_adapters.data.formats import elan, textgrid
from speech_adapters.errors import ManifestError

_READERS = {kind.SUFFIX.lower(): kind.read_tiers for kind in (textgrid, elan)}

SUFFIXES = (textgrid.SUFFIX, elan.SUFFIX)
KINDS = " or ".join(SUFFIXES)


def read_intervals(path: Path, tiers: Sequence[str]) -> tuple[set[str], list[tuple[str, dict[str, Any]]]]:
    """Which tiers the file has, and (place, entry) of each interval with a text in those of ``tiers``, in time; the
    keys are those of a manifest. The speaker is the one that the file names for the tier, else of several tiers the
    tier.

    Raises:
        ManifestError: a file that has none of the tiers, or no text in them; see the readers for others.
    """
    known = _READERS[path.suffix.lower()](path, tiers)
    wanted = " or ".join(map(repr, tiers))
    if not known.keys() & set(tiers):
        names = f"it has {', '.join(map(repr, known))}" if known else "it has no intervals"
        raise ManifestError(f"{path}: no tier {wanted}; {names}")
    found: list[tuple[str, dict[str, Any]]] = []
    for tier in tiers:
        of_several = {"speaker": tier, "tier": tier} if len(tiers) > 1 else {}
        for part in known.get(tier, ()):
            named = {} if part.speaker is None else {"speaker": part.speaker}
            entry = {"offset": part.start, "end": part.end, "text": part.text} | of_several | named
            found.append((f":{part.line}", entry))
    if not found:
        raise ManifestError(f"{path}: no text in {wanted}; remove it, and also the recording if nothing is said in it")
    return set(known), sorted(found, key=lambda told: told[1]["offset"])
