"""IEMOCAP: 12 h of dyadic acted and improvised English, 10 actors in 5 sessions (Busso et al., LREC journal 2008).

Given on request, under a licence of its own: https://sail.usc.edu/iemocap/. Layout as the release unpacks::

    IEMOCAP_full_release/
      Session1/ ... Session5/
        dialog/EmoEvaluation/Ses01F_impro01.txt    "[6.2901 - 8.2357]\\tSes01F_impro01_F000\\tneu\\t[2.5, 2.5, 2.5]"
        dialog/transcriptions/Ses01F_impro01.txt   "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me."
        sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav

The last letter before the number says who speaks: in the dialogue Ses01F_impro01, the turn _M003 is the man of session
1, speaker Ses01M. The usual four classes, with excited merged into happy, have 5531 utterances: 1103 angry, 1636
happy, 1708 neutral, 1084 sad.

>>> manifest = prepare_iemocap("IEMOCAP_full_release", "manifests")                            # doctest: +SKIP
>>> folds = make_folds(Manifest.read(manifest), "leave-one-session-out")                       # doctest: +SKIP
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from speech_adapters.corpora.layout import find_corpus, measure, write_manifest
from speech_adapters.data.manifest import Utterance
from speech_adapters.errors import InputError, ManifestError

FOUR_CLASSES = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
"""The corpus's code -> class. Turns with other codes (frustrated, no agreement, ...) are no part of this task."""

_RATING = re.compile(
    r"\[(?P<start>[\d.]+) - (?P<end>[\d.]+)\]\t(?P<id>Ses\d\d[FM]_\w+)\t(?P<code>[a-z]{3})\t\[(?P<vad>.+)\]"
)
_TURN = re.compile(r"(?P<id>Ses\d\d[FM]_\w+) \[[\d.]+-[\d.]+\]: ?(?P<text>.*)")
_EVENT = re.compile(r"\[[A-Z]+\]")  # [LAUGHTER], [BREATHING]


def prepare_iemocap(
    root: str | os.PathLike[str], output: str | os.PathLike[str], classes: Mapping[str, str] = FOUR_CLASSES
) -> Path:
    """Write ``output/iemocap.jsonl`` and return it. ``session`` (Ses01, ...) is what folds leave out.

    ``classes`` maps the corpus's codes to emotions; turns with other codes are left out.

    Raises:
        InputError: no IEMOCAP there, or a dialogue that has audio but no evaluation, or the reverse.
        ManifestError: an evaluated turn without audio.
    """
    corpus = find_corpus(
        root, "Session?/dialog/EmoEvaluation", "IEMOCAP", "request the release at https://sail.usc.edu/iemocap/"
    )
    utterances = (
        utterance
        for session in sorted(corpus.glob("Session?"))
        for dialogue in _dialogues(session)
        for utterance in _turns(session, dialogue, classes)
    )
    path = Path(output) / "iemocap.jsonl"
    write_manifest(utterances, path, ("emotion", "speaker", "session"), name="IEMOCAP")
    return path


def _dialogues(session: Path) -> list[str]:
    """Names of the session's dialogues, which must have both ratings and audio."""
    rated = {path.stem for path in (session / "dialog" / "EmoEvaluation").glob("Ses*.txt")}  # not macOS's "._Ses*.txt"
    heard = {path.name for path in (session / "sentences" / "wav").glob("Ses*") if path.is_dir()}
    if odd := sorted(rated ^ heard):
        lacks = "audio in sentences/wav" if odd[0] in rated else "ratings in dialog/EmoEvaluation"
        raise InputError(f"{session}: {odd[0]} has no {lacks}; unpack the whole release again")
    return sorted(rated)


def _turns(session: Path, dialogue: str, classes: Mapping[str, str]) -> Iterator[Utterance]:
    ratings = session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
    transcripts = session / "dialog" / "transcriptions" / f"{dialogue}.txt"
    texts = {}
    if transcripts.exists():
        for line in transcripts.read_text(encoding="latin-1").splitlines():
            if match := _TURN.match(line):
                texts[match["id"]] = " ".join(_EVENT.sub(" ", match["text"]).split())
    for number, line in enumerate(ratings.read_text(encoding="latin-1").splitlines(), start=1):
        if not line.startswith("["):  # raters' single votes, the header, blank lines
            continue
        match = _RATING.match(line)
        if match is None:
            raise ManifestError(
                f'{ratings}:{number}: expected "[start - end]\\tturn\\temotion\\t[V, A, D]", got {line!r}'
            )
        if match["code"] not in classes:
            continue
        name, emotion = match["id"], classes[match["code"]]
        audio = session / "sentences" / "wav" / dialogue / f"{name}.wav"
        speaker = name[:5] + name.rpartition("_")[2][0]
        yield Utterance(
            name,
            audio.absolute(),
            measure(audio, f"{ratings}:{number}").duration,
            text=texts.get(name) or None,
            speaker=speaker,
            emotion=emotion,
            domain="dialogue",
            lang="en",
            extra={
                "session": name[:5],
                "gender": speaker[-1],
                "improvised": "impro" in dialogue,
                "code": match["code"],
            },
        )
