"""Embeddings, cosine scores, their normalisation and calibration, against formulas written out trial by trial."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from speech_adapters.data.embeddings import Embeddings, average_embeddings
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.inference.outputs import mean_pooled
from speech_adapters.inference.utterances import verify
from speech_adapters.metrics import trial_scores as scoring
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.metrics.detection import cllr, eer, min_cllr
from speech_adapters.metrics.trial_scores import cosine_scores, normalize_scores


def vectors(count: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 0.3


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a.double() @ b.double() / a.double().norm() / b.double().norm())


@pytest.fixture(params=["one chunk", "many chunks"])
def case(request, monkeypatch) -> SimpleNamespace:
    if request.param == "many chunks":
        monkeypatch.setattr(scoring, "_CHUNK_VALUES", 30)
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 5, 40).astype(np.int32), rng.integers(0, 9, 40).astype(np.int32)
    return SimpleNamespace(enrol=vectors(5), test=vectors(9, seed=1), cohort=vectors(12, seed=2), pairs=pairs)


def test_cosine_of_each_trial(case):
    scores = cosine_scores(case.enrol, case.test, *case.pairs)
    expected = [cosine(case.enrol[i], case.test[j]) for i, j in zip(*case.pairs, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("top", [None, 4, 12])
def test_score_normalisation_is_its_formula(case, top):
    scores = cosine_scores(case.enrol, case.test, *case.pairs)
    normalized = normalize_scores(scores, case.enrol, case.test, *case.pairs, case.cohort, top=top)
    for s, z, i, j in zip(scores, normalized, *case.pairs, strict=True):
        sides = []
        for side in (case.enrol[i], case.test[j]):
            against = sorted((cosine(side, other) for other in case.cohort), reverse=True)[:top]
            sides.append((s - np.mean(against)) / np.std(against))
        assert z == pytest.approx(sum(sides) / 2, abs=2e-4)


def test_cohorts_that_do_not_fit(case):
    scores = np.zeros(40)
    with pytest.raises(ConfigError, match="top=13 of a cohort of 12"):
        normalize_scores(scores, case.enrol, case.test, *case.pairs, case.cohort, top=13)
    with pytest.raises(ConfigError, match="width 3, the trials' 8"):
        normalize_scores(scores, case.enrol, case.test, *case.pairs, vectors(12, 3))


def test_parts_of_speechbrain_change_no_product_of_others(monkeypatch):
    code = """
