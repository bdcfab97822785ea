"""Merging in weight space against hand-made sums, for every method and kind of adapter, and for heads."""

from __future__ import annotations

import pytest
import torch
from small_models import METHODS, batch, small_model
from test_composition import drawer, features

from speech_adapters.adapters import BitFit, Bottleneck, Combine, LoRA
from speech_adapters.composition import task_singular_vectors
from speech_adapters.composition.weight_averaging import AVERAGING_METHODS, average
from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.text import Vocabulary


def tensors(model, name):
    return {key: tensor.clone() for key, tensor in model.adapters[name].tensors().items()}


@pytest.mark.parametrize("kind", METHODS)
def test_every_kind_averages_and_copies(kind):
    model = drawer(kind, kind)
    a, b = tensors(model, "a"), tensors(model, "b")
    model.average_adapters("copy", {"a": 1.0})
    assert model.active == "copy"
    assert all(torch.equal(tensor, a[key]) for key, tensor in tensors(model, "copy").items())
    model.average_adapters("mean", {"a": 0.25, "b": 0.75})
    for key, tensor in tensors(model, "mean").items():
        torch.testing.assert_close(tensor, 0.25 * a[key] + 0.75 * b[key])


@pytest.mark.parametrize("method", [m for m in AVERAGING_METHODS if m not in ("svd", "tsv")])
@pytest.mark.parametrize("kind", ["el", "lora", "full"])
def test_methods_act_on_the_change_from_the_start(kind, method):
    model = drawer(kind, kind)
    start = model.adapters["a"].config.fixed_start(model.encoder)
    if kind == "full":
        assert set(start) == set(tensors(model, "a"))
    options = {} if method == "linear" else {"density": 0.5}
    model.average_adapters("c", {"a": 0.6, "b": -0.3}, method, **options)
    averaged = tensors(model, "c")
    key = next(key for key in averaged if key.endswith(("norm.weight", "lora_B.weight")))
    base = start.get(key, torch.zeros(()))
    changes = [tensors(model, name)[key] - base for name in "ab"]
    change = averaged[key] - base
    if method == "linear":
        torch.testing.assert_close(change, 0.6 * changes[0] - 0.3 * changes[1], atol=1e-6, rtol=1e-4)
    elif method == "magnitude_prune":
        kept = [c * (c.abs() >= c.abs().flatten().sort(descending=True).values[c.numel() // 2 - 1]) for c in changes]
        torch.testing.assert_close(change, 0.6 * kept[0] - 0.3 * kept[1], atol=1e-6, rtol=1e-4)
    elif method == "dare_linear":
        # Each value of each member is dropped or doubled.
        sums = torch.stack([0.6 * changes[0] * i - 0.3 * changes[1] * j for i in (0, 2) for j in (0, 2)])
        assert (change - sums).abs().amin(0).max() < 1e-6
    assert torch.isfinite(change).all() and change.any()


@pytest.mark.parametrize("method", [m for m in AVERAGING_METHODS if m not in ("svd", "tsv")])
@pytest.mark.parametrize("inside", [False, True])
def test_untouched_doras_average_to_the_frozen_base(method, inside):
    config = LoRA(variant="dora", targets=("q_proj", "output_dense"))
    model = small_model()
    base = features(model, None)
    for name in "ab":
        model.add_adapter(name, Combine(parts=(BitFit(), config)) if inside else config)
    model.average_adapters("c", {"a": 0.6, "b": -0.3}, method, **({} if method == "linear" else {"density": 0.5}))
    started = tensors(model, "a")
    for key, tensor in tensors(model, "c").items():
        if "lora_A" not in key:  # which B, zero, leaves without effect
            assert torch.equal(tensor, started[key]), key
    torch.testing.assert_close(features(model, "c"), base, atol=1e-5, rtol=0)


def test_dare_follows_its_seed_and_leaves_the_global_one_alone():
    model = drawer("houlsby", "houlsby")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        members = {key: model.adapters[key] for key in "ab"}
        averaged = average(members, {"a": 0.5, "b": 0.5}, "dare_ties", density=0.3, seed=seed).tensors
        if name == "one":
            first = averaged
        else:
            equal = all(torch.equal(first[key], averaged[key]) for key in first)
            assert equal == (name == "same")
    assert torch.equal(torch.rand(3), expected)


def test_svd_is_the_best_low_rank_sum_of_updates():
    model = drawer(LoRA(rank=2, alpha=4), LoRA(rank=2, alpha=4))
    weights = {"a": 0.7, "b": 0.3}
    expected = [0.7 * a + 0.3 * b for a, b in zip(updates(model, "a"), updates(model, "b"), strict=True)]
    model.average_adapters("whole", weights, "svd", rank=4)
    for one, other in zip(updates(model, "whole"), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    model.average_adapters("cut", weights, "svd")
    assert model.adapters["cut"].config.rank == 2
    for one, other in zip(updates(model, "cut"), expected, strict=True):
        tail = torch.linalg.svdvals(other)[2:]
        torch.testing.assert_close((one - other).norm(), tail.norm(), atol=1e-5, rtol=1e-3)


def test_svd_adds_changes_to_the_update_of_their_start():
    model = drawer(*[LoRA(rank=2, alpha=4)] * 3)
    model.average_adapters("sum", {"b": 1.0, "c": 0.5}, "svd", rank=6, base="a")
    for whole, a, b, c in zip(*(updates(model, name) for name in ("sum", "a", "b", "c")), strict=True):
        torch.testing.assert_close(whole, a + (b - a) + 0.5 * (c - a), atol=1e-5, rtol=1e-4)
    model.average_adapters("still", {"a": 2.0}, "svd", base="a")  # a has not moved from its start
    for still, a in zip(updates(model, "still"), updates(model, "a"), strict=True):
        torch.testing.assert_close(still, a, atol=1e-5, rtol=1e-4)


def updates(model, name):
    own, config = tensors(model, name), model.adapters[name].config
    return [config.alpha / config.rank * own[k.replace("lora_A", "lora_B")] @ own[k] for k in own if "lora_A" in k]


def whitened(matrix):
    """``X (X' X)^-1/2`` by eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    return matrix @ vectors @ torch.diag(values.rsqrt()) @ vectors.T


def test_tsv_of_matrices_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    changes = [torch.randn(8, 12, generator=generator, dtype=torch.float64) for _ in range(3)]
    parts = [torch.linalg.svd(change, full_matrices=False) for change in changes]
    left = torch.cat([u[:, :2] for u, _, _ in parts], 1)  # min(8, 12) / 3 of each
    right = torch.cat([v[:2] for _, _, v in parts])
    values = torch.cat([3 * w * s[:2] for w, (_, s, _) in zip((0.5, 0.25, 0.25), parts, strict=True)])
    expected = whitened(left) @ torch.diag(values) @ whitened(right.T).T
    torch.testing.assert_close(task_singular_vectors.merge(changes, (0.5, 0.25, 0.25)), expected)
    torch.testing.assert_close(task_singular_vectors.merge(changes[:1], [1.0]), changes[0])
    assert not task_singular_vectors.merge([torch.zeros(3, 3)] * 2, (0.5, 0.5)).any()


def test_tsv_gives_each_lora_its_strength_and_what_does_not_overlap_stays():
    model = drawer(LoRA(rank=2, alpha=4), LoRA(rank=2, alpha=4))
    for name, start in (("a", 0), ("b", 2)):  # rows and columns of their own
        for key, tensor in model.adapters[name].tensors().items():
            axis = tensor if "lora_A" in key else tensor.T
            with torch.no_grad():
                axis[:, :start] = axis[:, start + 2 :] = 0
    model.average_adapters("tsv", {"a": 0.5, "b": 0.5}, "tsv")
    assert model.adapters["tsv"].config.rank == 4
    for merged, a, b in zip(*(updates(model, name) for name in ("tsv", "a", "b")), strict=True):
        torch.testing.assert_close(merged, a + b, atol=1e-5, rtol=1e-4)
    model.average_adapters("cut", {"a": 0.5, "b": 0.5}, "tsv", rank=2)
    assert model.adapters["cut"].config.rank == 2 and model.adapters["cut"].config.alpha == 4
    model.average_adapters("late", {"a": 0.5, "b": 0.5}, "tsv", base="a")  # a has not moved from its start
    for merged, a, b in zip(*(updates(model, name) for name in ("late", "a", "b")), strict=True):
        torch.testing.assert_close(merged, a + (b - a), atol=1e-5, rtol=1e-4)


def test_tsv_of_any_adapter_merges_changes_and_comes_back_bit_for_bit(tmp_path):
    model = drawer("el", "el")
    start = model.adapters["a"].config.fixed_start(model.encoder)
    model.average_adapters("c", {"a": 0.5, "b": 0.5}, "tsv")
    merged, a, b = (tensors(model, name) for name in "cab")
    for key, tensor in merged.items():
        base = start.get(key, torch.zeros_like(tensor))
        if tensor.dim() == 2:
            changes = [a[key] - base, b[key] - base]
            torch.testing.assert_close(tensor - base, task_singular_vectors.merge(changes, (0.5, 0.5)).float())
        else:
            torch.testing.assert_close(tensor, (a[key] + b[key]) / 2)
    expected = features(model, "c")
    model.save_adapter("c", tmp_path / "c")
    model.load_adapter(tmp_path / "c", "d")
    assert torch.equal(features(model, "d"), expected)


def test_task_arithmetic_from_a_common_start_adds_what_was_learnt():
    model = drawer("houlsby")
    model.average_adapters("b", {"a": 1.0})
    model.average_adapters("c", {"a": 1.0})
    with torch.no_grad():
        for number, name in enumerate("bc", 1):
            for parameter in model.adapters[name].parameters():
                parameter += 0.01 * number
    model.average_adapters("sum", {"b": 1.0, "c": -1.0}, base="a")
    for key, tensor in tensors(model, "sum").items():
        torch.testing.assert_close(tensor, tensors(model, "a")[key] - 0.01, atol=1e-6, rtol=0)
    assert not torch.allclose(features(model, "sum"), features(model, "a"))
    model.add_adapter("other", "lora")
    with pytest.raises(ConfigError, match="'b' and 'other' have different configurations"):
        model.average_adapters("late", {"b": 1.0}, base="other")


def test_heads_average_too():
    model = small_model()
    for name in ("one", "two"):
        model.add_head(name, CTCHead())
    model.average_heads("mean", {"one": 0.5, "two": 0.5})
    assert model.active_head == "mean" and not model.head.training
    mean = (model.heads["one"].linear.weight + model.heads["two"].linear.weight) / 2
    torch.testing.assert_close(model.head.linear.weight, mean)
    assert model(*batch()).logits.shape[-1] == 32
    model.add_head("small", CTCHead(Vocabulary.from_texts(["ab"])))
    with pytest.raises(ConfigError, match=r"'one' and 'small' have different configurations \(vocabulary\)"):
        model.average_heads("x", {"one": 0.5, "small": 0.5})


def test_what_cannot_be_averaged_is_refused():
    model = drawer("houlsby", Bottleneck(size=3), "lora", LoRA(rank=8, learning_rate=1e-5), "dora")
    for weights, options, message in (
        (
            {"a": 1.0, "b": 1.0},
            {},
            r"'a' and 'b' have different configurations \(.*sites.*\); only weights of the same",
        ),
        ({"a": 1.0, "c": 1.0}, {}, "have different configurations"),
        ({"a": 1.0}, {"method": "mean"}, "method 'mean' is unknown; choose from linear, svd, ties"),
        ({}, {}, "give at least one name with its weight"),
        ({"a": 1.0}, {"method": "ties"}, "need density, a share above 0 and up to 1"),
        ({"a": 1.0}, {"density": 0.5}, "the others take none"),
        ({"a": 1.0}, {"method": "ties", "density": 0.0}, "need density"),
        ({"a": 1.0}, {"rank": 2}, "it belongs to 'svd', and to 'tsv' of LoRA"),
        ({"a": 1.0}, {"method": "tsv", "rank": 2}, "it belongs to 'svd', and to 'tsv' of LoRA"),
        ({"e": 1.0}, {"method": "tsv"}, "method='tsv' is for LoRA and rsLoRA"),
        ({"a": 1.0}, {"method": "svd"}, "method='svd' is for LoRA and rsLoRA"),
        ({"e": 1.0}, {"method": "svd"}, "method='svd' is for LoRA and rsLoRA"),
        ({"c": 1.0}, {"method": "svd", "rank": 65}, "rank=65 is above the projections' own 64"),
        ({"x": 1.0}, {}, "no adapter 'x'"),
        ({"c": 0.0, "d": -0.0}, {}, "all weights are 0"),
        ({"c": 1.0, "d": float("nan")}, {}, "the weight of 'd' is nan; give a finite number"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.average_adapters("new", weights, **options)
    assert "new" not in model.adapters
    model.average_adapters("new", {"c": 0.5, "d": 0.5})  # learning rates do not matter
