"""``model.transcribe``, ``model.classify``, ``model.embed`` and ``model.verify``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.windows import Windows
from speech_adapters.heads.decoding import BeamSearch
from speech_adapters.inference.hearing import Model
from speech_adapters.inference.recordings import Audio, recordings_of
from speech_adapters.inference.transcripts import Transcript, transcribe
from speech_adapters.inference.utterances import Classification, Verification, calibration_of, classify, embed, verify
from speech_adapters.metrics.calibration import Calibration

R = TypeVar("R")


class Inference:
    """What a :class:`~speech_adapters.SpeechAdapterModel` says of recordings of any length, with the active adapters
    and head.

    All methods take a path, samples ``(samples,)`` as floating point (numpy or torch), or a list of these, and give
    one result or a list. Files of other rates are converted; ``sample_rate`` is that of arrays. Recordings are cut
    into ``windows`` that are heard in shared batches (:class:`~speech_adapters.data.windows.Windows`: 20 s at most,
    cut in pauses by their energy, unless told otherwise), so that memory does not grow with their length. ``options``
    are ``batch_seconds`` (60 by default) and ``precision`` ("fp32", or "bf16" for autocast).

    Raises, all of them:
        AudioError: audio that is missing, damaged, of several channels with none named, NaN, integers, or under 25 ms.
        ConfigError: an active head of another kind, named with what to do.
    """

    @overload
    def transcribe(self, audio: Audio, **options: Any) -> Transcript: ...
    @overload
    def transcribe(self, audio: list[Any] | tuple[Any, ...], **options: Any) -> list[Transcript]: ...
    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        *,
        windows: Windows | None = None,
        channel: int | str | None = None,
        speakers: Sequence[str] | None = None,
        sample_rate: int = SAMPLE_RATE,
        beam: BeamSearch | None = None,
        **options: Any,
    ) -> Transcript | list[Transcript]:
        """What is said: text, words and segments with times in seconds and confidences.

        Args:
            channel: of files with several: a number, or "mix" for their mean.
            speakers: names of the channels, such as ("agent", "customer"): each is heard, and segments say whose they
                are.
            beam: a beam search, with a language model where it has one; the best path without it.
        """
        recordings = recordings_of(audio, channel=channel, speakers=speakers, sample_rate=sample_rate)
        return _like(audio, list(transcribe(_model(self), recordings, windows, beam=beam, **options)))

    @overload
    def classify(self, audio: Audio, **options: Any) -> Classification: ...
    @overload
    def classify(self, audio: list[Any] | tuple[Any, ...], **options: Any) -> list[Classification]: ...
    def classify(
        self,
        audio: Audio | Sequence[Audio],
        *,
        windows: Windows | None = None,
        channel: int | str | None = None,
        sample_rate: int = SAMPLE_RATE,
        **options: Any,
    ) -> Classification | list[Classification]:
        """The class, with the probability of each: by the mean over windows of the head's logits, weighted by frames.

        ``channel`` as for :meth:`transcribe`. A recording without speech is an AudioError.
        """
        recordings = [file[0] for file in recordings_of(audio, channel=channel, sample_rate=sample_rate)]
        return _like(audio, list(classify(_model(self), recordings, windows, **options)))

    @overload
    def embed(self, audio: Audio, **options: Any) -> Tensor: ...
    @overload
    def embed(self, audio: list[Any] | tuple[Any, ...], **options: Any) -> list[Tensor]: ...
    def embed(
        self,
        audio: Audio | Sequence[Audio],
        *,
        windows: Windows | None = None,
        channel: int | str | None = None,
        sample_rate: int = SAMPLE_RATE,
        **options: Any,
    ) -> Tensor | list[Tensor]:
        """(E,) the speaker head's embedding, or without an active head the mean (F,) of the features over frames: the
        mean over windows, weighted by frames, in float32 on the CPU.

        ``channel`` as for :meth:`transcribe`. A recording without speech is an AudioError.
        """
        recordings = [file[0] for file in recordings_of(audio, channel=channel, sample_rate=sample_rate)]
        return _like(audio, list(embed(_model(self), recordings, windows, **options)))

    def verify(
        self,
        enrolment: Audio | Sequence[Audio],
        test: Audio,
        *,
        calibration: Calibration | None = None,
        windows: Windows | None = None,
        channel: int | str | None = None,
        sample_rate: int = SAMPLE_RATE,
        **options: Any,
    ) -> Verification:
        """Whether ``test`` is of the speaker of ``enrolment``, one recording or a list: the cosine of their
        embeddings, and a log-likelihood ratio where there is a calibration.

        Args:
            calibration: in place of the one that the head was saved with (``head.config.calibration``), if any.
            channel: as for :meth:`transcribe`.
        """
        models = list(enrolment) if isinstance(enrolment, list | tuple) else [enrolment]
        options |= {"windows": windows, "channel": channel, "sample_rate": sample_rate}
        *enrolled, tested = self.embed([*models, test], **options)
        return verify(torch.stack(enrolled), tested, calibration or calibration_of(_model(self)))


def _model(self: Any) -> Model:
    return self


def _like(audio: Any, results: list[R]) -> R | list[R]:
    """A list for a list, one for one."""
    return results if isinstance(audio, list | tuple) else results[0]
