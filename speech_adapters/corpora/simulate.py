"""Pass a corpus through a telephone: a new domain of the same utterances, for want of transcribed calls.

    python -m speech_adapters.corpora.simulate --manifest train.jsonl,test.jsonl --domain telephone --output calls

As sound travels: noise at the speaker's end, the band and codec of the line, lost packets. What each utterance meets
follows from its id and the seed alone, so that it is the same in any order, subset or run. Layout of the output::

    calls/
      train.jsonl                  the same lines, domain set, with ``codec``, ``snr_db``, ``packet_loss`` as drawn
      train.simulation.json        what was asked: another channel needs another folder
      audio/train/<id>.flac        16 kHz, 16 bit

An interrupted run goes on where it stopped. Simulated channels are no calls: people speak differently on the phone.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.audio import SAMPLE_RATE, audio_info, write_audio
from speech_adapters.data.augmentation import CODECS, TELEPHONE_BAND, add_noise, lose_packets, telephone
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import read_json, to_json, write_json
from speech_adapters.locks import locked
from speech_adapters.ranges import Decibels, Positive, Seed, Share, Size, check_values


@dataclass(frozen=True, kw_only=True)
class Channel:
    """What sound passes through; ranges are (lowest, highest), from which each utterance draws uniformly."""

    codecs: tuple[str, ...] = tuple(CODECS)
    """Codecs to draw from, each as likely; none leaves out the telephone line and its band."""

    band: tuple[Positive, Positive] = TELEPHONE_BAND
    """Hz that the line passes."""

    packet_loss: tuple[Share, Share] = (0.0, 0.0)
    """Share of 20 ms packets that get lost; lines that switch circuits lose none."""

    max_burst: Size = 3
    """Most packets lost in a row: 60 ms, beyond which concealment fades out (ITU-T G.711 Appendix I)."""

    noise_manifest: Path | None = None
    """Manifest of noise recordings."""

    snr_db: tuple[Decibels, Decibels] = (5.0, 20.0)
    """Signal-to-noise ratio of the noise, where there is any: an office to a busy street, as callers have it."""

    def __post_init__(self) -> None:
        check_values(self)
        if unknown := [codec for codec in self.codecs if codec not in CODECS]:
            raise ConfigError(f"codecs: {unknown[0]!r} is unknown; use some of {', '.join(CODECS)}")
        for name in ("packet_loss", "snr_db"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise ConfigError(f"{name}={getattr(self, name)} must be (lowest, highest)")
        silence = torch.zeros(SAMPLE_RATE // 10)  # let the parts check their own settings now
        if self.codecs:
            telephone(silence, self.codecs[0], self.band)
        for loss in self.packet_loss:
            lose_packets(silence, loss, np.random.default_rng(0), self.max_burst)
        if not self.codecs and self.noise_manifest is None and not self.packet_loss[1]:
            raise ConfigError("this channel changes nothing: name codecs, a packet loss or a noise_manifest")


DOMAINS: dict[str, dict[str, Any]] = {
    "telephone": {},
    "landline": {"codecs": ("mu-law", "a-law")},
    "mobile": {"codecs": ("gsm",), "packet_loss": (0.0, 0.03)},
    "voip": {"codecs": ("mu-law", "a-law"), "packet_loss": (0.01, 0.1)},
    "noisy": {"codecs": ()},
}
"""Domain -> the settings in which its :class:`Channel` departs from the default; ``noisy`` needs a noise_manifest. The
losses are our choice: up to 3 % still passes for good, 10 % for hardly bearable."""


def simulate(
    manifest: Manifest,
    output: str | os.PathLike[str],
    domain: str,
    channel: Channel | None = None,
    *,
    seed: Seed = 0,
    name: str | None = None,
) -> Path:
    """Write the manifest's utterances as they sound through ``channel``; returns ``<output>/<name>.jsonl``.

    Args:
        domain: a name of :data:`DOMAINS`, whose channel is the default, or any name with a ``channel``.
        name: of the new manifest; by default the old one's file name.

    Raises:
        ConfigError: an unknown domain without a channel.
        InputError: the folder holds this manifest simulated otherwise, or audio cannot be read.
    """
    from tqdm import tqdm

    if channel is None:
        channel = channel_of(domain)
    name, output = name or Path(manifest.name).stem, Path(output)
    noises = (
        None if channel.noise_manifest is None else Manifest.read(channel.noise_manifest).check_audio(channel="mix")
    )
    settings = {field.name: getattr(channel, field.name) for field in fields(channel)} | {
        "noise_manifest": noises and noises.sha256
    }
    _check_same(
        output / f"{name}.simulation.json",
        {"domain": domain, "seed": seed, "source": manifest.sha256, "channel": settings},
    )
    lines = []
    for utterance in tqdm(manifest, desc=f"simulating {domain}", unit="utt", mininterval=1, disable=None):
        rng = np.random.default_rng(list(hashlib.sha256(f"{seed}:{utterance.id}".encode()).digest()))
        drawn, noise = _draw(channel, noises, rng)
        path = output.absolute() / "audio" / name / f"{quote(utterance.id, safe='')}.flac"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_audio(path, _render(utterance, channel, drawn, noise, rng), loud="scale")
        new = {"audio_filepath": path, "offset": 0.0, "duration": audio_info(path).duration, "channel": None}
        lines.append(replace(utterance, **new, domain=domain, extra=utterance.extra | drawn))
    Manifest(lines).write(output / f"{name}.jsonl")
    return output / f"{name}.jsonl"


def channel_of(domain: str, **changes: Any) -> Channel:
    """The channel of a named domain, with some of its settings changed.

    Raises:
        ConfigError: an unknown domain, or settings that do not work.
    """
    if domain not in DOMAINS:
        raise ConfigError(f"domain {domain!r} is unknown; use one of {', '.join(DOMAINS)}, or give a channel")
    return Channel(**{**DOMAINS[domain], **changes})


def _draw(
    channel: Channel, noises: Manifest | None, rng: np.random.Generator
) -> tuple[dict[str, Any], Utterance | None]:
    """What one utterance meets: the entries for its manifest line, and its noise."""
    drawn: dict[str, Any] = {}
    noise = None
    if noises is not None:
        noise = noises[int(rng.integers(len(noises)))]
        drawn["snr_db"] = round(float(rng.uniform(*channel.snr_db)), 2)
    if channel.codecs:
        drawn["codec"] = channel.codecs[int(rng.integers(len(channel.codecs)))]
    if channel.packet_loss[1]:
        drawn["packet_loss"] = round(float(rng.uniform(*channel.packet_loss)), 4)
    return drawn, noise


def _render(
    utterance: Utterance, channel: Channel, drawn: dict[str, Any], noise: Utterance | None, rng: np.random.Generator
) -> torch.Tensor:
    waveform = utterance.waveform()
    if noise is not None:
        sound = noise.waveform("mix")
        waveform = add_noise(waveform, sound, drawn["snr_db"], rng)
    waveform = waveform / max(float(waveform.abs().max()), 1.0)  # a codec clips what noise has lifted above 1
    if "codec" in drawn:
        waveform = telephone(waveform, drawn["codec"], channel.band)
    if "packet_loss" in drawn:
        waveform = lose_packets(waveform, drawn["packet_loss"], rng, channel.max_burst)
    return waveform


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    """Record what is asked, or compare it with what the folder was begun with."""
    with locked(path):
        if not path.exists():
            write_json(path, settings)
            return
    asked, begun = to_json(settings), read_json(path)
    if odd := [key for key in asked if asked[key] != begun.get(key)]:
        raise InputError(
            f"{path}: begun with {odd[0]}={begun.get(odd[0])}, now asked with {asked[odd[0]]}; name a new folder, or "
            "remove this one"
        )


@dataclass(kw_only=True)
class Config:
    """Which manifests to pass through which channel."""

    manifest: tuple[Path, ...] = option((), "JSON Lines manifests, separated by commas; required")
    domain: str = option("telephone", f"the channel: {', '.join(DOMAINS)}")
    output: Path | None = option(None, "folder for the new manifests and audio; required")
    seed: Seed = option(0, "another seed draws other codecs, noises and losses")
    codecs: tuple[str, ...] | None = option(None, f"codecs to draw from instead of the domain's: {', '.join(CODECS)}")
    packet_loss: tuple[Share, Share] | None = option(None, "lowest,highest share of lost packets, such as 0,0.05")
    max_burst: Size | None = option(None, "most packets lost in a row")
    noise_manifest: Path | None = option(None, "manifest of noise recordings to add")
    snr_db: tuple[Decibels, Decibels] | None = option(None, "lowest,highest signal-to-noise ratio in dB")


def main(config: Config) -> None:
    """Write the simulated copy of each manifest and say what is in it."""
    if not config.manifest or config.output is None:
        raise ConfigError("give --manifest and --output: what to simulate, and the folder to write to.")
    stems = [path.stem for path in config.manifest]
    if len(set(stems)) < len(stems):
        raise ConfigError(f"--manifest: {max(stems, key=stems.count)} names two files; write them to two folders.")
    names = {field.name for field in fields(Channel)} & {field.name for field in fields(Config)}
    changes = {name: value for name in names if (value := getattr(config, name)) is not None}
    channel = channel_of(config.domain, **changes)
    manifests = [Manifest.read(path, check_files=True) for path in config.manifest]
    for manifest in manifests:
        path = simulate(manifest, config.output, config.domain, channel, seed=config.seed)
        print(f"{path}: {Manifest.read(path).summary()}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__)))
