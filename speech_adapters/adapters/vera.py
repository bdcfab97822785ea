"""VeRA: all layers share one frozen random pair of low-rank matrices; each learns two scaling vectors.

    y = W x + l_b * B (l_d * (A x))        A: D_in -> r, B: r -> D_out, random and frozen; l_b starts at 0, l_d at 0.1

Parameters: ``r + D_out`` a projection. Use it for a LoRA of high rank at a tenth of its size. Files are those of
``peft``'s VeRA, A and B included: a saved adapter loads with ``PeftModel.from_pretrained``.

Source: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation" (ICLR 2024, section 3.1). Defaults: ``peft``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.projections import ProjectionConfig, ProjectionModule
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.ranges import Finite, Seed, Size

if TYPE_CHECKING:
    from peft import VeraConfig


@dataclass(frozen=True, kw_only=True)
class VeRA(ProjectionConfig):
    """Scaling vectors around a shared random pair."""

    method: ClassVar[str] = "vera"
    group: ClassVar[str] = "vera"

    rank: Size = 256
    start: Finite = 0.1
    """Start of l_d."""
    seed: Seed = 0
    """From which A and B are drawn."""

    def build(self, encoder: Encoder) -> VeRAModule:
        return VeRAModule(self, encoder)

    def peft_config(self, encoder: Encoder) -> VeraConfig:
        """The equivalent ``peft.VeraConfig``."""
        from peft import VeraConfig

        return VeraConfig(
            r=self.rank,
            d_initial=self.start,
            projection_prng_key=self.seed,
            save_projection=True,
            target_modules=self.target_modules(encoder),
            base_model_name_or_path=encoder.name,
            revision=encoder.revision,
        )


class VeRAVectors(nn.Module):
    """l_d (r,) and l_b (D_out,) of one projection."""

    def __init__(self, linear: nn.Linear, config: VeRA) -> None:
        super().__init__()
        self.shape = linear.in_features, linear.out_features
        self.vera_lambda_b = nn.Parameter(torch.zeros(linear.out_features))
        self.vera_lambda_d = nn.Parameter(torch.full((config.rank,), config.start))


class VeRAModule(ProjectionModule[VeRAVectors]):
    """The shared pair and the vectors by projection."""

    config: VeRA
    vera_A: Tensor
    vera_B: Tensor

    def __init__(self, config: VeRA, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        shapes = [part.shape for part in self.parts.values()]
        rank = config.rank
        generator = torch.Generator().manual_seed(config.seed)
        # One pair for all: a smaller projection takes the first columns of A and rows of B.
        device = "meta" if next(self.parts.parameters()).is_meta else "cpu"
        pair = (
            torch.empty(rank, max(i for i, _ in shapes), device=device),
            torch.empty(max(o for _, o in shapes), rank, device=device),
        )
        for name, matrix in zip(("vera_A", "vera_B"), pair, strict=True):
            bound = (6 / matrix.shape[1]) ** 0.5  # Kaiming, as in the paper's section 3.2
            if device == "cpu":
                matrix.uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, matrix)

    def part(self, linear: nn.Linear, target: str) -> VeRAVectors:
        return VeRAVectors(linear, self.config)

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        key = f"{index}_{name}"
        if key not in self.parts:
            return None
        part = self.parts[key]
        inner = nn.functional.linear(site.input.to(self.vera_A.dtype), self.vera_A[:, : part.shape[0]])
        return part.vera_lambda_b * nn.functional.linear(part.vera_lambda_d * inner, self.vera_B[: part.shape[1]])

    def folded(self, part: VeRAVectors, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        inner = part.vera_lambda_d.unsqueeze(1) * self.vera_A[:, : part.shape[0]]
        return weight + part.vera_lambda_b.unsqueeze(1) * (self.vera_B[: part.shape[1]] @ inner), bias

    def tensors(self) -> dict[str, Tensor]:
        return {"base_model.vera_A": self.vera_A, "base_model.vera_B": self.vera_B, **super().tensors()}
