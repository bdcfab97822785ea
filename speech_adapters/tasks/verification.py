"""Speaker verification: speakers told apart in training, embeddings of other speakers compared in trials.

Each utterance is embedded once, each trial scored once; every figure comes with an interval bootstrapped by speaker.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from speech_adapters.data.embeddings import Embeddings, average_embeddings
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.score_files import write_scores
from speech_adapters.data.trials import (
    Enrolment,
    ResolvedTrials,
    TrialList,
    UtteranceIndex,
    resolve,
    trial_speakers,
    write_trials,
)
from speech_adapters.data.windows import Windows
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError, InputError, counted
from speech_adapters.files import read_json, write_json
from speech_adapters.heads.base import check_audible
from speech_adapters.heads.speaker import SpeakerHead, SpeakerHeadModule
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.metrics.plda import PLDA
from speech_adapters.metrics.trial_scores import cosine_scores, normalize_scores
from speech_adapters.metrics.verification import (
    P_TARGETS,
    REVERSED,
    VerificationResult,
    mean_metrics,
    verification_result,
)
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.reports.detection_charts import chart_data
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.results import MethodResults
from speech_adapters.tasks.base import Corpus, Task
from speech_adapters.tasks.large_margin import LargeMargin
from speech_adapters.tasks.predict import Cost, check_manifest, extract_embeddings
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train


class SpeakerVerification(Task[VerificationResult]):
    """A speaker head, scored by EER, minDCF and minCllr on the corpus's trials.

    Args:
        head: settings of the :class:`~speech_adapters.heads.speaker.SpeakerHead`, without its speakers.
        cohort: number of training utterances whose speakers' means normalise scores (adaptive s-norm); 0 for none.
        large_margin: the second stage of training.
    """

    name, metric = "speaker", "eer"

    def __init__(
        self, head: dict[str, Any] | None = None, *, cohort: int = 0, large_margin: LargeMargin | None = None
    ) -> None:
        self.settings, self.cohort, self.large_margin = head or {}, cohort, large_margin or LargeMargin()
        self.speakers: tuple[np.ndarray, np.ndarray] | None = None

    def head(self, corpus: Corpus) -> SpeakerHead:
        """The head for the training speakers."""
        return SpeakerHead(speakers=corpus.train.speakers, **self.settings)

    def check(self, corpus: Corpus, encoder: Encoder, *, crops: bool = False, windows: Windows | None = None) -> None:
        """The training set as the head does, of the test set, whose speakers are others, audio and trials alone; the
        cohort is heard as the test set is."""
        trials = _trials(corpus)
        self.chosen_head(corpus).check(corpus.train, encoder, any_length=crops)
        for scored in filter(None, (corpus.test, self._cohort(corpus))):
            check_audible(scored, encoder, any_length=windows is not None)
        resolved = resolve(trials, UtteranceIndex.of_manifest(corpus.test))
        self.speakers = trial_speakers(resolved, [utterance.speaker for utterance in corpus.test])

    def stages(self, settings: TrainingConfig) -> dict[str, TrainingConfig]:
        """The first, and the large-margin stage where there is one."""
        stage, first = self.large_margin, super().stages(settings)
        if not stage.updates:
            return first
        further = replace(settings, updates=stage.updates, crop_seconds=stage.crop_seconds, warmup=0.0)
        return first | {"large_margin": further}

    def further(
        self, model: SpeechAdapterModel, corpus: Corpus, settings: TrainingConfig, run: RunFolder, name: str
    ) -> TrainingResult | None:
        """The large-margin stage, where there is one."""
        further = self.stages(settings).get("large_margin")
        if further is None:
            return None
        stage, head = self.large_margin, model.head
        assert isinstance(head, SpeakerHeadModule), "the first stage has trained it"
        head.config = replace(head.config, margin=stage.margin)
        rates = {group: stage.rate * rate for group, rate in model.learning_rates(settings.learning_rates).items()}
        further = replace(further, learning_rates=rates)
        data, dev = self.data(corpus, head.config, further)
        return train(model, data, further, run, dev, f"{name}-large-margin")

    def score(self, model: SpeechAdapterModel, corpus: Corpus, **options: Any) -> VerificationResult:
        """The cosines of the trials' embeddings, normalised by the cohort where there is one."""
        return self._evaluate(model, corpus, **options).result

    def metrics(self, results: Sequence[VerificationResult]) -> dict[str, Any]:
        """The figures, their means over seeds."""
        return results[0].to_dict() if len(results) == 1 else mean_metrics(results, self.speakers)

    def doubt(self, metrics: Mapping[str, Any]) -> str:
        """Whether the scores are reversed."""
        return f". {REVERSED}" if metrics["eer"]["value"] > 0.5 else ""

    def write(self, result: VerificationResult, corpus: Corpus, run: RunFolder, name: str) -> None:
        """The score of each trial, and the trials."""
        write_scores(run.scores(name), _trials(corpus), result.scores)
        if not run.trials_file.exists():  # the same of all methods and seeds
            write_trials(run.trials_file, _trials(corpus), self.speakers)

    def show(self, method: str, result: VerificationResult, corpus: Corpus, run: RunFolder) -> None:
        """The DET curve and the histogram of scores."""
        drawn = read_json(run.detection_file) if run.detection_file.exists() else {}
        write_json(run.detection_file, drawn | {method: chart_data(result.curve, P_TARGETS)})

    def untrained(self, encoder: Encoder, corpus: Corpus, run: RunFolder, **options: Any) -> dict[str, MethodResults]:
        """``frozen-mean``: the cosine of the frozen encoder's mean-pooled features."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = SpeechAdapterModel(copy.deepcopy(encoder)).to(device)
        scored = self._evaluate(model, corpus, **options)
        self.write(scored.result, corpus, run, "frozen-mean")
        self.show("frozen-mean", scored.result, corpus, run)
        parameters = model.count_parameters()
        return {
            "frozen-mean": MethodResults(
                metrics=scored.result.to_dict(), parameters=parameters, seconds=scored.cost.seconds
            )
        }

    def _cohort(self, corpus: Corpus) -> Manifest | None:
        """The training utterances that normalise scores."""
        size = min(self.cohort, len(corpus.train))
        return corpus.train.subset(size=size, seed=0) if size else None

    def _evaluate(self, model: SpeechAdapterModel, corpus: Corpus, **options: Any) -> VerificationEvaluation:
        cohort, top = None, 300
        if part := self._cohort(corpus):
            cohort = speaker_means(extract_embeddings(model, part, **options), part)
            top = min(top, len(cohort))
        return evaluate_verification(model, _trials(corpus), corpus.test, cohort=cohort, top=top, **options)


def _trials(corpus: Corpus) -> TrialList:
    if corpus.trials is None:
        raise ConfigError("speaker verification needs the corpus's trials.")
    return corpus.trials


@dataclass(frozen=True)
class VerificationEvaluation:
    """A result, the embeddings it was made with (None for ready scores), what it cost (the speed is None where no
    audio was embedded), and the speakers of both sides of each trial, where they are known."""

    result: VerificationResult
    embeddings: Embeddings | None
    cost: Cost
    speakers: tuple[np.ndarray, np.ndarray] | None


def evaluate_verification(
    source: SpeechAdapterModel | Embeddings | np.ndarray,
    trials: TrialList,
    manifest: Manifest | None = None,
    *,
    enrolment: Enrolment | None = None,
    cohort: Embeddings | None = None,
    top: int | None = 300,
    plda: PLDA | None = None,
    calibration: Calibration | None = None,
    llr: bool = False,
    device: str | torch.device = "cpu",
    draws: int = 1000,
    seed: int = 0,
    **options: Any,
) -> VerificationEvaluation:
    """Score a trial list with a model, with saved embeddings, or with ready scores, and give every figure.

    Args:
        source, trials, manifest, enrolment, cohort, top, plda, device, options: as for :func:`score_verification`.
        calibration: turns scores into log-likelihood ratios; fitted on other trials.
        llr: ready scores that are log-likelihood ratios already.
        draws, seed: of the bootstrap.

    Raises:
        ConfigError, ManifestError: see :func:`score_verification`.
    """
    if isinstance(source, SpeechAdapterModel):
        device = next(source.encoder.model.parameters()).device
    reset_peak_memory(device)
    started = time.perf_counter()
    scored = score_verification(
        source, trials, manifest, enrolment=enrolment, cohort=cohort, top=top, plda=plda, device=device, **options
    )
    scores = scored.scores if calibration is None else calibration(scored.scores)
    is_llr = llr or calibration is not None or plda is not None
    result = verification_result(scores, trials.labels, scored.speakers, llr=is_llr, draws=draws, seed=seed)
    seconds = time.perf_counter() - started
    speed = scored.audio_seconds_per_second
    cost = Cost(seconds, speed, peak_memory_bytes(device))
    return VerificationEvaluation(result, scored.embeddings, cost, scored.speakers)


@dataclass(frozen=True)
class ScoredTrials:
    """(n,) ``scores`` in the order of the trials; ``speakers`` of both sides of each trial where they are known; the
    ``embeddings`` that the trials needed, and how fast they were extracted, where a model did it."""

    scores: np.ndarray
    speakers: tuple[np.ndarray, np.ndarray] | None
    embeddings: Embeddings | None = None
    audio_seconds_per_second: float | None = None


def score_verification(
    source: SpeechAdapterModel | Embeddings | np.ndarray,
    trials: TrialList,
    manifest: Manifest | None = None,
    *,
    enrolment: Enrolment | None = None,
    cohort: Embeddings | None = None,
    top: int | None = 300,
    plda: PLDA | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> ScoredTrials:
    """The scores of a trial list, higher for targets, before any calibration.

    Args:
        source: a model (its active speaker head, or mean-pooled features without a head), embeddings by utterance id,
            or (n,) scores in the order of the trials.
        manifest: the utterances that the trials name; needed with a model. Its speakers make the intervals bootstrap
            by speaker and check the labels.
        enrolment: which utterances make up the trials' models; without it each ``enrol`` names one utterance.
        cohort: embeddings, one per speaker, for score normalisation, over the ``top`` nearest of them (None: all).
        plda: scores in place of the cosine.
        device: where embeddings are scored; a model runs, and scores, where it is.
        options: of :func:`~speech_adapters.tasks.predict.predict`.

    Raises:
        ConfigError: a model without a manifest, or options that do not go together.
        ManifestError: with ``file:line``: names and labels of trials that do not fit the utterances.
    """
    if plda is not None and cohort is not None:
        raise ConfigError("score normalisation takes cosine scores: give a cohort or PLDA, not both.")
    if isinstance(source, np.ndarray) and (plda is not None or cohort is not None):
        raise ConfigError("ready scores take no cohort and no PLDA: give embeddings or a model for these.")
    if manifest is not None:
        check_manifest(manifest)
    resolved = _resolve(source, trials, manifest, enrolment)
    speakers = None
    if resolved is not None and manifest is not None:
        speakers = trial_speakers(resolved, [utterance.speaker for utterance in manifest])
    if isinstance(source, np.ndarray):
        return ScoredTrials(source, speakers)
    assert resolved is not None, "ready scores alone do without utterances"
    if isinstance(source, Embeddings):
        embeddings, speed = _saved_embeddings(source, resolved, manifest), None
    else:
        assert manifest is not None, "no trials are resolved for a model without one"
        device = next(source.encoder.model.parameters()).device
        wanted = Manifest((manifest[number] for number in resolved.utterances()), manifest.name)
        started = time.perf_counter()
        embeddings = extract_embeddings(source, wanted, **options)
        speed = sum(utterance.duration for utterance in wanted) / (time.perf_counter() - started)
    scores = score_trials(resolved, embeddings, cohort=cohort, top=top, plda=plda, device=device)
    return ScoredTrials(scores, speakers, embeddings, speed)


def score_trials(
    resolved: ResolvedTrials,
    embeddings: Embeddings,
    *,
    cohort: Embeddings | None = None,
    top: int | None = 300,
    plda: PLDA | None = None,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """(n,) scores of trials from the embeddings of ``resolved.utterances()``, in that order; see
    :func:`score_verification` for the options."""
    trials, needed = resolved.trials, resolved.utterances()
    if plda is not None:
        embeddings = replace(embeddings, vectors=plda.prepare(embeddings.vectors))
    groups = [np.searchsorted(needed, model).tolist() for model in resolved.models]
    enrol = average_embeddings(embeddings, groups, trials.enrol_names).vectors
    test = embeddings.vectors[torch.from_numpy(np.searchsorted(needed, resolved.tests))]
    if plda is not None:
        return plda.score(enrol, test, trials.enrol, trials.test, device)
    scores = cosine_scores(enrol, test, trials.enrol, trials.test, device)
    if cohort is None:
        return scores
    return normalize_scores(scores, enrol, test, trials.enrol, trials.test, cohort.vectors, top=top, device=device)


def speaker_means(embeddings: Embeddings, manifest: Manifest) -> Embeddings:
    """One embedding per speaker, as a cohort for score normalisation, from those of a manifest, in its order."""
    manifest.require("speaker")
    groups: dict[str, list[int]] = {}
    for number, utterance in enumerate(manifest):
        groups.setdefault(utterance.get("speaker"), []).append(number)
    return average_embeddings(embeddings, list(groups.values()), list(groups))


def _resolve(
    source: SpeechAdapterModel | Embeddings | np.ndarray,
    trials: TrialList,
    manifest: Manifest | None,
    enrolment: Enrolment | None,
) -> ResolvedTrials | None:
    if manifest is not None:
        return resolve(trials, UtteranceIndex.of_manifest(manifest), enrolment)
    if isinstance(source, Embeddings):
        return resolve(trials, UtteranceIndex.of_ids(source.ids, source.name), enrolment)
    if isinstance(source, np.ndarray):
        return None
    raise ConfigError("evaluate_verification: a model needs the manifest of the utterances that the trials name.")


def _saved_embeddings(source: Embeddings, resolved: ResolvedTrials, manifest: Manifest | None) -> Embeddings:
    """Those of ``resolved.utterances()``, in that order."""
    needed = resolved.utterances()
    ids = [source.ids[number] if manifest is None else manifest[number].id for number in needed]
    row = {identity: number for number, identity in enumerate(source.ids)}
    missing = [identity for identity in ids if identity not in row]
    if missing:
        raise InputError(
            f"{source.name}: no embedding of {counted(len(missing), 'utterance')} that the trials need, such as "
            f"{missing[0]!r}; extract them again from the whole manifest."
        )
    return Embeddings(tuple(ids), source.vectors[[row[identity] for identity in ids]], source.name)
