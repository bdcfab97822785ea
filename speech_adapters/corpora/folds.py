"""Folds for cross-validation: the corpus in k parts; fold i tests on part i, watches part i + 1, trains on the rest.

The published protocols of emotion corpora are speaker-disjoint: leave one session (IEMOCAP) or one speaker out, or k
parts of whole speakers. Every utterance is tested exactly once, and every part is the dev set exactly once.

>>> for fold in make_folds(manifest, "leave-one-session-out"):                       # doctest: +SKIP
...     train_and_score(fold.train, fold.dev, fold.test)
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech_adapters.data.manifest import Manifest, check_disjoint
from speech_adapters.errors import ConfigError, ManifestError


@dataclass(frozen=True)
class Fold:
    """One division of a corpus; ``dev`` is None where it was not asked for."""

    name: str
    train: Manifest
    dev: Manifest | None
    test: Manifest

    def write(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write ``<folder>/<name>_{train,dev,test}.jsonl``; returns split -> manifest."""
        splits = {"train": self.train, "dev": self.dev, "test": self.test}
        paths = {}
        for split, part in splits.items():
            if part:
                paths[split] = Path(folder) / f"{self.name}_{split}.jsonl"
                part.write(paths[split])
        return paths


def make_folds(
    manifest: Manifest, protocol: str, *, label_field: str | None = "emotion", dev: bool = True, seed: int = 0
) -> list[Fold]:
    """The folds of a protocol, by its name.

    - ``leave-one-<key>-out``: one part for each value of a key of the manifest, such as ``session`` or ``speaker``
    - ``<k>-fold``: k parts of whole speakers, in which the labels are as equally frequent as can be
    - ``otake2023``: 5 random parts of utterances, ``KFold(5, shuffle=True, random_state=42)``. Its speakers stand in
      training and test, so its figures compare with Otake et al. 2023 only; a warning says so.

    Args:
        label_field: key of the classes that ``<k>-fold`` balances; None balances the utterances alone.
        dev: whether a part is kept for development; without, it goes to training, and ``Fold.dev`` is None.
        seed: of ``<k>-fold``. The order of the manifest's lines does not matter there.

    Raises:
        ConfigError: an unknown protocol, or fewer speakers or sessions than it needs.
        ManifestError: a line lacks the key of the protocol; sessions share a speaker.
    """
    if match := re.fullmatch(r"leave-one-(\w+)-out", protocol):
        key = match[1]
        manifest.require(key)
        names: Sequence[object] = manifest.values(key)
        parts = [Manifest((u for u in manifest if u.get(key) == name), manifest.name) for name in names]
    elif match := re.fullmatch(r"(\d+)-fold", protocol):
        names = [f"fold{i + 1}" for i in range(int(match[1]))]
        parts = _speaker_parts(manifest, len(names), label_field, seed)
    elif protocol == "otake2023":
        from sklearn.model_selection import KFold

        warnings.warn(
            "otake2023: random folds put the same speakers into training and test, which flatters the scores; compare "
            "them with Otake et al. 2023 only, and use leave-one-session-out for anything else",
            stacklevel=2,
        )
        names = [f"otake2023-fold{i + 1}" for i in range(5)]
        if len(manifest) < 5:
            raise ConfigError(f"{manifest.name}: {len(manifest)} utterances cannot make 5 folds; give more")
        splits = KFold(5, shuffle=True, random_state=42).split(np.arange(len(manifest)))
        parts = [Manifest((manifest[i] for i in test), manifest.name) for _, test in splits]
    else:
        raise ConfigError(
            f"protocol {protocol!r} is unknown; use leave-one-session-out, leave-one-speaker-out (or another key), "
            "5-fold (or another number), or otake2023"
        )
    if len(parts) < 2 + dev:
        raise ConfigError(
            f"{manifest.name}: {protocol} makes {len(parts)} part(s), but training, {'dev, ' if dev else ''}and test "
            f"need {2 + dev}; use a protocol with more parts{', or dev=False' if dev else ''}"
        )
    folds = _rotate(manifest, parts, [str(name) for name in names], dev)
    if protocol == "leave-one-session-out":  # speaker-disjoint by its definition: does the corpus keep to it?
        for fold in folds:
            check_disjoint(fold.train, fold.test)
    return folds


def _rotate(manifest: Manifest, parts: Sequence[Manifest], names: Sequence[str], dev: bool) -> list[Fold]:
    folds = []
    for i, (name, test) in enumerate(zip(names, parts, strict=True)):
        watched = parts[(i + 1) % len(parts)] if dev else None
        out = {utterance.id for part in (test, watched or ()) for utterance in part}
        title = f"{manifest.name} {name}"
        train = Manifest((utterance for utterance in manifest if utterance.id not in out), f"{title} train")
        watched = None if watched is None else Manifest(watched, f"{title} dev")
        folds.append(Fold(name, train, watched, Manifest(test, f"{title} test")))
    return folds


def _speaker_parts(manifest: Manifest, k: int, label_field: str | None, seed: int) -> list[Manifest]:
    """Divide the corpus into k parts of whole speakers with like shares of the labels."""
    from sklearn.model_selection import StratifiedGroupKFold

    manifest.require("speaker", *([label_field] if label_field else []))
    if not 2 <= k <= len(manifest.speakers):
        raise ConfigError(
            f"{manifest.name}: {len(manifest.speakers)} speakers cannot make {k} speaker-disjoint folds; "
            f"use 2 to {len(manifest.speakers)}"
        )
    utterances = sorted(manifest, key=lambda utterance: utterance.id)
    labels = [str(utterance.get(label_field)) if label_field else "" for utterance in utterances]
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class with fewer than k utterances: nothing that the user could change
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        try:
            splits = list(splitter.split(labels, labels, [utterance.speaker for utterance in utterances]))
        except ValueError as error:  # every class is rarer than k
            raise ConfigError(f"{manifest.name}: no {k} folds by {label_field} ({error}); use fewer folds") from error
    parts = []
    for _, test in splits:
        ids = {utterances[i].id for i in test}
        parts.append(Manifest((utterance for utterance in manifest if utterance.id in ids), manifest.name))
    if empty := sum(not len(part) for part in parts):
        raise ManifestError(
            f"{manifest.name}: {empty} of {k} folds would be empty, since a few speakers hold most of the labels; "
            "use fewer folds"
        )
    return parts
