"""VARAN: L-adapters whose layer weights depend on the input.

    m_l = mean_t h_l                          of the utterance's real frames
    q   = softmax_l(u_l . m_l + s_l)          the posterior over layers
    z   = sum_l q_l a_l,   a_l = LN(act(W_l h_l + b_l))      as in an L-adapter; the head reads z alone

``u`` and ``s`` start at zero: at first all layers weigh the same, as in an L-adapter. Parameters: those of an
L-adapter and ``L D``. Use it where recordings differ in kind (noise, channel, emotion), so that no one mixture of
layers fits all of them; the paper's best results are beside LoRA (``lora+varan``). As with L-adapters nothing is
computed backwards through the encoder.

Source: Diatlova et al., "VARAN: Variational Inference for Self-Supervised Speech Models Fine-Tuning on Downstream
Tasks" (arXiv 2508.12061): probing heads of their own for the layers, weighed by data. There each layer has a head, the
loss is the posterior's mean of the heads' losses, and a divergence holds the posterior to a prior; here L-adapters
are the layers' own part, one head reads the posterior's mean of what they give, and there is no prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.l_adapter import LAdapter, LayerPaths
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput


@dataclass(frozen=True, kw_only=True)
class VARAN(LAdapter):
    """L-adapters under a posterior over layers; width, activation and start are the L-adapter's."""

    method: ClassVar[str] = "varan"

    def build(self, encoder: Encoder) -> VARANModule:
        return VARANModule(self, encoder)


class VARANModule(LayerPaths):
    """The paths, and the gate that weighs them by what it hears."""

    def __init__(self, config: VARAN, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.gate = nn.Parameter(torch.zeros(len(self.layer_indices), encoder.hidden_size))
        self.offset = nn.Parameter(torch.zeros(len(self.layer_indices)))

    @property
    def indifferent(self) -> tuple[nn.Parameter, ...]:
        return (self.gate, self.offset) if len(self.offset) == 1 else ()

    def posterior(self, states: list[Tensor], mask: Tensor | None) -> Tensor:
        """Hidden states (B, T, D) of the layers and their mask (B, T) -> weights (B, L)."""
        means = torch.stack([_mean(state.float(), mask) for state in states], dim=1)
        return ((means * self.gate).sum(-1) + self.offset).softmax(-1)

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor:
        states = list(self.heard(encoder, output))
        weights = self.posterior(states, output.mask)
        total = torch.zeros((), device=weights.device)
        for number, (hidden, path, norm) in enumerate(zip(states, self.paths, self.norms, strict=True)):
            total = total + weights[:, number, None, None] * norm(self.activation(path(hidden))).to(weights.dtype)
        return total


def _mean(state: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return state.mean(1)
    real = mask.unsqueeze(-1).to(state.dtype)
    return (state * real).sum(1) / real.sum(1)
