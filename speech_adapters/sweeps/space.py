"""The search space: a recipe's configuration with what to choose from in place of values.

    over:
      adapter: [lora, pfeiffer, el]                                # one of these
      options:
        lora: {rank: [2, 4, 8, 16]}                                # only where the adapter is lora, or lora+...
        pfeiffer: {reduction_factor: [4, 16], layers: [null, top-1, every-2]}
        el: {e_size: {each_layer: [16, 64, 256], layers: 2}}       # one choice for each of two layers
      learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}        # a number between; whole where both ends are
      rates: {head: {low: 1.0e-3, high: 1.0e-2, log: true}}        # only where the adapter has the group

A trial is a choice of all that goes with its adapter.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from speech_adapters.errors import ConfigError, shown
from speech_adapters.schema import from_dict, to_dict
from speech_adapters.tasks.base import ExperimentConfig

if TYPE_CHECKING:
    import optuna

C = TypeVar("C", bound=ExperimentConfig)

ROOTS = ("adapter", "adapter_options", "options", "learning_rate", "rates", "training")
"""What may be searched: the adapter and how it is trained. Task and data are the same in all trials."""
FIXED = ("updates", "evaluate_every", "seed", "cache", "trackers")
"""Of ``training``: what makes trials comparable, or has nothing to do with what is learnt."""

Values = dict[str, Any]
"""What a trial chose, by dotted key; of one setting for each layer, a list."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values that stand for all, to check."""
        return self.values

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Draw one; lists and null go through JSON, which the study can hold."""
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in self.values]))


@dataclass(frozen=True)
class Span:
    """A number from ``low`` to ``high``, uniform or, with ``log``, by its logarithm."""

    low: float
    high: float
    log: bool = False

    @property
    def tried(self) -> tuple[float, ...]:
        """Values that stand for all, to check."""
        return self.low, self.high

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """Draw one, whole where both ends are."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class EachLayer:
    """A choice for each of so many layers."""

    choice: Choice
    layers: int

    @property
    def tried(self) -> tuple[list[Any], ...]:
        """Values that stand for all, to check."""
        return tuple([value] * self.layers for value in self.choice.values)

    def suggest(self, trial: optuna.Trial, name: str) -> list[Any]:
        """Draw one for each layer."""
        return [self.choice.suggest(trial, f"{name}[{layer}]") for layer in range(self.layers)]


Dimension = Choice | Span | EachLayer


class Space:
    """Dimensions by dotted key, the adapter first.

    Args:
        over: as the module's docstring shows it.
        adapter: the one that is trained where ``over`` has no choice of adapters.

    Raises:
        ConfigError: nothing to choose, a key that is not searched, a range or list that is none.
    """

    def __init__(self, over: Mapping[str, Any], adapter: str) -> None:
        found = dict(_dimensions(over))
        if not found:
            raise ConfigError("over: nothing to choose from; give --space FILE, or over.learning_rate=[1e-4,1e-3].")
        for key in found:
            _check_key(key)
        self.dimensions = {key: found[key] for key in sorted(found, key=lambda key: key != "adapter")}
        chosen = self.dimensions.get("adapter")
        if chosen is not None and not isinstance(chosen, Choice):
            raise ConfigError("over.adapter: give a list of presets.")
        self.adapters: tuple[str, ...] = (adapter,) if chosen is None else tuple(map(str, chosen.values))
        if chosen is not None and any(key.startswith("adapter_options.") for key in found):
            raise ConfigError("over.adapter_options: of which adapter? Give options.NAME where there are several.")
        self.groups: dict[str, frozenset[str]] = {}
        """Adapter -> its parameter groups, once they are known: rates of other groups are not drawn for it."""

    def active(self, adapter: str) -> dict[str, Dimension]:
        """What is drawn for an adapter."""
        return {key: found for key, found in self.dimensions.items() if self._applies(key, adapter)}

    def suggest(self, trial: optuna.Trial) -> Values:
        """Draw a trial's values."""
        adapter = self.adapters[0]
        values: Values = {}
        if "adapter" in self.dimensions:
            adapter = values["adapter"] = str(self.dimensions["adapter"].suggest(trial, "adapter"))
        for key, dimension in self.active(adapter).items():
            if key != "adapter":
                values[key] = dimension.suggest(trial, key)
        return values

    def corners(self, adapter: str) -> Iterator[Values]:
        """Values to try before anything trains: each of each dimension once, the others at their first."""
        active = {key: dimension.tried for key, dimension in self.active(adapter).items()}
        first = {key: values[0] for key, values in active.items()}
        if "adapter" in first:
            first["adapter"] = adapter
        yield first
        for key, values in active.items():
            if key != "adapter":
                yield from ({**first, key: value} for value in values[1:])

    def _applies(self, key: str, adapter: str) -> bool:
        parts = key.split(".")
        if parts[0] == "options":
            return parts[1] in (adapter, *adapter.split("+"))
        group = parts[-1] if parts[0] == "rates" or parts[:2] == ["training", "learning_rates"] else None
        return group is None or adapter not in self.groups or group in self.groups[adapter]


