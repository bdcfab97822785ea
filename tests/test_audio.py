"""Reading, writing and checking waveforms: formats, pieces, channels, and a clear error for each bad input."""

from __future__ import annotations

import math
import os
import struct
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speech_adapters.data import mp3
from speech_adapters.data.audio import (
    audio_info,
    check_waveform,
    pack,
    read_audio,
    resample,
    stream_audio,
    unpack,
    write_audio,
)
from speech_adapters.errors import AudioError, InputError


def tone(seconds: float = 1.0, rate: int = 16_000, hertz: float = 440.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(("suffix", "loss"), [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.05), (".opus", 0.05)])
def test_formats_round_trip(tmp_path: Path, suffix: str, loss: float):
    path = tmp_path / f"tone{suffix}"
    write_audio(path, tone())
    got = read_audio(path)
    assert got.dtype == torch.float32 and got.shape == (16_000,)
    assert (got - tone())[2000:-2000].abs().max() < loss
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_mp3_is_read(tmp_path: Path):
    path = tmp_path / "tone.mp3"
    soundfile.write(path, tone().numpy(), 16_000)
    assert abs(len(read_audio(path)) - 16_000) < 3000


def _mp3(path: Path, rate: int = 16_000) -> Path:
    """Noise that is loud for a third and then quiet, at a variable bit rate."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 320_000).astype(np.float32)
    noise[len(noise) // 3 :] *= 0.001
    with soundfile.SoundFile(path, "w", rate, 1, format="MP3", bitrate_mode="VARIABLE") as file:
        file.write(noise)
    return path


@pytest.mark.parametrize("tail", [b"", b"TAG" + bytes(125)], ids=["bare", "tagged"])
def test_an_mp3_that_counts_no_frames_is_read_to_its_end(tmp_path: Path, tail: bytes):
    """Its length is guessed from the first frame's bit rate, which is the highest here."""
    path = _mp3(tmp_path / "a.mp3")
    whole = len(read_audio(path))
    content = path.read_bytes()
    assert b"Xing" in content or b"Info" in content
    path.write_bytes(content.replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1) + tail)
    found = read_audio(path)
    assert whole <= len(found) <= whole + 4 * 576, "what pads it is no longer known"
    assert audio_info(path).frames == len(found)
    assert torch.equal(torch.cat(list(stream_audio(path))), found)
    torch.testing.assert_close(read_audio(path, offset=15.0, duration=2.0)[4_000:], found[244_000:272_000])


def test_a_recorded_stream_may_end_within_a_frame(tmp_path: Path):
    path = _mp3(tmp_path / "a.mp3")
    content = path.read_bytes().replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1)
    path.write_bytes(content)
    whole = read_audio(path)
    for cut in range(len(content) // 2, len(content) // 2 + 100, 9):
        path.write_bytes(content[:cut])
        found = read_audio(path)
        assert audio_info(path).frames == len(found) > len(whole) // 4
        torch.testing.assert_close(found[: -3 * 576], whole[: len(found) - 3 * 576])


def test_a_count_by_decoding_that_fails_names_the_file(tmp_path: Path):
    path = _mp3(tmp_path / "a.mp3")
    content = path.read_bytes().replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1)
    path.write_bytes(content[:30_000] + bytes(5_000) + content[30_000:])
    with pytest.raises(AudioError, match=f"^{path}: cut short or corrupt"):
        audio_info(path)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])  # MPEG 2.5, 2 and 1
def test_anything_may_stand_behind_the_last_frame_of_an_mp3(tmp_path: Path, rate: int):
    """An APE tag with a picture, padding, whatever: it is no part of the recording, and nothing is lost before it."""
    path = _mp3(tmp_path / "a.mp3", rate)
    content = path.read_bytes().replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1)
    path.write_bytes(content)
    whole, info = read_audio(path), audio_info(path)
    assert info.frames >= 320_000
    picture = np.random.default_rng(rate).bytes(200_000)
    for behind in (bytes(5_000), b"\xff" * 5_000, picture, b"APETAGEX" + bytes(24) + picture + b"TAG" + bytes(125)):
        path.write_bytes(b"ID3\4\0\0" + bytes([0, 0, 40, 0]) + bytes(40 << 7) + content + behind)
        assert audio_info(path) == info and torch.equal(read_audio(path), whole)


