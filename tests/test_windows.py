"""Long recordings: read in blocks, cut in pauses, heard in windows, and put together as if heard at once."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoders import small_encoder, whisper_model

from speech_adapters.data.audio import SAMPLE_RATE, read_audio, stream_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.voice_activity import CHUNK, Energy
from speech_adapters.data.windows import MARGIN, Window, Windows, cut
from speech_adapters.encoders import Encoder
from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.inference.recordings import Recording
from speech_adapters.inference.utterances import stitched
from speech_adapters.model import SpeechAdapterModel

# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [("a.wav", 16_000, 1), ("b.flac", 44_100, 2), ("c.ogg", 8_000, 1), ("d.mp3", 48_000, 2)],
)
@pytest.mark.parametrize("piece", [{}, {"offset": 0.31, "duration": 1.0}])
def test_blocks_are_what_reading_at_once_gives(tmp_path: Path, name: str, rate: int, channels: int, piece: dict):
    samples = 0.1 * np.random.default_rng(0).standard_normal((2 * rate, channels))
    soundfile.write(tmp_path / name, samples, rate)
    channel = "mix" if channels > 1 else None
    whole = read_audio(tmp_path / name, channel=channel, **piece)
    for seconds in (0.07, 0.5, 100.0):
        blocks = list(stream_audio(tmp_path / name, channel=channel, block_seconds=seconds, **piece))
        assert max(map(len, blocks)) <= seconds * SAMPLE_RATE + 2_000  # soxr gives what it held back in one go
        assert torch.equal(torch.cat(blocks), whole)


def test_what_is_wrong_is_found_in_its_block(tmp_path: Path):
    samples = np.zeros(40_000, dtype=np.float32)
    samples[20_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, "FLOAT")
    blocks = stream_audio(tmp_path / "nan.wav", block_seconds=1.0)
    assert len(next(blocks)) == 16_000
    with pytest.raises(AudioError, match=r"nan.wav \(from 1.0 s\): NaN or infinite"):
        next(blocks)
    soundfile.write(tmp_path / "short.wav", samples[:100], 16_000)
    with pytest.raises(AudioError, match="shorter than the encoder's receptive field"):
        list(stream_audio(tmp_path / "short.wav"))
    soundfile.write(tmp_path / "two.wav", np.zeros((8_000, 2)), 16_000)
    with pytest.raises(AudioError, match="2 channels"):
        list(stream_audio(tmp_path / "two.wav"))


# --- cutting ---------------------------------------------------------------------------------------------------------


def speech_of(stretches: list[tuple[float, float]], seed: int = 0) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Noise bursts with faint noise between: (pause, speech) seconds each; the samples and where speech is."""
    rng = np.random.default_rng(seed)
    parts, where, place = [], [], 0
    for pause, speech in stretches:
        for seconds, level in ((pause, 1e-4), (speech, 0.1)):
            size = int(seconds * SAMPLE_RATE)
            if level > 0.01 and size:
                where.append((place, place + size))
            parts.append((level * rng.standard_normal(size)).astype(np.float32))
            place += size
    return np.concatenate(parts), where


def windows_in(samples: np.ndarray, size: int, windows: Windows) -> list[Window]:
    """Cut from blocks of ``size`` samples."""
    return list(cut(torch.from_numpy(samples).split(size), windows))


seconds = st.floats(0.0, 4.0)


@settings(max_examples=40, deadline=None)
@given(
    stretches=st.lists(st.tuples(seconds, seconds), min_size=1, max_size=6),
    longest=st.floats(1.0, 8.0),
    share=st.floats(0.0, 0.25),
    voice_activity=st.sampled_from(["energy", "none"]),
    block=st.integers(1_000, 100_000),
)
def test_windows(stretches, longest, share, voice_activity, block):
    samples, speech = speech_of(stretches)
    if len(samples) < 400:
        return
    asked = Windows(seconds=longest, context=max(share * longest, 0.1), voice_activity=voice_activity)
    windows = windows_in(samples, block, asked)
    total, context = len(samples), round(asked.context * SAMPLE_RATE) // 320 * 320
    for w in windows:
        end = w.start + len(w.waveform)
        assert np.array_equal(w.waveform.numpy(), samples[w.start : end])
        assert len(w.waveform) <= longest * SAMPLE_RATE
        assert 0 <= w.start <= w.first < w.last <= end <= total
        assert w.start % 320 == w.first % 320 == 0 and (w.last % 320 == 0 or w.last == total)
    for one, other in pairwise(windows):
        assert one.last <= other.first, "each sample is kept once"
        if one.last == other.first:  # a cut inside a stretch: both have heard as much beyond it
            assert one.start + len(one.waveform) >= one.last + context and other.start == other.first - context
        else:
            assert other.start == other.first >= one.last + 320, "a pause leaves a frame that nobody hears"
    kept = np.zeros(total, dtype=bool)
    for w in windows:
        kept[w.first : w.last] = True
    if voice_activity == "none":
        assert kept.all()
    elif any(end - begin >= 2 * CHUNK for begin, end in speech):
        assert all(kept[begin:end].all() for begin, end in speech if end - begin >= 2 * CHUNK), "no speech is lost"
    again = windows_in(samples, total, asked)
    assert [(w.start, w.first, w.last, len(w.waveform)) for w in windows] == [
        (w.start, w.first, w.last, len(w.waveform)) for w in again
    ], "blocks do not matter"


