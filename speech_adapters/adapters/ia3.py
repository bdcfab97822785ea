"""(IA)^3: one learnt factor a channel of keys, values and the feed-forward's hidden layer.

    k' = l_k * k        v' = l_v * v        FFN(x) = W_out (l_ff * act(W_in x))        all l start at 1

Parameters: ``2 D + D_ff`` a layer. Use it when an adapter must be tiny (0.06 % of a Base encoder) and fold into the
base without cost. Files are those of ``peft``'s IA3: a saved adapter loads with ``PeftModel.from_pretrained``.

Source: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"
(NeurIPS 2022, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.projections import ProjectionConfig, ProjectionModule, ProjectionPart
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site

if TYPE_CHECKING:
    from peft import IA3Config

#: Projections whose input is scaled, and the activations that it comes from.
ACTIVATIONS = {"output_dense": "intermediate_act", "first_output_dense": "first_intermediate_act"}


@dataclass(frozen=True, kw_only=True)
class IA3(ProjectionConfig):
    """Learnt factors on the chosen projections."""

    method: ClassVar[str] = "ia3"
    group: ClassVar[str] = "ia3"

    targets: tuple[str, ...] = ("k_proj", "v_proj", "output_dense")
    """Projections whose output is scaled; "output_dense" means its input, the feed-forward's hidden layer."""

    def build(self, encoder: Encoder) -> IA3Module:
        return IA3Module(self, encoder)

    def peft_config(self, encoder: Encoder) -> IA3Config:
        """The equivalent ``peft.IA3Config``."""
        from peft import IA3Config

        inputs = [encoder.part_name(index, target) for index, target in self.chosen(encoder) if target in ACTIVATIONS]
        return IA3Config(
            target_modules=self.target_modules(encoder),
            feedforward_modules=inputs,
            base_model_name_or_path=encoder.name,
            revision=encoder.revision,
        )


class OutputScale(ProjectionPart):
    """Factors (D_out, 1) on a projection's output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.ia3_l = nn.Parameter(torch.ones(linear.out_features, 1))

    def forward(self, site: Site) -> Tensor:
        return site.output * (self.ia3_l.flatten() - 1)  # what is added: zero at the start, to the last bit

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.ia3_l, None if bias is None else bias * self.ia3_l.flatten()


class InputScale(ProjectionPart):
    """Factors (1, D_in) on a projection's input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.ia3_l = nn.Parameter(torch.ones(1, linear.in_features))

    def forward(self, site: Site) -> Tensor:
        return site.output * (self.ia3_l.flatten() - 1)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.ia3_l, bias


class IA3Module(ProjectionModule[ProjectionPart]):
    """Factors by projection."""

    def part(self, linear: nn.Linear, target: str) -> ProjectionPart:
        return InputScale(linear) if target in ACTIVATIONS else OutputScale(linear)

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        if name in ACTIVATIONS:  # done before it, on its input: the activation's output
            return None
        target = next((target for target, activation in ACTIVATIONS.items() if activation == name), name)
        return super().delta(target, index, site)
