"""A model that is adapted to recordings while they are transcribed, and is afterwards what it was, bit for bit.

A method (:class:`Method`) says what changes and by which loss; what all share is here: the recordings are cut into
windows as for transcribing, each is heard by itself in eval mode, and one update takes them all. Nothing of it is a
training: there is no data to go through in epochs, no schedule and nothing to go on with, a few steps on one utterance
and its weights are forgotten. So it has no run folder, and :func:`descend` in place of the loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig
from speech_adapters.composition.blocks import Composition, Parallel, Stack
from speech_adapters.composition.registry import Registry
from speech_adapters.data.windows import Windows, cut
from speech_adapters.errors import AudioError, CheckpointError, ConfigError
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.inference import hearing
from speech_adapters.inference.modes import evaluating
from speech_adapters.inference.recordings import LeftOut, Recording, leave_out
from speech_adapters.inference.transcripts import Transcript, transcribe
from speech_adapters.model_output import ModelOutput
from speech_adapters.precision import autocast
from speech_adapters.schema import Configuration

Piece = Mapping[str, Tensor]
"""The model's arguments for one window: its waveform, or what the CNN made of it."""


class Model(hearing.Model, Protocol):
    """What is asked of a :class:`~speech_adapters.SpeechAdapterModel`."""

    active: str | Composition | None
    skip_layers: int

    @property
    def registry(self) -> Registry:
        """The encoder and all that stands on it."""
        ...

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """Names of the adapters that act."""
        ...

    def add_adapter(self, name: str, config: str | AdapterConfig) -> None:
        """Add an adapter and make it the active one."""
        ...

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter."""
        ...

    def set_active(self, *members: str | Composition | None, skip_layers: int = 0) -> None:
        """Choose what acts."""
        ...


@dataclass(frozen=True)
class Place:
    """What a method changes: ``parameters``, and the adapter that they are all of, where it brought one."""

    parameters: Sequence[nn.Parameter]
    adapter: str | None = None
    in_cnn: bool = False
    """Whether some lie in the CNN, so that it is to be run each time."""


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation did.

    Attributes:
        losses: before each step, the mean over windows; empty where nothing was heard that a loss could be made of,
            silence for instance: then nothing was changed.
        parameters: how many numbers may have changed.
        adapter: the adapter that was found, to be saved (``model.save_adapter``); None for a method that changes the
            model's own parameters.
    """

    losses: tuple[float, ...]
    parameters: int
    adapter: str | None


class Method(Configuration, ABC):
    """A way to adapt to speech without text."""

    @abstractmethod
    def place(self, model: Model) -> AbstractContextManager[Place]:
        """What changes, while it may; afterwards it is what it was."""

    @abstractmethod
    def adapt(self, model: Model, head: CTCHeadModule, place: Place, speech: Sequence[Piece]) -> tuple[float, ...]:
        """Change it; returns the loss before each step."""


@contextmanager
def adapted(
    model: Model,
    recordings: Iterable[Recording],
    method: Method,
    windows: Windows | None = None,
    *,
    precision: str = "fp32",
) -> Iterator[Adaptation]:
    """The model adapted to recordings together; everything is put back at the end, after an exception too.

    Adapt to one utterance at a time to forget it before the next, as SUTA does, or to all of a speaker's.

    Args:
        windows: how recordings are cut.
        precision: of the steps: "fp32", or "bf16" for autocast.

    Raises:
        ConfigError: the active head is no CTC head, a composition with several outputs, an encoder without the place
            that the method changes, no recordings.
        AudioError: a recording that cannot be read, or is empty.
        CheckpointError: losses that are not finite.
    """
    head = model.head
    if not isinstance(head, CTCHeadModule):
        raise ConfigError(
            f"adapting without labels needs a CTC head, and {hearing.active_head(model)} is active; load one "
            "(load_head, or SpeechAdapterModel.from_adapter), or choose one with set_head."
        )
    if isinstance(model.active, Parallel):
        raise ConfigError(f"{model.active!r} has several outputs; adapt one of its branches at a time.")
    recordings = list(recordings)
    if not recordings:
        raise ConfigError("no recordings were given to adapt to; give one or more.")
    with evaluating(model), method.place(model) as place:
        # without autocast's cache of weights, which would hide the steps
        with autocast(model.encoder.device, precision, cache_enabled=False):
            speech = hear_pieces(model, recordings, windows, place.in_cnn)
            losses = method.adapt(model, head, place, speech)
        yield Adaptation(losses, sum(p.numel() for p in place.parameters), place.adapter)


