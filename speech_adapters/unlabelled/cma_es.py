"""CMA-ES: minimise a function of many numbers from its values alone.

    x_k ~ m + sigma N(0, C),  k = 1 .. population

The better half of the candidates moves ``m``; how ``m`` has moved shapes ``sigma`` and ``C``.

Source: Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772), figure 6 and table 1, with the positive
weights only.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


class CMAES:
    """A search that is asked for candidates and told their values.

    Args:
        start: (N,) the first mean.
        sigma: the first step size.
        population: candidates a round; two at least.
        seed: of the draws.

    Attributes:
        mean: (N,) where the search stands.
        sigma: its step size.
    """

    def __init__(self, start: Array, sigma: float, population: int, seed: int = 0) -> None:
        self.mean, self.sigma, n = np.array(start, dtype=float), sigma, len(start)
        self.draw = np.random.default_rng(seed)
        self.population, best = population, max(population // 2, 1)
        weights = math.log((population + 1) / 2) - np.log(np.arange(1, best + 1))
        self.weights = weights / weights.sum()
        self.effective = 1 / float((self.weights**2).sum())
        mu = self.effective
        self.c_sigma = (mu + 2) / (n + mu + 5)
        self.damping = 1 + 2 * max(0.0, math.sqrt((mu - 1) / (n + 1)) - 1) + self.c_sigma
        self.c_path = (4 + mu / n) / (n + 4 + 2 * mu / n)
        self.c_one = 2 / ((n + 1.3) ** 2 + mu)
        self.c_mu = min(1 - self.c_one, 2 * (mu - 2 + 1 / mu) / ((n + 2) ** 2 + mu))
        self.expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))  # of a standard normal's length
        self.path_sigma, self.path = np.zeros(n), np.zeros(n)
        self.covariance, self.axes, self.scales = np.eye(n), np.eye(n), np.ones(n)
        self.rounds, self.decomposed = 0, 0

    def ask(self) -> Array:
        """(population, N) candidates."""
        normal = self.draw.standard_normal((self.population, len(self.mean)))
        return np.asarray(self.mean + self.sigma * (normal * self.scales) @ self.axes.T)

    def tell(self, candidates: Array, values: Array) -> None:
        """What the function says of the last candidates, (population,)."""
        n, mu = len(self.mean), self.effective
        self.rounds += 1
        steps = (candidates[np.argsort(values, kind="stable")[: len(self.weights)]] - self.mean) / self.sigma
        step = self.weights @ steps
        self.mean = self.mean + self.sigma * step
        white = self.axes @ ((self.axes.T @ step) / self.scales)
        self.path_sigma = (1 - self.c_sigma) * self.path_sigma + math.sqrt(
            self.c_sigma * (2 - self.c_sigma) * mu
        ) * white
        length = float(np.linalg.norm(self.path_sigma))
        short = length / math.sqrt(1 - (1 - self.c_sigma) ** (2 * self.rounds)) < (1.4 + 2 / (n + 1)) * self.expected
        self.path = (1 - self.c_path) * self.path
        if short:
            self.path = self.path + math.sqrt(self.c_path * (2 - self.c_path) * mu) * step
        lost = 0.0 if short else self.c_one * self.c_path * (2 - self.c_path)
        self.covariance = (
            (1 - self.c_one - self.c_mu + lost) * self.covariance
            + self.c_one * np.outer(self.path, self.path)
            + self.c_mu * (steps.T * self.weights) @ steps
        )
        self.sigma *= math.exp(self.c_sigma / self.damping * (length / self.expected - 1))
        if self.rounds - self.decomposed > 1 / (10 * n * (self.c_one + self.c_mu)):  # as rarely as it may be
            values_, self.axes = np.linalg.eigh((self.covariance + self.covariance.T) / 2)
            self.scales, self.decomposed = np.sqrt(np.maximum(values_, 1e-20)), self.rounds
