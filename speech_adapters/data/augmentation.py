"""Waveform augmentation: speed, additive noise, telephone channels, lost packets. 1-D float32 at 16 kHz, on the CPU.

The telephone codecs are the real ones (libsndfile encodes and decodes in memory), so that a model trained on simulated
calls meets their true artefacts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated

import numpy as np
import soundfile
import soxr
import torch

from speech_adapters.data.audio import SAMPLE_RATE, resample
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Decibels, Range, Share, check_values

CODECS = {"mu-law": "ULAW", "a-law": "ALAW", "gsm": "GSM610"}
"""Names of the codecs (ITU-T G.711 mu-law and A-law, 64 kbit/s; GSM 06.10 full rate, 13 kbit/s) -> libsndfile's."""

TELEPHONE_RATE = 8_000

TELEPHONE_BAND = (300.0, 3400.0)
"""Hz that a telephone line passes (ITU-T G.712)."""


def telephone(
    waveform: torch.Tensor, codec: str = "mu-law", band: tuple[float, float] = TELEPHONE_BAND
) -> torch.Tensor:
    """Pass ``(samples,)`` through a telephone channel: 8 kHz, the ``band`` in Hz, encode, decode, 16 kHz.

    The length is kept. Raises ConfigError for an unknown codec or a band that 8 kHz cannot hold.
    """
    if codec not in CODECS:
        raise ConfigError(f"codec={codec!r} is unknown; use one of {', '.join(CODECS)}")
    low, high = band
    if not 0 < low < high < TELEPHONE_RATE / 2:
        raise ConfigError(f"band={band} must be (low, high) in Hz with 0 < low < high < {TELEPHONE_RATE // 2}")
    from scipy.signal import sosfilt

    narrow = resample(waveform.cpu(), SAMPLE_RATE, TELEPHONE_RATE).numpy()
    narrow = sosfilt(_band_pass(float(low), float(high)), narrow.astype(np.float64))
    with io.BytesIO() as buffer:
        soundfile.write(buffer, narrow, TELEPHONE_RATE, format="WAV", subtype=CODECS[codec])
        buffer.seek(0)
        decoded, _ = soundfile.read(buffer, dtype="float32")
    wide = resample(torch.from_numpy(decoded), TELEPHONE_RATE, SAMPLE_RATE)
    # GSM codes whole blocks of 320 samples: cut its padding.
    return torch.nn.functional.pad(wide, (0, len(waveform) - len(wide))).to(waveform.device)


def lose_packets(
    waveform: torch.Tensor, rate: float, rng: np.random.Generator, max_burst: int = 3, packet_seconds: float = 0.02
) -> torch.Tensor:
    """Lose a share ``rate`` of the packets of ``(samples,)``, in bursts of 1 to ``max_burst`` packets, each as likely.

    Bursts stand apart by a packet at least, so that none is longer. A lost packet is concealed as telephones do it (in
    the manner of GSM 06.11): by the last one that arrived, halved for each packet lost since. The length is kept.

    Raises:
        ConfigError: a rate outside of 0 to what such bursts can make up.
    """
    mean_burst = (1 + max_burst) / 2
    highest = mean_burst / (mean_burst + 1) if max_burst >= 1 else 0.0
    if not 0 <= rate <= highest:
        raise ConfigError(f"packet loss {rate} must lie between 0 and {highest:.2f} for bursts of up to {max_burst}")
    size = round(packet_seconds * SAMPLE_RATE)
    if size < 1:
        raise ConfigError(f"packet_seconds={packet_seconds} holds no sample; telephones send 0.02")
    result = waveform.clone()
    start = rate / (mean_burst * (1 - rate))  # of a burst, after a packet that arrived: gives the rate on average
    position = size  # the first packet always arrives
    while position < len(waveform):
        burst = int(rng.integers(1, max_burst + 1)) if rng.random() < start else 0
        arrived = waveform[position - size : position]
        for lost in range(burst):
            piece = result[position + lost * size : position + (lost + 1) * size]
            piece.copy_(arrived[: len(piece)] * 0.5**lost)
        position += (burst + 1) * size
    return result


