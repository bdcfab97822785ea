"""One encoder, many adapters and heads: switching, stacking, training, copying, and the errors of wrong use."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from small_encoders import FAMILIES
from small_models import METHODS, TARGETS, batch, parameters, shake, small_model

from speech_adapters.adapters import Bottleneck, Combine, EAdapter, LAdapter, LayerNorms, LoRA, preset
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import AudioError, ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train


@pytest.fixture(scope="module")
def drawer():
    """One model with an adapter of each kind, away from its start, and what each gives alone."""
    model = small_model("wavlm", "pre-norm")
    alone = {None: model(*batch()).features.detach()}
    for name in ("elp", "houlsby", "lora", "dora", "lora+l", "weighted-sum", "full", "p-append"):
        torch.manual_seed(4)
        model.add_adapter(name.replace("+", "-"), METHODS[name])
        alone[name.replace("+", "-")] = shake(model)(*batch()).features.detach()
    model.set_active()
    return model, alone


def test_adapters_are_switched_without_a_trace(drawer):
    model, alone = drawer
    for name in [*alone, *reversed(alone)]:
        model.set_active(name)
        assert torch.equal(model(*batch()).features, alone[name]), name
    for one, other in zip(list(alone)[:-1], list(alone)[1:], strict=True):
        assert alone[one].shape != alone[other].shape or not torch.allclose(alone[one], alone[other])


def test_a_deep_copy_stands_on_its_own(drawer):
    model, alone = drawer
    twin = copy.deepcopy(model)
    for name in ("lora", "elp", "full"):
        twin.set_active(name)
        model.set_active(name)
        assert torch.equal(twin(*batch()).features, alone[name])
        shake(twin, 0.1)
        assert not torch.allclose(twin(*batch()).features, alone[name])
        assert torch.equal(model(*batch()).features, alone[name])
    twin.set_active("lora")
    twin.delete_adapter("lora")
    model.set_active("lora")
    assert torch.equal(model(*batch()).features, alone["lora"])


@pytest.mark.parametrize("name", ["elp", "houlsby", "lora", "weighted-sum", "full"])
def test_an_adapter_pickles(drawer, name):
    model, _ = drawer
    adapter = model.adapters[name]
    twin = pickle.loads(pickle.dumps(adapter))
    assert twin.config == adapter.config
    torch.testing.assert_close(dict(twin.tensors()), dict(adapter.tensors()), rtol=0, atol=0)


def test_loads_and_dumps_as_one_state_dict(drawer):
    model, alone = drawer
    twin = copy.deepcopy(model)
    twin.set_active("houlsby")
    shake(twin, 0.3)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(*batch()).features, alone["houlsby"])


def test_a_stack_equals_the_combination_of_its_parts():
    torch.manual_seed(0)
    stacked = small_model()
    stacked.add_adapter("e", EAdapter(size=16))
    shake(stacked)
    stacked.add_adapter("b", Bottleneck(size=8))
    shake(stacked)
    stacked.set_active("e", "b")
    combined = small_model()
    combined.add_adapter("a", Combine(parts=(EAdapter(size=16), Bottleneck(size=8))))
    for part, name in (("e", "e"), ("bottleneck", "b")):
        combined.adapters["a"].parts[part].load_state_dict(stacked.adapters[name].state_dict())
    features = stacked(*batch()).features
    torch.testing.assert_close(combined(*batch()).features, features)
    stacked.set_active("b", "e")  # the second one now reads what the first made of the output
    assert not torch.allclose(stacked(*batch()).features, features)


def test_a_stack_trains_together_and_the_last_reader_feeds_the_head():
    model = small_model()
    model.add_adapter("norms", LayerNorms())
    model.add_adapter("sum", "weighted-sum")
    model.add_adapter("l", LAdapter(size=24))
    model.add_adapter("lora", LoRA())
    model.set_active("norms", "sum", "l", "lora")
    assert model.feature_size == 24
    model.add_head("asr", CTCHead())
    model.set_active("norms", "l", "lora")
    model.train_adapter("norms", "l", "lora")
    assert set(model.parameter_groups()) == {"norm", "l", "lora", "head"}
    optimizer = torch.optim.Adam(parameters(model))
    for _ in range(2):
        optimizer.zero_grad()
        model(*batch(), targets=TARGETS).loss.backward()
        optimizer.step()
    model.check_alive()
    assert all(p.grad is None for p in model.adapters["sum"].parameters())
    model.delete_adapter("norms")
    assert model.active_adapters == ("l", "lora")


def test_what_became_active_after_train_adapter_is_no_training(tmp_path):
    """An optimizer would be given it, and would not move it."""
    wrong = {
        "another adapter": (
            lambda m: m.add_adapter("b", "houlsby"),
            "'b' under the head 'asr' is active, and train_adapter was called for 'a' under 'asr'",
        ),
        "another head": (lambda m: m.add_head("late", CTCHead()), "under the head 'late' is active"),
        "none of them": (lambda m: m.set_active(None), "None under the head 'asr' is active"),
    }
    for change, message in wrong.values():
        model = small_model(method="houlsby", head=True)
        model.check_trained()
        change(model)
        with pytest.raises(ConfigError, match=message):
            model.check_trained()
        manifest = Manifest([Utterance(id="u", audio_filepath=Path("u.wav"), duration=1.0, text="A")])
        with pytest.raises(ConfigError, match=message):
            train(
                model,
                SpeechDataset(manifest, model.head.config.target),
                TrainingConfig(updates=1),
                RunFolder.create("x", root=tmp_path),
            )
    model = small_model(method="houlsby", head=True)
    model.set_active("a", skip_layers=1)
    model(*batch(), targets=TARGETS).loss.backward()
    with pytest.raises(RuntimeError, match="skip_layers=1 leaves adapters out"):
        model.check_alive()


def test_a_dead_tensor_is_an_error():
    model = small_model()
    model.add_adapter("b", Bottleneck(init_std=0.1))
    model.add_adapter("l", LAdapter(layers=(0,), init_std=0.1))
    model.train_adapter("b", "l")  # what stands above the one layer that the head reads
    model(*batch()).features[..., 0].mean().backward()
    with pytest.raises(RuntimeError, match=r"8 trainable tensor\(s\) learn nothing: adapters.b.sites.*no gradient"):
        model.check_alive()
    model = small_model(method="houlsby", head=True)
    model(*batch(), targets=TARGETS).loss.backward()
    with pytest.raises(RuntimeError, match=r"down.weight \(zero\)"):  # the first step of a zero up-projection
        model.check_alive()
    model = small_model(head=True)
    model(*batch(), targets=TARGETS).loss.backward()
    model.check_alive()
    model.head.linear.weight.grad.fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"heads.asr.linear.weight \(not finite\)"):
        model.check_alive()


@pytest.mark.parametrize("family", FAMILIES)
def test_training_learns_and_touches_nothing_else(family):
    torch.manual_seed(0)
    model = small_model(family, "pre-norm")
    model.add_adapter("other", "houlsby")
    model.add_adapter("a", "el")
    model.add_head("other", CTCHead())
    model.add_head("asr", CTCHead())
    model.train_adapter("a", head="asr")
    assert model.adapters["a"].training and model.heads["asr"].training
    assert not any(module.training for module in model.encoder.model.modules())
    assert not model.adapters["other"].training and not model.heads["other"].training
    before = {name: p.clone() for name, p in model.state_dict().items()}
    optimizer = torch.optim.Adam(parameters(model), 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(model(*batch(), targets=TARGETS).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    changed = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert {".".join(name.split(".")[:2]) for name in changed} == {"adapters.a", "heads.asr"}
    model.eval()
    assert not any(module.training for module in model.modules())


def test_heads_are_added_chosen_and_deleted():
    model = small_model(method="el", head=True)
    model.add_head("second", CTCHead(hidden_size=16))
    assert model.active_head == "second" and model.head.input_size == 512
    model.set_head("asr")
    assert model(*batch()).logits.shape == (2, 20, 32)
    model.delete_head("asr")
    assert model.head is None and model(*batch()).logits is None
    model.train_adapter("a", head="second")
    assert set(model.parameter_groups()) == {"e", "l", "norm", "head"}
    model.set_active()
    model.add_head("plain", CTCHead())
    model.train_adapter(head="plain")
    assert set(model.parameter_groups()) == {"head"} and model.head.input_size == 64


def test_output_says_what_is_real():
    waveforms, lengths = batch()
    model = small_model(method="elp", head=True).eval()
    padded = model(waveforms, lengths, targets=TARGETS)
    assert padded.frame_lengths.tolist() == [20, 15] == padded.mask.sum(1).tolist()
    assert padded.logits.shape == (2, 20, 32) and padded.features.shape == (2, 20, 512)
    assert len(padded.hidden_states) == 4 and padded.loss.dim() == 0
    whole = model(waveforms, torch.tensor([6400, 6400]))
    assert whole.mask is None and whole.frame_lengths.tolist() == [20, 20] and whole.loss is None


@pytest.mark.parametrize("method", ["last-2", "l", "head-only"])
def test_starts_from_cached_activations(method):
    waveforms, lengths = batch()
    model = shake(small_model(method=method))
    with torch.no_grad():
        base = small_model()(waveforms, lengths)
        first = model.first_layer
        hidden = base.hidden_states[first]
        cached = model(hidden=hidden, frames=base.frame_lengths, start_layer=first)
        whole = model(waveforms, lengths)
    torch.testing.assert_close(cached.features, whole.features)
    reads_top = small_model()
    reads_top.add_adapter("a", LAdapter(layers=(-1,)))
    upper = reads_top(hidden=base.hidden_states[2], frames=base.frame_lengths, start_layer=2)
    assert torch.equal(upper.features, reads_top(waveforms, lengths).features)


def test_printing_shows_sites_shapes_and_counts():
    model = small_model(method="elp", head=True)
    model.add_adapter("telephone", LoRA(variant="rslora", rank=4, alpha=8))
    text = repr(model)
    for line in (
        "WavLM, 3 layers x 64, pre-norm, layer-norm CNN, frozen",
        "  adapter 'a': ",
        "e: serial after feed_forward, layers 0, 1: 64 -> 256 -> 64 gelu + LayerNorm",
        "l: 3 paths from layers to the head, 64 -> 512 gelu + LayerNorm",
        "norm: 6 LayerNorms of 3 layers",
        "p: 5 pseudo frames of 32, prepend at cnn_out",
        "* adapter 'telephone': 3,072 parameters",
        "lora: rslora rank 4, scale 4, on q_proj, v_proj (6 projections)",
        "* head 'asr': 16,416 parameters, reads 512",
    ):
        assert line in text
    assert "active: 19,488 trainable of" in text
    for method in METHODS:
        assert repr(small_model(method=method))


def test_learning_rates_come_from_override_adapter_or_default():
    model = small_model()
    model.add_adapter("a", preset("el", "speaker"))
    model.add_head("asr", CTCHead())
    assert model.learning_rates() == {"e": 1e-5, "l": 1e-4, "norm": 1e-5, "head": 5e-4}
    assert model.learning_rates({"l": 1.0})["l"] == 1.0
    with pytest.raises(ConfigError, match="learning rate for unknown group 'lora'; this model has e, l, norm, head"):
        model.learning_rates({"lora": 1.0})
    model.add_adapter("b", LoRA(learning_rate=3e-3))
    model.set_head(None)
    assert model.learning_rates() == {"lora": 3e-3}
    model.add_adapter("c", LoRA())
    assert model.learning_rates() == {"lora": 1e-3}


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_another_precision_makes_no_other_base(cast, tmp_path):
    model = small_model(method="elp", head=True)
    model.save_adapter("a", tmp_path / "before")
    getattr(model, cast)()
    model.load_adapter(tmp_path / "before", "b")
    model.save_adapter("a", tmp_path / "after")
    small_model().load_adapter(tmp_path / "after")


def test_wrong_names_are_config_errors():
    model = small_model(method="lora", head=True)
    for name in ("", "a b", "-a", "a.b", "é"):
        with pytest.raises(ConfigError, match="adapter name .*: use letters, digits"):
            model.add_adapter(name, "lora")
    for name in ("train", "keys", "type"):
        with pytest.raises(ConfigError, match=f"adapter name '{name}' is reserved by torch"):
            model.add_adapter(name, "lora")
        with pytest.raises(ConfigError, match=f"head name '{name}' is reserved by torch"):
            model.add_head(name, CTCHead())
    with pytest.raises(ConfigError, match="adapter 'a' exists already; delete it first"):
        model.add_adapter("a", "lora")
    with pytest.raises(ConfigError, match="head 'asr' exists already"):
        model.add_head("asr", CTCHead())
    with pytest.raises(ConfigError, match="no adapter 'b'; there are: a"):
        model.set_active("b")
    with pytest.raises(ConfigError, match=r"Stack\('a', 'a'\): each name may occur once"):
        model.set_active("a", "a")
    for wrong in (model.delete_adapter, model.fold_adapter, lambda name: model.save_adapter(name, "x")):
        with pytest.raises(ConfigError, match="no adapter 'b'"):
            wrong("b")
    for wrong in (model.set_head, model.delete_head, lambda name: model.save_head(name, "x")):
        with pytest.raises(ConfigError, match="no head 'b'; there are: asr"):
            wrong("b")
    with pytest.raises(ConfigError, match="unknown adapter preset 'elpp'. Did you mean 'elp'?"):
        model.add_adapter("b", "elpp")
    with pytest.raises(ConfigError, match="adapter 'b': give a preset's name or an adapter config, not 3"):
        model.add_adapter("b", 3)
    with pytest.raises(ConfigError, match="head 'b': give a head config such as CTCHead"):
        model.add_head("b", "ctc")
    assert list(model.adapters) == ["a"] and model.active_adapters == ("a",) and model.active_head == "asr"


def test_a_training_that_cannot_be_leaves_what_was_active():
    model = small_model(method="el", head=True)
    model.set_active("a", skip_layers=1)
    model.add_adapter("b", "lora")
    model.set_active("a", skip_layers=1)
    for wrong in ({"head": "typo"}, {}):  # no such head; one of another width
        with pytest.raises(ConfigError):
            model.train_adapter("b", train_head=False, **wrong)
    assert (model.active, model.skip_layers, model.active_head, model.train_head) == ("a", 1, "asr", True)


def test_deleting_one_adapter_leaves_the_others_as_they_are():
    model = small_model(method="lora")
    for name in "bc":
        model.add_adapter(name, "lora")
    model.set_active("b", "c", skip_layers=2)
    model.delete_adapter("c")
    assert (model.active, model.skip_layers) == ("b", 2)
    model.fold_adapter("a")
    model.set_active("b", skip_layers=1)
    model.unfold_adapter()
    assert (model.active, model.skip_layers) == ("a", 1)
    model.fold_adapter("a")
    model.set_active("b", skip_layers=1)
    model.delete_adapter("a")
    assert (model.active, model.skip_layers, model.folded_adapter) == ("b", 1, None)
    model.delete_adapter("b")
    assert (model.active, model.skip_layers) == (None, 0)


def test_what_does_not_fit_together_is_a_config_error():
    waveforms, lengths = batch()
    model = small_model(method="el", head=True)
    model.add_adapter("b", "lora")
    message = r"head 'asr' reads features of 512, but the active adapters \['b'\] give 64"
    with pytest.raises(ConfigError, match=message):
        model.train_adapter("b")
    with pytest.raises(ConfigError, match=message):
        model(waveforms, lengths)
    model.set_active()
    with pytest.raises(ConfigError, match=r"active adapters \[\] give 64"):
        model(waveforms, lengths)
    model.set_head(None)
    with pytest.raises(ConfigError, match="targets were given but no head is active"):
        model(waveforms, lengths, targets=TARGETS)
    with pytest.raises(ConfigError, match="e: cannot be folded in, since no change of the base's weights"):
        model.fold_adapter("a")
    base = model(waveforms, lengths)
    hidden = torch.zeros(2, 20, dtype=torch.bool)
    for behind in ({"hidden": base.hidden_states[0]}, {"last_hidden_state": base.last_hidden_state}):
        with pytest.raises(
            ConfigError, match=f"time_mask hides frames below the layers, which {next(iter(behind))} is"
        ):
            model(**behind, frames=base.frame_lengths, time_mask=hidden)
    with pytest.raises(
        ConfigError, match=r"gradient_checkpointing: .* set it on the model, with gradient_checkpointing_e"
    ):
        model(waveforms, lengths, gradient_checkpointing=True)
    model.set_active("b", "a")
    with pytest.raises(ConfigError, match="start_layer=1: adapter 'b' acts from layer 0 on; start there, below"):
        model(hidden=base.hidden_states[1], frames=base.frame_lengths, start_layer=1)
    model.add_adapter("p", METHODS["p-proj"])
    with pytest.raises(ConfigError, match="adapter 'p' acts before the layers; start from cnn_output"):
        model(hidden=base.hidden_states[0], frames=base.frame_lengths)


def test_wrong_audio_is_an_audio_error():
    model = small_model(method="houlsby")
    waveforms, lengths = batch()
    field = model.encoder.receptive_field
    message = f"an utterance of {field - 1} samples is shorter than the encoder's receptive field of {field} samples"
    with pytest.raises(AudioError, match=message):
        model(waveforms[:, : field - 1])
    with pytest.raises(AudioError, match=message):
        model(waveforms, torch.tensor([6400, field - 1]))
    assert model(waveforms[:, :field]).features.shape == (2, 1, 64)
    for wrong in (waveforms[0], waveforms[None], (waveforms * 1000).short()):
        with pytest.raises(AudioError, match=r"expected a float tensor \(batch, samples\), got"):
            model(wrong)
    for wrong in (torch.tensor([6400, 6401]), lengths[:1], lengths[:, None]):
        with pytest.raises(AudioError, match="lengths: expected 2 numbers of samples, none above 6400, got"):
            model(waveforms, wrong)
