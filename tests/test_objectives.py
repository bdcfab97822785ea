"""Masked-prediction objectives: parity with Hugging Face, exact masks and mixtures, and that each one learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoders import small_encoder
from small_models import batch, small_model
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import PRESETS, FineTuning
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import ConfigError
from speech_adapters.objectives.hubert import HuBERTObjective, HuBERTObjectiveConfig
from speech_adapters.objectives.masking import span_mask
from speech_adapters.objectives.units import KMeansUnits
from speech_adapters.objectives.wav2vec2 import Wav2Vec2Objective, Wav2Vec2ObjectiveConfig, draw_negatives
from speech_adapters.objectives.wavlm import WavLMObjective, WavLMObjectiveConfig, mix_utterances

SMALL = {"clusters": 6, "projection_size": 16}


def speech(count: int = 4, samples: int = 9600) -> torch.Tensor:
    """Tones that change three times an utterance: something to predict."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(count):
        pitch = np.repeat(rng.choice([200, 500, 1200, 3000], 4), samples // 4)
        rows.append(0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + 0.01 * rng.standard_normal(samples))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def objective(name: str, model: SpeechAdapterModel, **changes):
    """A small objective; k-means units come fitted on the speech above."""
    torch.manual_seed(0)
    if name == "wav2vec2":
        config = Wav2Vec2ObjectiveConfig(
            **{"entries": 8, "code_size": 16, "projection_size": 16, "negatives": 20} | changes
        )
        return Wav2Vec2Objective(config, model.encoder, model.feature_size)
    config_type, kind = {
        "hubert": (HuBERTObjectiveConfig, HuBERTObjective),
        "wavlm": (WavLMObjectiveConfig, WavLMObjective),
    }[name]
    config = config_type(**SMALL | changes)
    units = KMeansUnits.for_model(model, config.units, config.clusters).fit(model, [speech()])
    return kind(config, model.encoder, model.feature_size, units)


# ---------------------------------------------------------------------- masks


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    probability=st.floats(0.05, 0.95),
    length=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_masks_stay_on_real_frames_and_come_in_spans(lengths, probability, length, seed):
    mask = span_mask(lengths, max(lengths) + 3, probability, length, np.random.default_rng(seed)).numpy()
    for row, real in zip(mask, lengths, strict=True):
        assert row.any() and not row[real:].any()
        edges = np.flatnonzero(np.diff(np.r_[0, row, 0]))
        shortest = length if real >= 2 * length else max(1, real // 2)
        assert (edges[1::2] - edges[::2] >= shortest).all()


def test_published_masks_hide_their_published_share():
    share = {p: span_mask([1500] * 40, 1500, p, 10, np.random.default_rng(0)).float().mean() for p in (0.65, 0.8)}
    assert float(share[0.65]) == pytest.approx(0.49, abs=0.01)  # "approximately 49 %", wav2vec 2.0, section 4.1
    assert float(share[0.8]) == pytest.approx(1 - (1 - 0.08) ** 10, abs=0.01)  # starts differ


@pytest.mark.parametrize("bad", [{"mask_probability": 0.0}, {"mask_probability": 1.0}, {"mask_length": 0}])
def test_bad_masks_are_refused(bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad))}=.*must be"):
        HuBERTObjectiveConfig(**bad)


def test_a_mask_of_an_utterance_without_frames_is_refused():
    with pytest.raises(ConfigError, match="0 real frames"):
        span_mask([0], 10, 0.5, 10, np.random.default_rng(0))


# ---------------------------------------------------------------------- wav2vec 2.0


@pytest.fixture(scope="module", params=["post-norm", "pre-norm"])
def stock(request, tmp_path_factory):
    """A small stock pre-training model, and our encoder loaded from its files."""
    pre_norm = request.param == "pre-norm"
    config = Wav2Vec2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, conv_dim=(32, 32, 32),
        conv_kernel=(10, 8, 4), conv_stride=(10, 8, 4), num_feat_extract_layers=3, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, do_stable_layer_norm=pre_norm,
        feat_extract_norm="layer" if pre_norm else "group", num_codevectors_per_group=12, codevector_dim=32,
        proj_codevector_dim=24, mask_time_prob=0.65,
    )  # fmt: skip
    torch.manual_seed(0)
    stock = Wav2Vec2ForPreTraining(config).eval()
    torch.nn.init.normal_(stock.quantizer.weight_proj.weight)
    folder = tmp_path_factory.mktemp("pretraining")
    stock.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    return stock, load_encoder(folder)


