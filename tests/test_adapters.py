"""Every method equals its published formula; what all methods promise is in test_matrix.py."""

from __future__ import annotations

import pytest
import torch
from small_encoders import FAMILIES, STYLES, small_encoder, stock_model
from small_models import batch, shake, small_model

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import (
    EL,
    VARAN,
    Bottleneck,
    DeepPrompts,
    EAdapter,
    LAdapter,
    LayerNorms,
    LoRA,
    PAdapter,
    WeightedSum,
)
from speech_adapters.adapters.bottleneck import BottleneckLayer

# --- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["serial", "parallel", "pfeiffer"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bottlenecks_stand_where_the_papers_put_them(family, style, placement):
    """Hooks on the stock modules, run by transformers' own forward, give the same output."""
    waveforms, _ = batch()
    sites = ("feed_forward",) if placement == "pfeiffer" else ("attention", "feed_forward")
    model = small_model(family, style)
    model.add_adapter("a", Bottleneck(placement=placement, sites=sites, scale=0.5, size=8))
    ours = shake(model, 0.3)(waveforms).last_hidden_state
    stock = stock_model(family, style)

    def added(layer, output, index, site):
        adapter = model.adapters["a"].sites[site][str(index)]

        def hook(module, arguments, keywords, result):
            first, rest = (result[0], result[1:]) if isinstance(result, tuple) else (result, None)
            read = first
            if placement == "parallel":
                read = arguments[0] if arguments else keywords["hidden_states"]
            elif placement == "pfeiffer" and style == "pre-norm":  # the plain sum, as documented
                read = first + residual[index]
            elif placement == "pfeiffer":
                read = layer.final_layer_norm(first + arguments[0])
            first = first + 0.5 * adapter.up(torch.relu(adapter.down(read)))
            return first if rest is None else (first, *rest)

        output.register_forward_hook(hook, with_kwargs=True)

    residual = {}
    for index, layer in enumerate(stock.encoder.layers):
        if style == "pre-norm":
            layer.final_layer_norm.register_forward_pre_hook(lambda _, x, i=index: residual.update({i: x[0]}))
        for site in sites:
            added(layer, getattr(layer, site), index, site)
    with torch.no_grad():
        theirs = stock(model.encoder.normalized(waveforms)).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("where", ["cnn_out", "proj_out"])
