"""Methods beyond the bottleneck and LoRA equal their papers' formulas and ``peft``'s layers; layers; schedules."""

from __future__ import annotations

import warnings

import pytest
import torch
from small_encoders import STYLES, small_encoder, stock_model
from small_models import METHODS, TARGETS, batch, parameters, shake, small_model, two_updates

from speech_adapters.adapters import (
    IA3,
    VARAN,
    AdaLoRA,
    AdapterBias,
    BitFit,
    Bottleneck,
    CNNAdapter,
    Combine,
    Compacter,
    ConvAdapter,
    DeepPrompts,
    FineTuning,
    LAdapter,
    LayerNorms,
    LoRA,
    PiSSA,
    Prefix,
    VeRA,
    WeightedSum,
)
from speech_adapters.adapters.base import choose_layers
from speech_adapters.adapters.conv_adapter import ConvLayer
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads.ctc import CTCHead

ALL = ("q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense")


def with_adapter(config, family="wavlm", style="pre-norm", std=0.1, **changes):
    model = small_model(family, style, **changes)
    model.add_adapter("a", config)
    return shake(model, std)


# --- peft ----------------------------------------------------------------------------------------------------------

PEFT = {
    "ia3": IA3(),
    "ia3-q-out": IA3(targets=("q_proj", "out_proj", "intermediate_dense"), layers="top-2"),
    "vera": VeRA(rank=16),
    "vera-ffn": VeRA(rank=16, targets=("k_proj", "intermediate_dense", "output_dense")),
    "adalora": AdaLoRA(),
    "pissa": PiSSA(targets=ALL, rank=4, layers=(0, -1)),
}


@pytest.mark.parametrize("method", PEFT)
@pytest.mark.parametrize(("family", "style"), [("wav2vec2", "post-norm"), ("hubert", "pre-norm")])
def test_a_saved_adapter_loads_with_peft_onto_the_stock_model(family, style, method, tmp_path):
    from peft import PeftModel

    waveforms, _ = batch()
    model = with_adapter(PEFT[method], family, style)
    ours = model(waveforms).last_hidden_state
    model.save_adapter("a", tmp_path)
    stock = stock_model(family, style)
    normalized = model.encoder.normalized(waveforms)
    base = stock(normalized).last_hidden_state
    theirs = PeftModel.from_pretrained(stock, tmp_path)(normalized).last_hidden_state
    assert (theirs - base).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_pissa_is_pefts_on_a_base_that_stays_as_it_is():
    from peft import LoraConfig, get_peft_model

    waveforms, _ = batch()
    model = small_model("wav2vec2", "post-norm")
    before = model.encoder.fingerprint
    model.add_adapter("a", PiSSA(rank=4))
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa")
    theirs = get_peft_model(stock_model("wav2vec2"), config)
    tensors, generator = dict(theirs.named_parameters()), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, part in model.adapters["a"].named_parts():
            for own, letter in ((part.a, "A"), (part.b, "B")):
                parameter = tensors[f"base_model.model.{name}.lora_{letter}.default.weight"]
                torch.testing.assert_close(own, parameter, atol=1e-5, rtol=0)
                change = 0.1 * torch.randn(own.shape, generator=generator)
                own += change
                parameter += change
    ours = model(waveforms).last_hidden_state
    stock = theirs(model.encoder.normalized(waveforms)).last_hidden_state
    torch.testing.assert_close(ours, stock, atol=2e-5, rtol=0)
    weights = torch.randn(64)
    model.train_adapter("a")
    (model.eval()(waveforms).features @ weights).mean().backward()
    (stock @ weights).mean().backward()
    for name, part in model.adapters["a"].named_parts():
        theirs_grad = tensors[f"base_model.model.{name}.lora_A.default.weight"].grad
        torch.testing.assert_close(part.a.grad, theirs_grad, atol=1e-6, rtol=1e-3)
    model.encoder._fingerprints = ()
    assert model.encoder.fingerprint == before