def add_noise(
    waveform: torch.Tensor, noise: torch.Tensor, snr_db: float, rng: np.random.Generator | None = None
) -> torch.Tensor:
    """Add ``noise`` (any length) to ``waveform``, scaled so that 10 log10(P_speech / P_noise) = ``snr_db``.

    Short noise is repeated. Of long noise, ``rng`` picks the piece (without it: the beginning). If either is silent no
    ratio exists and ``waveform`` comes back unchanged.
    """
    if len(noise) == 0:
        raise ConfigError("noise holds 0 samples; leave it out")
    length = len(waveform)
    start = int(rng.integers(max(len(noise) - length, 0) + 1)) if rng is not None else 0
    noise = noise[start:].repeat(-(-length // max(len(noise) - start, 1)))[:length].to(waveform)
    speech_power, noise_power = waveform.double().square().mean(), noise.double().square().mean()
    if speech_power == 0 or noise_power == 0:
        return waveform
    gain = torch.sqrt(speech_power / noise_power * 10 ** (-snr_db / 10))
    return waveform + (noise * gain).to(waveform.dtype)


def speed(waveform: torch.Tensor, factor: float) -> torch.Tensor:
    """Play ``factor`` times faster by resampling: ``(samples,)`` -> about ``(samples / factor,)``; pitch moves along.

    Ko et al., "Audio augmentation for speech recognition" (Interspeech 2015), section 2.
    """
    if not 0.1 <= factor <= 10:
        raise ConfigError(f"speed factor={factor} must lie between 0.1 and 10; 1 keeps the speed")
    if factor == 1:
        return waveform
    fast = soxr.resample(waveform.cpu().numpy(), SAMPLE_RATE * factor, SAMPLE_RATE)
    return torch.from_numpy(fast).to(waveform.device)


Speed = Annotated[float, Range(0.1, 10)]
"""A factor on the speed of speech."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random chain speed -> noise -> telephone, as sound travels: ``augment(waveform, rng) -> waveform``.

    By default only the speed varies. Speed and packing change lengths: augment before batching.
    """

    speeds: tuple[Speed, ...] = (0.9, 1.0, 1.1)
    """Factors to choose from, each as likely. Ko et al. 2015 train on these three copies."""

    speed_probability: Share = 1.0
    """How often the speed is drawn at all; 1.0 shows the three copies equally often, as there."""

    noise_manifest: str | None = None
    """Manifest of noise recordings; needed where ``noise_probability`` is above 0."""

    noise_probability: Share = 0.0
    """How often noise is added. Off by default, since no noise ships with the package."""

    snr_db: tuple[Decibels, Decibels] = (0.0, 15.0)
    """Lowest and highest signal-to-noise ratio, drawn uniformly: the range for noise of Snyder et al., "X-vectors"
    (ICASSP 2018), section 3.3."""

    telephone_probability: Share = 0.0
    """How often the telephone channel is applied. Off by default: it changes the domain."""

    codecs: tuple[str, ...] = tuple(CODECS)
    """Codecs to choose from, each as likely."""

    def __post_init__(self) -> None:
        check_values(self)
        if not self.speeds:
            raise ConfigError("speeds is empty: give factors, such as (0.9, 1.0, 1.1)")
        if self.snr_db[0] > self.snr_db[1]:
            raise ConfigError(f"snr_db={self.snr_db} must be (lowest, highest)")
        if unknown := [codec for codec in self.codecs if codec not in CODECS]:
            raise ConfigError(f"codecs: {unknown[0]!r} is unknown; use some of {', '.join(CODECS)}")
        if self.telephone_probability and not self.codecs:
            raise ConfigError(f"telephone_probability={self.telephone_probability} needs codecs; name at least one")
        if self.noise_probability and self.noise_manifest is None:
            raise ConfigError(f"noise_probability={self.noise_probability} needs noise_manifest, a manifest of noises")

    @property
    def drawn_speeds(self) -> tuple[float, ...]:
        """The factors that an utterance may be played at, its own speed among them where that may be left alone."""
        return self.speeds if self.speed_probability == 1 else (*(self.speeds if self.speed_probability else ()), 1.0)

    @cached_property
    def noises(self) -> Manifest:
        """The noise manifest, read once, its audio checked."""
        assert self.noise_manifest is not None  # __post_init__ asks for it
        return Manifest.read(self.noise_manifest).check_audio(channel="mix")

    def __call__(self, waveform: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Augment one ``(samples,)`` waveform. The same state of ``rng`` gives the same result."""
        if rng.random() < self.speed_probability:
            waveform = speed(waveform, self.speeds[rng.integers(len(self.speeds))])
        if rng.random() < self.noise_probability:
            entry = self.noises[int(rng.integers(len(self.noises)))]
            waveform = add_noise(waveform, entry.waveform(channel="mix"), rng.uniform(*self.snr_db), rng)
        if rng.random() < self.telephone_probability:
            waveform = telephone(waveform, self.codecs[rng.integers(len(self.codecs))])
        return waveform


@cache
def _band_pass(low: float, high: float) -> np.ndarray:
    """Butterworth band pass of order 8: recursive filters give the same bits on every processor, FFTs do not."""
    from scipy.signal import butter

    return np.asarray(butter(4, (low, high), "bandpass", fs=TELEPHONE_RATE, output="sos"))
