"""AdaLoRA: LoRA in the form of a singular value decomposition, whose ranks are given to the layers that need them.

    y = W x + (alpha / r) P diag(E) Q x        Q: D_in -> r, P: r -> D_out, E starts at 0

While it trains, the importance of each singular triplet (its smoothed sensitivity times its uncertainty) decides which
entries of E stay; the budget falls from ``init_rank`` to ``rank`` a projection on a cubic schedule. The loss gains
``orthogonality`` times the mean of all ``||P'P - I||`` and ``||QQ' - I||``, two a projection.

Parameters while training: ``init_rank (D_in + D_out + 1)`` a projection. Use it when the memory of a served adapter
counts and the layers differ in what they need. Files are those of ``peft``'s AdaLoRA; its own allocator is at work.

Source: Zhang et al., "AdaLoRA: Adaptive Budget Allocation" (ICLR 2023, sections 3.1 to 3.3). Defaults: ``peft``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.projections import ProjectionConfig, ProjectionModule, ProjectionPart
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Count, Dropout, NotNegative, Positive, Size

if TYPE_CHECKING:
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import RankAllocator


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(ProjectionConfig):
    """Low-rank updates with ranks that move between projections."""

    method: ClassVar[str] = "adalora"
    group: ClassVar[str] = "adalora"

    rank: Size = 8
    """Mean rank at the end."""
    init_rank: Size = 12
    """Rank of every projection at the start."""
    alpha: Positive = 8
    warmup: Dropout = 0.1
    """Share of the updates before the first pruning."""
    settle: Dropout = 0.3
    """Share of the updates after the last pruning."""
    every: Count = 10
    """Updates between prunings."""
    orthogonality: NotNegative = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_rank <= self.rank:
            raise ConfigError(f"adalora: init_rank={self.init_rank} must be above rank={self.rank}.")
        if self.warmup + self.settle >= 1:
            raise ConfigError(
                f"adalora: warmup={self.warmup}, settle={self.settle}; the two shares must leave updates between them."
            )

    def build(self, encoder: Encoder) -> AdaLoRAModule:
        return AdaLoRAModule(self, encoder)

    def peft_config(self, encoder: Encoder, updates: int = 1000) -> AdaLoraConfig:
        """The equivalent ``peft.AdaLoraConfig`` for a training of so many updates."""
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            init_r=self.init_rank,
            target_r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
            tinit=round(self.warmup * updates),
            tfinal=round(self.settle * updates),
            deltaT=self.every,
            total_step=updates,
            orth_reg_weight=self.orthogonality,
            target_modules=self.target_modules(encoder),
            base_model_name_or_path=encoder.name,
            revision=encoder.revision,
        )


IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What the allocator remembers of every weight: sensitivity, and its moving average and uncertainty."""


class Triplets(ProjectionPart):
    """Q (r, D_in), E (r, 1) and P (D_out, r) under ``peft``'s names."""

    def __init__(self, linear: nn.Linear, config: AdaLoRA) -> None:
        super().__init__()
        rank = config.init_rank
        self.lora_A = nn.Parameter(0.02 * torch.randn(rank, linear.in_features))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1))
        self.lora_B = nn.Parameter(0.02 * torch.randn(linear.out_features, rank))
        self.scale = config.alpha / (rank + 1e-5)  # as peft computes it

    def forward(self, site: Site) -> Tensor:
        hidden = site.input.to(self.lora_A.dtype)
        inner = nn.functional.linear(hidden, self.lora_A * self.lora_E)
        return self.scale * nn.functional.linear(inner, self.lora_B)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * self.lora_B @ (self.lora_A * self.lora_E), bias


class AdaLoRAModule(ProjectionModule[Triplets]):
    """Triplets by projection."""

    config: AdaLoRA

    def __init__(self, config: AdaLoRA, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.peft_config = config.peft_config(encoder)
        self._allocator: RankAllocator | None = None
        self._kept: dict[str, list[bool]] | None = None

    def part(self, linear: nn.Linear, target: str) -> Triplets:
        return Triplets(linear, self.config)

    def penalty(self) -> Tensor:
        grams = [g for p in self.parts.values() for g in (p.lora_A @ p.lora_A.T, p.lora_B.T @ p.lora_B)]
        norms = [torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return self.config.orthogonality * torch.stack(norms).mean()

    def check_updates(self, total: int) -> None:
        first, last = self._pruned_between(total)
        if last <= max(first, 1):  # the first update's gradients are what the first pruning goes by
            raise ConfigError(
                f"adalora: of {total} updates warmup={self.config.warmup} takes {first} and "
                f"settle={self.config.settle} the last {total - last}, which leaves none to prune in; lower them, or "
                "train for more updates."
            )

    def before_update(self, done: int, total: int) -> None:
        self.check_updates(total)  # in a loop of one's own it is asked here first

    def after_update(self, done: int, total: int) -> None:
        if self._kept is None and any(parameter.grad is None for parameter in self.parameters()):
            return  # nothing to tell importance by; model.check_alive names what learns nothing
        allocator = self._allocator_for(total)
        _, last = self._pruned_between(total)
        if done < last:
            allocator.update_and_allocate(self._view(), done)
        elif self._kept is None:
            self._kept = allocator.update_and_allocate(self._view(), last, force_mask=True)[1]
        else:
            allocator.mask_using_rank_pattern(self._view(), self._kept)

    def schedule_state(self) -> dict[str, Any]:
        scores = {} if self._allocator is None else {key: getattr(self._allocator, key) for key in IMPORTANCE}
        return {"importance": scores, "kept": self._kept, "total": self.peft_config.total_step}

    def load_schedule_state(self, state: dict[str, Any]) -> None:
        allocator = self._allocator_for(state["total"])
        for key, scores in state["importance"].items():
            setattr(allocator, key, scores)
        self._kept = state["kept"]

    def _allocator_for(self, total: int) -> RankAllocator:
        """``peft``'s budget schedule for a training of ``total`` updates; a new one begins with each new total."""
        from peft.tuners.adalora.layer import RankAllocator

        if self._allocator is None or self.peft_config.total_step != total:
            first, last = self._pruned_between(total)
            self.peft_config.tinit, self.peft_config.tfinal = first, total - last
            self.peft_config.total_step = total
            self._allocator, self._kept = RankAllocator(self._view(), self.peft_config, "own"), None
        return self._allocator

    def _pruned_between(self, total: int) -> tuple[int, int]:
        """Of ``total`` updates those after which the first and the last pruning may come."""
        return round(self.config.warmup * total), total - round(self.config.settle * total)

    def ranks(self) -> dict[str, int]:
        """Entries of E that are not zero, by projection of the stock model."""
        return {name: int((part.lora_E != 0).sum()) for name, part in self.named_parts()}

    def _view(self) -> nn.Module:
        """This adapter's tensors under the names that ``peft``'s allocator looks for."""
        view = nn.Module()
        for key, part in self.parts.items():
            inner = nn.Module()
            for name, parameter in part.named_parameters():
                setattr(inner, name, nn.ParameterDict({"own": parameter}))
            view.add_module(key, inner)
        return view
