"""All entries of a bank, read at once; and what is looked for among them.

``index.json`` keeps what each entry's file said and the file's stamp (time, size, inode). It is for speed alone: an
entry whose stamp is another one, or so young that a second change could bear the same, is read from its own file, and
where the index is missing or damaged all are.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.saving.bank_layout import (
    NAME,
    Entry,
    Facts,
    Layout,
    Version,
    entry_of,
    read_sealed,
    write_sealed,
)

OLD = 60_000_000_000
"""Nanoseconds after which a change writes the index anew: the entries that changed meanwhile are read one by one."""
_FACTS = [one.name for one in fields(Facts)]
_YOUNG = 2_000_000_000  # ns; the clocks of file systems are finer


@dataclass(frozen=True)
class Found:
    """A version of a bank: its name, number, tags, and what it is."""

    name: str
    number: int
    tags: tuple[str, ...]
    version: Version

    @property
    def facts(self) -> Facts:
        """What it is looked up by."""
        return self.version.facts

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"

    def to_dict(self) -> dict[str, Any]:
        """As one flat mapping."""
        return {
            "name": self.name,
            "version": self.number,
            "tags": list(self.tags),
            "added": self.version.added,
            "object": self.version.object,
            **vars(self.facts),
        }


@dataclass
class Index:
    """The entries by name, and what is wrong with the files of those that cannot be read."""

    entries: dict[str, Entry]
    damaged: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, layout: Layout) -> Index:
        """Every entry as it stands on disk now."""
        kept, entries, damaged = _read_index(layout), {}, {}
        for name, path, stamp in _files(layout.folder / "entries"):
            row = kept.get(name)
            try:
                if row is not None and row["stamp"] == stamp:
                    entries[name] = _as_checked(row["entry"])
                else:
                    entries[name] = entry_of(read_sealed(path), path)
            except CheckpointError as error:
                damaged[name] = str(error)
        return cls(dict(sorted(entries.items())), damaged)

    def versions(self, *, every: bool = False) -> Iterator[Found]:
        """The newest version of each name and those with tags, or ``every`` one."""
        for name, entry in self.entries.items():
            tags: dict[int, list[str]] = {}
            for tag, number in entry.tags.items():
                tags.setdefault(number, []).append(tag)
            numbers = entry.numbers
            for number in numbers:
                if every or number in tags or number == numbers[-1]:
                    yield Found(name, number, tuple(sorted(tags.get(number, ()))), entry.versions[str(number)])


def refresh(layout: Layout) -> None:
    """Write the index anew where it is older than :data:`OLD`; by who holds the bank's lock."""
    file, now = layout.folder / "index.json", time.time_ns()
    if file.is_file() and abs(now - file.stat().st_mtime_ns) < OLD:
        return
    kept, rows = _read_index(layout), {}
    for name, path, stamp in _files(layout.folder / "entries"):
        if now - stamp[0] > _YOUNG:
            row = kept.get(name)
            with contextlib.suppress(CheckpointError):
                if row is None or row["stamp"] != stamp:
                    row = {"stamp": stamp, "entry": entry_of(read_sealed(path), path)}
                rows[name] = row
    write_sealed(file, {"facts": _FACTS, "entries": rows})


def _read_index(layout: Layout) -> Mapping[str, Any]:
    """What the index says by name; nothing where it is missing, damaged, or of other facts than these."""
    try:
        index = read_sealed(layout.folder / "index.json")
    except CheckpointError:
        return {}
    return index["entries"] if index.get("facts") == _FACTS else {}


def _as_checked(values: Mapping[str, Any]) -> Entry:
    """An entry from the index, which holds only what :func:`entry_of` has checked, under a checksum: the checks take
    most of the time of reading a thousand."""
    versions = {
        number: Version(
            object=one["object"], added=one["added"], facts=Facts(**one["facts"]), needs=tuple(one["needs"])
        )
        for number, one in values["versions"].items()
    }
    return Entry(last=values["last"], versions=versions, tags=values["tags"])


