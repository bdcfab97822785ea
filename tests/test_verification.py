"""Verification from audio, from embeddings and from scores: the same trials, the same figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import small_model
from small_trials import small_corpus

from speech_adapters.data.embeddings import Embeddings
from speech_adapters.data.score_files import read_scores, write_scores
from speech_adapters.data.trials import read_enrolment, read_trials
from speech_adapters.errors import ConfigError, InputError, ManifestError
from speech_adapters.heads.base import HeadConfig, HeadModule, HeadOutput
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.metrics.detection import eer, min_dcf
from speech_adapters.metrics.plda import PLDA
from speech_adapters.metrics.verification import verification_result
from speech_adapters.tasks.predict import extract_embeddings
from speech_adapters.tasks.verification import evaluate_verification, score_verification, speaker_means


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> SimpleNamespace:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model():
    return small_model(method="l").eval()


def test_mean_pooled_embeddings_of_single_utterances(corpus, model):
    """Batches change nothing (the small encoder's CNN normalises each frame), and every utterance has its own row."""
    together = extract_embeddings(model, corpus.manifest, progress=False)
    assert together.ids == tuple(u.id for u in corpus.manifest)
    for number in (0, 5, 11):
        alone = extract_embeddings(model, corpus.manifest[number : number + 1], progress=False)
        torch.testing.assert_close(together.vectors[number], alone.vectors[0], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(together.vectors[0], together.vectors[5], atol=1e-3)


def test_model_embeddings_and_scores_agree(corpus, model, tmp_path):
    from_audio = evaluate_verification(model, corpus.trials, corpus.manifest, draws=30, progress=False)
    vectors = from_audio.embeddings.vectors.double()
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    expected = [float(unit[i] @ unit[j]) for i, j in corpus.pairs]
    np.testing.assert_allclose(from_audio.result.scores, expected, atol=1e-6)
    labels = np.array([i // 3 == j // 3 for i, j in corpus.pairs])
    metrics = from_audio.result.metrics
    assert metrics["eer"].value == eer(from_audio.result.scores, labels)
    assert metrics["min_dcf_0.05"].value == min_dcf(from_audio.result.scores, labels, 0.05)
    assert "cllr" not in metrics and metrics["eer"].resampled == "speaker"
    assert from_audio.cost.audio_seconds_per_second > 0 and from_audio.cost.peak_memory_bytes > 0

    saved = Embeddings.load(from_audio.embeddings.save(tmp_path / "e.npz"))
    again = evaluate_verification(saved, corpus.trials, corpus.manifest, draws=30)
    assert again.result.metrics == metrics and again.cost.audio_seconds_per_second is None

    by_path = Embeddings(tuple(corpus.manifest[i].audio_filepath.as_posix() for i in range(12)), saved.vectors)
    alone = evaluate_verification(by_path, corpus.trials, draws=30)
    np.testing.assert_array_equal(alone.result.scores, again.result.scores)
    assert alone.result.metrics["eer"].resampled == "trial"

    write_scores(tmp_path / "scores.txt", corpus.trials, again.result.scores)
    scores = read_scores(tmp_path / "scores.txt", corpus.trials)
    ready = evaluate_verification(scores, corpus.trials, corpus.manifest, draws=30)
    assert ready.result.metrics == metrics and ready.embeddings is None


def test_only_what_the_trials_need_is_embedded(corpus, model, tmp_path):
    (tmp_path / "few.txt").write_text("1 s3-0 s3-2\n0 s3-2 s1-1\n")
    done = evaluate_verification(model, read_trials(tmp_path / "few.txt"), corpus.manifest, draws=5, progress=False)
    assert done.embeddings.ids == ("s1-1", "s3-0", "s3-2")


@dataclass(kw_only=True)
class Sums(HeadConfig):
    """A head whose embedding is the sum of the features, as a stand-in for a speaker head."""

    embeds: bool = True

    def build(self, input_size: int) -> HeadModule:
        return SumsModule(self, input_size)

    def target(self, utterance):
        raise NotImplementedError


class SumsModule(HeadModule):
    def forward(self, features, lengths):
        inside = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        sums = (features * inside[..., None]).sum(1)
        return HeadOutput(logits=sums, embedding=sums) if self.config.embeds else HeadOutput(logits=sums)

    def loss(self, output, targets):
        raise NotImplementedError

    def predict(self, output):
        raise NotImplementedError


def test_the_head_gives_the_embedding(corpus):
    model = small_model().eval()
    pooled = extract_embeddings(model, corpus.manifest, progress=False)
    model.add_head("speaker", Sums())
    summed = extract_embeddings(model, corpus.manifest, progress=False)
    torch.testing.assert_close(
        torch.nn.functional.normalize(summed.vectors), torch.nn.functional.normalize(pooled.vectors), atol=1e-4, rtol=0
    )
    assert (summed.vectors.norm(dim=1) > 2 * pooled.vectors.norm(dim=1)).all()
    model.add_head("other", Sums(embeds=False))
    with pytest.raises(ConfigError, match="head 'other' gives no embedding"):
        extract_embeddings(model, corpus.manifest, progress=False)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(corpus, precision):
    model = small_model(method="l").eval()
    expected = evaluate_verification(model, corpus.trials, corpus.manifest, draws=5, progress=False)
    model.to("cuda")
    options = {"draws": 5, "progress": False, "precision": precision}
    found = evaluate_verification(model, corpus.trials, corpus.manifest, cohort=expected.embeddings, top=5, **options)
    assert found.embeddings.vectors.device.type == "cpu"
    tolerance = 1e-3 if precision == "fp32" else 0.1
    torch.testing.assert_close(found.embeddings.vectors, expected.embeddings.vectors, atol=tolerance, rtol=tolerance)


def test_models_of_several_utterances(corpus, model):
    trials, enrolment = read_trials(corpus.folder / "models.txt"), read_enrolment(corpus.folder / "map.txt")
    done = evaluate_verification(model, trials, corpus.manifest, enrolment=enrolment, draws=5, progress=False)
    unit = torch.nn.functional.normalize(done.embeddings.vectors.double(), dim=1)
    for score, trial in zip(done.result.scores, trials, strict=True):
        s, t = int(trial.enrol[1]), int(trial.test[1])
        average = unit[3 * s : 3 * s + 2].sum(0)
        assert score == pytest.approx(float(average / average.norm() @ unit[3 * t + 2]), abs=1e-6)


def test_cohort_and_calibration(corpus, model):
    plain = evaluate_verification(model, corpus.trials, corpus.manifest, draws=5, progress=False)
    cohort = speaker_means(plain.embeddings, corpus.manifest)
    assert cohort.ids == ("s0", "s1", "s2", "s3")
    calibration = Calibration(3.0, -1.0)
    done = evaluate_verification(
        plain.embeddings, corpus.trials, corpus.manifest, cohort=cohort, top=2, calibration=calibration, draws=5
    )
    raw = evaluate_verification(plain.embeddings, corpus.trials, corpus.manifest, cohort=cohort, top=2, draws=5)
    np.testing.assert_allclose(done.result.scores, 3 * raw.result.scores - 1, rtol=1e-6)
    assert not np.allclose(raw.result.scores, plain.result.scores)
    assert {"cllr", "actual_dcf_0.01", "actual_dcf_0.05"} < set(done.result.metrics)
    assert done.result.metrics["eer"].value == raw.result.metrics["eer"].value
    assert done.result.metrics["min_cllr"].value <= done.result.metrics["cllr"].value
    assert done.result.to_dict()["trials"] == 66 and done.result.to_dict()["targets"] == 12


def gaussian_speakers(count: int, each: int, seed: int) -> tuple[Embeddings, list[str]]:
    """Speakers apart in two of six dimensions, utterances apart in all of them."""
    rng = np.random.default_rng(seed)
    between, within = np.array([2.0, 2, 0, 0, 0, 0]), np.array([0.6, 0.6, 3, 3, 0.5, 0.5])
    means = rng.normal(size=(count, 6)) * between
    vectors = np.repeat(means, each, 0) + rng.normal(size=(count * each, 6)) * within + 5
    speakers = [f"s{number // each}" for number in range(count * each)]
    ids = tuple(f"{speaker}-{i}" for i, speaker in enumerate(speakers))
    return Embeddings(ids, torch.from_numpy(vectors)), speakers


def test_plda_scores_equal_speechbrains_and_beat_the_cosine():
    from speechbrain.processing import PLDA_LDA

    train, speakers = gaussian_speakers(60, 5, 0)
    plda = PLDA.fit(train.vectors, speakers, rank=2)
    test, who = gaussian_speakers(30, 4, 1)
    pairs = np.triu_indices(len(who), 1)
    labels = np.array([who[i] == who[j] for i, j in zip(*pairs, strict=True)])
    ready = plda.prepare(test.vectors)
    scores = plda.score(ready, ready, *pairs)
    cosines = torch.nn.functional.cosine_similarity(test.vectors[pairs[0]], test.vectors[pairs[1]]).numpy()
    assert eer(scores, labels) < 0.6 * eer(cosines, labels)

    def statistics(vectors, names):
        names, nothing = np.array(names, dtype="|O"), np.empty(len(names), dtype="|O")
        return PLDA_LDA.StatObject_SB(
            modelset=names, segset=names, start=nothing, stop=nothing, stat0=np.ones((len(names), 1)), stat1=vectors
        )

    def prepared(embeddings):
        return torch.nn.functional.normalize(embeddings.vectors.double() - plda.centre, dim=1).numpy()

    trainer = PLDA_LDA.PLDA(rank_f=2)
    trained = statistics(prepared(train), train.ids)
    trained.modelset = np.array(speakers, dtype="|O")
    trainer.plda(trained)
    ids = np.array(test.ids, dtype="|O")
    both = (statistics(prepared(test), test.ids) for _ in range(2))
    expected = PLDA_LDA.fast_PLDA_scoring(
        *both, PLDA_LDA.Ndx(models=ids, testsegs=ids), trainer.mean, trainer.F, trainer.Sigma
    )
    row = np.argsort(np.argsort(ids))  # speechbrain sorts by name
    np.testing.assert_allclose(scores, expected.scoremat[row[pairs[0]], row[pairs[1]]], atol=1e-4)
    with pytest.raises(InputError, match="PLDA training: 4 utterances of 1 speaker "):
        PLDA.fit(torch.randn(4, 6), ["s"] * 4)


def test_plda_scores_trials_of_embeddings_as_a_head_gives_them(tmp_path):
    """Far from the origin and of any scale: what is averaged into a model is prepared first, like the test's."""
    train, speakers = gaussian_speakers(60, 5, 0)
    test, who = gaussian_speakers(30, 4, 1)
    plda = PLDA.fit(train.vectors * 10, speakers, rank=2)
    embeddings = replace(test, vectors=test.vectors * 10)
    pairs = np.triu_indices(len(who), 1)
    lines = [f"{int(who[i] == who[j])} {test.ids[i]} {test.ids[j]}" for i, j in zip(*pairs, strict=True)]
    (tmp_path / "trials.txt").write_text("\n".join(lines))
    scored = score_verification(embeddings, read_trials(tmp_path / "trials.txt"), plda=plda)
    ready = plda.prepare(embeddings.vectors)
    np.testing.assert_allclose(scored.scores, plda.score(ready, ready, *pairs), atol=1e-4)
    labels = np.array([who[i] == who[j] for i, j in zip(*pairs, strict=True)])

    names = [*dict.fromkeys(who)]
    (tmp_path / "enrol.txt").write_text(
        "".join(f"{a} {' '.join(test.ids[4 * n :][:3])}\n" for n, a in enumerate(names))
    )
    trials = [(a, b) for a in names for b in test.ids[3::4]]
    same = np.array([b.startswith(f"{a}-") for a, b in trials])
    (tmp_path / "models.txt").write_text(
        "".join(f"{int(s)} {a} {b}\n" for (a, b), s in zip(trials, same, strict=True))
    )
    several = score_verification(
        embeddings, read_trials(tmp_path / "models.txt"), enrolment=read_enrolment(tmp_path / "enrol.txt"), plda=plda
    )
    assert eer(several.scores, same) < eer(scored.scores, labels) < 0.25


def test_options_that_do_not_go_together(corpus, model):
    embeddings = Embeddings(tuple(u.id for u in corpus.manifest), torch.randn(12, 4))
    with pytest.raises(ConfigError, match="a model needs the manifest"):
        evaluate_verification(model, corpus.trials)
    with pytest.raises(ConfigError, match="ready scores take no cohort"):
        evaluate_verification(np.zeros(66), corpus.trials, cohort=embeddings)
    few_speakers, names = gaussian_speakers(5, 3, 0)
    plda = PLDA.fit(few_speakers.vectors, names, rank=2)
    with pytest.raises(ConfigError, match="a cohort or PLDA, not both"):
        evaluate_verification(embeddings, corpus.trials, corpus.manifest, cohort=embeddings, plda=plda)
    few = Embeddings(embeddings.ids[:5], embeddings.vectors[:5], "few.npz")
    with pytest.raises(InputError, match="few.npz: no embedding of 7 utterances .* such as 's1-2'"):
        evaluate_verification(few, corpus.trials, corpus.manifest)
    with pytest.raises(ManifestError, match=r"trials.txt:\d+: utterance 's1/2.wav' is not in few.npz"):
        evaluate_verification(
            replace(few, ids=("s0/0.wav", "s0/1.wav", "s0/2.wav", "s1/0.wav", "s1/1.wav")), corpus.trials
        )


def test_score_files(corpus, tmp_path):
    (tmp_path / "t.txt").write_text("1 a b\n0 a c\n0 d b\n")
    trials = read_trials(tmp_path / "t.txt")
    path = tmp_path / "scores"

    def read(text: str) -> list[float]:
        path.write_text(text)
        return read_scores(path, trials).tolist()

    assert read("d b -1e-3\nx y 9\na d 7\na c 0.25\na b 3\n") == [3, 0.25, -1e-3]
    for text, message in (
        ("a b 1\na c 2\n", "scores: no score of 1 trial of .*t.txt, such as d b"),
        ("", "no score of 3 trials of .*, such as a b"),
        ("a b 1\na c\n", "scores:2: 2 columns"),
        ("a b 1\na c two\n", "scores:2: score 'two'; expected a number"),
        ("a b 1\nd b 1\na b 1\na c 1", "scores:3: this pair has a score already"),
        ("a b 1\nd b nan\na c 1", "the score of the trial d b is NaN"),
    ):
        with pytest.raises(InputError, match=message):
            read(text)

    np.save(tmp_path / "s.npy", np.array([3, 2, 1]))
    np.savez(tmp_path / "s.npz", scores=np.array([3, 2, 1], np.float32))
    assert read_scores(tmp_path / "s.npy", trials).tolist() == [3, 2, 1]
    assert read_scores(tmp_path / "s.npz", trials).dtype == np.float32
    np.save(tmp_path / "s.npy", np.array([3, 2]))
    np.savez(tmp_path / "s.npz", score=np.array([3]))
    for name, message in (
        ("s.npy", r"scores \(2,\) for the 3 trials"),
        ("s.npz", "lacks the array scores"),
        ("n.npy", "no such"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            read_scores(tmp_path / name, trials)


def test_a_result_prints_its_figures():
    result = verification_result(np.array([3.0, 2, 1, 0]), np.array([1, 1, 0, 0]), llr=True, draws=5)
    assert "EER 0.00 % [0.00, " in str(result) and "cllr 0.7" in str(result)


def test_reversed_scores_are_said():
    scores, labels = np.array([0.0, 1, 2, 3]), np.array([1, 1, 0, 0])
    result = verification_result(scores, labels, draws=5)
    assert result.reversed and "are the scores reversed?" in str(result)
    mended = verification_result(-scores, labels, draws=5)
    assert not mended.reversed and "reversed" not in str(mended)
