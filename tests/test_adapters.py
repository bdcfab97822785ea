"""Every method on every family and layer style keeps its promises, equals its formula, and has the published size."""

from __future__ import annotations

import pytest
import torch
from small_encoders import FAMILIES, STYLES, small_encoder, stock_model
from small_models import METHODS, TARGETS, batch, parameters, shake, small_model

from speech_adapters.adapters import (
    EL,
    PRESETS,
    Bottleneck,
    Combine,
    EAdapter,
    FineTuning,
    HeadOnly,
    LAdapter,
    LayerNorms,
    LoRA,
    PAdapter,
    WeightedSum,
    adapter_config,
    preset,
)
from speech_adapters.adapters import METHODS as CONFIGS
from speech_adapters.adapters.bottleneck import BottleneckLayer
from speech_adapters.encoders import Encoder
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel

#: Methods whose start is not the frozen encoder itself, and how far from it they may be.
NEAR_START = {"e": 0.02, "el": 0.02, "houlsby-speech": 0.02, "near-zero": 0.02}
PSEUDO_FRAMES = {"elp", "p-append", "p-proj", "p-proj-append"}


# --- promises ------------------------------------------------------------------------------------------------------


class Frozen:
    """One encoder that many adapters come to and leave, and all that must be found again after each."""

    def __init__(self, family: str, style: str) -> None:
        self.encoder = small_encoder(family, style)
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


@pytest.mark.parametrize("method", METHODS)
def test_trains_under_autocast(method):
    waveforms, lengths = batch()
    model = small_model("wavlm", "pre-norm", method, head=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(waveforms, lengths, targets=TARGETS)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in parameters(model))
    full = model.eval()(waveforms, lengths)
    cosine = torch.nn.functional.cosine_similarity(output.features.float(), full.features, dim=-1)
    assert cosine[full.mask].mean() > 0.98


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
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in parameters(model))
    expected = full.eval()(waveforms, lengths)
    cosine = torch.nn.functional.cosine_similarity(output.features.float(), expected.features, dim=-1)
    assert cosine[expected.mask].mean() > 0.98


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


# --- published sizes -----------------------------------------------------------------------------------------------

E_SIZES = {48: 894_528, 64: 1_189_632, 256: 4_730_880}
BASE_SIZES = {
    "el": ("el", 9_127_436),
    "elp": ("elp", 9_127_436 + 5 * 512),
    "e": ("e", 4_786_176),
    "l": ("l", 4_737_036 + 36_864),
    "l-alone": (LAdapter(), 4_737_036),
    "norms": (LayerNorms(), 36_864),
    "houlsby-speech": ("houlsby-speech", 9_535_488),
    "full": ("full", 85_054_464),
    "pfeiffer": ("pfeiffer", 894_528),
    **{f"bottleneck-{size}": (Bottleneck(size=size), count) for size, count in E_SIZES.items()},
    "houlsby-64": (Bottleneck(size=64, sites=("attention", "feed_forward")), 2_379_264),
    "lora": ("lora", 294_912),
    "lora-attention": (LoRA(targets=("q_proj", "k_proj", "v_proj", "out_proj")), 589_824),
    "lora-ffn-8": (LoRA(targets=("intermediate_dense", "output_dense")), 737_280),
    "lora-ffn": ("lora-ffn", 2 * 737_280),
    "weighted-sum": ("weighted-sum", 13),
    "head-only": ("head-only", 0),
}
LARGE_SIZES = {"el": 24_853_272, "houlsby-speech": 25_423_872, "full": 302_309_376}


def meta_model(family: str, style: str, layers: int, width: int) -> SpeechAdapterModel:
    """A published geometry without memory behind it."""
    with torch.device("meta"):
        stock = stock_model(
            family, style, layers, width, intermediate_size=4 * width, num_attention_heads=width // 64,
            conv_dim=(512,) * 7, conv_kernel=(10, 3, 3, 3, 3, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2),
            num_feat_extract_layers=7, num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16,
        )  # fmt: skip
    encoder = Encoder(stock.to("meta"), "meta")
    encoder._fingerprint = "meta"  # there are no weights to take it from
    return SpeechAdapterModel(encoder)