def test_megabytes_of_erased_memory_behind_an_mp3_are_passed_over_at_once(tmp_path: Path, monkeypatch):
    path, looked, length = _mp3(tmp_path / "a.mp3"), [0], mp3._frame_length
    frames = path.read_bytes()
    path.write_bytes(frames + b"\xff" * 2_000_000)
    monkeypatch.setattr(mp3, "_frame_length", lambda *place: (looked.append(place[1]), length(*place))[1])
    with path.open("rb") as file:
        assert mp3.end_of_frames(file) == len(frames)
    assert len(looked) < 3_000


def test_a_piece_of_an_mp3_sounds_as_it_does_in_the_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    time = np.arange(20 * 16_000) / 16_000  # changes of loudness make frames borrow bits of those before
    swelling = np.clip(np.sin(4.4 * time), 0, 1) * np.random.default_rng(0).uniform(-0.3, 0.3, len(time))
    path = tmp_path / "a.mp3"
    with soundfile.SoundFile(
        path, "w", 16_000, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    ) as file:
        file.write(swelling.astype(np.float32))
    whole = read_audio(path)
    for offset in np.random.default_rng(1).uniform(0.1, 18, 20):
        start = round(offset * 16_000)
        piece = read_audio(path, offset=offset, duration=1.0)
        torch.testing.assert_close(piece, whole[start : start + 16_000], atol=1e-6, rtol=0)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125)], ids=["bare", "tagged"])
def test_several_mp3s_in_one_file_are_not_the_first_alone(tmp_path: Path, between: bytes):
    path = _mp3(tmp_path / "a.mp3")
    path.write_bytes(path.read_bytes() + between + path.read_bytes())
    with pytest.raises(AudioError, match=r"its first frame counts \d+ of \d+ bytes, and more of it follows"):
        read_audio(path)


def test_float_wav_is_exact(tmp_path: Path):
    write_audio(tmp_path / "a.wav", 3 * tone(), subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "a.wav"), 3 * tone())


def test_offset_and_duration_pick_a_piece(tmp_path: Path):
    path = tmp_path / "a.wav"
    write_audio(path, torch.linspace(-0.9, 0.9, 32_000), subtype="FLOAT")
    assert torch.equal(read_audio(path, offset=0.5, duration=1.0), read_audio(path)[8_000:24_000])
    assert len(read_audio(path, duration=2.02)) == 32_000, "rounded durations of manifests are forgiven"


def test_resampling_keeps_the_tone(tmp_path: Path):
    path = tmp_path / "a.wav"
    write_audio(path, tone(rate=8_000), sample_rate=8_000)
    got = read_audio(path)
    assert len(got) == 16_000
    assert (got - tone())[1000:-1000].abs().max() < 0.01
    assert len(read_audio(path, sample_rate=8_000, resample=False)) == 8_000
    assert torch.equal(resample(got, 16_000, 16_000), got)


def test_channels_are_chosen_or_mixed(tmp_path: Path):
    path = tmp_path / "call.wav"
    soundfile.write(path, np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1), 16_000, subtype="FLOAT")
    assert read_audio(path, channel=0).unique().tolist() == [0.5]
    assert read_audio(path, channel=1).unique().tolist() == [-0.25]
    assert read_audio(path, channel="mix").unique().tolist() == [0.125]
    with pytest.raises(AudioError, match=r'call\.wav: 2 channels.*channel=0.*"mix"'):
        read_audio(path)
    with pytest.raises(AudioError, match="channel=2 does not exist; use 0 to 1"):
        read_audio(path, channel=2)


