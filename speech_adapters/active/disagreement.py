"""How much several predictions of one utterance differ: passes with dropout, or the members of a committee.

Classification: BALD, the mutual information of label and model (Houlsby et al., 2011; with dropout Gal et al., ICML
2017): ``H(mean_s p_s) - mean_s H(p_s)``. Recognition: the mean word error rate between pairs of decodes (Kundacina et
al., arXiv 2406.02566), of the longer one's words, so that it is symmetric and at most 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import numpy as np
from torch import Tensor, nn

from speech_adapters.active.acquisition import entropy
from speech_adapters.errors import ConfigError


def bald(probabilities: Tensor) -> Tensor:
    """(S, N, C) of S predictions -> (N,) in nats, 0 where all agree."""
    return (entropy(probabilities.mean(0)) - entropy(probabilities).mean(0)).clamp(min=0)


def decode_disagreement(decodes: Sequence[Sequence[str]]) -> np.ndarray:
    """S decodes of N utterances -> (N,) from 0 (all alike) to 1."""
    from rapidfuzz.distance import Levenshtein

    if len(decodes) < 2:
        raise ConfigError("decode_disagreement needs two decodes or more; raise passes, or add a committee member.")
    words = [[text.split() for text in decode] for decode in decodes]
    pairs = [
        [Levenshtein.normalized_distance(a, b) for a, b in zip(first, second, strict=True)]
        for first, second in combinations(words, 2)
    ]
    return np.mean(pairs, axis=0)


@contextmanager
def monte_carlo_dropout(model: nn.Module, probability: float) -> Iterator[None]:
    """Every dropout layer of the model, also those of the frozen encoder, works with ``probability`` inside."""
    if not 0 < probability < 1:
        raise ConfigError(f"dropout={probability}: give a probability between 0 and 1; at 0 all passes are alike.")
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    before = [(layer.p, layer.training) for layer in layers]
    try:
        for layer in layers:
            layer.p, layer.training = probability, True
        yield
    finally:
        for layer, (p, training) in zip(layers, before, strict=True):
            layer.p, layer.training = p, training