def test_stretches_are_cut_in_their_pauses_and_silence_is_not_heard():
    samples, ((_, one), (two, three)) = speech_of([(3.0, 4.0), (2.0, 5.0), (4.0, 0.0)])
    first, second = windows_in(samples, 16_000, Windows(seconds=10.0))
    margin = round(MARGIN * SAMPLE_RATE)
    assert abs(first.first - (3 * SAMPLE_RATE - margin)) <= 2 * CHUNK and abs(first.last - (one + margin)) <= 2 * CHUNK
    assert abs(second.first - (two - margin)) <= 2 * CHUNK and abs(second.last - (three + margin)) <= 2 * CHUNK


def test_a_long_stretch_is_cut_at_its_quietest_moment():
    samples, _ = speech_of([(1.0, 12.0), (1.0, 0.0)])
    quiet = 9 * SAMPLE_RATE
    samples[quiet - 2_400 : quiet + 2_400] *= 0.3  # 10 dB down: no pause
    first, second = windows_in(samples, 16_000, Windows(seconds=10.0, context=1.0))
    assert first.last == second.first and abs(first.last - quiet) <= 2_400
    assert second.start == second.first - SAMPLE_RATE and len(first.waveform) <= 10 * SAMPLE_RATE


def test_a_constant_offset_hides_no_quiet_speech():
    samples, _ = speech_of([(1.0, 2.0), (2.0, 2.0), (2.0, 2.0)])
    samples[7 * SAMPLE_RATE :] *= 0.1
    samples = np.append(samples, np.zeros(6 * SAMPLE_RATE + 7, np.float32))  # ends in silence and in part of a chunk
    plain, shifted = (windows_in(one, 16_000, Windows()) for one in (samples, samples + np.float32(0.03)))
    assert len(plain) == 3
    assert [(w.first, w.last) for w in shifted] == [(w.first, w.last) for w in plain]


def test_energy_tells_no_pauses_where_there_are_none():
    steady = 0.1 * np.random.default_rng(0).standard_normal((100, CHUNK))
    assert Energy()(steady)[0].all()
    assert not Energy()(1e-5 * steady)[0].any()
    assert not Energy()(np.zeros((100, CHUNK)))[0].any()
    assert windows_in(np.zeros(100_000, np.float32), 7_000, Windows()) == []


