"""Recordings through a model: their windows in shared batches, and what is kept of each put together again.

:func:`hear_windows` runs one batch of windows, of however many recordings or requests, each with the adapter and head
that is asked for it; :func:`hear` is the loop over whole recordings: it reads ahead a few batches of windows, sorts
them by length, and hands each recording's outputs to its collector in order. What a recording needs at once does not
grow with its length, but for what its collector keeps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speech_adapters.composition.blocks import Composition, Parallel
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.batches import LengthBatches
from speech_adapters.data.windows import Window, Windows, cut
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.heads.base import HeadModule
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.inference.modes import Modes, evaluating
from speech_adapters.inference.outputs import check_finite
from speech_adapters.inference.recordings import Recording
from speech_adapters.model_output import ModelOutput
from speech_adapters.precision import autocast

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

BATCH_SECONDS = 30.0
"""Audio of one forward, padding included: what two cores are busy with. A GPU takes ten times as much."""

_STEP = SAMPLE_RATE // 2
"""Samples to a multiple of which batches are padded."""

_AHEAD = 8
"""Batches of windows that are read before they are sorted by length: padding is wasted work."""


class Framed(Protocol):
    """What tells on which frames a head reads a recording; see :class:`~speech_adapters.SpeechAdapterModel`."""

    @property
    def feature_stride(self) -> int:
        """Samples from one frame to the next."""
        ...

    def feature_lengths(self, samples: int) -> int:
        """How many frames this many samples give."""
        ...


@dataclass(frozen=True)
class Frames:
    """The frames of an encoder's layers, or else of what stands behind them: an output adapter's are fewer."""

    encoder: Encoder
    of_layers: bool

    @property
    def feature_stride(self) -> int:
        """Samples from one frame to the next."""
        return self.encoder.stride if self.of_layers else self.encoder.output_stride

    def feature_lengths(self, samples: int) -> int:
        """How many frames this many samples give."""
        return self.encoder.frame_lengths(samples) if self.of_layers else self.encoder.output_lengths(samples)


class Model(Framed, Modes, Protocol):
    """What is asked of a :class:`~speech_adapters.SpeechAdapterModel`."""

    active: str | Composition | None

    @property
    def encoder(self) -> Encoder:
        """The frozen base."""
        ...

    @property
    def head(self) -> HeadModule | None:
        """The active head."""
        ...

    @property
    def active_head(self) -> str | None:
        """Its name."""
        ...

    def frames(self, choice: Any) -> Frames:
        """Those that a head reads under the adapters of this choice."""
        ...

    def lowest_layer(self, choices: Sequence[Any] | None = None) -> int:
        """The lowest layer that the adapters of these choices, or the active ones, change."""
        ...

    def __call__(self, *inputs: Tensor, **choices: Any) -> Any: ...


def active_head(model: Model) -> str:
    """Name and type of the active head, for errors."""
    return "no head" if model.head is None else f"head {model.active_head!r} ({model.head.config.head_type})"


@dataclass(frozen=True)
class Heard:
    """What a model gave of one window, in float32 on the CPU.

    Attributes:
        logits: of a frame-wise head, (T, V) of the kept frames; of an utterance-wise head, (C,) of the whole window;
            None without a head.
        embedding: (E,) of a speaker head.
        features: (F,) the mean, over the kept frames, of what a head reads.
        frames: the number of kept frames.
    """

    logits: Tensor | None
    embedding: Tensor | None
    features: Tensor
    frames: int


@torch.no_grad()
def hear_windows(
    model: Model, windows: Sequence[Window], names: Sequence[str], *, precision: str = "fp32", **choices: Any
) -> list[Heard]:
    """One forward over a batch of windows, of one recording or of many. Each is heard as it would be alone.

    Args:
        names: of the windows' recordings, for errors.
        precision: "fp32", or "bf16" for autocast.
        choices: ``adapter`` and ``head``, one per window, in place of the active ones: see
            :meth:`~speech_adapters.SpeechAdapterModel.forward`.

    Raises:
        AudioError: a window that is shorter than the encoder's receptive field; names the recording.
        CheckpointError: an output that is not finite; names the recording.
    """
    device, adapters = model.encoder.device, choices.get("adapter")
    for name, window in zip(names, windows, strict=True):
        if (fault := _too_short(model.encoder, window, name)) is not None:
            raise fault
    # adapters whose frames are of other strides cannot share a batch
    stride = model.feature_stride if adapters is None else model.frames(adapters[0]).feature_stride
    if len(windows) > 1 and model.encoder.group_norm and model.lowest_layer(adapters) < -1:
        # an adapter inside a CNN that normalises over time: each window by itself
        return [
            one
            for place, window in enumerate(windows)
            for one in hear_windows(
                model, [window], [names[place]], precision=precision, **{key: [c[place]] for key, c in choices.items()}
            )
        ]
    with autocast(device, precision):
        output = _forward(model, [window.waveform.to(device) for window in windows], choices)
    check_finite(output, names)
    heard = []
    for place, (window, frames) in enumerate(zip(windows, output.frame_lengths.tolist(), strict=True)):
        kept = window.kept_frames(frames, stride)
        logits = None if output.logits is None else output.logits[place]
        if logits is not None:
            logits = (logits[kept] if logits.ndim > 1 else logits).float().cpu()
        embedding = None if output.embedding is None else output.embedding[place]
        embedding = None if embedding is None else embedding.float().cpu()
        features = output.features[place][kept].float().sum(0) / max(kept.stop - kept.start, 1)
        heard.append(Heard(logits, embedding, features.cpu(), kept.stop - kept.start))
    return heard


def _too_short(encoder: Encoder, window: Window, name: str) -> AudioError | None:
    """What is wrong with a window that gives no frame."""
    length, least = len(window.waveform), encoder.receptive_field
    if length >= least:
        return None
    return AudioError(
        f"{name}: {1e3 * length / SAMPLE_RATE:.1f} ms are shorter than the encoder's receptive field of "
        f"{1e3 * least / SAMPLE_RATE:.1f} ms; leave it out."
    )


def _forward(model: Model, waveforms: Sequence[Tensor], choices: Mapping[str, Any]) -> ModelOutput:
    """The output of a batch of (samples,) of any lengths, each as it would be alone.

    A CNN that normalises over time (Base models) would hear the padding too: it hears each by itself, and the layers
    above, which mask what is padded, all of them.
    """
    encoder = model.encoder
    lengths = torch.tensor([len(waveform) for waveform in waveforms], device=encoder.device)
    if encoder.group_norm and len(lengths.unique()) > 1:
        heard = [encoder(waveform[None], stop_layer=0).cnn_output[0] for waveform in waveforms]
        frames = torch.tensor([len(one) for one in heard], device=lengths.device)
        return model(cnn_output=pad_sequence(heard, batch_first=True), frames=frames, **choices)
    return model(_padded(encoder, waveforms), lengths=lengths, **choices)


def _padded(encoder: Encoder, waveforms: Sequence[Tensor]) -> Tensor:
    """(B, samples) with zeros behind each, to a whole half second where padding changes nothing.

    Kernels on the CPU keep what they prepared for each shape: for a thousand lengths, hundreds of megabytes.
    """
    width = max(map(len, waveforms))
    if not encoder.group_norm:
        rounded = -(-width // _STEP) * _STEP
        width = rounded if encoder.max_samples is None else min(rounded, encoder.max_samples)
    padded = waveforms[0].new_zeros(len(waveforms), width)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return padded


class Collector(ABC, Generic[R_co]):
    """Puts one recording together from its windows, which come in order."""

    @abstractmethod
    def add(self, window: Window, heard: Heard) -> None:
        """Take in the next window."""

    @abstractmethod
    def result(self, duration: float) -> R_co:
        """What the recording of ``duration`` seconds comes to."""


def hear(
    model: Model,
    recordings: Iterable[Recording],
    collector: Callable[[Recording], Collector[R]],
    windows: Windows | None = None,
    **options: Any,
) -> Iterator[R]:
    """:func:`hear_each`, where all are to be heard.

    Raises:
        AudioError: a recording that cannot be heard. CheckpointError, ConfigError: as there.
    """
    for found in hear_each(model, recordings, collector, windows, **options):
        if isinstance(found, AudioError):
            raise found
        yield found


def hear_each(
    model: Model,
    recordings: Iterable[Recording],
    collector: Callable[[Recording], Collector[R]],
    windows: Windows | None = None,
    *,
    batch_seconds: float = BATCH_SECONDS,
    precision: str = "fp32",
    progress: Callable[[float], Any] | None = None,
    train_mode: bool = False,
) -> Iterator[R | AudioError]:
    """The result of each recording, or why it cannot be heard, in order, as soon as it is there; all windows share
    batches.

    Args:
        collector: a fresh one for a recording.
        windows: how recordings are cut.
        progress: called with the seconds of audio that have been heard since the last call.
        train_mode: leave the modes of the model's modules as they are (for dropout); else all are in eval mode.

    Raises:
        CheckpointError: an output that is not finite.
        ConfigError: windows longer than the encoder hears, a composition with several outputs, batches of no length.
    """
    if isinstance(model.active, Parallel):
        raise ConfigError(
            f"{model.active!r} has several outputs; hear with one of its branches at a time (set_active)."
        )
    if not batch_seconds > 0:
        raise ConfigError(f"batch_seconds={batch_seconds}: give the seconds of audio to hear at once, above 0.")
    windows, encoder = windows or Windows(), model.encoder
    windows.check(encoder.max_samples, encoder.name)
    waiting: list[tuple[_Open[R], Window]] = []
    waiting_seconds = 0.0
    ended: deque[_Open[R]] = deque()

    def run() -> Iterator[R | AudioError]:
        """Hear what waits; all recordings that have ended are complete then."""
        lengths = [window.seconds for _, window in waiting]
        outputs: dict[int, Heard] = {}
        with nullcontext() if train_mode else evaluating(model):
            for batch in LengthBatches(lengths, batch_seconds, shuffle=False) if lengths else ():
                chosen = [waiting[place] for place in batch]
                names = [recording.name for recording, _ in chosen]
                heard = hear_windows(model, [window for _, window in chosen], names, precision=precision)
                outputs.update(zip(batch, heard, strict=True))
                if progress is not None:
                    progress(sum((window.last - window.first) / SAMPLE_RATE for _, window in chosen))
        for place, (recording, window) in enumerate(waiting):
            recording.collector.add(window, outputs[place])
        waiting.clear()
        while ended:
            yield ended.popleft().result()

    for source in recordings:
        recording = _Open(source.name, collector(source))
        pieces = cut(
            recording.blocks(source), windows, stride=model.feature_stride, receptive_field=encoder.receptive_field
        )
        for window in pieces:
            recording.fault = recording.fault or _too_short(encoder, window, source.name)
            if recording.fault is not None:
                continue
            waiting.append((recording, window))
            waiting_seconds += window.seconds
            if waiting_seconds >= _AHEAD * batch_seconds:
                yield from run()
                waiting_seconds = 0.0
        ended.append(recording)
    yield from run()


class _Open(Generic[R]):
    """A recording that is being heard."""

    def __init__(self, name: str, collector: Collector[R]) -> None:
        self.name, self.collector, self.samples = name, collector, 0
        self.fault: AudioError | None = None

    def blocks(self, source: Recording) -> Iterator[Tensor]:
        """Its samples, up to where they cannot be read."""
        try:
            for block in source.blocks():
                self.samples += len(block)
                yield block
        except AudioError as error:
            self.fault = error

    def result(self) -> R | AudioError:
        """What it comes to, or why it comes to nothing."""
        try:
            return self.fault or self.collector.result(self.samples / SAMPLE_RATE)
        except AudioError as error:
            return error


OTHER_DETECTOR = " choose another (voice_activity='none', on the command line --voice-activity none, hears all), or"
"""The remedy of who finds no speech; a server's client, who has no such choice, is not told of it."""


