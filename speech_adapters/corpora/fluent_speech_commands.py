"""Fluent Speech Commands: 30,043 commands to a smart home, 97 speakers, 31 intents (Lugosch et al., Interspeech 2019).

Academic licence, on request at https://fluent.ai. Layout as the archive unpacks::

    fluent_speech_commands_dataset/
      data/train_data.csv  valid_data.csv  test_data.csv     ",path,speakerId,transcription,action,object,location"
      wavs/speakers/2BqVo8kVB2Skwgyb/0a3129c0-....wav        16 kHz

An intent is a triple of ``action`` (6), ``object`` (14) and ``location`` (4), which stand in the manifest as keys of
their own; ``label`` joins them: ``activate|lights|kitchen``. The published figure counts an utterance as right when
all three are, which is the accuracy (WA) of ``label``. Splits are speaker-disjoint: 23,132, 3,118 and 3,793
utterances.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from speech_adapters.corpora.layout import find_corpus, write_manifest
from speech_adapters.data.formats.tables import read
from speech_adapters.data.manifest import Manifest, Utterance, check_disjoint

SPLITS = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}
SLOTS = ("action", "object", "location")
_COLUMNS = {
    "audio_filepath": "path",
    "speaker": "speakerId",
    "text": "transcription",
    **{slot: slot for slot in SLOTS},
}


def prepare_fluent_speech_commands(root: str | os.PathLike[str], output: str | os.PathLike[str]) -> dict[str, Path]:
    """Write ``output/fluent_speech_commands_{train,dev,test}.jsonl`` and return split -> manifest.

    Raises:
        InputError: no corpus there.
        ManifestError: with ``file:line``: a missing table or column, an empty slot, audio that is missing or broken;
            a speaker in two splits.
    """
    corpus = find_corpus(
        root, "data/train_data.csv", "Fluent Speech Commands", "request it at https://fluent.ai and unpack it"
    )
    manifests: dict[str, Manifest] = {}
    for split, table in SPLITS.items():
        rows = read(corpus / "data" / table, columns=_COLUMNS, root=corpus)
        path = Path(output) / f"fluent_speech_commands_{split}.jsonl"
        rows.require("speaker", "text", *SLOTS)
        manifests[split] = write_manifest(map(_labelled, rows), path, ("label",), name=f"{split} commands")
    for first, second in combinations(manifests.values(), 2):
        check_disjoint(first, second)
    return {split: Path(manifest.name) for split, manifest in manifests.items()}


def _labelled(utterance: Utterance) -> Utterance:
    label = "|".join(utterance.get(slot) for slot in SLOTS)
    return replace(utterance, label=label, domain="commands", lang="en")
