"""JSON Lines manifests: the schema, its checks, reading and writing.

A manifest has one JSON object a line, with the keys of NVIDIA NeMo's manifests so that existing ones load:
``audio_filepath`` (relative to the manifest's folder, or absolute) and ``duration`` (seconds) always; ``offset``
(seconds), ``text``, ``speaker``, ``emotion``, ``label``, ``domain``, ``lang`` and ``id`` where they are known. Further
keys are kept in :attr:`Utterance.extra`. Errors start with ``file:line``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from speech_adapters.data.audio import DURATION_TOLERANCE, audio_info
from speech_adapters.errors import AudioError, ManifestError

TEXT_KEYS = ("text", "speaker", "emotion", "label", "domain", "lang")
"""Optional keys that hold a string. A number is read as its digits: NeMo writes speakers as integers."""


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest. ``duration`` and ``offset`` are in seconds; ``audio_filepath`` is absolute."""

    id: str
    audio_filepath: Path
    duration: float
    offset: float = 0.0
    text: str | None = None
    speaker: str | None = None
    emotion: str | None = None
    label: str | None = None
    domain: str | None = None
    lang: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def get(self, key: str) -> Any:
        """The value of a key of the schema or of ``extra``; None when absent."""
        return getattr(self, key) if key in self.__dataclass_fields__ and key != "extra" else self.extra.get(key)