def counts(model: SpeechAdapterModel, config) -> dict[str, float]:
    with torch.device("meta"):
        model.add_adapter("a", config)
    counted = model.count_parameters()
    model.delete_adapter("a")
    return counted


@pytest.fixture(scope="module")
def wavlm_base():
    return meta_model("wavlm", "post-norm", 12, 768)


@pytest.mark.parametrize("row", BASE_SIZES)
def test_base_size_is_the_published_one(wavlm_base, row):
    config, expected = BASE_SIZES[row]
    total = sum(p.numel() for p in wavlm_base.encoder.parameters())
    counted = counts(wavlm_base, config)
    assert counted["trainable"] == expected
    copies = {"full": 85_054_464, "norms": 36_864, **dict.fromkeys(("el", "elp", "e", "l", "houlsby-speech"), 36_864)}
    assert counted["total"] == total + expected - copies.get(row, 0)  # copies stand in place of the base's own
    assert counted["percent"] == pytest.approx(100 * expected / counted["total"])


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_sizes_are_those_of_wavlm(family):
    model = meta_model(family, "post-norm", 12, 768)
    for row in ("el", "full", "lora-attention"):
        config, expected = BASE_SIZES[row]
        assert counts(model, config)["trainable"] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_large_sizes_are_the_published_ones(family):
    model = meta_model(family, "pre-norm", 24, 1024)
    assert {name: counts(model, name)["trainable"] for name in LARGE_SIZES} == LARGE_SIZES


# --- LoRA and peft -------------------------------------------------------------------------------------------------

LORAS = {
    "lora": LoRA(),
    "rslora": LoRA(variant="rslora", rank=4, alpha=16, targets=("k_proj", "output_dense")),
    "dora": LoRA(variant="dora", targets=("out_proj", "v_proj", "intermediate_dense"), layers=(1, 2)),
}


@pytest.mark.parametrize("variant", LORAS)
@pytest.mark.parametrize(("family", "style"), [("wav2vec2", "post-norm"), ("hubert", "pre-norm")])
def test_a_saved_lora_loads_with_peft_onto_the_stock_model(family, style, variant, tmp_path):
    from peft import PeftModel

    waveforms, _ = batch()
    model = small_model(family, style)
    model.add_adapter("a", LORAS[variant])
    ours = shake(model, 0.1)(waveforms).last_hidden_state
    model.save_adapter("a", tmp_path)
    stock = stock_model(family, style)
    base = stock(model.encoder.normalized(waveforms)).last_hidden_state
    theirs = PeftModel.from_pretrained(stock, tmp_path)(model.encoder.normalized(waveforms)).last_hidden_state
    assert (theirs - base).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", LORAS)
@pytest.mark.parametrize("style", STYLES)
def test_merged_into_wavlm_it_is_a_stock_checkpoint(style, variant, tmp_path):
    from transformers import AutoModel

    waveforms, lengths = batch()
    model = small_model("wavlm", style)
    model.add_adapter("other", LoRA(rank=2))
    shake(model, 0.1)
    model.add_adapter("a", LORAS[variant])
    ours = shake(model, 0.1)(waveforms, lengths)
    model.set_active("other")
    model.merge_adapter("a").save_pretrained(tmp_path)
    stock, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mask = (torch.arange(6400) < lengths[:, None]).long()
    theirs = stock.eval()(model.encoder.normalized(waveforms, lengths), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours.last_hidden_state[ours.mask], theirs[ours.mask], atol=1e-5, rtol=0)
    assert model.active_adapters == ("other",)
    model.set_active("a")
    assert torch.equal(model(waveforms, lengths).features, ours.features)


