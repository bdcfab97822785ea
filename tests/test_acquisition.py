"""Acquisition functions against problems whose right answer is known."""

from __future__ import annotations

from itertools import combinations, islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from speech_adapters.active.acquisition import UNCERTAINTIES, ctc_uncertainty, entropy, least_confidence, margin
from speech_adapters.active.disagreement import bald, decode_disagreement, monte_carlo_dropout
from speech_adapters.active.diversity import (
    badge,
    cluster_start,
    cluster_then_uncertain,
    ctc_gradient_embeddings,
    gradient_embeddings,
    k_center_greedy,
)
from speech_adapters.errors import ConfigError


def posteriors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(-1)


def test_entropy_is_scipys_also_where_a_class_is_impossible():
    found = entropy(torch.cat([posteriors(20, 6), torch.eye(6)]))
    expected = stats.entropy(torch.cat([posteriors(20, 6), torch.eye(6)]).numpy(), axis=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_each_uncertainty_picks_what_it_is_made_for():
    tie, flat, sure = [0.49, 0.49, 0.01, 0.01], [0.4, 0.2, 0.2, 0.2], [0.97, 0.01, 0.01, 0.01]
    table = torch.tensor([tie, flat, sure])
    assert entropy(table).argmax() == 1 and margin(table).argmax() == 0 and least_confidence(table).argmax() == 1
    assert all(function(table).argmin() == 2 for function in UNCERTAINTIES.values())
    torch.testing.assert_close(margin(table), torch.tensor([1.0, 0.8, 0.04]))
    torch.testing.assert_close(least_confidence(table), torch.tensor([0.51, 0.6, 0.03]))


@pytest.mark.parametrize("name", UNCERTAINTIES)
def test_ctc_uncertainty_averages_spoken_frames_only(name):
    blank = [0.97, 0.01, 0.01, 0.01]
    spoken, other = [0.1, 0.6, 0.2, 0.1], [0.05, 0.05, 0.85, 0.05]
    frames = torch.tensor([[blank, spoken, blank, other, blank], [blank, blank, spoken, other, other]])
    found = ctc_uncertainty(name, frames, torch.tensor([5, 2]), blank=0)
    value = UNCERTAINTIES[name]
    expected = value(torch.tensor([spoken, other])).mean()
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], value(torch.tensor([blank])).mean())  # nothing was said in its two frames
    longer = torch.cat([frames[:1], torch.tensor([[blank] * 40])], dim=1)
    torch.testing.assert_close(ctc_uncertainty(name, longer, torch.tensor([45]), blank=0)[0], expected)


def test_bald_is_zero_on_agreement_and_log_two_on_certain_contradiction():
    same = posteriors(1, 4, 5).expand(3, 4, 5)
    torch.testing.assert_close(bald(same), torch.zeros(4), atol=1e-6, rtol=0)
    opposed = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    torch.testing.assert_close(bald(opposed), torch.tensor([np.log(2)], dtype=torch.float32))


def test_bald_finds_disagreement_where_entropy_finds_doubt():
    doubt, contradiction = [[0.5, 0.5]] * 2, [[0.9, 0.1], [0.1, 0.9]]
    table = torch.tensor([doubt, contradiction]).transpose(0, 1)
    assert bald(table).argmax() == 1
    torch.testing.assert_close(entropy(table.mean(0)), torch.full((2,), float(np.log(2))))


def test_decode_disagreement_counts_words():
    found = decode_disagreement([["A B C D", "X", "", "A"], ["A B C D", "Y", "", "A B"], ["A B X D", "X", "", "A B"]])
    np.testing.assert_allclose(found, [(0 + 0.25 + 0.25) / 3, 2 / 3, 0.0, (0.5 + 0.5 + 0) / 3])
    with pytest.raises(ConfigError, match="two decodes"):
        decode_disagreement([["A"]])


def test_monte_carlo_dropout_is_on_inside_only():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.0)).eval()
    data = torch.ones(1, 4)
    before = model(data)
    with monte_carlo_dropout(model, 0.5):
        assert len({tuple(model(data)[0].tolist()) for _ in range(20)}) > 1
    assert torch.equal(model(data), before) and model[1].p == 0.0 and not model[1].training
    with pytest.raises(ConfigError), monte_carlo_dropout(model, 0.0):
        pass


# ---------------------------------------------------------------------- diversity


