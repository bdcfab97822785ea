"""How a bank lies on disk, and what a reference such as ``client-a/asr@production`` means in it.

    bank.json                    {"format": 1}
    entries/client-a/asr.json    versions and tags of one name: one file, so that every change is one rename
    objects/<digest>/            a folder of saved parts, which never changes; named by the SHA-256 over its files
    index.json                   what the entries say, for speed alone: made anew from them at any time

Names from files are held against :data:`NAME` and :data:`DIGEST` before they become paths, so none leads out of the
folder. Reading takes no lock: what a file says was written whole.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech_adapters import schema
from speech_adapters.errors import CheckpointError, ConfigError, InputError
from speech_adapters.files import read_json, to_json, write_text

FORMAT = 1
ENVIRONMENT = "SPEECH_ADAPTERS_BANK"
"""Names the bank that ``bank:NAME`` is looked up in."""
PREFIX = "bank:"
SEGMENT = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"  # without dots: no "..", and no segment is called like a file
NAME = re.compile(rf"{SEGMENT}(/{SEGMENT}){{0,3}}")
TAG = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a version is looked up by; None where its files and whoever added it say nothing."""

    kind: str
    """"adapter", "head" or "fusion": what it is loaded as."""
    base: str
    """Name of the frozen encoder."""
    fingerprint: str
    """SHA-256 of the encoder's weights."""
    method: str
    """Of an adapter, such as "lora"; the type of a head; "fuse" or "route"."""
    bytes: int
    """Of all files."""
    parameters: int
    """Values in its weights file."""
    head: str | None = None
    """The type of the head that goes along."""
    task: str | None = None
    domain: str | None = None
    language: str | None = None
    licence: str | None = None
    data: str | None = None
    """What it was tested on."""
    note: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    """Name -> ``{value, low, high}``; rates as fractions."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version: ``object`` is the digest of its folder, ``added`` its time (ISO 8601, UTC); ``needs`` are digests
    of other objects that are read with it."""

    object: str
    added: str
    facts: Facts
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for digest in self.objects:
            if not DIGEST.fullmatch(digest):
                raise ValueError(f"object {digest!r} is not a SHA-256")

    @property
    def objects(self) -> tuple[str, ...]:
        """All that it consists of."""
        return (self.object, *self.needs)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """All versions of one name. ``last`` is the highest number ever given: none is given twice."""

    last: int = 0
    versions: dict[str, Version] = field(default_factory=dict)
    """Number, as text -> version."""
    tags: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [int(number) if number.isdecimal() and number == str(int(number)) else 0 for number in self.versions]
        if not all(0 < number <= self.last for number in numbers):
            raise ValueError(f"versions {', '.join(self.versions)} are not numbers from 1 to {self.last}")
        if astray := [tag for tag, number in self.tags.items() if number not in numbers or not TAG.fullmatch(tag)]:
            raise ValueError(f"tags {', '.join(astray)} point at no version")

    @property
    def numbers(self) -> list[int]:
        """Those of its versions, in order."""
        return sorted(map(int, self.versions))

    def number_of(self, reference: str | None, name: str) -> int:
        """The version that the part after ``@`` names: a number, a tag, or None for the newest.

        Raises:
            CheckpointError: no such version; says which there are.
        """
        if not self.versions:
            raise CheckpointError(f"{name}: all its versions were removed.")
        if reference is None or reference == "latest":
            return self.numbers[-1]
        if (number := self.tags.get(reference)) is not None:
            return number
        if reference in self.versions:
            return int(reference)
        known = ", ".join([*map(str, self.numbers[-10:]), *self.tags])
        raise CheckpointError(f"{name}@{reference}: no such version or tag; there are {known}.")


@dataclass(frozen=True)
class Reference:
    """``client-a/asr@production`` in its parts; ``at`` is a version's number or a tag, None for the newest version."""

    name: str
    at: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises ConfigError for what can be no name in a bank."""
        name, mark, at = text.removeprefix(PREFIX).partition("@")
        check_name(name)
        if mark and not (TAG.fullmatch(at) or (at.isascii() and at.isdecimal())):
            raise ConfigError(f"{text!r}: after @ comes a version's number or a tag, such as @3 or @production.")
        return cls(name, at if mark else None)

    def __str__(self) -> str:
        return self.name if self.at is None else f"{self.name}@{self.at}"


def check_name(name: str) -> None:
    """Raise a ConfigError unless ``name`` can be one in a bank."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a name in a bank: give up to four parts of letters, digits, '_' and '-', such as "
            "client-a/asr."
        )


