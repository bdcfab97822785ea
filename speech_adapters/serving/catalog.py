"""What is served: every adapter and composition in a folder or a bank, with the heads that were trained on it.

A folder is a run (``adapters/NAME``, ``heads/NAME``, ``fusions/NAME``) or any other that holds these. Clients call an
adapter by its folder's name, or as ``base:NAME``; a fusion by its folder's name, or as ``fuse:a+b``. What comes from a
bank is called as it is everywhere: ``client-a/asr``, ``client-a/asr@production``, with ``bank:`` before it or without.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from speech_adapters.bank.bank import Bank
from speech_adapters.bank.index import Found
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.tensors import fingerprint
from speech_adapters.errors import CheckpointError, ConfigError, InputError
from speech_adapters.files import read_json
from speech_adapters.saving.adapters import read_adapter
from speech_adapters.saving.bank_layout import PREFIX
from speech_adapters.saving.base import Base
from speech_adapters.saving.finding import own_adapter
from speech_adapters.saving.heads import read_head
from speech_adapters.saving.parts import load_part
from speech_adapters.saving.places import folder_of
from speech_adapters.serving.served import NAME, Served, of_adapter, of_fusion, on_base

log = logging.getLogger("speech_adapters.serving")


class Catalog:
    """The served models by name. Adding and removing go one by one; what was looked up stays valid."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.base = Path(encoder.name).name
        self._served: dict[str, Served] = {}
        self._calls: dict[str, str] = {}  # "fuse:a+b", "client-a/asr@production" -> name
        heads = {"transcription": None} if encoder.ctc is not None and encoder.ctc.vocabulary is not None else {}
        key = encoder.fingerprint
        self.add(Served(name=self.base, key=key, fingerprint=key, method="base", size=0, created=0, heads=heads))

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._served.values()))

    def __len__(self) -> int:
        return len(self._served)

    def __contains__(self, name: str) -> bool:
        return name in self._served

    def find(self, model: str, allowed: Iterable[str] | None = None) -> Served:
        """The model that a request names: ``NAME``, ``base:NAME``, ``bank:NAME@TAG`` or ``fuse:a+b``.

        Args:
            allowed: the names that this client may know of; all by default.

        Raises:
            UnknownModel: none of that name; near ones are named.
        """
        known = self._served.keys() if allowed is None else [name for name in allowed if name in self._served]
        name = model
        if name not in known:
            before, colon, rest = model.partition(":")
            name = rest if colon and before in (self.base, self.encoder.name, PREFIX[:-1]) else model
            name = self._calls.get(name, name)
        if name not in known:
            near = [one for one in known if one.startswith(name)] or difflib.get_close_matches(name, known, n=1)
            said = " or ".join(repr(one) for one in near[:3])
            hint = f"did you mean {said}?" if near else "GET /v1/models lists the models served"
            raise UnknownModel(f"the model {model!r} does not exist here; {hint}")
        return self._served[name]

    def add(self, served: Served, *calls: str) -> None:
        """Serve a model, in place of one of the same name; ``calls`` are what else it goes by."""
        if served.fusion is None and served.method != "base" and served.name == self.base:
            raise ConfigError(f"{served.name!r} is the base's own name; call the adapter something else.")
        self._served[served.name] = served
        self._calls |= dict.fromkeys(calls, served.name)

    def remove(self, name: str) -> Served:
        """Serve a model no more. Raises UnknownModel, or ConfigError for the base or what a composition needs."""
        served = self.find(name)
        if served.method == "base":
            raise ConfigError(f"{name!r} is the base itself, which stays.")
        for other in self:
            if served.adapter is not None and served.adapter in other.members.values():
                raise ConfigError(f"{name!r} is part of {other.name!r}; delete that first.")
        self._calls = {call: target for call, target in self._calls.items() if target != served.name}
        return self._served.pop(served.name)