def _files(root: Path) -> Iterator[tuple[str, Path, list[int]]]:
    """Name, file and stamp of each entry."""
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        try:
            found = list(os.scandir(folder))
        except FileNotFoundError:
            continue
        for item in found:
            if item.is_dir(follow_symlinks=False):
                folders.append((Path(item.path), f"{prefix}{item.name}/"))
            elif item.name.endswith(".json") and NAME.fullmatch(name := prefix + item.name.removesuffix(".json")):
                try:
                    stat = item.stat()
                except FileNotFoundError:  # removed meanwhile
                    continue
                yield name, Path(item.path), [stat.st_mtime_ns, stat.st_size, stat.st_ino]


_RATES = frozenset("wer cer eer ua wa macro_f1 accuracy".split())
"""Figures that are fractions."""

_CONDITION = re.compile(r"([a-z0-9_.]+)\s*(<=|>=|<|>|=)\s*([0-9.eE+-]+)")


@dataclass(frozen=True, kw_only=True)
class Query:
    """What a version must be; what is None is not asked for.

    Attributes:
        words: each occurs in its name, tags or facts, in any case of letters.
        metrics: conditions such as ``wer<0.2``; a version without that figure does not fit.
        since, until: days (``2026-11-26``) or times between which it was added, the last day included.
    """

    words: Sequence[str] = ()
    name: str | None = None
    tag: str | None = None
    base: str | None = None
    task: str | None = None
    domain: str | None = None
    language: str | None = None
    method: str | None = None
    metrics: Sequence[str] = ()
    since: str | None = None
    until: str | None = None

    def __post_init__(self) -> None:
        for condition in self.metrics:
            _parse_condition(condition)
        for key in ("since", "until"):
            day = getattr(self, key)
            if day is not None and not re.fullmatch(r"\d{4}(-\d{2}(-\d{2}(T[\d:]+Z?)?)?)?", day):
                raise ConfigError(f"{key} {day!r}: give a day such as 2026-11-26.")

    def fits(self, found: Found) -> bool:
        """Whether a version is what was asked for."""
        facts = found.facts
        same = all(
            getattr(self, key) is None or getattr(self, key) == getattr(facts, key)
            for key in ("task", "domain", "language", "method")
        )
        if not same or (self.tag is not None and self.tag not in found.tags):
            return False
        if self.name is not None and found.name != self.name and not found.name.startswith(f"{self.name}/"):
            return False
        if self.base is not None and self.base != facts.base and not facts.fingerprint.startswith(self.base):
            return False
        added = found.version.added
        if (self.since or "") > added or (self.until is not None and added[: len(self.until)] > self.until):
            return False
        if not all(_holds(condition, facts.metrics) for condition in self.metrics):
            return False
        said = " ".join(map(str, (found.name, *found.tags, *vars(facts).values()))).lower() if self.words else ""
        return all(word.lower() in said for word in self.words)


def _parse_condition(condition: str) -> tuple[str, str, float]:
    match = _CONDITION.fullmatch(condition.strip())
    try:
        assert match is not None
        name, sign, bound = match[1], match[2], float(match[3])
    except (AssertionError, ValueError):
        raise ConfigError(f"{condition!r}: a condition reads wer<0.2, ua>=0.6; rates are fractions.") from None
    if name in _RATES and bound > 1:
        raise ConfigError(
            f"{condition!r}: rates are fractions, of which hardly any is above 1; write {name}{sign}{bound / 100:g} "
            f"for {bound:g} %."
        )
    return name, sign, bound


def _holds(condition: str, metrics: Mapping[str, Any]) -> bool:
    name, sign, bound = _parse_condition(condition)
    entry = metrics.get(name)
    value = entry.get("value") if isinstance(entry, Mapping) else entry
    if not isinstance(value, int | float):
        return False
    return {
        "<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound, "=": value == bound
    }[sign]  # fmt: skip
