"""Adapters and heads in memory: least recently used ones make room.

Two levels. The :class:`Shelf` holds the tensors of what was asked for lately, up to a budget in bytes; what is not
there is read from disk in the background, while the batches of others run. The model itself holds a few *slots*:
adapters that are attached to the encoder, of a configuration each. A batch's adapters are copied into slots of their
configuration, which takes a millisecond or so a megabyte, and nothing of the encoder or of another adapter is touched;
attaching, which some methods (LoRA through ``peft``) do in a time that grows with what is attached, happens only when
a slot is made.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from speech_adapters.adapters.fine_tuning import FineTuning
from speech_adapters.composition.blocks import TrainableComposition, names_of
from speech_adapters.composition.registry import Tensors
from speech_adapters.composition.weight_averaging import shape_of
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.tensors import fingerprint
from speech_adapters.errors import CheckpointError
from speech_adapters.heads.base import HeadModule
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving.adapters import SavedAdapter, read_adapter
from speech_adapters.saving.fusions import SavedFusion, read_fusion
from speech_adapters.saving.heads import read_head
from speech_adapters.saving.recent import Recent
from speech_adapters.serving.served import Served, head_print, whole
from speech_adapters.tasks.asr import own_ctc_head


@dataclass(eq=False)
class Loaded:
    """A served model's parts in memory.

    Attributes:
        adapter: of an adapter; fusion, members: of a composition, the latter by name.
        heads: by task, on the CPU in eval mode.
        reads_layers: whether these read what the adapters read from the layers, not the last hidden state.
    """

    served: Served
    adapter: SavedAdapter | None = None
    fusion: SavedFusion | None = None
    members: dict[str, SavedAdapter] = field(default_factory=dict)
    heads: dict[str, HeadModule] = field(default_factory=dict)
    reads_layers: bool = False

    @property
    def alone(self) -> bool:
        """Whether it acts on a whole batch: compositions, and adapters that replace the encoder's layers."""
        config = None if self.adapter is None else self.adapter.config
        return bool(self.members) or any(
            isinstance(one, FineTuning) for one in (config, *getattr(config, "parts", ()))
        )


def load(served: Served, encoder: Encoder) -> Loaded:
    """Read a served model from disk, in any thread.

    Raises:
        CheckpointError: a part that is missing, damaged or of another base, or is not what the catalog found there.
    """
    loaded = Loaded(served)
    if served.adapter is not None:
        loaded.adapter = read_adapter(served.adapter, encoder)
        if loaded.adapter.tensors and fingerprint(loaded.adapter.tensors) != served.fingerprint:
            raise _changed("adapter", served)
    if served.fusion is not None:
        loaded.members = {name: read_adapter(path, encoder) for name, path in served.members.items()}
        members = {name: member.tensors for name, member in loaded.members.items()}
        given: Tensors = {name: partial(dict[str, Tensor], tensors) for name, tensors in members.items()}
        loaded.fusion = read_fusion(served.fusion, encoder, given, {})
        if fingerprint(whole(loaded.fusion.tensors, members)) != served.fingerprint:
            raise _changed("fusion", served)
    parts = [*loaded.members.values()] if loaded.adapter is None else [loaded.adapter]
    loaded.reads_layers = any(part.config.reads_layers(encoder) for part in parts)
    for task, folder in served.heads.items():
        head = own_ctc_head(encoder) if folder is None else _head(folder, served, task)
        loaded.heads[task] = head.requires_grad_(False).eval()
    return loaded


def _changed(part: str, served: Served) -> CheckpointError:
    return CheckpointError(f"the {part} of {served.name!r} has changed since it was added; add it again.")


def _head(folder: Path, served: Served, task: str) -> HeadModule:
    saved = read_head(folder)
    if head_print(saved) != served.prints[task]:
        raise _changed("head", served)
    return saved.build()


class Shelf:
    """Loaded models within a budget of bytes; used from the event loop alone.

    Attributes:
        kept: the models in memory by key; ``kept.misses`` were read from disk.
    """

    def __init__(self, encoder: Encoder, budget: int, executor: Executor) -> None:
        self.encoder, self.executor = encoder, executor
        self.kept: Recent[Loaded] = Recent(budget)
        self._loading: dict[str, asyncio.Future[Loaded]] = {}

    async def get(self, served: Served) -> Loaded:
        """The parts of a model, read from disk if need be; requests for the same one share the reading.

        Models of equal parts share these too, each under its own name: who asked for one may not know of the other.

        Raises:
            CheckpointError: see :func:`load`.
        """
        loaded = None if served.key in self._loading else self.kept.get(served.key)
        if loaded is None:
            if served.key not in self._loading:
                reading = asyncio.get_running_loop().run_in_executor(self.executor, load, served, self.encoder)
                self._loading[served.key] = asyncio.ensure_future(self._keep(served, reading))
            loaded = await asyncio.shield(self._loading[served.key])
        return replace(loaded, served=served)

    async def _keep(self, served: Served, reading: asyncio.Future[Loaded]) -> Loaded:
        try:
            loaded = await reading
            self.kept.put(served.key, loaded, served.size)
            return loaded
        finally:
            del self._loading[served.key]

    async def settle(self, served: Served) -> None:
        """Wait until nothing reads a model from disk: until the next ``await`` its files may be changed."""
        while (reading := self._loading.get(served.key)) is not None:
            await asyncio.wait([reading])

    def drop(self, served: Served) -> None:
        """Forget a model that is served no more."""
        self.kept.drop(served.key)


