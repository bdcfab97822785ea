"""Several trainings on one frozen encoder in one pass: what is constant in all of them is computed once per batch.

Trainings that hear the same data in the same order (methods, learning rates, heads) share each batch: the encoder runs
as far as nothing that any of them trains changes it, or is read from the cache, and each goes on from its own place
with its own adapters, head, dropout and loss. Those that hear other data (domains, clients, seeds) share the encoder
in memory and the cache. Optimizers, norms of gradients, best states and ends are each one's own: each ends with
what it gets alone.

Sources: peft issue 3012 (asked for); Ye et al., "mLoRA" (VLDB 2025) for language models.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.data.batches import SpeechDataset, UtteranceDataset, evaluation_loader
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.processes import processes
from speech_adapters.training.cached_dataset import CachedDataset
from speech_adapters.training.frozen import Frozen, Tap, batch_taps, compute_taps, frozen_part
from speech_adapters.training.learner import Learner, Loss, Position
from speech_adapters.training.loop import Watcher, fit_parts, seed_update
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import Supervised, check, constant, held_out_figures


@dataclass(frozen=True, kw_only=True)
class Member:
    """One training of several.

    Attributes:
        name: in the log and the results.
        model: its adapter and head chosen by ``train_adapter``; all members' stand on one :class:`Encoder` object.
        dataset, dev: the same objects in members that share batches.
        config: of which seed and learning rates may differ from the others'.
    """

    name: str
    model: SpeechAdapterModel
    dataset: SpeechDataset
    config: TrainingConfig
    dev: SpeechDataset | None = None


def train_together(
    members: Sequence[Member], run: RunFolder, name: str = "together", watcher: Watcher | None = None
) -> dict[str, TrainingResult]:
    """Train all members in one pass; what each costs is the pass's.

    Args:
        watcher: told of each member's evaluations, and may stop it; the others go on.

    Raises:
        ConfigError: no members, two of one name, several encoders, or settings that differ in more than the seed and
            the learning rates; and as :func:`~speech_adapters.training.supervised.train`.
        RuntimeError, TrainingError, Interrupted: see :func:`~speech_adapters.training.loop.fit`.
    """
    names = [member.name for member in members]
    if not members or len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"train_together: members {names}: give at least one, each with a name of its own.")
    encoder, shared = members[0].model.encoder, members[0].config
    for member in members:
        if member.model.encoder is not encoder:
            raise ConfigError(f"train_together: {member.name!r} uses another Encoder object; give all the same one.")
        if _alike(member.config) != _alike(shared):
            raise ConfigError(
                f"train_together: {member.name!r} and {names[0]!r} differ in more than seed and learning rates."
            )
        check(member.model, member.dataset, member.config, member.dev)
    encoder.to(processes().device)
    for member in members:
        member.model.to(encoder.device)
    return fit_parts(_Together(members), shared, run, name, watcher)


def _alike(config: TrainingConfig) -> dict[str, Any]:
    return {key: value for key, value in vars(config).items() if key not in ("seed", "learning_rates")}


@dataclass
class _Stream:
    """Members that hear the same batches, and what these hold for all of them."""

    members: list[Member]
    frozen: dict[str, Frozen]
    data: UtteranceDataset
    parts: dict[str, Supervised] = field(default_factory=dict)

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What is constant in at least one of them."""
        return tuple(dict.fromkeys(tap for frozen in self.frozen.values() for tap in frozen.taps))

    def inputs(self, batch: Mapping[str, Any], encoder: Encoder) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each member's name and the model's arguments; what is constant is computed once."""
        others = {"guide": batch["guide"].to(encoder.device)} if "guide" in batch else {}
        taps: dict[Tap, Tensor] = {}
        frames: Tensor | None = None
        if "taps" in batch:
            taps, frames = batch_taps(batch, encoder)
        elif self.taps:
            taps, frames = compute_taps(encoder, self.taps, batch["waveforms"], batch["lengths"])
            unpadded = bool((batch["lengths"] == batch["waveforms"].shape[1]).all())
            frames = None if unpadded else frames
        for name, frozen in self.frozen.items():
            if frozen.kind == "waveform":
                heard = {key: batch[key].to(encoder.device) for key in ("waveforms", "lengths")}
                yield name, {**heard, **others}
            else:
                yield name, {**frozen.inputs(taps, frames), **others}


class _Together(Learner):
    """The members' :class:`Supervised`, one after the other on shared batches."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.encoder = members[0].model.encoder
        self.device, self.process = self.encoder.device, processes().process_index
        self.streams = _streams(members, "dataset")
        self.dev_streams = _streams(members, "dev") if members[0].config.evaluate_every else []
        self._parts: dict[str, Supervised] = {}
        for stream in self.streams:
            for member in stream.members:
                self._parts[member.name] = Supervised(member.model, stream.data, member.config, member.dev)
        self._parts = {member.name: self._parts[member.name] for member in members}
        for part in self._parts.values():  # of what stands in the shared base, another's train_adapter has frozen it
            for parameters, _ in part.groups().values():
                for parameter in parameters:
                    parameter.requires_grad_(True)
        self.modes_collide = len(members) > 1 and bool(getattr(self.encoder.model, "peft_config", None))
        self._random: dict[str, tuple[Tensor, Tensor | None]] = {}

    @property
    def parts(self) -> Mapping[str, Learner]:
        return self._parts

    def batches(self, at: Position) -> Iterator[list[Any]]:
        """One batch of each stream, without end: each goes through its own epochs."""
        streams = [self._parts[stream.members[0].name].endless(at, at.place) for stream in self.streams]
        while True:
            yield [next(stream) for stream in streams]

    def losses(self, batch: list[Any], update: int, running: Collection[str]) -> Iterator[tuple[str, Loss]]:
        for stream, own in zip(self.streams, batch, strict=True):
            if not any(member.name in running for member in stream.members):
                continue
            for name, inputs in stream.inputs(own, self.encoder):
                if name not in running:
                    continue
                part = self._parts[name]
                if self.modes_collide:  # LoRA's dropout stands in the base, where another's train() turns it off
                    part.train()
                self._take_up_random_numbers(name, part.config.seed, update)
                loss = part.score(inputs, own)
                self._random[name] = _random_state(self.device)
                yield name, loss

    def _take_up_random_numbers(self, name: str, seed: int, update: int) -> None:
        """Those that this member would draw alone: of its own seed, going on from batch to batch of an update."""
        if name in self._random:
            _set_random_state(self._random[name], self.device)
        else:
            seed_update(seed, update, self.process)

    def evaluations(self, running: Collection[str]) -> Mapping[str, dict[str, float]]:
        totals: dict[str, Counter[str]] = {name: Counter() for name in running}
        for stream in self.dev_streams:
            wanted = [member.name for member in stream.members if member.name in running]
            if not wanted:
                continue
            for batch in evaluation_loader(stream.data, stream.members[0].config.batch_seconds):
                for name, inputs in stream.inputs(batch, self.encoder):
                    if name in totals:
                        totals[name].update(self._parts[name].held_out(inputs, batch))
        return {name: held_out_figures(sums) for name, sums in totals.items()}

    def before_update(self, update: int) -> None:
        self._random.clear()
        for part in self._parts.values():
            part.before_update(update)

    def train(self, mode: bool = True) -> None:
        for part in self._parts.values():
            part.train(mode)

    # What follows is asked of the parts, each by itself.

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {
            f"{name}.{group}": found for name, part in self._parts.items() for group, found in part.groups().items()
        }

    def loss(self, batch: Any, update: int) -> Loss:
        raise NotImplementedError("each part has a loss of its own")

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}/{key}": value for name, part in self._parts.items() for key, value in part.tensors().items()}

    def check_alive(self) -> None:
        for part in self._parts.values():
            part.check_alive()


