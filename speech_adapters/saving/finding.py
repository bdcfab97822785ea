"""What belongs together on disk: an adapter's base and head, found from one folder.

A run folder holds ``adapters/NAME`` and ``heads/NAME``; parts may also share one folder. From any of these folders the
others are found by what the files themselves say: an adapter names its base; a head keeps the fingerprints of the
adapters whose features it was trained on. Of a run's adapters, the one that its ``results.json`` calls its own is
meant, not its baselines. Where more than one part fits, none is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from speech_adapters.encoders.tensors import fingerprint
from speech_adapters.errors import CheckpointError
from speech_adapters.files import read_json
from speech_adapters.saving.adapters import read_base
from speech_adapters.saving.base import Base
from speech_adapters.saving.heads import SavedHead, read_head
from speech_adapters.saving.parts import load_part
from speech_adapters.saving.places import folder_of


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Folders of an adapter (None for the base alone) and a head (None where there is none), and their base."""

    adapter: Path | None
    head: Path | None
    base: Base


def find_parts(folder: str | Path, head: str | Path | None = None) -> Parts:
    """The parts that belong to ``folder``: of an adapter, of a head, of both, or of a run.

    Args:
        head: the folder of the head to take, in place of the one that is found.

    Raises:
        CheckpointError: no part there, a damaged one, or several that fit; names them.
    """
    folder = folder_of(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give that of a saved adapter, of a head, or of a run.")
    adapter = _adapter_in(folder)
    if adapter is None:
        if not _heads_in(folder):  # or the base alone would answer in its place
            raise CheckpointError(f"{folder}: it holds no adapter and no head; give the folder of a saved one.")
        chosen = read_head(_one(_heads_near(folder), f"{folder}: it holds no adapter and", "head") if head is None
                           else head)  # fmt: skip
        return _of_head(chosen)
    base, tensors = read_base(adapter)
    if head is None:
        own = fingerprint(tensors)
        near = _heads_near(adapter) or _heads_near(folder)
        fitting = [path for path in near if _was_trained_on(read_head(path), own, base, bool(tensors))]
        if near and not fitting:
            raise CheckpointError(
                f"{adapter}: none of the heads near it ({_names(near)}) was trained on this adapter as it is; name "
                "the one to use as head (--head)."
            )
        named = [path for path in fitting if path.name == adapter.name]  # seeds of head-only have the same features
        head = _one(named or fitting, f"{adapter}:", "head") if fitting else None
    return Parts(adapter=adapter, head=None if head is None else folder_of(head), base=base)


def own_adapter(run: Path) -> str | None:
    """The folder's name of the adapter that a run's ``results.json`` calls its own; None where none is named.

    Raises:
        InputError: a file that cannot be read.
    """
    if not (run / "results.json").is_file():
        return None
    described = read_json(run / "results.json")
    own = described.get("adapter") if isinstance(described, dict) else None
    return own.replace("+", "-") if isinstance(own, str) else None


def find_adapter(folder: str | Path) -> Path:
    """The folder of the adapter that ``folder`` is of, or that the run in it trained.

    Raises:
        CheckpointError: none there, or several; names them.
    """
    folder = folder_of(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give that of a saved adapter, or of a run.")
    if (adapter := _adapter_in(folder)) is None:
        raise CheckpointError(f"{folder}: it holds no adapter; give the folder of a saved one, or of a run.")
    return adapter


def _adapter_in(folder: Path) -> Path | None:
    """The adapter that a folder is of; None for the folder of a head, or of a run without adapters."""
    if os.path.lexists(folder / "adapter.json"):  # whatever it is: reading it will say
        return folder
    if os.path.lexists(folder / "head.json"):
        return None
    found = _having(folder / "adapters", "adapter.json") or _having(folder, "adapter.json")
    if len(found) > 1 and (own := own_adapter(folder)) is not None:
        found = [path for path in found if path.name == own] or found
    return _one(found, f"{folder}:", "adapter") if found else None


def _of_head(head: SavedHead) -> Parts:
    """The parts of a head: the base alone, or the one adapter that it was trained on, where that lies near it."""
    features = head.features
    if features is None:
        raise CheckpointError(
            f"{head.folder}: this head keeps no record of the base and adapter that it was trained on; give the "
            "adapter's folder, and this one as head."
        )
    adapter = None
    if features.adapters:
        wanted = {identity.fingerprint for identity in features.adapters.values()}
        places = (head.folder, *_having(head.folder.parent.parent / "adapters", "adapter.json"))
        near = [path for path in places if (path / "adapter.json").is_file()]
        fitting = [path for path in near if fingerprint(load_part(path, "adapter")[1]) in wanted]
        if len(wanted) > 1 or not fitting:
            raise CheckpointError(
                f"{head.folder}: this head was trained on {features}, which cannot be found from it; give the "
                "adapter's folder, and this one as head."
            )
        adapter = _one(fitting, f"{head.folder}:", "adapter")
    return Parts(adapter=adapter, head=head.folder, base=features.base)


def _heads_near(folder: Path) -> list[Path]:
    """The head in the same folder, else those of ``heads/`` in it or beside ``adapters/``."""
    return _heads_in(folder) or _having(folder.parent.parent / "heads", "head.json")


def _heads_in(folder: Path) -> list[Path]:
    if (folder / "head.json").is_file():
        return [folder]
    return _having(folder / "heads", "head.json")


def _was_trained_on(head: SavedHead, adapter: str, base: Base, has_tensors: bool) -> bool:
    """Whether a head reads the features of this one adapter; one without tensors leaves those of the base."""
    features = head.features
    if features is None or not features.base.has_weights_of(base):
        return False
    found = {identity.fingerprint for identity in features.adapters.values()}
    return found == ({adapter} if has_tensors else set())


def _having(folder: Path, file: str) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{file}"))


def _one(found: list[Path], where: str, kind: str) -> Path:
    if len(found) != 1:
        several = f"{len(found)} {kind}s fit ({_names(found)}); name one of them" if found else f"no {kind} is there"
        raise CheckpointError(f"{where} {several}.")
    return found[0]


def _names(found: Iterable[Path]) -> str:
    return ", ".join(map(str, found))