@dataclass(eq=False)
class _Slot:
    """An attached adapter: its name in the model, its configuration, and the key of what has been copied into it."""

    name: str
    shape: str
    key: str = ""


class Slots:
    """What is attached to one model; used from its worker alone."""

    def __init__(self, model: SpeechAdapterModel, most: int) -> None:
        self.model, self.most = model, most
        self._slots: dict[str, _Slot] = {}  # by the key of what is in it, the latest used last
        self._compositions: dict[str, TrainableComposition] = {}  # by key, the latest used last
        self._heads: dict[str, str] = {}  # key and task -> name in the model, the latest used last
        self._count = 0

    def place(self, batch: Sequence[Loaded]) -> dict[str, str | None]:
        """Have the adapters of one batch in slots: the model's name for each, by its key (None: the base alone).

        At most ``most`` different ones go into a batch.
        """
        wanted = {loaded.served.key: loaded for loaded in batch}
        for key in wanted:  # those of this batch must not make room for each other
            if key in self._slots:
                self._slots[key] = self._slots.pop(key)
        return {
            key: None if loaded.adapter is None or not loaded.adapter.tensors
            else self._adapter(key, loaded.adapter, wanted.keys())
            for key, loaded in wanted.items()
        }  # fmt: skip

    def _adapter(self, key: str, saved: SavedAdapter, needed: Collection[str]) -> str:
        if key in self._slots:
            return self._slots[key].name
        shape = json.dumps(shape_of(saved.config.to_dict()), sort_keys=True)
        free = [slot for slot in self._slots.values() if slot.key not in needed]
        if len(self._slots) >= self.most and free:
            slot = next((slot for slot in free if slot.shape == shape), free[0])
            del self._slots[slot.key]
            if slot.shape != shape:
                self.model.delete_adapter(slot.name)
                slot = self._attach(shape, saved)
        else:
            slot = self._attach(shape, saved)
        self.model.registry.adapter(slot.name).load_tensors(saved.tensors)
        slot.key = key
        self._slots[key] = slot
        return slot.name

    def _attach(self, shape: str, saved: SavedAdapter) -> _Slot:
        self._count += 1
        slot = _Slot(f"slot-{self._count}", shape)
        self.model.add_adapter(slot.name, saved.config)
        self.model.set_active()
        return slot

    def alone(self, loaded: Loaded) -> str | TrainableComposition:
        """Have what acts on a whole batch in the model: what to activate."""
        return self._composition(loaded) if loaded.members else str(self.place([loaded])[loaded.served.key])

    def _composition(self, loaded: Loaded) -> TrainableComposition:
        """Have a composition with its members in the model; the few latest stay."""
        key = loaded.served.key
        if key in self._compositions:
            self._compositions[key] = self._compositions.pop(key)
            return self._compositions[key]
        while len(self._compositions) >= MOST_COMPOSITIONS:
            self._remove(self._compositions.pop(next(iter(self._compositions))))
        assert loaded.fusion is not None, "a composition has weights"
        self._count += 1
        names = {name: f"part-{self._count}-{number}" for number, name in enumerate(loaded.members)}
        composition = _renamed(loaded.fusion.composition, names, f"whole-{self._count}")
        try:
            for name, saved in loaded.members.items():
                self.model.add_adapter(names[name], saved.config)
                self.model.registry.adapter(names[name]).load_tensors(saved.tensors)
            self.model.add_fusion(composition, loaded.fusion.config)
            loaded.fusion.load_into(self.model.registry.fusion(composition.name))
        except BaseException:
            self._remove(composition)
            raise
        self.model.set_active()
        self._compositions[key] = composition
        return composition

    def _remove(self, composition: TrainableComposition) -> None:
        """Take a composition and its members, as far as they are there, out of the model."""
        self.model.set_active()
        if composition.name in self.model.fusions:
            self.model.delete_fusion(composition.name)
        for name in names_of(composition):
            if name in self.model.adapters:
                self.model.delete_adapter(name)

    def head(self, loaded: Loaded, task: str | None) -> str | None:
        """Have the head for a task in the model: its name there, None where the model has none for it."""
        if task is None or task not in loaded.heads:
            return None
        key = f"{loaded.served.key} {task}"
        name = self._heads.pop(key, None)
        if name is None:
            self._count += 1
            name = f"head-{self._count}"
            self.model.heads[name] = copy.deepcopy(loaded.heads[task]).to(self.model.device)
        self._heads[key] = name
        while len(self._heads) > MOST_HEADS:
            del self.model.heads[self._heads.pop(next(iter(self._heads)))]
        return name


MOST_COMPOSITIONS, MOST_HEADS = 4, 256
"""Kept in the model: compositions with their members, and heads (of which a batch has fewer)."""


def _renamed(composition: TrainableComposition, names: Mapping[str, str], name: str) -> TrainableComposition:
    """The same composition of adapters that go by other names, under a name of its own."""
    members = [names[member] for member in composition.members if isinstance(member, str)]
    if len(members) < len(composition.members):
        raise CheckpointError(f"{composition!r}: compositions inside compositions are not served.")
    return type(composition)(*members, name=name)
