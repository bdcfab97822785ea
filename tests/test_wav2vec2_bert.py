"""w2v-BERT 2.0 as a family: what stock models and their feature extractor make of speech, alone and padded."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from small_encoders import conformer_model, small_encoder
from small_models import shake
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertForCTC

from speech_adapters.adapters import IA3, LoRA, PAdapter
from speech_adapters.composition import Fuse
from speech_adapters.data.windows import Windows
from speech_adapters.encoders import Encoder, encode, load_encoder
from speech_adapters.encoders.families.wav2vec2_bert import filterbank
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.inference.hearing import Stitched, hear
from speech_adapters.inference.recordings import Recording
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.objectives.wav2vec2 import Wav2Vec2Objective, Wav2Vec2ObjectiveConfig
from speech_adapters.tasks.asr import use_own_ctc_head

LENGTHS = (16000, 11007, 5123, 880, 560)
#: Output adapters: none, one layer, two with a width of their own behind another feed-forward.
ADAPTORS = (
    {},
    {"add_adapter": True, "num_adapter_layers": 1},
    {
        "add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 32,
        "use_intermediate_ffn_before_adapter": True,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def speech() -> tuple[torch.Tensor, torch.Tensor]:
    """Utterances of different loudness, padded to the longest, and their lengths."""
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        waveforms[row, :length] = 0.1**row * torch.randn(length, generator=generator)
    return waveforms, torch.tensor(LENGTHS)


def extractor(mels: int = 16) -> SeamlessM4TFeatureExtractor:
    return SeamlessM4TFeatureExtractor(feature_size=mels, num_mel_bins=mels, padding_value=1)


def extracted(waveforms, lengths, mels: int = 16, **options) -> dict[str, torch.Tensor]:
    waves = [wave[:length].numpy() for wave, length in zip(waveforms, lengths, strict=True)]
    return dict(extractor(mels)(waves, sampling_rate=16000, return_tensors="pt", **options))


@pytest.mark.parametrize("mels", [16, 80])
def test_the_filterbank_is_the_feature_extractors_alone_and_padded(mels, speech):
    waveforms, lengths = speech
    theirs = extracted(*speech, mels)
    plain = extracted(*speech, mels, do_normalize_per_mel_bins=False)["input_features"].double()
    padded, frames = filterbank(waveforms, mels, lengths), theirs["attention_mask"].sum(1).tolist()
    assert frames == [49, 33, 15, 2, 1]
    for row, (length, count) in enumerate(zip(LENGTHS, frames, strict=True)):
        alone = filterbank(waveforms[row : row + 1, :length], mels)[0]
        assert alone.shape == (count, 2 * mels)
        torch.testing.assert_close(padded[row, :count], alone, atol=1e-6, rtol=0)
        # The extractor takes means in float32, which costs it the last digit; taken in float64 they are ours.
        close = 3e-5 if count > 1 else 1e-3  # two windows that hardly differ are magnified
        torch.testing.assert_close(alone, theirs["input_features"][row, :count], atol=close, rtol=0)
        bands = plain[row].reshape(-1, mels)[: (length - 400) // 160 + 1]
        exact = (bands - bands.mean(0)) / (bands.var(0) + 1e-7).sqrt()
        torch.testing.assert_close(alone, exact[: 2 * count].reshape(count, -1).float(), atol=close / 3, rtol=0)


def test_silence_and_gradients_pass_the_filterbank():
    assert filterbank(torch.zeros(1, 4000), 80).isfinite().all()
    waveform = torch.randn(1, 4000, requires_grad=True)
    filterbank(waveform, 80).square().sum().backward()
    assert waveform.grad.isfinite().all() and waveform.grad[:, :3900].abs().mean() > 0


@pytest.mark.parametrize("changes", ADAPTORS, ids=["plain", "adaptor", "two-adaptors"])
@pytest.mark.parametrize("padded", [False, True], ids=["one-length", "padded"])
def test_forward_and_gradients_equal_transformers(padded, changes, speech):
    model = conformer_model(**changes).requires_grad_(True)
    twin = copy.deepcopy(model)
    theirs_in = extracted(*speech) if padded else extracted(speech[0][:1], speech[1][:1])
    features, mask = theirs_in["input_features"], theirs_in["attention_mask"] if padded else None
    theirs = twin(features, mask, output_hidden_states=True)
    ours = encode(model, cnn_output=features, frames=None if mask is None else mask.sum(1))
    real = ours.mask if padded else torch.ones(theirs.hidden_states[0].shape[:2], dtype=torch.bool)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
    for mine, stock in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], stock[real], atol=1e-5, rtol=0)
    if padded and changes:  # stock convolutions of the output adapter read what lies behind an utterance
        return
    mine, stock = ours.last_hidden_state, theirs.last_hidden_state
    mine, stock = (mine[real], stock[real]) if padded else (mine, stock)
    torch.testing.assert_close(mine, stock, atol=1e-5, rtol=0)
    weights = torch.randn_like(mine)
    (mine * weights).mean().backward()
    (stock * weights).mean().backward()
    parameters = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if name != "masked_spec_embed":
            torch.testing.assert_close(parameter.grad, parameters[name].grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("changes", ADAPTORS, ids=["plain", "adaptor", "two-adaptors"])
def test_an_utterance_sounds_the_same_in_a_padded_batch(changes, speech):
    encoder = Encoder(conformer_model(**changes), "small", normalize=False).to(torch.float64)
    waveforms, lengths = speech[0].double(), speech[1]
    together = encoder(waveforms, lengths)
    assert together.frame_lengths.tolist() == [49, 33, 15, 2, 1] == together.mask.sum(1).tolist()
    assert together.output_lengths.tolist() == together.output_mask.sum(1).tolist()
    for row, length in enumerate(LENGTHS):
        alone = encoder(waveforms[row : row + 1, :length])
        frames = alone.last_hidden_state.shape[1]
        assert frames == together.output_lengths[row] == encoder.output_lengths(length)
        assert alone.last_hidden_state.shape[2] == encoder.output_size
        torch.testing.assert_close(
            together.last_hidden_state[row, :frames], alone.last_hidden_state[0], atol=1e-9, rtol=0
        )
    assert encoder.receptive_field == 560 and encoder.stride == 320 and encoder.max_samples is None
    assert encoder.frame_centres(3).tolist() == [280, 600, 920]


def test_what_an_utterance_is_padded_to_does_not_reach_the_convolutions(speech):
    """Not even through the layers: silence and noise behind an utterance sound alike."""
    encoder = small_encoder("wav2vec2-bert")
    waveforms, lengths = speech[0].clone(), speech[1]
    expected = encoder(waveforms, lengths)
    for row, length in enumerate(LENGTHS):
        waveforms[row, length:] = torch.randn(max(LENGTHS) - length)
    found = encoder(waveforms, lengths)
    assert torch.equal(found.last_hidden_state[found.mask], expected.last_hidden_state[found.mask])


def test_half_precision_compiling_and_quantisation(speech):
    encoder = small_encoder("wav2vec2-bert", width=128)
    full = encoder(*speech)
    compiled = torch.compile(encode, backend="eager", fullgraph=True)(encoder.model, speech[0][:1])
    torch.testing.assert_close(compiled.last_hidden_state[0], full.last_hidden_state[0], atol=1e-5, rtol=0)
    held = small_encoder("wav2vec2-bert", width=128).quantize("int8")
    assert held.fingerprint == encoder.fingerprint
    encoder.model.to(torch.bfloat16)
    for found in (held(*speech), encoder(*speech)):
        likeness = torch.nn.functional.cosine_similarity(
            found.last_hidden_state.float(), full.last_hidden_state, dim=-1
        )
        assert likeness[full.mask].mean() > 0.99
    assert encoder(*speech).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize("prefix", ["", "wav2vec2_bert."], ids=["bare", "ctc"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 32), ("feature_projection_input_dim", 160), ("intermediate_size", 10**9),
     ("left_max_position_embeddings", 64), ("conv_depthwise_kernel_size", 31), ("num_hidden_layers", 7),
     ("num_attention_heads", 3), ("num_attention_heads", 0), ("position_embeddings_type", "rotary"),
     ("add_adapter", True), ("feature_projection_input_dim", 33)],
)  # fmt: skip
def test_a_config_that_does_not_belong_to_the_weights_is_refused(key, value, prefix, tmp_path):
    model = conformer_model()
    (model if not prefix else Wav2Vec2BertForCTC(model.config)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=f"config.json.*{key}"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("num_mel_bins", 80), ("stride", 1), ("sampling_rate", 8000)])
def test_a_filterbank_of_another_kind_is_refused(key, value, tmp_path):
    conformer_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: {key} is {value}; this encoder takes"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("changes", ADAPTORS[:2], ids=["plain", "adaptor"])
@torch.no_grad()
def test_a_recogniser_keeps_its_own_head_and_vocabulary(changes, speech, tmp_path):
    """As fine-tuned from facebook/w2v-bert-2.0, most of them with an output adapter."""
    stock = Wav2Vec2BertForCTC(conformer_model(**changes).config).eval()
    stock.save_pretrained(tmp_path)
    extractor().save_pretrained(tmp_path)
    tokens = ["[PAD]", "[UNK]", "|", *"abcdefghijklmnopqrstuvwxyz'-."]
    (tmp_path / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    model = SpeechAdapterModel.from_pretrained(tmp_path)
    use_own_ctc_head(model, normalizer="none")
    one = speech[0][1:2, :11007]
    found = model(one)
    theirs = stock(extracted(one, [11007])["input_features"][:, :33]).logits
    torch.testing.assert_close(found.logits, theirs, atol=1e-4, rtol=0)
    assert found.frame_lengths.tolist() == [theirs.shape[1]] and found.hidden_lengths.tolist() == [33]
    assert isinstance(model.head.predict(model.head(found.features, found.frame_lengths))[0], str)


def test_the_first_feed_forward_is_a_target_of_its_own_and_files_open_in_peft(speech, tmp_path):
    from peft import PeftModel

    one = speech[0][:1]
    targets = ("q_proj", "output_dense", "first_intermediate_dense", "first_output_dense")
    for name, config in (("lora", LoRA(targets=targets)), ("ia3", IA3(targets=targets))):
        model = SpeechAdapterModel(small_encoder("wav2vec2-bert"))
        model.add_adapter("a", config)
        expected = shake(model, 0.05)(one).last_hidden_state
        model.save_adapter("a", tmp_path / name)
        model.save_folded("a", tmp_path / f"{name}-folded")
        folded = load_encoder(tmp_path / f"{name}-folded")
        torch.testing.assert_close(folded(one).last_hidden_state, expected, atol=1e-5, rtol=0)
        assert SeamlessM4TFeatureExtractor.from_pretrained(tmp_path / f"{name}-folded").num_mel_bins == 16
        stock = conformer_model(layers=3)
        peft = PeftModel.from_pretrained(stock, tmp_path / name).eval()
        features = filterbank(one, 16)
        torch.testing.assert_close(peft(input_features=features).last_hidden_state, expected, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="choose from q_proj, k_proj.*first_output_dense"):
        model.add_adapter("b", LoRA(targets=("ffn1",)))
    with pytest.raises(ConfigError, match="choose from q_proj, k_proj, v_proj, out_proj, intermediate_dense, output"):
        SpeechAdapterModel(small_encoder()).add_adapter("b", LoRA(targets=targets))


@torch.no_grad()
def test_mixed_batches_and_fusion_work_as_on_other_families(speech):
    waveforms, lengths = speech[0][[0, 1, 2, 1, 2]], speech[1][[0, 1, 2, 1, 2]]
    model = SpeechAdapterModel(small_encoder("wav2vec2-bert")).eval()
    kinds = ("elp", "houlsby", "lora", PAdapter(side="append"))
    for name, kind in zip("abcd", kinds, strict=True):
        model.add_adapter(name, kind)
        shake(model, 0.05)
    choices = ["a", "b", None, "c", "d"]
    mixed = model(waveforms, lengths, adapter=choices)
    for row, choice in enumerate(choices):
        model.set_active(*([] if choice is None else [choice]))
        frames = int(mixed.frame_lengths[row])
        alone = model(waveforms[row : row + 1, : lengths[row]])
        torch.testing.assert_close(mixed.features[row][:frames], alone.features[0], atol=2e-5, rtol=0)
    model.add_adapter("e", "el")
    model.add_adapter("f", "el")
    model.add_fusion(Fuse("e", "f"))
    model.set_active(Fuse("e", "f"))
    assert model(waveforms, lengths).features.isfinite().all()


@torch.no_grad()
def test_behind_an_output_adapter_each_reader_has_frames_of_its_own(speech):
    """L-adapters read the layers and hand on as many frames; what reads the last hidden state has half as many."""
    model = SpeechAdapterModel(Encoder(conformer_model(**ADAPTORS[2]), "small", normalize=False)).eval()
    waveforms, lengths = speech[0][:2], speech[1][:2]
    model.add_adapter("l", "l")
    model.add_adapter("e", "e")
    model.add_adapter("lora", "lora")
    for name, frames, width in (("l", [49, 33], 512), ("e", [13, 9], 32), ("lora", [13, 9], 32)):
        model.set_active(name)
        output = model(waveforms, lengths)
        assert output.frame_lengths.tolist() == frames and output.features.shape[1:] == (frames[0], width)
        assert output.mask.sum(1).tolist() == frames and model.feature_size == width
    mixed = model(waveforms, lengths, adapter=["e", "lora"])
    assert mixed.frame_lengths.tolist() == [13, 9]
    with pytest.raises(ConfigError, match="cannot share a batch"):
        model(waveforms, lengths, adapter=["l", "lora"])
    model.add_adapter("k", "l")
    model.add_fusion(Fuse("l", "k"))
    model.set_active(Fuse("l", "k"))
    assert model(waveforms, lengths).frame_lengths.tolist() == [49, 33]


@pytest.mark.parametrize("changes", ADAPTORS[:2], ids=["plain", "adaptor"])
def test_a_recogniser_is_saved_for_transformers(changes, speech, tmp_path):
    from transformers import AutoModelForCTC, AutoProcessor

    model = SpeechAdapterModel(Encoder(conformer_model(**changes), "small", normalize=False))
    model.add_adapter("a", "lora")
    model.add_head("asr", CTCHead())
    model.train_adapter("a", head="asr")
    shake(model, 0.05)
    model.save_folded("a", tmp_path / "stock", head="asr")
    processor = AutoProcessor.from_pretrained(tmp_path / "stock")
    inputs = processor(audio=speech[0][0].numpy(), sampling_rate=16000, return_tensors="pt")
    stock = AutoModelForCTC.from_pretrained(tmp_path / "stock").eval()
    assert type(processor).__name__ == "Wav2Vec2BertProcessor" and type(stock) is Wav2Vec2BertForCTC
    with torch.no_grad():
        theirs = stock(input_features=inputs["input_features"]).logits
        torch.testing.assert_close(model(speech[0][:1]).logits, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_long_recordings_are_stitched_by_the_frames_that_the_head_reads():
    """9 s in windows of 4: behind an output adapter a frame is 40 ms, and 20 where adapters read the layers."""
    model = SpeechAdapterModel(Encoder(conformer_model(**ADAPTORS[1]), "small", normalize=False))
    samples = 0.3 * torch.randn(9 * 16000, generator=torch.Generator().manual_seed(0))
    windows = Windows(seconds=4.0, context=1.0, voice_activity="none")
    for adapter, stride, frames in ((None, 640, 50), ("l", 320, 99)):
        if adapter is not None:
            model.add_adapter(adapter, adapter)
        model.add_head(f"on-{adapter}", CTCHead())
        assert model.feature_stride == stride and model.feature_lengths(32000) == frames
        recording = Recording("call", samples)
        found = next(hear(model, [recording], lambda one: Stitched(model, model.head, one, windows), windows))
        assert abs(found.logits.shape[1] - 9 * 16000 // stride) <= 2
        words = [w for segment in model.transcribe(samples, windows=windows).segments for w in segment.words]
        assert words and all(0 <= word.start < word.end <= 9.1 for word in words) and words[-1].end > 7.5


def test_masked_prediction_needs_a_feature_for_each_frame(speech):
    model = SpeechAdapterModel(Encoder(conformer_model(**ADAPTORS[1]), "small", normalize=False))
    with pytest.raises(ConfigError, match="hands on fewer frames than it hides"):
        Wav2Vec2Objective(Wav2Vec2ObjectiveConfig(negatives=7), model.encoder, model.feature_size)