def test_info(tmp_path: Path):
    soundfile.write(tmp_path / "a.flac", np.zeros((4_000, 2)), 8_000)
    info = audio_info(tmp_path / "a.flac")
    assert (info.sample_rate, info.channels, info.frames, info.duration) == (8_000, 2, 4_000, 0.5)


def test_silence_is_allowed(tmp_path: Path):
    write_audio(tmp_path / "a.wav", torch.zeros(400))
    assert read_audio(tmp_path / "a.wav").abs().max() == 0


def _missing(folder: Path) -> Path:
    return folder / "missing.wav"


def _folder(folder: Path) -> Path:
    return folder


def _empty(folder: Path) -> Path:
    (folder / "empty.wav").touch()
    return folder / "empty.wav"


def _text(folder: Path) -> Path:
    (folder / "notes.wav").write_text("this is no audio" * 100)
    return folder / "notes.wav"


def _no_samples(folder: Path) -> Path:
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    return folder / "none.wav"


def _short(folder: Path) -> Path:
    write_audio(folder / "short.wav", torch.zeros(399))
    return folder / "short.wav"


def _nan(folder: Path) -> Path:
    samples = tone().numpy().copy()
    samples[123] = np.nan
    soundfile.write(folder / "nan.wav", samples, 16_000, subtype="FLOAT")
    return folder / "nan.wav"


def _cut(suffix: str):
    def make(folder: Path) -> Path:
        path = folder / f"cut{suffix}"
        noise = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, 32_000)).float()
        write_audio(path, noise)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        return path

    return make


def _damaged_flac(folder: Path) -> Path:
    path = _cut(".flac")(folder)
    path.write_bytes(b"junk" + path.read_bytes()[4:])
    return path


def _cut_container(format_name: str, subtype: str):
    def make(folder: Path) -> Path:
        path = folder / "cut.audio"
        soundfile.write(path, tone().numpy(), 16_000, subtype, format=format_name)
        path.write_bytes(path.read_bytes()[:-9_000])
        return path

    return make


