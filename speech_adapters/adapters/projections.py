"""What methods on projections share: how these are chosen, and the names that ``peft`` gives them in files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers
from speech_adapters.adapters.module_dict import ModuleDict
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.plan import Site
from speech_adapters.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig(AdapterConfig):
    """Base of the configs that choose projections."""

    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Any of q_proj, k_proj, v_proj, out_proj (attention) and intermediate_dense, output_dense (feed-forward); a
    conformer's first half feed-forward has first_intermediate_dense and first_output_dense."""
    layers: Layers = None
    """Layers that are changed: None for all, indices (negative ones from the top), "top-4" or "every-2"."""

    def chosen(self, encoder: Encoder) -> list[tuple[int, str]]:
        """(layer, target) of every projection. Raises ConfigError for targets or layers that are not there."""
        known = encoder.architecture.projections
        if not self.targets or any(target not in known for target in self.targets):
            raise ConfigError(f"{self.method}: targets={self.targets}; choose from {', '.join(known)}.")
        layers = choose_layers(self.layers, encoder.num_layers, self.method)
        return [(index, target) for index in layers for target in self.targets]

    def target_modules(self, encoder: Encoder) -> list[str]:
        """Full names of the projections inside the stock model."""
        return [encoder.part_name(index, target) for index, target in self.chosen(encoder)]


def projection(encoder: Encoder, index: int, target: str) -> nn.Linear:
    """A projection of the frozen base, without what ``peft`` has put around it."""
    return cast(nn.Linear, encoder.part(index, target))


def low_rank_blueprint(
    config: ProjectionConfig, encoder: Encoder, rank: int, magnitude: bool = False
) -> dict[str, Tensor]:
    """The tensors of a LoRA file, ``peft``'s names and no memory: A (r, D_in), B (D_out, r), DoRA's magnitude."""
    tensors = {}
    for index, target in config.chosen(encoder):
        name, linear = f"base_model.model.{encoder.part_name(index, target)}", projection(encoder, index, target)
        tensors[f"{name}.lora_A.weight"] = torch.empty(rank, linear.in_features, device="meta")
        tensors[f"{name}.lora_B.weight"] = torch.empty(linear.out_features, rank, device="meta")
        if magnitude:
            tensors[f"{name}.lora_magnitude_vector"] = torch.empty(linear.out_features, device="meta")
    return tensors


class ProjectionPart(nn.Module):
    """What a method puts on one projection: a module from its :class:`Site` to what is added to the output."""

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The projection's weights with the part folded in."""
        raise NotImplementedError


Part = TypeVar("Part", bound=nn.Module)


class ProjectionModule(AdapterModule, Generic[Part]):
    """One part per projection, saved under ``peft``'s names.

    A subclass makes them in ``part(linear, target)``. Parts that are no :class:`ProjectionPart` need ``delta`` and
    ``folded`` of the subclass's own.
    """

    config: ProjectionConfig
    parts: ModuleDict[Part]

    def __init__(self, config: ProjectionConfig, encoder: Encoder) -> None:
        super().__init__(config)
        chosen = config.chosen(encoder)
        self.first_layer = min(index for index, _ in chosen)
        self.parts = ModuleDict(
            {f"{index}_{target}": self.part(projection(encoder, index, target), target) for index, target in chosen}
        )
        self.names = {f"{index}_{target}": encoder.part_name(index, target) for index, target in chosen}

    def part(self, linear: nn.Linear, target: str) -> Part:
        """Make the part of a projection."""
        raise NotImplementedError

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        key = f"{index}_{name}"
        return self.parts[key](site) if key in self.parts else None

    def folded(self, part: Part, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A projection's weights with its part folded in."""
        assert isinstance(part, ProjectionPart)
        return part.folded(weight, bias)

    def named_parts(self) -> list[tuple[str, Part]]:
        """(name of the projection inside the stock model, its part)."""
        return [(self.names[key], part) for key, part in self.parts.items()]

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"base_model.model.{name}.{key}": tensor
            for name, part in self.named_parts()
            for key, tensor in part.state_dict().items()
        }

    def folded_weights(self, encoder: Encoder) -> dict[str, Tensor]:
        weights: dict[str, Tensor | None] = {}
        with torch.no_grad():
            for name, part in self.named_parts():
                module = encoder.model.get_submodule(name)
                linear = cast(nn.Linear, getattr(module, "base_layer", module))
                changed = self.folded(
                    part, linear.weight.float(), None if linear.bias is None else linear.bias.float()
                )
                weights |= {f"{name}.{key}": tensor for key, tensor in zip(("weight", "bias"), changed, strict=True)}
        return {key: tensor for key, tensor in weights.items() if tensor is not None}

    def describe(self) -> list[str]:
        where = f"{', '.join(self.config.targets)} ({len(self.parts)} projections)"
        return [f"{self.config.group}: {sum(p.numel() for p in self.parameters()):,} parameters on {where}"]
