"""Exports open elsewhere: stock checkpoints through ``transformers``, LoRA folders through ``peft``, and back."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_encoders import stock_model, whisper_model
from small_models import batch, shake, small_model

from speech_adapters.adapters import LoRA
from speech_adapters.encoders import Encoder, load_encoder
from speech_adapters.errors import CheckpointError, ConfigError, TextError
from speech_adapters.heads import ClassificationHead, CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.tasks.asr import use_own_ctc_head
from speech_adapters.tasks.predict import head_output
from speech_adapters.text import Vocabulary

ENCODERS = [
    ("wav2vec2", "post-norm"), ("hubert", "pre-norm"), ("hubert", "post-norm"), ("wavlm", "pre-norm"),
    ("wavlm", "post-norm"), ("data2vec-audio", "post-norm"), ("unispeech-sat", "pre-norm"),
]  # fmt: skip


def loud_head(model: SpeechAdapterModel, config, name: str = "head") -> None:
    """A head whose answers differ from frame to frame; special tokens are never the best, as after training."""
    model.add_head(name, config)
    with torch.no_grad():
        for parameter in model.heads[name].parameters():
            torch.nn.init.normal_(parameter, std=1.0)
        if isinstance(config, CTCHead):
            model.heads[name].linear.bias[1:4] = -1e3


def text_of(model: SpeechAdapterModel, waveform) -> str:
    with torch.no_grad():
        return model.eval().head.predict(head_output(model(waveform)))[0]


@pytest.mark.parametrize(("family", "style"), ENCODERS)
def test_a_ctc_model_opens_as_stock_classes_and_pipeline(family, style, tmp_path):
    from transformers import AutoModelForCTC, Wav2Vec2Processor, pipeline

    waveforms, _ = batch()
    model = small_model(family, style)
    model.add_adapter("a", LoRA(rank=4, targets=("q_proj", "v_proj", "output_dense")))
    shake(model, 0.1)
    loud_head(model, CTCHead())
    folder = model.save_folded("a", tmp_path / "stock", head="head")

    stock, report = AutoModelForCTC.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = Wav2Vec2Processor.from_pretrained(folder)
    ours = model.eval()(waveforms[:1])
    inputs = processor(waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    theirs = stock.eval()(**inputs).logits
    torch.testing.assert_close(theirs, ours.logits, atol=1e-4, rtol=1e-4)

    text = text_of(model, waveforms[:1])
    assert " ".join(processor.batch_decode(theirs.argmax(-1))[0].split()) == text and len(text) > 5
    recognise = pipeline("automatic-speech-recognition", str(folder))
    heard = recognise({"raw": waveforms[0].numpy(), "sampling_rate": 16_000})["text"]
    assert " ".join(heard.split()) == text

    again = SpeechAdapterModel(load_encoder(folder))
    use_own_ctc_head(again)
    assert text_of(again, waveforms[:1]) == text


@pytest.mark.parametrize(("family", "style"), ENCODERS[::2])
def test_a_classifier_opens_as_a_stock_class_and_pipeline(family, style, tmp_path):
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

    waveforms, lengths = batch()
    model = small_model(family, style)
    model.add_adapter("a", "bitfit")
    shake(model, 0.1)
    loud_head(model, ClassificationHead(labels=("angry", "calm", "sad"), hidden_size=16))
    folder = model.save_folded("a", tmp_path / "stock", head="head")

    stock = AutoModelForAudioClassification.from_pretrained(folder).eval()
    extract = AutoFeatureExtractor.from_pretrained(folder)
    real = [waveform[:length].numpy() for waveform, length in zip(waveforms, lengths, strict=True)]
    if style == "post-norm":  # under a group norm over time, padding changes what the stock classes hear
        real, waveforms, lengths = real[1:], waveforms[1:, :4800], lengths[1:]
    ours = model.eval()(waveforms, lengths).logits
    inputs = extract(real, sampling_rate=16_000, return_tensors="pt", padding=True)
    torch.testing.assert_close(stock(**inputs).logits, ours, atol=1e-4, rtol=1e-4)

    scored = pipeline("audio-classification", str(folder))({"raw": real[-1], "sampling_rate": 16_000})
    probabilities = ours[-1].softmax(-1)
    assert scored[0]["label"] == ("angry", "calm", "sad")[int(probabilities.argmax())]
    assert scored[0]["score"] == pytest.approx(float(probabilities.max()), abs=1e-4)


@pytest.mark.parametrize("adapter", [None, "head-only"])
def test_the_base_alone_under_a_head_of_its_own(adapter, tmp_path):
    from transformers import AutoModelForCTC

    waveforms, _ = batch()
    model = small_model("hubert", "pre-norm")
    if adapter is not None:
        model.add_adapter(adapter, adapter)
    loud_head(model, CTCHead())
    stock = AutoModelForCTC.from_pretrained(model.save_folded(adapter, tmp_path / "stock", head="head")).eval()
    ours = model.eval()(waveforms[:1])
    theirs = stock(model.encoder.normalized(waveforms[:1])).logits
    torch.testing.assert_close(theirs, ours.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("adapter", "head", "message"),
    [
        ("lora", CTCHead(hidden_size=8), "a stock CTC head is one linear layer, and this one has a hidden layer of 8"),
        ("lora", ClassificationHead(labels=("a", "b"), network="conv"), "network='linear' under pooling='mean'"),
        ("lora", ClassificationHead(labels=("a", "b"), pooling="attentive"), "this one is .* pooling='attentive'"),
        ("houlsby", CTCHead(), "bottleneck: cannot be folded in.*a head that was trained on the base alone"),
        ("el", CTCHead(), "this head reads features of"),
    ],
)
def test_what_no_stock_class_computes_is_refused(adapter, head, message, tmp_path):
    model = small_model("wavlm", "pre-norm")
    model.add_adapter("a", adapter)
    model.add_head("head", head)
    with pytest.raises(ConfigError, match=message):
        model.save_folded(None if adapter == "el" else "a", tmp_path / "stock", head="head")
    assert not list(tmp_path.iterdir())


def test_whisper_has_no_stock_class_with_a_head(tmp_path):
    model = SpeechAdapterModel(Encoder(whisper_model(), "small-whisper", normalize=False))
    for name, head in (("ctc", CTCHead()), ("class", ClassificationHead(labels=("a", "b")))):
        model.add_head(name, head)
        with pytest.raises(ConfigError, match="transformers has no class for Whisper.*the encoder without a head"):
            model.save_folded(None, tmp_path / "stock", head=name)


@pytest.mark.parametrize("method", ["lora", "ia3", "pissa", "vera"])
@pytest.mark.parametrize(("family", "style"), [("wav2vec2", "post-norm"), ("hubert", "pre-norm")])
def test_peft_opens_an_adapter_and_its_head_on_a_ctc_model(family, style, method, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCTC

    waveforms, _ = batch()
    model = small_model(family, style)
    model.add_adapter("a", method)
    shake(model, 0.1)
    loud_head(model, CTCHead())
    folder = model.save_peft("a", tmp_path / "peft", head="head")
    bare = stock_model(family, style)
    stock = AutoModelForCTC.from_config(bare.config)
    getattr(stock, stock.base_model_prefix).load_state_dict(bare.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = PeftModel.from_pretrained(stock, folder).eval()
    logits = theirs(model.encoder.normalized(waveforms[:1])).logits
    torch.testing.assert_close(logits, model.eval()(waveforms[:1]).logits, atol=1e-4, rtol=1e-4)


def test_peft_has_no_such_method(tmp_path):
    model = small_model("hubert", "pre-norm")
    model.add_adapter("a", "houlsby")
    model.add_head("head", CTCHead())
    with pytest.raises(ConfigError, match="bottleneck: peft has no such method"):
        model.save_peft("a", tmp_path / "peft", head="head")


def made_by_peft(folder, *, name="small-wav2vec2-post-norm", bare=False, **options):
    """A ForCTC model (or a bare one) with LoRA of ``peft``, trained as it were, saved by ``peft``."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCTC

    base = stock_model("wav2vec2")
    stock = base
    if not bare:
        torch.manual_seed(1)
        stock = AutoModelForCTC.from_config(base.config)
        stock.wav2vec2.load_state_dict(base.state_dict())
    stock.name_or_path = name
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "output_dense"], **options}
    theirs = get_peft_model(stock, LoraConfig(**config))
    for key, parameter in theirs.named_parameters():
        if "lora_" in key or "modules_to_save" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(folder)
    return theirs.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("variant", ["plain", "rslora", "dora", "some layers", "bare"])