import os, torch
from speech_adapters.speechbrain_parts import from_speechbrain
from speech_adapters.heads.speaker import SpeakerHead
SpeakerHead(("a", "b"), network="ecapa", channels=8).build(8)
from_speechbrain("processing.PLDA_LDA")
print(torch.backends.cuda.matmul.allow_tf32, os.environ.get("SB_DISABLE_QUIRKS"))
"""
    for before in (None, "disable_jit_profiling"):
        if before:
            monkeypatch.setenv("SB_DISABLE_QUIRKS", before)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", str(before)]


@pytest.mark.gpu
def test_scores_on_a_gpu_are_the_same(case, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)  # as speechbrain's own import leaves it
    on_cpu = cosine_scores(case.enrol, case.test, *case.pairs)
    on_gpu = cosine_scores(case.enrol, case.test, *case.pairs, device="cuda")
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-5)
    options = {"top": 4}
    np.testing.assert_allclose(
        normalize_scores(on_gpu, case.enrol, case.test, *case.pairs, case.cohort, device="cuda", **options),
        normalize_scores(on_cpu, case.enrol, case.test, *case.pairs, case.cohort, **options),
        atol=1e-3,
    )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_embeddings_come_back_bit_for_bit(tmp_path, suffix):
    saved = Embeddings(("a/1.wav", "ü", "3"), vectors(3))
    loaded = Embeddings.load(saved.save(tmp_path / "deep" / f"e{suffix}"))
    assert loaded.ids == saved.ids and torch.equal(loaded.vectors, saved.vectors)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == [f"e{suffix}"]
    content = (tmp_path / "deep" / f"e{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"cut{suffix}: no (saved embeddings|numpy file of ids and embeddings)"):
        Embeddings.load(tmp_path / f"cut{suffix}")
    with pytest.raises(InputError, match="no such file"):
        Embeddings.load(tmp_path / f"none{suffix}")


def test_unusable_embeddings_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"e.pt: embeddings are kept in .npz or .safetensors"):
        Embeddings(("a",), vectors(1)).save(tmp_path / "e.pt")
    np.savez(tmp_path / "e.npz", vectors=np.ones((1, 2)))
    with pytest.raises(InputError, match="e.npz: lacks the array ids or embeddings"):
        Embeddings.load(tmp_path / "e.npz")
    with pytest.raises(InputError, match="2 ids for vectors"):
        Embeddings(("a", "b"), vectors(1))
    with pytest.raises(InputError, match="'a' is there twice"):
        Embeddings(("a", "b", "a"), vectors(3))
    for value, message in ((0.0, "'b' is all zeros"), (math.nan, "'b' holds a NaN"), (math.inf, "'b' holds a NaN")):
        broken = vectors(2)
        broken[1] = value
        with pytest.raises(InputError, match=message):
            Embeddings(("a", "b"), broken)


def test_models_are_means_of_unit_vectors():
    embeddings = Embeddings(("a", "b", "c"), torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 0.0]]))
    models = average_embeddings(embeddings, [(0, 1), (2,)], ["m", "n"])
    assert models.ids == ("m", "n")
    torch.testing.assert_close(models.vectors, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))


def test_mean_pooling_leaves_padding_out():
    features = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    pooled = mean_pooled(SimpleNamespace(features=features, mask=mask))
    torch.testing.assert_close(torch.stack(pooled), torch.tensor([[2.0, 3.0], [6.0, 7.0]]))
    whole = mean_pooled(SimpleNamespace(features=features, mask=None))
    torch.testing.assert_close(torch.stack(whole), features.mean(1))


@pytest.mark.parametrize("p_target", [0.5, 0.05])
def test_calibration_minimises_the_weighted_cost(p_target):
    rng = np.random.default_rng(1)
    labels = rng.random(4000) < 0.3
    scores = 0.1 * rng.normal(labels * 2.0, 1.0) + 0.4
    fitted = Calibration.fit(scores, labels, p_target)
    logit = math.log(p_target / (1 - p_target))

    def cost(values):
        llr = values[0] * 10 * scores + values[1]
        miss, fa = np.logaddexp(0, -llr - logit)[labels].mean(), np.logaddexp(0, llr + logit)[~labels].mean()
        return p_target * miss + (1 - p_target) * fa

    best = minimize(cost, [1.0, 0.0], method="BFGS", options={"gtol": 1e-9}).x
    assert (fitted.scale, fitted.offset) == pytest.approx((best[0] * 10, best[1]), rel=1e-3)
    llrs = fitted(scores)
    assert eer(llrs, labels) == eer(scores, labels)
    assert min_cllr(scores, labels) <= cllr(llrs, labels) < min_cllr(scores, labels) + 0.02


def test_calibration_round_trips_and_refuses_what_it_cannot_use(tmp_path):
    fitted = Calibration.fit([0.9, 0.8, 0.1, 0.2], [1, 1, 0, 0])  # separable
    assert math.isfinite(fitted.scale) and fitted(np.array([0.85]))[0] > 0 > fitted(np.array([0.15]))[0]
    fitted.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == fitted
    (tmp_path / "c.json").write_text('{"scale": 1, "bias": 2}')
    with pytest.raises(InputError, match="c.json: no saved calibration"):
        Calibration.load(tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"scale": -1, "offset": 2}')
    with pytest.raises(InputError, match="scale must be finite and above 0"):
        Calibration.load(tmp_path / "c.json")
    with pytest.raises(InputError, match="negate distances"):
        Calibration.fit([0.1, 0.2, 0.9, 0.8], [1, 1, 0, 0])
    with pytest.raises(InputError, match="all 2 trials are targets"):
        Calibration.fit([0.1, 0.2], [1, 1])
    with pytest.raises(ConfigError, match="p_target=0"):
        Calibration.fit([0.1, 0.2], [1, 0], 0)


def test_no_cosine_is_above_one():
    draw = torch.Generator().manual_seed(0)
    for embedding in torch.randn(200, 32, generator=draw):  # unclamped, every fourth of these is above one
        assert 0.9999 < verify(embedding[None], embedding, None).score <= 1