def with_values(config: C, values: Values) -> C:
    """The configuration of a trial. Raises ConfigError for a key or value that it cannot have."""
    plain = copy.deepcopy(to_dict(config))
    for dotted, value in values.items():
        *place, last = dotted.split(".")
        inner = plain
        for key in place:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return from_dict(type(config), plain, "over")


def _dimensions(over: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Dimension]]:
    for name, value in over.items():
        dotted = f"{key}.{name}" if key else str(name)
        if isinstance(value, list | tuple):
            yield dotted, _choice(value, dotted)
        elif isinstance(value, Mapping) and ("low" in value or "high" in value):
            yield dotted, _span(value, dotted)
        elif isinstance(value, Mapping) and "each_layer" in value:
            yield dotted, _each_layer(value, dotted)
        elif isinstance(value, Mapping):
            yield from _dimensions(value, dotted)
        else:
            raise ConfigError(
                f"over.{dotted}: {shown(value)} is not a choice; give a list, or {{low: .., high: ..}}. What is the "
                "same in all trials belongs to the recipe's own settings."
            )


def _choice(values: Sequence[Any], key: str) -> Choice:
    if not values or any(value in values[:place] for place, value in enumerate(values)):
        raise ConfigError(f"over.{key}: {shown(list(values))}: give one or more different values.")
    return Choice(tuple(values))


def _span(value: Mapping[str, Any], key: str) -> Span:
    low, high, log = value.get("low"), value.get("high"), value.get("log", False)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    if value.keys() - {"low", "high", "log"} or not numbers or not isinstance(log, bool):
        raise ConfigError(f"over.{key}: {shown(dict(value))}: write {{low: 1.0e-4, high: 1.0e-2, log: true}}.")
    assert low is not None and high is not None
    if not low < high or (log and low <= 0):
        raise ConfigError(f"over.{key}: from {low} to {high}{' by logarithm' if log else ''} is not a range.")
    return Span(low, high, log)


def _each_layer(value: Mapping[str, Any], key: str) -> EachLayer:
    values, layers = value.get("each_layer"), value.get("layers")
    if value.keys() != {"each_layer", "layers"} or not isinstance(values, list | tuple) or type(layers) is not int:
        raise ConfigError(f"over.{key}: {shown(dict(value))}: write {{each_layer: [8, 32], layers: 12}}.")
    if layers < 1:
        raise ConfigError(f"over.{key}: layers={layers}; give the number of layers that get an adapter.")
    return EachLayer(_choice(values, key), layers)


def _check_key(key: str) -> None:
    root, _, rest = key.partition(".")
    if root not in ROOTS or (root in ("options", "rates", "adapter_options", "training") and not rest):
        raise ConfigError(
            f"over.{key}: sweeps go over {', '.join(ROOTS)} and their settings; what else a recipe takes is the same "
            "in all trials."
        )
    if root == "options" and "." not in rest:
        raise ConfigError(f"over.{key}: name a setting of it, such as over.{key}.rank.")
    if root == "training" and rest.split(".")[0] in FIXED:
        raise ConfigError(f"over.{key}: trials are compared by it; give it to the recipe, the same for all.")
