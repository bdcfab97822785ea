"""A round's labelling sheet: out as JSON Lines, CSV and an HTML page with players, and back in as labels.

The same columns in all three: ``id``, ``guess`` (the model's), ``uncertainty``, ``nearest`` (labelled utterances that
sound alike, with their labels) and the key to fill in, ``text`` or ``emotion``. Fill it in one of them: in the CSV or
JSON Lines by hand, or in the page, whose button saves a filled JSON Lines file; ``-`` where an utterance cannot be
labelled (noise, two speakers, another language). Errors start with ``file:line``.

Annotators get no absolute paths: ``audio_filepath`` begins where the picks' folders part. A cell of the CSV that a
spreadsheet would take for a formula gets an apostrophe in front, which reading takes away again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speech_adapters.active.pool_predictions import Observation
from speech_adapters.data.formats.columns import one_line, zeros_lost
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.records import Names, read_records
from speech_adapters.errors import ManifestError, counted
from speech_adapters.files import write_text
from speech_adapters.reports.page import render
from speech_adapters.reports.sound import sound_of

MOST_AUDIO_BYTES = 40_000_000

SKIP = "-"
"""Filled in where an utterance cannot be labelled."""

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")  # what begins like one, apostrophes put in front included


@dataclass(frozen=True)
class Row:
    """One utterance to label; ``nearest`` holds up to three labelled ones as ``id: label``."""

    utterance: Utterance
    guess: str = ""
    uncertainty: float | None = None
    nearest: tuple[str, ...] = ()


def sheet_rows(
    picks: Sequence[Utterance],
    pool: Manifest,
    observed: Observation,
    labelled: Manifest,
    observed_labelled: Observation | None,
    key: str,
) -> list[Row]:
    """Rows of the picks: guess and entropy of ``pool``'s observation, the three labelled ones of greatest cosine."""
    places = {utterance.id: index for index, utterance in enumerate(pool)}
    rows = []
    for utterance in picks:
        index = places[utterance.id]
        nearest: tuple[str, ...] = ()
        if observed_labelled is not None and len(labelled):
            closest = np.argsort(-observed_labelled.embeddings @ observed.embeddings[index], kind="stable")[:3]
            nearest = tuple(f"{labelled[int(i)].id}: {labelled[int(i)].get(key)}" for i in closest)
        unsure = (observed.uncertainty or {}).get("entropy")
        rows.append(
            Row(
                utterance,
                observed.guesses[index] if observed.guesses else "",
                None if unsure is None else float(unsure[index]),
                nearest,
            )
        )
    return rows


def write_sheet(folder: str | os.PathLike[str], rows: Sequence[Row], key: str, labels: Sequence[str] = ()) -> Path:
    """Write ``sheet.jsonl``, ``sheet.csv`` and ``sheet.html``; returns the page.

    Args:
        key: what is to be filled in, ``text`` or the key of a class.
        labels: the classes to choose from; free text without.
    """
    folder = Path(folder)
    root = os.path.commonpath([row.utterance.audio_filepath.parent.absolute() for row in rows])
    entries: list[dict[str, Any]] = [
        {
            "id": row.utterance.id,
            key: "",
            "guess": row.guess,
            "uncertainty": None if row.uncertainty is None else round(row.uncertainty, 4),
            "nearest": list(row.nearest),
            "audio_filepath": os.path.relpath(row.utterance.audio_filepath.absolute(), root),
            "offset": row.utterance.offset,
            "duration": row.utterance.duration,
        }
        for row in rows
    ]
    write_text(folder / "sheet.jsonl", "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    table = io.StringIO()
    writer = csv.DictWriter(table, list(entries[0]), lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        cells = {**entry, "nearest": " | ".join(entry["nearest"])}
        writer.writerow({name: _guard(cell) if isinstance(cell, str) else cell for name, cell in cells.items()})
    write_text(folder / "sheet.csv", "\ufeff" + table.getvalue())  # by the mark Excel knows that it is UTF-8
    left, cards = MOST_AUDIO_BYTES, []
    for row in rows:
        u = row.utterance
        sound = sound_of(u.audio_filepath, u.offset, u.duration, u.channel, left)
        left -= sound.size
        cards.append((row, sound))
    title = f"{counted(len(rows), 'utterance')} to label"
    write_text(
        folder / "sheet.html",
        render("sheet.html.j2", "sheet.js", title=title, key=key, cards=cards, labels=labels, skip=SKIP),
    )
    return folder / "sheet.html"


def read_sheet(
    path: str | os.PathLike[str],
    picks: Sequence[Utterance],
    key: str,
    labels: Collection[str] = (),
    earlier: Sequence[Sequence[Utterance]] = (),
) -> dict[str, dict[str, Any] | None]:
    """``{id: {key: label}}`` of a filled ``.csv``, ``.tsv`` or ``.jsonl`` sheet, in the order of its lines; ``{id:
    None}`` of what cannot be labelled (:data:`SKIP`).

    Tables may be as spreadsheets save them: with semicolons, blank rows, headers in another case.

    Args:
        picks: those of the round that waits.
        earlier: those of the rounds before, whose sheets may come again; the first line says which round it is of.

    Raises:
        InputError: ``file:line`` and what is wrong: not JSON, a missing column, an unknown or repeated id, an empty
            label or one that is not among ``labels``; or the picks that have no line.
    """
    path = Path(path)
    rounds = [{utterance.id for utterance in those} for those in (picks, *earlier)]
    wanted, known = rounds[0], set().union(*rounds)
    stripped = {name.strip(): name for name in known}  # as cells are
    found: dict[str, dict[str, Any] | None] = {}
    table = path.suffix.lower() in (".csv", ".tsv")
    names: Names = {"id": (), key: (key.lower(),)}
    for number, entry in read_records(path, "the sheet", names, ("id", key)):
        where = f"{path}:{number}"
        if table:
            entry = {column: _unguard(entry.get(column, "")) for column in names}
        for column in ("id", key):
            if not isinstance(entry.get(column), str):
                raise ManifestError(f"{where}: {column!r} is missing; keep the sheet's columns and fill in {key!r}")
        name, label = entry["id"], one_line(entry[key])
        name = name if name in known else stripped.get(name, name)
        if not found:
            wanted = next((ids for ids in rounds if name in ids), wanted)
        if name not in wanted:
            remedy = zeros_lost(name, wanted) or "; give this round's sheet"
            raise ManifestError(f"{where}: id {name!r} is not in this round{remedy}")
        if name in found:
            raise ManifestError(f"{where}: id {name!r} stands here a second time; keep one of the lines")
        if not label:
            raise ManifestError(
                f"{where}: {key!r} of {name!r} is empty; fill it in, {SKIP} where it cannot be labelled"
            )
        if label == SKIP and label not in labels:
            found[name] = None
            continue
        if labels and label not in labels:
            raise ManifestError(f"{where}: {key} {label!r} is not one of {', '.join(sorted(labels))}; correct it")
        if re.search("[\ud800-\udfff]", label):
            raise ManifestError(f"{where}: {key!r} of {name!r} holds half a character (a lone surrogate); retype it")
        found[name] = {key: label}
    if missing := sorted(wanted - set(found)):
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise ManifestError(f"{path}: {len(missing)} of the round's picks have no line: {shown}; label them too")
    return found


def _guard(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unguard(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
