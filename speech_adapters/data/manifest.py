"""Manifests: lists of utterances, read from JSON Lines and written there, whole or with an index.

:mod:`~speech_adapters.data.manifest_lines` has the schema. Reading finds all bad lines at once; errors start with
``file:line``.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from operator import eq
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, overload

from speech_adapters.data.audio import audio_info
from speech_adapters.data.audio_files import Piece, audio_hashes, check_pieces, identity
from speech_adapters.data.manifest_index import IndexedLines, ManifestIndex, index_file, write_index
from speech_adapters.data.manifest_lines import (
    Root,
    Shared,
    entry_of,
    raise_problems,
    read_lines,
    relative_audio,
    utterance_of,
    utterance_of_line,
)
from speech_adapters.data.problems import Problems
from speech_adapters.data.utterance import (
    TEXT_KEYS,
    Channel,
    Utterance,
    channels_of,
    check_names,
    fault_of,
    hears,
    require_keys,
)
from speech_adapters.errors import AudioError, ManifestError, counted
from speech_adapters.files import atomic

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TEXT_KEYS", "Channel", "Manifest", "Utterance", "check_disjoint", "equal_shares", "file_names"]

_UNIQUE = "give each line its own id (by default the audio file's stem and the offset)"


class Manifest(Sequence[Utterance]):
    """An immutable list of utterances; every change returns a new manifest.

    One that was read from a file with an index beside it (:mod:`~speech_adapters.data.manifest_index`) holds no
    utterances: each is read when it is asked for, and :meth:`filter` and :meth:`subset` choose lines. :meth:`map`
    alone makes utterances of all of them.

    >>> train = Manifest.read("train.jsonl", require=("text", "speaker"))     # doctest: +SKIP
    >>> train.filter(lambda u: u.duration < 20).subset(hours=1, seed=0).write("train_1h.jsonl")   # doctest: +SKIP
    """

    def __init__(self, utterances: Iterable[Utterance], name: str = "manifest") -> None:
        self._utterances = utterances if isinstance(utterances, IndexedLines) else tuple(utterances)
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
        return isinstance(other, Manifest) and len(self) == len(other) and all(map(eq, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __add__(self, other: Manifest) -> Manifest:
        """Both lists as one; an id that is in both is an error."""
        return Manifest(_check_ids([*self, *other], f"{self.name} + {other.name}"), f"{self.name} + {other.name}")

    def __repr__(self) -> str:
        return f"Manifest({self.summary()})"

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        require: Sequence[str] = (),
        *,
        check_files: bool = False,
        channel: Channel | None = None,
    ) -> Manifest:
        """Read and check a ``.jsonl`` manifest. Lines of one with an index were checked when that was made.

        Args:
            path: the manifest; its folder is where relative audio paths start.
            require: keys that every line must have, such as ``("text",)`` for recognition.
            check_files: also decode the audio (:meth:`check_audio`).
            channel: of the lines that do not name one (:meth:`with_channel`).

        Raises:
            ManifestError: with ``file:line`` of each bad line; see ``manifests/README.md`` for the list.
        """
        path = Path(path)
        if os.path.exists(index_file(path)):  # Path.exists raises for a name that is too long
            lines = IndexedLines(ManifestIndex(path), partial(utterance_of_line, root=Root.of(path.parent)))
            manifest = cls(lines, str(path)).require(*require)
        else:
            utterances: list[Utterance] = []
            ids: set[str] = set()
            numbers = array("q")  # of the utterances' lines
            problems = Problems(str(path))
            with _no_collection():
                for number, _, _, utterance in read_lines(path, problems, require):
                    if utterance.id in ids:
                        first = numbers[[u.id for u in utterances].index(utterance.id)] if problems.open else "?"
                        problems.add(f":{number}: id {utterance.id!r} repeats that of line {first}; {_UNIQUE}")
                        continue
                    utterances.append(utterance)
                    ids.add(utterance.id)
                    numbers.append(number)
            raise_problems(path, problems)
            if not utterances:
                raise ManifestError(f"{path}:1: empty manifest; write one JSON object per line")
            manifest = cls(utterances, str(path))
        manifest = manifest.with_channel(channel)
        return manifest.check_audio() if check_files else manifest

    @classmethod
    def make_index(cls, path: str | os.PathLike[str]) -> Manifest:
        """Check all lines of a ``.jsonl`` manifest, and write its index, which :meth:`read` finds beside it.

        Raises:
            ManifestError: see :meth:`read`.
        """
        path = Path(path)
        problems = Problems(str(path))

        def rows() -> Iterator[tuple[int, int, str, float, dict[str, str | None], list[str]]]:
            for _, start, size, utterance in read_lines(path, problems):
                columns = {key: getattr(utterance, key) for key in TEXT_KEYS if key != "text"}
                keys = [key for key in (*TEXT_KEYS, "channel", *utterance.extra) if fault_of(utterance, key) is None]
                yield start, size, utterance.id, utterance.duration, columns, keys
            raise_problems(path, problems)

        root = Root.of(path.parent)
        write_index(path, rows(), lambda line: utterance_of_line(line, root).id)
        return cls.read(path)

    @classmethod
    def from_entries(
        cls, entries: Iterable[tuple[str, Mapping[str, Any]]], name: str, root: str | os.PathLike[str]
    ) -> Manifest:
        """Utterances from another format's entries, checked as those of a manifest are.

        Args:
            entries: (place, entry): the place follows ``name`` in errors, as in ``:17``; the entry has the keys of a
                manifest. Seconds may be text; a missing duration is what there is from the offset to the ``end``, or
                to that of the audio file.
            root: folder of relative audio paths.

        Raises:
            ManifestError: with each bad entry's place.
        """
        utterances, problems, shared, folder = [], Problems(name), Shared(), Root.of(root)
        places: dict[str, str] = {}
        for place, given in entries:
            entry = dict(given)
            try:
                ends = "offset" in entry and "end" in entry and "duration" not in entry
                for key in ({"duration", "offset", "end"} if ends else {"duration", "offset"}) & entry.keys():
                    try:
                        entry[key] = float(entry[key])
                    except (TypeError, ValueError):
                        raise ManifestError(f"{key} is {entry[key]!r}, expected seconds as a number") from None
                if ends:
                    entry["duration"] = entry.pop("end") - entry["offset"]
                audio = entry.get("audio_filepath")
                if isinstance(audio, str) and "\\" in audio and not os.path.exists(os.path.join(folder.path, audio)):
                    entry["audio_filepath"] = audio.replace("\\", "/")  # as Windows parts folders
                if "duration" not in entry and isinstance(audio, str):
                    file = Path(folder.path, entry["audio_filepath"])
                    if not os.path.isabs(audio) and not os.path.isdir(file.parent):
                        raise ManifestError(
                            f"{audio}: there is no folder {file.parent}; relative paths start at {folder.path}, or at "
                            "--root where the format takes one"
                        )
                    entry["duration"] = audio_info(file).duration - entry.get("offset", 0.0)
                utterance = utterance_of(entry, folder, shared)
                check_names(utterance)
                if (first := places.get(utterance.id)) is not None:
                    raise ManifestError(f"id {utterance.id!r} repeats that of {name}{first}; {_UNIQUE}")
                places[utterance.id] = place
                utterances.append(utterance)
            except (ManifestError, AudioError) as error:
                problems.add(f"{place}: {error}")
        problems.raise_any()
        return cls(utterances, name)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON Lines; audio paths become relative to ``path``'s folder. Whole file or nothing."""
        path = Path(path)
        for utterance in _check_ids(self, str(path)):
            where = f"{path}: utterance {utterance.id!r}: "
            check_names(utterance, where)
            if utterance.channel is not None and "channel" in utterance.extra:
                raise ManifestError(
                    f"{where}hears channel {utterance.channel!r}, and has a key of its own called 'channel'; rename "
                    f"that one ({utterance.extra['channel']!r})"
                )
        with atomic(path) as file:
            for utterance in self:
                entry = entry_of(utterance, relative_audio(utterance.audio_filepath, path.parent))
                file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    @property
    def durations(self) -> np.ndarray:
        """(utterances,) seconds, float64."""
        import numpy as np

        if isinstance(self._utterances, IndexedLines):
            return self._utterances.durations
        return np.fromiter((utterance.duration for utterance in self), float, len(self))

    @property
    def hours(self) -> float:
        """Total duration in hours."""
        return math.fsum(self.durations) / 3600

    @property
    def speakers(self) -> tuple[str, ...]:
        """Distinct speakers, sorted."""
        return self.values("speaker")

    def values(self, key: str) -> tuple[str, ...]:
        """Distinct values of a key, sorted; lines without it do not count.

        Raises:
            ManifestError: names the utterance whose value is no text, such as a list.
        """
        return tuple(sorted(self._counts(key)))

    def _counts(self, key: str) -> Mapping[Any, int]:
        """How many utterances have each value of a key."""
        counts = self._utterances.counts(key) if isinstance(self._utterances, IndexedLines) else None
        if counts is not None:
            return {value: count for value, count in counts.items() if key == "text" or value.strip()}
        found: Counter[Any] = Counter()
        for utterance in self:
            if utterance.has(key):
                if (fault := fault_of(utterance, key)) is not None:
                    raise ManifestError(f"{self.name}: utterance {utterance.id!r}: {fault}")
                found[utterance.get(key)] += 1
        return found

    @property
    def sha256(self) -> str:
        """Hash of the lines and of the bytes of their audio, wherever both lie: equal on every machine.

        The hash of each audio file is remembered (:mod:`~speech_adapters.data.audio_files`), so that only the first
        call reads the audio; a file that cannot be read counts as missing. Of an indexed manifest the file's hash and
        the choice of its lines count, and no audio: it would take hours to read.
        """
        digest = hashlib.sha256()
        if isinstance(self._utterances, IndexedLines):
            digest.update(self._utterances.source.sha256.encode())
            if self._utterances.places is not None:
                digest.update(self._utterances.places.tobytes())
            return digest.hexdigest()
        for utterance, audio in zip(self, audio_hashes([u.audio_filepath for u in self]), strict=True):
            entry = entry_of(utterance, utterance.audio_filepath.name) | {"audio_sha256": audio}
            digest.update(json.dumps(entry, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def content_keys(self) -> list[str]:
        """Of each utterance the hash of what is heard, wherever it lies: its file's bytes, the piece and the channel.

        Hashes of files are remembered as for :attr:`sha256`; of a file that cannot be read the path counts.
        """
        paths = [utterance.audio_filepath for utterance in self]
        return [
            hashlib.sha256(json.dumps([_told(path, file), u.offset, u.duration, u.channel]).encode()).hexdigest()
            for u, path, file in zip(self, paths, audio_hashes(paths), strict=True)
        ]

    def content_key(self, verify: bool = False) -> str:
        """Hash of what shapes the audio alone, for caches on this machine: each utterance's file, piece and channel.

        A file counts as its size, times of change and inode, so that no audio is read and one that was exported again
        in place is noticed; with ``verify`` as the hash of its bytes. Labels, ids and names do not count.
        """
        paths = [utterance.audio_filepath for utterance in self]
        files = audio_hashes(paths) if verify else [identity(path) for path in paths]
        digest = hashlib.sha256()
        for u, path, file in zip(self, paths, files, strict=True):
            digest.update(json.dumps([_told(path, file), u.offset, u.duration, u.channel]).encode() + b"\n")
        return digest.hexdigest()

    def with_channel(self, channel: Channel | None) -> Manifest:
        """The same, hearing ``channel`` of the files with several whose line names none: a number from 0, or "mix" for
        the mean."""
        if channel is None:
            return self
        if isinstance(lines := self._utterances, IndexedLines):
            return Manifest(IndexedLines(lines.source, partial(lines.parse, channel=channel), lines.places), self.name)
        heard = cache(partial(hears, channel))
        return self.map(lambda u: replace(u, channel=channel) if u.channel is None and heard(u.audio_filepath) else u)

    def need_channel(self) -> dict[Path, int]:
        """The files with several channels, and how many, that a line names without saying which is heard."""
        files = dict.fromkeys(utterance.audio_filepath for utterance in self if utterance.channel is None)
        return {file: channels for file in files if (channels := channels_of(file)) > 1}

    def filter(self, keep: Callable[[Utterance], bool]) -> Manifest:
        """The utterances for which ``keep`` is true."""
        return self._take([place for place, utterance in enumerate(self) if keep(utterance)])

    def _take(self, places: Sequence[int]) -> Manifest:
        """The utterances at these places."""
        if isinstance(self._utterances, IndexedLines):
            return Manifest(self._utterances.take(places), self.name)
        return Manifest((self._utterances[place] for place in places), self.name)

    def map(self, change: Callable[[Utterance], Utterance]) -> Manifest:
        """Every utterance changed, for example with :func:`dataclasses.replace`."""
        return Manifest(map(change, self), self.name)

    def require(self, *keys: str) -> Manifest:
        """Itself when every utterance has these keys.

        Raises:
            ManifestError: names the utterances that lack one.
        """
        problems = Problems(self.name)
        if isinstance(self._utterances, IndexedLines) and self._utterances.all_have(keys):
            return self
        for utterance in self:
            try:
                require_keys(utterance, keys)
            except ManifestError as error:
                problems.add(f": utterance {utterance.id!r}: {error}")
        problems.raise_any()
        return self

    def subset(self, *, hours: float | None = None, size: int | None = None, seed: int = 0) -> Manifest:
        """A random part of at most ``hours`` of audio or exactly ``size`` utterances, in this manifest's order.

        With one seed, a smaller part is contained in a larger one: label budgets grow by adding.
        """
        if (hours is None) == (size is None):
            raise ManifestError(f"{self.name}: subset needs hours= or size=, and only one of them")
        if not 0 < (hours or size or 0) < math.inf:
            raise ManifestError(f"{self.name}: subset of hours={hours}, size={size}; ask for more than 0")
        if size is not None and size > len(self):
            raise ManifestError(f"{self.name}: subset of size={size} but there are {len(self)}; ask for less")
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        if hours is not None:
            seconds, count, durations = 0.0, 0, self.durations
            for index in order:
                if (seconds := seconds + float(durations[index])) > hours * 3600:
                    break
                count += 1
            if count == 0:
                raise ManifestError(f"{self.name}: no utterance fits into hours={hours}; ask for more")
            size = count
        return self._take(sorted(order[:size]))

    def audio_problems(
        self, channel: int | str | None = None, silence: bool = False
    ) -> Iterator[tuple[Utterance, str]]:
        """The utterances whose audio cannot be used, each with what is wrong; see :meth:`check_audio`. With
        ``silence`` also those whose samples are all zero, which can be used."""
        pieces = [
            Piece(u.audio_filepath, u.offset, u.duration, channel if u.channel is None else u.channel) for u in self
        ]
        return ((self[number], problem) for number, problem in check_pieces(pieces, f"checking {self.name}", silence))

    def check_audio(self, channel: int | str | None = None) -> Manifest:
        """Itself when all audio that it names decodes, in parallel; files found sound are not read again.

        Args:
            channel: what will be heard of files with several channels, where a line does not say it.

        Raises:
            ManifestError: names the utterances whose audio is missing, damaged, too short, or of several channels.
        """
        problems = Problems(self.name)
        for utterance, problem in self.audio_problems(channel):
            problems.add(f": utterance {utterance.id!r}: {problem}")
        problems.raise_any()
        return self

    @property
    def file_names(self) -> str:
        """The name without folders, for what is passed on: where files lie is nobody else's business."""
        return file_names(self.name)

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
        parts = [counted(len(self), "utterance"), length]
        if self.speakers:
            parts.append(counted(len(self.speakers), "speaker"))
        for key in ("domain", "emotion", "label"):
            counts = self._counts(key)
            if 0 < len(counts) <= 12:
                parts.append(f"{key}: " + ", ".join(f"{value} {count}" for value, count in sorted(counts.items())))
        return "; ".join(parts)


def file_names(name: str) -> str:
    """The name of a manifest, or of several that were joined, without folders."""
    return " + ".join(PurePath(part).name for part in name.split(" + "))


def equal_shares(manifests: Sequence[Manifest], hours: float, seed: int = 0) -> Manifest:
    """``hours`` of audio in all, as much of each manifest: in a pool as it is, a small domain would hardly be heard.

    A random part of a long manifest, at least an utterance; those of one shorter than its share come again, renamed
    "<id>-again1".

    Raises:
        ManifestError: a manifest without audio.
    """
    share = hours / len(manifests)
    chosen: list[Utterance] = []
    for manifest in manifests:
        if not manifest.hours:
            raise ManifestError(f"{manifest.name}: no audio to take a share of")
        rounds, rest = divmod(share, manifest.hours)
        parts, longest = [manifest] * int(rounds), 1.001 * max(u.duration for u in manifest) / 3600
        if not parts or rest > longest:
            parts.append(manifest.subset(hours=max(rest, longest), seed=seed))
        for again, part in enumerate(parts):
            chosen += (replace(u, id=f"{u.id}-again{again}") for u in part) if again else part
    return Manifest(chosen, "equal shares")


def check_disjoint(first: Manifest, second: Manifest, key: str = "speaker") -> None:
    """Check that no value of ``key`` (a speaker, a text) is in both manifests.

    Raises:
        ManifestError: lists the first few shared values.
    """
    if shared := sorted(set(first.values(key)) & set(second.values(key))):
        shown = ", ".join(repr(value) for value in shared[:5]) + (", ..." if len(shared) > 5 else "")
        raise ManifestError(
            f"{first.name}: shares {counted(len(shared), key)} with {second.name}: {shown}; "
            f"scores would be flattered: move each {key} into one split"
        )


def _told(path: Path, file: str) -> str:
    """What is known of a file, for hashes."""
    return f"{path} is missing" if file == "missing" else file


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage among a million objects of which none is."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_ids(utterances: Iterable[Utterance], name: str) -> list[Utterance]:
    utterances = list(utterances)
    repeated = [identity for identity, count in Counter(u.id for u in utterances).items() if count > 1]
    if repeated:
        raise ManifestError(f"{name}: id {repeated[0]!r} is repeated; {_UNIQUE}")
    return utterances
