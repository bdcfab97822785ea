"""Exports open elsewhere: stock checkpoints through ``transformers``, LoRA folders through ``peft``, and back."""

from __future__ import annotations

import warnings

import pytest
import torch
from small_encoders import stock_model, whisper_model
from small_models import batch, shake, small_model

from speech_adapters.adapters import LoRA
from speech_adapters.encoders import Encoder, load_encoder
from speech_adapters.errors import ConfigError
from speech_adapters.heads import ClassificationHead, CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.tasks.asr import use_own_ctc_head
from speech_adapters.tasks.predict import head_output

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


def test_the_base_alone_under_a_head_of_its_own(tmp_path):
    from transformers import AutoModelForCTC

    waveforms, _ = batch()
    model = small_model("hubert", "pre-norm")
    loud_head(model, CTCHead())
    stock = AutoModelForCTC.from_pretrained(model.save_folded(None, tmp_path / "stock", head="head")).eval()
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
