"""``transcribe``, ``classify``, ``embed`` and ``verify``: results, times, channels, and what cannot be heard."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_models import shake, small_model
from test_decoding import ARPA
from test_windows import local_model, speech_of

from speech_adapters.active.pool_predictions import observe
from speech_adapters.composition import Parallel
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.windows import Window, Windows, cut
from speech_adapters.errors import AudioError, ConfigError, InputError
from speech_adapters.heads import ClassificationHead, CTCHead, SlotsHead, SpeakerHead
from speech_adapters.heads.decoding import BeamSearch, greedy_decode_with_timestamps
from speech_adapters.inference.hearing import Heard, hear_windows
from speech_adapters.inference.recordings import Recording
from speech_adapters.inference.transcripts import Transcriber
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.tasks.asr import evaluate_asr
from speech_adapters.tasks.predict import extract_embeddings, mean_attention, predict
from speech_adapters.text import Vocabulary

# --- transcripts -----------------------------------------------------------------------------------------------------

CHARACTERS = Vocabulary.wav2vec2()


def spelled(path: str, vocabulary: Vocabulary = CHARACTERS) -> torch.Tensor:
    """Logits of a path, a character a frame, ``_`` for the blank; each is 90 % sure."""
    ids = [vocabulary.blank_id if symbol == "_" else vocabulary.tokens.index(symbol) for symbol in path]
    probabilities = torch.full((len(path), len(vocabulary)), 0.1 / (len(vocabulary) - 1))
    probabilities[torch.arange(len(path)), torch.tensor(ids)] = 0.9
    return probabilities.log()


def taken_down(parts: list[tuple[int, str]], beam: BeamSearch | None = None, vocabulary: Vocabulary = CHARACTERS):
    """The transcript of windows that start at frames and say paths."""
    head = CTCHead(vocabulary).build(4)
    transcriber = Transcriber(head, 320, Recording("call", torch.zeros(1), speaker="agent"), 0.5, beam)
    for first, path in parts:
        window = Window(torch.zeros(1), first * 320, first * 320, (first + len(path)) * 320)
        logits = spelled(path, vocabulary)
        transcriber.add(window, Heard(logits, None, torch.zeros(4), len(logits)))
    return transcriber.result(60.0)


@pytest.mark.parametrize("beam", [None, BeamSearch(CHARACTERS, beam_size=16)])
def test_words_have_the_times_of_the_recording_through_cuts_and_pauses(beam: BeamSearch | None):
    # the first two windows meet inside a word; the third comes after a pause
    found = taken_down([(10, "_HH_E"), (15, "L_LO|YOU_"), (100, "_A|B")], beam)
    assert found.text == "HELLO YOU A B" and found.duration == 60.0
    one, two = found.segments
    assert (one.text, two.text, one.speaker) == ("HELLO YOU", "A B", "agent")
    times = [(word.text, round(word.start, 3), round(word.end, 3)) for word in found.words]
    assert times == [("HELLO", 0.22, 0.38), ("YOU", 0.4, 0.46), ("A", 2.02, 2.04), ("B", 2.06, 2.08)]
    assert all(word.confidence == pytest.approx(0.9, abs=1e-3) for word in found.words)
    assert one.confidence == pytest.approx(0.9, abs=1e-3) and (one.start, one.end) == (times[0][1], times[1][2])
    assert json.loads(json.dumps(found.to_dict()))["segments"][1]["words"][1]["text"] == "B"


def test_without_pauses_a_silent_path_parts_segments_between_words_only():
    path = "HI" + "_" * 12 + "|" + "_" * 13 + "YOU" + "_" * 30 + "NG" + "_" * 10 + "|A"
    assert [segment.text for segment in taken_down([(0, path)]).segments] == ["HI", "YOUNG A"]
    long = taken_down([(place * 100, "SO|" + "_" * 97) for place in range(60)])
    assert len(long.segments) == 60 and long.segments[-1].start == pytest.approx(118.0)
    chinese = Vocabulary.from_texts(["你好吗"])
    found = taken_down([(0, "你_好" + "_" * 30 + "吗")], None, chinese)
    assert [segment.text for segment in found.segments] == ["你好", "吗"] and len(found.words) == 3


def test_hotwords_and_times_with_a_language_model(tmp_path: Path):
    pytest.importorskip("flashlight", reason="the extra 'decode' is not installed")
    (tmp_path / "lm.arpa").write_text(ARPA)
    options = {"beam_size": 20, "lm_path": tmp_path / "lm.arpa", "alpha": 0.5, "beta": 0.0}
    path = "THE|KATE"
    plain = taken_down([(5, path)], BeamSearch(CHARACTERS, **options))
    boosted = taken_down([(5, path)], BeamSearch(CHARACTERS, hotwords=["Kate"], **options))
    assert plain.text != "THE KATE" and boosted.text == "THE KATE"
    assert [round(word.start, 2) for word in boosted.words] == [0.1, 0.18]
    for weight, said in ((7, "THE CAR"), (9, "THE CAT")):  # in any case it is the word that the model knows
        for word in ("cat", "Cat", "CAT"):
            beam = BeamSearch(CHARACTERS, hotwords=[word], hotword_weight=weight, **options)
            assert taken_down([(5, "THE|CAR")], beam).text == said, (weight, word)
    with pytest.raises(InputError, match="hotword 'naïve'.*cannot spell"):
        BeamSearch(CHARACTERS, hotwords=["naïve"], **options)
    with pytest.raises(InputError, match="against a language model"):
        BeamSearch(CHARACTERS, hotwords=["Kate"])


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A call of 12 s at 8 kHz: two speakers, one per channel."""
    folder = tmp_path_factory.mktemp("call")
    one, _ = speech_of([(1.0, 3.0), (5.0, 2.0), (1.0, 0.0)], 0)
    two, _ = speech_of([(5.0, 3.0), (4.0, 0.0)], 1)
    soundfile.write(folder / "call.wav", np.stack([one, two], 1)[::2], 8_000)
    write_audio(folder / "one.wav", torch.from_numpy(one))
    write_audio(folder / "two.wav", torch.from_numpy(two))
    return folder


