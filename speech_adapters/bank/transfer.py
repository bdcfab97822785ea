"""Banks at other places: part of a bank copied to an address, and what lies at an address taken in.

An address is a folder or any URL that ``fsspec`` opens (``s3://``, ``gs://``, ``sftp://``, ``memory://``; each needs
its own package). What lies there is a bank: on a local disk it can be used as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from speech_adapters.bank.bank import FILES, Bank
from speech_adapters.bank.index import Found
from speech_adapters.errors import CheckpointError, ConfigError, InputError
from speech_adapters.saving.bank_layout import (
    DIGEST,
    FORMAT,
    NAME,
    Entry,
    check_format,
    digest_of_contents,
    entry_of,
    sealed,
    unsealed,
)

MOST_BYTES = 8 * 2**30
"""Of one file of an object: more is no adapter."""


def export_bank(bank: Bank, chosen: Sequence[Found], address: str) -> int:
    """Copy versions with their tags and numbers to an address where nothing is yet; returns how many objects.

    ``bank.json`` is written last: what was broken off is no bank.

    Raises:
        ConfigError: nothing to copy, something there already, or an address that cannot be opened.
        CheckpointError: a version whose files are not what was added.
    """
    if not chosen:
        raise ConfigError("nothing to export: no version fits.")
    place = _Place(address)
    if place.any():
        raise ConfigError(f"{address}: something is there already; choose a new address.")
    objects = {digest for found in chosen for digest in found.version.objects}
    for digest in sorted(objects):
        folder = bank.layout.object_folder(digest)
        contents = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.is_dir() else {}
        if digest_of_contents(contents) != digest:
            raise CheckpointError(f"{folder}: its files are not those that were added; see bank verify.")
        for name, content in contents.items():
            place.write(f"objects/{digest}/{name}", content)
    for name in sorted({found.name for found in chosen}):
        own = [found for found in chosen if found.name == name]
        versions = {str(found.number): found.version for found in own}
        tags = {tag: found.number for found in own for tag in found.tags}
        entry = Entry(last=max(found.number for found in own), versions=versions, tags=tags)
        place.write(f"entries/{name}.json", sealed(entry).encode())
    place.write("bank.json", (json.dumps({"format": FORMAT}) + "\n").encode())
    return len(objects)


def import_bank(bank: Bank, address: str, names: Sequence[str] = ()) -> list[Found]:
    """Take in the versions at an address, or those of some names; returns the versions that are new, or newly tagged.

    A version that the name has already (the same files and facts) is not taken twice. New ones keep their numbers
    where the name has had none as high, as in an empty bank, and get the next ones elsewhere. Tags come along where
    the name has no such tag yet. All files are held against their digests first.

    Raises:
        ConfigError: no bank there, or an unknown name.
        CheckpointError: a damaged entry or object; what came before it has been taken in.
    """
    place = _Place(address)
    check_format(place.json("bank.json"), f"{address}/bank.json")
    known = place.names()
    for name in names:
        if name not in known:
            raise ConfigError(f"{address}: there is no {name!r}; there are {', '.join(known[:20])}.")
    new = []
    for name in names or known:
        where = f"{address}/entries/{name}.json"
        entry = entry_of(unsealed(place.json(f"entries/{name}.json"), where), where)
        file = bank.layout.entry_file(name)
        before = bank.layout.entry(name) if file.is_file() else Entry()
        held = [(one.object, one.facts) for one in before.versions.values()]
        for number in entry.numbers:
            version = entry.versions[str(number)]
            tags = tuple(tag for tag, to in entry.tags.items() if to == number and tag not in before.tags)
            if (version.object, version.facts) in held and not tags:
                continue
            files, needs = place.object(version.object), [place.object(digest) for digest in version.needs]
            new.append(
                bank.keep(
                    files, name, version.facts, tags, added=version.added, number=number, needs=needs, move_tags=False
                )
            )
    return new


class _Place:
    """Files below an address. Raises ConfigError where it cannot be opened."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address
        try:
            self.files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(f"{address}: cannot be opened ({error}).") from error
        self.root = root.rstrip("/")

    def any(self) -> bool:
        """Whether there is something."""
        return bool(self.files.exists(self.root) and (self.files.isfile(self.root) or self.files.find(self.root)))

    def write(self, name: str, content: bytes) -> None:
        try:
            self.files.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(f"{self.root}/{name}", content)
        except OSError as error:
            raise InputError(f"{self.address}/{name}: cannot be written ({error}).") from error

    def read(self, name: str) -> bytes:
        path = f"{self.root}/{name}"
        try:
            if self.files.size(path) > MOST_BYTES:
                raise CheckpointError(f"{self.address}/{name}: larger than any saved part.")
            return self.files.cat_file(path)
        except FileNotFoundError:
            raise CheckpointError(f"{self.address}/{name}: no such file; is this the address of a bank?") from None
        except OSError as error:
            raise InputError(f"{self.address}/{name}: cannot be read ({error}).") from error

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.address}/{name}: not JSON ({error}).") from error

    def names(self) -> list[str]:
        names = (name.removesuffix(".json") for name in self._below("entries") if name.endswith(".json"))
        return sorted(name for name in names if NAME.fullmatch(name))

    def object(self, digest: str) -> dict[str, bytes]:
        """The files of an object, held against its digest."""
        assert DIGEST.fullmatch(digest), "the entry's check looked"
        names = list(self._below(f"objects/{digest}"))
        if strange := set(names) - FILES:
            raise CheckpointError(
                f"{self.address}/objects/{digest}: holds {sorted(strange)[0]!r}, which no saved part has."
            )
        contents = {name: self.read(f"objects/{digest}/{name}") for name in names}
        if digest_of_contents(contents) != digest:
            raise CheckpointError(f"{self.address}/objects/{digest}: its files are not those that were added.")
        return contents

    def _below(self, folder: str) -> Iterator[str]:
        root = f"{self.root}/{folder}"
        for path in self.files.find(root):
            yield path.rpartition(f"/{folder}/")[2]