def _counts_half(folder: Path) -> Path:
    """As a recorder leaves it that was stopped, or as the count of a WAV above 4 GiB comes out."""
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, 32_000)).float()
    write_audio(folder / "half.wav", noise)
    content = bytearray((folder / "half.wav").read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", 32_000)
    (folder / "half.wav").write_bytes(content)
    return folder / "half.wav"


def _counts_nothing(folder: Path) -> Path:
    """As a recorder leaves it that was stopped before it wrote any length."""
    path = _counts_half(folder)
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = bytes(4)
    path.write_bytes(content)
    return path


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


BAD_FILES = {
    "missing": (_missing, "no such audio file"),
    "folder": (_folder, "is a folder"),
    "empty": (_empty, "empty file"),
    "pipe": (_pipe, "a pipe or device, which is read only once"),
    "not audio": (_text, "corrupt, or not audio"),
    "no samples": (_no_samples, "0 samples"),
    "shorter than the receptive field": (_short, "399 samples are shorter than .* 400 samples"),
    "NaN": (_nan, "NaN or infinite samples, the first at index 123"),
    "cut wav": (_cut(".wav"), "cut short"),
    "cut flac": (_cut(".flac"), "cut short"),
    "cut ogg": (_cut(".ogg"), "cut short"),
    "cut opus": (_cut(".opus"), "cut short"),
    "cut RF64": (_cut_container("RF64", "PCM_16"), "cut short: its header promises more bytes"),
    "cut SPHERE": (_cut_container("NIST", "PCM_16"), "cut short: its header promises more bytes"),
    "cut mu-law SPHERE": (_cut_container("NIST", "ULAW"), "cut short: its header promises more bytes"),
    "cut AU": (_cut_container("AU", "PCM_16"), "cut short: its header promises more bytes"),
    "cut VOC": (_cut_container("VOC", "PCM_16"), "cut short: its header promises more bytes"),
    "cut SVX": (_cut_container("SVX", "PCM_16"), "cut short: its header promises more bytes"),
    "cut MAT4": (_cut_container("MAT4", "PCM_16"), "cut short: its header promises more bytes"),
    "cut WVE": (_cut_container("WVE", "ALAW"), "cut short: its header promises more bytes"),
    "a header that counts too few": (_counts_half, "its header counts 32000 bytes of samples, and 32000 more follow"),
    "a header that counts nothing": (_counts_nothing, "its header counts 0 bytes of samples, and 64000 more follow"),
    "damaged flac": (_damaged_flac, "corrupt"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_get_one_clear_error(tmp_path: Path, name: str):
    make, message = BAD_FILES[name]
    path = make(tmp_path)
    with pytest.raises(AudioError, match=message) as caught:
        read_audio(path)
    assert str(caught.value).startswith(str(path)), "the file is named first"
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("length", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 0x8000_0000])
def test_a_wav_written_to_a_pipe_is_not_cut(tmp_path: Path, length: int):
    path = tmp_path / "a.wav"
    write_audio(path, tone())
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", length)
    path.write_bytes(content)
    assert len(read_audio(path)) == 16_000


def test_a_wav_of_three_gib_that_is_cut_is_none_of_unknown_length(tmp_path: Path):
    path = tmp_path / "a.wav"
    write_audio(path, tone())
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", 3 << 30)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="cut short: its header promises more bytes"):
        read_audio(path)


@pytest.mark.parametrize(
    "behind",
    [
        b"\0" * 20_000,
        b"LIST" + struct.pack("<I", 20_000) + b"x" * 20_000,
        b"<?xml version='1.0'?>" + b"<call/>" * 3_000,
        b"\xff\xfe" * 9,
    ],
)
def test_other_chunks_and_padding_may_stand_behind_the_samples(tmp_path: Path, behind: bytes):
    path = tmp_path / "a.wav"
    write_audio(path, tone())
    path.write_bytes(path.read_bytes() + behind)
    assert len(read_audio(path)) == 16_000


@pytest.mark.parametrize("samples", [16_000, 16_001, 16_003])
@pytest.mark.parametrize("name", ["5662f7ab2d39d21186c700c04f8edb8a", "62657874f3acd3118cd100c04f8edb8a"])
def test_a_chunk_may_stand_behind_the_samples_of_a_w64(tmp_path: Path, samples: int, name: str):
    """The list of markers, whose name is no text, and "bext"; both begin at a multiple of 8 bytes."""
    path = tmp_path / "a.w64"
    soundfile.write(path, tone(samples / 16_000).numpy(), 16_000, "PCM_16", format="W64")
    content = path.read_bytes()
    chunk = bytes.fromhex(name) + struct.pack("<q", 24 + 20_000) + b"\xff" * 20_000
    path.write_bytes(content + bytes(-len(content) % 8) + chunk)
    assert len(read_audio(path)) == samples
    path.write_bytes(content + np.random.default_rng(0).bytes(20_000))
    with pytest.raises(AudioError, match="its header counts"):
        read_audio(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resample": False, "sample_rate": 8_000}, "sampled at 16000 Hz, expected 8000.*resample=True"),
        ({"offset": 1.0}, "offset=1.0 s lies behind its end at 1.000 s"),
        ({"offset": -0.1}, "offset=-0.1"),
        ({"duration": 0.0}, "duration=0.0"),
        ({"duration": 1.5}, "1.500 s asked .* but it ends at 1.000 s"),
        ({"duration": 0.01}, "160 samples are shorter"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict, message: str):
    write_audio(tmp_path / "a.wav", tone())
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / "a.wav", **arguments)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(2, 800), r"shape \(2, 800\), expected \(samples,\)"),
        (torch.zeros(800, dtype=torch.int16), "int16"),
        (torch.zeros(0), "0 samples"),
        (torch.zeros(399), "receptive field of 400"),
        (torch.full((800,), math.inf), "index 0"),
    ],
)
def test_check_waveform(waveform: torch.Tensor, message: str):
    with pytest.raises(AudioError, match=f"waveform 3: .*{message}"):
        check_waveform(waveform, "waveform 3")
    good = torch.zeros(400)
    assert check_waveform(good, "waveform 3") is good


