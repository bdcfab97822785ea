"""Every number of every configuration has a range, and nothing outside of it is taken, by whichever way it comes."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import speech_adapters
from speech_adapters.adapters import ADAPTER_METHODS
from speech_adapters.adapters.base import AdapterConfig
from speech_adapters.adapters.lora import LoRA
from speech_adapters.errors import ConfigError, shown
from speech_adapters.heads.base import HEADS, HeadConfig
from speech_adapters.ranges import Range, Share, check_values
from speech_adapters.schema import from_dict, to_dict
from speech_adapters.text import Vocabulary
from speech_adapters.training.settings import LoopConfig, TrainingConfig

ROOMS = ("adapters", "heads", "composition", "training", "objectives", "tasks", "active", "data", "corpora")
RECIPES = Path(__file__).parents[1] / "recipes"


def limits(hint: Any) -> list[Range]:
    """The ranges of the numbers in a type."""
    if get_origin(hint) is Annotated:
        return [limit for limit in hint.__metadata__ if isinstance(limit, Range)]
    return [limit for inner in get_args(hint) for limit in limits(inner)]


def bare(hint: Any) -> bool:
    """Whether a type has a number without a range."""
    if get_origin(hint) in (Annotated, Literal):
        return False
    return hint in (int, float) or any(map(bare, get_args(hint)))


def configurations() -> dict[str, type]:
    """All dataclasses, of the package and the recipes, that a number with a range stands in, or that belong to a
    family of configurations."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(speech_adapters.__path__, "speech_adapters.")
        if module.name.split(".")[1] in ROOMS
    ]
    sys.path.insert(0, str(RECIPES))
    try:
        modules += [importlib.import_module(path.stem) for path in sorted(RECIPES.glob("*.py"))]
    finally:
        sys.path.pop(0)
    found = {}
    for module in modules:
        for thing in vars(module).values():
            if isinstance(thing, type) and dataclasses.is_dataclass(thing) and thing.__module__ == module.__name__:
                try:
                    hints = get_type_hints(thing, include_extras=True)
                except NameError:  # a name for the type checker alone: no configuration
                    continue
                hints = {field.name: hints[field.name] for field in dataclasses.fields(thing)}
                named = thing in CONFIGURATIONS or not issubclass(thing, AdapterConfig | HeadConfig)
                if named and (any(map(limits, hints.values())) or thing in CONFIGURATIONS):
                    found[f"{module.__name__.removeprefix('speech_adapters.')}.{thing.__name__}"] = thing
    return found


CONFIGURATIONS = {  # those of the package: other tests register some of their own
    kind for kind in (*ADAPTER_METHODS.values(), *HEADS.values()) if kind.__module__.startswith("speech_adapters.")
}
ALL = configurations()
MADE = {"labels": ("a", "b"), "speakers": ("a", "b"), "slots": {"a": ("b", "c")}, "name": "a"}


def given_to(config: type, **values: Any) -> dict[str, Any]:
    """``values`` and what the configuration cannot do without."""
    names = {field.name for field in dataclasses.fields(config)}
    required = {key: value for key, value in MADE.items() if key in names and config in CONFIGURATIONS}
    return {**required, **values}