@pytest.mark.parametrize("side", ["prepend", "append"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pseudo_frames_go_through_the_encoder_and_leave_again(family, side, where):
    waveforms, _ = batch()
    model = small_model(family, "post-norm")
    model.add_adapter("a", PAdapter(where=where, side=side, frames=4, init_std=1.0))
    pseudo = model.adapters["a"].pseudo.detach()
    stock = stock_model(family, "post-norm")

    def extend(features, time):
        extra = pseudo.expand(len(features), -1, -1).transpose(1, time)
        return torch.cat([extra, features] if side == "prepend" else [features, extra], dim=time)

    if where == "cnn_out":
        stock.feature_extractor.register_forward_hook(lambda module, inputs, output: extend(output, 2))
    else:
        projection = stock.feature_projection.projection
        projection.register_forward_hook(lambda module, inputs, output: extend(output, 1))
    with torch.no_grad():
        theirs = stock(model.encoder.normalized(waveforms)).last_hidden_state
        ours = model(waveforms).last_hidden_state
    kept = theirs[:, 4:] if side == "prepend" else theirs[:, :-4]
    torch.testing.assert_close(ours, kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_pseudo_frames_begin_as_what_the_front_end_makes_of_silence(family):
    encoder = small_encoder(family, "pre-norm")
    with torch.no_grad():
        for parameter in encoder.model.feature_extractor.parameters():  # fresh biases are 0, and so is silence
            parameter.add_(0.3 * torch.randn_like(parameter))
        silence = encoder(torch.zeros(1, 16_000), stop_layer=0).cnn_output[:, 20]
        expected = {
            "cnn_out": silence[0],
            "proj_out": encoder.architecture.project(encoder.model, silence[None])[0, 0],
        }
    for where in ("cnn_out", "proj_out", "layers_in"):
        pseudo = PAdapter(where=where, init_std=0).build(encoder).pseudo
        assert torch.equal(pseudo, pseudo[:1].expand_as(pseudo)) and pseudo.std() > 0.1
        if where in expected:
            torch.testing.assert_close(pseudo[0], expected[where], atol=1e-5, rtol=1e-4)
        noisy = PAdapter(where=where, init_std=0.5, frames=400).build(encoder).pseudo
        assert 0.4 < (noisy - pseudo[0]).std() < 0.6


@pytest.mark.parametrize("style", STYLES)
def test_deep_prompts_begin_as_what_each_layer_reads_of_silence(style):
    encoder = small_encoder("wavlm", style)
    with torch.no_grad():
        states = encoder(torch.zeros(1, encoder.receptive_field + 8 * encoder.stride)).hidden_states
    for index, prompts in DeepPrompts(length=2, init_std=0, layers=(0, 2)).build(encoder).prompts.items():
        torch.testing.assert_close(prompts, states[int(index)][0, 4].expand_as(prompts))
        assert not torch.allclose(prompts[0], states[int(index) + 1][0, 4])


@pytest.mark.parametrize("config", [PAdapter(), PAdapter(where="layers_in"), DeepPrompts()])
def test_speech_beside_fresh_frames_is_heard_as_it_was(config):
    """Frames around zero, which are no silence to the encoder, change these states by all of their norm."""
    model = SpeechAdapterModel.from_pretrained("whisper-tiny-en")
    model.add_adapter("p", config)
    waveforms = 0.1 * torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fresh = model(waveforms).last_hidden_state
        model.set_active()
        frozen = model(waveforms).last_hidden_state
    assert 0 < (fresh - frozen).norm() < 0.2 * frozen.norm()


@pytest.mark.parametrize("style", STYLES)
def test_readers_follow_their_formulas(style):
    waveforms, lengths = batch()
    model = small_model("wavlm", style)
    model.add_adapter("l", LAdapter(size=24, activation="relu", layers=(-2, 0)))
    shake(model, 0.5)
    model.add_adapter("sum", WeightedSum())
    with torch.no_grad():
        equal = model(waveforms, lengths).features
        model.set_active("l")
        read = model(waveforms, lengths)
        norm = model.encoder.model.encoder.layer_norm if style == "pre-norm" else torch.nn.Identity()
        adapter, expected = model.adapters["l"], 0
        for path, layer in enumerate((0, 1)):
            inner = torch.relu(adapter.paths[path](norm(read.hidden_states[layer + 1])))
            expected = expected + adapter.layer_weights.softmax(0)[path] * adapter.norms[path](inner)
    torch.testing.assert_close(read.features, expected)
    torch.testing.assert_close(equal, torch.stack([norm(state) for state in read.hidden_states]).mean(0))
    fresh = LAdapter().build(small_encoder("wavlm", style))
    assert torch.equal(fresh.layer_weights, torch.full((3,), 1 / 3))
    assert 0.9e-3 < fresh.paths[0].weight.std() < 1.1e-3


@pytest.mark.parametrize("style", STYLES)
def test_varan_weighs_layers_by_what_each_utterance_holds(style):
    waveforms, lengths = batch()
    model = small_model("wavlm", style)
    model.add_adapter("v", VARAN(size=24, activation="relu", layers=(-2, 0)))
    shake(model, 0.5)
    with torch.no_grad():
        read = model(waveforms, lengths)
        norm = model.encoder.model.encoder.layer_norm if style == "pre-norm" else torch.nn.Identity()
        adapter, posteriors = model.adapters["v"], []
        for row, frames in enumerate(read.frame_lengths.tolist()):
            states = [norm(read.hidden_states[layer + 1][row, :frames]) for layer in (0, 1)]
            logits = torch.stack([u @ h.mean(0) for u, h in zip(adapter.gate, states, strict=True)]) + adapter.offset
            posteriors.append(logits.softmax(0))
            parts = zip(posteriors[-1], states, adapter.paths, adapter.norms, strict=True)
            expected = sum(q * layer_norm(torch.relu(path(h))) for q, h, path, layer_norm in parts)
            torch.testing.assert_close(read.features[row, :frames], expected)
    assert not torch.allclose(*posteriors, atol=1e-3)


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_the_e_adapter_starts_at_seven_percent_of_its_input(scale):
    torch.manual_seed(0)
    frames = scale * torch.randn(100, 768)
    share = BottleneckLayer(768, EAdapter(), 256, 1e-5)(frames).std() / frames.std()
    assert 0.03 < share < 0.12
    wider = BottleneckLayer(768, EAdapter(init_std=0.02), 256, 1e-5)(frames).std()
    assert wider > 0.4  # whatever the input's scale: this start would drown the representation


@pytest.mark.parametrize("method", ["full", "last-2", "layer-norms"])
def test_fine_tuned_copies_act_like_weights_of_the_base(method):
    waveforms, _ = batch()
    model = small_model("hubert", "pre-norm")
    model.add_adapter("a", LayerNorms(layers=(1,)) if method == "layer-norms" else method)
    ours = shake(model)(waveforms).last_hidden_state
    stock = stock_model("hubert", "pre-norm")
    assert (ours - stock(model.encoder.normalized(waveforms)).last_hidden_state).abs().max() > 1e-2
    for name, tensor in model.adapters["a"].state_dict().items():
        place = name.replace("norms.1_", "layers.1.")
        stock.encoder.get_parameter(place).data.copy_(tensor)
    torch.testing.assert_close(ours, stock(model.encoder.normalized(waveforms)).last_hidden_state, atol=1e-5, rtol=0)


def test_layers_choose_where_an_adapter_acts():
    encoder = small_encoder()
    assert Bottleneck(layers=(-1, 0)).build(encoder).layer_indices == [0, 2]
    assert Bottleneck(skip_top=1).build(encoder).layer_indices == [0, 1]
    assert EL().parts[0].build(encoder).layer_indices == [0, 1]
    assert LoRA(layers=(2,)).build(encoder).first_layer == 2
    first = {name: small_model(method=name).first_layer for name in ("elp", "lora", "last-2", "head-only", "p-append")}
    assert first == {"elp": -1, "lora": 0, "last-2": 1, "head-only": 3, "p-append": -1}


def test_dropout_works_in_training_only():
    waveforms, _ = batch()
    for config in (Bottleneck(dropout=0.5), LoRA(dropout=0.5), LoRA(dropout=0.5, variant="dora")):
        model = small_model()
        model.add_adapter("a", config)
        shake(model, 0.1)
        assert torch.equal(model(waveforms).features, model(waveforms).features)
        model.train_adapter("a")
        assert not torch.equal(model(waveforms).features, model(waveforms).features), config
        model.train_adapter()
        model.train()
        assert torch.equal(model(waveforms).features, model(waveforms).features)
