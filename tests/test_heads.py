"""Utterance heads: poolings, losses, and what every head promises (padding, gradients, saving, precision)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from small_encoders import small_encoder
from small_models import batch

from speech_adapters.adapters import PRESETS
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import AudioError, ConfigError, ManifestError
from speech_adapters.heads import ClassificationHead, SlotsHead, SpeakerHead, balanced_class_weights, head_from_dict
from speech_adapters.heads.margin import CosineClassifier, margin_loss
from speech_adapters.heads.pooling import AttentiveStatisticsPooling, pooling
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.model.inputs import targets_for

LABELS = ("angry", "happy", "sad")
SLOTS = {"action": ("on", "off"), "object": ("lamp", "heat", "none"), "location": ("kitchen", "none")}
SPEAKERS = ("a", "b", "c", "d")

#: Every head, and every choice that changes its computation. A new head is a new row.
HEADS = {
    "linear-mean": ClassificationHead(labels=LABELS),
    "linear-statistics": ClassificationHead(labels=LABELS, pooling="statistics"),
    "linear-attentive": ClassificationHead(labels=LABELS, pooling="attentive", class_weights=(1.0, 2.0, 0.5)),
    "conv": ClassificationHead(labels=LABELS, network="conv", hidden_size=32),
    "slots": SlotsHead(slots=SLOTS),
    "speaker-mean-ce": SpeakerHead(speakers=SPEAKERS, embedding_size=48, pooling="mean", loss="ce"),
    "speaker-statistics-aam": SpeakerHead(speakers=SPEAKERS, embedding_size=48),
    "speaker-attentive-am": SpeakerHead(speakers=SPEAKERS, embedding_size=48, pooling="attentive", loss="am"),
    "xvector": SpeakerHead(speakers=SPEAKERS, network="xvector", embedding_size=48, channels=32, loss="subcenter"),
    "ecapa": SpeakerHead(speakers=SPEAKERS, network="ecapa", embedding_size=48, channels=32),
}
TARGETS = {"slots": torch.tensor([[0, 2, 1], [1, 0, 0], [1, 1, 1]])}
LENGTHS = torch.tensor([40, 17, 29])


def built(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return HEADS[name].build(24)


def features(seed: int = 1) -> torch.Tensor:
    return torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(seed))


def utterance(name: str = "u", **values) -> Utterance:
    return Utterance(id=name, audio_filepath=Path(f"/audio/{name}.wav"), duration=1.0, **values)


# ---------------------------------------------------------------- poolings


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 100))
def test_poolings_are_the_formulas_on_the_real_frames(lengths, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (len(lengths), max(lengths), 5)).astype(np.float32)
    real = [row[:n].astype(np.float64) for row, n in zip(x, lengths, strict=True)]
    tensor = torch.from_numpy(x.copy())
    for row, n in zip(tensor, lengths, strict=True):
        row[n:] = torch.nan  # padding must not even be multiplied
    n = torch.tensor(lengths)
    mean = np.stack([r.mean(0) for r in real])
    std = np.stack([r.std(0) for r in real])
    np.testing.assert_allclose(pooling("mean", 5)(tensor, n), mean, atol=1e-5)
    # a single frame has no deviation; the floor of the variance stands in its place
    np.testing.assert_allclose(pooling("statistics", 5)(tensor, n), np.concatenate([mean, std], 1), atol=2e-4)

    attentive = AttentiveStatisticsPooling(5, hidden_size=3)
    first, last = attentive.score[0], attentive.score[2]
    expected = []
    for r in real:
        score = (
            np.tanh(r @ first.weight.detach().numpy().T + first.bias.detach().numpy())
            @ last.weight[0].detach().numpy()
        )
        weight = np.exp(score - score.max())
        weight /= weight.sum()
        centre = weight @ r
        expected.append(np.concatenate([centre, np.sqrt(weight @ (r - centre) ** 2)]))
    np.testing.assert_allclose(attentive(tensor, n).detach(), np.stack(expected), atol=2e-4)


@pytest.mark.parametrize("name", ["statistics", "attentive"])
def test_a_constant_feature_has_a_finite_gradient(name):
    x = torch.ones(2, 6, 4, requires_grad=True)
    pooling(name, 4)(x, torch.tensor([6, 1])).sum().backward()
    assert x.grad.isfinite().all()


# ---------------------------------------------------------------- promises of every head


@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_nothing(name):
    head, x = built(name).eval(), features()
    with torch.no_grad():
        together = head(x, LENGTHS)
        for i, n in enumerate(LENGTHS.tolist()):
            alone = head(x[i : i + 1, :n], LENGTHS[i : i + 1])
            torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-5, rtol=1e-4)
        spoiled = x.clone()
        for row, n in zip(spoiled, LENGTHS.tolist(), strict=True):
            row[n:] = 1e4
        torch.testing.assert_close(head(spoiled, LENGTHS).logits, together.logits)


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns(name):
    head = built(name).train()
    loss = head.loss(head(features(), LENGTHS), TARGETS.get(name, torch.tensor([[0], [2], [1]])))
    loss.backward()
    dead = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert loss.isfinite() and not dead


@pytest.mark.parametrize("name", HEADS)
def test_training_lowers_the_loss(name):
    head, x = built(name).train(), features()
    targets = TARGETS.get(name, torch.tensor([[0], [2], [1]]))
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    curve = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = head.loss(head(x, LENGTHS), targets)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    assert curve[-1] < 0.5 * curve[0]


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_of_one_utterance_trains(name):
    """The last of an epoch may be one: batch norm over utterances has no deviation then."""
    head = built(name)
    targets = TARGETS.get(name, torch.tensor([[0], [2], [1]]))[:1]
    head.loss(head(features()[:1], LENGTHS[:1]), targets).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_mistakes_are_what_the_predictions_get_wrong(name):
    head = built(name).eval()
    answer = head(features(), LENGTHS)
    targets = TARGETS.get(name, torch.tensor([[0], [2], [1]]))
    found, predicted = head.mistakes(answer, targets), head.predict(answer)
    if name.startswith("speaker") or name in ("xvector", "ecapa"):
        assert found is None  # held-out speakers are none of its classes
    elif name == "slots":
        labels = [tuple(v[i] for v, i in zip(SLOTS.values(), row, strict=True)) for row in targets.tolist()]
        assert found == (sum(a != b for a, b in zip(predicted, labels, strict=True)), 3)
    else:
        assert found == (sum(int(p.argmax()) != t for p, [t] in zip(predicted, targets.tolist(), strict=True)), 3)


@pytest.mark.parametrize("name", HEADS)
def test_saving_keeps_every_bit(name, tmp_path):
    model = SpeechAdapterModel(small_encoder())
    torch.manual_seed(3)
    model.add_head("h", HEADS[name])
    model.train_adapter(head="h")
    model(*batch())  # moves the running statistics of batch norm
    model.eval()
    expected = model(*batch())
    model.save_head("h", tmp_path / "h")
    model.delete_head("h")
    model.load_head(tmp_path / "h")
    loaded = model(*batch())
    assert torch.equal(loaded.logits, expected.logits) and model.head.config == HEADS[name]
    if expected.embedding is not None:
        assert torch.equal(loaded.embedding, expected.embedding) and loaded.embedding.shape == (2, 48)


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_autocast_is_close_and_its_loss_is_float32(name):
    head, x = built(name).eval(), features()
    targets = TARGETS.get(name, torch.tensor([[0], [2], [1]]))
    exact = head(x, LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(x.bfloat16(), LENGTHS)
        loss = head.loss(output, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head.loss(exact, targets), atol=0.4, rtol=0.05)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", HEADS)
def test_a_gpu_gives_the_same(name):
    head, x = built(name).eval(), features()
    targets = TARGETS.get(name, torch.tensor([[0], [2], [1]]))
    expected = head(x, LENGTHS)
    loss = head.loss(expected, targets)
    head.cuda()
    output = head(x.cuda(), LENGTHS.cuda())
    torch.testing.assert_close(output.logits.cpu(), expected.logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(head.loss(output, targets.cuda()).cpu(), loss, atol=1e-3, rtol=1e-3)


TASK_HEADS = {"emotion": "linear-mean", "speaker": "speaker-statistics-aam", "intent": "slots"}


@pytest.mark.parametrize("task", TASK_HEADS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_under_every_task(preset, task):
    model = SpeechAdapterModel(small_encoder("wavlm", "pre-norm"))
    torch.manual_seed(4)
    model.add_adapter("a", preset, task)
    model.add_head(task, HEADS[TASK_HEADS[task]])
    model.train_adapter("a", head=task)
    targets = TARGETS["slots"][:2] if task == "intent" else torch.tensor([[0], [2]])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(*batch(), targets=targets).loss.backward()
        optimizer.step()
    model.check_alive()


# ---------------------------------------------------------------- margins


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.6), st.floats(1, 64))
def test_margins_are_the_papers_formulas(seed, margin, scale):
    generator = torch.Generator().manual_seed(seed)
    classifier = CosineClassifier(6, 5)
    embeddings = torch.randn(8, 6, generator=generator)
    targets = torch.randint(5, (8,), generator=generator)
    cosines = classifier(embeddings).detach()
    w, e = (t.double().detach() for t in (classifier.weight, embeddings))
    angles = torch.arccos((e @ w.T) / e.norm(dim=1, keepdim=True) / w.norm(dim=1))
    torch.testing.assert_close(cosines.double(), angles.cos(), atol=1e-6, rtol=0)
    true = torch.nn.functional.one_hot(targets, 5).bool()
    additive = torch.where(true, angles.cos() - margin, angles.cos())
    angular = torch.where(true, (angles + margin).cos(), angles.cos())
    beyond = true & (angles + margin > math.pi)
    angular = torch.where(beyond, angles.cos() - margin * math.sin(margin), angular)
    for kind, logits in (("am", additive), ("aam", angular), ("subcenter", angular)):
        expected = torch.nn.functional.cross_entropy(scale * logits, targets)
        torch.testing.assert_close(
            margin_loss(cosines, targets, kind, margin, scale).double(), expected, atol=1e-3, rtol=1e-4
        )


def test_the_angular_margin_always_falls_with_the_angle():
    cosines = torch.cos(torch.linspace(0, math.pi, 400)).unsqueeze(1)
    others = torch.zeros(400, 1)
    targets = torch.zeros(400, dtype=torch.long)
    losses = [
        margin_loss(torch.cat([c, o]).unsqueeze(0), t.unsqueeze(0), "aam", 0.5, 10.0).item()
        for c, o, t in zip(cosines, others, targets, strict=True)
    ]
    assert all(b >= a - 1e-6 for a, b in pairwise(losses))


def test_a_speaker_is_as_near_as_its_nearest_centre():
    classifier = CosineClassifier(4, 3, subcenters=2)
    embeddings = torch.randn(5, 4)
    with torch.no_grad():
        every = torch.nn.functional.cosine_similarity(embeddings[:, None], classifier.weight[None], dim=2)
        assert torch.allclose(classifier(embeddings), every.view(5, 3, 2).amax(2), atol=1e-6)


def test_the_margin_can_grow_while_training():
    head = built("speaker-statistics-aam")
    output, targets = head(features(), LENGTHS), torch.tensor([[0], [1], [2]])
    before = head.loss(output, targets)
    head.config = replace(head.config, margin=0.5)
    assert head.loss(output, targets) > before


# ---------------------------------------------------------------- labels, weights, slots


def test_class_weights_may_be_whole_numbers():
    targets = torch.tensor([[0], [2]])
    losses = []
    for weights in ((1, 2, 3), (1.0, 2.0, 3.0)):
        torch.manual_seed(0)
        head = ClassificationHead(labels=LABELS, class_weights=weights).build(8).eval()
        losses.append(head.loss(head(torch.ones(2, 5, 8), torch.tensor([5, 3])), targets))
    assert losses[0].isfinite() and torch.equal(*losses)


def test_class_weights_are_scikit_learns():
    emotions = ["angry"] * 5 + ["happy"] * 2 + ["sad"]
    manifest = Manifest([utterance(str(i), emotion=e) for i, e in enumerate(emotions)], "m")
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=np.array(emotions))
    assert balanced_class_weights(manifest, LABELS) == pytest.approx(expected.tolist())
    with pytest.raises(ManifestError, match="no utterance has emotion 'bored', 'calm'; .* out of dev and test too"):
        balanced_class_weights(manifest, (*LABELS, "bored", "calm"))


def test_a_weighted_loss_is_scikit_style_mean():
    head = built("linear-attentive").eval()
    output, targets = head(features(), LENGTHS), torch.tensor([[0], [1], [1]])
    each = -output.logits.log_softmax(1)[range(3), targets[:, 0]]
    torch.testing.assert_close(head.loss(output, targets), (each * torch.tensor([1.0, 2.0, 2.0])).sum() / 5)


def test_slots_add_their_losses_and_decode_each_slice():
    head = built("slots").eval()
    output = head(features(), LENGTHS)
    assert output.logits.shape == (3, 7)
    parts = [(0, 2), (2, 5), (5, 7)]
    expected = sum(
        torch.nn.functional.cross_entropy(output.logits[:, a:b], TARGETS["slots"][:, i])
        for i, (a, b) in enumerate(parts)
    )
    torch.testing.assert_close(head.loss(output, TARGETS["slots"]), expected)
    output.logits = torch.tensor([[0.0, 1, 0, 0, 5, 2, 1]])
    assert head.predict(output) == [("off", "none", "kitchen")]
    heat = utterance(extra={"action": "on", "object": "heat", "location": "none"})
    assert head.config.target(heat) == [0, 1, 1]


def test_slots_take_a_column_each_and_ids_of_their_own():
    head = built("slots").eval()
    scored = head(features(), LENGTHS)
    for targets, message in (
        ([0, 1, 1], r"expected integers \(batch, 3\), one column per label for 3 utterances"),
        ([[0, 2], [1, 0], [0, 0]], r"\(batch, 3\), one column per label"),
        ([[0, 2, 0], [1, 0, 2], [0, 0, 0]], r"id 2 is none of the head's 2 \(0 to 1, -100 pads\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            targets_for(targets, scored, head)
    assert targets_for(TARGETS["slots"], scored, head).tolist() == TARGETS["slots"].tolist()


def test_a_margin_knows_no_utterance_without_a_speaker():
    for loss, fails in (("aam", True), ("ce", False)):
        head = SpeakerHead(speakers=SPEAKERS, loss=loss, embedding_size=8).build(24)
        scored = head(features(), LENGTHS)
        with pytest.raises(ConfigError, match="id -100 is none of the head's .* to [0-9]") if fails else nullcontext():
            targets_for([0, 1, -100], scored, head)


@pytest.mark.parametrize("loss", ["am", "aam", "subcenter"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_centres_of_half_precision_are_read_in_float32(loss, dtype):
    head = SpeakerHead(speakers=SPEAKERS, loss=loss, embedding_size=8).build(24)
    own = head.classifier(torch.ones(2, 8))
    torch.testing.assert_close(head.classifier.to(dtype)(torch.ones(2, 8)), own, atol=0.02, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_ecapa_says_how_short_an_utterance_may_be(training):
    head = built("ecapa").train(training)
    head(features()[:, :5], torch.full((3,), 5))
    with pytest.raises(AudioError, match="network='ecapa' hears 5 frames or more, and an utterance has 4; leave it"):
        head(features()[:, :4], torch.full((3,), 4))
    long = utterance("long", speaker="a")
    short = Manifest([long, replace(long, id="u7", duration=0.07)], "m")
    with pytest.raises(AudioError, match="m: utterance 'u7' has 3 frames and network='ecapa' hears 5"):
        head.config.check(short, small_encoder())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassificationHead(labels=("a",)), "labels=.'a',.: give two or more"),
        (lambda: ClassificationHead(labels=("a", "a")), "two or more different"),
        (lambda: ClassificationHead(labels=LABELS, pooling="max"), "pooling='max'.*mean, statistics, attentive"),
        (lambda: ClassificationHead(labels=LABELS, network="mlp"), "network='mlp'"),
        (lambda: ClassificationHead(labels=LABELS, class_weights=(1.0,)), "give 3 weights, one for each label"),
        (lambda: ClassificationHead(labels=LABELS, hidden_size=0), "hidden_size=0"),
        (lambda: ClassificationHead(labels=LABELS, dropout=1.0), "dropout=1.0"),
        (lambda: SlotsHead(), "slots is empty"),
        (lambda: SlotsHead(slots={"action": ("on",)}), r"slots\['action'\]"),
        (lambda: SpeakerHead(speakers=SPEAKERS, loss="triplet"), "loss='triplet'.*ce, am, aam, subcenter"),
        (lambda: SpeakerHead(speakers=SPEAKERS, margin=2.0), "margin=2.0"),
        (lambda: SpeakerHead(speakers=SPEAKERS, embedding_size=0), "embedding_size=0"),
        (lambda: SpeakerHead(speakers=("a",)), "speakers=.'a',."),
        (lambda: head_from_dict({"head_type": "classification", "label": LABELS}), "did you mean 'labels'"),
        (lambda: margin_loss(torch.zeros(1, 2), torch.tensor([0]), "ce", 0.1, 1.0), "loss='ce' has no margin"),
        (
            lambda: HEADS["conv"].target(utterance("u7", emotion="bored")),
            "'u7': emotion is 'bored'.*angry, happy, sad",
        ),
        (lambda: HEADS["ecapa"].target(utterance("u7")), "'u7': speaker is None"),
    ],
)
def test_bad_settings_and_labels_are_named(make, message):
    with pytest.raises((ConfigError, ManifestError), match=message):
        make()
