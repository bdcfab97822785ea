"""CREMA-D: acted English, 91 actors, 6 emotions, 12 sentences, 7442 utterances (Cao et al., IEEE TAC 2014).

Open Database Licence, https://github.com/CheyneyComputerScience/CREMA-D. Its audio lies in git LFS, so there is no
archive to download: ``git lfs install && git clone`` that address (or its mirror
https://gitlab.com/cs-cooper-lab/crema-d-mirror). Layout of the repository::

    CREMA-D/
      AudioWAV/1001_DFA_ANG_XX.wav         actor_sentence_emotion_intensity; 16 kHz
      VideoDemographics.csv                "1001,51,\"Male\",\"Caucasian\",\"Not Hispanic\""
      processedResults/summaryTable.csv    what raters heard (VoiceVote) and saw and heard (MultiModalVote)

Folds: ``5-fold`` of whole speakers, as in PEFT-SER (Feng and Narayanan, ACII 2023), which takes MultiModalVote.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from speech_adapters.corpora.layout import find_corpus, measure, write_manifest
from speech_adapters.data.manifest import Utterance
from speech_adapters.errors import ConfigError, InputError, ManifestError

EMOTIONS = {
    "ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"
}  # fmt: skip
SENTENCES = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}
SILENT = "1076_MTI_SAD_XX"
"""The file without sound that the corpus is known for; left out."""

VOTES = {"voice": "VoiceVote", "multimodal": "MultiModalVote"}
_NAME = re.compile(r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<intensity>LO|MD|HI|XX|X)")
_URL = "https://github.com/CheyneyComputerScience/CREMA-D"


def prepare_crema_d(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    labels: Literal["intended", "voice", "multimodal"] = "intended",
) -> Path:
    """Write ``output/crema_d.jsonl`` and return it.

    ``labels`` says whose emotion it is: what the actor was asked to show, or what most raters perceived by voice
    alone, or by voice and face; utterances on which the raters' vote is a tie are then left out.

    Raises:
        InputError: no CREMA-D there, or no table of votes.
        ManifestError: a broken file, one that git LFS has not fetched, a name that is not CREMA-D's, or one without
            a vote.
    """
    if labels not in ("intended", *VOTES):
        raise ConfigError(f"labels={labels!r}: choose intended, voice or multimodal")
    corpus = find_corpus(root, "AudioWAV/*.wav", "CREMA-D", f"get it with: git lfs install && git clone {_URL}")
    votes = _votes(corpus / "processedResults" / "summaryTable.csv", VOTES[labels]) if labels in VOTES else None
    path = Path(output) / "crema_d.jsonl"
    utterances = _utterances(corpus / "AudioWAV", votes, _genders(corpus / "VideoDemographics.csv"))
    write_manifest(utterances, path, ("emotion", "speaker"), name="CREMA-D")
    return path


def _utterances(folder: Path, votes: Mapping[str, str] | None, genders: Mapping[str, str]) -> Iterator[Utterance]:
    by_letter = {emotion[0].upper(): emotion for emotion in EMOTIONS.values()}
    for file in sorted(folder.glob("*.wav")):
        match = _NAME.fullmatch(file.stem)
        if match is None or match["emotion"] not in EMOTIONS or match["sentence"] not in SENTENCES:
            raise ManifestError(f"{file}: not a name of CREMA-D (such as 1001_DFA_ANG_XX.wav); remove the file")
        if file.stem == SILENT:
            continue
        emotion = EMOTIONS[match["emotion"]]
        if votes is not None:
            if file.stem not in votes:
                raise ManifestError(f"{file}: no vote for it in summaryTable.csv; fetch the table again")
            if (vote := votes[file.stem]) not in by_letter:  # "A:N", a tie
                continue
            emotion = by_letter[vote]
        gender = genders.get(match["actor"])
        yield Utterance(
            file.stem,
            file.absolute(),
            measure(file, folder).duration,
            text=SENTENCES[match["sentence"]],
            speaker=f"crema{match['actor']}",
            emotion=emotion,
            domain="acted",
            lang="en",
            extra={"intensity": match["intensity"], **({"gender": gender} if gender else {})},
        )


def _votes(table: Path, column: str) -> dict[str, str]:
    if not table.exists():
        raise InputError(f"{table}: no such file; labels of raters need it: git clone {_URL}")
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        names = {
            name.lower(): name for name in rows.fieldnames or ()
        }  # the documentation has fileName, the table FileName
        if missing := [name for name in ("FileName", column) if name.lower() not in names]:
            raise InputError(f"{table}:1: no column {missing[0]!r}; fetch the table again")
        return {row[names["filename"]]: row[names[column.lower()]].strip() for row in rows}


def _genders(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    with table.open(encoding="utf-8", newline="") as file:
        return {row["ActorID"]: row["Sex"][:1] for row in csv.DictReader(file)}
