"""PiSSA: a low-rank update that starts at the projection's principal singular directions.

    y = W x + (alpha / r) (B A - B0 A0) x        B0 A0 the best rank-r part of W (its r largest singular values)

The paper trains B A on the residual ``W - B0 A0``. Here the base is shared with other adapters and stays as it is: the
frozen starting pair is subtracted instead, which is the same function of A and B, starts exactly at the frozen encoder
and gives the same gradients. Files are those of a ``peft`` LoRA of rank 2 r (``[B, B0]`` and ``[A; -A0]``): a saved
adapter loads with ``PeftModel.from_pretrained``.

Parameters: ``r (D_in + D_out)`` a projection, as LoRA. Use it when few updates must suffice: it converges faster.

Source: Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation" (NeurIPS 2024, section 3);
the conversion to a LoRA of rank 2 r is its appendix's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.projections import (
    ProjectionConfig,
    ProjectionModule,
    ProjectionPart,
    low_rank_blueprint,
)
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Size

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True, kw_only=True)
class PiSSA(ProjectionConfig):
    """Low-rank updates from the principal singular directions; rank and targets as in LoRA, alpha = rank."""

    method: ClassVar[str] = "pissa"
    group: ClassVar[str] = "pissa"

    rank: Size = 8

    def build(self, encoder: Encoder) -> PiSSAModule:
        return PiSSAModule(self, encoder)

    def blueprint(self, encoder: Encoder) -> dict[str, Tensor]:
        return low_rank_blueprint(self, encoder, 2 * self.rank)

    def peft_config(self, encoder: Encoder) -> LoraConfig:
        """The ``peft.LoraConfig`` of the saved file: rank 2 r at scale 1."""
        from peft import LoraConfig

        return LoraConfig(
            r=2 * self.rank,
            lora_alpha=2 * self.rank,
            target_modules=self.target_modules(encoder),
            base_model_name_or_path=encoder.name,
            revision=encoder.revision,
        )


class PiSSAUpdate(ProjectionPart):
    """A (r, D_in) and B (D_out, r), and the frozen pair that they started from."""

    start_a: Tensor
    start_b: Tensor

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        if rank > min(linear.weight.shape):
            raise ConfigError(f"pissa: rank={rank} is above what a projection of {tuple(linear.weight.shape)} has.")
        left, values, right = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        root = values[:rank].sqrt()
        self.register_buffer("start_a", root.unsqueeze(1) * right[:rank])
        self.register_buffer("start_b", left[:, :rank] * root)
        self.a, self.b = nn.Parameter(self.start_a.clone()), nn.Parameter(self.start_b.clone())

    def forward(self, site: Site) -> Tensor:
        hidden, linear = site.input.to(self.a.dtype), nn.functional.linear
        return linear(linear(hidden, self.a), self.b) - linear(linear(hidden, self.start_a), self.start_b)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.b @ self.a - self.start_b @ self.start_a, bias


class PiSSAModule(ProjectionModule[PiSSAUpdate]):
    """Updates by projection."""

    config: PiSSA

    def part(self, linear: nn.Linear, target: str) -> PiSSAUpdate:
        return PiSSAUpdate(linear, self.config.rank)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, part in self.named_parts():
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.cat([part.a, -part.start_a]).detach()
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.cat([part.b, part.start_b], dim=1).detach()
        return tensors

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.check_tensors(tensors)
        with torch.no_grad():
            for name, part in self.named_parts():
                a, start_a = tensors[f"base_model.model.{name}.lora_A.weight"].chunk(2)
                b, start_b = tensors[f"base_model.model.{name}.lora_B.weight"].chunk(2, dim=1)
                part.a.copy_(a), part.b.copy_(b), part.start_a.copy_(-start_a), part.start_b.copy_(start_b)
