"""Divide one manifest into train, dev and test sets that share no speaker."""

from __future__ import annotations

import random
from collections.abc import Mapping

from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ManifestError, counted


def split(manifest: Manifest, shares: Mapping[str, float], by: str = "speaker", seed: int = 0) -> dict[str, Manifest]:
    """Whole groups, drawn at random, to each split, until it has its share of the audio or is nearest to it.

    Args:
        shares: split -> its share of the audio, above 0; the last, whose share is not looked at, takes what is left.
        by: key whose values stay together: ``speaker``, ``session``, ...; ``audio_filepath`` for the pieces of a
            recording; ``id`` for utterances on their own.

    Returns: the manifests, in the order of ``shares``; each has one group at least.

    Raises:
        ManifestError: utterances without the key, fewer groups than splits, shares of 1 or more in all.
    """
    *drawn, rest = shares
    total = sum(shares[name] for name in drawn)
    if not all(shares[name] > 0 for name in drawn) or total >= 1:
        given = ", ".join(f"{name} {shares[name]:g}" for name in drawn)
        raise ManifestError(f"{manifest.name}: shares of {given}: give each more than 0, and less than 1 in all")
    lacking = [utterance.id for utterance in manifest if utterance.get(by) is None]
    if lacking:
        pieces = len({utterance.audio_filepath for utterance in manifest}) < len(manifest)
        other = "--by audio_filepath (each recording" if pieces else "--by id (each utterance"
        raise ManifestError(
            f"{manifest.name}: {counted(len(lacking), 'utterance')} without {by!r}, such as {lacking[0]!r}; add it "
            f"to every line, or divide by another key, such as {other} on its own; a speaker may then be in several "
            "sets)"
        )
    seconds: dict[str, float] = {}
    for utterance in manifest:
        group = str(utterance.get(by))
        seconds[group] = seconds.get(group, 0.0) + utterance.duration
    groups = sorted(seconds)
    if len(groups) < len(shares):
        raise ManifestError(
            f"{manifest.name}: {len(groups)} different values of {by!r} for {len(shares)} sets; each set needs its own"
        )
    random.Random(seed).shuffle(groups)
    whole = sum(seconds.values())
    chosen: dict[str, set[str]] = {}
    for place, name in enumerate(drawn):
        wanted, have, own = shares[name] * whole, 0.0, set[str]()
        others = len(shares) - place - 1  # each of the following sets needs a group
        while len(groups) > others and (not own or abs(have + seconds[groups[-1]] - wanted) <= abs(have - wanted)):
            own.add(groups.pop())
            have = sum(seconds[group] for group in own)
        chosen[name] = own
    chosen[rest] = set(groups)
    return {
        name: Manifest((u for u in manifest if str(u.get(by)) in chosen[name]), f"{manifest.name}, {name}")
        for name in shares
    }
