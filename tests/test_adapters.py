"""Every method on every family and layer style keeps its promises and equals its formula."""

from __future__ import annotations

import pytest
import torch
from small_encoders import FAMILIES, STYLES, small_encoder, stock_model
from small_models import METHODS, TARGETS, batch, parameters, shake, small_model

from speech_adapters.adapters import EL, Bottleneck, EAdapter, LAdapter, LayerNorms, LoRA, PAdapter, WeightedSum
from speech_adapters.adapters.bottleneck import BottleneckLayer
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel

#: Methods whose start is not the frozen encoder itself, and how far from it they may be.
NEAR_START = {"e": 0.02, "el": 0.02, "houlsby-speech": 0.02, "near-zero": 0.02}
PSEUDO_FRAMES = {"elp", "p-append", "p-proj", "p-proj-append"}


# --- promises ------------------------------------------------------------------------------------------------------


class Frozen:
    """One encoder that many adapters come to and leave, and all that must be found again after each."""

    def __init__(self, family: str, style: str) -> None:
        self.encoder = small_encoder(family, style, layers=2)
        self.stock = self.encoder.model.double()  # a gradient that is zero by nature shows as 1e-18, not as 1e-9
        self.waveforms, self.lengths = batch()[0].double(), batch()[1]
        self.base = SpeechAdapterModel(self.encoder)(self.waveforms, self.lengths)
        self.weights = {key: tensor.clone() for key, tensor in self.stock.state_dict().items()}
        self.tree = self.look()

    def look(self) -> tuple:
        return {name: id(module) for name, module in self.stock.named_modules()}, set(vars(self.stock))


@pytest.fixture(scope="module", params=[(f, s) for f in FAMILIES for s in STYLES], ids="-".join)
def frozen(request):
    return Frozen(*request.param)


@pytest.mark.parametrize("method", METHODS)
def test_starts_as_promised_trains_alone_and_leaves_no_trace(frozen, method):
    waveforms, lengths, base = frozen.waveforms, frozen.lengths, frozen.base
    model = SpeechAdapterModel(frozen.encoder)
    torch.manual_seed(2)
    model.add_adapter("a", METHODS[method])
    model.adapters.double()
    start = model(waveforms, lengths)
    moved = (start.last_hidden_state - base.last_hidden_state)[base.mask].norm()
    moved = (moved / base.last_hidden_state[base.mask].norm()).item()
    if method in PSEUDO_FRAMES:
        assert 1e-3 < moved < 0.5
    elif method in NEAR_START:
        assert 0 < moved < NEAR_START[method]
    else:
        assert moved < (1e-8 if method == "dora" else 1e-12)  # DoRA's magnitudes are kept in float32
    if model.adapters["a"].output_size is None:
        assert torch.equal(start.features, start.last_hidden_state)

    model.add_head("asr", CTCHead())
    model.heads.double()
    model.train_adapter("a", head="asr")
    optimizer = torch.optim.Adam(parameters(model), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(waveforms, lengths, targets=TARGETS).loss.backward()
        optimizer.step()
    model.check_alive()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == {id(p) for p in parameters(model)}
    rounding = {name for name, p in trained.items() if p.grad.abs().max() < 1e-15}
    # Softmax is blind to a constant added to all keys' scores: no attention can learn its key bias.
    assert rounding == {name for name in trained if name.endswith("k_proj.bias")}
    assert bool(rounding) == (method in ("full", "last-2"))

    model.set_head(None)
    model.set_active()
    off = model(waveforms, lengths)
    assert torch.equal(off.last_hidden_state, base.last_hidden_state)
    model.delete_adapter("a")
    assert frozen.look() == frozen.tree
    now = frozen.stock.state_dict()
    assert now.keys() == frozen.weights.keys()
    assert all(torch.equal(now[key], frozen.weights[key]) for key in now)


@pytest.fixture(scope="module", params=FAMILIES)
def padding_safe(request):
    return small_encoder(request.param, "pre-norm")


@pytest.mark.parametrize("method", METHODS)
def test_an_utterance_alone_and_in_a_padded_batch_gives_the_same(padding_safe, method):
    waveforms, lengths = batch()
    model = SpeechAdapterModel(padding_safe)
    model.add_adapter("a", METHODS[method])
    shake(model)
    with torch.no_grad():
        together = model(waveforms, lengths)
        alone = model(waveforms[1:, : lengths[1]])
    frames = int(together.frame_lengths[1])
    assert alone.features.shape[1] == frames == int(alone.frame_lengths[0])
    torch.testing.assert_close(together.features[1, :frames], alone.features[0], atol=1e-4, rtol=0)
    model.delete_adapter("a")


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_gives_the_same_gradients(method):
    waveforms, lengths = batch()
    model = small_model("wavlm", "pre-norm", method, head=True)
    shake(model).train()
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(5)  # dropout
        model(waveforms, lengths, targets=TARGETS).loss.backward()
        gradients.append([p.grad for p in parameters(model)])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


def check_reduced_precision(model, output, reference, waveforms, lengths):
    """Loss in float32, finite gradients, and features in the direction of the reference's in full precision."""
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in parameters(model))
    full = reference.eval()(waveforms, lengths)
    cosine = torch.nn.functional.cosine_similarity(output.features.float(), full.features, dim=-1)
    assert cosine[full.mask].mean() > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_trains_under_autocast(method):
    waveforms, lengths = batch()
    model = small_model("wavlm", "pre-norm", method, head=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(waveforms, lengths, targets=TARGETS)
    check_reduced_precision(model, output, model, waveforms, lengths)


@pytest.mark.parametrize("method", ["elp", "houlsby", "pfeiffer", "lora", "dora", "weighted-sum", "full", "p-proj"])
def test_trains_in_float32_on_a_half_precision_base(method):
    waveforms, lengths = batch()
    full = small_model("wavlm", "pre-norm", method)
    model = small_model("wavlm", "pre-norm")
    model.encoder.model.bfloat16()
    torch.manual_seed(2)
    model.add_adapter("a", METHODS[method])
    model.add_head("asr", CTCHead())
    model.train_adapter("a", head="asr")
    assert {p.dtype for p in parameters(model)} == {torch.float32}
    output = model(waveforms, lengths, targets=TARGETS)
    check_reduced_precision(model, output, full, waveforms, lengths)


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
