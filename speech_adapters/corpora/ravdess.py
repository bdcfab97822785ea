"""RAVDESS: acted English, 24 actors, 8 emotions, 2 sentences, 1440 utterances (Livingstone and Russo, PLOS ONE 2018).

CC BY-NC-SA 4.0, https://zenodo.org/records/1188976. Layout as Audio_Speech_Actors_01-24.zip unpacks::

    RAVDESS/
      Actor_01/ ... Actor_24/
        03-01-05-01-02-01-12.wav       modality-channel-emotion-intensity-statement-repetition-actor; 48 kHz

Odd actors are men. A few files are stereo by accident: their mean is written beside the manifest. Folds: ``6-fold``
of whole speakers, or ``leave-one-speaker-out``.

>>> prepare_ravdess(download_ravdess("corpora"), "manifests")                                  # doctest: +SKIP
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from speech_adapters.corpora.download import download_archive
from speech_adapters.corpora.layout import find_corpus, measure, mono, write_manifest
from speech_adapters.data.manifest import Utterance
from speech_adapters.errors import ManifestError

URL = "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip"
MD5 = "bc696df654c87fed845eb13823edef8a"
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = ("KIDS ARE TALKING BY THE DOOR", "DOGS ARE SITTING BY THE DOOR")
_NAME = re.compile(r"03-(?P<channel>0[12])-(?P<emotion>0[1-8])-(0[12])-(?P<statement>0[12])-0[12]-(?P<actor>\d\d)")


def download_ravdess(root: str | os.PathLike[str], *, url: str = URL) -> Path:
    """Download, check and unpack the 208 MB of speech into ``root/RAVDESS``, and return that folder.

    Raises:
        InputError: no network, or an archive with another checksum.
    """
    return download_archive(url, Path(root) / "RAVDESS", MD5)


def prepare_ravdess(root: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Write ``output/ravdess.jsonl`` and return it. Recordings of song are left out.

    Raises:
        InputError: no RAVDESS there. ManifestError: a broken file, or a name that is not RAVDESS's.
    """
    corpus = find_corpus(
        root, "Actor_*/03-*.wav", "RAVDESS", f"get it with download_ravdess(...), or unpack {URL} by hand"
    )
    path = Path(output) / "ravdess.jsonl"
    utterances = _utterances(sorted(corpus.glob("Actor_*/*.wav")), path.parent / "ravdess_mono")
    write_manifest(utterances, path, ("emotion", "speaker"), name="RAVDESS")
    return path


def _utterances(files: list[Path], folder: Path) -> Iterator[Utterance]:
    for file in files:
        match = _NAME.fullmatch(file.stem)
        if match is None or file.parent.name != f"Actor_{match['actor']}":
            raise ManifestError(
                f"{file}: not a name of RAVDESS in its actor's folder (03-01-05-01-02-01-12.wav); remove it"
            )
        if match["channel"] == "02":
            continue
        info = measure(file, file.parent)
        yield Utterance(
            file.stem,
            mono(file, info, folder).absolute(),
            info.duration,
            text=STATEMENTS[int(match["statement"]) - 1],
            speaker=f"ravdess{match['actor']}",
            emotion=EMOTIONS[int(match["emotion"]) - 1],
            domain="acted",
            lang="en",
            extra={"gender": "M" if int(match["actor"]) % 2 else "F"},
        )
