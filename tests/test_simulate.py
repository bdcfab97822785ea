"""Simulated domains: what is heard, the same in any order or run, resumed, and never mixed up with another channel."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import speech_adapters.corpora.simulate as package
from speech_adapters.config import parse_cli
from speech_adapters.corpora.simulate import DOMAINS, Channel, Config, channel_of, main, simulate
from speech_adapters.data.audio import read_audio, write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Manifest:
    """Six utterances of noise, which fills all frequencies; two are pieces of one file."""
    folder = tmp_path_factory.mktemp("source")
    rng, utterances = np.random.default_rng(0), []
    for index in range(6):
        file = folder / f"f{index % 5}.wav"
        if index < 5:
            write_audio(file, torch.from_numpy(rng.normal(0, 0.1, 16_000)).float())
        utterances.append(
            Utterance(
                f"call/{index}", file, 0.5, 0.0 if index < 5 else 0.5, text="HELLO", speaker=f"s{index % 2}",
                domain="read", extra={"gender": "F"},
            )
        )  # fmt: skip
    Manifest(utterances).write(folder / "test.jsonl")
    return Manifest.read(folder / "test.jsonl", check_files=True)


@pytest.fixture(scope="module")
def noises(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("noises")
    lines = []
    for index in range(3):
        write_audio(
            folder / f"n{index}.wav", torch.from_numpy(np.random.default_rng(index).normal(0, 0.2, 4000)).float()
        )
        lines.append(Utterance(f"n{index}", folder / f"n{index}.wav", 0.25))
    Manifest(lines).write(folder / "noise.jsonl")
    return folder / "noise.jsonl"


def digests(path: Path) -> dict[str, str]:
    return {u.id: hashlib.md5(u.audio_filepath.read_bytes()).hexdigest() for u in Manifest.read(path)}


def share_above(waveform: torch.Tensor, hertz: float) -> float:
    power = torch.fft.rfft(waveform).abs().square()
    return float(power[int(len(power) * hertz / 8000) :].sum() / power.sum())


def test_manifest_keeps_what_it_knew_and_says_what_was_done(source, tmp_path):
    path = simulate(source, tmp_path, "mobile")
    assert path == tmp_path / "test.jsonl"
    for old, new in zip(source, Manifest.read(path, check_files=True), strict=True):
        assert (new.id, new.text, new.speaker, new.extra["gender"]) == (old.id, old.text, old.speaker, "F")
        assert (new.domain, new.offset, new.duration) == ("mobile", 0.0, 0.5)
        assert new.extra["codec"] == "gsm" and 0 <= new.extra["packet_loss"] <= 0.03
        assert "/" not in new.audio_filepath.name, "an id may hold slashes"


def test_of_several_channels_one_is_left(tmp_path):
    soundfile.write(tmp_path / "call.wav", np.random.default_rng(0).normal(0, 0.1, (8000, 2)), 16_000)
    heard = Manifest([Utterance("call", tmp_path / "call.wav", 0.5, channel=1)], "calls.jsonl")
    (line,) = Manifest.read(simulate(heard, tmp_path / "out", "mobile"), check_files=True)
    assert line.channel is None


def test_telephone_is_heard(source, tmp_path):
    manifest = Manifest.read(simulate(source, tmp_path, "telephone"))
    assert len(manifest.values("codec")) > 1, "utterances draw their own codecs"
    for old, new in zip(source, manifest, strict=True):
        assert share_above(read_audio(old.audio_filepath, offset=old.offset, duration=0.5), 4000) > 0.3
        assert share_above(read_audio(new.audio_filepath), 4000) < 0.01
    wide = simulate(source, tmp_path / "wide", "telephone", Channel(band=(50, 3900), codecs=("a-law",)))
    assert Manifest.read(wide).values("codec") == ("a-law",)


def test_randomness_follows_from_the_id_alone(source, noises, tmp_path):
    channel = channel_of("voip", noise_manifest=noises)
    whole = digests(simulate(source, tmp_path / "a", "voip", channel))
    turned = digests(simulate(Manifest(reversed(list(source)[2:]), source.name), tmp_path / "b", "voip", channel))
    assert turned == {name: whole[name] for name in turned} and len(turned) == 4
    other = digests(simulate(source, tmp_path / "c", "voip", channel, seed=1))
    assert not set(other.values()) & set(whole.values())


def test_noise_has_the_ratio_that_the_line_says(source, noises, tmp_path):
    path = simulate(source, tmp_path, "noisy", channel_of("noisy", noise_manifest=noises, snr_db=(0.0, 10.0)))
    for old, new in zip(source, Manifest.read(path), strict=True):
        clean, noisy = read_audio(old.audio_filepath, offset=old.offset, duration=0.5), read_audio(new.audio_filepath)
        ratio = 10 * np.log10(float(clean.square().mean() / (noisy - clean).square().mean()))
        assert 0 <= new.extra["snr_db"] <= 10 and ratio == pytest.approx(new.extra["snr_db"], abs=0.1)
        assert "codec" not in new.extra


def test_an_interrupted_run_goes_on(source, tmp_path, monkeypatch):
    whole = digests(simulate(source, tmp_path / "whole", "voip"))
    render, rendered = package._render, []

    def breaks_off(utterance, *arguments):
        if len(rendered) == 3:
            raise KeyboardInterrupt
        rendered.append(utterance.id)
        return render(utterance, *arguments)

    monkeypatch.setattr(package, "_render", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        simulate(source, tmp_path / "part", "voip")
    assert not (tmp_path / "part" / "test.jsonl").exists(), "the manifest comes last"
    rendered.clear()
    path = simulate(source, tmp_path / "part", "voip")
    assert rendered == [u.id for u in source][3:], "what is there is not made again"
    assert digests(path) == whole
    assert [u.extra for u in Manifest.read(path)] == [
        u.extra for u in Manifest.read(tmp_path / "whole" / "test.jsonl")
    ]


def test_another_channel_needs_another_folder(source, noises, tmp_path):
    simulate(source, tmp_path, "telephone")
    simulate(source, tmp_path, "telephone", name="again")
    for arguments, key in (
        ((source, tmp_path, "voip"), "domain"),
        ((source, tmp_path, "telephone", Channel(codecs=("gsm",))), "channel"),
        ((source.map(lambda u: replace(u, text="BYE")), tmp_path, "telephone"), "source"),
        ((source, tmp_path, "telephone", Channel(noise_manifest=noises)), "channel"),
    ):
        with pytest.raises(InputError, match=f"test.simulation.json: begun with {key}=.*name a new folder"):
            simulate(*arguments)
    with pytest.raises(InputError, match="begun with seed=0, now asked with 1"):
        simulate(source, tmp_path, "telephone", seed=1)


def test_of_two_that_begin_a_folder_otherwise_one_is_refused(tmp_path, monkeypatch):
    write, path = package.write_json, tmp_path / "test.simulation.json"

    def beside_another(*arguments):
        """The other one comes between the look and the writing, and has a second to be quicker."""
        monkeypatch.undo()
        ours.append(threads.submit(package._check_same, path, {"seed": 1}))
        with suppress(TimeoutError):
            ours[0].result(1)
        write(*arguments)

    monkeypatch.setattr(package, "write_json", beside_another)
    with ThreadPoolExecutor(1) as threads:
        ours = []
        package._check_same(path, {"seed": 0})
        with pytest.raises(InputError, match="begun with seed=0, now asked with 1"):
            ours[0].result()


def test_bad_channels_are_named(source, tmp_path):
    with pytest.raises(ConfigError, match="domain 'moon' is unknown; use one of telephone"):
        simulate(source, tmp_path, "moon")
    for settings, message in (
        ({"codecs": ("amr",)}, "codecs: 'amr' is unknown"),
        ({"packet_loss": (0.2, 0.1)}, "must be \\(lowest, highest\\)"),
        ({"packet_loss": (0.0, 0.9)}, "packet loss 0.9 must lie between 0 and 0.67"),
        ({"band": (300.0, 5000.0)}, "0 < low < high < 4000"),
        ({"codecs": ()}, "changes nothing: name codecs, a packet loss or a noise_manifest"),
    ):
        with pytest.raises(ConfigError, match=message):
            Channel(**settings)
    assert not list(tmp_path.iterdir())
    for domain in set(DOMAINS) - {"noisy"}:
        assert channel_of(domain)


def test_command_line(source, noises, tmp_path, capsys):
    arguments = [f"--manifest={source.name}", "--domain=voip", f"--output={tmp_path / 'o'}", "--packet-loss=0.1,0.2"]
    main(parse_cli(Config, [*arguments, f"--noise-manifest={noises}", "--codecs=gsm"]))
    manifest = Manifest.read(tmp_path / "o" / "test.jsonl", check_files=True)
    assert manifest.values("codec") == ("gsm",) and all(0.1 <= u.extra["packet_loss"] <= 0.2 for u in manifest)
    assert "domain: voip 6" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="give --manifest and --output"):
        main(parse_cli(Config, [arguments[0]]))
    with pytest.raises(ConfigError, match="test names two files"):
        main(parse_cli(Config, [f"--manifest={source.name},{source.name}", arguments[2]]))


def test_real_speech(real_data, tmp_path):
    manifest = Manifest.read(real_data / "manifests" / "asr_librispeech_test.jsonl")[:3]
    for old, new in zip(manifest, Manifest.read(simulate(manifest, tmp_path, "telephone")), strict=True):
        assert new.duration == pytest.approx(old.duration, abs=0.01) and new.text == old.text
        waveform = read_audio(new.audio_filepath)
        assert share_above(waveform, 4000) < 0.01 and float(waveform.abs().max()) > 0.02