class Manifest(Sequence[Utterance]):
    """An immutable list of utterances; every change returns a new manifest.

    >>> train = Manifest.read("train.jsonl", require=("text", "speaker"))     # doctest: +SKIP
    >>> train.filter(lambda u: u.duration < 20).subset(hours=1, seed=0).write("train_1h.jsonl")   # doctest: +SKIP
    """

    def __init__(self, utterances: Iterable[Utterance], name: str = "manifest") -> None:
        self._utterances = tuple(utterances)
        self.name = name
        """Where it came from; opens error messages."""

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> Manifest: ...
    def __getitem__(self, index: int | slice) -> Utterance | Manifest:
        if isinstance(index, slice):
            return Manifest(self._utterances[index], self.name)
        return self._utterances[index]

    def __len__(self) -> int:
        return len(self._utterances)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self._utterances)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self._utterances == other._utterances

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __add__(self, other: Manifest) -> Manifest:
        """Both lists as one; an id that is in both is an error."""
        return Manifest(_check_ids([*self, *other], f"{self.name} + {other.name}"), f"{self.name} + {other.name}")

    def __repr__(self) -> str:
        return f"Manifest({self.summary()})"

    @classmethod
    def read(cls, path: str | os.PathLike[str], require: Sequence[str] = (), *, check_files: bool = False) -> Manifest:
        """Read and check a ``.jsonl`` manifest.

        Args:
            path: the manifest; its folder is where relative audio paths start.
            require: keys that every line must have, such as ``("text",)`` for recognition.
            check_files: also open every audio file's header (:meth:`check_audio`).

        Raises:
            ManifestError: with ``file:line``; see ``manifests/README.md`` for the list.
        """
        path = Path(path)
        utterances: list[Utterance] = []
        first_line: dict[str, int] = {}
        for number, line in enumerate(_read_text(path, "manifest").split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                entry = json.loads(line, parse_constant=_refuse_constant)
            except ValueError as error:
                raise ManifestError(f"{where}: not JSON ({error}); each line must be one JSON object") from error
            if not isinstance(entry, dict):
                raise ManifestError(f"{where}: a {type(entry).__name__}; each line must be one JSON object {{...}}")
            utterance = _utterance(entry, path.parent, where)
            _require(utterance, require, where)
            if (seen := first_line.setdefault(utterance.id, number)) != number:
                raise ManifestError(f"{where}: id {utterance.id!r} repeats that of line {seen}; {_UNIQUE}")
            utterances.append(utterance)
        if not utterances:
            raise ManifestError(f"{path}:1: empty manifest; write one JSON object a line")
        manifest = cls(utterances, str(path))
        if check_files:
            manifest.check_audio()
        return manifest

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        columns: Mapping[str, str],
        *,
        audio_root: str | os.PathLike[str] | None = None,
        delimiter: str = ",",
    ) -> Manifest:
        """Import a CSV or TSV table with a header row.

        ``columns`` maps our keys to the table's column names and must name ``audio_filepath``; where ``duration`` is
        not mapped it is read from the audio file. Other columns are dropped. Relative audio paths start at
        ``audio_root``, by default the table's folder.

        >>> Manifest.from_csv("cv/test.tsv", {"audio_filepath": "path", "text": "sentence", "speaker": "client_id"},
        ...                   audio_root="cv/clips", delimiter="\\t")   # doctest: +SKIP
        """
        path = Path(path)
        if "audio_filepath" not in columns:
            raise ManifestError(f'{path}: columns must say which column holds "audio_filepath"')
        rows = csv.DictReader(io.StringIO(_read_text(path, "table"), newline=""), delimiter=delimiter)
        if missing := [name for name in columns.values() if name not in (rows.fieldnames or ())]:
            raise ManifestError(f"{path}:1: no column {missing[0]!r}; there are {', '.join(rows.fieldnames or ())}")
        root = Path(audio_root) if audio_root is not None else path.parent
        utterances = []
        for row in rows:
            where = f"{path}:{rows.line_num}"
            entry: dict[str, Any] = {key: row[name] for key, name in columns.items() if row[name] not in (None, "")}
            for key in {"duration", "offset"} & entry.keys():
                try:
                    entry[key] = float(entry[key])
                except ValueError:
                    raise ManifestError(f"{where}: {key} is {entry[key]!r}, expected seconds as a number") from None
            if "duration" not in entry and "audio_filepath" in entry:
                entry["duration"] = _header_duration(root / entry["audio_filepath"], where) - entry.get("offset", 0.0)
            utterances.append(_utterance(entry, root, where))
        if not utterances:
            raise ManifestError(f"{path}:1: a header but no rows; nothing to import")
        return cls(_check_ids(utterances, str(path)), str(path))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON Lines; audio paths become relative to ``path``'s folder. Whole file or nothing."""
        path = Path(path)
        _check_ids(self, str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                for utterance in self:
                    entry = _entry(utterance, path.parent.resolve())
                    file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def hours(self) -> float:
        """Total duration in hours."""
        return sum(utterance.duration for utterance in self) / 3600

    @property
    def speakers(self) -> tuple[str, ...]:
        """Distinct speakers, sorted."""
        return self.values("speaker")

    def values(self, key: str) -> tuple[str, ...]:
        """Distinct values of a key, sorted; lines without it do not count."""
        return tuple(sorted({value for utterance in self if (value := utterance.get(key)) is not None}))

    @property
    def sha256(self) -> str:
        """Hash of the lines, wherever the manifest and its audio lie. Audio bytes do not count."""
        digest = hashlib.sha256()
        for utterance in self:
            entry = _entry(utterance, None) | {"audio_filepath": utterance.audio_filepath.name}
            digest.update(json.dumps(entry, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    def filter(self, keep: Callable[[Utterance], bool]) -> Manifest:
        """The utterances for which ``keep`` is true."""
        return Manifest(filter(keep, self), self.name)

    def map(self, change: Callable[[Utterance], Utterance]) -> Manifest:
        """Every utterance changed, for example with :func:`dataclasses.replace`."""
        return Manifest(map(change, self), self.name)

    def require(self, *keys: str) -> Manifest:
        """Itself when every utterance has these keys.

        Raises:
            ManifestError: names the first utterance that lacks one.
        """
        for utterance in self:
            _require(utterance, keys, f"{self.name}: utterance {utterance.id!r}")
        return self

    def subset(self, *, hours: float | None = None, size: int | None = None, seed: int = 0) -> Manifest:
        """A random part of at most ``hours`` of audio or exactly ``size`` utterances, in this manifest's order.

        With one seed, a smaller part is contained in a larger one: label budgets grow by adding.
        """
        if (hours is None) == (size is None):
            raise ManifestError(f"{self.name}: subset needs hours= or size=, and only one of them")
        if (hours if size is None else size) <= 0:
            raise ManifestError(f"{self.name}: subset of hours={hours}, size={size}; ask for more than 0")
        if size is not None and size > len(self):
            raise ManifestError(f"{self.name}: subset of size={size} but there are {len(self)}; ask for less")
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        if size is None:
            seconds, count = 0.0, 0
            for index in order:
                if (seconds := seconds + self[index].duration) > hours * 3600:
                    break
                count += 1
            if count == 0:
                raise ManifestError(f"{self.name}: no utterance fits into hours={hours}; ask for more")
            size = count
        return Manifest((self[index] for index in sorted(order[:size])), self.name)

    def check_audio(self) -> Manifest:
        """Itself when every audio file exists, has a sound header and holds the piece that the manifest names.

        Raises:
            ManifestError: names the first utterance whose audio fails.
        """
        for utterance in self:
            where = f"{self.name}: utterance {utterance.id!r}"
            end = utterance.offset + utterance.duration
            total = _header_duration(utterance.audio_filepath, where)
            if end > total + DURATION_TOLERANCE:
                raise ManifestError(
                    f"{where}: offset + duration is {end:.3f} s but {utterance.audio_filepath} ends at {total:.3f} s; "
                    "correct the manifest or replace the file"
                )
        return self

    def describe(self) -> dict[str, Any]:
        """What ``results.json`` records of a manifest: name, utterances, hours, speakers, sha256."""
        return {
            "name": self.name,
            "utterances": len(self),
            "hours": round(self.hours, 3),
            "speakers": len(self.speakers),
            "sha256": self.sha256,
        }

    def summary(self) -> str:
        """One line for people: utterances, hours, speakers, domains, emotions."""
        hours = self.hours
        length = f"{hours:.2f} h" if hours >= 1 else f"{hours * 60:.1f} min"
        parts = [f"{len(self)} utterances", length]
        if self.speakers:
            parts.append(f"{len(self.speakers)} speakers")
        for key in ("domain", "emotion", "label"):
            counts = Counter(value for utterance in self if (value := utterance.get(key)) is not None)
            if 0 < len(counts) <= 12:
                parts.append(f"{key}: " + ", ".join(f"{value} {count}" for value, count in sorted(counts.items())))
        return "; ".join(parts)


def equal_shares(manifests: Sequence[Manifest], hours: float, seed: int = 0) -> Manifest:
    """``hours`` of audio in all, as much of each manifest: in a pool as it is, a small domain would hardly be heard.

    A random part of a long manifest, at least an utterance; those of one shorter than its share come again, renamed
    "<id>-again1".

    Raises:
        ManifestError: a manifest without audio.
    """
    share, chosen = hours / len(manifests), []
    for manifest in manifests:
        if not manifest.hours:
            raise ManifestError(f"{manifest.name}: no audio to take a share of")
        rounds, rest = divmod(share, manifest.hours)
        parts, longest = [manifest] * int(rounds), 1.001 * max(u.duration for u in manifest) / 3600
        if not parts or rest > longest:
            parts.append(manifest.subset(hours=max(rest, longest), seed=seed))
        for again, part in enumerate(parts):
            chosen += part if not again else part.map(lambda u, n=again: replace(u, id=f"{u.id}-again{n}"))
    return Manifest(chosen, "equal shares")


def check_disjoint(first: Manifest, second: Manifest, key: str = "speaker") -> None:
    """Check that no value of ``key`` (a speaker, a text) is in both manifests.

    Raises:
        ManifestError: lists the first few shared values.
    """
    if shared := sorted(set(first.values(key)) & set(second.values(key))):
        shown = ", ".join(repr(value) for value in shared[:5]) + (", ..." if len(shared) > 5 else "")
        raise ManifestError(
            f"{first.name}: {len(shared)} {key} value(s) are also in {second.name}: {shown}; "
            f"scores would be flattered: move each {key} into one split"
        )


_UNIQUE = "give each line its own id (by default the audio file's stem)"


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}); convert the {what} to UTF-8") from error
    except OSError as error:
        raise ManifestError(f"{path}: the {what} cannot be read ({error.strerror}); check the path") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _utterance(entry: dict[str, Any], root: Path, where: str) -> Utterance:
    """Check one entry's fields and types."""
    for key in ("audio_filepath", "duration"):
        if entry.get(key) is None:
            raise ManifestError(f"{where}: lacks {key!r}; every line needs audio_filepath and duration")
    audio = entry["audio_filepath"]
    if not isinstance(audio, str) or not audio:
        raise ManifestError(f"{where}: audio_filepath is {audio!r}, expected a path as a string")
    duration = _number(entry["duration"], "duration", where)
    if duration <= 0:
        raise ManifestError(f"{where}: duration is {duration:g} s, expected more than 0; drop the line or measure it")
    offset = _number(0.0 if entry.get("offset") is None else entry["offset"], "offset", where)
    if offset < 0:
        raise ManifestError(f"{where}: offset is {offset:g} s, expected at least 0")
    texts: dict[str, str | None] = {}
    for key in (*TEXT_KEYS, "id"):
        value = entry.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise ManifestError(f"{where}: {key} is {value!r}, expected a string")
        texts[key] = value
    identity = texts.pop("id") or Path(audio).stem
    known = {"audio_filepath", "duration", "offset", "id", *TEXT_KEYS}
    extra = {key: value for key, value in entry.items() if key not in known}
    path = Path(os.path.abspath(root / audio))  # not resolve(): a link's own name may be the id
    return Utterance(identity, path, duration, offset, **texts, extra=extra)


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ManifestError(f"{where}: {key} is {value!r}, expected seconds as a number")
    return float(value)


def _require(utterance: Utterance, keys: Iterable[str], where: str) -> None:
    for key in keys:
        if utterance.get(key) is None:
            raise ManifestError(f"{where}: lacks {key!r}, which this task needs; add it to every line")


def _check_ids(utterances: Iterable[Utterance], name: str) -> list[Utterance]:
    utterances = list(utterances)
    repeated = [identity for identity, count in Counter(u.id for u in utterances).items() if count > 1]
    if repeated:
        raise ManifestError(f"{name}: id {repeated[0]!r} is repeated; {_UNIQUE}")
    return utterances


def _entry(utterance: Utterance, root: Path | None) -> dict[str, Any]:
    """The JSON object of one utterance, without what is absent; audio relative to ``root``."""
    audio = utterance.audio_filepath
    relative = audio.as_posix() if root is None else Path(os.path.relpath(audio, root)).as_posix()
    entry: dict[str, Any] = {"id": utterance.id, "audio_filepath": relative, "duration": utterance.duration}
    if utterance.offset:
        entry["offset"] = utterance.offset
    entry |= {key: value for key in TEXT_KEYS if (value := getattr(utterance, key)) is not None}
    return entry | utterance.extra


def _header_duration(path: Path, where: str) -> float:
    try:
        return audio_info(path).duration
    except AudioError as error:
        raise ManifestError(f"{where}: {error}") from error
