"""Fine-tuning baselines: all encoder layers, or the top ones, train as the adapter's own copies.

Use them as the ceiling that an adapter is compared with, and ``layers=(-1,)`` beside adapters for the last block.

The base itself stays as it is, so that the baseline is saved, switched and compared like any adapter. Full fine-tuning
trains the transformer layers (the CNN stays frozen, as in every published recipe for these encoders); WavLM's shared
position bias and its gates stay frozen too, which makes the count the same in all families. Key biases are counted and
given to the optimiser as in published fine-tuning, though softmax takes them out again: their gradient is rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, Layers, choose_layers, trainable_copy
from speech_adapters.adapters.module_dict import ModuleDict
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Range


@dataclass(frozen=True, kw_only=True)
class FineTuning(AdapterConfig):
    """Train whole layers; all of them by default, ``layers=(-2, -1)`` for the last two."""

    method: ClassVar[str] = "fine_tuning"
    group: ClassVar[str] = "layers"

    layers: Layers = None
    gradual: bool = False
    """Unfreeze from the top: the highest layer trains from the first update on, all of them from ``unfrozen_at`` on,
    the others in equal steps between (ULMFiT, Howard and Ruder, ACL 2018, section 3.3)."""
    unfrozen_at: Annotated[float, Range(0, 1, above=True)] = 0.5
    """Share of the updates after which every layer trains."""

    def build(self, encoder: Encoder) -> FineTuningModule:
        return FineTuningModule(self, encoder)


class FineTuningModule(AdapterModule):
    """Trainable copies of the base's layers."""

    config: FineTuning

    def __init__(self, config: FineTuning, encoder: Encoder) -> None:
        super().__init__(config)
        self.layer_indices = choose_layers(config.layers, encoder.num_layers, config.method)
        self.layers = ModuleDict({str(index): trainable_copy(encoder.layer(index)) for index in self.layer_indices})
        self.first_layer = self.layer_indices[0]
        self.position_names = encoder.architecture.position_names

    def layer(self, index: int) -> nn.Module | None:
        key = str(index)
        return self.layers[key] if key in self.layers else None  # noqa: SIM401  (a ModuleDict has no get)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        trained = [p for n, p in self.named_parameters() if not self._is_position_bias(n)]
        return {self.config.group: trained}

    def before_update(self, done: int, total: int) -> None:
        if not self.config.gradual:
            return
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise ConfigError("fine_tuning: gradual=True needs one process; torchrun wants the same gradients always.")
        count, last = len(self.layer_indices), max(1, round(self.config.unfrozen_at * total))
        unfrozen = min(count, 1 + (count - 1) * done // last)
        for index in self.layer_indices:
            for name, parameter in self.layers[str(index)].named_parameters():
                trains = index in self.layer_indices[count - unfrozen :] and not self._is_position_bias(name)
                parameter.requires_grad_(trains)

    def folded_weights(self, encoder: Encoder) -> dict[str, Tensor]:
        return {
            f"{encoder.layer_name(int(key))}.{name}": tensor
            for key, layer in self.layers.items()
            for name, tensor in layer.state_dict().items()
        }

    def replaced(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def describe(self) -> list[str]:
        return [f"layers: copies of layers {', '.join(map(str, self.layer_indices))}, trained whole"]

    def _is_position_bias(self, name: str) -> bool:
        return any(part in name for part in self.position_names)


@dataclass(frozen=True, kw_only=True)
class HeadOnly(AdapterConfig):
    """Nothing but the head trains: the baseline that every adapter must beat."""

    method: ClassVar[str] = "head_only"
    group: ClassVar[str] = "none"

    def build(self, encoder: Encoder) -> AdapterModule:
        module = HeadOnlyModule(self)
        module.first_layer, module.states = encoder.num_layers, ()
        return module


class HeadOnlyModule(AdapterModule):
    """No parameters."""

    def folded_weights(self, encoder: Encoder) -> dict[str, Tensor]:
        return {}  # the head reads what the base gives: with nothing folded in, a checkpoint holds all of it