class Layout:
    """The paths of a bank in ``folder``, and its entries as they stand on disk.

    Raises:
        ConfigError: no bank there.
        CheckpointError: one of a newer format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / "bank.json").is_file():
            raise ConfigError(f"{self.folder}: no bank there; make one with: speech-adapters bank init {self.folder}")
        check_format(read_json(self.folder / "bank.json"), f"{self.folder / 'bank.json'}")

    def entry_file(self, name: str) -> Path:
        """Where the versions of a name stand."""
        check_name(name)
        return self.folder / "entries" / f"{name}.json"

    def object_folder(self, digest: str) -> Path:
        """Where an object lies."""
        if not DIGEST.fullmatch(digest):
            raise ConfigError(f"{digest!r} is not a SHA-256 of an object.")
        return self.folder / "objects" / digest

    def entry(self, name: str) -> Entry:
        """The versions of a name.

        Raises:
            CheckpointError: no such name (near ones are said), or a damaged file.
        """
        file = self.entry_file(name)
        if not file.is_file():
            close = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see: speech-adapters bank list"
            raise CheckpointError(f"{self.folder}: there is no {name!r}; {hint}")
        return read_entry(file)

    def names(self) -> list[str]:
        """All names, in order."""
        root = self.folder / "entries"
        names = (file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.json"))
        return sorted(name for name in names if NAME.fullmatch(name))

    def locate(self, reference: str | Reference) -> Path:
        """The folder of the version that a reference names.

        Raises:
            CheckpointError: no such name, version or tag, or its object is gone.
        """
        reference = reference if isinstance(reference, Reference) else Reference.parse(reference)
        entry = self.entry(reference.name)
        number = entry.number_of(reference.at, reference.name)
        folder = self.object_folder(entry.versions[str(number)].object)
        if not folder.is_dir():
            raise CheckpointError(
                f"{reference.name}@{number}: its files ({folder}) are gone; restore them, or bank rm this version."
            )
        return folder


def locate(reference: str) -> Path:
    """The folder of ``bank:NAME@VERSION`` in the bank that the environment names.

    Raises:
        ConfigError: no bank is named, or none is there.
        CheckpointError: no such version.
    """
    return Layout(default_bank()).locate(reference)


def default_bank() -> str:
    """The bank that the environment names. Raises ConfigError where it names none."""
    folder = os.environ.get(ENVIRONMENT)
    if not folder:
        raise ConfigError(
            f"which bank? Set {ENVIRONMENT} to its folder (the verbs of speech-adapters bank also take --bank DIR)."
        )
    return os.path.expanduser(folder)


def check_format(described: Any, where: str) -> None:
    """Raise a CheckpointError unless ``bank.json`` says a format that is understood."""
    version = described.get("format") if isinstance(described, Mapping) else None
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{where}: this file marks no bank; restore it.")
    if version > FORMAT:
        raise CheckpointError(f"{where}: format {version} is newer than this version reads; update the package.")


def read_entry(file: Path) -> Entry:
    """An entry's file. Raises CheckpointError where it is cut short or changed."""
    return entry_of(read_sealed(file), file)


def entry_of(values: Mapping[str, Any], where: object) -> Entry:
    """The entry that plain values describe. Raises CheckpointError for what no entry can have."""
    try:
        return schema.from_dict(Entry, values, str(where))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def write_sealed(file: Path, content: Any) -> None:
    """Write JSON with a checksum of its content, whole or not at all."""
    write_text(file, sealed(content))


def sealed(content: Any) -> str:
    """The text of such a file."""
    plain = to_json(content)
    return json.dumps({"sha256": _seal(plain), **plain}, indent=1, ensure_ascii=False) + "\n"


def read_sealed(file: Path) -> dict[str, Any]:
    """What :func:`write_sealed` wrote. Raises CheckpointError where the file is missing, cut short or changed."""
    try:
        values = read_json(file)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    return unsealed(values, file)


def unsealed(values: Any, where: object) -> dict[str, Any]:
    """The content of such a file, its checksum held against it."""
    recorded = values.pop("sha256", None) if isinstance(values, dict) else None
    if recorded is None or recorded != _seal(values):
        raise CheckpointError(f"{where}: cut short or changed since it was written; restore it from a copy.")
    return values


def _seal(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of a folder of ``files``: name -> SHA-256 of its content."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_contents(files: Mapping[str, bytes]) -> str:
    """:func:`digest_of` the folder that ``files`` would make: name -> content."""
    return digest_of({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
