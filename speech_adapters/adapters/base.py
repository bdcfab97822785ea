"""What every adapter is: a keyword-only config that builds a module, and that module's hooks into the forward.

A method is one file: its config (a dataclass whose defaults are a published setup) and its module. The module
overrides the hooks it needs and leaves the others alone.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from speech_adapters import schema
from speech_adapters.adapters.hooks import Hooks
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import CheckpointError, ConfigError, MethodError
from speech_adapters.ranges import Index, Rate, check_values

ADAPTER_METHODS: dict[str, type[AdapterConfig]] = {}

#: Learning rate of each parameter group when neither the adapter's config nor the run gives one.
DEFAULT_LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig(schema.Configuration):
    """Base of all adapter configs. ``method`` is the name under which a saved adapter finds its class again."""

    method: ClassVar[str]
    group: ClassVar[str]

    learning_rate: Rate | None = None
    """Learning rate of this adapter's parameter group; None leaves it to the training run."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "method" in cls.__dict__:
            ADAPTER_METHODS[cls.method] = cls

    def __post_init__(self) -> None:
        check_values(self, f"{self.method}: ")

    def build(self, encoder: Encoder) -> AdapterModule:
        """Make the module for an encoder. Raises ConfigError for settings that do not fit it."""
        raise NotImplementedError

    def peft_config(self, encoder: Encoder) -> Any:
        """The equivalent config of ``peft`` when the saved file is one that ``peft`` reads, else None."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; :func:`adapter_config` is its inverse."""
        return {"method": self.method, **schema.to_dict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AdapterConfig:
        """The config of :meth:`to_dict`. Raises ConfigError for a key or value that it cannot have."""
        return schema.from_dict(cls, values, cls.method)

    def blueprint(self, encoder: Encoder) -> dict[str, Tensor]:
        """What :meth:`AdapterModule.tensors` will give on an encoder, without memory behind it: names, shapes, types.

        A saved file is held against it before anything of its sizes is made.
        """
        with torch.device("meta"):
            return self.build(encoder).tensors()

    def reads_layers(self, encoder: Encoder) -> bool:
        """Whether its module hands the head what it reads from an encoder's layers, not the last hidden state."""
        with torch.device("meta"):
            return self.build(encoder).output_size is not None

    def fixed_start(self, encoder: Encoder) -> dict[str, Tensor]:
        """The tensors that every fresh adapter starts from, by the names of :meth:`AdapterModule.tensors`.

        Those drawn at random are left out; zeros may be.
        """
        with torch.random.fork_rng(devices=[]):
            one, two = self.build(encoder).tensors(), self.build(encoder).tensors()
        return {key: tensor for key, tensor in one.items() if torch.equal(tensor, two[key])}


def adapter_config(values: dict[str, Any]) -> AdapterConfig:
    """The config that :meth:`AdapterConfig.to_dict` described. Raises ConfigError for one that it cannot have."""
    values = dict(values)
    method = values.pop("method", None)
    if not isinstance(method, str) or method not in ADAPTER_METHODS:
        raise ConfigError(f"unknown adapter method {method!r}; known: {', '.join(sorted(ADAPTER_METHODS))}.")
    return ADAPTER_METHODS[method].from_dict(values)


class AdapterModule(Hooks, nn.Module):
    """The trainable part of an adapter: its :class:`~speech_adapters.adapters.hooks.Hooks`, and what is saved."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config

    # -- life cycle

    def attach(self, encoder: Encoder, name: str) -> None:
        """Called once when the adapter is added under ``name``; for methods that live inside the base's modules."""

    def detach(self, encoder: Encoder) -> None:
        """Called when the adapter is deleted: leave the base as it was."""

    # -- training

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss."""
        return None

    def check_updates(self, total: int) -> None:
        """Raise a ConfigError for a schedule that ``total`` updates cannot hold; trainings ask before any work."""

    def before_update(self, done: int, total: int) -> None:
        """Called before the forward of update ``done`` (from 0) of ``total``; for schedules."""

    def after_update(self, done: int, total: int) -> None:
        """Called after ``done`` updates of ``total``, while their gradients are still there."""

    def schedule_state(self) -> dict[str, Any]:
        """What these schedules remember beside the adapter's tensors, for a training that goes on."""
        return {}

    def load_schedule_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`schedule_state` gave."""

    # -- what is saved and trained

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group name; each group has a learning rate of its own."""
        return {self.config.group: list(self.parameters())}

    def learning_rates(self) -> dict[str, float]:
        """Learning rates of the groups that ask for one."""
        rate = self.config.learning_rate
        return {} if rate is None else {self.config.group: rate}

    @property
    def indifferent(self) -> tuple[nn.Parameter, ...]:
        """Parameters that may have a zero gradient always, such as the weight of a layer that is the only one."""
        return ()

    def replaced(self) -> int:
        """How many of the base's parameters this adapter's own copies stand in for."""
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """What is written to the weights file."""
        return self.state_dict()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`; raises on any missing, unexpected or mis-shaped tensor."""
        self.check_tensors(tensors)
        with torch.no_grad():
            for key, tensor in self.tensors().items():
                tensor.copy_(tensors[key])

    def check_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Raise a CheckpointError unless these have the names and shapes of :meth:`tensors`."""
        own = self.tensors()
        wrong = sorted(set(own) ^ set(tensors)) or [key for key in own if own[key].shape != tensors[key].shape]
        if wrong:
            raise CheckpointError(
                f"{self.config.method}: tensor {wrong[0]!r} is missing, unexpected or of another shape."
            )

    def folded_weights(self, encoder: Encoder) -> dict[str, Tensor]:
        """The stock model's tensors, by name, that this adapter changes, with it folded in.

        Raises:
            MethodError: one that no change of weights can stand for.
        """
        raise MethodError(
            f"{self.config.method}: cannot be folded in, since no change of the base's weights stands for what it "
            "adds; keep it as an adapter, or as an ONNX graph, which holds any (save_onnx, export --onnx). LoRA, IA3, "
            "BitFit and their kin fold in, and a head that was trained on the base alone goes into a stock checkpoint "
            "as it is."
        )

    def describe(self) -> list[str]:
        """One line per site, for ``print(model)``."""
        return [f"{self.config.group}: {sum(p.numel() for p in self.parameters()):,} parameters"]


#: Which layers an adapter takes: None for all, indices (negative ones count from the top), "top-4" or "every-2".
Layers = tuple[Index, ...] | str | None


def choose_layers(layers: Layers, total: int, method: str) -> list[int]:
    """The layers' indices, in order. "top-K" is the K highest; "every-N" takes each N-th, the highest one included."""
    if layers is None:
        return list(range(total))
    if isinstance(layers, str):
        match = re.fullmatch(r"(top|every)-([1-9]\d*)", layers)
        if match is None or int(match[2]) > total:
            raise ConfigError(
                f"{method}: layers={layers!r}; give indices, 'top-4' for the highest four or 'every-2' for each "
                f"second one, on an encoder of {total} layers."
            )
        count = int(match[2])
        return list(range(total - count, total)) if match[1] == "top" else list(range(total))[::-count][::-1]
    chosen = sorted({index + total if index < 0 else index for index in layers})
    if not chosen or chosen[0] < 0 or chosen[-1] >= total:
        raise ConfigError(f"{method}: layers={tuple(layers)} do not fit the encoder's layers 0 to {total - 1}.")
    return chosen


M = TypeVar("M", bound=nn.Module)


def trainable_copy(module: M) -> M:
    """A float32 copy of one of the base's modules, out of 8 or 4 bits and without what LoRA has put into it."""
    twin = copy.deepcopy(module).float()
    whole = nn.ModuleDict({"twin": twin})  # so that the module itself can be replaced too
    for name, part in list(whole.named_modules()):
        if hasattr(part, "base_layer"):
            whole.set_submodule(name, part.base_layer)
    for name, part in list(whole.named_modules()):
        if hasattr(part, "unfolded"):
            whole.set_submodule(name, part.unfolded())
    return cast(M, whole["twin"].requires_grad_(True))


def activation(name: str) -> nn.Module:
    """The field's activations by name."""
    known = {"relu": nn.ReLU, "gelu": nn.GELU, "swish": nn.SiLU, "tanh": nn.Tanh}
    if name not in known:
        raise ConfigError(f"activation {name!r} is unknown; use one of {', '.join(known)}.")
    return known[name]()