def test_hearing_leaves_every_module_in_its_mode(call: Path):
    model = local_model()
    modes = {name: module.training for name, module in model.named_modules()}
    model.transcribe(call / "one.wav")
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_transcribe_takes_paths_arrays_and_lists(call: Path):
    model = local_model()
    path = call / "one.wav"
    samples, _ = soundfile.read(path, dtype="float32")
    first = model.transcribe(path)
    assert first.name == str(path) and first.duration == 12.0 and first.text
    forms = [str(path), samples, torch.from_numpy(samples), samples.astype(np.float64)]
    assert [found.segments for found in model.transcribe(forms)] == [first.segments] * 4
    # one forward over each stretch says the same, at the same times
    (one, *_), windows = first.segments, cut(torch.from_numpy(samples).split(16_000))
    window = next(windows)
    with torch.no_grad():
        output = model(window.waveform[None])
    alone = greedy_decode_with_timestamps(output.logits, output.frame_lengths, CHARACTERS)[0]
    assert alone.text.startswith(one.text) and one.start == pytest.approx(alone.words[0].start + window.start / 16_000)


def test_channels_are_speakers_mixed_or_named(call: Path):
    model = local_model()
    with pytest.raises(AudioError, match=r'call.wav: 2 channels; .*speakers=\("agent", "customer"\)'):
        model.transcribe(call / "call.wav")
    both = model.transcribe(call / "call.wav", speakers=("agent", "customer"))
    assert {segment.speaker for segment in both.segments} == {"agent", "customer"}
    assert [s.start for s in both.segments] == sorted(s.start for s in both.segments)
    alone = model.transcribe(call / "call.wav", channel=1)
    own = [segment for segment in both.segments if segment.speaker == "customer"]
    assert [segment.text for segment in own] == [segment.text for segment in alone.segments]
    assert all(4.7 < segment.start < segment.end < 8.3 for segment in own)
    assert model.transcribe(call / "call.wav", channel="mix").text
    for options, message in (
        ({"speakers": ("agent",)}, "2 channels, but 1 name of speakers"),
        ({"speakers": ("a", "a")}, "give different names"),
        ({"speakers": "agent"}, "give different names"),
        ({"speakers": ("a", "b"), "channel": 0}, "not both"),
        ({"channel": 2}, "channel=2 does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            model.transcribe(call / "call.wav", **options)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("nowhere.wav", "nowhere.wav: no such audio file"),
        ([], "no audio was given"),
        ([3], "waveform 0: a int; give a path, or samples"),
        (np.zeros(16_000, np.int16), "waveform 0: torch.int16 samples, expected floating point"),
        (np.zeros((2, 16_000), np.float32), r"waveform 0: shape \(2, 16000\)"),
        (np.full(16_000, np.nan, np.float32), "waveform 0: NaN or infinite samples"),
        (np.zeros(100, np.float32), "waveform 0: 100 samples are shorter"),
        (torch.full((16_000,), 3000.0), "amplitudes up to 3000"),
    ],
)
def test_audio_that_cannot_be_heard(audio, message: str):
    with pytest.raises(InputError, match=message):
        local_model().transcribe(audio)