def test_threads_that_write_one_file_do_not_take_each_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, replace = tmp_path / "a.wav", os.replace

    def beside_another(*places: Path) -> None:
        monkeypatch.undo()
        thread = threading.Thread(target=write_audio, args=(path, torch.full((8000,), 0.5)))
        thread.start()
        thread.join()
        replace(*places)

    monkeypatch.setattr(os, "replace", beside_another)
    write_audio(path, torch.full((8000,), 0.25))
    assert read_audio(path).unique().tolist() == [0.25] and [file.name for file in tmp_path.iterdir()] == ["a.wav"]


def test_write_is_whole_or_nothing(tmp_path: Path):
    path = tmp_path / "a.wav"
    write_audio(path, tone())
    before = path.read_bytes()
    with pytest.raises(AudioError, match="NaN"):
        write_audio(path, torch.full((800,), math.nan))
    with pytest.raises(AudioError, match="cannot be written"):
        write_audio(path, tone(), subtype="NO_SUCH")
    with pytest.raises(AudioError, match=r"a\.xyz: cannot be written .*\.wav"):
        write_audio(tmp_path / "a.xyz", tone())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("level", [1e-4, 0.3, 1.0, 3.0])
def test_packing_is_exact_to_16_bits_of_the_peak(level: float):
    waveform = level * (tone() + 0.01 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)))
    samples, scale = pack(waveform)
    assert samples.dtype == torch.int16
    assert (unpack(samples, scale) - waveform).abs().max() <= 0.51 * waveform.abs().max() / 32767


def test_packing_keeps_16_bit_audio_bit_for_bit():
    waveform = torch.arange(-32768, 32768).float() / 32768
    assert torch.equal(unpack(*pack(waveform)), waveform)
    assert torch.equal(unpack(*pack(torch.zeros(400))), torch.zeros(400))
    loud = torch.tensor([1.0, 0.25])  # 32768 is no 16-bit integer
    assert torch.allclose(unpack(*pack(loud)), loud, atol=1e-4)


def test_flac_of_unknown_length_is_read(tmp_path: Path):
    path = tmp_path / "piped.flac"
    write_audio(path, tone())
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert audio_info(path).frames == 16_000
    assert torch.allclose(read_audio(path), tone(), atol=1e-4)
    assert len(read_audio(path, offset=0.5, duration=0.25)) == 4_000


def test_counting_an_open_length_ends_where_it_is_told_to(tmp_path: Path):
    path = tmp_path / "piped.flac"
    write_audio(path, torch.zeros(600 * 16_000))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert 30 < audio_info(path, count_to=30).duration < 300
    assert audio_info(path, count_to=601).duration == 600


@pytest.mark.parametrize(("written", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_that_look_the_same_are_found(tmp_path: Path, written: str, asked: str):
    folder = tmp_path / unicodedata.normalize(written, "Zoë")
    folder.mkdir()
    write_audio(folder / unicodedata.normalize(written, "café.wav"), tone())
    assert len(read_audio(tmp_path / unicodedata.normalize(asked, "Zoë") / unicodedata.normalize(asked, "café.wav")))


def test_minutes_of_vorbis_are_written(tmp_path: Path):
    write_audio(tmp_path / "long.ogg", tone(seconds=120))
    assert audio_info(tmp_path / "long.ogg").frames == 120 * 16_000
