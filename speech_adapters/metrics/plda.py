"""Probabilistic linear discriminant analysis: a log-likelihood ratio for two embeddings, trained by speechbrain.

An embedding is mean + F h + noise, h ~ N(0, I) one per speaker, noise ~ N(0, Sigma); the score compares one shared h
with two (Prince and Elder, ICCV 2007). Embeddings are centred on the training mean and length-normalised first
(Garcia-Romero and Espy-Wilson, Interspeech 2011), each utterance's before a model's are averaged. speechbrain fits F
and Sigma by EM; its scorer makes a matrix of all models by all utterances, so trials are scored here, one product of
two rows each:

    score(x, y) = x' Phi x / 2 + y' Phi y / 2 + x' Psi y + constant
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from speech_adapters.errors import InputError, counted
from speech_adapters.metrics.trial_scores import row_products
from speech_adapters.speechbrain_parts import from_speechbrain


def check_speakers(speakers: Sequence[str], width: int) -> None:
    """InputError unless PLDA can be trained on embeddings of this width, one of each of ``speakers``."""
    count, different = len(speakers), len(set(speakers))
    if not count > width or not 1 < different < count:
        raise InputError(
            f"PLDA training: {counted(count, 'utterance')} of "
            f"{counted(different, 'speaker')} for embeddings of width {width}; give "
            "more utterances than that width, of at least two speakers, with several utterances per speaker."
        )


@dataclass(frozen=True, eq=False)
class PLDA:
    """A trained model: ``centre`` (E,) of embeddings, ``mean`` (E,) of normalised ones, ``phi`` and ``psi`` (E, E)."""

    centre: Tensor
    mean: Tensor
    phi: Tensor
    psi: Tensor
    constant: float

    @classmethod
    def fit(cls, vectors: Tensor, speakers: Sequence[str], *, rank: int = 100, iterations: int = 10) -> PLDA:
        """Train on the embeddings (N, E) of N utterances and their ``speakers`` (N).

        Args:
            rank: of F, at most the embeddings' width.

        Raises:
            InputError: no more utterances than dimensions, one speaker only, no speaker with two utterances.
        """
        count, width = vectors.shape
        check_speakers(speakers, width)
        speechbrain = from_speechbrain("processing.PLDA_LDA")
        centre = vectors.double().mean(0)
        normalized = normalize(vectors.double() - centre, dim=1).numpy()
        nothing = np.empty(count, dtype="|O")
        statistics = speechbrain.StatObject_SB(
            modelset=np.asarray(speakers, dtype="|O"), segset=np.arange(count).astype(str), start=nothing,
            stop=nothing, stat0=np.ones((count, 1)), stat1=normalized.copy(),
        )  # fmt: skip
        trainer = speechbrain.PLDA(rank_f=min(rank, width), nb_iter=iterations)
        trainer.plda(statistics)
        between = trainer.F @ trainer.F.T
        total = between + trainer.Sigma
        inverse = np.linalg.inv(total)
        same = np.linalg.inv(total - between @ inverse @ between)
        k = trainer.F.T @ np.linalg.inv(trainer.Sigma) @ trainer.F
        eye = np.eye(len(k))
        constant = np.linalg.slogdet(k + eye)[1] - np.linalg.slogdet(2 * k + eye)[1] / 2
        parts = (trainer.mean, inverse - same, inverse @ between @ same)
        mean, phi, psi = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
        return cls(centre, mean, phi, psi, float(constant))

    def score(
        self,
        enrol: Tensor,
        test: Tensor,
        enrol_index: np.ndarray,
        test_index: np.ndarray,
        device: str | torch.device = "cpu",
    ) -> np.ndarray:
        """(n,) log-likelihood ratios; arguments as of :func:`~speech_adapters.metrics.trial_scores.cosine_scores`, but
        ``enrol`` and ``test`` are what :meth:`prepare` gives, or means of it, whose length is made one again."""
        left, right = (normalize(side.double(), dim=1) - self.mean for side in (enrol, test))
        own = [((side @ self.phi) * side).sum(1).numpy() / 2 for side in (left, right)]
        products = row_products(
            (left @ self.psi).float().to(device), right.float().to(device), enrol_index, test_index
        )
        return products + own[0][enrol_index] + own[1][test_index] + self.constant

    def prepare(self, vectors: Tensor) -> Tensor:
        """Embeddings (N, E) as a head gives them, centred on the training's mean and length-normalised."""
        return normalize(vectors.double() - self.centre, dim=1)
