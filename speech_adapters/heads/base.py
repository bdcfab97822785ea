"""What every head shares: a config that describes it, builds it and is saved with it, and the module it builds.

A new head is one file: a config (a dataclass with a ``head_type``), a :class:`HeadModule`, and its line in
``heads/__init__.py``.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from speech_adapters import schema
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.ranges import check_values

HEADS: dict[str, type[HeadConfig]] = {}
"""Head configs by ``head_type``; a subclass that sets its own ``head_type`` registers itself."""


@dataclass(kw_only=True)
class HeadConfig(schema.Configuration, ABC):
    """What a head is, apart from its weights and the width of its input."""

    head_type: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "head_type" in cls.__dict__:
            HEADS[cls.head_type] = cls

    def __post_init__(self) -> None:
        check_values(self)

    @abstractmethod
    def build(self, input_size: int) -> HeadModule:
        """A freshly initialised head for features of width ``input_size``."""

    @abstractmethod
    def target(self, utterance: Utterance) -> list[int]:
        """What the head learns from an utterance, as ids that its loss takes; raises an InputError that names it."""

    def check(self, manifest: Manifest, encoder: Encoder, *, any_length: bool = False) -> None:
        """Find what training and scoring on a manifest would fail of hours later; heads add checks of their own.

        Args:
            any_length: recordings will be heard through windows, so that none is too long for the encoder.

        Raises:
            AudioError: utterances shorter than the encoder's receptive field.
            InputError: an utterance without a target, such as an unknown symbol or label.
        """
        check_audible(manifest, encoder, any_length)
        for utterance in manifest:
            self.target(utterance)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON holds, ``head_type`` among them; :func:`head_from_dict` reads them back."""
        return {"head_type": self.head_type, **schema.to_dict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HeadConfig:
        """The config of :meth:`to_dict`. Raises ConfigError for a setting that it cannot have."""
        given = {key: value for key, value in values.items() if key != "head_type"}
        return schema.from_dict(cls, given, f"head {cls.head_type!r}")


def head_from_dict(values: Mapping[str, Any]) -> HeadConfig:
    """The head config that ``to_dict`` described, of whichever type ``head_type`` names."""
    name = values.get("head_type")
    if not isinstance(name, str) or name not in HEADS:
        close = difflib.get_close_matches(str(name), list(HEADS), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"head_type {name!r} is unknown{hint}; choose {', '.join(HEADS)}")
    return HEADS[name].from_dict(values)


@dataclass
class HeadOutput:
    """A head's answer. Frame-wise heads: ``logits`` (B, T, V) and ``lengths`` (B,) valid frames; utterance-wise heads:
    ``logits`` (B, C), and an ``embedding`` (B, E) where they make one. ``second``: logits of a second pass, of a head
    that compares two while it is trained."""

    logits: Tensor
    lengths: Tensor | None = None
    embedding: Tensor | None = None
    second: Tensor | None = None


class HeadModule(nn.Module, ABC):
    """The trainable part: features (B, T, ``input_size``) with ``lengths`` (B,) valid frames to a HeadOutput."""

    reads_means: bool = False
    """Whether all that it takes from an utterance is the mean of its features, in training too."""
    blank: int | None = None
    """The output that no target may be, of heads that have one (CTC)."""
    label_sizes: Sequence[int] | None = None
    """Of a head of several labels per utterance, the number of classes of each."""
    ignores: bool = True
    """Whether its loss passes over targets of -100."""
    sums_losses: bool = False
    """Whether :meth:`loss` is the sum over a batch, rather than its mean."""

    def __init__(self, config: HeadConfig, input_size: int) -> None:
        super().__init__()
        self.config = config
        self.input_size = input_size

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> HeadOutput: ...

    @abstractmethod
    def loss(self, output: HeadOutput, targets: Tensor) -> Tensor:
        """A scalar to minimise; each head documents the shape of its ``targets``."""

    def mistakes(self, output: HeadOutput, targets: Tensor) -> tuple[int, int] | None:
        """Of a batch, how much is wrong and out of how much: words, or utterances. None of a head that held-out data
        cannot check, as their speakers are others than it was trained on."""
        return None

    @abstractmethod
    def predict(self, output: HeadOutput) -> list[Any]:
        """One prediction per utterance, on the CPU: a text, probabilities, labels, an embedding; see each head."""


def check_audible(manifest: Manifest, encoder: Encoder, any_length: bool = False, speed: float = 1.0) -> None:
    """AudioError that names utterances which are too short for the encoder to make a frame of, or too long for it
    (with ``any_length``, none is: it will be heard through windows or cropped), played at ``speed``."""
    samples = (manifest.durations * SAMPLE_RATE / speed).round()

    def such_as(found: Any) -> str:
        return ", ".join(manifest[int(index)].id for index in found.nonzero()[0][:3])

    played = "" if speed == 1 else f" when training.augmentation plays them at speed {speed:g}"
    remedy = "" if speed == 1 else " or take this speed from training.augmentation.speeds"
    least = encoder.receptive_field
    if (short := samples < least).any():
        raise AudioError(
            f"{manifest.name}: {short.sum()} utterance(s) are shorter than the encoder's receptive field of "
            f"{least / 16:.0f} ms{played}, such as {such_as(short)}; remove them from the manifest{remedy}."
        )
    most = None if any_length else encoder.max_samples
    if most is not None and (long := samples > most).any():
        remedy = remedy or (
            ", or, where they are only scored, hear them through windows (windows.seconds=20; of tapt "
            "downstream.windows.seconds, of active learning task.windows.seconds)"
        )
        raise AudioError(
            f"{manifest.name}: {long.sum()} utterance(s) are longer than the {most / SAMPLE_RATE:.1f} s that "
            f"{encoder.name} has positions for{played}, such as {such_as(long)}; cut them into pieces{remedy}."
        )