def test_the_head_must_fit_what_is_asked():
    samples = torch.from_numpy(speech_of([(0.0, 1.0)])[0])
    model = small_model()
    with pytest.raises(ConfigError, match="transcribing needs a CTC head, and no head is active"):
        model.transcribe(samples)
    model.add_head("asr", CTCHead())
    with pytest.raises(ConfigError, match=r"needs a head of classes, and head 'asr' \(ctc\) is active"):
        model.classify(samples)
    with pytest.raises(ConfigError, match="needs a speaker head, and head 'asr'"):
        model.verify(samples, samples)
    assert model.transcribe(torch.zeros(16_000)).segments == ()
    model.add_adapter("a", "lora")
    model.set_active(Parallel("a"))
    with pytest.raises(ConfigError, match=r"Parallel\('a'\) has several outputs; hear with one of its branches"):
        model.transcribe(samples)
    model.set_active()
    model.set_head(None)
    with pytest.raises(AudioError, match="waveform 0: no speech found in 1.0 s by voice activity 'energy'"):
        model.embed(torch.zeros(16_000))


# --- one answer a recording ------------------------------------------------------------------------------------------


def test_classes_of_long_recordings_are_those_of_the_whole_under_mean_pooling():
    model = local_model()
    samples = torch.from_numpy(speech_of([(0.0, 9.0)])[0])
    windows = Windows(seconds=4.0, context=1.0, voice_activity="none")
    torch.manual_seed(0)
    model.add_head("emotion", ClassificationHead(labels=("angry", "happy", "sad")))
    model.add_head("intent", SlotsHead(slots={"action": ("on", "off"), "object": ("lamp", "heat")}))
    model.eval()
    for head in ("emotion", "intent"):
        model.set_head(head)
        whole = model.classify(samples, windows=Windows(seconds=20.0, voice_activity="none"))
        parts = model.classify(samples, windows=windows)
        with torch.no_grad():
            logits = model(samples[None]).logits[0]
        if head == "emotion":
            assert [*whole.probabilities.values()] == pytest.approx(sorted(logits.softmax(0).tolist(), reverse=True))
            assert whole.label == next(iter(whole.probabilities)) == ("angry", "happy", "sad")[int(logits.argmax())]
        else:
            assert set(whole.probabilities) == {"action=on", "action=off", "object=lamp", "object=heat"}
            assert sum(whole.probabilities.values()) == pytest.approx(2.0)
        assert parts.label == whole.label
        for name, value in whole.probabilities.items():
            assert parts.probabilities[name] == pytest.approx(value, abs=0.02), "context is heard twice, else alike"