def _streams(members: Sequence[Member], kind: str) -> list[_Stream]:
    """Members by the batches that they hear: those of one dataset, in training of one seed too."""
    groups: dict[tuple[int, int], list[Member]] = {}
    for member in members:
        seed = member.config.seed if kind == "dataset" else 0
        groups.setdefault((id(getattr(member, kind)), seed), []).append(member)
    return [_stream(group, getattr(group[0], kind), kind == "dataset") for group in groups.values()]


def _stream(members: list[Member], dataset: SpeechDataset, training: bool) -> _Stream:
    config, model = members[0].config, members[0].model

    def found(pooled: bool) -> dict[str, Frozen]:
        return {
            one.name: constant(one.model, config, pooled) if training else frozen_part(one.model, pooled=pooled)
            for one in members
        }

    frozen = found(pooled=True)
    if {one.kind for one in frozen.values()} != {"mean"}:  # the others need frames
        frozen = found(pooled=False)
    # A copy, since each stream is in an epoch of its own; decoded audio is shared.
    stream = _Stream(members, frozen, copy.copy(dataset))
    if config.cache is not None:
        if any(one.kind == "waveform" for one in frozen.values()):
            raise ConfigError("training.cache: an adapter of these acts inside the CNN; set training.cache to null.")
        first = next(iter(frozen.values()))
        options: dict[str, Any] = {"frozen": first, "taps": stream.taps}
        stream.data = CachedDataset(dataset, model, config.cache, config.batch_seconds, **options)
    return stream


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
