"""LoRA-XS: a small square core between two frozen low-rank matrices.

    y = W x + U C V x        V: D_in -> r, U: r -> D_out, both frozen; C (r, r) starts at 0

By default U and V come from the projection itself: V its leading right singular vectors, U the left ones by their
singular values. Adapters that are compressed together share one U and V instead (``speech-adapters bank compress``):
each is then no more than its cores, and in a mixed batch they multiply by the shared matrices as one.

Parameters: ``r^2`` a projection, whatever its width. A file holds U and V too, unless they are shared: singular
vectors differ from machine to machine. Use it when there are very many adapters, with shared matrices: a thousand of
rank 16 on queries and values of a Base encoder are 25 MB (one with its own is 2.4 MB).

Sources: Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters" (2024,
arXiv:2405.17604; it starts C at almost 0); shared matrices: Gabrielsson et al., "Compress then Serve: Serving
Thousands of LoRA Adapters with Little Overhead" (ICML 2025, arXiv:2407.00066). Default rank: within the former's
range, 4 to 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.projections import ProjectionConfig, ProjectionModule, ProjectionPart
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Size


@dataclass(frozen=True, kw_only=True)
class LoRAXS(ProjectionConfig):
    """Cores on the chosen projections."""

    method: ClassVar[str] = "lora-xs"
    group: ClassVar[str] = "lora-xs"

    rank: Size = 16
    """Width r of the cores."""
    basis: str | None = None
    """The SHA-256 that shared matrices are known by; None for the singular vectors of the base's own weights."""

    def build(self, encoder: Encoder) -> LoRAXSModule:
        return LoRAXSModule(self, encoder)


class Basis:
    """Matrices that adapters share, by name of the projection inside the stock model.

    Attributes:
        down: (r, D_in) each; up: (D_out, r) each.
        files: the content of its files by name, so that whoever saves an adapter can save them beside it.
    """

    def __init__(self, down: Mapping[str, Tensor], up: Mapping[str, Tensor], files: Mapping[str, bytes]) -> None:
        self.down, self.up, self.files = dict(down), dict(up), dict(files)
        self._placed: dict[torch.device, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def on(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """The pair of a projection in float32 on a device: one copy for all adapters there."""
        if device not in self._placed:
            placed = ({k: t.to(device, torch.float32) for k, t in pair.items()} for pair in (self.down, self.up))
            self._placed[device] = next(placed), next(placed)
        down, up = self._placed[device]
        return down[name], up[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> Basis:
        return self


BASES: dict[str, Basis] = {}
"""Those that have been read, by their SHA-256; one stays for as long as the process lives."""


class Core(ProjectionPart):
    """The core of one projection, and the matrices around it, its own or shared."""

    down: Tensor
    up: Tensor

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.core = nn.Parameter(torch.zeros(rank, rank))
        self.shared: tuple[Basis, str] | None = None
        if rank > min(linear.weight.shape):
            raise ConfigError(f"lora-xs: rank={rank} is above what a projection of {tuple(linear.weight.shape)} has.")

    def own(self, linear: nn.Linear) -> None:
        """Take the projection's singular vectors."""
        rank = len(self.core)
        left, values, right = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        self.register_buffer("down", right[:rank].contiguous())
        self.register_buffer("up", left[:, :rank] * values[:rank])

    def around(self) -> tuple[Tensor, Tensor]:
        """(r, D_in) and (D_out, r)."""
        return (self.down, self.up) if self.shared is None else self.shared[0].on(self.shared[1], self.core.device)

    def forward(self, site: Site) -> Tensor:
        (down, up), linear = self.around(), nn.functional.linear
        return linear(linear(linear(site.input.to(self.core.dtype), down), self.core), up)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        down, up = self.around()
        return weight + (up @ self.core @ down).to(weight.device), bias


class LoRAXSModule(ProjectionModule[Core]):
    """Cores by projection."""

    config: LoRAXS

    def __init__(self, config: LoRAXS, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if config.basis is None:
            return
        basis = BASES.get(config.basis)
        if basis is None:
            raise ConfigError(
                f"lora-xs: the shared matrices {config.basis[:12]} have not been read; load the adapter from its bank."
            )
        for name, part in self.named_parts():
            if name not in basis.down or basis.down[name].shape[0] != config.rank:
                raise ConfigError(
                    f"lora-xs: the shared matrices {config.basis[:12]} have none of this rank for {name}."
                )
            part.shared = basis, name

    def part(self, linear: nn.Linear, target: str) -> Core:
        part = Core(linear, self.config.rank)
        if self.config.basis is None:
            part.own(linear)
        return part