def test_configurations_of_all_kinds_are_found():
    assert set(ALL.values()) >= CONFIGURATIONS and len(ALL) > 40
    assert {"active.loop.LabellingConfig", "tapt.Config", "training.settings.TrainingConfig"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_no_number_is_without_a_range(name: str):
    hints = get_type_hints(ALL[name], include_extras=True)
    fields = [field.name for field in dataclasses.fields(ALL[name])]
    assert not [field for field in fields if bare(hints[field])]


def outside(limit: Range, whole: bool) -> list[Any]:
    """Values that a range does not hold, and that no number can be."""
    values: list[Any] = [math.nan, "1", True, [1], 10**400]
    values += [-math.inf] if limit.low > -math.inf or limit.above else []
    values += [math.inf] if limit.high < math.inf or limit.below else []
    values += [limit.low - 1, *([limit.low] if limit.above else [])] if math.isfinite(limit.low) else []
    values += [limit.high + 1, *([limit.high] if limit.below else [])] if math.isfinite(limit.high) else []
    return [*values, 1.5] if whole else values


def numbers() -> list[tuple[str, str, Any]]:
    """(configuration, field, type) of each number or list of numbers with a range."""
    rows = []
    for name, config in ALL.items():
        hints = get_type_hints(config, include_extras=True)
        rows += [(name, f.name, hints[f.name]) for f in dataclasses.fields(config) if f.init and limits(hints[f.name])]
    return rows


@pytest.mark.parametrize(("name", "field", "hint"), numbers(), ids=lambda x: x if isinstance(x, str) else "")
def test_what_lies_outside_is_refused_and_named(name: str, field: str, hint: Any):
    config, limit = ALL[name], limits(hint)[0]
    parts = [hint, *get_args(hint)]
    inner = [part for part in parts if get_origin(part) in (tuple, dict)]
    number = next(part for part in [*parts, *(a for i in inner for a in get_args(i))] if get_origin(part) is Annotated)
    for value in outside(limit, number.__origin__ is int):
        if inner:
            length = 1 if get_args(inner[0])[-1] is ... else len(get_args(inner[0]))
            value = {"e": value} if get_origin(inner[0]) is dict else (value,) * length
        with pytest.raises(ConfigError, match=rf"\b{field}(\.\w+)?=") as caught:
            check_values(config(**given_to(config, **{field: value})))  # recipes' own are checked by from_dict alone
        assert len(str(caught.value)) < 400
        if not isinstance(value, dict | tuple) or value != value:
            with pytest.raises(ConfigError, match=field):
                from_dict(config, {**given_to(config), field: value})


def test_defaults_pass_and_survive_a_file():
    for config in ALL.values():
        if config not in CONFIGURATIONS and any(
            f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(config)
        ):
            continue
        built = config(**given_to(config))
        check_values(built)
        if config is not HEADS["ctc"]:  # its vocabulary is written by head.to_dict
            assert to_dict(from_dict(config, to_dict(built))) == to_dict(built)


@given(st.floats() | st.integers())
def test_a_range_holds_what_its_sentence_says(number: float):
    assert (number in Range(0, 1)) == (0 <= number <= 1)
    assert (number in Range(0, 1, above=True, below=True)) == (0 < number < 1)
    assert str(Range(0, 1, above=True)) == "above 0 and at most 1" and str(Range(2)) == "at least 2"


def test_what_a_message_says():
    for make, message in (
        (lambda: LoRA(rank=0), "lora: rank=0: must be a whole number, at least 1 and at most 1048576."),
        (lambda: LoRA(learning_rate=-1e-3), "lora: learning_rate=-0.001: must be a number, at least 0."),
        (lambda: LoRA(variant="qlora"), "lora: variant='qlora': must be one of lora, rslora, dora."),
        (lambda: LoopConfig(betas=(0.9, 1)), "training.betas.1=1: must be a number, at least 0 and below 1."),
        (lambda: LoopConfig(learning_rates={"e": math.nan}), "training.learning_rates.e=nan: must be a number, at "),
        (lambda: TrainingConfig(crop_seconds=0), "training.crop_seconds=0: must be a number, at least 0.1."),
        (lambda: LoopConfig(betas=0.9), "training.betas=0.9: must be a list."),
        (lambda: LoopConfig(betas=(0.9,)), r"training.betas=\(0.9,\): must be 2 values."),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


@dataclasses.dataclass
class Plain:
    share: Share = 0.5
    names: tuple[str, ...] = ()
    count: int = 0


def test_a_configuration_without_checks_of_its_own_is_checked_when_it_is_read():
    with pytest.raises(ConfigError, match="configuration: share=2.0: must be a number, at least 0 and at most 1"):
        from_dict(Plain, {"share": 2})


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])  # long values are what it is about
@given(st.recursive(st.text(max_size=2000) | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(),
                    inner), max_leaves=50))  # fmt: skip
def test_no_value_fills_a_message(value: Any):
    for key, given_value in (("count", {"a": value}), ("names", {"a": value}), (str(value), 1)):
        with pytest.raises(ConfigError) as caught:
            from_dict(Plain, {key + "?" * (key not in ("count", "names")): given_value})
        assert len(str(caught.value)) < 6_000
    assert len(shown("x" * 10**6)) <= 210 and shown(10**5000) == "a number of thousands of digits"
    assert len(shown({"a": "b" * 10**6})) <= 230 and shown({"rank": 8}) == "{'rank': 8}"


def test_a_vocabulary_is_no_number():
    assert HEADS["ctc"](Vocabulary.wav2vec2()).dropout == 0.1
