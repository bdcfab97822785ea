"""Several methods in one adapter: E + L + P, LoRA + L, bottleneck + LayerNorms, ...

The parts act in the order given: at a shared site each reads what the ones before it made of the sub-layer's output.
Use it for what one method cannot do: adapters and LayerNorms, adapters and the last layer trained whole ("hybrid").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speech_adapters.adapters.base import AdapterConfig, AdapterModule, adapter_config
from speech_adapters.adapters.hooks import Hooks, StackedHooks
from speech_adapters.adapters.module_dict import ModuleDict
from speech_adapters.encoders.attention import AttentionPrefix
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.encoders.forward import EncoderOutput
from speech_adapters.encoders.plan import Frames, Norm, Projection, Site
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.ranges import Rate


@dataclass(frozen=True, kw_only=True)
class Combine(AdapterConfig):
    """Parts of one adapter, saved, trained and switched together."""

    method: ClassVar[str] = "combine"
    group: ClassVar[str] = "combine"

    parts: tuple[AdapterConfig, ...] = ()
    head_learning_rate: Rate | None = None
    """Learning rate that the preset's source gives the head beside these parts."""

    def build(self, encoder: Encoder) -> CombineModule:
        return CombineModule(self, encoder)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Combine:
        """The config that :meth:`to_dict` described, its parts among it."""
        given = values.get("parts", [])
        if not isinstance(given, list) or not all(isinstance(part, dict) for part in given):
            raise ConfigError(f"combine: parts={given!r}; expected a list of adapter configs.")
        parts = tuple(adapter_config(part) for part in given)
        return super().from_dict({**values, "parts": parts})  # type: ignore[return-value]

    def blueprint(self, encoder: Encoder) -> dict[str, Tensor]:
        return {f"{p.group}/{key}": tensor for p in self.parts for key, tensor in p.blueprint(encoder).items()}

    def fixed_start(self, encoder: Encoder) -> dict[str, Tensor]:
        return {f"{p.group}/{key}": tensor for p in self.parts for key, tensor in p.fixed_start(encoder).items()}


class CombineModule(AdapterModule):
    """Hands every place on to the parts."""

    config: Combine

    def __init__(self, config: Combine, encoder: Encoder) -> None:
        super().__init__(config)
        if not config.parts:
            raise ConfigError("Combine: parts is empty; give at least one adapter config.")
        repeated = [group for group, count in Counter(part.group for part in config.parts).items() if count > 1]
        if repeated:
            raise ConfigError(f"Combine: two parts of group {repeated[0]!r}; keep one, so that each has its own rate.")
        self.parts = ModuleDict({part.group: part.build(encoder) for part in config.parts})
        self.stack: Hooks = StackedHooks(self.parts.values())  # the parts, acting in order
        readers = [name for name, part in self.parts.items() if part.output_size is not None]
        if len(readers) > 1:
            raise ConfigError(f"Combine: {' and '.join(readers)} both feed the head; keep one.")
        self.output_size = self.parts[readers[0]].output_size if readers else None
        self.first_layer, self.states = self.stack.first_layer, self.stack.states

    def pseudo_frames(self, where: str, frames: Tensor, mask: Tensor | None) -> Frames | None:
        return self.stack.pseudo_frames(where, frames, mask)

    def layer(self, index: int) -> nn.Module | None:
        return self.stack.layer(index)

    def norm(self, index: int, name: str, norm: Norm) -> Norm | None:
        return self.stack.norm(index, name, norm)

    def prefix(self, index: int, project: Projection) -> AttentionPrefix | None:
        return self.stack.prefix(index, project)

    def delta(self, name: str, index: int, site: Site) -> Tensor | None:
        return self.stack.delta(name, index, site)

    def source(self, name: str, index: int, site: Site) -> Tensor | None:
        return self.stack.source(name, index, site)

    def read(self, encoder: Encoder, output: EncoderOutput) -> Tensor | None:
        return self.stack.read(encoder, output)

    def attach(self, encoder: Encoder, name: str) -> None:
        for part in self.parts.values():
            part.attach(encoder, name)

    def detach(self, encoder: Encoder) -> None:
        for part in self.parts.values():
            part.detach(encoder)

    def penalty(self) -> Tensor | None:
        penalties = [penalty for part in self.parts.values() if (penalty := part.penalty()) is not None]
        return torch.stack(penalties).sum() if penalties else None

    def check_updates(self, total: int) -> None:
        for part in self.parts.values():
            part.check_updates(total)

    def before_update(self, done: int, total: int) -> None:
        for part in self.parts.values():
            part.before_update(done, total)

    def after_update(self, done: int, total: int) -> None:
        for part in self.parts.values():
            part.after_update(done, total)

    def schedule_state(self) -> dict[str, Any]:
        return {name: part.schedule_state() for name, part in self.parts.items()}

    def load_schedule_state(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_schedule_state(state[name])

    def folded_weights(self, encoder: Encoder) -> dict[str, Tensor]:
        folded: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            weights = part.folded_weights(encoder)
            twice = sorted(set(weights) & set(folded))
            if twice:
                raise ConfigError(
                    f"part {name!r} and one before it both change {twice[0]!r}, which no single change of weights "
                    "stands for; keep the adapter (save_adapter), or an ONNX graph of it (save_onnx, export --onnx)."
                )
            folded |= weights
        return folded

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {name: parameters for part in self.parts.values() for name, parameters in part.groups().items()}

    def learning_rates(self) -> dict[str, float]:
        rates = {name: rate for part in self.parts.values() for name, rate in part.learning_rates().items()}
        return rates if self.config.head_learning_rate is None else {**rates, "head": self.config.head_learning_rate}

    def replaced(self) -> int:
        return sum(part.replaced() for part in self.parts.values())

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.tensors().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        by_part: dict[str, dict[str, Tensor]] = {name: {} for name in self.parts}
        for key, tensor in tensors.items():
            name, _, rest = key.partition("/")
            if name not in by_part:
                raise CheckpointError(f"tensor {key!r} belongs to no part of this adapter ({', '.join(self.parts)}).")
            by_part[name][rest] = tensor
        for name, part in self.parts.items():
            part.load_tensors(by_part[name])

    def describe(self) -> list[str]:
        return [line for part in self.parts.values() for line in part.describe()]
