"""Picks that differ from one another and from what is labelled. All yield indices one by one, best first.

k-center    the point farthest from all labelled and picked ones (Sener and Savarese, ICLR 2018, algorithm 1: a
            radius at most twice the optimal one)
BADGE       the k-means++ draw among gradient embeddings (Ash et al., ICLR 2020, algorithm 1): far apart and unsure
clusters    k-means; the points nearest to the centres, or each cluster's least certain ones, taken in turn
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def k_center_greedy(embeddings: np.ndarray, labelled: np.ndarray | None = None) -> Iterator[int]:
    """Order of points (N, D), given labelled ones (M, D). Without any, the first is the one nearest to the mean."""

    def central(points: np.ndarray) -> int:
        return int(((points - points.mean(0)) ** 2).sum(1).argmin())

    return _spread(embeddings, _distances(embeddings, labelled), central, lambda nearest: int(nearest.argmax()))


def badge(gradients: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """k-means++ order of gradient embeddings (N, D): the first has the largest gradient, further ones are drawn with
    probability proportional to the squared distance to the nearest one picked."""

    def draw(nearest: np.ndarray) -> int:
        weights = np.maximum(nearest, 0)
        total = weights.sum()
        if total > 0:
            return int(rng.choice(len(weights), p=weights / total))
        return int(rng.choice(np.flatnonzero(nearest >= 0)))  # all that is left lies on a picked point

    return _spread(gradients, None, lambda g: int((g**2).sum(1).argmax()), draw)


def cluster_start(embeddings: np.ndarray, clusters: int, seed: int) -> Iterator[int]:
    """Of each k-means cluster the point nearest to its centre, largest cluster first; then the second nearest, ..."""
    labels, distances = _clusters(embeddings, clusters, seed)
    return _in_turn(labels, -distances)


def cluster_then_uncertain(embeddings: np.ndarray, uncertainty: np.ndarray, clusters: int, seed: int) -> Iterator[int]:
    """Of each cluster the least certain point, largest cluster first; then the second least certain, ..."""
    return _in_turn(_clusters(embeddings, clusters, seed)[0], uncertainty)


def gradient_embeddings(probabilities: Tensor, features: Tensor) -> Tensor:
    """Gradient of the cross-entropy of the model's own guess with regard to the last layer's weights.

    ``(p - onehot(argmax p)) (x) h``: probabilities (N, C), the layer's input (N, D) -> (N, C D).
    """
    guess = F.one_hot(probabilities.argmax(-1), probabilities.shape[-1])
    return ((probabilities - guess).unsqueeze(2) * features.unsqueeze(1)).flatten(1)


def ctc_gradient_embeddings(logits: Tensor, lengths: Tensor, features: Tensor, blank: int) -> Tensor:
    """The same for CTC, whose own guess is its best path's text, by symbol so that length does not decide.

    ``sum_t dL/dlogits_t (x) h_t``: logits (B, T, V), lengths (B,), the layer's input (B, T, D) -> (B, V D).
    """
    with torch.enable_grad():
        logits = logits.detach().float().requires_grad_(True)
        texts = [_best_path(row[:length], blank) for row, length in zip(logits.argmax(-1), lengths, strict=True)]
        sizes = torch.tensor([len(text) for text in texts], device=logits.device)
        loss = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1), torch.cat(texts), lengths, sizes, blank, "none", zero_infinity=True
        )
        (gradient,) = torch.autograd.grad((loss / sizes.clamp(min=1)).sum(), logits)
    return torch.einsum("btv,btd->bvd", gradient, features.float()).flatten(1)


def _best_path(ids: Tensor, blank: int) -> Tensor:
    merged = torch.unique_consecutive(ids)
    return merged[merged != blank]


def _spread(
    points: np.ndarray,
    nearest: np.ndarray | None,
    first: Callable[[np.ndarray], int],
    choose: Callable[[np.ndarray], int],
) -> Iterator[int]:
    """Points in the order of ``choose``; it sees squared distances to the nearest taken one, -1 for the taken.

    ``first`` chooses among the points themselves where none is taken yet.
    """
    points = np.asarray(points, dtype=np.float32)
    squared = (points**2).sum(1)
    for _ in range(len(points)):
        index = first(points) if nearest is None else choose(nearest)
        yield index
        away = np.maximum(squared + squared[index] - 2 * points @ points[index], 0)
        nearest = away if nearest is None else np.where(nearest < 0, nearest, np.minimum(nearest, away))
        nearest[index] = -1


def _distances(points: np.ndarray, others: np.ndarray | None) -> np.ndarray | None:
    """Squared distance of each point to the nearest of others; None where there are none."""
    if others is None or not len(others):
        return None
    from sklearn.metrics import pairwise_distances_argmin_min

    return pairwise_distances_argmin_min(points, others)[1].astype(np.float32) ** 2


def _clusters(embeddings: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster (N,) of each point and its distance (N,) to the centre."""
    from sklearn.cluster import KMeans

    found = KMeans(max(1, min(clusters, len(embeddings))), n_init=3, random_state=seed).fit(embeddings)
    return found.labels_, np.linalg.norm(embeddings - found.cluster_centers_[found.labels_], axis=1)


def _in_turn(labels: np.ndarray, scores: np.ndarray) -> Iterator[int]:
    """One of each group in turn, larger groups first, higher scores first."""
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    queues = [group[np.argsort(-scores[group], kind="stable")] for group in sorted(groups, key=len, reverse=True)]
    for place in range(max(map(len, queues))):
        yield from (int(queue[place]) for queue in queues if place < len(queue))
