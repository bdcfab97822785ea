"""What a router reads has zero mean and unit variance over its training, however it came and whatever the channels."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import TARGETS, batch, parameters
from test_composition import drawer

from speech_adapters.composition import Route, RouterConfig
from speech_adapters.composition.standardization import Standardization
from speech_adapters.errors import CheckpointError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.saving.parts import load_part, save_part


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 99))
def test_pieces_of_any_size_give_the_moments_of_the_whole(sizes, seed):
    torch.manual_seed(seed)
    rows = torch.randn(sum(sizes), 3) * torch.tensor([1.0, 1e-3, 30.0]) + torch.tensor([0.0, 1.0, 200.0])
    found = Standardization(3)
    for piece in rows.split(sizes):
        found.learn(piece)
    assert int(found.count) == len(rows)
    expected = rows
    if len(rows) > 1:
        variance, mean = torch.var_mean(rows.double(), 0, correction=0)
        expected = ((rows - mean) / (variance + 1e-5).sqrt()).float()
    torch.testing.assert_close(found(rows), expected, atol=2e-3, rtol=1e-3)


def trained(per="utterance", blind=False):
    """A router that was told which member each utterance is of, above a CNN with a channel that drowns all others."""
    model = drawer("e", "e")
    with torch.no_grad():
        model.encoder.model.feature_extractor.conv_layers[-1].layer_norm.bias[0] = 3000.0
    model.add_head("asr", CTCHead())
    model.add_fusion(Route("a", "b"), RouterConfig(guide_weight=10.0, per=per))
    if blind:
        model.fusions["route-a-b"].heard = None
    model.train_fusion("route-a-b", train_head=False)
    optimizer = torch.optim.Adam(parameters(model), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(*batch(), targets=TARGETS, guide=torch.tensor([1, 0])).loss.backward()
        optimizer.step()
    return model.eval()


def chosen(model):
    """(B, N) mean weights of the members."""
    output = model(*batch())
    gate, mask = output.attention["route-a-b.gate"], output.mask.unsqueeze(-1)
    return gate[:, 0] if gate.shape[1] == 1 else (gate * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("per", ["utterance", "frame"])
def test_a_channel_that_drowns_the_others_does_not_blind_a_router(per):
    model = trained(per)
    frames = 2 if per == "utterance" else int(model(*batch()).mask.sum())
    assert int(model.fusions["route-a-b"].heard.count) == 20 * frames  # none of padding
    told = chosen(model)[[0, 1], [1, 0]]
    assert (told > 0.9).all() if per == "utterance" else (told > 0.5).all()
    assert (chosen(trained(per, blind=True))[[0, 1], [1, 0]] < told - 0.05).any()


def test_scoring_and_frozen_routers_hear_nothing_new():
    model = trained()
    router = model.fusions["route-a-b"]
    before = {name: tensor.clone() for name, tensor in router.state_dict().items()}
    model(*batch())
    model.train()
    with torch.no_grad():
        model(*batch())
    router.requires_grad_(False)
    model(*batch(), targets=TARGETS, guide=torch.tensor([1, 0]))
    same = {name: torch.equal(tensor, before[name]) for name, tensor in router.state_dict().items()}
    assert all(same.values()), same


def test_a_copy_of_what_was_heard_goes_on_from_it():
    router = trained().fusions["route-a-b"]
    rows = torch.randn(4, len(router.heard.mean))
    twin = copy.deepcopy(router.heard)
    for piece in (rows[:1], rows[1:]):
        router.heard.learn(piece)
    twin.learn(rows)
    torch.testing.assert_close(router.heard(rows), twin(rows), atol=1e-4, rtol=1e-4)


def test_what_was_heard_is_saved_and_older_files_have_none(tmp_path):
    model = trained()
    for name in ("a", "b"):
        model.save_adapter(name, tmp_path / name)
    model.save_fusion("route-a-b", tmp_path / "new")
    description, tensors = load_part(tmp_path / "new", "fusion")
    assert {"heard.count", "heard.mean", "heard.spread"} <= tensors.keys()

    def opened(folder):
        other = drawer(head=True)
        with torch.no_grad():
            other.encoder.model.load_state_dict(model.encoder.model.state_dict())
        for name in ("a", "b"):
            other.load_adapter(tmp_path / name)
        other.load_fusion(folder)
        return other.eval()

    assert torch.equal(chosen(opened(tmp_path / "new")), chosen(model))
    old = {name: tensor for name, tensor in tensors.items() if not name.startswith("heard.")}
    save_part(tmp_path / "old", "fusion", description, old)
    model.fusions["route-a-b"].heard = None  # as it was computed then
    assert torch.equal(chosen(opened(tmp_path / "old")), chosen(model))
    save_part(tmp_path / "part", "fusion", description, old | {"heard.mean": tensors["heard.mean"]})
    with pytest.raises(CheckpointError, match=r"'heard.count' is missing"):
        opened(tmp_path / "part")
