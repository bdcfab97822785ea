"""Augmentation does to the signal what it says: band, codec, ratio, speed; and repeats under one seed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_adapters.data.audio import write_audio
from speech_adapters.data.augmentation import CODECS, Augmentation, add_noise, lose_packets, speed, telephone
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.speed_copies import with_speeds
from speech_adapters.errors import ConfigError, ManifestError


def tone(hertz: float, samples: int = 16_001) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(samples) / 16_000)


def power(waveform: torch.Tensor) -> float:
    return float(waveform.square().mean())


def decibel(after: torch.Tensor, before: torch.Tensor) -> float:
    return 10 * math.log10(power(after) / power(before))


@pytest.mark.parametrize("codec", CODECS)
def test_telephone_passes_its_band_only(codec: str):
    assert len(telephone(tone(1000), codec)) == 16_001
    assert abs(decibel(telephone(tone(1000), codec), tone(1000))) < 1.5
    assert decibel(telephone(tone(80), codec), tone(80)) < -15
    assert decibel(telephone(tone(5000), codec), tone(5000)) < -40


def test_codecs_are_real():
    """G.711's quantisation noise lies near 38 dB below the tone; GSM at 13 kbit/s is far coarser; A-law differs."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 16_000)).float()
    mu, a, gsm = (telephone(noise, codec) for codec in ("mu-law", "a-law", "gsm"))
    assert not torch.equal(mu, a)
    assert decibel(mu - a, a) < -30
    assert decibel(gsm - a, a) > -20


def test_band_is_a_choice():
    wide = telephone(tone(100), band=(50, 3800))
    assert abs(decibel(wide, tone(100))) < 1.5 and decibel(telephone(tone(100)), tone(100)) < -15
    for band in ((0, 3400), (3400, 300), (300, 4000)):
        with pytest.raises(ConfigError, match="with 0 < low < high < 4000"):
            telephone(tone(440), band=band)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.5), st.integers(1, 5), st.integers(0, 2**32), st.integers(320, 5000))
def test_lost_packets_come_in_bounded_bursts(rate, max_burst, seed, length):
    waveform = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, length)).float()
    lossy = lose_packets(waveform, rate, np.random.default_rng(seed), max_burst)
    assert len(lossy) == length
    burst = 0
    for start in range(0, length, 320):
        before, after = waveform[start : start + 320], lossy[start : start + 320]
        burst = 0 if torch.equal(before, after) else burst + 1
        assert burst <= max_burst
        if burst:
            arrived = waveform[start - 320 * burst :][: len(after)]
            assert torch.equal(after, arrived * 0.5 ** (burst - 1)), "the last packet that arrived, fading"


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_lost_packets_have_the_asked_rate(rate: float):
    waveform = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 320 * 20_000)).float()
    lossy = lose_packets(waveform, rate, np.random.default_rng(1))
    lost = (waveform != lossy).reshape(-1, 320).any(1).float().mean()
    assert float(lost) == pytest.approx(rate, abs=0.01)


def test_rates_that_bursts_cannot_reach():
    for rate, max_burst in ((0.51, 1), (-0.1, 3), (0.1, 0)):
        with pytest.raises(ConfigError, match="packet loss .* must lie between 0 and"):
            lose_packets(tone(440), rate, np.random.default_rng(0), max_burst)


def test_unknown_codec():
    with pytest.raises(ConfigError, match="codec='amr' is unknown; use one of mu-law, a-law, gsm"):
        telephone(tone(440), "amr")


@pytest.mark.parametrize("length", [100, 16_001, 50_000])
@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_has_the_asked_ratio(length: int, snr: float):
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 3, length)).float()
    noisy = add_noise(tone(440), noise, snr, np.random.default_rng(2))
    assert decibel(tone(440), noisy - tone(440)) == pytest.approx(snr, abs=0.01)


