"""Speech joined end to end on the training's device, a copy at each speed: crops of any length cost one gather.

Few hours of speech are heard for many: a crop may begin anywhere, run over from one utterance into the next (in each
copy another one), and sound a little louder or softer, brighter or duller. For training that needs no labels and keeps
a GPU busy; :class:`speech_adapters.data.crops.Crops` keeps utterances apart and prepares batches in other processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.crops import Speech
from speech_adapters.errors import ConfigError

LEVEL = 0.06
"""Root mean square at which it is held, the usual one of read speech (full scale is 1)."""
PIECE = 16_000_000
"""Samples that are resampled at once: a GPU's memory need not hold a whole copy as floats."""


class JoinedSpeech:
    """All utterances of ``speech``, in int16: 115 MB per hour and speed.

    Args:
        speeds: one copy each, with its pitch (0.9 is slower and lower).
        seed: of the order of the utterances in each copy.
    """

    def __init__(
        self, speech: Speech, device: str | torch.device, speeds: Sequence[float] = (1.0,), seed: int = 0
    ) -> None:
        from torchaudio.functional import resample

        rng, pieces = np.random.default_rng(seed), []
        for index, length in enumerate(speech.lengths):
            wave = torch.from_numpy(speech.store.piece(index, 0, int(length)).astype(np.float32))
            wave = wave - wave.mean()
            pieces.append(_int16(wave * (LEVEL * 32767 / (float(wave.square().mean().sqrt()) + 1e-3))))
        copies = []
        for factor in speeds:
            joined = torch.cat([pieces[i] for i in rng.permutation(len(pieces))]).to(device)
            if factor != 1:
                parts = (resample(part.float(), round(100 * factor), 100) for part in joined.split(PIECE))
                joined = torch.cat([_int16(part) for part in parts])
            copies.append(joined)
        self.samples = torch.cat(copies)

    def crops(
        self,
        count: int,
        samples: int,
        *,
        gain_db: float = 0.0,
        tilt: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(count, samples) of zero mean and, before the gain, unit variance.

        Args:
            gain_db: louder or softer by up to so much.
            tilt: in half of the crops, up to so much of the last sample is added or taken away.
            generator: of the draws, on the speech's device; torch's own by default.

        Raises:
            ConfigError: less speech than one crop.
        """
        device = self.samples.device
        if len(self.samples) <= samples:
            raise ConfigError(
                f"{len(self.samples) / SAMPLE_RATE:.1f} s of speech are less than a crop of "
                f"{samples / SAMPLE_RATE:.1f} s; give more speech, or take shorter crops."
            )

        def drawn(bound: float) -> Tensor:
            """(count, 1), even between ``-bound`` and ``bound``."""
            return bound * (2 * torch.rand(count, 1, device=device, generator=generator) - 1)

        start = torch.randint(len(self.samples) - samples, (count, 1), device=device, generator=generator)
        waves = self.samples[start + torch.arange(samples, device=device)].float()
        if tilt:
            tilted = torch.randint(2, (count, 1), device=device, generator=generator)
            waves = waves + tilted * drawn(tilt) * pad(waves[:, :-1], (1, 0))
        waves = waves - waves.mean(1, keepdim=True)
        waves = waves / (waves.square().mean(1, keepdim=True) + 1e-3).sqrt()
        return waves * 10 ** (drawn(gain_db) / 20)


def _int16(wave: Tensor) -> Tensor:
    return wave.clamp(-32767, 32767).round().to(torch.int16)
