"""Whisper's encoder as a family: it hears what stock Whisper hears, utterances as long as they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_encoders import small_encoder, whisper_model
from small_models import batch, shake
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speech_adapters.adapters import PAdapter
from speech_adapters.composition import Fuse, Route
from speech_adapters.encoders import encode, load_encoder
from speech_adapters.encoders.families.whisper import Whisper, log_mel, power_spectrum
from speech_adapters.encoders.shipped import PACKAGED
from speech_adapters.errors import AudioError, CheckpointError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.objectives.hubert import HuBERTObjective, HuBERTObjectiveConfig
from speech_adapters.objectives.units import KMeansUnits
from speech_adapters.objectives.wav2vec2 import Wav2Vec2Objective, Wav2Vec2ObjectiveConfig


def noise(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Utterances of different loudness, padded to the longest, and their lengths."""
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = 0.1**row * torch.randn(length, generator=generator)
    return waveforms, torch.tensor(lengths)


def stock_forward(model: WhisperEncoder, mels: torch.Tensor):
    """Stock Whisper's own forward, which takes as many frames as it has positions: so it is given as many."""
    frames = mels.shape[-1] // 2
    twin = WhisperEncoder(WhisperConfig.from_dict({**model.config.to_dict(), "max_source_positions": frames})).eval()
    weights = model.state_dict()
    twin.load_state_dict({**weights, "embed_positions.weight": weights["embed_positions.weight"][:frames]})
    return twin, twin(mels, output_hidden_states=True)


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_the_feature_extractors_alone_and_padded(mels):
    waveforms, lengths = noise(16000, 11007, 5123, 400)
    extractor = WhisperFeatureExtractor(feature_size=mels)
    padded = log_mel(waveforms, mels, lengths)
    for row, length in enumerate(lengths):
        wave = waveforms[row, :length]
        theirs = extractor(wave.numpy(), sampling_rate=16000, padding="do_not_pad", return_tensors="pt")
        expected = theirs["input_features"][0]
        assert expected.shape[1] == length // 160
        torch.testing.assert_close(log_mel(wave[None], mels)[0], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(padded[row, :, : length // 160], expected, atol=1e-6, rtol=0)


def test_forward_and_gradients_equal_transformers():
    model = whisper_model().requires_grad_(True)
    waveforms, _ = noise(16000, 16000)
    ours = encode(model, waveforms)
    twin, theirs = stock_forward(model, log_mel(waveforms, 16))
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
    for mine, stock in zip(ours.hidden_states[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, stock, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5, rtol=0)
    weights = torch.randn_like(ours.last_hidden_state)
    (ours.last_hidden_state * weights).mean().backward()
    (theirs.last_hidden_state * weights).mean().backward()
    for (name, mine), stock in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name != "embed_positions.weight":
            torch.testing.assert_close(mine.grad, stock.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_an_utterance_sounds_the_same_in_a_padded_batch():
    encoder = small_encoder("whisper").to(torch.float64)
    waveforms, lengths = noise(16000, 11007, 5123, 400)
    waveforms = waveforms.double()
    together = encoder(waveforms, lengths)
    assert together.frame_lengths.tolist() == [50, 34, 16, 1] == together.mask.sum(1).tolist()
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(waveforms[row : row + 1, :length]).last_hidden_state[0]
        assert len(alone) == encoder.frame_lengths(length)
        torch.testing.assert_close(together.last_hidden_state[row, : len(alone)], alone, atol=1e-10, rtol=0)
    assert encoder.receptive_field == 400 and encoder.stride == 320
    assert encoder.frame_centres(3).tolist() == [0, 320, 640]


def test_what_outlasts_the_positions_is_refused():
    encoder = small_encoder("whisper")
    assert encoder.max_samples == 48159
    assert encoder(torch.randn(1, encoder.max_samples)).last_hidden_state.shape[1] == 150
    with pytest.raises(
        AudioError, match=r"an utterance of 3.0 s is longer than Whisper's positions, which end at 3 s"
    ):
        encoder(torch.randn(1, encoder.max_samples + 1))


@pytest.mark.parametrize(("where", "side"), [("cnn_out", "prepend"), ("proj_out", "append"), ("layers_in", "prepend")])
def test_pseudo_frames_move_no_real_frame_in_time(where, side):
    """In attention-free layers a pseudo frame could be seen by its effect on positions alone: there is none."""
    encoder = small_encoder("whisper")
    for index in range(encoder.num_layers):
        torch.nn.init.zeros_(encoder.part(index, "v_proj").weight)
    waveforms, lengths = batch()
    model = SpeechAdapterModel(encoder)
    expected = model(waveforms, lengths)
    model.add_adapter("a", PAdapter(where=where, side=side))
    found = shake(model, 1.0)(waveforms, lengths)
    real = expected.mask
    torch.testing.assert_close(found.features[real], expected.features[real], atol=1e-5, rtol=0)


def test_half_precision_hears_the_spectrogram_in_full():
    encoder = small_encoder("whisper")
    waveforms, lengths = batch()
    full = encoder(waveforms, lengths)
    encoder.model.to(torch.bfloat16)
    half = encoder(waveforms, lengths).last_hidden_state
    assert half.dtype == torch.bfloat16
    likeness = torch.nn.functional.cosine_similarity(half.float(), full.last_hidden_state, dim=-1)
    assert likeness[full.mask].min() > 0.99


def test_checkpoints_of_the_encoder_and_of_the_whole_model_load_alike(tmp_path):
    encoder = whisper_model()
    whole = WhisperForConditionalGeneration(encoder.config)
    whole.model.encoder.load_state_dict(encoder.state_dict())
    encoder.save_pretrained(tmp_path / "encoder")
    whole.model.save_pretrained(tmp_path / "model")
    whole.save_pretrained(tmp_path / "generation")
    (tmp_path / "generation" / "preprocessor_config.json").write_text(json.dumps({"feature_size": 16, "n_fft": 400}))
    loaded = [load_encoder(tmp_path / name) for name in ("encoder", "model", "generation")]
    assert len({one.fingerprint for one in loaded}) == 1 and not any(one.normalize for one in loaded)
    assert isinstance(whole.model, WhisperModel) and loaded[0].family == "whisper" and loaded[0].ctc is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("d_model", 32), ("num_mel_bins", 80), ("max_source_positions", 1500), ("encoder_ffn_dim", 10**9),
     ("encoder_layers", 7), ("encoder_attention_heads", 3), ("encoder_attention_heads", 0)],
)  # fmt: skip
def test_a_config_that_does_not_belong_to_the_weights_is_refused(key, value, tmp_path):
    whisper_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=f"config.json.*{key}"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("feature_size", 80), ("hop_length", 128), ("sampling_rate", 8000)])
def test_a_spectrogram_of_another_kind_is_refused(key, value, tmp_path):
    whisper_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: {key} is {value}; this encoder takes"):
        load_encoder(tmp_path)


def test_waveforms_are_heard_as_they_are_whatever_its_file_says(tmp_path):
    """``WhisperFeatureExtractor`` keeps the key, and passes it over."""
    whisper_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "feature_size": 16}))
    encoder, waveform = load_encoder(tmp_path), 0.01 * torch.randn(1, 16_000)
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path)
    features = extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt", padding=False).input_features
    expected = encoder.model.conv1(features)
    torch.testing.assert_close(encoder.model.conv1(log_mel(waveform, 16)), expected, atol=1e-5, rtol=1e-4)
    assert encoder.normalize is False


