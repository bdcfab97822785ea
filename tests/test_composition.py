"""Adapters together: laws of averages, fusion and routing, one adapter a sample, branches, and what is refused."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoders import small_encoder
from small_models import METHODS, TARGETS, batch, parameters, small_model, two_updates

from speech_adapters.adapters import IA3, Bottleneck, LoRA, PAdapter, preset
from speech_adapters.composition import Average, Fuse, FusionConfig, Parallel, Route, RouterConfig, Stack
from speech_adapters.composition.blocks import composition_from_dict, names_of, trainable_in, trained_names
from speech_adapters.composition.fusion import FusionLayer
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.heads.speaker import SpeakerHead
from speech_adapters.model import SpeechAdapterModel

MIXED = [name for name in METHODS if name not in ("full", "last-2", "gradual", "hybrid")]  # these replace layers
FUSED = ["elp", "el", "e", "houlsby", "pfeiffer", "parallel", "attention-parallel", "weighted-sum"]


def drawer(*kinds, style="pre-norm", head=False, **changes):
    """A model in eval mode with adapters "a", "b", ... of the kinds, each away from its start in its own way."""
    model = small_model("wavlm", style, **changes)
    for name, kind in zip("abcdef", kinds, strict=False):
        torch.manual_seed(ord(name))
        model.add_adapter(name, METHODS.get(kind, kind) if isinstance(kind, str) else kind)
        with torch.no_grad():
            for parameter in model.adapters[name].parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    if head:
        model.add_head("asr", CTCHead())
    return model.eval()


@torch.no_grad()
def features(model, value):
    model.set_active(value)
    return model(*batch()).features


# --- values --------------------------------------------------------------------------------------------------------


@given(st.recursive(st.just("leaf"), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=6), st.data())
@settings(max_examples=50, deadline=None)
def test_a_composition_prints_as_the_python_that_makes_it_and_survives_json(tree, data):
    count = iter(range(100))

    def build(node):
        if node == "leaf":
            return f"adapter{next(count)}"
        parts = [build(child) for child in node]
        kind = data.draw(st.sampled_from([Stack, Average, Fuse, Route]))
        if kind is Average and len(parts) > 1:
            return Average(*parts, weights=[2.0] + [-1.0 / (len(parts) - 1)] * (len(parts) - 1))
        return kind(*parts)

    value = build(tree)
    if value == "adapter0":
        return
    assert eval(repr(value)) == value and hash(eval(repr(value))) == hash(value)
    assert composition_from_dict(json.loads(json.dumps(value.to_dict()))) == value
    assert len(names_of(value)) == next(count)
    assert set(trained_names(value)) <= set(names_of(value))
    assert all(isinstance(inner, Fuse | Route) for inner in trainable_in(value))


def test_what_cannot_be_composed_is_said_when_it_is_written():
    for wrong, message in (
        (lambda: Fuse(), r"Fuse\(\): give at least one"),
        (lambda: Stack("a", 3), "members are names of adapters and compositions, not 3"),
        (lambda: Stack("a", Fuse("b", "a")), "each name may occur once"),
        (lambda: Average("a", Parallel("b", "c")), "Parallel gives several outputs"),
        (lambda: Parallel("a", "a"), "each branch may occur once"),
        (lambda: Average("a", "b", weights=(1,)), "1 weight for 2 members"),
        (lambda: Average("a", "b", weights=(0.5, 0.6)), "the weights sum to 1.1; they must sum to 1"),
        (lambda: composition_from_dict({"kind": "blend", "members": ["a"]}), "unknown composition 'blend'"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong()


# --- average -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MIXED)
def test_averages_of_one_and_of_equals_are_the_adapter(kind):
    model = drawer(kind, kind)
    model.adapters["b"].load_tensors(model.adapters["a"].tensors())
    alone = features(model, "a")
    torch.testing.assert_close(features(model, Average("a")), alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(features(model, Average("a", "b", weights=(-0.5, 1.5))), alone, atol=1e-5, rtol=0)


def test_an_average_of_linear_places_is_the_average_of_weights():
    model = drawer(LoRA(rank=2), LoRA(rank=2))
    model.average_adapters("c", {"a": 0.25, "b": 0.75}, method="svd", rank=4)
    averaged = features(model, "c")
    torch.testing.assert_close(features(model, Average("a", "b", weights=(0.25, 0.75))), averaged, atol=1e-4, rtol=0)


def test_averages_refuse_what_has_no_sum():
    model = drawer("full", "lora", "el", "p-append")
    for value, message in (
        (Average("a", "b"), "fine-tuned layers stand in place of the base's"),
        (Average("b", "c"), "give the head the last hidden state and features of 512"),
        (Stack("b", Average("x")), "no adapter 'x'; there are: a, b, c, d"),
        (Fuse("b", "c"), r"Fuse\('b', 'c'\) has no weights in this model; call add_fusion first \(there are: none\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.set_active(value)
    model.set_active(Average("b", "d"))
    with pytest.raises(ConfigError, match="different numbers of pseudo frames, or only some do or add a code"):
        model(*batch())


# --- stacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["pre-norm", "post-norm"])
def test_layer_norms_in_a_stack_change_what_came_before_them(style):
    model = drawer("bitfit", "layer-norms", "layer-norms", style=style, feat_extract_norm="layer", conv_bias=True)
    model.add_adapter("fresh", "layer-norms")
    assert torch.equal(features(model, Stack("a", "fresh")), features(model, "a"))
    model.average_adapters("sum", {"b": 1.0, "c": 1.0})  # of their changes
    both = features(model, Stack("b", "c"))
    torch.testing.assert_close(both, features(model, "sum"), atol=1e-4, rtol=0)
    assert not torch.allclose(both, features(model, "c"), atol=1e-2)
    with torch.no_grad():
        assert_equals_separate_runs(model, [Stack("a", "b"), "b", None, Stack("b", "c"), "a", Stack("a", "b")])


def test_layer_norms_train_beside_the_layers_that_they_belong_to():
    model = small_model(head=True)
    model.add_adapter("a", preset("last-2+layer-norms"))
    model.train_adapter("a", head="asr")
    two_updates(model, 1e-3)
    model.check_alive()


# --- fusion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["pre-norm", "post-norm"])
@pytest.mark.parametrize("kind", FUSED)
def test_fusing_one_adapter_gives_that_adapter(kind, style):
    model = drawer(kind, style=style)
    alone = features(model, "a")
    model.add_fusion(Fuse("a"))
    torch.testing.assert_close(features(model, Fuse("a")), alone, atol=1e-3, rtol=0)  # W_v is 1e-6 off the diagonal
    for layer in model.fusions["fuse-a"].layers.values():
        torch.nn.init.eye_(layer.value.weight)
    torch.testing.assert_close(features(model, Fuse("a")), alone, atol=1e-5, rtol=0)


def test_one_member_alone_is_not_trained_but_beside_the_expert_that_adds_nothing_it_is():
    model = drawer("houlsby", head=True)
    for value in (Fuse("a"), Route("a")):
        model.add_fusion(value)
        with pytest.raises(ConfigError, match=r"\('a'\): one member alone always weighs 1, so there is nothing to"):
            model.train_fusion(value)
        assert features(model, value).isfinite().all()
    model.add_fusion(Fuse("a", name="or-none"), FusionConfig(none_expert=True))
    model.train_fusion("or-none", head="asr")
    model(*batch(), targets=TARGETS).loss.backward()
    model.check_alive()


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("kind", ["el", "houlsby", "weighted-sum"])
def test_equal_logits_and_an_identity_give_the_mean(kind, rank):
    model = drawer(kind, kind, kind)
    model.add_fusion(Fuse("a", "b", "c"), FusionConfig(rank=rank))
    for layer in model.fusions["fuse-a-b-c"].layers.values():
        torch.nn.init.zeros_(layer.query.weight)
        if rank is None:
            torch.nn.init.eye_(layer.value.weight)
    mean = features(model, Average("a", "b", "c"))
    torch.testing.assert_close(features(model, Fuse("a", "b", "c")), mean, atol=1e-5, rtol=0)


def test_fusion_is_attention_as_published():
    torch.manual_seed(0)
    layer = FusionLayer(6, 6, FusionConfig())
    assert torch.equal(layer.value.weight.diagonal(), torch.ones(6)) and layer.value.weight[0, 1] == 1e-6
    for linear in (layer.query, layer.key, layer.value):
        torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(layer.key.bias)
    query, values = torch.randn(2, 5, 6), torch.randn(2, 5, 3, 6)
    scores = (layer.query(query).unsqueeze(2) * layer.key(values)).sum(-1)
    weights = scores.softmax(-1)
    expected = (weights.unsqueeze(-1) * layer.value(values)).sum(2)
    fused, attention = layer(query, values)
    torch.testing.assert_close(attention, weights)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(layer.regularizer(), (torch.eye(6) - layer.value.weight).norm() ** 2)


def test_a_low_rank_fusion_is_the_full_one_with_its_product():
    torch.manual_seed(0)
    low = FusionLayer(6, 6, FusionConfig(rank=2))
    torch.nn.init.normal_(low.value_up.weight)
    off = low.value_up.weight @ low.value.weight
    torch.testing.assert_close(low.regularizer(), off.square().sum())
    values = torch.randn(1, 4, 1, 6)
    torch.testing.assert_close(low(torch.randn(1, 4, 6), values)[0], values[:, :, 0] @ (torch.eye(6) + off).T)


def test_published_size_of_fusion_in_a_base_encoder():
    layer = FusionLayer(768, 768, FusionConfig())
    assert 12 * sum(p.numel() for p in layer.parameters()) == 21_252_096
    model = drawer("pfeiffer", "pfeiffer")
    model.add_fusion(Fuse("a", "b"))
    assert list(model.fusions["fuse-a-b"].layers) == ["feed_forward_0", "feed_forward_1", "feed_forward_2"]
    assert sum(p.numel() for p in model.fusions["fuse-a-b"].parameters()) == 3 * (3 * 64 * 64 + 2 * 64)
    model.add_fusion(Fuse("a", "b", name="small"), FusionConfig(rank=4))
    assert sum(p.numel() for p in model.fusions["small"].parameters()) == 3 * (4 * 64 * 4 + 2 * 4)


def test_the_expert_that_adds_nothing_can_leave_the_base():
    model = drawer("houlsby", "houlsby")
    model.add_fusion(Fuse("a", "b"), FusionConfig(none_expert=True, value=False))
    model(*batch())
    attention = model(*batch()).attention["fuse-a-b.feed_forward_1"]
    assert attention.shape[-1] == 3
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:2]))
    with torch.no_grad():
        alone = features(model, Fuse("a", "b"))
        model.set_active()
        base = model(*batch()).features
    assert not torch.allclose(alone, base)


@pytest.mark.parametrize(("value", "config", "group"), [
    (Fuse("a", "b"), FusionConfig(guide_weight=1.0), "fusion"),
    (Fuse("a", "b"), FusionConfig(rank=4, guide_weight=0.5, none_expert=True, dropout=0.1, scaled=True), "fusion"),
    (Route("a", "b"), RouterConfig(guide_weight=1.0), "router"),
    (Route("a", "b"), RouterConfig(top_k=1), "router"),
    (Route("a", "b"), RouterConfig(layer=1, guide_weight=1.0), "router"),
    (Fuse(Stack("a", "c"), "b"), FusionConfig(), "fusion"),
])  # fmt: skip
def test_the_second_stage_trains_the_fusion_alone_and_it_learns(value, config, group):
    model = drawer("el", "el", "houlsby")
    model.set_active("a")
    model.add_head("asr", CTCHead())
    before = {name: tensor.clone() for name, tensor in model.adapters.state_dict().items()}
    name = model.add_fusion(value, config)
    model.train_fusion(name, head="asr", train_head=False)
    assert set(model.parameter_groups()) == {group}
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters(model)}
    assert not model.adapters["a"].training and model.fusions[name].training
    optimizer = torch.optim.Adam(parameters(model), 1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(*batch(), targets=TARGETS, guide=torch.tensor([0, 1])).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.check_alive()
    assert group == "router" or min(losses[1:]) < losses[0]
    if group == "fusion" and not config.dropout:  # of two members it may be exactly zero, as it is by the formula
        layer = next(module for module in model.modules() if isinstance(module, FusionLayer))
        assert layer.key.bias.grad.abs().max() < 1e-4 * layer.query.weight.grad.abs().max()
        layer.key.bias.grad.zero_()
        model.check_alive()
        layer.key.weight.grad.zero_()
        with pytest.raises(RuntimeError, match=r"1 trainable tensor\(s\) learn nothing: .*key.weight \(zero\)"):
            model.check_alive()
    after = model.adapters.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert model.learning_rates() == {group: config.learning_rate}


def test_the_guide_leads_each_utterance_to_its_adapter():
    model = drawer("e", "e", head=False)
    model.add_head("asr", CTCHead())
    guide = torch.tensor([1, 0])
    for value, config in (
        (Fuse("a", "b"), FusionConfig(guide_weight=10.0)),
        (Route("a", "b"), RouterConfig(guide_weight=10.0)),
        (Route("a", "b", name="posterior"), RouterConfig(guide_weight=10.0, layer=1)),
    ):
        model.add_fusion(value, config)
        model.train_fusion(value, train_head=False)
        optimizer = torch.optim.Adam(parameters(model), 3e-2)
        for _ in range(25):
            optimizer.zero_grad()
            model(*batch(), targets=TARGETS, guide=guide).loss.backward()
            optimizer.step()
        model.eval()
        output = model(*batch())
        mask = output.mask.unsqueeze(-1)
        for attention in output.attention.values():
            mean = (attention * mask).sum(1) / mask.sum(1) if attention.shape[1] > 1 else attention[:, 0]
            assert (mean.argmax(-1) == guide).all()


@pytest.mark.parametrize("side", ["prepend", "append"])
@pytest.mark.parametrize(("value", "config"), [
    (Fuse("a", "b"), FusionConfig(guide_weight=1.0)),
    (Route("a", "b"), RouterConfig(guide_weight=1.0)),
    (Route("a", "b"), RouterConfig(guide_weight=1.0, layer=1)),
])  # fmt: skip
def test_the_guide_loss_of_an_utterance_is_the_same_padded_and_beside_pseudo_frames(side, value, config):
    model = drawer("e", "e", PAdapter(side=side))
    model.set_active("a")
    model.add_head("asr", CTCHead())
    model.add_fusion(value, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.fusions.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    model.train_adapter(Stack("c", value), head="asr")
    for module in model.children():  # the loss of training, without dropout
        module.eval()

    @torch.no_grad()
    def guided(waveforms, lengths, targets, guide):
        strangers = torch.full_like(guide, -100)
        told, untold = (model(waveforms, lengths, targets=targets, guide=g).loss.double() for g in (guide, strangers))
        return (told - untold).item()

    waveforms, lengths = batch()
    padded = guided(waveforms, lengths, TARGETS, torch.tensor([-100, 1]))
    alone = guided(waveforms[1:, :4800], lengths[1:], TARGETS[1:], torch.tensor([1]))
    assert abs(padded) > 0.1 and padded == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(("value", "config"), [(Fuse("a", "b"), FusionConfig), (Route("a", "b"), RouterConfig)])
def test_a_guide_that_is_asked_for_must_come_and_strangers_lose_nothing(value, config):
    losses = []
    for weight in (0.0, 1.0):
        model = drawer("e", "e", head=False)
        model.add_head("asr", CTCHead())
        model.add_fusion(value, config(guide_weight=weight))
        model.train_fusion(value, train_head=False)
        losses.append(model(*batch(), targets=TARGETS, guide=torch.tensor([-100, -100])).loss)
    assert torch.equal(*losses)
    with pytest.raises(ConfigError, match="guide_weight=1.0 needs each utterance's member"):
        model(*batch(), targets=TARGETS)
    assert model.eval()(*batch(), targets=TARGETS).loss.isfinite()


def test_fusion_refuses_lora_and_what_is_missing():
    model = drawer("lora", "p-append", "e", "cnn-adapter", IA3(targets=("output_dense",)), "bitfit")
    for wrong, message in (
        (
            lambda: model.add_fusion(Fuse("c", "a")),
            r"'a' \(lora\) acts on q_proj, where AdapterFusion is not .* use Average, Route or model.average_adapters",
        ),
        (lambda: model.add_fusion(Fuse("c", "f")), r"'f' \(bitfit\) acts on [a-z_]+, where AdapterFusion is not"),
        (lambda: model.add_fusion(Fuse("e")), r"'e' \(ia3\) acts on intermediate_act, where AdapterFusion is not"),
        (
            lambda: model.add_fusion(Fuse("d")),
            r"'d' \(cnn_adapter\) acts in the CNN, where .* use Average or model.average_adapters",
        ),
        (lambda: model.add_fusion(Fuse(Stack("c", "a"))), r"Stack\('c', 'a'\) acts on q_proj, where"),
        (lambda: model.add_fusion(Fuse("b")), "no member adds to a sub-layer's output"),
        (lambda: model.add_fusion(Fuse("x")), "no adapter 'x'"),
        (lambda: model.add_fusion(Stack("a")), r"Fuse and Route have weights of their own, Stack\('a'\) has none"),
        (lambda: model.add_fusion(Fuse("c"), RouterConfig()), "takes a FusionConfig, not RouterConfig"),
        (lambda: model.add_fusion(Route("a", "b"), RouterConfig(top_k=3)), "top_k=3 of 2 members"),
        (
            lambda: model.add_fusion(Route("a", "b"), RouterConfig(layer=9)),
            "layer=9, but the encoder's layers are",
        ),
        (lambda: RouterConfig(layer=0), "layer=0: must be a whole number, at least 1"),
        (
            lambda: model.add_fusion(Route("c", "d")),
            r"a member acts inside the CNN, whose output the gate reads; use Average\.",
        ),
        (lambda: FusionConfig(rank=0), "FusionConfig: rank=0: must be a whole number, at least 1"),
        (lambda: RouterConfig(per="word"), "per='word': must be one of utterance, frame"),
        (lambda: model.train_fusion("y"), "no fusion 'y'; there are: none"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong()
    assert not model.fusions
    model.add_fusion(Fuse("c"))
    with pytest.raises(ConfigError, match="fusion 'fuse-c' exists already"):
        model.add_fusion(Fuse("c"))
    with pytest.raises(ConfigError, match=r"adapter 'c' is part of Fuse\('c'\); delete that fusion first"):
        model.delete_adapter("c")
    model.delete_fusion("fuse-c")
    assert model.active is None
    model.delete_adapter("c")


# --- routing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in MIXED if kind not in ("head-only", "cnn-adapter", "chapter")])
def test_a_gate_of_one_member_alone_is_that_adapter(kind):
    model = drawer(kind, kind)
    name = model.add_fusion(Route("a", "b"))
    even = features(model, Average("a", "b"))
    torch.testing.assert_close(features(model, Route("a", "b")), even, atol=1e-5, rtol=0)
    with torch.no_grad():
        model.fusions[name].gate.bias.copy_(torch.tensor([-200.0, 0.0]))
    torch.testing.assert_close(features(model, Route("a", "b")), features(model, "b"), atol=1e-5, rtol=0)


def test_frames_route_readers_below_an_output_adapter():
    model = SpeechAdapterModel(small_encoder("wav2vec2", "pre-norm", add_adapter=True))
    for name in "ab":
        model.add_adapter(name, "l")
    model.add_fusion(Route("a", "b"), RouterConfig(per="frame"))
    output = model.eval()(*batch())
    assert output.features.shape[1] == output.attention["route-a-b.gate"].shape[1] > output.last_hidden_state.shape[1]


def test_a_fusion_deep_inside_another_is_not_deleted():
    model = drawer("pfeiffer", "pfeiffer", "pfeiffer", "pfeiffer")
    model.add_fusion(Route("b", "c"))
    outer = model.add_fusion(Fuse(Stack("a", Route("b", "c")), "d"))
    with pytest.raises(ConfigError, match="fusion 'route-b-c' is a member of"):
        model.delete_fusion("route-b-c")
    model.delete_fusion(outer)
    model.delete_fusion("route-b-c")


def test_top_k_keeps_the_largest_and_frames_have_gates_of_their_own():
    model = drawer("houlsby", "houlsby", "houlsby", "p-append", "p-append")
    value = Route("a", "b", "c")
    model.add_fusion(value, RouterConfig(top_k=2, per="frame"))
    with torch.no_grad():
        model.fusions[value.name].gate.weight.normal_(std=2.0)
        gate = model(*batch()).attention["route-a-b-c.gate"]
    assert gate.shape[1] == model(*batch()).features.shape[1]
    assert ((gate > 0).sum(-1) == 2).all() and gate[0].std(0).max() > 0.01
    torch.testing.assert_close(gate.sum(-1), torch.ones(gate.shape[:2]))
    model.add_fusion(Route("d", "e"), RouterConfig(per="frame"))
    with pytest.raises(ConfigError, match="a gate per frame cannot weigh pseudo frames or prefixes"):
        model(*batch())


@pytest.mark.parametrize("kind", ["el", "lora-all", "prefix", "p-append", "layer-norms", "cnn-adapter"])
@torch.no_grad()
def test_a_posterior_decides_from_its_layer_on_and_below_it_members_are_shared(kind):
    model = drawer(kind, kind)
    name = model.add_fusion(Route("a", "b"), RouterConfig(layer=1))
    even = features(model, Average("a", "b"))
    torch.testing.assert_close(features(model, Route("a", "b")), even, atol=1e-5, rtol=0)
    lower = model(*batch()).hidden_states[1]
    model.fusions[name].gate.bias.copy_(torch.tensor([-200.0, 0.0]))
    output = model(*batch())
    assert torch.equal(output.hidden_states[1], lower) and output.attention[f"{name}.gate"].shape == (2, 1, 2)
    differs = kind not in ("p-append", "cnn-adapter")  # which have acted when the posterior is read
    assert torch.allclose(output.features, even, atol=1e-5) != differs


@torch.no_grad()
def test_a_shared_adapter_below_and_experts_above_take_one_pass():
    shared, expert = LoRA(rank=2, layers=(0,)), LoRA(rank=2, layers=(1,))
    model = drawer(shared, expert, expert)
    route = Route("b", "c")
    model.add_fusion(route, RouterConfig(layer=1))
    stack = Stack("a", route)
    features(model, stack)
    gate = model.fusions[route.name].gate
    gate.weight.normal_(std=2.0)
    read = model(*batch())
    state = read.hidden_states[1]
    posterior = gate(model.fusions[route.name].norm(state)).softmax(-1) * read.mask.unsqueeze(-1)
    mean = posterior.sum(1) / read.mask.sum(1, keepdim=True)
    torch.testing.assert_close(read.attention[f"{route.name}.gate"][:, 0], mean)
    for number, name in enumerate("bc"):
        gate.weight.zero_()
        gate.bias.fill_(-200.0)[number] = 0.0
        torch.testing.assert_close(features(model, stack), features(model, Stack("a", name)), atol=1e-5, rtol=0)
    model.train_adapter(stack)
    assert set(model.parameter_groups()) == {"lora", "router"}  # the shared adapter, and the gate
    model.set_active(stack, skip_layers=1)
    with pytest.raises(ConfigError, match="its gate reads the input of layer 1, which skip_layers leaves out"):
        model(*batch())


def test_recomputed_layers_are_routed_as_they_were():
    model = drawer("el", "el", head=True)
    model.add_fusion(Route("a", "b"), RouterConfig(layer=1))
    with torch.no_grad():
        model.fusions["route-a-b"].gate.weight.normal_(std=2.0)
    model.train_fusion("route-a-b", head="asr")
    gradients = []
    for model.gradient_checkpointing in (False, True, "selective"):
        model.zero_grad()
        torch.manual_seed(5)  # dropout
        model(*batch(), targets=TARGETS).loss.backward()
        gradients.append([p.grad for p in parameters(model)])
    for recomputed in gradients[1:]:
        torch.testing.assert_close(recomputed, gradients[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("config", [RouterConfig(), RouterConfig(layer=1)])
def test_a_routed_utterance_does_not_hear_the_padding(config):
    model = drawer("houlsby", "houlsby")
    model.add_fusion(Route("a", "b"), config)
    with torch.no_grad():
        model.fusions["route-a-b"].gate.weight.normal_()
        waveforms, lengths = batch()
        together = model(waveforms, lengths)
        alone = model(waveforms[1:, : lengths[1]])
    torch.testing.assert_close(together.attention["route-a-b.gate"][1], alone.attention["route-a-b.gate"][0])
    torch.testing.assert_close(together.features[1, : alone.features.shape[1]], alone.features[0], atol=1e-4, rtol=0)


# --- one adapter a sample ------------------------------------------------------------------------------------------


def six() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    waveforms, lengths = torch.randn(6, 4800, generator=generator), torch.tensor([4800, 4000, 4800, 4400, 3600, 4800])
    for row, length in zip(waveforms, lengths, strict=True):
        row[length:] = 0
    return waveforms, lengths


def assert_equals_separate_runs(model, choices):
    waveforms, lengths = six()
    mixed = model(waveforms, lengths, adapter=choices)
    for choice in dict.fromkeys(choices):
        model.set_active(choice)
        alone = model(waveforms, lengths)
        for place in (place for place, other in enumerate(choices) if other == choice):
            frames = int(alone.frame_lengths[place])
            assert int(mixed.frame_lengths[place]) == frames
            torch.testing.assert_close(
                mixed.features[place][:frames], alone.features[place][:frames], atol=1e-5, rtol=0
            )
            for one, other in zip(mixed.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(one[place, :frames], other[place, :frames], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MIXED)
@torch.no_grad()
def test_a_mixed_batch_equals_separate_runs(kind):
    model = drawer(kind, kind, "p-append")
    assert_equals_separate_runs(model, ["b", "a", None, "b", "a", "c"])
    assert_equals_separate_runs(model, ["b", "a", "b", "b", "a", "a"])


@pytest.mark.parametrize("kind", ["cnn-adapter", "chapter", "lora"])
@torch.no_grad()
def test_a_mixed_batch_on_a_half_precision_encoder(kind):
    model = small_model()
    model.encoder.model.to(torch.bfloat16)
    for name in "ab":
        model.add_adapter(name, METHODS[kind])
        for parameter in model.adapters[name].parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.eval()
    waveforms, lengths = six()
    mixed = model(waveforms, lengths, adapter=["b", "a", None, "b", "a", "a"])
    model.set_active("a")
    alone, frames = model(waveforms, lengths), int(mixed.frame_lengths[1])
    torch.testing.assert_close(mixed.features[1, :frames], alone.features[1, :frames], atol=0.1, rtol=0.1)


@torch.no_grad()
def test_a_mixed_batch_of_all_kinds_at_once_and_of_stacks():
    model = drawer("elp", "dora", "pfeiffer", "weighted-sum", "p-proj-append", "lora+l")
    assert_equals_separate_runs(model, list("abcdef"))
    assert_equals_separate_runs(model, [Stack("b", "c"), "e", None, Stack("b", "c"), "a", Stack("c", "e")])


@torch.no_grad()
def test_a_mixed_batch_on_post_norm_layers_of_one_length():
    model = drawer("pfeiffer", "el", style="post-norm", feat_extract_norm="layer", conv_bias=True)
    assert_equals_separate_runs(model, ["b", "a", None, "b", "a", "b"])


def test_a_mixed_batch_has_the_gradients_of_separate_runs_and_sees_new_weights():
    waveforms, lengths = six()
    model = drawer("e", "e")
    choices = ["a", "b", None, "b", "b", "a"]
    with torch.no_grad():
        model(waveforms, lengths, adapter=choices)  # weights are stacked and kept
    for name in "ab":
        model.adapters[name].requires_grad_(True)
    model(waveforms, lengths, adapter=choices).features.square().sum().backward()
    mixed = {n: p.grad for n, p in model.adapters.named_parameters()}
    model.zero_grad()
    for name in "ab":
        model.set_active(name)
        own = torch.tensor([choice == name for choice in choices])
        model(waveforms, lengths).features[own].square().sum().backward()
    for n, p in model.adapters.named_parameters():
        torch.testing.assert_close(mixed[n], p.grad, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        for parameter in model.adapters["b"].parameters():
            parameter.mul_(1.5)
        assert_equals_separate_runs(model, choices)


def test_a_mixed_batch_trains_after_forwards_of_any_mode():
    waveforms, lengths = six()
    model = drawer("e", "e")
    choices = ["a", "b", None, "b", "b", "a"]
    model.adapters["b"].requires_grad_(True)  # and the first of the kind stays as it is
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            model(waveforms, lengths, adapter=choices)
        model(waveforms, lengths, adapter=choices).features.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapters["b"].parameters())
        model.zero_grad()
    with torch.inference_mode():
        model.add_adapter("c", model.adapters["a"].config)
        model(waveforms, lengths, adapter=["a", "c"] * 3)


def test_a_mixed_batch_adds_the_penalty_of_each_adapter_that_trains():
    model = drawer("adalora", "adalora", "adalora", head=True)
    model.train_adapter(Parallel("a", "b"), head="asr")
    model.head.eval()  # its dropout would differ
    penalties = {name: model.adapters[name].penalty() for name in "abc"}
    assert len({penalty.item() for penalty in penalties.values()}) == 3
    waveforms, lengths = six()
    targets = TARGETS.repeat(3, 1)
    for choices in (["a", "b", "a", None, "b", "c"], ["b", "c", "b", "b", "b", None]):
        model.training = True
        trained = model(waveforms, lengths, adapter=choices, targets=targets).loss
        model.training = False
        scored = model(waveforms, lengths, adapter=choices, targets=targets).loss
        expected = sum(penalties[name] for name in set("ab").intersection(name for name in choices if name))
        torch.testing.assert_close(trained - scored, expected)


@torch.no_grad()
def test_heads_are_chosen_a_sample_too():
    waveforms, lengths = six()
    model = drawer("elp", "lora")
    for head, adapter in (("wide", "a"), ("narrow", "b"), ("other", "b")):
        model.set_active(adapter)
        model.add_head(head, CTCHead())
    choices, heads = ["a", "b", None, "b", "a", None], ["wide", "narrow", "other", "other", None, "narrow"]
    output = model(waveforms, lengths, adapter=choices, head=heads)
    assert isinstance(output.features, list) and output.features[0].shape[1] == 512
    for place, (choice, head) in enumerate(zip(choices, heads, strict=True)):
        if head is None:
            assert output.logits[place] is None
            continue
        model.set_active(choice)
        model.set_head(head)
        frames = int(output.frame_lengths[place])
        expected = model(waveforms, lengths).logits[place, :frames]
        torch.testing.assert_close(output.logits[place][:frames], expected, atol=1e-5, rtol=0)


def test_wrong_choices_are_config_errors():
    waveforms, lengths = six()
    model = drawer("elp", "lora", "full", head=False)
    model.set_active("b")
    model.add_head("asr", CTCHead())
    for arguments, message in (
        ({"adapter": ["a"]}, "give one choice for each of the 6 samples"),
        ({"adapter": "b"}, "give one choice for each of the 6 samples"),
        ({"adapter": ["x"] * 6}, "no adapter 'x'"),
        ({"adapter": ["c"] * 6}, "adapter 'c' replaces whole layers"),
        ({"adapter": [Average("a", "b")] * 6}, "a sample takes an adapter's name, a Stack of names, or None"),
        ({"adapter": ["a"] * 6}, "head 'asr' reads features of 64, but adapter 'a' gives 512"),
        ({"adapter": ["b"] * 6, "head": ["asr"] * 5}, "head=.*: give one choice for each of the 6 samples"),
        ({"head": ["asr"] * 6}, r"head=\[...\] goes with adapter"),
    ):
        with pytest.raises(ConfigError, match=message):
            model(waveforms, lengths, **arguments)


def test_a_cached_start_of_a_mixed_batch_runs_the_layers():
    model = drawer("l-frozen", "weighted-sum")
    output = model(*batch())
    for cached in ({"hidden_states": output.hidden_states}, {"last_hidden_state": output.last_hidden_state}):
        with pytest.raises(ConfigError, match="a choice for each sample runs the layers; start from waveforms"):
            model(**cached, frames=output.frame_lengths, adapter=["a", "b"])
        with pytest.raises(ConfigError, match="runs the layers"):
            model(**cached, adapter=["a", "b"])
    with pytest.raises(ConfigError, match="no samples were given"):
        model(adapter=["a", "b"])


@torch.no_grad()
def test_a_mixed_batch_hides_frames_by_the_whole_embedding():
    model = drawer("e")
    waveforms = batch()[0][:1]
    embedding = torch.randn(model.encoder.hidden_size)
    masked = {"time_mask": torch.ones(1, model.feature_lengths(6400), dtype=torch.bool), "mask_embedding": embedding}
    alone, mixed = model(waveforms, **masked), model(waveforms, **masked, adapter=["a"])
    torch.testing.assert_close(mixed.features, alone.features, atol=1e-5, rtol=0)


def test_adapters_of_other_dropout_share_no_weights_while_they_train():
    model = drawer("e")
    for name, dropout in (("calm", 0.0), ("wild", 0.5)):
        model.add_adapter(name, LoRA(rank=4, dropout=dropout))
    groups = []
    for training in (False, True):
        for name in ("calm", "wild"):
            model.adapters[name].train(training)
        _, mixed = model.mixer.sort(["calm", "wild"], model.registry.adapters_by_name, model.encoder.num_layers)
        groups.append(len(mixed.groups))
    assert groups == [1, 2]


# --- branches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("last-2", Bottleneck(layers=(2,))), ("elp", "lora"), ("l", "weighted-sum")])
@torch.no_grad()
def test_parallel_gives_each_branch_as_if_alone_and_runs_the_shared_part_once(kinds):
    model = drawer(*kinds)
    for name in "ab":
        model.set_active(name)
        model.add_head(name, CTCHead())
    alone = {}
    for name in "ab":
        model.set_active(name)
        model.set_head(name)
        alone[name] = model(*batch())
    runs = []
    model.encoder.model.encoder.layers[0].layer_norm.register_forward_hook(lambda *_: runs.append(1))
    model.set_active(Parallel("a", "b"))
    output = model(*batch(), head=["a", "b"])
    assert list(output) == ["a", "b"]
    if kinds == ("elp", "lora"):
        with pytest.raises(ConfigError, match="head 'c': the branches of .* give features of 64 and 512; add a head"):
            model.add_head("c", CTCHead())
    for name in "ab":
        torch.testing.assert_close(output[name].logits, alone[name].logits, atol=1e-5, rtol=0)
        for one, other in zip(output[name].hidden_states, alone[name].hidden_states, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    if kinds[0] == "last-2":
        assert len(runs) == 1  # neither branch changes layer 0
    with pytest.raises(ConfigError, match="targets belong to one output"):
        model(*batch(), targets=TARGETS)
    with pytest.raises(ConfigError, match="give one head for each branch"):
        model(*batch(), head=["a"])


@torch.no_grad()
def test_parallel_readers_read_cached_states():
    model = drawer("l-frozen", "weighted-sum")
    output = model(*batch())
    cached = {"hidden_states": output.hidden_states, "frames": output.frame_lengths}
    model.set_active(Parallel("a", "b"))
    together = model(**cached)
    for name in "ab":
        model.set_active(name)
        assert torch.equal(together[name].features, model(**cached).features)


def test_a_mixed_batch_gives_the_embeddings_of_its_heads_and_keeps_few_stacks():
    model = drawer(*["lora"] * 5)
    model.set_active("a")
    model.add_head("voices", SpeakerHead(speakers=("x", "y"), embedding_size=8))
    model.eval()
    with torch.no_grad():
        output = model(*batch(), adapter=["a", "b"], head=["voices", None])
        assert output.embedding[1] is None and output.logits[1] is None
        torch.testing.assert_close(output.embedding[0], model(*batch()).embedding[0], atol=1e-5, rtol=0)
        for pair in itertools.combinations("abcde", 2):
            mixed = model(*batch(), adapter=list(pair), head=[None, None]).features
            model.set_active(pair[1])
            torch.testing.assert_close(mixed[1], model(*batch()).features[1], atol=1e-5, rtol=0)
            model.set_active("a")
    assert len(model.mixer._kinds) == 8


# --- saving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [Fuse("a", "b"), Route("a", "b"), Fuse(Route("a", "b"), "c", name="both")])
@torch.no_grad()
def test_a_fusion_comes_back_bit_for_bit_and_refuses_changed_adapters(value, tmp_path):
    model = drawer("el", "el", "el", head=True)
    for inner in trainable_in(value):
        model.add_fusion(inner, RouterConfig(layer=1) if isinstance(inner, Route) and "c" in names_of(value) else None)
        for parameter in model.fusions[inner.name].parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    expected = model(*batch()).logits
    for name in names_of(value):
        model.save_adapter(name, tmp_path / name)
    for inner in trainable_in(value):
        model.save_fusion(inner.name, tmp_path / inner.name, wer=0.1)
    model.save_head("asr", tmp_path / "head")

    fresh = small_model("wavlm", "pre-norm")
    with pytest.raises(CheckpointError, match="needs 'a', which is not loaded; load it first"):
        fresh.load_fusion(tmp_path / value.name)
    for name in names_of(value):
        fresh.load_adapter(tmp_path / name)
    fresh.load_head(tmp_path / "head")
    for inner in trainable_in(value):
        assert fresh.load_fusion(tmp_path / inner.name) == inner.name
    assert fresh.active == value
    assert torch.equal(fresh.eval()(*batch()).logits, expected)

    for inner in reversed(list(trainable_in(value))):
        fresh.delete_fusion(inner.name)
    next(fresh.adapters["a"].parameters()).view(-1)[0] += 1e-6
    with pytest.raises(CheckpointError, match="'a' is not the one that .* was trained with, or has changed since"):
        fresh.load_fusion(tmp_path / next(trainable_in(value)).name)
    other = small_model("hubert", "pre-norm")
    with pytest.raises(CheckpointError, match="this fusion was trained on 'small-wavlm-pre-norm'"):
        other.load_fusion(tmp_path / value.name)


# --- continual use -------------------------------------------------------------------------------------------------


def test_a_new_domain_changes_no_bit_of_the_others():
    model = drawer("elp", "lora", "houlsby")
    names = ["a", "b", "c", Stack("a", "b"), Average("b", "c"), None]
    before = [features(model, value) for value in names]
    torch.manual_seed(0)
    for name, kind in (("new", "elp"), ("lora-new", "dora"), ("tuned", "full")):
        model.add_adapter(name, METHODS[kind])
        model.add_head(name, CTCHead())
        model.train_adapter(name, head=name)
        optimizer = torch.optim.Adam(parameters(model), 1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            model(*batch(), targets=TARGETS).loss.backward()
            optimizer.step()
    model.eval().set_head(None)
    for value, expected in zip(names, before, strict=True):
        assert torch.equal(features(model, value), expected), value
    model.delete_adapter("new")
    assert torch.equal(features(model, "a"), before[0])


def test_encoders_of_all_families_compose():
    from speech_adapters.model import SpeechAdapterModel

    for family in ("wav2vec2", "hubert"):
        model = SpeechAdapterModel(small_encoder(family, "pre-norm", layers=2))
        for name in "ab":
            model.add_adapter(name, "e")
        model.add_fusion(Fuse("a", "b"))
        assert model.eval()(*batch()).features.isfinite().all()