def transcribe_adapted(
    model: Model,
    files: Iterable[Sequence[Recording]],
    method: Method,
    windows: Windows | None = None,
    *,
    precision: str = "fp32",
    left_out: LeftOut | None = None,
    **options: Any,
) -> Iterator[Transcript]:
    """The transcript of each file by the model adapted to it alone; arguments and errors of
    :func:`~speech_adapters.inference.transcripts.transcribe`, and of :func:`adapted`."""
    for file in files:
        if len(file) > 1:
            raise ConfigError(
                f"{file[0].name}: its {len(file)} channels are several voices; adapt to one at a time (channel=, "
                "--channel)."
            )
        try:
            with adapted(model, file, method, windows, precision=precision):
                transcript = next(transcribe(model, [file], windows, precision=precision, **options))
        except AudioError as error:
            leave_out(left_out, file[0].name, error)
            continue
        yield transcript


@torch.no_grad()
def hear_pieces(
    model: Model, recordings: Sequence[Recording], windows: Windows | None, in_cnn: bool = False
) -> list[Piece]:
    """The windows of recordings, ready for many forwards: the CNN has run, unless something in it changes."""
    windows, encoder = windows or Windows(), model.encoder
    windows.check(encoder.max_samples, encoder.name)
    whole = in_cnn or model.lowest_layer() < -1
    pieces: list[Piece] = []
    for recording in recordings:
        for window in cut(
            recording.blocks(), windows, stride=model.feature_stride, receptive_field=encoder.receptive_field
        ):
            waveform = window.waveform.to(encoder.device)[None]
            if whole:
                pieces.append({"waveforms": waveform})
            else:
                heard = encoder(waveform, stop_layer=0).cnn_output
                assert heard is not None, "the run began at a waveform"
                pieces.append({"cnn_output": heard})
    return pieces


def descend(
    loss: Callable[[ModelOutput], Tensor | None],
    model: Model,
    place: Place,
    speech: Sequence[Piece],
    steps: int,
    learning_rate: float,
) -> tuple[float, ...]:
    """``steps`` updates of AdamW without decay, each by the mean over ``speech`` of a loss; returns that mean before
    each. No gradient reaches anything else of the model.

    Args:
        loss: of one piece's output; None where there is nothing in it to learn from.

    Raises:
        CheckpointError: a loss or gradient that is not finite.
        ConfigError: the loss reaches none of the parameters; torch's inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigError("adapting: torch.inference_mode() gives no gradients; adapt outside of it.")
    parameters = list(place.parameters)
    before = [(parameter.requires_grad, parameter.grad) for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    losses: list[float] = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            found = [_add_gradients(loss, model, piece, parameters, len(speech)) for piece in speech]
            values = [value for value in found if value is not None]
            if not values:
                break
            reached = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if not reached:
                raise ConfigError("adapting: the loss reaches nothing of what this method changes under this model.")
            if not all(bool(gradient.isfinite().all()) for gradient in reached):
                raise CheckpointError(
                    "adapting: the gradients are not finite; the model's weights are broken, or need fp32."
                )
            optimizer.step()
            losses.append(sum(values) / len(speech))
    finally:
        for parameter, (requires_grad, gradient) in zip(parameters, before, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
    return tuple(losses)


@torch.enable_grad()
def _add_gradients(
    loss: Callable[[ModelOutput], Tensor | None],
    model: Model,
    piece: Piece,
    parameters: Sequence[nn.Parameter],
    pieces: int,
) -> float | None:
    """The loss of one piece, its gradients added to those of the parameters."""
    value = loss(model(**piece))
    if value is None:
        return None
    if value.requires_grad:
        gradients = torch.autograd.grad(value / pieces, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return float(value.detach())


@contextmanager
def restored(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let parameters change for a while; their values are put back at the end."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


@contextmanager
def added(model: Model, config: AdapterConfig) -> Iterator[Place]:
    """A new adapter below those that are active, for a while."""
    active, skip_layers = model.active, model.skip_layers
    name = next(f"unlabelled-{n}" for n in count() if f"unlabelled-{n}" not in model.registry.adapters)
    members = active.members if isinstance(active, Stack) else (active,)
    model.add_adapter(name, config)
    try:
        model.set_active(name, *members, skip_layers=skip_layers)
        yield Place(list(model.registry.adapter(name).parameters()), name)
    finally:
        model.set_active(active, skip_layers=skip_layers)
        model.delete_adapter(name)
