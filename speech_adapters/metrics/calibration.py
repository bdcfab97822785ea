"""Calibration: scores to log-likelihood ratios by an affine map, fitted by prior-weighted logistic regression.

LLR(s) = scale * s + offset minimises P * mean over targets of log(1 + exp(-LLR - logit P)) + (1 - P) * mean over
non-targets of log(1 + exp(LLR + logit P)) (Brümmer and Doddington, "Likelihood-ratio calibration using prior-weighted
proper scoring rules", Interspeech 2013). Fit it on development trials, never on the ones that are reported.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from speech_adapters.errors import ConfigError, InputError
from speech_adapters.files import read_json, write_json
from speech_adapters.metrics.detection import check_trials


@dataclass(frozen=True)
class Calibration:
    """``LLR = scale * score + offset``, in natural logarithms."""

    scale: float
    offset: float
    p_target: float = 0.5
    """The prior it was fitted for."""

    @classmethod
    def fit(cls, scores: ArrayLike, labels: ArrayLike, p_target: float = 0.5) -> Calibration:
        """Fit on ``scores`` (n,), higher for targets, and ``labels`` (n,), 1 for targets, else 0.

        Separable scores get a steep but finite map, by a faint L2 penalty.

        Raises:
            InputError: scores or labels that cannot be used, or scores that are not higher for targets.
            ConfigError: a prior outside (0, 1).
        """
        from sklearn.linear_model import LogisticRegression

        if not 0 < p_target < 1:
            raise ConfigError(f"p_target={p_target}: a target's prior must lie between 0 and 1.")
        scores, is_target = check_trials(scores, labels)
        scores = scores.astype(float)
        if not np.isfinite(scores).all():
            raise InputError("calibration: a score is infinite; leave such trials out.")
        mean, std = scores.mean(), scores.std() or 1.0
        count, targets = len(scores), np.count_nonzero(is_target)
        weights = np.where(is_target, p_target / targets, (1 - p_target) / (count - targets)) * count
        regression = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000)
        regression.fit(((scores - mean) / std)[:, None], is_target, sample_weight=weights)
        scale = float(regression.coef_[0, 0]) / std
        offset = float(regression.intercept_[0]) - scale * mean - math.log(p_target / (1 - p_target))
        if not scale > 0:
            raise InputError("calibration: scores are not higher for targets than for non-targets; negate distances.")
        return cls(float(scale), float(offset), p_target)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(n,) log-likelihood ratios."""
        return self.scale * scores + self.offset

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what :meth:`save` wrote. Raises :class:`InputError` where the file is missing or something else."""
        values = read_json(path)
        try:
            loaded = cls(**{key: float(value) for key, value in values.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path}: no saved calibration (scale, offset, p_target): {error}.") from error
        if not all(map(math.isfinite, (loaded.scale, loaded.offset))) or not loaded.scale > 0:
            raise InputError(f"{path}: scale must be finite and above 0, offset finite; fit the calibration again.")
        return loaded