@pytest.mark.parametrize("padded", [False, True])
def test_wav2vec2_equals_hugging_face_on_the_same_masks_and_negatives(stock, padded):
    stock, encoder = stock
    model = SpeechAdapterModel(encoder)
    ours = Wav2Vec2Objective(Wav2Vec2ObjectiveConfig(negatives=7), encoder, model.feature_size).eval()
    assert ours.head_source == "checkpoint"
    waveforms, lengths = batch()
    if not padded:
        lengths = None
    samples = [6400, 6400] if lengths is None else lengths.tolist()
    frames = [int(encoder.frame_lengths(n)) for n in samples]
    rng = np.random.default_rng(3)
    mask = span_mask(frames, max(frames), 0.65, 4, rng)
    negatives = draw_negatives(mask.sum(1).tolist(), 7, rng)

    places = mask.flatten().nonzero()[:, 0]  # numbers of the hidden frames among all frames of the batch
    theirs = torch.zeros(*mask.shape, 7, dtype=torch.long)
    theirs[mask] = places[negatives]
    attention = None if lengths is None else (torch.arange(6400) < lengths[:, None]).long()
    with torch.no_grad():
        expected = stock(waveforms, attention_mask=attention, mask_time_indices=mask, sampled_negative_indices=theirs)
        hidden = model(waveforms, lengths, time_mask=mask, mask_embedding=ours.mask_embedding)
        found = ours.score(model, hidden, waveforms, lengths, mask, rng, negatives=negatives)
    total = int(mask.sum())
    assert found.masked == total
    assert float(found.loss) * total == pytest.approx(float(expected.loss), rel=1e-4)
    assert float(found.figures["perplexity"]) == pytest.approx(float(expected.codevector_perplexity), rel=1e-4)
    assert float(found.figures["contrastive"]) * total == pytest.approx(float(expected.contrastive_loss), rel=1e-4)


def test_an_encoder_without_the_head_gets_a_new_one():
    model = small_model("wavlm")
    assert objective("wav2vec2", model).head_source == "new"


@settings(max_examples=40, deadline=None)
@given(hidden=st.lists(st.integers(2, 30), min_size=1, max_size=4), count=st.integers(1, 40), seed=st.integers(0, 9))
def test_negatives_are_other_hidden_frames_of_the_same_utterance(hidden, count, seed):
    drawn = draw_negatives(hidden, count, np.random.default_rng(seed)).numpy()
    owner = np.repeat(np.arange(len(hidden)), hidden)
    assert drawn.shape == (sum(hidden), count)
    assert (owner[drawn] == owner[:, None]).all()
    assert (drawn != np.arange(sum(hidden))[:, None]).all()


# ---------------------------------------------------------------------- units


@pytest.mark.parametrize("source", ["mfcc", "2"])
def test_units_tell_tones_apart_and_ignore_adapters(source):
    model = small_model("wavlm", "pre-norm", "lora-all")
    units = KMeansUnits.for_model(model, source, 6).fit(model, [speech(8)])
    with torch.no_grad():
        found = units(model, speech(8))
        for parameter in model.adapters.parameters():
            parameter += 0.5
        assert torch.equal(units(model, speech(8)), found)  # a unit is the base's, whatever the adapter learnt
    assert found.shape == (8, int(model.encoder.frame_lengths(9600)))
    assert len(found.unique()) == 6
    assert model.active_adapters == ("a",)
    if source == "mfcc":  # frames in the middle of a steady tone agree with their neighbour
        middle = found[:, 2:5]
        assert (middle == middle[:, :1]).float().mean() > 0.8


@pytest.mark.parametrize("source", ["mfcc", "2"])
def test_units_of_an_utterance_are_its_own_whatever_it_is_batched_with(source):
    model = small_model("wavlm", "pre-norm")
    units = KMeansUnits.for_model(model, source, 6)
    waveforms = speech(3)
    waveforms[0, 800:] *= 1e-6  # a burst
    waveforms[1, 4000:] *= 1e-6  # a pause, far below it
    alone = torch.cat([units.features(model, one[None], None) for one in waveforms])
    torch.testing.assert_close(units.features(model, waveforms, None), alone, atol=1e-4, rtol=1e-4)


def test_units_of_no_such_layer_and_too_many_clusters_are_refused():
    model = small_model("hubert")
    for source in ("0", "9", "spectrum"):
        with pytest.raises(ConfigError, match="mfcc, or a layer from 1 to 3"):
            KMeansUnits.for_model(model, source, 5)
    with pytest.raises(ConfigError, match="fewer clusters"):
        KMeansUnits.for_model(model, "mfcc", 5000).fit(model, [speech(1)])


# ---------------------------------------------------------------------- mixing


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), noise=st.floats(0, 1))
def test_mixing_changes_at_most_half_and_never_the_padding(seed, noise):
    waveforms, lengths = batch()
    rng = np.random.default_rng(seed)
    mixed = mix_utterances(waveforms, lengths, rng, 1.0, noise, [torch.randn(900)])
    for row, before, real in zip(mixed, waveforms, lengths.tolist(), strict=True):
        changed = (row != before).nonzero()[:, 0]
        assert len(changed) and changed[-1] < real
        assert changed[-1] - changed[0] + 1 <= real // 2


def test_mixing_adds_at_the_published_energy_ratio():
    waveforms, ratios = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)), []
    for seed in range(100):
        mixed = mix_utterances(waveforms, None, np.random.default_rng(seed), 1.0, 0.0)
        added = mixed[0] - waveforms[0]
        where = added != 0
        if where.sum() > 50:
            ratios.append(10 * torch.log10(waveforms[0][where].square().sum() / added[where].square().sum()))
    assert -5.05 < min(ratios) < -3 and 3 < max(ratios) < 5.05