def test_plain_peft_on_wav2vec2_equals_ours():
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    waveforms, _ = batch()
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    theirs = get_peft_model(stock_model("wav2vec2"), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model = small_model("wav2vec2", "post-norm", "lora")
    model.adapters["a"].load_tensors(get_peft_model_state_dict(theirs))
    weights = torch.randn(64)
    stock_output = theirs(model.encoder.normalized(waveforms)).last_hidden_state
    output = model(waveforms).last_hidden_state
    torch.testing.assert_close(output, stock_output, atol=1e-5, rtol=0)
    (output @ weights).mean().backward()
    (stock_output @ weights).mean().backward()
    gradients = {k.replace(".default", ""): p.grad for k, p in theirs.named_parameters() if "lora" in k}
    ours = model.adapters["a"].tensors()
    assert gradients.keys() == ours.keys()
    named = {id(p): p.grad for p in model.parameters()}
    by_name = dict(zip(ours, (named[id(p)] for p in model.adapters["a"].parameters()), strict=True))
    torch.testing.assert_close(by_name, gradients, atol=1e-6, rtol=1e-4)


def test_lora_on_stock_wavlm_attention_is_dead_and_ours_alive():
    """Why this package calls the projections itself (transformers pull request 48773)."""
    from peft import LoraConfig, get_peft_model

    waveforms, _ = batch()
    stock = stock_model("wavlm")
    with torch.no_grad():
        base = stock(waveforms).last_hidden_state
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    output = get_peft_model(stock, config)(waveforms).last_hidden_state
    if output.requires_grad:
        pytest.skip("this transformers runs WavLM's projections as modules: LoRA trains on its stock attention too")
    torch.testing.assert_close(output, base, atol=1e-5, rtol=0)

    model = small_model("wavlm", "post-norm", "lora")
    base = model(waveforms).features
    model.train_adapter("a")
    ours = shake(model, 0.1)(waveforms).features
    assert (ours - base).abs().max() > 1e-2
    (ours @ torch.randn(64)).mean().backward()
    model.check_alive()


def test_loras_share_a_model(recwarn):
    waveforms, _ = batch()
    model = small_model(layers=12)  # enough targets for peft to shorten their list
    configs = {"a": LoRA(), "b": LoRA(targets=("q_proj", "k_proj"), rank=4), "c": LoRA(variant="dora")}
    alone = {}
    for name, config in configs.items():
        model.add_adapter(name, config)
        alone[name] = shake(model, 0.1)(waveforms).features
    for name in configs:
        model.set_active(name)
        assert torch.equal(model(waveforms).features, alone[name])
    assert model.parameter_groups()["lora"][0].shape == (8, 64)
    model.set_active("a", "b")
    both = model(waveforms).features
    assert not torch.allclose(both, alone["a"]) and not torch.allclose(both, alone["b"])
    model.delete_adapter("a")
    assert model.active_adapters == ("b",) and torch.equal(model(waveforms).features, alone["b"])
    model.add_adapter("a", LoRA(layers=(0,)))
    model.set_active("c")
    assert torch.equal(model(waveforms).features, alone["c"])
    assert not [warning for warning in recwarn if "peft" in str(warning.filename)]


def test_copies_for_fine_tuning_hold_no_lora():
    waveforms, _ = batch()
    model = small_model("wavlm", "pre-norm")
    base = model(waveforms).features
    model.add_adapter("lora", LORAS["lora"])
    shake(model, 0.1)
    model.add_adapter("full", "full")
    assert not any("lora" in name for name in model.adapters["full"].tensors())
    assert torch.equal(model(waveforms).features, base)


# --- configurations and their errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_configs_survive_json(name):
    import json

    config = METHODS[name] if not isinstance(METHODS[name], str) else preset(name)
    assert adapter_config(json.loads(json.dumps(config.to_dict()))) == config
    assert config.method in CONFIGS


def test_presets_take_the_task_and_changed_settings():
    assert preset("el", "speaker").parts[0].activation == "relu" and preset("el").parts[0].activation == "gelu"
    assert preset("lora", rank=16).rank == 16
    assert preset("houlsby", size=64).sites == ("attention", "feed_forward")
    assert preset("elp", frames=3).parts[3].frames == 3
    rates = small_model(method="elp", head=True).learning_rates()
    assert rates == {"e": 1e-3, "l": 1e-3, "norm": 1e-3, "p": 1e-3, "head": 2e-3}
    assert small_model(method="e", head=True).learning_rates({"e": 3e-4})["e"] == 3e-4


BAD = {
    "size": (lambda: Bottleneck(size=0), "bottleneck: size=0; it must be at least 1"),
    "reduction": (lambda: Bottleneck(reduction_factor=0), "reduction_factor=0; it must be at least 1"),
    "rank": (lambda: LoRA(rank=0), "lora: rank=0; it must be at least 1"),
    "width": (lambda: LAdapter(size=-1), "l: size=-1; it must be at least 1"),
    "frames": (lambda: PAdapter(frames=0), "p: frames=0; it must be at least 1"),
    "dropout": (lambda: LoRA(dropout=1.0), "lora: dropout=1.0 is not a probability"),
    "activation": (lambda: Bottleneck(activation="relu6"), "activation 'relu6' is unknown; use one of relu, gelu"),
    "layers": (lambda: Bottleneck(layers=(0, 3)), r"layers=\(0, 3\) do not fit the encoder's layers 0 to 2"),
    "layers-below": (lambda: LoRA(layers=(-4,)), r"lora: layers=\(-4,\) do not fit"),
    "no-layers": (lambda: FineTuning(layers=()), r"fine_tuning: layers=\(\) do not fit"),
    "skip": (lambda: Bottleneck(skip_top=3), "skip_top=3 leaves none of the chosen layers"),
    "sites": (lambda: Bottleneck(sites=("ffn",)), r"sites=\('ffn',\): choose from attention, feed_forward"),
    "no-sites": (lambda: Bottleneck(sites=()), r"sites=\(\): choose from"),
    "norm": (lambda: Bottleneck(layer_norm=True), "layer_norm=True needs init_std"),
    "placement": (lambda: Bottleneck(placement="before"), "placement='before': choose serial, parallel or pfeiffer"),
    "pfeiffer": (
        lambda: Bottleneck(placement="pfeiffer", sites=("attention",)),
        "placement='pfeiffer' belongs to the feed-forward alone",
    ),
    "where": (lambda: PAdapter(where="cnn"), "where='cnn'.*where is cnn_out or proj_out"),
    "side": (lambda: PAdapter(side="left"), "side='left'.*prepend or append"),
    "targets": (lambda: LoRA(targets=("query",)), r"targets=\('query',\); choose from q_proj"),
    "no-targets": (lambda: LoRA(targets=()), r"targets=\(\); choose from"),
    "variant": (lambda: LoRA(variant="qlora"), "variant='qlora'; choose from lora, rslora, dora"),
    "empty": (lambda: Combine(), "Combine: parts is empty"),
    "twice": (lambda: Combine(parts=(LoRA(), LoRA(rank=2))), "Combine: two parts of group 'lora'"),
    "readers": (lambda: Combine(parts=(LAdapter(), WeightedSum())), "l and weights both feed the head"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_settings_that_do_not_fit_are_config_errors(case):
    make, message = BAD[case]
    model = small_model()
    with pytest.raises(ConfigError, match=message):
        model.add_adapter("a", make())
    assert not model.adapters and model.active_adapters == ()


def test_unknown_names_are_config_errors():
    with pytest.raises(ConfigError, match="unknown adapter preset 'houlsbi'. Did you mean 'houlsby'?"):
        preset("houlsbi")
    with pytest.raises(ConfigError, match="task='singing': choose from asr"):
        preset("lora", "singing")
    for make in PRESETS["el"], PRESETS["l"], PRESETS["e"]:
        with pytest.raises(ConfigError, match="task='singing'"):
            make("singing", 3)
    with pytest.raises(ConfigError, match="preset 'lora'.*rang"):
        preset("lora", rang=3)
    with pytest.raises(ConfigError, match="unknown adapter method 'vera'; known: bottleneck"):
        adapter_config({"method": "vera"})
    with pytest.raises(ConfigError, match="lora: unknown key 'rang'; it takes .*rank"):
        adapter_config({"method": "lora", "rang": 3})
    assert HeadOnly().to_dict() == {"method": "head_only", "learning_rate": None}


def test_tensors_that_do_not_fit_are_refused():
    model = small_model(method="lora+l")
    adapter = model.adapters["a"]
    tensors = dict(adapter.tensors())
    with pytest.raises(CheckpointError, match="'x/y' belongs to no part of this adapter"):
        adapter.load_tensors({**tensors, "x/y": torch.zeros(1)})
    first = next(iter(tensors))
    with pytest.raises(CheckpointError, match="missing, unexpected or of another shape"):
        adapter.load_tensors({k: v for k, v in tensors.items() if k != first})
    with pytest.raises(CheckpointError, match="missing, unexpected or of another shape"):
        adapter.load_tensors({**tensors, first: torch.zeros(1, 1)})
