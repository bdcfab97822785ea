"""Where somebody speaks: one decision per chunk of 32 ms, made while a recording streams by.

    energy    level of a chunk against the quiet and the loud of the last 15 s. Needs nothing; knows no voices:
              music and slamming doors are speech to it. What is not clearly a pause counts as speech.
    silero    Silero VAD 6.2, a small recurrent network trained on 6,000 languages and noise
              (https://github.com/snakers4/silero-vad): ``pip install speech-adapters[vad]``
    none      everything is speech

The choice is the user's, and none stands in for another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from speech_adapters.errors import ConfigError

CHUNK = 512
"""Samples of one decision at 16 kHz: 32 ms, what Silero VAD reads at a time."""


class VoiceActivity(ABC):
    """A detector for one recording; it remembers what it has heard."""

    @abstractmethod
    def __call__(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next (N, 512) samples -> (N,) whether each chunk holds speech, and (N,) how much: the least is where a
        cut does least harm."""


class Energy(VoiceActivity):
    """Speech lies above ``floor + min(0.3 (loud - floor), 12)`` dB.

    ``floor`` is the 5th percentile of the levels of the last 15 s, not below -70 dB of full scale, and ``loud`` their
    highest: a single word in much silence is speech, and so is a quiet voice beside a loud one. Where the two
    lie less than 12 dB apart there is no telling pauses: all of it is speech then, unless even the loud lies at -60 dB
    or below.
    """

    HISTORY = 15 * 16_000 // CHUNK
    LOWEST, SILENT, LEAST_RANGE, SHARE, MOST = -70.0, -60.0, 12.0, 0.3, 12.0

    def __init__(self) -> None:
        self._levels = np.empty(0)

    def __call__(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        power = chunks.var(axis=1, dtype=np.float64)  # a constant offset, as of sound cards, is no sound
        levels = np.maximum(10 * np.log10(power + 1e-12), self.LOWEST)
        if not len(levels):
            return np.empty(0, dtype=bool), levels
        self._levels = np.concatenate([self._levels, levels])[-max(self.HISTORY, len(levels)) :]
        floor, loud = np.percentile(self._levels, 5), self._levels.max()
        if loud - floor < self.LEAST_RANGE:
            return np.full(len(levels), loud > self.SILENT), levels
        return levels > floor + min(self.SHARE * (loud - floor), self.MOST), levels


class Silero(VoiceActivity):
    """Silero VAD; speech begins at a probability of 0.5 and ends below 0.35, its own defaults.

    Raises:
        ConfigError: the package is not installed.
    """

    BEGIN, END = 0.5, 0.35

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        try:
            from silero_vad import load_silero_vad
        except ImportError as error:
            raise ConfigError(
                "voice_activity='silero' needs the package silero-vad: pip install speech-adapters[vad]; or choose "
                "'energy'."
            ) from error
        torch.set_num_threads(threads)  # importing the package sets one for the whole process
        self._model = load_silero_vad()
        self._speech = False

    @torch.inference_mode()
    def __call__(self, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities = np.array([float(self._model(torch.from_numpy(chunk), 16_000)) for chunk in chunks])
        speech = np.empty(len(chunks), dtype=bool)
        for number, probability in enumerate(probabilities):
            self._speech = probability >= (self.END if self._speech else self.BEGIN)
            speech[number] = self._speech
        return speech, probabilities


DETECTORS: dict[str, type[VoiceActivity]] = {"energy": Energy, "silero": Silero}
"""Detectors by name; "none" has none."""
