"""What a gate reads, at zero mean and unit variance by dimension, over all that its training has heard.

A LayerNorm alone is blind where a few channels are hundreds of times as large as the others and hardly change, as in
encoders that compute logarithms or have outlier channels: what it leaves of the others is too small to learn from.

    n' = n + m,   d = mean(x) - mu,   mu' = mu + d m / n',   S' = S + sum (x - mean(x))^2 + d^2 n m / n'
    x  ->  (x - mu) / sqrt(S / n + 1e-5)

Running moments: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
(1979). Unlike batch norm, training uses the running ones too: a batch may be one utterance. Parameters: none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST = 1e-5
"""Added to variances: channels that were silent in training stay small."""


class Standardization(nn.Module):
    """Rows (..., size) standardised; as they are until :meth:`learn` has heard two."""

    count: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.zeros(size))

    @torch.no_grad()
    def learn(self, rows: Tensor) -> None:
        """Take in rows (N, size)."""
        if not len(rows):
            return
        heard, new = self.count.double(), len(rows)
        mean = rows.mean(0)
        change, share = mean - self.mean, (new / (heard + new)).to(rows.dtype)
        self.spread += (rows - mean).square().sum(0) + change.square() * (share * heard.to(rows.dtype))
        self.mean += change * share
        self.count += new

    def forward(self, rows: Tensor) -> Tensor:
        scale = (self.spread / self.count.clamp_min(1) + _SMALLEST).rsqrt()
        return torch.where(self.count > 1, (rows - self.mean) * scale, rows)