class UnknownModel(InputError):
    """A request for a model that is not served."""


class UnsupportedTask(InputError):
    """A request for what a model has no head for."""


Entry = tuple[Served, tuple[str, ...]]
"""A model, and what else it can be called."""


def read_place(place: str | Path, encoder: Encoder) -> Iterator[Entry]:
    """Everything that can be served in a folder, a bank, or one version of the bank that the environment names
    (``bank:client-a/asr@production``); each part is read and held against the encoder.

    Raises:
        CheckpointError: see :func:`read_folder` and :func:`read_bank`.
        ConfigError: a reference that can be none, or no bank.
    """
    if str(place).startswith(PREFIX):
        reference = str(place).removeprefix(PREFIX)
        bank = Bank()
        return _of_bank(bank, [(reference, bank.find(reference), ())], encoder)
    folder = folder_of(place)
    return read_bank(Bank(folder), encoder) if (folder / "bank.json").is_file() else read_folder(folder, encoder)


def split_name(place: str | Path) -> tuple[str, str]:
    """``NAME=PLACE`` as name and place; any other place, also a folder that is called so, with no name."""
    name, equals, rest = str(place).partition("=")
    return (name, rest) if equals and NAME.fullmatch(name) and not Path(place).exists() else ("", str(place))


def read_named(place: str | Path, encoder: Encoder) -> Iterator[Entry]:
    """:func:`read_place`; of ``NAME=PLACE`` its only model, or a run's own adapter, as NAME, others as ``NAME-`` and
    what each is called.

    Raises:
        CheckpointError, ConfigError: as there. InputError: a run's results that cannot be read.
    """
    name, rest = split_name(place)
    found = read_place(rest, encoder)
    if not name:
        yield from found
        return
    models = [served for served, _ in found]
    own = models[0].name if len(models) == 1 else own_adapter(folder_of(rest))
    for served in models:
        yield replace(served, name=name if served.name == own else f"{name}-{served.name}"), ()


def read_bank(bank: Bank, encoder: Encoder) -> Iterator[Entry]:
    """Of every name in a bank the newest version, called by the name, and those with tags, called ``NAME@NUMBER``;
    tags and numbers are further calls. What was made for another base, and heads without their adapter, are left out,
    and the log names them.

    Raises:
        CheckpointError: nothing there for this encoder, a damaged entry or part.
    """
    index = bank.index()
    for fault in index.damaged.values():
        raise CheckpointError(fault)
    wanted, bases, left = [], set(), []
    for found in index.versions():
        bases.add(found.facts.base)
        if not _made_on(bank, found, encoder):
            left.append(f"{found} (for {found.facts.base})")
            continue
        if _needs_another(bank, found):
            left.append(f"{found} (a head without its adapter)")
            continue
        newest = found.number == index.entries[found.name].numbers[-1]
        tags = [f"{found.name}@{tag}" for tag in (*found.tags, *(["latest"] if newest else []))]
        wanted.append((found.name, found, (str(found), *tags)) if newest else (str(found), found, tuple(tags)))
    if not wanted:
        there = f"what it holds is for {', '.join(sorted(bases))}" if bases else "it is empty"
        raise CheckpointError(f"{bank.folder}: nothing in this bank is for {encoder.name}; {there}.")
    if left:
        log.warning("%s: not served: %s%s", bank.folder, ", ".join(left[:10]), " ..." if len(left) > 10 else "")
    return _of_bank(bank, wanted, encoder)


def _made_on(bank: Bank, found: Found, encoder: Encoder) -> bool:
    """Whether the encoder is the base of what was found: by its weights; of an adapter, by all that it remembers."""
    if found.facts.fingerprint not in encoder.fingerprints or found.facts.kind != "adapter":
        return found.facts.fingerprint in encoder.fingerprints
    try:
        base = Base(**read_json(bank.path(str(found)) / "adapter.json")["base"])
    except (InputError, OSError, ValueError, TypeError, KeyError):
        return True  # a damaged file, which is named where it is read whole
    try:
        base.check(Base.of(encoder), str(found))
    except CheckpointError as error:
        log.warning("%s", error)
        return False
    return True


