"""Scores of verification trials from embeddings: cosine, and normalisation of scores by a cohort.

Each trial is one dot product of two rows; trials are taken in chunks, so that tens of millions need no more memory
than their scores. Normalisation (s a trial's score; mean and deviation, with divisor n, of the cosine scores of one
side against the cohort):

    s-norm           [(s - mean_enrol) / std_enrol + (s - mean_test) / std_test] / 2, over the whole cohort
                     (Kenny, "Bayesian speaker verification with heavy-tailed priors", Odyssey 2010)
    adaptive s-norm  the same over each side's own ``top`` highest cohort scores: AS-norm1 of Matejka et al., "Analysis
                     of score normalization in multilingual speaker recognition", Interspeech 2017
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from speech_adapters.errors import ConfigError

_CHUNK_VALUES = 2**24  # floats of one gathered side, or of a block of cohort scores: 64 MB


def cosine_scores(
    enrol: Tensor, test: Tensor, enrol_index: np.ndarray, test_index: np.ndarray, device: str | torch.device = "cpu"
) -> np.ndarray:
    """(n,) cosines of ``enrol[enrol_index[i]]`` and ``test[test_index[i]]``, in float32.

    Args:
        enrol, test: (M, E) and (N, E) embeddings of any length.
        enrol_index, test_index: (n,) rows of the trials.
    """
    enrol, test = normalize(enrol.to(device), dim=1), normalize(test.to(device), dim=1)
    scores = row_products(enrol, test, enrol_index, test_index)
    return scores.clip(-1, 1)  # rounded, the product of a vector of length one with itself may be a hair more


def row_products(enrol: Tensor, test: Tensor, enrol_index: np.ndarray, test_index: np.ndarray) -> np.ndarray:
    """(n,) dot products of ``enrol[enrol_index[i]]`` and ``test[test_index[i]]``, computed where the rows lie."""
    scores = np.empty(len(enrol_index), dtype=np.float32)
    for part in _chunks(len(scores), _CHUNK_VALUES // enrol.shape[1]):
        left, right = (torch.from_numpy(index[part].astype(np.int64)) for index in (enrol_index, test_index))
        products = torch.linalg.vecdot(enrol[left.to(enrol.device)], test[right.to(test.device)])
        scores[part] = products.cpu().numpy()
    return scores


def normalize_scores(
    scores: np.ndarray,
    enrol: Tensor,
    test: Tensor,
    enrol_index: np.ndarray,
    test_index: np.ndarray,
    cohort: Tensor,
    *,
    top: int | None = 300,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """(n,) trial scores after adaptive s-norm, or s-norm with ``top=None``; higher still means more alike.

    Args:
        scores: (n,) cosine scores. enrol, test, enrol_index, test_index: what they are of, as for
            :func:`cosine_scores`.
        cohort: (C, E) embeddings of other speakers, best one per speaker; with more than ``top`` of them.

    Raises:
        ConfigError: a cohort that is too small, or of another width.
    """
    if cohort.shape[1] != enrol.shape[1]:
        raise ConfigError(
            f"cohort embeddings have width {cohort.shape[1]}, the trials' {enrol.shape[1]}; use one model."
        )
    if len(cohort) < 2 or (top is not None and not 2 <= top <= len(cohort)):
        raise ConfigError(
            f"score normalisation: top={top} of a cohort of {len(cohort)}; take 2 or more, at most the whole cohort."
        )
    cohort = normalize(cohort.to(device), dim=1)
    normalized = np.zeros(len(scores))
    for side, index in ((enrol, enrol_index), (test, test_index)):
        mean, std = cohort_statistics(normalize(side.to(device), dim=1), cohort, top)
        normalized += (scores - mean[index]) / std[index]
    return normalized / 2


def cohort_statistics(rows: Tensor, cohort: Tensor, top: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mean and (N,) deviation of each row's scores against the cohort, or against its ``top`` nearest.

    In float64: a small deviation divides, and in float32 a GPU may round the factors of a product to ten bits.
    """
    means, deviations, others = [], [], cohort.double().T
    for part in _chunks(len(rows), _CHUNK_VALUES // (2 * len(cohort))):
        against = rows[part].double() @ others
        if top is not None:
            against = against.topk(top, dim=1).values
        means.append(against.mean(1))
        deviations.append(against.std(1, correction=0).clamp_min(1e-6))  # a cohort of equals has no spread
    return torch.cat(means).cpu().numpy(), torch.cat(deviations).cpu().numpy()


def _chunks(total: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, total, size))
