"""One served model: an adapter, a composition or the base alone, with the heads that were trained on it.

Which head reads which adapter stands in the head's file: the fingerprints of the adapters that it was trained on. A
head of classes serves classifications, a CTC head transcriptions, a speaker head embeddings and verifications.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from speech_adapters.adapters.fine_tuning import HeadOnly
from speech_adapters.composition.blocks import TrainableComposition, composition_from_dict, names_of
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.tensors import fingerprint
from speech_adapters.errors import CheckpointError
from speech_adapters.heads.base import HeadConfig
from speech_adapters.heads.classification import ClassificationHead
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.heads.slots import SlotsHead
from speech_adapters.heads.speaker import SpeakerHead
from speech_adapters.saving.adapters import SavedAdapter
from speech_adapters.saving.base import Base
from speech_adapters.saving.heads import SavedHead, method_of
from speech_adapters.saving.parts import load_part

TASKS: dict[str, tuple[type[HeadConfig], ...]] = {
    "transcription": (CTCHead,),
    "classification": (ClassificationHead, SlotsHead),
    "embedding": (SpeakerHead,),
}
"""What a head serves -> its configurations."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""What a folder's name must be to be served: no separators of paths or of ``base:adapter``."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model as clients see it. It never changes: what replaces it is another object.

    Attributes:
        name: what clients ask for.
        key: SHA-256 of all that its answers depend on: configuration, weights and heads.
        fingerprint: SHA-256 of the adapter's tensors, as saved heads name it; of heads without any, the heads';
            of the base alone, the base's.
        method: such as "lora"; "fuse" or "route" of a composition; "base" of the base alone.
        adapter: its folder; None for the base alone and for compositions.
        fusion: folder of a composition's weights; members: the folder of each adapter in it.
        heads: folder by task, or None for the checkpoint's own CTC head.
        prints: by task, what tells a head in a folder from any other: a fingerprint of its tensors, and its settings.
        size: bytes of all its tensors in float32.
        created: seconds since 1970 of the file's last change.
        labels: of a classification head: by slot, "" where there is one set alone.
        calibrated: whether its verifications have a log-likelihood ratio.
    """

    name: str
    key: str
    fingerprint: str
    method: str
    size: int
    created: int
    adapter: Path | None = None
    fusion: Path | None = None
    members: Mapping[str, Path] = field(default_factory=dict)
    heads: Mapping[str, Path | None] = field(default_factory=dict)
    prints: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    calibrated: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can be asked for; every model gives embeddings: without a speaker head, the mean of its features,
        which verify nobody."""
        own = [task for task in TASKS if task in self.heads or task == "embedding"]
        return (*own, *(["verification"] if "embedding" in self.heads else []))


def of_adapter(name: str, folder: Path, saved: SavedAdapter, heads: Sequence[SavedHead], encoder: Encoder) -> Served:
    """An adapter in ``folder``, served as ``name``, with those of ``heads`` that were trained on it."""
    own = fingerprint(saved.tensors) if saved.tensors else None
    wanted = set() if own is None else {own}
    fitting = [head for head in heads if _reads(head, wanted, encoder)]
    part = replace(
        _served(name, own, method_of(saved.config), saved.tensors, fitting, folder / "adapter.json"),
        adapter=folder,
    )
    settings = json.dumps(saved.config.to_dict(), sort_keys=True)
    return replace(part, key=hashlib.sha256(f"{part.key} {settings}".encode()).hexdigest())


def on_base(name: str, head: SavedHead, encoder: Encoder) -> Served:
    """The base alone under a head that was trained on it, served as ``name``."""
    assert head.features is not None, "the caller looked"
    head.features.base.check(Base.of(encoder), f"{head.folder}: this head")
    return _served(name, None, HeadOnly.method, {}, [head], head.folder / "head.json")


def whole(fusion: Mapping[str, Tensor], members: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several parts, such as a composition and the adapters in it, which a fingerprint is of."""
    return {**fusion, **{f"{name}.{key}": own for name, part in members.items() for key, own in part.items()}}


def of_fusion(
    name: str, folder: Path, adapters: Mapping[str, Path], heads: Sequence[SavedHead], encoder: Encoder
) -> tuple[Served, str]:
    """A composition in ``folder``, served as ``name``, and what else it can be called.

    Args:
        adapters: folder of each adapter that may be part of it, by the fingerprint of its tensors.
    """
    described, tensors = load_part(folder, "fusion")
    composition = composition_from_dict(described["composition"])
    if not isinstance(composition, TrainableComposition):
        raise CheckpointError(f"{folder}: {composition!r} has no weights of its own.")
    Base(**described["base"]).check(Base.of(encoder), f"{folder}: this fusion")
    members = {}
    for member in names_of(composition):
        if (place := adapters.get(described["parts"].get(member))) is None:
            raise CheckpointError(
                f"{folder}: {composition!r} needs the adapter {member!r} that it was trained with, which is not there."
            )
        members[member] = place
    said = json.dumps(composition.to_dict())
    fitting = [head for head in heads if head.features is not None and json.dumps(head.features.composition) == said]
    tensors = whole(tensors, {member: load_part(place, "adapter")[1] for member, place in members.items()})
    part = _served(name, fingerprint(tensors), composition.kind, tensors, fitting, folder / "fusion.json")
    call = f"{composition.kind}:{'+'.join(members)}"
    return replace(part, fusion=folder, members=members), call


def _served(
    name: str, own: str | None, method: str, tensors: Mapping[str, Tensor], heads: Sequence[SavedHead], file: Path
) -> Served:
    chosen: dict[str, SavedHead] = {}
    for task, configs in TASKS.items():
        fitting = [head for head in heads if isinstance(head.config, configs)]
        named = [head for head in fitting if head.folder.name == name or head.folder == file.parent]
        if len(fitting) > 1 and len(named) != 1:
            raise CheckpointError(
                f"{file.parent}: {len(fitting)} heads for {task} fit ({', '.join(str(h.folder) for h in fitting)}); "
                "give one of them the adapter's name, or remove the others."
            )
        if fitting:
            chosen[task] = (named or fitting)[0]
    labels: dict[str, Sequence[str]] = {}
    if (classes := chosen.get("classification")) is not None:
        config = classes.config
        labels = dict(config.slots) if isinstance(config, SlotsHead) else {"": config.labels}  # type: ignore[attr-defined]
    speaker = chosen.get("embedding")
    parts = [tensors, *(head.tensors for head in chosen.values())]
    prints = {task: head_print(head) for task, head in chosen.items()}
    own = own or fingerprint(whole({}, {task: head.tensors for task, head in chosen.items()}))
    return Served(
        name=name,
        key=hashlib.sha256(json.dumps([own, method, sorted(prints.items())]).encode()).hexdigest(),
        fingerprint=own,
        method=method,
        size=sum(4 * tensor.numel() for part in parts for tensor in part.values()),
        created=int(file.stat().st_mtime),
        heads={task: head.folder for task, head in chosen.items()},
        prints=prints,
        labels=labels,
        calibrated=speaker is not None and getattr(speaker.config, "calibration", None) is not None,
    )


def head_print(head: SavedHead) -> str:
    """See :attr:`Served.prints`."""
    return f"{fingerprint(head.tensors)} {head.config.to_dict()}"


def _reads(head: SavedHead, adapters: set[str], encoder: Encoder) -> bool:
    features = head.features
    if features is None or isinstance(features.composition, dict):
        return False
    if features.base.fingerprint not in encoder.fingerprints:
        return False
    return {identity.fingerprint for identity in features.adapters.values()} == adapters
