"""wav2vec 2.0: tell each hidden frame's quantised latent from distractors (Baevski et al., NeurIPS 2020, section 3.2).

    L_m = -log( exp(sim(c_t, q_t) / k) / sum_{q ~ Q_t} exp(sim(c_t, q) / k) ),   Q_t: q_t and K latents of hidden
                                                                                frames of the same utterance
    L_d = (G V - sum_g exp(H(p_g))) / (G V),                                     p_g: mean choice among V entries
    L   = L_m + 0.1 L_d

``c`` is the model's output and ``q`` the Gumbel-quantised CNN latent, both projected to one width. Names and shapes of
the tensors are those of Hugging Face's ``Wav2Vec2ForPreTraining``, and the loss is its loss divided by the number of
hidden frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.loading import stored_tensors
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.model_output import ModelOutput
from speech_adapters.objectives.base import MaskingConfig, Objective, ObjectiveOutput
from speech_adapters.ranges import NotNegative, Positive, Prior, Range, Size

PARTS = ("quantizer", "project_q", "project_hid")


@dataclass(kw_only=True)
class Wav2Vec2ObjectiveConfig(MaskingConfig):
    """Defaults of wav2vec 2.0 Base (its appendix B); a checkpoint with its own head decides on the sizes."""

    mask_probability: Prior = 0.65
    """p of the spans; 49 % of the frames are hidden."""
    negatives: Size = 100
    """K, distractors per frame."""
    temperature: Positive = 0.1
    """k, of the similarity."""
    diversity_weight: NotNegative = 0.1
    """Of L_d."""
    groups: Size = 2
    """G, codebooks."""
    entries: Size = 320
    """V, entries a codebook."""
    code_size: Size = 256
    """Width of a quantised latent."""
    projection_size: Size = 256
    """Width in which both are compared."""
    gumbel_start: Positive = 2.0
    """Temperature of the Gumbel softmax at first ..."""
    gumbel_end: Positive = 0.5
    """... and at last ..."""
    gumbel_decay: Annotated[float, Range(0, 1, above=True)] = 0.999995
    """... multiplied by this at each update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_size % self.groups:
            raise ConfigError(f"code_size={self.code_size} must be a multiple of groups={self.groups}.")


class GumbelQuantizer(nn.Module):
    """Latents (N, C) -> one entry of each of G codebooks, joined (N, ``code_size``); Jang et al., ICLR 2017."""

    def __init__(self, input_size: int, groups: int, entries: int, code_size: int) -> None:
        super().__init__()
        self.groups, self.entries, self.temperature = groups, entries, 1.0
        self.codevectors = nn.Parameter(torch.empty(1, groups * entries, code_size // groups).uniform_())
        self.weight_proj = nn.Linear(input_size, groups * entries)
        nn.init.normal_(self.weight_proj.weight, std=1.0)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised latents (N, ``code_size``), chosen entries (N, G), perplexity summed over the codebooks."""
        scores = self.weight_proj(latents).view(len(latents), self.groups, self.entries).float()
        if self.training:
            choice = F.gumbel_softmax(scores, tau=self.temperature, hard=True)
            shares = scores.softmax(-1).mean(0)
        else:
            choice = F.one_hot(scores.argmax(-1), self.entries).float()
            shares = choice.mean(0)
        book = self.codevectors.view(self.groups, self.entries, -1)
        quantized = torch.einsum("ngv,gvd->ngd", choice, book.float()).flatten(1)
        perplexity = torch.exp(-(shares * (shares + 1e-7).log()).sum(-1)).sum()
        return quantized, choice.argmax(-1), perplexity


class Wav2Vec2Objective(Objective):
    """Contrastive and diversity loss; the head is the checkpoint's where it has one for features of this width."""

    name: ClassVar[str] = "wav2vec2"
    config: Wav2Vec2ObjectiveConfig

    def __init__(self, config: Wav2Vec2ObjectiveConfig, encoder: Encoder, feature_size: int) -> None:
        super().__init__(config, encoder)
        stored = stored_tensors(encoder, PARTS)
        projected, code_size, groups, entries = (
            config.projection_size,
            config.code_size,
            config.groups,
            config.entries,
        )
        fits = len(stored) == 7 and stored["project_hid.weight"].shape[1] == feature_size
        if fits:
            own = encoder.config
            projected, code_size = stored["project_q.weight"].shape
            groups, entries = own.num_codevector_groups, own.num_codevectors_per_group
        self.quantizer = GumbelQuantizer(encoder.cnn_width, groups, entries, code_size)
        self.project_q = nn.Linear(code_size, projected)
        self.project_hid = nn.Linear(feature_size, projected)
        if fits:
            self.load_state_dict(stored, strict=False)
            self.head_source = "checkpoint"
        self.set_step(0)

    def set_step(self, step: int) -> None:
        config = self.config
        self.quantizer.temperature = max(config.gumbel_start * config.gumbel_decay**step, config.gumbel_end)

    def score(
        self,
        model: SpeechAdapterModel,
        output: ModelOutput,
        waveforms: Tensor,
        lengths: Tensor | None,
        time_mask: Tensor,
        rng: np.random.Generator,
        negatives: Tensor | None = None,
    ) -> ObjectiveOutput:
        """``negatives`` (N, K), given in place of drawn ones, number the N hidden frames in the batch's order."""
        if negatives is None:
            negatives = draw_negatives(time_mask.sum(1).tolist(), self.config.negatives, rng)
        negatives = negatives.to(time_mask.device)
        assert output.cnn_output is not None  # the run starts from waveforms
        with torch.autocast(time_mask.device.type, enabled=False):
            latents = model.encoder.latents(output.cnn_output)[time_mask].float()
            quantized, codes, perplexity = self.quantizer(latents)
            context = F.normalize(self.project_hid(output.features[time_mask].float()), dim=-1, eps=1e-8)
            targets = F.normalize(self.project_q(quantized), dim=-1, eps=1e-8)
            # All similarities at once, then the wanted ones: N x N numbers in place of N x K vectors.
            similarity = context @ targets.T / self.config.temperature
            others = similarity.gather(1, negatives)
            same = (codes[negatives] == codes.unsqueeze(1)).all(-1)  # a distractor equal to the target does not count
            logits = torch.cat([similarity.diagonal().unsqueeze(1), others.masked_fill(same, -torch.inf)], dim=1)
            contrastive = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
            total = self.quantizer.groups * self.quantizer.entries
            diversity = (total - perplexity) / total
        accuracy = (logits[:, 1:] < logits[:, :1]).all(1).float().mean()
        return ObjectiveOutput(
            contrastive + self.config.diversity_weight * diversity,
            len(logits),
            {"contrastive": contrastive.detach(), "perplexity": perplexity.detach(), "accuracy": accuracy},
        )


def draw_negatives(hidden: list[int], count: int, rng: np.random.Generator) -> Tensor:
    """(N, count) numbers of hidden frames: for each of N, others of the same utterance, drawn with replacement.

    ``hidden`` holds each utterance's number of hidden frames; a frame that is alone gets itself, which never counts.
    """
    rows, first = [], 0
    for size in hidden:
        drawn = rng.integers(max(size - 1, 1), size=(size, count))
        if size > 1:
            drawn += drawn >= np.arange(size)[:, None]  # never the frame itself
        rows.append(first + drawn)
        first += size
    return torch.from_numpy(np.concatenate(rows))