def test_silero_leaves_torch_its_threads(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("silero_vad", reason="the extra 'vad' is not installed")
    for name in [name for name in sys.modules if name.split(".")[0] == "silero_vad"]:
        monkeypatch.delitem(sys.modules, name)  # as at the first use in a process
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        windows_in(np.zeros(16_000, np.float32), 16_000, Windows(voice_activity="silero"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_silero_finds_speech_and_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    silero = pytest.importorskip("silero_vad", reason="the extra 'vad' is not installed")
    threads = torch.get_num_threads()
    samples, _ = speech_of([(1.0, 3.0), (1.0, 0.0)])
    assert windows_in(samples, 16_000, Windows(voice_activity="silero")) == [], "noise is no speech, however loud"
    assert torch.get_num_threads() == threads
    monkeypatch.setitem(sys.modules, silero.__name__, None)
    with pytest.raises(ConfigError, match=r"speech-adapters\[vad\]"):
        windows_in(samples, 16_000, Windows(voice_activity="silero"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"voice_activity": "webrtc"}, "choose energy, silero or none"),
        ({"seconds": 0.5}, "choose 1 second or more"),
        ({"seconds": float("nan")}, "choose 1 second or more"),
        ({"context": 6.0}, "a quarter of the window's 20 seconds"),
        ({"context": 0.0}, "0.1"),
        ({"pause": 0.2}, "pause=0.2"),
    ],
)
def test_windows_that_cannot_be(changed: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Windows(**changed)


# --- putting together ------------------------------------------------------------------------------------------------


def local_model(family: str = "wav2vec2") -> SpeechAdapterModel:
    """A model whose output hangs on a context of half a second: convolutions, and layers without attention."""
    encoder = small_encoder(family, "pre-norm")
    encoder.normalize = False
    for layer in range(encoder.num_layers):
        for parameter in encoder.part(layer, "out_proj").parameters():
            torch.nn.init.zeros_(parameter)
    model = SpeechAdapterModel(encoder)
    torch.manual_seed(1)
    model.add_head("asr", CTCHead())
    return model.eval()


def heard(model: SpeechAdapterModel, samples: np.ndarray, windows: Windows, **options):
    recording = Recording("call", torch.from_numpy(samples))
    return next(iter(stitched(model, [recording], windows, **options)))


@pytest.mark.parametrize("size", [16_000 * 9 + 57, 16_000 * 9 + 250])
def test_stitched_posteriors_are_those_of_one_forward(size: int):
    model = local_model()
    samples, _ = speech_of([(0.0, 10.0)])
    samples = samples[:size]
    with torch.no_grad():
        whole = model(torch.from_numpy(samples)[None])
    for windows in (
        Windows(seconds=3.0, context=0.75, voice_activity="none"),
        Windows(seconds=4.0, context=0.5, voice_activity="energy"),
    ):
        output = heard(model, samples, windows, batch_seconds=7.0)
        assert output.frame_lengths.tolist() == whole.frame_lengths.tolist()
        torch.testing.assert_close(output.logits, whole.logits, atol=1e-5, rtol=1e-5)
        assert torch.allclose(output.features[0, 0], whole.features[0].mean(0), atol=1e-5)
    short = heard(model, samples, Windows(seconds=3.0, context=0.1, voice_activity="none"))
    assert not torch.allclose(short.logits, whole.logits, atol=1e-5), "a context too short is seen"


def test_pauses_are_sure_silence_on_the_frames_of_the_recording():
    model = local_model()
    samples, ((one, two), (three, four)) = speech_of([(2.0, 2.0), (3.0, 2.0), (2.0, 0.0)])
    output = heard(model, samples, Windows())
    vocabulary = model.head.config.vocabulary
    best = output.logits[0].argmax(-1)
    assert len(best) == model.encoder.frame_lengths(len(samples))
    gap = best[two // 320 + 20 : three // 320 - 20]
    assert set(gap.tolist()) <= {vocabulary.blank_id} and vocabulary.delimiter_id in best[two // 320 :].tolist()
    with torch.no_grad():
        stretch = model(torch.from_numpy(samples[one:two])[None]).logits[0]
    middle = output.logits[0, one // 320 + 30 : two // 320 - 30]
    torch.testing.assert_close(middle, stretch[30 : 30 + len(middle)], atol=1e-5, rtol=1e-5)
    assert four < len(samples)


def test_windows_of_several_recordings_share_batches(monkeypatch: pytest.MonkeyPatch):
    model = local_model()
    sizes: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: (sizes.append(len(a[0])), forward(*a, **k))[1])
    recordings = [Recording(f"call {n}", torch.from_numpy(speech_of([(0.5, n + 1.0)], n)[0])) for n in range(5)]
    model.train()
    together = list(stitched(model, recordings, Windows()))
    assert sizes == [5] and model.training, "modes are put back"
    for recording, output in zip(recordings, together, strict=True):
        alone = next(iter(stitched(model, [recording], Windows())))
        torch.testing.assert_close(output.logits, alone.logits, atol=1e-5, rtol=1e-5)


def test_whisper_hears_in_windows_within_its_positions():
    model = SpeechAdapterModel(Encoder(whisper_model(positions=150), "small-whisper", normalize=False))
    model.add_head("asr", CTCHead())
    samples, _ = speech_of([(0.0, 8.05)])
    with pytest.raises(ConfigError, match=r"small-whisper hears up to 3.0 s at once"):
        heard(model, samples, Windows())
    output = heard(model, samples, Windows(seconds=3.0, context=0.5, voice_activity="none"))
    assert output.logits.shape[1] == model.encoder.frame_lengths(len(samples))
    manifest = Manifest([Utterance("long", Path("long.wav"), 60.0, text="A")], "calls")
    with pytest.raises(AudioError, match=r"longer than the 3.0 s .* such as long; .* through windows"):
        model.head.config.check(manifest, model.encoder)
    model.head.config.check(manifest, model.encoder, any_length=True)