def test_nothing_is_mixed_at_probability_zero():
    waveforms, lengths = batch()
    assert torch.equal(mix_utterances(waveforms, lengths, np.random.default_rng(0), 0.0, 0.5), waveforms)


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
def test_each_objective_overfits_a_tiny_set(name, family):
    """Every layer and the head, on four utterances with the masks of one draw: the loss falls by half."""
    model = SpeechAdapterModel(small_encoder(family, "pre-norm"))
    model.add_adapter("a", FineTuning())
    model.train_adapter("a")
    learnt = objective(name, model, **({"mix_probability": 0.5} if name == "wavlm" else {}))
    parameters = [*model.parameter_groups()["layers"], *learnt.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    waveforms, losses = speech(), []
    for step in range(120):
        learnt.set_step(10**6 if name == "wav2vec2" else step)  # the last Gumbel temperature: little noise
        torch.manual_seed(0)
        output = learnt(model, waveforms, None, np.random.default_rng(0))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
        if losses[-1] < 0.45 * losses[0]:
            break
    assert losses[-1] < 0.5 * losses[0], losses[::20]


ALIVE = sorted(set(PRESETS) - {"head-only", "full", "last-2"})


@pytest.mark.parametrize("method", ALIVE)
@pytest.mark.parametrize("name", ["wav2vec2", "hubert"])
def test_every_tensor_of_every_adapter_learns_from_an_objective(name, method):
    model = small_model("wavlm", "pre-norm", method)
    before = {n: p.clone() for n, p in model.encoder.named_parameters()}
    learnt = objective(name, model)
    parameters = [p for group in model.parameter_groups().values() for p in group]
    optimizer = torch.optim.SGD([*parameters, *learnt.parameters()], lr=0.1)
    for step in range(2):
        output = learnt(model, *batch(), np.random.default_rng(step))
        optimizer.zero_grad()
        output.loss.backward()
        if step == 1:
            model.check_alive()
            assert learnt.mask_embedding.grad.abs().sum() > 0
        optimizer.step()
    frozen = {n: p for n, p in model.encoder.named_parameters() if ".lora_" not in n}
    assert all(torch.equal(before[n], p) for n, p in frozen.items())  # the base's mask embedding among them


def test_an_objective_with_an_active_head_is_refused():
    model = small_model("hubert", head=True)
    with pytest.raises(ConfigError, match="set_head"):
        objective("hubert", model)(model, *batch(), np.random.default_rng(0))


def test_the_same_seed_draws_the_same_loss_and_bad_settings_are_refused():
    model = small_model("wavlm", "pre-norm", "e")
    learnt = objective("wavlm", model, mix_probability=1.0).eval()
    with torch.no_grad():
        first, again, other = (learnt(model.eval(), *batch(), np.random.default_rng(s)).loss for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    for bad in ({"mix_probability": 1.5}, {"noise_probability": -0.1}, {"clusters": 1}):
        with pytest.raises(ConfigError):
            WavLMObjectiveConfig(**bad)
    for bad in ({"negatives": 0}, {"groups": 3}):
        with pytest.raises(ConfigError):
            Wav2Vec2ObjectiveConfig(**bad)


def test_alpha_weighs_hidden_against_seen_frames():
    """The seen frames are what the mask leaves: swapping the two swaps the losses; padding counts in neither."""
    model = small_model("hubert", "pre-norm", "e").eval()
    learnt = objective("hubert", model).eval()
    (waveforms, lengths), rng = batch(), np.random.default_rng(0)
    frames = model.encoder.frame_lengths(lengths).tolist()
    hidden = span_mask(frames, max(frames), 0.5, 3, rng)
    real = torch.arange(max(frames)) < torch.tensor(frames)[:, None]

    def loss(alpha: float, mask: torch.Tensor) -> float:
        learnt.config = replace(learnt.config, alpha=alpha)
        with torch.no_grad():
            output = model(waveforms, lengths)  # nothing hidden: both parts read the same features
            return float(learnt.score(model, output, waveforms, lengths, mask, rng).loss)

    masked, seen = loss(1.0, hidden), loss(1.0, ~hidden & real)
    assert loss(0.3, hidden) == pytest.approx(0.3 * masked + 0.7 * seen, rel=1e-5)
    assert loss(0.3, real) == pytest.approx(loss(1.0, real)), "nothing is seen"
    with pytest.raises(ConfigError, match="alpha"):
        HuBERTObjectiveConfig(alpha=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
def test_objectives_run_on_a_gpu(name):
    model = small_model("wavlm", "pre-norm", "e")
    learnt = objective(name, model).cuda()
    model.cuda()
    waveforms, lengths = batch()
    learnt(model, waveforms.cuda(), lengths.cuda(), np.random.default_rng(0)).loss.backward()
    assert learnt.mask_embedding.grad.is_cuda
