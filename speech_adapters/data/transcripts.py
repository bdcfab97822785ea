"""What was recognised in each utterance, beside what was said: JSON Lines that a later comparison reads.

``{"id": "a1", "speaker": "a", "reference": "YES", "hypothesis": "YET"}`` a line, as they were scored (normalised).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from speech_adapters.errors import InputError
from speech_adapters.files import read_json_lines, write_text
from speech_adapters.metrics.wer import WERResult, word_error_rate


def write_transcripts(path: str | os.PathLike[str], result: WERResult) -> None:
    """Write one line per utterance, whole file or nothing."""
    lines = []
    for score in result.utterances:
        entry = {
            "id": score.id,
            "speaker": score.speaker,
            "reference": score.reference,
            "hypothesis": score.hypothesis,
        }
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    write_text(path, lines)


def read_transcripts(path: str | os.PathLike[str]) -> WERResult:
    """The result that was written, scored anew.

    Raises:
        InputError: with the line: a missing file, or a line that lacks a text.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file of transcripts; repeat the run that writes it")
    rows = read_json_lines(path)
    for number, row in enumerate(rows, 1):
        for key in ("id", "reference", "hypothesis"):
            if not isinstance(row.get(key), str):
                raise InputError(f"{path}:{number}: {key} is {row.get(key)!r}, expected text; repeat the run")
    return word_error_rate(
        [row["reference"] for row in rows],
        [row["hypothesis"] for row in rows],
        [row.get("speaker") for row in rows],
        [row["id"] for row in rows],
        normalizer="none",
    )