def _needs_another(bank: Bank, found: Found) -> bool:
    """Whether it is a head that stands without the adapter that it was trained on."""
    if found.facts.kind != "head":
        return False
    features = read_head(bank.path(str(found))).features
    return features is None or bool(features.adapters)


def _of_bank(bank: Bank, wanted: Iterable[tuple[str, Found, tuple[str, ...]]], encoder: Encoder) -> Iterator[Entry]:
    members: dict[str, Path] | None = None  # of all fusions: adapters by their fingerprint
    for name, found, calls in wanted:
        folder = bank.path(str(found))
        heads = [read_head(path) for path in _having(folder, "heads", "head.json")]
        if found.facts.kind == "fusion":
            if members is None:
                adapters = (one for one in bank.search(every=True) if one.facts.kind == "adapter")
                folders = [bank.path(str(one)) for one in adapters if _made_on(bank, one, encoder)]
                members = {fingerprint(load_part(path, "adapter")[1]): path for path in folders}
            yield of_fusion(name, folder, members, heads, encoder)[0], calls
        elif found.facts.kind == "adapter":
            yield of_adapter(name, folder, read_adapter(folder, encoder), heads, encoder), calls
        else:
            yield on_base(name, heads[0], encoder), calls


def check_folder(folder: Path) -> None:
    """Raise a CheckpointError where there is no such folder."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give one that holds adapters/NAME and heads/NAME.")


def read_folder(folder: str | Path, encoder: Encoder) -> Iterator[Entry]:
    """Everything in a folder that can be served; each part is read and held against the encoder.

    Raises:
        CheckpointError: nothing to serve, a damaged part, one of another base, a head that fits none of the adapters.
        ConfigError: a part whose folder's name cannot be served.
    """
    folder = Path(folder)
    check_folder(folder)
    # heads first: a run at work in the folder saves an adapter before the heads that read it
    heads = [read_head(path) for path in _having(folder, "heads", "head.json")]
    fusions = _having(folder, "fusions", "fusion.json")
    adapters = _having(folder, "adapters", "adapter.json")
    if not adapters and not fusions and not heads:
        raise CheckpointError(f"{folder}: holds no adapters/NAME, fusions/NAME or heads/NAME; give a run's folder.")
    used: set[Path] = set()
    prints: dict[str, Path] = {}
    for path in adapters:
        served = of_adapter(_name(path), path, read_adapter(path, encoder), heads, encoder)
        prints[served.fingerprint] = path
        used |= {place for place in served.heads.values() if place is not None}
        yield served, ()
    for path in fusions:
        served, call = of_fusion(_name(path), path, prints, heads, encoder)
        used |= {place for place in served.heads.values() if place is not None}
        yield served, (call,)
    alone = [head for head in heads if head.folder not in used and head.features is not None]
    baseline = [head for head in alone if not head.features.adapters]  # type: ignore[union-attr]
    for head in baseline:
        yield on_base(_name(head.folder), head, encoder), ()
    left = [head.folder for head in heads if head.folder not in used and head not in baseline]
    if left:
        raise CheckpointError(
            f"{', '.join(map(str, left))}: trained on none of the adapters in {folder} as they are; remove what is "
            "not to be served, or add its adapter."
        )


def _name(folder: Path) -> str:
    if not NAME.fullmatch(folder.name):
        raise ConfigError(f"{folder}: {folder.name!r} cannot be served; use letters, digits, '_', '-' and '.'.")
    return folder.name


def _having(folder: Path, kind: str, file: str) -> list[Path]:
    if (folder / file).is_file():
        return [folder]
    return sorted(path.parent for path in (folder / kind).glob(f"*/{file}"))
