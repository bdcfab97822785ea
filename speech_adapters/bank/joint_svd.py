"""Low-rank updates in bases that they share.

    M_i = B_i A_i  ~  U C_i V        U (D_out, c) and V (c, D_in) orthonormal, shared; C_i = U^T M_i V^T (c, c)

For a given V the best U are the leading eigenvectors of ``sum_i M_i V^T V M_i^T``, and the other way round; what is
lost is what ``U^T M_i V^T`` does not hold, since both are orthonormal. Adapters are brought to unit norm first, so
that a large one does not take the basis for itself, and adapters that have little in common are put into clusters with
a basis each. Of each cluster the smallest ``c`` is taken at which no adapter loses more than is asked for.

Source: Gabrielsson et al., "Compress then Serve: Serving Thousands of LoRA Adapters with Little Overhead" (ICML 2025,
arXiv:2407.00066), sections 3.2 (full joint diagonalisation) and 3.3 (clusters; theirs are learnt by reconstruction,
these by k-means over sketches ``G_1^T M_i G_2``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from speech_adapters.errors import ConfigError

Update = Mapping[str, tuple[Tensor, Tensor]]
"""Name of a projection -> B (D_out, r) and A (r, D_in), any scale within them."""
_ROUNDS, _SKETCH = 4, 12


@dataclass(frozen=True)
class Joint:
    """One cluster.

    Attributes:
        members: which of the updates are in it.
        down, up: (c, D_in) and (D_out, c) by projection, orthonormal.
        cores: of each member, (c, c) by projection.
        errors: of each member, ``|M - U C V| / |M|`` over all projections (Frobenius).
        itemsize: bytes of a number of the basis; those of cores take four.
    """

    members: list[int]
    down: dict[str, Tensor]
    up: dict[str, Tensor]
    cores: list[dict[str, Tensor]]
    errors: list[float]
    itemsize: int

    @property
    def rank(self) -> int:
        """Columns of the basis."""
        return next(iter(self.down.values())).shape[0]

    @property
    def bytes(self) -> int:
        """What it takes, the basis and all cores."""
        own = sum(t.numel() for pair in (self.down, self.up) for t in pair.values())
        return self.itemsize * own + 4 * sum(core.numel() for cores in self.cores for core in cores.values())


def compress_jointly(updates: Sequence[Update], target_error: float, itemsize: int = 4, seed: int = 0) -> list[Joint]:
    """The clusters that take the fewest bytes while no update loses more than ``target_error``.

    Tried are 1, 2, 4, ... clusters up to half as many as there are updates, and each update by itself.

    Raises:
        ConfigError: an error below what float32 and ranks up to the narrowest projection's width can reach.
    """
    scaled = [_padded(updates, name) for name in updates[0]]
    names = list(updates[0])
    norms = torch.stack([_norms(b, a) for b, a in scaled]).square().sum(0).sqrt()  # (N,)
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    stacked = {name: (b / norms[:, None, None], a) for name, (b, a) in zip(names, scaled, strict=True)}
    counts, best = [2**k for k in range(16) if 2**k <= max(1, len(updates) // 2)], None
    for count in dict.fromkeys([*counts, len(updates) // 4 or 1, len(updates) // 2 or 1, len(updates)]):
        clusters = _clusters(stacked, count, seed)
        found = [_smallest(stacked, members, target_error, itemsize) for members in clusters]
        if max(max(one.errors) for one in found) > target_error:
            continue  # together they span more columns than the narrowest projection has
        if best is None or sum(one.bytes for one in found) < sum(one.bytes for one in best):
            best = found
    if best is None:
        raise ConfigError(f"no basis of these adapters loses {target_error:g} of their norm or less; allow more.")
    return [_rescaled(one, norms) for one in best]


def _padded(updates: Sequence[Update], name: str) -> tuple[Tensor, Tensor]:
    """(N, D_out, r) and (N, r, D_in): lower ranks filled up with zeros."""
    rank = max(update[name][1].shape[0] for update in updates)
    b, a = zip(*(update[name] for update in updates), strict=True)
    pad = torch.nn.functional.pad
    return (
        torch.stack([pad(m.float(), (0, rank - m.shape[1])) for m in b]),
        torch.stack([pad(m.float(), (0, 0, 0, rank - m.shape[0])) for m in a]),
    )


def _norms(b: Tensor, a: Tensor) -> Tensor:
    """(N,) Frobenius norms of the products, without making them."""
    return ((b.mT @ b) * (a @ a.mT)).sum((1, 2)).clamp_min(0).sqrt()


def _clusters(stacked: Mapping[str, tuple[Tensor, Tensor]], count: int, seed: int) -> list[list[int]]:
    """Members by cluster: k-means over sketches of the updates, whichever their sign."""
    from sklearn.cluster import KMeans

    size = len(next(iter(stacked.values()))[0])
    if count == 1:
        return [list(range(size))]
    if count == size:
        return [[i] for i in range(size)]
    draw, sketches = torch.Generator().manual_seed(seed), []
    for b, a in stacked.values():
        left = torch.randn(b.shape[1], _SKETCH, generator=draw)
        right = torch.randn(a.shape[2], _SKETCH, generator=draw)
        sketches.append(((left.T @ b) @ (a @ right)).flatten(1))
    rows = torch.cat(sketches, dim=1)
    labels = KMeans(count, n_init=3, random_state=seed).fit_predict(rows.numpy())
    return [found for label in range(count) if (found := [i for i, own in enumerate(labels) if own == label])]


def _smallest(
    stacked: Mapping[str, tuple[Tensor, Tensor]], members: list[int], target_error: float, itemsize: int
) -> Joint:
    """The basis of the fewest columns at which no member loses more than asked; of the most, where there is none: as
    many as the narrowest projection has, which what the members span in a wider one may exceed.

    It is sought within what the members span together, which for few of them is far less than the layers' widths.
    """
    spans = {name: (_span(b[members]), _span(a[members].mT)) for name, (b, a) in stacked.items()}
    own = {name: (spans[name][0].T @ b[members], a[members] @ spans[name][1]) for name, (b, a) in stacked.items()}
    rank = next(iter(own.values()))[1].shape[1]
    highest = min(rank * len(members), *(min(b.shape[1], a.shape[2]) for b, a in own.values()))
    low, high = 1, highest
    found = None
    while low < high:
        middle = (low + high) // 2
        tried = _fit(own, members, middle, itemsize)
        if max(tried.errors) <= target_error:
            high, found = middle, tried
        else:
            low = middle + 1
    if found is None or found.rank != high:
        found = _fit(own, members, high, itemsize)
    up = {name: spans[name][0] @ u for name, u in found.up.items()}
    down = {name: v @ spans[name][1].T for name, v in found.down.items()}
    return replace(found, up=up, down=down)


def _span(columns: Tensor) -> Tensor:
    """(N, D, r) -> (D, at most N r), orthonormal: what all columns lie in."""
    return torch.linalg.qr(columns.permute(1, 0, 2).flatten(1).double())[0].float()


def _fit(own: Mapping[str, tuple[Tensor, Tensor]], members: list[int], rank: int, itemsize: int) -> Joint:
    down, up, cores = {}, {}, {}
    kept, whole = torch.zeros(len(members)), torch.zeros(len(members))
    for name, (b, a) in own.items():
        v = _leading(torch.einsum("nri,nrs,nsj->ij", a, b.mT @ b, a), rank)  # (D_in, c)
        for _ in range(_ROUNDS):
            u = _leading(_gram(b @ (a @ v)), rank)
            v = _leading(_gram(a.mT @ (b.mT @ u)), rank)
        core = (u.T @ b) @ (a @ v)
        down[name], up[name], cores[name] = v.T.contiguous(), u, core
        kept, whole = kept + core.square().sum((1, 2)), whole + _norms(b, a).square()
    lost = (1 - kept / whole.clamp_min(1e-12)).clamp_min(0).sqrt() * (whole > 0)
    each = [{name: core[i] for name, core in cores.items()} for i in range(len(members))]
    return Joint(members, down, up, each, lost.tolist(), itemsize)


def _gram(parts: Tensor) -> Tensor:
    """(N, D, c) -> (D, D) sum of the parts by their transposes."""
    flat = parts.permute(1, 0, 2).flatten(1)
    return flat @ flat.T


def _leading(gram: Tensor, rank: int) -> Tensor:
    """(D, D) -> (D, rank) its leading eigenvectors."""
    return torch.linalg.eigh(gram.double())[1][:, -rank:].flip(1).float()


def _rescaled(one: Joint, norms: Tensor) -> Joint:
    cores = [
        {name: core * norms[i] for name, core in own.items()} for i, own in zip(one.members, one.cores, strict=True)
    ]
    return replace(one, cores=cores)
