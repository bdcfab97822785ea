"""A bank: adapters, heads and fusions by name and version, safe for several writers on one disk.

    bank = Bank.create("drawer")
    bank.add("runs/asr_librispeech/latest", "client-a/asr", domain="telephone")
    bank.promote("client-a/asr@1")
    model.load_adapter(bank.path("client-a/asr@production"))

With ``SPEECH_ADAPTERS_BANK=drawer`` in the environment ``bank:client-a/asr@production`` is a place like any other
folder, in Python and on the command line. How it lies on disk: :mod:`speech_adapters.saving.bank_layout`.

A change holds the bank's lock and ends with one rename, before which nothing is seen of it: a process that is killed
leaves the bank as it was before or as it is after, and at most files that no version names (:meth:`Bank.gc`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from speech_adapters.bank.index import Found, Index, Query, refresh
from speech_adapters.errors import CheckpointError, ConfigError, InputError
from speech_adapters.files import atomic, new_folder, sweep, write_json
from speech_adapters.locks import locked
from speech_adapters.saving.bank_layout import (
    DIGEST,
    FORMAT,
    TAG,
    Entry,
    Facts,
    Layout,
    Reference,
    Version,
    check_name,
    default_bank,
    digest_of,
    digest_of_contents,
    write_sealed,
)
from speech_adapters.saving.places import folder_of

if TYPE_CHECKING:
    from speech_adapters.encoders.encoder import Encoder
    from speech_adapters.saving.adapters import SavedAdapter
    from speech_adapters.saving.recent import Recent

PRODUCTION, PREVIOUS = "production", "previous"
"""Tags that :meth:`Bank.promote` moves: what is in use, and what was before."""
COMPANIONS = ("adapter_config.json", "README.md")
"""What is kept beside the parts: what ``peft`` reads, and the card, which nothing here reads."""
FILES = frozenset(
    [f"{kind}{end}" for kind in ("adapter", "head", "fusion", "basis") for end in (".json", "_model.safetensors")]
    + [*COMPANIONS]
)
"""All that an object may hold."""
KEPT_BYTES = 512 * 2**20


class Bank:
    """A bank that exists.

    Args:
        folder: where it lies; by default what ``SPEECH_ADAPTERS_BANK`` names.
        budget: bytes of adapters that :meth:`read_adapter` keeps in memory.

    Raises:
        ConfigError: no bank there.
        CheckpointError: a bank of a newer format.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, budget: int = KEPT_BYTES) -> None:
        self.layout = Layout(default_bank() if folder is None else folder)
        self.budget = budget
        self._kept: Recent[SavedAdapter] | None = None

    @classmethod
    def create(cls, folder: str | os.PathLike[str]) -> Bank:
        """Make an empty bank. Raises ConfigError where something is there already."""
        with new_folder(folder) as temporary:
            write_json(temporary / "bank.json", {"format": FORMAT})
            (temporary / "entries").mkdir()
            (temporary / "objects").mkdir()
        return cls(folder)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.layout.folder

    def __repr__(self) -> str:
        return f"Bank({str(self.folder)!r})"

    # ------------------------------------------------------------------ look

    def index(self) -> Index:
        """All entries as they stand now."""
        return Index.read(self.layout)

    def search(self, query: Query | None = None, *, every: bool = False) -> list[Found]:
        """The versions that fit, by name; of each name the newest and those with tags, or ``every`` one."""
        query = query or Query()
        return [found for found in self.index().versions(every=every) if query.fits(found)]

    def find(self, reference: str) -> Found:
        """The version of ``NAME``, ``NAME@NUMBER`` or ``NAME@TAG``.

        Raises:
            ConfigError: what can be no reference.
            CheckpointError: no such name, version or tag; near ones are said.
        """
        wanted = Reference.parse(reference)
        return _found(wanted, self.layout.entry(wanted.name))

    def path(self, reference: str) -> Path:
        """The folder of a version, for ``load_adapter``, ``load_head``, ``load_fusion`` and ``from_adapter``. It is
        not to be changed. Errors as :meth:`find`."""
        return self.layout.locate(reference)

    def copy(self, reference: str, folder: str | os.PathLike[str]) -> None:
        """Copy a version to a new folder, which stands for itself: what it shares with others goes along."""
        version = self.find(reference).version
        with new_folder(folder) as temporary:
            for digest in version.objects:
                shutil.copytree(self.layout.object_folder(digest), temporary, dirs_exist_ok=True)

    def read_adapter(self, reference: str, encoder: Encoder) -> SavedAdapter:
        """An adapter for ``encoder``, read when it is first asked for; the last used ones stay in memory.

        Raises:
            CheckpointError: no such version, a damaged file, an adapter made on another base.
        """
        from speech_adapters.saving.adapters import read_adapter
        from speech_adapters.saving.recent import Recent

        if self._kept is None:
            self._kept = Recent(self.budget)
        found = self.find(reference)
        key = f"{found.version.object} {encoder.fingerprint} {encoder.normalize} {encoder.settings}"
        saved = self._kept.get(key)
        if saved is None:
            saved = read_adapter(self.layout.object_folder(found.version.object), encoder)
            self._kept.put(key, saved, sum(t.numel() * t.element_size() for t in saved.tensors.values()))
        return saved

    # ------------------------------------------------------------------ change

    def add(
        self,
        place: str | os.PathLike[str],
        name: str,
        *,
        head: str | os.PathLike[str] | None = None,
        tags: tuple[str, ...] = (),
        **labels: str | None,
    ) -> Found:
        """Keep a saved adapter with its head, a head, or a fusion as the next version of ``name``.

        The files are read whole first: checksums, and that all values are finite. What one of its versions holds
        already, with the same facts, is not added again: that version is returned.

        Args:
            place: folder of the part, or of a run (whose ``results.json`` tells what it is worth).
            head: the head to keep along, where another than the one trained on the adapter is meant.
            tags: to set on it.
            labels: ``task``, ``domain``, ``language``, ``licence``, ``data``, ``note``, where its files do not say
                them.

        Raises:
            ConfigError: a name, tag or label that cannot be.
            CheckpointError: a damaged part, none, or several that could be meant.
        """
        from speech_adapters.bank.facts import read_facts

        check_name(name)
        for tag in tags:
            _check_tag(tag)
        parts = parts_in(place, head)
        files = files_of(parts)
        facts = read_facts(parts, sum(map(len, files.values())), labels)
        return self.keep(files, name, facts, tags, needs=shared_files(parts))

    def keep(
        self,
        files: Mapping[str, bytes],
        name: str,
        facts: Facts,
        tags: tuple[str, ...] = (),
        *,
        added: str | None = None,
        number: int = 0,
        needs: Sequence[Mapping[str, bytes]] = (),
        move_tags: bool = True,
    ) -> Found:
        """Keep files that have been checked as the next version of ``name``.

        Args:
            tags: to set on it. move_tags: also those that another version has.
            added: when it was added first, where it comes from another bank. number: its number there, which it keeps
                where the name has had none as high.
            needs: files of other objects that are read with it.
        """
        version = Version(
            object=digest_of_contents(files),
            added=added or _now(),
            facts=facts,
            needs=tuple(map(digest_of_contents, needs)),
        )
        with self._changing(name) as change:
            for digest, content in zip(version.objects, (files, *needs), strict=True):
                self._put(digest, content)
            entry = change.entry
            known = [
                int(key) for key, one in entry.versions.items() if (one.object, one.facts) == (version.object, facts)
            ]
            number = max(known, default=max(entry.last + 1, number))
            tagged = dict.fromkeys(tags, number)
            change.entry = Entry(
                last=max(number, entry.last),
                versions=entry.versions if known else entry.versions | {str(number): version},
                tags=entry.tags | tagged if move_tags else tagged | entry.tags,
            )
        return _found(Reference(name, str(number)), change.entry)

    def tag(self, reference: str, tag: str) -> Found:
        """Let a tag point at a version, whichever it pointed at before."""
        _check_tag(tag)
        wanted = Reference.parse(reference)
        with self._changing(wanted.name, there=True) as change:
            number = change.entry.number_of(wanted.at, wanted.name)
            change.entry = replace(change.entry, tags=change.entry.tags | {tag: number})
        return _found(Reference(wanted.name, str(number)), change.entry)

    def untag(self, name: str, tag: str) -> None:
        """Take a tag away. Raises CheckpointError where there is no such tag."""
        with self._changing(name, there=True) as change:
            if tag not in change.entry.tags:
                raise CheckpointError(f"{name}: no tag {tag!r}; there are {', '.join(change.entry.tags) or 'none'}.")
            change.entry = replace(change.entry, tags={k: v for k, v in change.entry.tags.items() if k != tag})

    def promote(self, reference: str) -> Found:
        """Let ``production`` point at a version whose files are whole; ``previous`` then points at what it was before,
        so that ``promote("NAME@previous")`` takes it back.

        Raises:
            CheckpointError: no such version, or files that are not what was added.
        """
        wanted = Reference.parse(reference)
        with self._changing(wanted.name, there=True) as change:
            entry = change.entry
            number = entry.number_of(wanted.at, wanted.name)
            for digest in entry.versions[str(number)].objects:
                if fault := self._fault(digest):
                    raise CheckpointError(f"{wanted.name}@{number}: not promoted: {fault}")
            before = entry.tags.get(PRODUCTION)
            was = {} if before in (None, number) else {PREVIOUS: before}
            change.entry = replace(entry, tags=entry.tags | was | {PRODUCTION: number})
        return _found(Reference(wanted.name, str(number)), change.entry)

    def remove(self, reference: str) -> list[int]:
        """Take a version (``NAME@...``) or all of a name (``NAME``) out; returns their numbers. :meth:`gc` frees the
        space.

        Raises:
            ConfigError: a version that a tag other than ``previous`` points at.
        """
        wanted = Reference.parse(reference)
        with self._changing(wanted.name, there=True) as change:
            entry = change.entry
            gone = entry.numbers if wanted.at is None else [entry.number_of(wanted.at, wanted.name)]
            tags = {tag: number for tag, number in entry.tags.items() if tag != PREVIOUS or number not in gone}
            if pointing := [tag for tag, number in tags.items() if number in gone]:
                raise ConfigError(
                    f"{wanted}: the tag {pointing[0]!r} points at {wanted.name}@{entry.tags[pointing[0]]}; take it "
                    f"away first: speech-adapters bank tag {wanted.name} {pointing[0]} --delete"
                )
            left = {key: version for key, version in entry.versions.items() if int(key) not in gone}
            change.entry = replace(entry, versions=left, tags=tags)
        return gone

    def gc(self, *, dry_run: bool = False) -> tuple[int, int]:
        """Remove files that no version names; returns how many objects, and their bytes.

        Raises:
            CheckpointError: an entry that cannot be read, since its objects would be lost.
        """
        with locked(self.folder / "bank.json", seconds=60):
            index = Index.read(self.layout)
            if index.damaged:
                raise CheckpointError(f"{next(iter(index.damaged.values()))} (Nothing was removed.)")
            versions = [version for entry in index.entries.values() for version in entry.versions.values()]
            named = {digest for version in versions for digest in version.objects}
            astray = [path for path in self._objects() if path.name not in named]
            size = sum(file.stat().st_size for path in astray for file in path.iterdir())
            if not dry_run:
                for path in astray:
                    gone = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # no half of it under its own name
                    path.replace(gone)
                    shutil.rmtree(gone, ignore_errors=True)
                for left in list(self.folder.rglob(".*.tmp")):
                    sweep(left.with_name(left.name.removeprefix(".").rsplit(".", 2)[0]))
        return len(astray), size

    def verify(self) -> list[str]:
        """Read everything: what is wrong, one message each; none where all is as it was added."""
        index = self.index()
        faults = list(index.damaged.values())
        checked: dict[str, str | None] = {}
        for found in index.versions(every=True):
            for digest in found.version.objects:
                if digest not in checked:
                    checked[digest] = self._fault(digest)
                if (fault := checked[digest]) is not None:
                    faults.append(f"{found}: {fault}")
        return faults

    # ------------------------------------------------------------------ inner

    @contextlib.contextmanager
    def _changing(self, name: str, *, there: bool = False) -> Iterator[_Change]:
        """The entry of a name under the lock; ``there``: it must exist."""
        check_name(name)
        with locked(self.folder / "bank.json", seconds=60):
            file = self.layout.entry_file(name)
            change = _Change(self.layout.entry(name) if there or file.is_file() else Entry())
            yield change
            write_sealed(file, change.entry)
            with contextlib.suppress(InputError):  # a disk that is full now has taken the change; this is for speed
                refresh(self.layout)

    def _put(self, digest: str, files: Mapping[str, bytes]) -> None:
        """Have an object in place. One that is there is only written again where it is broken."""
        folder = self.layout.object_folder(digest)
        if folder.exists() and self._fault(digest) is not None:
            shutil.rmtree(folder)
        if not folder.exists():
            with new_folder(folder) as temporary:
                for name, content in files.items():
                    with atomic(temporary / name) as file:
                        file.write(content)

    def _fault(self, digest: str) -> str | None:
        """What is wrong with an object."""
        folder = self.layout.object_folder(digest)
        try:
            found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        except OSError as error:
            return f"{folder}: cannot be read ({error.strerror}); restore it from a copy, or bank rm this version."
        if digest_of(found) != digest:
            return (
                f"{folder}: its files are not those that were added; restore it from a copy, or bank rm this version."
            )
        return None

    def _objects(self) -> Iterator[Path]:
        yield from (path for path in (self.folder / "objects").iterdir() if DIGEST.fullmatch(path.name))


