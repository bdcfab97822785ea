"""EmoDB: acted German, 10 actors, 7 emotions, 10 sentences, 535 utterances (Burkhardt et al., Interspeech 2005).

CC0 in its later editions, http://emodb.bilderbar.info. Layout as download.zip unpacks::

    EmoDB/
      wav/03a01Fa.wav      speaker 03, sentence a01, emotion F, take a; 16 kHz
      (labels of other kinds in further folders)

Letters of the emotions stand for German words: W Wut, L Langeweile, E Ekel, A Angst, F Freude, T Trauer, N neutral.
Folds: ``leave-one-speaker-out``, or ``5-fold``.

>>> prepare_emodb(download_emodb("corpora"), "manifests")                                      # doctest: +SKIP
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from speech_adapters.corpora.download import download_archive
from speech_adapters.corpora.layout import find_corpus, measure, write_manifest
from speech_adapters.data.manifest import Utterance
from speech_adapters.errors import ManifestError

URL = "http://emodb.bilderbar.info/download/download.zip"
"""No checksum is published; the zip's own checks each file."""

EMOTIONS = {
    "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness", "N": "neutral"
}  # fmt: skip
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute Abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
MEN = ("03", "10", "11", "12", "15")
_NAME = re.compile(r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])[a-z]")


def download_emodb(root: str | os.PathLike[str], *, url: str = URL) -> Path:
    """Download and unpack the 40 MB into ``root/EmoDB``, and return that folder.

    Raises:
        InputError: no network, or an archive that is cut short.
    """
    return download_archive(url, Path(root) / "EmoDB")


def prepare_emodb(root: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Write ``output/emodb.jsonl`` and return it.

    Raises:
        InputError: no EmoDB there. ManifestError: a broken file, or a name that is not EmoDB's.
    """
    corpus = find_corpus(root, "wav/*.wav", "EmoDB", f"get it with download_emodb(...), or unpack {URL} by hand")
    path = Path(output) / "emodb.jsonl"
    write_manifest(_utterances(corpus / "wav"), path, ("emotion", "speaker"), name="EmoDB")
    return path


def _utterances(folder: Path) -> Iterator[Utterance]:
    for file in sorted(folder.glob("*.wav")):
        match = _NAME.fullmatch(file.stem)
        if match is None or match["sentence"] not in SENTENCES:
            raise ManifestError(f"{file}: not a name of EmoDB (such as 03a01Fa.wav); remove the file")
        yield Utterance(
            file.stem,
            file.absolute(),
            measure(file, folder).duration,
            text=SENTENCES[match["sentence"]],
            speaker=f"emodb{match['speaker']}",
            emotion=EMOTIONS[match["emotion"]],
            domain="acted",
            lang="de",
            extra={"gender": "M" if match["speaker"] in MEN else "F"},
        )
