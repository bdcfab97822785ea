"""Speaker verification, scored: the function behind ``recipes/evaluate_verification.py``.

Each utterance is embedded once, each trial scored once; every figure comes with an interval bootstrapped by speaker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from speech_adapters.data.embeddings import Embeddings, average_embeddings, extract_embeddings
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.trials import Enrolment, ResolvedTrials, TrialList, UtteranceIndex, resolve, trial_speakers
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.metrics.bootstrap import Interval
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.metrics.detection import (
    DetectionCurve,
    RankedTrials,
    check_trials,
    cllr_losses,
    dcf_losses,
    mean_loss,
)
from speech_adapters.metrics.plda import PLDA
from speech_adapters.metrics.trial_bootstrap import bootstrap_trials
from speech_adapters.metrics.trial_scores import cosine_scores, normalize_scores
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.environment import peak_memory_bytes, reset_peak_memory

P_TARGETS = (0.01, 0.05)
"""Priors of a target at which detection costs are reported, with both costs 1 (VoxSRC; NIST SRE)."""


@dataclass(frozen=True)
class VerificationResult:
    """Figures of one system on one trial list, and what they come from.

    Attributes:
        metrics: ``eer``, ``min_dcf_0.01``, ``min_dcf_0.05``, ``min_cllr`` (bits) with their intervals; for
            log-likelihood ratios ``cllr``, ``actual_dcf_0.01`` and ``actual_dcf_0.05`` as well.
        scores: (n,) of the trials; labels: (n,) true for targets. curve: their ROC.
    """

    metrics: dict[str, Interval]
    scores: np.ndarray
    labels: np.ndarray
    curve: DetectionCurve

    def to_dict(self) -> dict[str, Any]:
        """``metrics`` as ``results.json`` holds them, with the numbers of trials and targets."""
        counts = {"trials": len(self.labels), "targets": int(np.count_nonzero(self.labels))}
        return {**{name: interval.to_dict() for name, interval in self.metrics.items()}, **counts}

    def __str__(self) -> str:
        figures = [f"EER {self.metrics['eer'].percent(2)}"]
        figures += [f"{name} {interval}" for name, interval in self.metrics.items() if name != "eer"]
        return "\n".join(figures)


@dataclass(frozen=True)
class VerificationEvaluation:
    """A result, the embeddings it was made with (None for ready scores), and what it cost."""

    result: VerificationResult
    embeddings: Embeddings | None
    seconds: float
    audio_seconds_per_second: float | None
    peak_memory_bytes: int


def verification_result(
    scores: np.ndarray,
    labels: np.ndarray,
    speakers: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    llr: bool = False,
    p_targets: Sequence[float] = P_TARGETS,
    draws: int = 1000,
    seed: int = 0,
) -> VerificationResult:
    """Every figure of scored trials, with its interval.

    Args:
        scores: (n,), higher for targets. labels: (n,), 1 for targets, else 0.
        speakers: (n,) numbers of both speakers of each trial, to bootstrap by speaker; single trials without.
        llr: the scores are log-likelihood ratios, so that Cllr and actual DCF say something.

    Raises:
        InputError: no trials, one kind only, a NaN, lengths that differ.
    """
    scores, is_target = check_trials(scores, labels)
    order = np.argsort(scores)  # in this order no draw needs to look up scattered trials
    in_order = None if speakers is None else (speakers[0][order], speakers[1][order])
    ranked = RankedTrials(scores[order], is_target[order])
    losses = {}
    if llr:
        losses["cllr"] = cllr_losses(scores[order], ranked.is_target)
        losses |= {f"actual_dcf_{p:g}": dcf_losses(scores[order], ranked.is_target, p) for p in p_targets}

    def figures(weights: np.ndarray | None) -> Mapping[str, float] | None:
        curve = ranked.curve(weights)
        if curve is None:
            return None
        found = {"eer": curve.eer().value}
        found |= {f"min_dcf_{p:g}": curve.min_dcf(p).value for p in p_targets}
        found["min_cllr"] = curve.min_cllr()
        return found | {name: mean_loss(loss, ranked.is_target, weights) for name, loss in losses.items()}

    metrics = bootstrap_trials(figures, ranked.is_target, in_order, n=draws, seed=seed)
    return VerificationResult(metrics, scores, is_target, ranked.curve())


def mean_metrics(
    results: Sequence[VerificationResult],
    speakers: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    p_targets: Sequence[float] = P_TARGETS,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Means over results of one trial list (seeds of one method), as :meth:`VerificationResult.to_dict` writes them.

    All results see the same draws of speakers, so the intervals are those of the means. Arguments as in
    :func:`verification_result`.
    """
    ranked = [RankedTrials(result.scores, result.labels) for result in results]

    def figures(weights: np.ndarray | None) -> Mapping[str, float] | None:
        curves = [trials.curve(weights) for trials in ranked]
        if any(curve is None for curve in curves):
            return None
        found = {"eer": np.mean([curve.eer().value for curve in curves])}
        found |= {f"min_dcf_{p:g}": np.mean([curve.min_dcf(p).value for curve in curves]) for p in p_targets}
        return found | {"min_cllr": np.mean([curve.min_cllr() for curve in curves])}

    labels = results[0].labels
    metrics = bootstrap_trials(figures, labels, speakers, n=draws, seed=seed)
    counts = {"trials": len(labels), "targets": int(np.count_nonzero(labels))}
    return {**{name: interval.to_dict() for name, interval in metrics.items()}, **counts}


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
    batch_seconds: float = 120.0,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> VerificationEvaluation:
    """Score a trial list with a model, with saved embeddings, or with ready scores, and give every figure.

    Args:
        source, trials, manifest and options: as for :func:`score_verification`.
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
        source, trials, manifest, enrolment=enrolment, cohort=cohort, top=top, plda=plda, batch_seconds=batch_seconds,
        precision=precision, device=device, progress=progress,
    )  # fmt: skip
    scores = scored.scores if calibration is None else calibration(scored.scores)
    is_llr = llr or calibration is not None or plda is not None
    result = verification_result(scores, trials.labels, scored.speakers, llr=is_llr, draws=draws, seed=seed)
    seconds = time.perf_counter() - started
    speed = scored.audio_seconds_per_second
    return VerificationEvaluation(result, scored.embeddings, seconds, speed, peak_memory_bytes(device))


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
    batch_seconds: float = 120.0,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> ScoredTrials:
    """The scores of a trial list, higher for targets, before any calibration.

    Args:
        source: a model (its active speaker head, or mean-pooled features without a head), embeddings by utterance id,
            or (n,) scores in the order of the trials.
        manifest: the utterances that the trials name; needed with a model. Its speakers make the intervals bootstrap
            by speaker and check the labels.
        enrolment: which utterances make up the trials' models; without it each ``enrol`` names one utterance.
        cohort: embeddings, one a speaker, for score normalisation, over the ``top`` nearest of them (None: over all).
        plda: scores in place of the cosine.
        device: where embeddings are scored; a model runs, and scores, where it is.

    Raises:
        ConfigError: a model without a manifest, or options that do not go together.
        ManifestError: with ``file:line``: names and labels of trials that do not fit the utterances.
    """
    ready = isinstance(source, np.ndarray)
    if plda is not None and cohort is not None:
        raise ConfigError("score normalisation takes cosine scores: give a cohort or PLDA, not both.")
    if ready and (plda is not None or cohort is not None):
        raise ConfigError("ready scores take no cohort and no PLDA: give embeddings or a model for these.")
    resolved = _resolve(source, trials, manifest, enrolment)
    speakers = None
    if resolved is not None and manifest is not None:
        speakers = trial_speakers(resolved, [utterance.speaker for utterance in manifest])
    if ready:
        return ScoredTrials(source, speakers)
    started, speed = time.perf_counter(), None
    embeddings = _embeddings(source, resolved, manifest, batch_seconds, precision, progress)
    if isinstance(source, SpeechAdapterModel):
        device = next(source.encoder.model.parameters()).device
        heard = sum(manifest[number].duration for number in resolved.utterances())
        speed = heard / (time.perf_counter() - started)
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
    """One embedding a speaker, as a cohort for score normalisation, from those of a manifest, in its order."""
    manifest.require("speaker")
    groups: dict[str, list[int]] = {}
    for number, utterance in enumerate(manifest):
        groups.setdefault(utterance.speaker, []).append(number)
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


def _embeddings(
    source: SpeechAdapterModel | Embeddings,
    resolved: ResolvedTrials,
    manifest: Manifest | None,
    batch_seconds: float,
    precision: str,
    progress: bool,
) -> Embeddings:
    """Those of ``resolved.utterances()``, in that order."""
    needed = resolved.utterances()
    if isinstance(source, SpeechAdapterModel):
        wanted = Manifest((manifest[number] for number in needed), manifest.name)
        return extract_embeddings(source, wanted, batch_seconds=batch_seconds, precision=precision, progress=progress)
    ids = [source.ids[number] if manifest is None else manifest[number].id for number in needed]
    row = {identity: number for number, identity in enumerate(source.ids)}
    missing = [identity for identity in ids if identity not in row]
    if missing:
        raise InputError(
            f"{source.name}: no embedding of {len(missing)} utterances that the trials need, such as {missing[0]!r}; "
            "extract them again from the whole manifest."
        )
    return Embeddings(tuple(ids), source.vectors[[row[identity] for identity in ids]], source.name)
