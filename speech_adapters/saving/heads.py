"""Heads in folders: ``head.json`` with the features that the head was trained on, and ``head_model.safetensors``.

A head alone says nothing: it reads features, those of one base under one composition of adapters. What
:meth:`SavedHead.check` makes of the features that it meets when it is loaded:

- another base: refused;
- adapters of other methods (LoRA's head under a bottleneck adapter): refused;
- no adapter where it was trained with one, or the other way round: a warning, since the adapter may come next or a
  fresh one may start from the base's features;
- adapters of the same methods with other weights (a head that adapters of one start share, averages): a warning,
  unless all that it was trained with are among the active ones;
- a file from before features were kept: a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech_adapters.adapters.base import AdapterConfig, AdapterModule
from speech_adapters.composition.blocks import Composition, Parallel, names_of
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.tensors import fingerprint
from speech_adapters.errors import CheckpointError, InputError, first_line
from speech_adapters.heads.base import HeadConfig, HeadModule, head_from_dict
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.saving.base import Base, read_description
from speech_adapters.saving.parts import check_fit, load_part, save_part
from speech_adapters.saving.peft_import import is_peft_folder, lm_head
from speech_adapters.saving.places import folder_of
from speech_adapters.text import Vocabulary


@dataclass(frozen=True, kw_only=True)
class AdapterIdentity:
    """The method of an adapter, such as "lora" or "e+l+p", and the SHA-256 of its tensors."""

    method: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a head reads: a base under a composition (None: the base alone) of adapters."""

    base: Base
    composition: str | dict[str, Any] | None
    adapters: dict[str, AdapterIdentity]

    @property
    def methods(self) -> set[str]:
        """Those of its adapters."""
        return {adapter.method for adapter in self.adapters.values()}

    def __str__(self) -> str:
        named = [f"{name!r} ({adapter.method})" for name, adapter in self.adapters.items()]
        return f"adapter{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else "the base without an adapter"


def features_of(
    encoder: Encoder, active: str | Composition | None, adapters: Mapping[str, AdapterModule]
) -> Features | None:
    """The features under the active composition; None under Parallel, where each branch has its own."""
    if isinstance(active, Parallel):
        return None
    tensors = {name: adapters[name].tensors() for name in (() if active is None else names_of(active))}
    return Features(
        base=Base.of(encoder),
        composition=active.to_dict() if isinstance(active, Composition) else active,
        adapters={
            name: AdapterIdentity(method=method_of(adapters[name].config), fingerprint=fingerprint(own))
            for name, own in tensors.items()
            if own  # one without tensors (the head-only baseline) leaves the base's features as they are
        },
    )


def method_of(config: AdapterConfig) -> str:
    """The method of an adapter, such as "lora" or "e+l+p"."""
    parts = getattr(config, "parts", ())
    return "+".join(method_of(part) for part in parts) or config.method


@dataclass(frozen=True, kw_only=True)
class SavedHead:
    """A head as it lies in its folder; its tensors fit its configuration."""

    name: str
    config: HeadConfig
    input_size: int
    tensors: dict[str, Tensor]
    features: Features | None
    folder: Path

    def build(self) -> HeadModule:
        """The head, with its tensors."""
        head = self.config.build(self.input_size)
        head.load_state_dict(self.tensors)
        return head

    def check(self, now: Features | None) -> None:
        """Hold the features that the head was trained on against those of now, by the rule of this module.

        Raises:
            CheckpointError: another base, or adapters of other methods.
        """
        if self.features is None:
            warnings.warn(
                f"{self.folder}: this head keeps no record of the features that it was trained on; make sure that its "
                "own base and adapter are in use, and save it again.",
                stacklevel=3,
            )
        elif now is not None:
            self._check(self.features, now)

    def _check(self, trained: Features, now: Features) -> None:
        trained.base.check(now.base, f"{self.folder}: this head")
        said = f"{self.folder}: this head was trained on the features of {trained}, and those of {now} are active"
        if trained.methods and now.methods and trained.methods != now.methods:
            raise CheckpointError(
                f"{said}, which it cannot read; activate its own adapter before it is loaded, or train a new head."
            )
        there = {adapter.fingerprint for adapter in now.adapters.values()}
        missing = any(adapter.fingerprint not in there for adapter in trained.adapters.values())
        if missing or bool(trained.methods) != bool(now.methods):
            warnings.warn(f"{said}; what it says of them may mean little until it has been trained on.", stacklevel=4)


@dataclass(frozen=True, kw_only=True)
class _Description:
    name: str
    config: dict[str, Any]
    input_size: int
    features: Features | None = None


def save_head(folder: str | Path, name: str, head: HeadModule, features: Features | None) -> Path:
    """Save a head: its config (vocabulary and normaliser included), its weights, and the features it was trained on.

    Returns: the folder.

    Raises:
        CheckpointError: a tensor that is not finite.
        InputError: a folder that cannot be written.
    """
    description: dict[str, Any] = {"name": name, "config": head.config.to_dict(), "input_size": head.input_size}
    if features is not None:
        description["features"] = asdict(features)
    return save_part(folder, "head", description, head.state_dict())


def read_head(folder: str | Path) -> SavedHead:
    """Read a head, or the ``lm_head`` that ``peft`` trained beside a LoRA, whose tokenizer lies in the same folder.

    Nothing is built before its tensors fit its configuration.

    Raises:
        CheckpointError: no such head, a damaged file, tensors that the configuration does not have.
        TextError: no ``vocab.json`` beside an ``lm_head``.
    """
    folder = folder_of(folder)
    if is_peft_folder(folder):
        weight, bias = lm_head(folder)
        module = CTCHeadModule.from_linear(weight, bias, Vocabulary.load(folder), normalizer="none")
        return SavedHead(
            name="ctc",
            config=module.config,
            input_size=weight.shape[1],
            tensors=module.state_dict(),
            features=None,
            folder=Path(folder),
        )
    values, tensors = load_part(folder, "head")
    described = read_description(_Description, values, folder, "head")
    try:
        config = head_from_dict(described.config)
        with torch.device("meta"):
            blueprint = config.build(described.input_size).state_dict()
    except (InputError, RuntimeError, OverflowError, TypeError, ValueError) as error:  # sizes beyond all memory too
        raise CheckpointError(f"{folder}: its configuration cannot be used ({first_line(error)}).") from error
    check_fit(tensors, blueprint, str(folder))
    return SavedHead(
        name=described.name,
        config=config,
        input_size=described.input_size,
        tensors=tensors,
        features=described.features,
        folder=folder,
    )
