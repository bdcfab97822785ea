"""Hidden-state distillation: a student encoder learns to reproduce a teacher's hidden states, layer by layer.

For matched layers ``l`` (student) and ``m(l)`` (teacher), frames ``t`` and channels ``d``::

    L = sum_l w_l * mean_{t,d} ((P_l s_{l,t} - c(h_{m(l),t}))_d / sigma_{l,d})^2

``c`` removes from the teacher's state what only its absolute position explains (the mean over utterances at frame
``t``, kept up to the mean over all frames): a convolutional student cannot know how long ago the recording began, and
should not spend capacity on it. ``sigma`` is the teacher's standard deviation per channel, so that the few channels of
huge variance that transformers grow do not drown the rest; a term of 1.0 is what predicting the mean scores.
``P_l`` is a linear map where the widths differ and the identity where they agree.

Sources: hidden-state regression at every layer follows Jiao et al., "TinyBERT" (EMNLP Findings 2020, section 3.1), and
for speech encoders Chang et al., "DistilHuBERT" (ICASSP 2022, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speech_adapters.errors import ConfigError


@dataclass(frozen=True)
class DistillationOutput:
    """``loss``: scalar; ``layer_losses`` and ``layer_cosines``: one detached figure a matched pair, bottom to top.

    The cosine is taken after the teacher's mean is removed, so that a shared offset earns nothing.
    """

    loss: Tensor
    layer_losses: Tensor
    layer_cosines: Tensor


class HiddenStateDistillation(nn.Module):
    """The loss above for any pair of encoders whose hidden states have the same frame rate.

    Args:
        student_width, teacher_width: channels of the hidden states.
        layers: pairs (student layer, teacher layer); 0 is the input of the first transformer layer.
        weights: one a pair; equal by default.
        max_positions: frames for which a position mean is kept (later frames use the overall mean); 0 turns the
            removal of absolute positions off, for teachers without them.

    Call :meth:`observe` on some batches of teacher states, then :meth:`finish_observing`, before training: it sets
    ``mean``, ``std`` and ``position_mean``, which are buffers and travel with ``state_dict``.
    """

    weights: Tensor
    mean: Tensor
    std: Tensor
    position_mean: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        layers: Sequence[tuple[int, int]],
        weights: Sequence[float] | None = None,
        max_positions: int = 0,
    ) -> None:
        super().__init__()
        if not layers:
            raise ConfigError("layers: name at least one (student layer, teacher layer) pair to distil.")
        if weights is not None and len(weights) != len(layers):
            raise ConfigError(f"weights: {len(weights)} given for {len(layers)} layer pairs; give one a pair.")
        self.layers = [(student, teacher) for student, teacher in layers]
        pairs = len(self.layers)
        self.register_buffer("weights", torch.tensor([1.0] * pairs if weights is None else list(weights)))
        self.register_buffer("mean", torch.zeros(pairs, teacher_width))
        self.register_buffer("std", torch.ones(pairs, teacher_width))
        self.register_buffer("position_mean", torch.zeros(pairs, max_positions, teacher_width))
        same = student_width == teacher_width
        self.projections = nn.ModuleList(
            nn.Identity() if same else nn.Linear(student_width, teacher_width) for _ in self.layers
        )
        self._sums: dict[str, Tensor] | None = None

    def of_layers(self, weights: Sequence[float]) -> HiddenStateDistillation:
        """The same loss over the first ``len(weights)`` pairs, at these weights, with the statistics of all."""
        count, width = len(weights), self.mean.shape[1]
        loss = HiddenStateDistillation(width, width, self.layers[:count], weights, self.position_mean.shape[1])
        for name in ("mean", "std", "position_mean"):
            getattr(loss, name).copy_(getattr(self, name)[:count])
        return loss

    @torch.no_grad()
    def observe(self, teacher_states: Sequence[Tensor], mask: Tensor | None = None) -> None:
        """Gather one batch of the teacher's statistics: states (B, T, D) a layer, mask (B, T), True on real frames."""
        positions = self.position_mean.shape[1]
        if self._sums is None:
            zeros = torch.zeros_like
            self._sums = {
                "count": torch.zeros((), dtype=torch.float64, device=self.mean.device),
                "sum": zeros(self.mean, dtype=torch.float64),
                "square": zeros(self.mean, dtype=torch.float64),
                "position_sum": zeros(self.position_mean, dtype=torch.float64),
                "position_count": torch.zeros(positions, dtype=torch.float64, device=self.mean.device),
            }
        sums = self._sums
        for index, (_, teacher_layer) in enumerate(self.layers):
            state = teacher_states[teacher_layer].double()
            valid = torch.ones(state.shape[:2], dtype=torch.bool, device=state.device) if mask is None else mask
            kept = state * valid.unsqueeze(-1)
            sums["sum"][index] += kept.sum((0, 1))
            sums["square"][index] += kept.square().sum((0, 1))
            frames = min(positions, state.shape[1])
            sums["position_sum"][index, :frames] += kept[:, :frames].sum(0)
            if index == 0:
                sums["count"] += valid.sum()
                sums["position_count"][:frames] += valid[:, :frames].sum(0)

    @torch.no_grad()
    def finish_observing(self) -> None:
        """Turn what :meth:`observe` gathered into ``mean``, ``std`` and ``position_mean``."""
        if self._sums is None:
            raise ConfigError("finish_observing: observe() at least one batch of teacher states first.")
        sums, self._sums = self._sums, None
        mean = sums["sum"] / sums["count"]
        self.mean.copy_(mean)
        seen = sums["position_count"] > 0
        position_mean = mean.unsqueeze(1).expand_as(self.position_mean).clone()
        position_mean[:, seen] = sums["position_sum"][:, seen] / sums["position_count"][seen].unsqueeze(-1)
        self.position_mean.copy_(position_mean)
        # Variance left once the position is known: E[h^2] - mean^2 - variance of the position means.
        between = torch.zeros_like(mean)
        if seen.any():
            weight = sums["position_count"] / sums["count"]
            between = ((position_mean - mean.unsqueeze(1)).square() * weight.unsqueeze(-1)).sum(1)
        variance = (sums["square"] / sums["count"] - mean.square() - between).clamp_min(0)
        # Channels that hardly move would turn rounding noise into loss: no channel counts as smaller than a tenth of
        # the layer's root mean square.
        floor = 0.01 * variance.mean(1, keepdim=True) + 1e-8
        self.std.copy_(torch.maximum(variance, floor).sqrt())

    def target(self, state: Tensor, index: int) -> Tensor:
        """The teacher's state (B, T, D) of matched pair ``index``, absolute positions removed."""
        frames = min(self.position_mean.shape[1], state.shape[1])
        if frames == 0:
            return state
        offset = self.position_mean[index, :frames] - self.mean[index]
        return torch.cat([state[:, :frames] - offset, state[:, frames:]], dim=1)

    def forward(
        self, student_states: Sequence[Tensor], teacher_states: Sequence[Tensor], mask: Tensor | None = None
    ) -> DistillationOutput:
        """Student and teacher states: (B, T, width) a layer; mask (B, T), True on real frames."""
        losses, cosines = [], []
        for index, (student_layer, teacher_layer) in enumerate(self.layers):
            student = self.projections[index](student_states[student_layer]).float()
            teacher = self.target(teacher_states[teacher_layer].float(), index)
            if student.shape != teacher.shape:
                raise ConfigError(
                    f"student layer {student_layer} gives {tuple(student.shape)} and teacher layer {teacher_layer} "
                    f"{tuple(teacher.shape)} (batch, frames, width): frame rates and lengths must agree."
                )
            if mask is not None:
                student, teacher = student[mask], teacher[mask]
            student = (student - self.mean[index]) / self.std[index]
            teacher = (teacher - self.mean[index]) / self.std[index]
            losses.append((student - teacher).square().mean())
            cosines.append(nn.functional.cosine_similarity(student, teacher, dim=-1).mean().detach())
        stacked = torch.stack(losses)
        return DistillationOutput((stacked * self.weights).sum(), stacked.detach(), torch.stack(cosines))