def test_pissa_of_too_high_a_rank_and_foreign_tensors_are_refused():
    with pytest.raises(ConfigError, match=r"pissa: rank=65 is above what a projection of \(64, 64\) has"):
        small_model().add_adapter("a", PiSSA(rank=65))
    adapter = small_model(method="pissa").adapters["a"]
    with pytest.raises(CheckpointError, match="pissa: tensor .* is missing, unexpected or of another shape"):
        adapter.load_tensors({})


def test_adalora_prunes_to_its_budget_where_it_matters_least():
    from peft import AdaLoraModel, get_peft_model

    waveforms, lengths = batch()
    model = small_model("wav2vec2", "post-norm")
    model.add_adapter("a", AdaLoRA(rank=2, init_rank=4, every=1, warmup=0.1, settle=0.3))
    model.add_head("asr", small_model(head=True).head.config)
    model.train_adapter("a", head="asr")
    adapter, updates = model.adapters["a"], 10
    optimizer = torch.optim.Adam(parameters(model), 1e-3)
    for done in range(updates):
        optimizer.zero_grad()
        output = model(waveforms, lengths, targets=TARGETS)
        output.loss.backward()
        optimizer.step()
        adapter.after_update(done + 1, updates)
    ranks = adapter.ranks()
    assert len(ranks) == 6 and sum(ranks.values()) <= 2 * 6 and len(set(ranks.values())) > 1
    # A run resumed after the last pruning keeps what is pruned.
    again = small_model("wav2vec2", "post-norm")
    again.add_adapter("a", adapter.config)
    resumed = again.adapters["a"]
    resumed.load_tensors(adapter.tensors())
    resumed.load_schedule_state(adapter.schedule_state())
    with torch.no_grad():
        for part in resumed.parts.values():
            part.lora_E += 0.1
    resumed.after_update(10, updates)
    assert resumed.ranks() == ranks
    # The penalty is peft's own.
    theirs = get_peft_model(stock_model("wav2vec2"), adapter.config.peft_config(model.encoder))
    assert isinstance(theirs.base_model, AdaLoraModel)
    own = dict(adapter.tensors())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(own[name.replace(".default", "")])
    grams = [
        p @ p.T if "lora_A" in name else p.T @ p
        for name, p in theirs.named_parameters()
        if "lora_A" in name or "lora_B" in name
    ]
    expected = 0.5 * torch.stack([torch.norm(gram - torch.eye(len(gram))) for gram in grams]).mean()
    torch.testing.assert_close(adapter.penalty(), expected)
    model.train().head.eval()  # its dropout would differ
    trained = model(waveforms, lengths, targets=TARGETS).loss
    scored = model.eval()(waveforms, lengths, targets=TARGETS).loss
    torch.testing.assert_close(trained - adapter.penalty(), scored)


def test_adalora_without_updates_to_prune_in_is_refused_before_the_first():
    model = small_model()
    model.add_adapter("a", AdaLoRA(rank=1, init_rank=3, warmup=0.5, settle=0.49, every=2))
    message = r"of 20 updates warmup=0.5 takes 10 and settle=0.49 the last 10, which leaves none to prune in; lower"
    with pytest.raises(ConfigError, match=message):
        model.adapters["a"].before_update(0, 20)
    model.adapters["a"].before_update(0, 200)
    model.add_adapter("b", "adalora")
    with pytest.raises(ConfigError, match="of 2 updates warmup=0.1 takes 0 and settle=0.3 the last 1"):
        model.adapters["b"].before_update(0, 2)
    model.adapters["b"].before_update(0, 3)


def test_adalora_that_has_no_gradient_is_left_to_the_check_of_what_is_alive():
    model = small_model()
    dead = AdaLoRA(rank=1, init_rank=2, layers=(-1,))
    model.add_adapter("a", Combine(parts=(LAdapter(size=8, layers=(0,)), dead)))  # the head reads layer 0 alone
    model.add_head("asr", CTCHead())
    model.train_adapter("a", head="asr")
    model(*batch(), targets=TARGETS).loss.backward()
    model.adapters["a"].after_update(1, 10)
    with pytest.raises(RuntimeError, match=r"learn nothing: .*lora_E \(no gradient\)"):
        model.check_alive()


