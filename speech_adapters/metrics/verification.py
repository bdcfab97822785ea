"""Speaker verification: EER, minDCF, minCllr (and Cllr, actual DCF) of scored trials, with intervals by speaker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speech_adapters.metrics.bootstrap import Interval
from speech_adapters.metrics.detection import (
    DetectionCurve,
    RankedTrials,
    check_trials,
    cllr_losses,
    dcf_losses,
    mean_loss,
)
from speech_adapters.metrics.trial_bootstrap import bootstrap_trials

P_TARGETS = (0.01, 0.05)
"""Priors of a target at which detection costs are reported, with both costs 1 (VoxSRC; NIST SRE)."""

REVERSED = "The EER is above 50 %, worse than chance: are the scores reversed? Targets must have the higher ones."


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
        return "\n".join(figures + ([REVERSED] if self.reversed else []))

    @property
    def reversed(self) -> bool:
        """The EER is above 50 %, worse than chance: targets have the lower scores."""
        return self.metrics["eer"].value > 0.5


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
    curve = ranked.curve()
    assert curve is not None, "check_trials has seen both kinds"
    return VerificationResult(metrics, scores, is_target, curve)


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
        curves = [curve for trials in ranked if (curve := trials.curve(weights)) is not None]
        if len(curves) < len(ranked):
            return None
        found = {"eer": float(np.mean([curve.eer().value for curve in curves]))}
        found |= {f"min_dcf_{p:g}": float(np.mean([curve.min_dcf(p).value for curve in curves])) for p in p_targets}
        return found | {"min_cllr": float(np.mean([curve.min_cllr() for curve in curves]))}

    labels = results[0].labels
    metrics = bootstrap_trials(figures, labels, speakers, n=draws, seed=seed)
    counts = {"trials": len(labels), "targets": int(np.count_nonzero(labels))}
    return {**{name: interval.to_dict() for name, interval in metrics.items()}, **counts}
