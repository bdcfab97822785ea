"""A round's labelling sheet: out as JSON Lines, CSV and an HTML page with players, and back in as labels.

The same columns in all three: ``id``, ``guess`` (the model's), ``uncertainty``, ``nearest`` (labelled utterances that
sound alike, with their labels) and the key to fill in, ``text`` or ``emotion``. Fill it in one of them: in the CSV or
JSON Lines by hand, or in the page, whose button saves a filled JSON Lines file. Errors start with ``file:line``.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from speech_adapters.active.pool_predictions import Observation
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ManifestError
from speech_adapters.files import write_text
from speech_adapters.reports.report import audio_player

MOST_AUDIO_BYTES = 40_000_000


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
    entries = [
        {
            "id": row.utterance.id,
            key: "",
            "guess": row.guess,
            "uncertainty": None if row.uncertainty is None else round(row.uncertainty, 4),
            "nearest": list(row.nearest),
            "audio_filepath": str(row.utterance.audio_filepath),
            "offset": row.utterance.offset,
            "duration": row.utterance.duration,
        }
        for row in rows
    ]
    write_text(folder / "sheet.jsonl", "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    table = io.StringIO()
    writer = csv.DictWriter(table, list(entries[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**entry, "nearest": " | ".join(entry["nearest"])} for entry in entries)
    write_text(folder / "sheet.csv", table.getvalue())
    left, cards = MOST_AUDIO_BYTES, []
    for row, entry in zip(rows, entries, strict=True):
        player, size = audio_player(entry, folder, left)
        left -= size
        cards.append(_card(row, player, key, labels))
    page = _PAGE.replace("{key}", escape(json.dumps(key))).replace("{count}", str(len(rows)))
    write_text(folder / "sheet.html", page.replace("{cards}", "".join(cards)))
    return folder / "sheet.html"


def read_sheet(
    path: str | os.PathLike[str], picks: Sequence[Utterance], key: str, labels: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """``{id: {key: label}}`` of a filled ``.csv`` or ``.jsonl`` sheet, in the order of its lines.

    Raises:
        ManifestError: ``file:line`` and what is wrong: not JSON, a missing column, an unknown or repeated id, an empty
            label or one that is not among ``labels``; or the picks that have no line.
    """
    path = Path(path)
    wanted = {utterance.id for utterance in picks}
    found: dict[str, dict[str, Any]] = {}
    for number, entry in _lines(path):
        where = f"{path}:{number}"
        for column in ("id", key):
            if not isinstance(entry.get(column), str):
                raise ManifestError(f"{where}: {column!r} is missing; keep the sheet's columns and fill in {key!r}")
        name, label = entry["id"], entry[key].strip()
        if name not in wanted:
            raise ManifestError(f"{where}: id {name!r} is not in this round; give this round's sheet")
        if name in found:
            raise ManifestError(f"{where}: id {name!r} stands here a second time; keep one of the lines")
        if not label:
            raise ManifestError(f"{where}: {key!r} of {name!r} is empty; fill it in")
        if labels and label not in labels:
            raise ManifestError(f"{where}: {key} {label!r} is not one of {', '.join(sorted(labels))}; correct it")
        found[name] = {key: label}
    if missing := sorted(wanted - set(found)):
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise ManifestError(f"{path}: {len(missing)} of the round's picks have no line: {shown}; label them too")
    return found


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Numbered entries of a CSV or JSON Lines file."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read as UTF-8 ({error}); give a filled sheet.csv or .jsonl") from error
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        return [(reader.line_num, row) for row in reader]
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ManifestError(f"{path}:{number}: not JSON ({error.msg}); correct the line") from error
        if not isinstance(entry, dict):
            raise ManifestError(f"{path}:{number}: expected a JSON object, got {entry!r}; correct the line")
        entries.append((number, entry))
    return entries


def _card(row: Row, player: str, key: str, labels: Sequence[str]) -> str:
    name = escape(row.utterance.id, quote=True)
    if labels:
        choices = "".join(f"<option>{escape(label)}</option>" for label in ("", *labels))
        field = f'<select data-id="{name}" aria-label="{escape(key)}">{choices}</select>'
    else:
        field = f'<textarea data-id="{name}" rows="2" aria-label="{escape(key)}"></textarea>'
    unsure = "" if row.uncertainty is None else f"uncertainty {row.uncertainty:.3f}"
    nearest = "".join(f"<li>{escape(one)}</li>" for one in row.nearest)
    return (
        f"<article><header><b>{name}</b> <span>{row.utterance.duration:.1f} s {unsure}</span></header>{player}"
        f"<p>guess: <q>{escape(row.guess)}</q></p>{f'<p>sounds like</p><ul>{nearest}</ul>' if nearest else ''}"
        f"<label>{escape(key)} {field}</label></article>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Labelling sheet</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; max-width: 52rem; margin: 0 auto;
  padding: 1rem; }
article { border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: 6px; padding: .7rem 1rem;
  margin: 0 0 .8rem; }
header span { opacity: .7; margin-left: .6rem; } p, ul { margin: .3rem 0; } audio { width: 100%; }
label { display: block; } textarea, select { display: block; font: inherit; width: 100%; box-sizing: border-box; }
.bar { position: sticky; top: 0; background: Canvas; padding: .6rem 0; }
button { font: inherit; padding: .3rem .9rem; }
</style>
</head>
<body data-key="{key}">
<h1>{count} utterances to label</h1>
<p class="bar"><button id="save">Save labels</button> <span id="state"></span></p>
{cards}
<script>
const key = JSON.parse(document.body.dataset.key), fields = [...document.querySelectorAll("[data-id]")];
const show = () => document.getElementById("state").textContent =
  fields.filter(f => f.value.trim()).length + " of " + fields.length + " filled in";
fields.forEach(f => f.addEventListener("input", show)); show();
document.getElementById("save").addEventListener("click", () => {
  const lines = fields.map(f => JSON.stringify({id: f.dataset.id, [key]: f.value.trim()}) + "\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, {type: "application/jsonl"}));
  link.download = "sheet_filled.jsonl"; link.click();
});
</script>
</body>
</html>
"""