def test_an_adapter_folds_into_a_stock_checkpoint_and_opens_in_peft(tmp_path):
    from peft import PeftModel

    waveforms, _ = noise(16000)
    model = SpeechAdapterModel(small_encoder("whisper"))
    model.add_adapter("a", "lora")
    expected = shake(model, 0.05)(waveforms).last_hidden_state
    model.save_adapter("a", tmp_path / "a")
    model.save_folded("a", tmp_path / "folded")
    folded = load_encoder(tmp_path / "folded")
    torch.testing.assert_close(folded(waveforms).last_hidden_state, expected, atol=1e-5, rtol=0)
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path / "folded")
    assert extractor.feature_size == 16 and extractor.hop_length == 160
    peft = PeftModel.from_pretrained(whisper_model(layers=3), tmp_path / "a").eval()
    stock = peft.get_base_model()
    torch.testing.assert_close(encode(stock, waveforms).last_hidden_state, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_mixed_batches_fusion_and_routing_work_as_on_other_families():
    waveforms, lengths = noise(6400, 4800, 6400, 5600, 4000)
    model = SpeechAdapterModel(small_encoder("whisper")).eval()
    for name, kind in zip("abcd", ("elp", "chapter", "lora", PAdapter(side="append")), strict=True):
        model.add_adapter(name, kind)
        shake(model, 0.05)
    choices = ["a", "b", None, "c", "d"]
    mixed = model(waveforms, lengths, adapter=choices)
    for row, choice in enumerate(choices):
        model.set_active(*([] if choice is None else [choice]))
        frames = int(mixed.frame_lengths[row])
        alone = model(waveforms[row : row + 1, : lengths[row]])
        torch.testing.assert_close(mixed.features[row][:frames], alone.features[0], atol=1e-5, rtol=0)
    model.add_adapter("e", "e")
    model.add_adapter("f", "e")
    for composition in (Fuse("e", "f"), Route("e", "f")):
        model.add_fusion(composition)
        model.set_active(composition)
        assert model(waveforms, lengths).features.isfinite().all()


@pytest.mark.parametrize(("kind", "least"), [("int8", 0.99), ("nf4", 0.9)])
def test_it_is_held_in_few_bits(kind, least):
    plain, held = load_encoder("whisper-tiny-en"), load_encoder("whisper-tiny-en", quantize=kind)
    waveforms, lengths = noise(16000, 11000)
    expected, found = plain(waveforms, lengths), held(waveforms, lengths)
    likeness = torch.nn.functional.cosine_similarity(found.last_hidden_state, expected.last_hidden_state, dim=-1)
    assert likeness[expected.mask].mean() > least and held.fingerprint == plain.fingerprint


@pytest.mark.parametrize("objective", ["wav2vec2", "hubert"])
def test_masked_prediction_brings_its_own_mask_embedding(objective):
    waveforms, lengths = noise(16000, 11000)
    model = SpeechAdapterModel(small_encoder("whisper"))
    model.add_adapter("a", "lora")
    model.train_adapter("a")
    if objective == "wav2vec2":
        learnt = Wav2Vec2Objective(Wav2Vec2ObjectiveConfig(negatives=7), model.encoder, model.feature_size)
    else:
        config = HuBERTObjectiveConfig(clusters=4)
        units = KMeansUnits.for_model(model, "mfcc", 4).fit(model, [waveforms])
        learnt = HuBERTObjective(config, model.encoder, model.feature_size, units)
    assert model.encoder.mask_embedding is None
    found = learnt(model, waveforms, lengths, np.random.default_rng(0))
    found.loss.backward()
    assert found.loss.isfinite() and learnt.mask_embedding.grad.abs().sum() > 0


@torch.no_grad()
def test_the_packaged_encoder_is_whisper_tiny_ens_own():
    folder = PACKAGED / "whisper-tiny-en"
    stock, report = WhisperEncoder.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    encoder = load_encoder("whisper-tiny-en")
    assert encoder.num_parameters == 8_208_384 and not encoder.normalize and encoder.num_layers == 4
    waveforms, _ = noise(30 * 16000)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    mels = extractor(waveforms[0].numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
    theirs = stock.eval()(mels).last_hidden_state
    torch.testing.assert_close(encoder(waveforms).last_hidden_state, theirs, atol=1e-4, rtol=1e-4)
    assert Whisper().preprocessor(stock.config, False) == json.loads((folder / "preprocessor_config.json").read_text())


def test_a_graph_s_power_spectrum_is_the_fourier_transform_s(monkeypatch):
    waveforms = torch.randn(2, 4000, dtype=torch.float64)
    waveforms[1, 1000:3000] *= 1e-4
    expected = power_spectrum(waveforms)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(power_spectrum(waveforms), expected, atol=0, rtol=1e-9)


@pytest.mark.gpu
def test_on_a_gpu_attention_under_padding_is_planned_for_no_shape():
    encoder = small_encoder("whisper").cuda().eval()
    waveforms, lengths = torch.randn(2, 32000, device="cuda"), torch.tensor([32000, 20000], device="cuda")
    with torch.profiler.profile() as profile, torch.autocast("cuda", torch.bfloat16):
        encoder(waveforms, lengths)
    operations = {event.key for event in profile.key_averages()}
    assert "aten::scaled_dot_product_attention" in operations
    assert not any("cudnn_attention" in name for name in operations)