def test_a_lora_made_by_peft_is_taken_over(variant, tmp_path):
    waveforms, _ = batch()
    options = {
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "some layers": {"layers_to_transform": [0, 2]},
        "bare": {"bare": True},
    }.get(variant, {})
    theirs = made_by_peft(tmp_path / "my lora", **options)
    model = small_model("wav2vec2", "post-norm")
    assert model.load_adapter(tmp_path / "my lora") == "my-lora"
    inside = theirs.base_model.model if variant == "bare" else theirs.base_model.model.wav2vec2
    expected = inside(model.encoder.normalized(waveforms)).last_hidden_state
    torch.testing.assert_close(model.eval()(waveforms).last_hidden_state, expected, atol=1e-5, rtol=0)
    model.save_adapter("my-lora", tmp_path / "ours")
    assert model.load_adapter(tmp_path / "ours", "again") == "again"


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*decoder.*self_attn\.q_proj", ["encoder_attn.q_proj"]])
def test_of_a_lora_on_all_of_whisper_the_encoders_part_is_taken_over(targets, tmp_path):
    """The decoder's layers are called as the encoder's are, and its self-attention too."""
    from peft import LoraConfig, get_peft_model
    from public_checkpoints import CHECKPOINTS, build
    from transformers import WhisperForConditionalGeneration

    folder = build(next(one for one in CHECKPOINTS if one.name == "openai/whisper-base"), tmp_path / "whisper")
    stock = WhisperForConditionalGeneration.from_pretrained(folder)
    theirs = get_peft_model(stock, LoraConfig(r=4, target_modules=targets)).eval()
    for key, parameter in theirs.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "lora")
    model = SpeechAdapterModel.from_pretrained(folder)
    if targets != ["q_proj", "v_proj"]:
        with pytest.raises(CheckpointError, match="its LoRA is on a decoder alone"):
            model.load_adapter(tmp_path / "lora")
        return
    with pytest.warns(
        UserWarning, match="beside the LoRA it holds a LoRA of the decoder, which an adapter leaves out"
    ):
        model.load_adapter(tmp_path / "lora")
    for index, layer in enumerate(theirs.base_model.model.model.encoder.layers):
        lora = layer.self_attn.v_proj
        expected = lora.lora_B["default"].weight @ lora.lora_A["default"].weight
        found = {k: t for k, t in model.adapters["lora"].tensors().items() if f"layers.{index}.self_attn.v_proj." in k}
        down, up = (next(t for k, t in found.items() if part in k) for part in ("lora_A", "lora_B"))
        torch.testing.assert_close(up @ down, expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_with_the_head_that_peft_trained(tmp_path):
    waveforms, _ = batch()
    theirs = made_by_peft(tmp_path, modules_to_save=["lm_head"])
    model = small_model("wav2vec2", "post-norm")
    with pytest.warns(UserWarning, match="holds lm_head, which an adapter leaves out; load_head on this folder"):
        model.load_adapter(tmp_path, "a")
    with pytest.raises(TextError, match="vocab.json: no such file"):
        model.load_head(tmp_path)
    Vocabulary.wav2vec2().save(tmp_path)
    with pytest.warns(UserWarning, match="keeps no record of the features"):
        assert model.load_head(tmp_path) == "ctc"
    expected = theirs(model.encoder.normalized(waveforms)).logits
    torch.testing.assert_close(model.eval()(waveforms).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_what_we_write_for_peft_comes_back(tmp_path):
    waveforms, _ = batch()
    model = small_model("hubert", "pre-norm")
    model.add_adapter("a", LoRA(rank=3, targets=("k_proj", "out_proj"), layers=(0, 1)))
    shake(model, 0.1)
    loud_head(model, CTCHead())
    ours = model.eval()(waveforms).logits
    folder = model.save_peft("a", tmp_path / "peft", head="head")
    other = small_model("hubert", "pre-norm")
    other.load_adapter(folder)
    other.load_head(folder)
    torch.testing.assert_close(other.eval()(waveforms).logits, ours, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "facebook/wav2vec2-base"}, "was trained on 'facebook/wav2vec2-base', and this encoder is 'small-"),
        ({"bias": "all"}, "has bias='all', which LoRA here does not support"),
        ({"rank_pattern": {"output_dense": 2}}, "has rank_pattern="),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa'"),
        (
            {"target_modules": ["feature_projection.projection"]},
            "'wav2vec2.feature_projection.projection.lora_A.weight'",
        ),
        (
            {"modules_to_save": ["final_layer_norm"]},
            "final_layer_norm.bias of the encoder was trained beside the LoRA",
        ),
        (
            {"target_modules": ["layers.0.attention.q_proj", "layers.1.attention.v_proj"]},
            "its projections are not the same in each layer",
        ),
    ],
)
def test_what_cannot_be_taken_over_from_peft(options, message, tmp_path):
    made_by_peft(tmp_path, **options)
    model = small_model("wav2vec2", "post-norm")
    with pytest.raises(CheckpointError, match=message):
        model.load_adapter(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lora_alpha": None}, "adapter_config.json has no 'lora_alpha', which peft writes"), ({"r": "8"}, "rank='8'")],
)
def test_settings_that_peft_does_not_write(changes, message, tmp_path):
    made_by_peft(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*{message}"):
        small_model("wav2vec2", "post-norm").load_adapter(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_folders_of_peft(tmp_path):
    made_by_peft(tmp_path)
    model = small_model("wav2vec2", "post-norm")
    with pytest.raises(CheckpointError, match="no lm_head beside its LoRA"):
        model.load_head(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="as peft writes them, cannot be read"):
        model.load_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    made = small_model("wav2vec2", "post-norm", "ia3")
    made.save_adapter("a", tmp_path / "ia3")
    (tmp_path / "ia3" / "adapter.json").unlink()
    with pytest.raises(CheckpointError, match="adapter.json: no such file"):  # the weights say that they had one
        model.load_adapter(tmp_path / "ia3")
    weights = tmp_path / "ia3" / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    with pytest.raises(CheckpointError, match="holds 'IA3' of peft; only LoRA can be imported"):
        model.load_adapter(tmp_path / "ia3")
