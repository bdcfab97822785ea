"""TSV-Merge: one change of a matrix out of several, each reduced to its leading singular vectors, made orthogonal.

With ``D_n = U_n S_n V_n'`` the change that member n of N made to a matrix of (m, n), of each the largest ``min(m, n) /
N`` singular values are kept, and side by side ::

    U = [U_1 .. U_N],  S = diag(N w_1 S_1, .., N w_N S_N),  V = [V_1 .. V_N]
    D = P(U) S P(V)'            P(X) = X (X' X)^-1/2, the nearest matrix with orthonormal columns (Procrustes)

What members learnt in overlapping directions no longer adds up or cancels: it is turned apart. Equal weights of one in
all give every member its full strength, which is the published merge (there without weights, and the sum added to the
base with factor 1). Singular values that are zero, as all but r of a LoRA update's, are left out: their vectors mean
nothing.

Source: Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging" (CVPR 2025, arXiv
2412.00081, TSV-M) and its official code. In recognition of ten domains the best of eleven merges are of this kind
(Carvalho et al., arXiv 2603.05354, which adds a boost of small singular values).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Changes (m, n) of one matrix and their weights -> the merged change (m, n), in float64."""
    kept = max(1, min(changes[0].shape) // len(changes))
    lefts, values, rights = [], [], []
    for change, weight in zip(changes, weights, strict=True):
        left, value, right = torch.linalg.svd(change.double(), full_matrices=False)
        rounding = value[0] * max(change.shape) * torch.finfo(change.dtype).eps
        count = min(kept, int((value > rounding).sum()))
        lefts.append(left[:, :count])
        values.append(len(changes) * weight * value[:count])
        rights.append(right[:count])
    return orthogonal(torch.cat(lefts, 1)) @ torch.diag(torch.cat(values)) @ orthogonal(torch.cat(rights))


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix whose columns, or rows where these are fewer, are orthonormal."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