def radius(points: np.ndarray, centres: list[int], labelled: np.ndarray) -> float:
    chosen = np.concatenate([points[centres], labelled])
    return max(np.linalg.norm(chosen - point, axis=1).min() for point in points)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 4), labelled=st.integers(0, 2))
def test_k_center_covers_within_twice_the_best_radius(seed, count, labelled):
    rng = np.random.default_rng(seed)
    points, known = rng.normal(size=(9, 2)), rng.normal(size=(labelled, 2))
    picks = list(islice(k_center_greedy(points, known), count))
    best = min(radius(points, list(centres), known) for centres in combinations(range(9), count))
    assert len(set(picks)) == count
    assert radius(points, picks, known) <= 2 * best + 1e-5


def test_k_center_takes_the_farthest_point_each_time():
    points, labelled = np.array([[0.0], [1.0], [2.0], [9.0], [-4.0]]), np.array([[0.0]])
    assert list(k_center_greedy(points, labelled)) == [3, 4, 2, 1, 0]
    assert next(k_center_greedy(points)) == 2  # the nearest to the mean, 1.6


def test_gradient_embedding_equals_autograd():
    torch.manual_seed(0)
    layer, features = torch.nn.Linear(5, 3), torch.randn(4, 5)
    logits = layer(features)
    found = gradient_embeddings(logits.softmax(-1), features)
    for row, logit in zip(found, logits, strict=True):
        loss = F.cross_entropy(logit[None], logit.argmax()[None])
        (expected,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
        torch.testing.assert_close(row.view(3, 5), expected)


def test_ctc_gradient_embedding_equals_autograd():
    torch.manual_seed(1)
    layer, features, lengths = torch.nn.Linear(5, 4), torch.randn(2, 9, 5) * 2, torch.tensor([9, 6])
    logits = layer(features)
    found = ctc_gradient_embeddings(logits, lengths, features, blank=0)
    for i, length in enumerate(lengths.tolist()):
        ids = torch.unique_consecutive(logits[i, :length].argmax(-1))
        text = ids[ids != 0]
        assert len(text)
        loss = F.ctc_loss(logits[i, :length].log_softmax(-1), text, torch.tensor(length), torch.tensor(len(text)), 0,
                          reduction="sum") / len(text)  # fmt: skip
        (expected,) = torch.autograd.grad(loss, layer.weight, retain_graph=True)
        torch.testing.assert_close(found[i].view(4, 5), expected, atol=1e-5, rtol=1e-4)


def test_badge_takes_the_largest_gradient_then_each_direction_once():
    """Four tight directions, one longest: k-means++ needs one of each before it repeats, almost surely."""
    rng = np.random.default_rng(0)
    directions = np.eye(4) * [[5], [5], [5], [6]]
    points = np.repeat(directions, 10, axis=0) + 1e-3 * rng.normal(size=(40, 4))
    for seed in range(20):
        picks = list(islice(badge(points, np.random.default_rng(seed)), 4))
        assert picks[0] // 10 == 3 and {pick // 10 for pick in picks} == {0, 1, 2, 3}
    assert sorted(badge(np.zeros((5, 2)), rng)) == [0, 1, 2, 3, 4]  # all alike: still each once


def test_badge_draws_by_squared_distance():
    points = np.array([[9.0, 0.0], [0.0, 0.0], [6.0, 0.0]])  # squared distances to the first: 0, 81, 9
    second = [list(islice(badge(points, np.random.default_rng(seed)), 2))[1] for seed in range(1500)]
    assert np.mean(np.array(second) == 1) == pytest.approx(0.9, abs=0.03)


def test_clusters_take_turns():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = np.concatenate([c + 0.1 * rng.normal(size=(n, 2)) for c, n in zip(centres, (8, 6, 4), strict=True)])
    unsure = rng.random(18)
    members = [range(8), range(8, 14), range(14, 18)]
    order = list(cluster_start(points, 3, seed=0))
    central = [m[0] + int(np.linalg.norm(points[list(m)] - points[list(m)].mean(0), axis=1).argmin()) for m in members]
    assert sorted(order) == list(range(18)) and order[:3] == central
    assert [next(i for i, m in enumerate(members) if pick in m) for pick in order[:6]] == [0, 1, 2, 0, 1, 2]
    order = list(cluster_then_uncertain(points, unsure, 3, seed=0))
    assert order[:3] == [m[0] + int(unsure[list(m)].argmax()) for m in members]
    assert sorted(order) == list(range(18))
