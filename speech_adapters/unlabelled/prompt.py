"""A prompt on the CNN's output, found without gradients: forwards alone, so that memory is that of listening.

    L = alpha H + beta (|mean_t z_t - mu|^2 + 1/D sum_l |mean_t h^l_t - mu^l|^2)

``H`` is the entropy of frames that are not blank, at a temperature; ``z`` the CNN's output, ``h^l`` the hidden states,
``mu`` their means over speech as the model was trained on (:func:`source_statistics`), without which a low entropy is
all that is asked, and silence has it. CMA-ES (:mod:`~speech_adapters.unlabelled.cma_es`) searches the vector; it
stays 0 where nothing better is found.

Source: Dong et al., "E-BATS: Efficient Backpropagation-Free Test-Time Adaptation for Speech Foundation Models"
(NeurIPS 2025, arXiv 2506.07078) and the authors' code. Left out are their alignment by token and the moving average
of the search from one utterance to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from speech_adapters.adapters.code import CodeAdapter
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.windows import Windows
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.inference.modes import evaluating
from speech_adapters.inference.recordings import Recording
from speech_adapters.model_output import ModelOutput
from speech_adapters.ranges import Count, CountOrNone, NotNegative, Positive, Range, Seed, check_values
from speech_adapters.unlabelled.adaptation import Method, Model, Piece, Place, added, hear_pieces
from speech_adapters.unlabelled.cma_es import CMAES
from speech_adapters.unlabelled.entropy import frame_entropy

SILENT = 10.0
"""Entropy that stands for an utterance in which every frame is blank; the authors' code."""

SECONDS = 60.0
"""Audio of one forward: candidates share batches."""


@dataclass(frozen=True)
class SourceStatistics:
    """Means over speech like that the model was trained on: of the CNN's output (C,), and of each hidden state."""

    cnn: Tensor
    states: tuple[Tensor, ...]


@torch.no_grad()
def source_statistics(
    model: Model, recordings: Sequence[Recording], windows: Windows | None = None
) -> SourceStatistics:
    """The means over recordings, each window counting the same, under the active adapters.

    Raises:
        ConfigError: no recordings, none with speech, or adapters that act inside the CNN.
        AudioError: a recording that cannot be read.
    """
    _check_cnn(model)
    pieces = hear_pieces(model, recordings, windows)
    if not pieces:
        raise ConfigError("source statistics: no speech was found in the recordings; give some that hold speech.")
    with evaluating(model):
        means = [_means(model(**piece)) for piece in pieces]
    return SourceStatistics(
        torch.cat([cnn for cnn, _ in means]).mean(0),
        tuple(torch.cat(states).mean(0) for states in zip(*(states for _, states in means), strict=True)),
    )


@dataclass(frozen=True, kw_only=True)
class Prompt(Method):
    """Entropy and alignment with the source, by a code that is searched."""

    source: SourceStatistics
    """What speech sounds like to the model where it is at home."""
    rounds: Count = 40
    """Of the search; 40 as published."""
    population: Annotated[int, Range(2, 10_000)] = 50
    """Candidates a round; 50 as published."""
    sigma: Positive = 0.01
    """First step size; as published."""
    alpha: NotNegative = 1.0
    """Weight of the entropy; as published."""
    beta: NotNegative = 2.0
    """Weight of the alignment; as published."""
    temperature: Positive = 2.0
    """Of the entropy; as published."""
    patience: CountOrNone = 3
    """Stop after this many rounds in a row whose gain is below 0.001, as published; 0 makes all rounds."""
    seed: Seed = 0
    """Of the search."""

    def __post_init__(self) -> None:
        check_values(self, "Prompt: ")

    def place(self, model: Model) -> AbstractContextManager[Place]:
        _check_cnn(model)
        return added(model, CodeAdapter())

    @torch.no_grad()
    def adapt(self, model: Model, head: CTCHeadModule, place: Place, speech: Sequence[Piece]) -> tuple[float, ...]:
        (code,) = place.parameters
        if not speech:
            return ()
        search = CMAES(np.zeros(len(code)), self.sigma, self.population, self.seed)
        best = float(self._losses(model, head, np.zeros((1, len(code))), speech)[0])
        if not math.isfinite(best):
            raise CheckpointError("adapting: the losses are not finite; the model's weights are broken, or need fp32.")
        losses, found, waited = [best], search.mean, 0
        for _ in range(self.rounds):
            candidates = search.ask()
            values = self._losses(model, head, candidates, speech)
            values = np.where(np.isnan(values), np.inf, values)  # the worst there is
            search.tell(candidates, values)
            waited = 0 if best - values.min() > 1e-3 else waited + 1
            if values.min() < best:
                best, found = float(values.min()), candidates[values.argmin()]
            losses.append(best)
            if waited == self.patience > 0:
                break
        code.copy_(torch.from_numpy(found))
        return tuple(losses)

    def _losses(
        self, model: Model, head: CTCHeadModule, candidates: np.ndarray, speech: Sequence[Piece]
    ) -> np.ndarray:
        """(P,) the mean loss over the speech of each of (P, C) candidates."""
        total = np.zeros(len(candidates))
        for piece in speech:
            heard = piece["cnn_output"]
            seconds = heard.shape[1] * model.encoder.stride / SAMPLE_RATE
            for start in range(0, len(candidates), size := max(1, int(SECONDS / seconds))):
                some = torch.from_numpy(candidates[start : start + size]).to(heard)
                output = model(cnn_output=heard + some.unsqueeze(1))
                total[start : start + size] += self._loss(output, head).cpu().numpy()
        return total / len(speech)

    def _loss(self, output: ModelOutput, head: CTCHeadModule) -> Tensor:
        """(P,) of a batch of candidates for one piece."""
        assert isinstance(output.logits, Tensor), "one head reads the whole batch"
        found = [frame_entropy(logits.float(), head.blank, self.temperature) for logits in output.logits]
        entropy = torch.stack([output.logits.new_tensor(SILENT) if one is None else one for one in found])
        cnn, states = _means(output)
        distance = (cnn - self.source.cnn).square().sum(-1)
        for state, mean in zip(states, self.source.states, strict=True):
            distance = distance + (state - mean).square().mean(-1)
        return (self.alpha * entropy + self.beta * distance).double()


def _means(output: ModelOutput) -> tuple[Tensor, list[Tensor]]:
    """Means over frames (P, C) of the CNN's output, and (P, D) of each hidden state."""
    assert output.cnn_output is not None and not isinstance(output.hidden_states, Mapping)
    return output.cnn_output.float().mean(1), [state.float().mean(1) for state in output.hidden_states]


def _check_cnn(model: Model) -> None:
    if model.lowest_layer() < -1:
        raise ConfigError("Prompt: an active adapter acts inside the CNN, on whose output prompts are searched.")