def test_noise_edge_cases():
    assert torch.equal(add_noise(tone(440), torch.zeros(10), 5.0), tone(440))
    assert torch.equal(add_noise(torch.zeros(500), tone(440), 5.0), torch.zeros(500))
    with pytest.raises(ConfigError, match="0 samples"):
        add_noise(tone(440), torch.zeros(0), 5.0)


def test_speed_changes_length_and_pitch():
    fast = speed(tone(440), 1.1)
    assert len(fast) == pytest.approx(16_001 / 1.1, abs=1)
    spectrum = torch.fft.rfft(fast).abs()
    assert spectrum.argmax() * 16_000 / len(fast) == pytest.approx(484, abs=2)
    assert speed(tone(440), 1.0) is not None and len(speed(tone(440), 1.0)) == 16_001
    with pytest.raises(ConfigError, match="factor=0"):
        speed(tone(440), 0)


def test_the_chain_repeats_under_one_seed(tmp_path: Path):
    write_audio(tmp_path / "n.wav", tone(3000, 40_000))
    Manifest([Utterance("n", tmp_path / "n.wav", 2.5)]).write(tmp_path / "noise.jsonl")
    augment = Augmentation(
        noise_manifest=str(tmp_path / "noise.jsonl"), noise_probability=0.5, telephone_probability=0.5
    )
    first = [augment(tone(440), np.random.default_rng(seed)) for seed in range(12)]
    again = [augment(tone(440), np.random.default_rng(seed)) for seed in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({len(waveform) for waveform in first}) == 3, "three speeds"
    assert len({round(power(waveform), 6) for waveform in first}) > 6


def test_off_is_identity():
    augment = Augmentation(speed_probability=0.0)
    assert torch.equal(augment(tone(440), np.random.default_rng(0)), tone(440))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speed_probability": 1.5}, "speed_probability=1.5: must be a number, at least 0 and at most 1"),
        ({"speeds": ()}, "speeds is empty"),
        ({"speeds": (0.9, -1.0)}, "speeds.1=-1.0: must"),
        ({"snr_db": (10.0, 0.0)}, "snr_db="),
        ({"codecs": ("mp3",)}, "'mp3' is unknown"),
        ({"codecs": (), "telephone_probability": 0.5}, "name at least one"),
        ({"noise_probability": 0.5}, "needs noise_manifest"),
    ],
)
def test_bad_configs(arguments: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**arguments)


def test_copies_at_other_speeds_stand_beside_what_they_are_of(tmp_path: Path):
    stereo = torch.stack([torch.sin(torch.arange(32_000) * 0.1), torch.zeros(32_000)])
    soundfile.write(tmp_path / "call.wav", stereo.T.numpy(), 16_000)
    piece = Utterance(
        id="a/1", audio_filepath=tmp_path / "call.wav", offset=0.5, duration=1.0, channel=0, text="A", speaker="s"
    )
    whole = with_speeds(Manifest([piece], "calls"), (0.9, 1.1), tmp_path / "copies")
    assert [u.id for u in whole] == ["a/1", "a/1-x0.9", "a/1-x1.1"] and whole[0] == piece
    for copy, factor in zip(list(whole)[1:], (0.9, 1.1), strict=True):
        assert (copy.text, copy.speaker, copy.offset, copy.channel) == ("A", "s", 0.0, None)
        heard, expected = copy.waveform(), speed(piece.waveform(), factor)
        assert len(heard) == len(expected) == round(copy.duration * 16_000)
        torch.testing.assert_close(heard, expected / expected.abs().max().clamp(min=1), atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="exists already"):
        with_speeds(Manifest([piece], "calls"), (0.9,), tmp_path / "copies")
    for wrong in ((), (1.0,), (0.9, 0.9), (20.0,)):
        with pytest.raises(ConfigError, match="speed"):
            with_speeds(Manifest([piece], "calls"), wrong, tmp_path / "other")
    alike = Manifest([piece, replace(piece, id="a-1")], "calls")
    with pytest.raises(ManifestError, match="its copy would have the name of another, 'a-1-x0.9'"):
        with_speeds(alike, (0.9,), tmp_path / "other")
    assert not (tmp_path / "other").exists()
