"""What a saved part remembers of the frozen encoder that it was made on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from speech_adapters import schema
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.sources import is_local
from speech_adapters.errors import CheckpointError, ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Base:
    """The identity of a frozen encoder."""

    name: str
    revision: str | None = None
    family: str | None = None
    fingerprint: str
    """SHA-256 of the weights that its features come from."""
    older_fingerprint: str | None = None
    """What files from before hold in its place, where that differs: a mask's embedding was counted too."""
    language: str | None = None
    """The one that was asked of a base that has several (MMS); None for its weights' own."""
    normalize: bool | None = None
    """Whether it hears waveforms at zero mean and unit variance; None in files from before this was kept."""
    settings: dict[str, Any] | None = None
    """What of ``config.json`` changes what it computes and no tensor tells; None in older files."""

    @classmethod
    def of(cls, encoder: Encoder) -> Base:
        """The identity of an encoder."""
        return cls(
            name=encoder.name,
            revision=encoder.revision,
            family=encoder.family,
            fingerprint=encoder.fingerprint,
            older_fingerprint=encoder.fingerprints[1] if len(encoder.fingerprints) > 1 else None,
            language=encoder.language,
            normalize=encoder.normalize,
            settings=encoder.settings,
        )

    @property
    def revision_here(self) -> str | None:
        """The revision to ask for: none of what is no repository here, though older files may name one."""
        return None if is_local(self.name) else self.revision

    def has_weights_of(self, other: Base) -> bool:
        """Whether both are the same frozen weights, whatever their names."""
        either = other.fingerprint, other.older_fingerprint
        return self.fingerprint in either or self.older_fingerprint == other.fingerprint

    def check(self, other: Base, part: str) -> None:
        """Raise a CheckpointError unless ``other`` is this base; ``part`` opens the message."""
        if not self.has_weights_of(other):
            if self.language != other.language and self.name == other.name:
                trained, loaded = (repr(one.language or "its weights' own") for one in (self, other))
                raise CheckpointError(
                    f"{part} was trained on the language {trained} of {self.name!r}, which was loaded with {loaded}; "
                    f"load it with target_lang={self.language!r}."
                )
            if self.name == other.name and self.revision != other.revision:
                raise CheckpointError(
                    f"{part} was trained on revision {self.revision!r} of {self.name!r}, whose frozen weights are not "
                    f"those of {other.revision!r}; load that one (NAME@REVISION)."
                )
            if self.name == other.name:
                raise CheckpointError(
                    f"{part} was trained on {self.name!r}, whose frozen weights have changed since; "
                    "restore them, or load it onto a copy that has them."
                )
            raise CheckpointError(
                f"{part} was trained on {self.name!r}, whose frozen weights are not those of {other.name!r} "
                f"({other.family}); load it onto its own base."
            )
        if self.normalize is not None and self.normalize != other.normalize:
            one, two = ("as they are", "normalised") if self.normalize is False else ("normalised", "as they are")
            raise CheckpointError(
                f"{part} was trained on waveforms {one}, and {other.name!r} hears them {two}; correct do_normalize in "
                "its preprocessor_config.json, or in its processor_config.json where that has it."
            )
        here = other.settings or {}
        for key, value in (self.settings or {}).items():
            if key in here and here[key] != value:
                raise CheckpointError(
                    f"{part} was trained where config.json said {key}={value!r}, and that of {other.name!r} says "
                    f"{here[key]!r}, with which the same weights compute something else; correct it there."
                )


def read_description(cls: type[T], values: Mapping[str, Any], folder: str | Path, kind: str) -> T:
    """The description in ``<kind>.json`` as a dataclass. Raises CheckpointError for a key that it cannot have."""
    try:
        return schema.from_dict(cls, values, f"{Path(folder) / f'{kind}.json'}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
