"""HarperValleyBank: 1446 simulated calls to a bank's contact centre, 59 speakers, about 24 h (Wu et al., 2020,
arXiv:2010.13929).

Open, https://github.com/cricketclub/gridspace-stanford-harper-valley (Apache-2.0). Layout of the repository::

    gridspace-stanford-harper-valley/
      data/
        audio/agent/0002f70f7386445b.wav      one side of a call each
        audio/caller/0002f70f7386445b.wav
        transcript/0002f70f7386445b.json      [{"index": 1, "speaker_role": "agent", "offset_ms": 3720, "duration_ms":
                                              2670, "human_transcript": "hello this is harper valley ..."}, ...]
        metadata/0002f70f7386445b.json        {"agent": {"speaker_id": 46}, "caller": {"speaker_id": 44},
                                              "tasks": [{"task_type": "replace card"}]}

``offset_ms`` counts from the start of that side's own recording. People take either role, so splits must go by speaker
(``make_folds(manifest, "5-fold", label_field=None)``), not by call. A call recorded in one file of two channels is
brought into this layout by :func:`~speech_adapters.corpora.calls.split_call`.

>>> prepare_harper_valley(download_harper_valley("corpora"), "manifests")                      # doctest: +SKIP
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_adapters.corpora.calls import ROLES
from speech_adapters.corpora.download import download_archive
from speech_adapters.corpora.layout import find_corpus, measure, write_manifest
from speech_adapters.data.audio import MIN_SAMPLES, SAMPLE_RATE
from speech_adapters.data.manifest import Utterance
from speech_adapters.errors import ManifestError
from speech_adapters.files import read_json

URL = "https://github.com/cricketclub/gridspace-stanford-harper-valley/archive/refs/heads/master.tar.gz"
_NOISE = re.compile(r"\[[^\]]*\]")  # [noise], [laughter]
_UNCLEAR = "<unk>"


def download_harper_valley(root: str | os.PathLike[str], *, url: str = URL) -> Path:
    """Download and unpack the repository into ``root/harper_valley``, and return that folder.

    Raises:
        InputError: no network, or an archive that is cut short.
    """
    return download_archive(url, Path(root) / "harper_valley")


def prepare_harper_valley(root: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Write ``output/harper_valley.jsonl``, one line a segment of one speaker, and return it.

    Besides ``text`` and ``speaker`` it holds ``role`` (agent, caller), ``call`` and ``task`` (what the caller wanted).
    Noise marks are taken out of the transcripts. Left out, with a warning that counts them, are segments without
    words, with words that the transcriber could not make out, outside of their recording, or below 25 ms.

    Raises:
        InputError: no corpus there, or metadata that is missing or not JSON.
        ManifestError: a transcript that breaks its schema, or a side without audio.
    """
    corpus = find_corpus(
        root, "transcript/*.json", "HarperValleyBank (its folder data)", "get it with download_harper_valley(...)"
    )
    path = Path(output) / "harper_valley.jsonl"
    left_out: Counter[str] = Counter()
    utterances = (u for file in sorted(corpus.glob("transcript/*.json")) for u in _segments(corpus, file, left_out))
    kept = write_manifest(utterances, path, ("text", "speaker", "role"), name="HarperValleyBank")
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        total = len(kept) + left_out.total()
        warnings.warn(f"{path}: {left_out.total()} of {total} segments left out: {reasons}", stacklevel=2)
    return path


def _segments(corpus: Path, file: Path, left_out: Counter[str]) -> Iterator[Utterance]:
    call = file.stem
    sides = {role: corpus / "audio" / role / f"{call}.wav" for role in ROLES}
    lengths = {role: measure(path, file).duration for role, path in sides.items()}
    metadata, segments = read_json(corpus / "metadata" / file.name), read_json(file)
    try:
        speakers = {role: f"harper{metadata[role]['speaker_id']}" for role in ROLES}
        task = "+".join(sorted({task["task_type"] for task in metadata["tasks"]}))
    except (KeyError, TypeError) as error:
        raise ManifestError(
            f"{corpus / 'metadata' / file.name}: lacks {error}; each side needs its speaker_id, and the call its tasks"
        ) from error
    if not isinstance(segments, list):
        raise ManifestError(f"{file}: expected a list of segments; restore the file")
    for segment in segments:
        where = f"{file}: segment {_value(segment, 'index', file)}"
        role = _value(segment, "speaker_role", where)
        if role not in sides:
            raise ManifestError(f"{where}: speaker_role is {role!r}, expected one of {', '.join(ROLES)}")
        text = " ".join(_NOISE.sub(" ", _value(segment, "human_transcript", where)).split())
        offset, duration = (_value(segment, key, where) / 1000 for key in ("offset_ms", "duration_ms"))
        duration = round(min(duration, lengths[role] - offset), 3)
        if _UNCLEAR in text:
            left_out["with unclear words"] += 1
        elif not text:
            left_out["without words"] += 1
        elif offset < 0 or duration <= 0:
            left_out["outside of the recording"] += 1
        elif duration * SAMPLE_RATE < MIN_SAMPLES:
            left_out["below 25 ms"] += 1
        else:
            yield Utterance(
                f"{call}-{segment['index']:03d}",
                sides[role].absolute(),
                duration,
                offset,
                text=text,
                speaker=speakers[role],
                domain="call_center",
                lang="en",
                extra={"role": role, "call": call, "task": task},
            )


def _value(segment: Any, key: str, where: str | Path) -> Any:
    kinds: dict[str, type | tuple[type, ...]] = {"index": int, "offset_ms": (int, float), "duration_ms": (int, float)}
    kind = kinds.get(key, str)
    value = segment.get(key) if isinstance(segment, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ManifestError(
            f"{where}: {key} is {value!r}; a segment needs {'text' if kind is str else 'a number'} there"
        )
    return value