# --- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_deep_prompts_equal_longer_sequences_through_the_stock_layers(family, style):
    waveforms, _ = batch()
    model = with_adapter(DeepPrompts(length=4, layers=(0, 2)), family, style, std=1.0)
    stock = stock_model(family, style)
    for index, prompts in model.adapters["a"].prompts.items():
        layer = stock.encoder.layers[int(index)]
        layer.register_forward_pre_hook(
            lambda m, args, kwargs, p=prompts: (
                (torch.cat([p.expand(len(args[0]), -1, -1), args[0]], 1), *args[1:]),
                kwargs,
            ),
            with_kwargs=True,
        )
        layer.register_forward_hook(
            lambda m, args, output: (output[0][:, 4:], *output[1:]) if isinstance(output, tuple) else output[:, 4:]
        )
    with torch.no_grad():
        theirs = stock(model.encoder.normalized(waveforms)).last_hidden_state
        torch.testing.assert_close(model(waveforms).last_hidden_state, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hidden", [None, 16])
def test_prefixes_equal_projected_frames(hidden):
    """A prefix whose keys and values are those of some frames acts as deep prompts of these frames do."""
    waveforms, _ = batch()
    model = with_adapter(DeepPrompts(length=4), std=1.0)
    expected = model(waveforms).features
    prompts, encoder = model.adapters["a"].prompts, model.encoder
    model.add_adapter("p", Prefix(length=4, hidden=hidden))
    with torch.no_grad():
        for index, frames in prompts.items():
            layer = encoder.model.encoder.layers[int(index)]
            normed = layer.layer_norm(frames)
            both = torch.cat([layer.attention.k_proj(normed), layer.attention.v_proj(normed)], dim=-1)
            adapter = model.adapters["p"]
            if hidden is None:
                adapter.flat[index].copy_(both)
            else:  # one hidden unit a frame, driven to saturation, spells out any table
                adapter.table.copy_(torch.eye(4, 64) * 1e3)
                adapter.inner.weight.zero_()[:4, :4] = torch.eye(4)
                adapter.inner.bias.zero_()
                adapter.outer[index].weight.zero_()[:, :4] = both.T
                adapter.outer[index].bias.zero_()
    torch.testing.assert_close(model(waveforms).features, expected, atol=1e-5, rtol=0)


def test_bias_methods_follow_their_formulas():
    waveforms, _ = batch()
    model = with_adapter(BitFit(), "hubert", "pre-norm")
    ours = model(waveforms).last_hidden_state
    stock = stock_model("hubert", "pre-norm")
    with torch.no_grad():
        for key, shift in model.adapters["a"].shifts.items():
            index, name = key.split("_", 1)
            layer = stock.encoder.layers[int(index)]
            owner = next(o for o in (layer, layer.attention, layer.feed_forward) if hasattr(o, name))
            getattr(owner, name).bias += shift
    normalized = model.encoder.normalized(waveforms)
    torch.testing.assert_close(ours, stock(normalized).last_hidden_state, atol=1e-5, rtol=0)

    model = with_adapter(AdapterBias(), "hubert", "pre-norm")
    ours = model(waveforms).last_hidden_state
    stock = stock_model("hubert", "pre-norm")
    for index, shift in model.adapters["a"].shifts.items():
        dense = stock.encoder.layers[int(index)].feed_forward.output_dense
        dense.register_forward_hook(
            lambda m, inputs, output, s=shift: output + (inputs[0] @ s.weight.weight.T + s.weight.bias) * s.vector
        )
    torch.testing.assert_close(ours, stock(normalized).last_hidden_state, atol=1e-5, rtol=0)


def test_cnn_adapters_add_a_hundredth_of_their_twins():
    waveforms, _ = batch()
    model = with_adapter(CNNAdapter(scale=0.5, blocks=(0, -1)), "wav2vec2", "post-norm")
    stock = stock_model("wav2vec2")
    for index, twin in model.adapters["a"].twins.items():
        stock.feature_extractor.conv_layers[int(index)].register_forward_hook(
            lambda m, inputs, output, t=twin: output + 0.5 * t(inputs[0])
        )
    theirs = stock(model.encoder.normalized(waveforms)).last_hidden_state
    torch.testing.assert_close(model(waveforms).last_hidden_state, theirs, atol=1e-5, rtol=0)
    base = model(waveforms)
    for cached in ({"cnn_output": torch.zeros(1, 9, 32)}, {"hidden": base.hidden_states[0], "start_layer": 0}):
        with pytest.raises(ConfigError, match="adapter 'a' acts inside the CNN; start from waveforms"):
            model(**cached)


def test_the_conv_adapter_is_the_published_stack_of_layers():
    torch.manual_seed(0)
    layer = ConvLayer(1024, 512, ConvAdapter(), 1e-5)
    assert sum(p.numel() for p in layer.parameters()) == 141_824
    torch.nn.init.normal_(layer.third.weight)
    frames, mask = torch.randn(2, 9, 1024), torch.arange(9) < torch.tensor([[9], [6]])
    hidden = torch.nn.functional.layer_norm(frames[1:, :6], (1024,)).transpose(1, 2)
    for conv, padding in ((layer.first, 1), (layer.second, 2), (layer.third, 1)):
        hidden = torch.nn.functional.conv1d(hidden, conv.weight, padding=padding, groups=512)
        hidden = hidden.relu() if conv is layer.first else hidden
    gate = torch.sigmoid(torch.relu(hidden.mean(-1) @ layer.squeeze.weight.T) @ layer.excite.weight.T)
    expected = hidden.transpose(1, 2) * gate
    torch.testing.assert_close(layer(frames, mask)[1, :6], expected[0], atol=1e-4, rtol=1e-4)


def test_compacter_multiplies_sums_of_kronecker_products():
    model = with_adapter(Compacter(terms=2, reduction_factor=8, layers=(0,)), std=0.5)
    adapter = model.adapters["a"]
    down, hidden = adapter.down["0_feed_forward"], torch.randn(3, 64)
    weight = sum(torch.kron(adapter.shared[i], (down.left @ down.right)[i]) for i in range(2))
    torch.testing.assert_close(down(hidden, adapter.shared), hidden @ weight + down.bias)


BAD = {
    "conv size": (ConvAdapter(size=7), "conv_adapter: size=7 must divide the encoder's width 64"),
    "conv squeeze": (ConvAdapter(squeeze=65), "squeeze=65 lie between 1 and 64"),
    "terms": (Compacter(terms=5), "compacter: terms=5 must divide the width 64"),
    "sites": (Compacter(sites=("layer",)), r"compacter: sites=\('layer',\); choose from attention, feed_forward"),
    "targets": (IA3(targets=("dense",)), r"ia3: targets=\('dense',\); choose from q_proj"),
    "top": (BitFit(layers="top-4"), "bitfit: layers='top-4'; give indices, 'top-4'.*an encoder of 3 layers"),
    "words": (LayerNorms(layers="all"), "layer_norms: layers='all'; give indices"),
    "sum": (WeightedSum(layers=(5,)), r"weighted_sum: layers=\(5,\) do not fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_do_not_fit_are_config_errors(case):
    config, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        small_model().add_adapter("a", config)
    for make, words in (
        (lambda: Prefix(length=0), "prefix: length=0: must be a whole number, at least 1"),
        (lambda: Prefix(hidden=0), "prefix: hidden=0: must be a whole number, at least 1"),
        (lambda: AdaLoRA(rank=12), "adalora: init_rank=12 must be above rank=12"),
        (lambda: AdaLoRA(warmup=0.7), "adalora: warmup=0.7, settle=0.3; the two shares must leave updates"),
        (lambda: FineTuning(unfrozen_at=0), "fine_tuning: unfrozen_at=0: must be a number, above 0 and at most 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()


# --- layers --------------------------------------------------------------------------------------------------------


def test_layers_by_list_top_and_step():
    assert choose_layers("top-2", 12, "x") == [10, 11]
    assert choose_layers("every-2", 6, "x") == [1, 3, 5] and choose_layers("every-5", 6, "x") == [0, 5]
    assert choose_layers((-1, 0), 6, "x") == [0, 5] and choose_layers(None, 2, "x") == [0, 1]
    encoder = small_encoder()
    configs = (IA3, VeRA, PiSSA, AdaLoRA, LoRA, BitFit, AdapterBias, Prefix, DeepPrompts, ConvAdapter, Compacter)
    for config in (*configs, Bottleneck, LayerNorms, FineTuning, WeightedSum):
        assert config(layers="top-1").build(encoder).first_layer == 2, config
        assert config(layers=(1,)).build(encoder).first_layer == 1, config


@pytest.mark.parametrize("method", ["bitfit", "lora", "prefix", "houlsby", "conv-adapter", "pissa", "lora+l", "full"])
def test_adapter_drop_leaves_the_lowest_layers_to_the_base(method):
    waveforms, lengths = batch()
    model = shake(small_model(method=method))
    model.set_active()
    base = model(waveforms, lengths)
    model.set_active("a")
    whole = model(waveforms, lengths)
    model.set_active("a", skip_layers=2)
    dropped = model(waveforms, lengths)
    assert torch.equal(dropped.hidden_states[2], base.hidden_states[2])
    assert not torch.equal(dropped.hidden_states[3], base.hidden_states[3])
    model.set_active("a")
    assert torch.equal(model(waveforms, lengths).features, whole.features)
    with pytest.raises(ConfigError, match="skip_layers=4: the encoder has 3 layers"):
        model.set_active("a", skip_layers=4)


@pytest.mark.parametrize("method", [LAdapter, VARAN, WeightedSum])
@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_the_weight_of_an_only_layer_need_not_learn(method, layers):
    model = small_model()
    model.add_adapter("a", method(layers=layers))
    model.add_head("asr", CTCHead())
    model.train_adapter("a", head="asr")
    two_updates(model, 1e-2)
    model.check_alive()
    weight = model.adapters["a"].offset if method is VARAN else model.adapters["a"].layer_weights
    assert bool(weight.grad.any()) == (len(layers) > 1)


# --- schedules -----------------------------------------------------------------------------------------------------


def test_gradual_unfreezing_goes_from_the_top_down():
    model = small_model(method="gradual", head=True)
    adapter, waveforms = model.adapters["a"], batch()
    trained = []
    for done in range(8):
        adapter.before_update(done, 8)
        model.zero_grad()
        model(*waveforms, targets=TARGETS).loss.backward()
        trained.append([i for i in range(3) if adapter.layers[str(i)].attention.q_proj.weight.grad is not None])
    assert trained == [[2], [2], [1, 2], [1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    model.check_alive()
    assert not any(p.requires_grad for name, p in adapter.named_parameters() if "gru_rel_pos" in name)


@pytest.mark.parametrize("layers", [None, (0, 2), (1,)])
@pytest.mark.parametrize(("unfrozen_at", "total"), [(0.7, 10), (0.55, 100), (0.01, 10), (1.0, 7)])
def test_every_layer_trains_from_unfrozen_at_on_and_not_before(layers, unfrozen_at, total):
    model = small_model()
    model.add_adapter("a", FineTuning(layers=layers, gradual=True, unfrozen_at=unfrozen_at))
    adapter, whole = model.adapters["a"], []
    for done in range(total + 1):
        adapter.before_update(done, total)
        weights = [layer.attention.q_proj.weight for layer in adapter.layers.values()]
        assert weights[-1].requires_grad
        whole.append(all(weight.requires_grad for weight in weights))
    first = 0 if layers == (1,) else max(1, round(unfrozen_at * total))
    assert whole == [done >= first for done in range(total + 1)]


# --- merging -------------------------------------------------------------------------------------------------------

MERGEABLE = ["dora", "pissa", "adalora", "vera", "ia3", "ia3-all", "bitfit", "layer-norms", "last-2", "lora-all"]


@pytest.mark.parametrize("method", MERGEABLE)
@pytest.mark.parametrize(("family", "style"), [("wavlm", "pre-norm"), ("wav2vec2", "post-norm")])
def test_adapters_fold_into_the_base_and_out_again(family, style, method, tmp_path):
    from transformers import AutoModel

    from speech_adapters.encoders import load_encoder

    waveforms, lengths = batch()
    model = small_model(family, style)
    model.add_adapter("other", "lora")
    model.add_adapter("a", METHODS[method])
    before = {key: tensor.clone() for key, tensor in model.encoder.model.state_dict().items() if "lora_" not in key}
    expected = shake(model, 0.05)(waveforms, lengths)
    model.save_folded("a", tmp_path / "folded")
    stock, report = AutoModel.from_pretrained(tmp_path / "folded", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mask = (torch.arange(6400) < lengths[:, None]).long()
    with torch.no_grad():
        theirs = stock.eval()(model.encoder.normalized(waveforms, lengths), attention_mask=mask).last_hidden_state
    real = expected.mask
    torch.testing.assert_close(expected.last_hidden_state[real], theirs[real], atol=2e-5, rtol=0)
    assert load_encoder(tmp_path / "folded").family == family
    with pytest.raises(ConfigError, match="exists already; choose a new folder"):
        model.save_folded("a", tmp_path / "folded")

    model.fold_adapter("a")
    folded = model(waveforms, lengths)
    torch.testing.assert_close(folded.last_hidden_state[real], expected.last_hidden_state[real], atol=2e-5, rtol=0)
    for call in (lambda: model.fold_adapter("other"), lambda: model.add_adapter("b", "lora"), model.train_adapter):
        with pytest.raises(ConfigError, match="adapter 'a' is folded into the base; call unfold_adapter first"):
            call()
    model.unfold_adapter()
    assert model.active_adapters == ("a",)
    assert torch.equal(model(waveforms, lengths).features, expected.features)
    now = model.encoder.model.state_dict()
    assert all(torch.equal(now[key], before[key]) for key in before)
    with pytest.raises(ConfigError, match="no adapter is folded"):
        model.unfold_adapter()


def test_beside_a_folded_adapter_nothing_acts_twice_or_in_its_place(tmp_path):
    waveforms, _ = batch()
    model = small_model(method="layer-norms", head=True)
    shake(model, 0.05)
    model.add_adapter("b", "layer-norms")
    model.add_adapter("c", "houlsby")
    model.fold_adapter("a")
    for choose in (model.set_active, lambda name: model(waveforms, adapter=[name] * 2)):
        with pytest.raises(ConfigError, match="'a' is folded into the base and acts; call unfold_adapter first"):
            choose("a")
        with pytest.raises(ConfigError, match="'b' puts copies in the place of parts of the base, into which 'a' is"):
            choose("b")
    for above in (None, "c"):
        model.set_active(above)
        model.save_head("asr", tmp_path / str(above))
        model.unfold_adapter()
        model.set_active("a", above)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the features are those that were saved
            model.load_head(tmp_path / str(above), f"of-{above}")
        model.fold_adapter("a")


def test_what_adds_computation_is_not_folded():
    model = small_model(method="houlsby")
    with pytest.raises(ConfigError, match="bottleneck: cannot be folded in"):
        model.fold_adapter("a")
    model.add_adapter("b", "lora")
    model.fold_adapter("b")
    model.delete_adapter("b")
    assert model.folded_adapter is None and list(model.adapters) == ["a"]