def test_embeddings_verification_and_calibration(call: Path, tmp_path: Path):
    model = local_model()
    torch.manual_seed(0)
    model.add_head("speaker", SpeakerHead(speakers=("a", "b"), network="linear", pooling="mean", embedding_size=8))
    model.eval()
    samples = torch.from_numpy(speech_of([(0.0, 2.0)])[0])
    with torch.no_grad():
        expected = model(samples[None]).embedding[0]
    torch.testing.assert_close(model.embed(samples, windows=Windows(voice_activity="none")), expected)
    one, two = call / "one.wav", call / "two.wav"
    embeddings = model.embed([one, two])
    plain = model.verify(one, two)
    assert plain.score == pytest.approx(float(torch.cosine_similarity(*embeddings, dim=0))) and plain.llr is None
    assert model.verify([one, two], two).score > plain.score, "the mean of both is nearer"
    model.head.config.calibration = Calibration(2.0, -1.0)
    model.save_head("speaker", tmp_path)
    loaded = SpeechAdapterModel(model.encoder)
    loaded.load_head(tmp_path)
    assert loaded.verify(one, two).llr == pytest.approx(2 * plain.score - 1, abs=1e-5)
    assert loaded.verify(one, two, calibration=Calibration(1.0, 5.0)).llr == pytest.approx(plain.score + 5, abs=1e-5)


# --- many requests, manifests, pools ---------------------------------------------------------------------------------


def test_a_window_is_heard_whole_by_who_reads_the_layers_below_an_output_adapter():
    model = small_model("wav2vec2", method="l", add_adapter=True)
    model.set_active(None)
    window = Window(torch.from_numpy(speech_of([(0.0, 1.0)], 3)[0]), 0, 0, 16_000)
    chosen = hear_windows(model, [window], ["x"], adapter=["a"])[0]
    model.set_active("a")
    assert chosen.frames == hear_windows(model, [window], ["x"])[0].frames == model.feature_lengths(16_000)


def test_a_window_below_the_receptive_field_is_named():
    model = small_model("wav2vec2-bert")
    assert model.encoder.receptive_field > 400
    with pytest.raises(AudioError, match="b.wav: 25.0 ms are shorter than the encoder's receptive field"):
        hear_windows(model, [Window(torch.zeros(n), 0, 0, n) for n in (8000, 400)], ["a.wav", "b.wav"])


def test_windows_of_requests_with_adapters_and_heads_of_their_own_share_a_batch():
    model = shake(small_model(method="lora", head=True))
    model.add_head("other", CTCHead(Vocabulary.from_texts(["ab c"])))
    model.eval()
    samples = [torch.from_numpy(speech_of([(0.0, length)], 3)[0]) for length in (1.0, 1.5)]
    windows = [Window(part, 0, 0, len(part)) for part in samples]
    mixed = hear_windows(model, windows, ["x", "y"], adapter=["a", None], head=["asr", "other"])
    for number, (adapter, head) in enumerate([("a", "asr"), (None, "other")]):
        model.set_active(adapter)
        model.set_head(head)
        alone = hear_windows(model, [windows[number]], ["x"])[0]
        torch.testing.assert_close(mixed[number].logits, alone.logits, atol=1e-4, rtol=1e-4)


def test_manifests_and_pools_are_heard_through_the_same_windows(call: Path):
    model = local_model()
    manifest = Manifest(
        [
            Utterance("one", call / "one.wav", 12.0, text="A B", speaker="s"),
            Utterance("left", call / "call.wav", 6.0, offset=3.0, channel=0, text="C", speaker="t"),
        ],
        "calls",
    )
    windows = Windows(seconds=4.0, context=0.5)
    texts = predict(model, manifest, windows=windows, progress=False).values
    assert texts[0] == model.transcribe(call / "one.wav", windows=windows).text
    scored = evaluate_asr(model, manifest, windows=windows, progress=False).result
    assert [score.hypothesis for score in scored.utterances] == texts
    pool = observe(model, manifest, windows=windows)
    assert pool.guesses == tuple(texts) and pool.embeddings.shape == (2, 64)
    assert all(math.isfinite(value) for values in pool.uncertainty.values() for value in values)
    with pytest.raises(ConfigError, match="gradients need each utterance in one forward"):
        observe(model, manifest, windows=windows, gradients=True)
    with pytest.raises(ConfigError, match="of whole utterances"):
        predict(model, manifest, windows=windows, cache=call / "cache")
    with pytest.raises(ConfigError, match="leave out the windows"):
        mean_attention(model, manifest, windows=windows)
    model.set_head(None)
    embedded = extract_embeddings(model, manifest, windows=windows, progress=False)
    torch.testing.assert_close(embedded.vectors[0], model.embed(call / "one.wav", windows=windows))
