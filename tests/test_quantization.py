"""Bases held in 8 and 4 bits: small, near the weights as loaded, and a home for adapters as any other base."""

from __future__ import annotations

import pytest
import torch
from small_encoders import FAMILIES, STYLES, small_encoder
from small_models import METHODS, TARGETS, batch, parameters, shake, small_model

from speech_adapters.encoders import load_encoder, quantization
from speech_adapters.encoders.quantization import LEVELS, QuantizedConv1d, QuantizedLinear, weight_bytes
from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel

KINDS = ("int8", "int4", "nf4")
#: Greatest share of float32's memory, and least cosine between outputs.
MEMORY = {"int8": 0.30, "int4": 0.20, "nf4": 0.20}
LIKENESS = {"int8": 0.999, "int4": 0.95, "nf4": 0.96}


@torch.no_grad()
def features(model):
    return model.eval()(*batch()).features


def likeness(one, other, mask):
    return torch.nn.functional.cosine_similarity(one, other, dim=-1)[mask].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_packaged_encoder_in_few_bits_is_small_and_like_itself(kind):
    waveforms, lengths = batch()
    plain, held = load_encoder("tiny-wavlm"), load_encoder("tiny-wavlm", quantize=kind)
    assert weight_bytes(held.model) <= MEMORY[kind] * weight_bytes(plain.model)
    assert held.fingerprint == plain.fingerprint and held.num_parameters == plain.num_parameters
    assert f"frozen, {kind}" in repr(held)
    with torch.no_grad():
        expected, found = plain(waveforms, lengths), held(waveforms, lengths)
    assert likeness(found.last_hidden_state, expected.last_hidden_state, expected.mask) > LIKENESS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_quantised_in_place(family, style, kind):
    waveforms, lengths = batch()
    plain, held = small_encoder(family, style), small_encoder(family, style).quantize(kind)
    layers = [m for m in held.model.encoder.layers.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 3 * 6
    assert isinstance(held.model.encoder.pos_conv_embed.conv, QuantizedConv1d)
    with torch.no_grad():
        expected, found = plain(waveforms, lengths), held(waveforms, lengths)
    assert likeness(found.last_hidden_state, expected.last_hidden_state, expected.mask) > LIKENESS[kind] - 0.01


def test_codes_are_the_nearest_levels():
    torch.manual_seed(0)
    linear = torch.nn.Linear(100, 60)  # 6000 weights: the last group of 64 is padded
    eight = QuantizedLinear(linear, "int8").weight
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    assert ((eight - linear.weight).abs() <= step / 2 + 1e-7).all()
    for kind, levels in LEVELS.items():
        held = QuantizedLinear(linear, kind)
        groups = torch.nn.functional.pad(linear.weight.detach().flatten(), (0, 16)).view(-1, 64)
        scales = groups.abs().amax(1, keepdim=True).half().float()
        table = torch.tensor(levels)
        nearest = table[((groups / scales).unsqueeze(-1) - table).abs().argmin(-1)] * scales
        torch.testing.assert_close(held.weight, nearest.flatten()[:6000].view(60, 100))
        assert held.codes.numel() == groups.numel() // 2 and held.codes.dtype == torch.uint8


@pytest.mark.parametrize("shape", [(384, 1536), (60, 100)])  # 6000 weights: the last group of 64 is padded
def test_bitsandbytes_reads_our_nf4(shape):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes (the extra gpu) is not installed")
    assert quantization.has_bitsandbytes()
    torch.manual_seed(0)
    held = QuantizedLinear(torch.nn.Linear(*reversed(shape)), "nf4")
    found = quantization._by_bitsandbytes(held.codes, held.scales, "nf4", shape)
    torch.testing.assert_close(found, held.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_is_that_of_the_unfolded_weights_and_keeps_none(kind):
    torch.manual_seed(0)
    held = QuantizedLinear(torch.nn.Linear(64, 32), kind)
    hidden = torch.randn(2, 5, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = held(hidden)
    assert not kept
    (gradient,) = torch.autograd.grad(output.square().sum(), hidden)
    (expected,) = torch.autograd.grad(held.unfolded()(hidden).square().sum(), hidden)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize(
    "method", ["houlsby", "lora", "dora", "pissa", "ia3", "vera", "adalora", "bitfit", "cnn-adapter", "last-2", "elp"]
)
def test_adapters_train_in_float32_and_are_saved_for_the_base_as_loaded(method, kind, tmp_path):
    waveforms, lengths = batch()
    model = SpeechAdapterModel(small_encoder().quantize(kind))
    base = features(model)
    model.add_adapter("a", METHODS[method])
    model.add_head("asr", CTCHead())
    model.train_adapter("a", head="asr")
    assert {p.dtype for p in parameters(model)} == {torch.float32}
    optimizer = torch.optim.Adam(parameters(model), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(waveforms, lengths, targets=TARGETS).loss.backward()
        optimizer.step()
    model.check_alive()
    trained = features(model)
    model.save_adapter("a", tmp_path / "a")
    counted = model.count_parameters()
    model.set_head(None)
    model.delete_adapter("a")
    assert torch.equal(features(model), base)
    model.load_adapter(tmp_path / "a")
    assert torch.equal(features(model), trained)

    plain = small_model(method=method, head=True)
    assert counted == plain.count_parameters()
    plain.load_adapter(tmp_path / "a", name="b")  # the same base, not in few bits
    found = plain(waveforms, lengths)
    assert likeness(found.features, trained, found.mask) > 0.9
    with pytest.raises(ConfigError, match="quantise an encoder once, before adapters are added"):
        model.encoder.quantize(kind)


def test_whispers_cnn_in_few_bits_takes_an_adapter():
    model = SpeechAdapterModel(small_encoder("whisper").quantize("int8"))
    expected = model(*batch()).features
    model.add_adapter("a", "cnn-adapter")
    torch.testing.assert_close(model.eval()(*batch()).features, expected, atol=1e-5, rtol=0)


def test_copies_autocast_and_what_is_refused():
    import pickle

    waveforms, lengths = batch()
    model = SpeechAdapterModel(small_encoder().quantize("nf4"))
    model.add_adapter("a", "lora")
    shake(model)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(waveforms, lengths).features, model(waveforms, lengths).features)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(waveforms, lengths)
    whole = model(waveforms, lengths)
    assert likeness(half.features.float(), whole.features, whole.mask) > 0.98
    with pytest.raises(ConfigError, match="weights in nf4 cannot take an adapter in; load the encoder without"):
        model.fold_adapter("a")
    with pytest.raises(ConfigError, match="quantize='int3': choose int8, int4 or nf4"):
        small_encoder().quantize("int3")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_it_is_the_same_function(kind):
    waveforms, lengths = batch()
    held = small_encoder().quantize(kind)
    expected = held(waveforms, lengths).last_hidden_state
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 rounds the CNN's inputs to ten bits
        found = held.to("cuda")(waveforms.cuda(), lengths.cuda()).last_hidden_state
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