class Stitched(Collector[ModelOutput]):
    """A whole recording's output, a batch of one, as if one forward had heard it.

    ``logits`` of a CTC head are (1, T, V) on the frames of the whole recording. A pause, which no window has heard, is
    sure silence: the blank, and one delimiter between words in its first frame.

    All else is the mean over windows, weighted by their frames: ``logits`` of an utterance-wise head, ``embedding``,
    and ``features``, which stand in one frame (1, 1, F). For heads of mean pooling and linear layers alone that is
    what they would say of the whole recording; for others (standard deviations, attention, several layers) it is the
    average of what they say of its parts. Context at a cut inside speech is heard twice.
    """

    def __init__(self, model: Framed, head: HeadModule | None, recording: Recording, windows: Windows) -> None:
        self.silence = silence_of(head) if isinstance(head, CTCHeadModule) else None
        self.model, self.name, self.windows = model, recording.name, windows
        self.parts: list[Tensor] = []
        self.frames = 0  # of the parts
        self.weight = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, window: Window, heard: Heard) -> None:
        values = {"features": heard.features, "embedding": heard.embedding}
        if self.silence is None:
            values["logits"] = heard.logits
        elif heard.logits is not None:
            self._pause(window.first_frame(self.model.feature_stride))
            self.parts.append(heard.logits)
            self.frames += len(heard.logits)
        for name, value in values.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, torch.zeros(())) + heard.frames * value
        self.weight += heard.frames

    def result(self, duration: float) -> ModelOutput:
        """Raises AudioError where no window was heard and the head needs one."""
        if self.weight == 0 and self.silence is None:
            raise AudioError(
                f"{self.name}: no speech found in {duration:.1f} s by voice activity "
                f"{self.windows.voice_activity!r};{OTHER_DETECTOR} leave the recording out."
            )
        means = {name: value[None] / self.weight for name, value in self.sums.items()}
        frames = 1
        if self.silence is not None:
            frames = max(self.model.feature_lengths(round(duration * SAMPLE_RATE)), self.frames)
            self._pause(frames)
            means["logits"] = torch.cat(self.parts)[None]
        features = means.get("features", torch.zeros(1, 0))[:, None]
        return ModelOutput(
            features, (), features, torch.tensor([frames]), None, means.get("logits"), embedding=means.get("embedding")
        )

    def _pause(self, until: int) -> None:
        if self.silence is not None and until > self.frames:
            self.parts += [self.silence[:1], self.silence[1:].expand(until - self.frames - 1, -1)]
            self.frames = until


def silence_of(head: CTCHeadModule) -> Tensor:
    """(2, V) logits of the first frame of a pause, which parts words where they are told apart, and of the others."""
    vocabulary = head.config.vocabulary
    silence = torch.full((2, len(vocabulary)), -1e4)
    parting = vocabulary.blank_id if vocabulary.delimiter_id is None else vocabulary.delimiter_id
    silence[0, parting] = silence[1, vocabulary.blank_id] = 0.0
    return silence