@dataclass
class _Change:
    """An entry while the lock is held: what it is set to is written at the end."""

    entry: Entry


def _found(reference: Reference, entry: Entry) -> Found:
    number = entry.number_of(reference.at, reference.name)
    tags = tuple(sorted(tag for tag, pointed in entry.tags.items() if pointed == number))
    return Found(reference.name, number, tags, entry.versions[str(number)])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_tag(tag: str) -> None:
    if not TAG.fullmatch(tag) or tag == "latest":
        raise ConfigError(
            f"tag {tag!r}: give a word of letters, digits, '_' and '-' that begins with a letter and is not 'latest'."
        )


def parts_in(place: str | os.PathLike[str], head: str | os.PathLike[str] | None) -> dict[str, Path]:
    """Kind -> folder of what is to be kept together."""
    from speech_adapters.saving.finding import find_parts

    folder = folder_of(place)
    if (folder / "fusion.json").is_file() and not (folder / "adapter.json").is_file():
        return {"fusion": folder} | ({} if head is None else {"head": folder_of(head)})
    found = find_parts(folder, None if head is None else folder_of(head))
    parts = {"adapter": found.adapter, "head": found.head}
    return {kind: path for kind, path in parts.items() if path is not None}


def shared_files(parts: Mapping[str, Path]) -> list[dict[str, bytes]]:
    """The files of the matrices that a compressed adapter shares with others; none for any other adapter."""
    from speech_adapters.adapters.base import adapter_config
    from speech_adapters.adapters.lora_xs import BASES
    from speech_adapters.saving.basis import basis_of, read_basis
    from speech_adapters.saving.parts import load_part

    if "adapter" not in parts:
        return []
    config = adapter_config(load_part(parts["adapter"], "adapter")[0]["config"])
    read_basis(parts["adapter"], config)
    digest = basis_of(config)
    return [] if digest is None else [BASES[digest].files]


def files_of(parts: Mapping[str, Path]) -> dict[str, bytes]:
    """The files to keep: each part's own, held against their checksums, and what stands beside them for others."""
    from speech_adapters.saving.parts import part_files

    files: dict[str, bytes] = {}
    for kind, folder in reversed(list(parts.items())):  # the adapter's companions come before its head's
        files |= {name: (folder / name).read_bytes() for name in COMPANIONS if (folder / name).is_file()}
        files |= part_files(folder, kind)
    return files
