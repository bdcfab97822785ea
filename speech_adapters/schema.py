"""Plain values (from YAML, JSON or a command line) into typed dataclasses, and back.

The dataclass is the only schema: every value is checked against its field's annotation, the range of a number
(:mod:`speech_adapters.ranges`) included. Understood are ``bool``, ``int``, ``float``, ``str``, ``Path``, ``Enum``,
``Literal``, ``Optional``, unions, ``list``, ``tuple``, ``dict``, ``Any`` and nested dataclasses. A mapping given for a
nested dataclass changes only the keys it names; the others keep what the default of the enclosing field says. In a
union of dataclasses the one that fits most of the keys is taken, so a ``Literal`` field can tell them apart.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import enum
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from speech_adapters.errors import ConfigError, shown
from speech_adapters.ranges import check_values

C = TypeVar("C")
_MISSING: Any = dataclasses.MISSING
_FIELDS: dict[type, dict[str, Any]] = {}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SEQUENCES = (list, tuple, collections.abc.Sequence)


SYNONYMS: dict[str, tuple[str, ...]] = {
    "r": ("rank",), "lora_r": ("rank",), "lora_alpha": ("alpha",), "lora_dropout": ("dropout",),
    "target_modules": ("targets",), "layers_to_transform": ("layers",), "use_rslora": ("variant",),
    "use_dora": ("variant",), "bottleneck_size": ("size",), "bottleneck_dim": ("size",), "adapter_size": ("size",),
    "non_linearity": ("activation",), "prefix_length": ("length",), "num_virtual_tokens": ("length",),
    "lr": ("learning_rate", "learning_rates"), "learning_rate": ("learning_rates",),
    "num_labels": ("labels",), "classes": ("labels",), "label_names": ("labels",), "num_speakers": ("speakers",),
    "vocab": ("vocabulary",), "tokenizer": ("vocabulary",), "vocab_size": ("vocabulary",),
    "epochs": ("updates",), "num_train_epochs": ("updates",), "max_steps": ("updates",), "steps": ("updates",),
    "batch_size": ("batch_seconds",), "per_device_train_batch_size": ("batch_seconds",), "fp16": ("precision",),
    "bf16": ("precision",), "gradient_accumulation_steps": ("accumulation",), "num_workers": ("workers",),
    "warmup_steps": ("warmup",), "warmup_ratio": ("warmup",), "logging_steps": ("log_every",),
    "eval_steps": ("evaluate_every",), "lr_scheduler_type": ("schedule",), "report_to": ("trackers",),
}  # fmt: skip
"""What other libraries call a setting -> what it may be called here."""


class Configuration:
    """Base of configurations that people write in Python: a setting that there is not gets a sentence."""

    def __new__(cls, *arguments: Any, **settings: Any) -> Self:
        fields = [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]  # subclasses are
        first = [field.name for field in fields if not field.kw_only]
        if len(arguments) > len(first):
            named = f"{first[0]} first, the others by name" if first else "all by name"
            raise ConfigError(
                f"{cls.__name__}({shown(arguments[len(first)])}): give its settings {named}: "
                f"{', '.join(field.name for field in fields)}."
            )
        if unknown := [key for key in settings if key not in {field.name for field in fields}]:
            raise ConfigError(f"{cls.__name__}: {no_such('setting', unknown[0], [field.name for field in fields])}")
        return super().__new__(cls)


@dataclasses.dataclass(frozen=True)
class Typed:
    """A value typed on a command line: ``text`` becomes whatever type its field has; ``where`` names the argument."""

    text: str
    where: str
    parse: Callable[[str], Any]  # turns the text into lists and mappings, where the field wants one

    def __repr__(self) -> str:
        return repr(self.text)


def from_dict(cls: type[C], mapping: Mapping[str, Any], where: str = "configuration") -> C:
    """Build ``cls`` from plain values; a bad key or value raises a ConfigError that opens with ``where``."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected keys with values, got {shown(mapping)}")
    return _build(cls, mapping, _Place(where))


def convert(hint: Any, value: Any, where: str, key: str = "") -> Any:
    """A plain value as any type that a field may have; a ConfigError names ``where`` and the dotted key."""
    return _convert(hint, value, _Place(where, key))


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as values that YAML and JSON can hold; :func:`from_dict` gives an equal one back."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def field_types(cls: type) -> dict[str, Any]:
    """The annotation of each field that a configuration of this class takes, in order of definition."""
    if cls not in _FIELDS:  # reading annotations takes most of the time of building small classes by the thousand
        hints = get_type_hints(cls)
        _FIELDS[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    return _FIELDS[cls]


def members_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type is the only member of itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def put(cls: type, mapping: dict[str, Any], dotted: str, value: Typed) -> None:
    """Set ``mapping["a"]["b"]`` for ``dotted = "a.b"``, checking each key on the way: errors name the argument."""
    place, owners, keys = _Place(value.where), [cls], dotted.split(".")
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        hints = {name: hint for owner in owners for name, hint in field_types(owner).items()}
        if owners and key not in hints:
            raise _unknown(key, hints, place)
        if following is None:
            mapping[key] = value
            return
        place = place.at(key)
        if owners:
            members = members_of(hints[key])
            owners = [member for member in members if _is_configuration(member)]
            if not owners and not any((get_origin(member) or member) in (dict, Any) for member in members):
                raise place.error(f"is {_name(hints[key])}, with no keys of its own such as '{following}'")
        inner = mapping.get(key)
        mapping[key] = mapping = dict(inner) if isinstance(inner, dict) else {}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a value stands, for messages: the file or argument, and the dotted key."""

    where: str
    key: str = ""

    def at(self, name: object) -> _Place:
        name = str(name)[:100]
        return _Place(self.where, f"{self.key}.{name}" if self.key else name)

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.where}: {self.key}: {message}" if self.key else f"{self.where}: {message}")


def _build(cls: type[C], mapping: Mapping[Any, Any], place: _Place, base: Any = None) -> C:
    hints: dict[str, Any] = field_types(cls)
    for key in mapping:
        if key not in hints:
            raise _unknown(key, hints, place)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field.name in mapping:
            current = default if base is None else getattr(base, field.name)
            values[field.name] = _convert(hints[field.name], mapping[field.name], place.at(field.name), current)
        elif field.init and default is _MISSING and base is None:
            raise place.error(f"missing key '{field.name}' ({_name(hints[field.name])}); it has no default")
    try:
        built = cls(**values) if base is None else dataclasses.replace(base, **values)
        check_values(built)
        return built
    except ValueError as error:  # from a __post_init__, which checks what types cannot say
        raise place.error(str(error)) from error


def _convert(hint: Any, value: Any, place: _Place, current: Any = None) -> Any:
    """``value`` as the type ``hint``; ``current`` is what it replaces, of which a nested mapping changes parts."""
    if isinstance(value, Typed):
        place = _Place(value.where, place.key)
    origin = get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, place, current)
    if _is_configuration(hint):
        if isinstance(value, hint):
            return value
        if isinstance(mapping := _parsed(value), Mapping):
            return _build(hint, mapping, place, current if type(current) is hint else None)
    elif origin in _SEQUENCES:
        items = _split(value, place) if isinstance(value, Typed) and not value.text.startswith("[") else _parsed(value)
        if isinstance(items, list | tuple):
            return _convert_items(hint, items, place)
    elif origin is dict:
        if isinstance(mapping := _parsed(value), Mapping):
            key_hint, item_hint = get_args(hint) or (Any, Any)
            pairs = [
                (_convert(key_hint, k, place.at(k)), _convert(item_hint, v, place.at(k))) for k, v in mapping.items()
            ]
            return dict(pairs)
    else:
        for converted in _convert_scalar(hint, value):
            return converted
    raise place.error(f"expected {_name(hint)}, got {shown(value)}")


def _convert_union(hint: Any, value: Any, place: _Place, current: Any) -> Any:
    members = [member for member in members_of(hint) if member is not types.NoneType]
    absent = value is None or (isinstance(value, Typed) and value.text.lower() in ("null", "none", "~"))
    if absent and len(members) < len(members_of(hint)):
        return None
    if type(value) in members:  # it has one of the types already: 3 does not become 3.0
        return _convert(type(value), value, place, current)
    if isinstance(value, Typed):  # any text is a str, most are a list: try the narrower types first
        members.sort(key=lambda member: 1 if member in (str, Path) else 2 if _is_sequence(member) else 0)
        if value.text.startswith("["):
            members.sort(key=lambda member: not _is_sequence(member))
        if value.text.startswith("{"):
            value = value.parse(value.text)
    errors: list[ConfigError] = []
    if isinstance(value, Mapping):
        members.sort(key=lambda member: (_fit(member, value, place), type(current) is member), reverse=True)
    for member in members:
        try:
            return _convert(member, value, place, current)
        except ConfigError as error:
            errors.append(error)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(members[0]):
        raise errors[0]
    raise place.error(f"expected {_name(hint)}, got {shown(value)}")


def _fit(member: Any, mapping: Mapping[Any, Any], place: _Place) -> int:
    """How many keys of the mapping a dataclass takes; -1 for anything that is no dataclass."""
    if not _is_configuration(member):
        return -1
    hints, fitting = field_types(member), 0
    for key in mapping.keys() & hints.keys():
        try:
            _convert(hints[key], mapping[key], place)
            fitting += 1
        except ConfigError:
            pass
    return fitting


def _convert_items(hint: Any, items: Sequence[Any], place: _Place) -> Any:
    arguments = get_args(hint) or (Any, ...)
    is_tuple = (get_origin(hint) or hint) is tuple
    if is_tuple and arguments[-1] is not ...:
        if len(items) != len(arguments):
            raise place.error(f"expected {len(arguments)} values, got {shown(list(items))}")
        hints: Sequence[Any] = arguments
    else:
        hints = [arguments[0]] * len(items)
    converted = [_convert(h, item, place.at(i)) for i, (h, item) in enumerate(zip(hints, items, strict=True))]
    return tuple(converted) if is_tuple else converted


def _convert_scalar(hint: Any, value: Any) -> tuple[Any, ...]:
    """The value as a scalar type, in a tuple of one; an empty tuple where it does not fit."""
    typed = isinstance(value, Typed)
    if hint is Any:  # overrides may stand inside: extra.a.b=1
        inside = isinstance(value, dict)
        return ({key: _convert_scalar(Any, item)[0] for key, item in value.items()} if inside else _parsed(value),)
    if get_origin(hint) is Literal:
        same = (
            c for c in get_args(hint) if (str(c) == value.text if typed else type(c) is type(value) and c == value)
        )
        return tuple(same)[:1]
    if hint in (int, float):
        numbers = int if hint is int else (int, float)
        if not typed and (isinstance(value, bool) or not isinstance(value, numbers)):
            return ()
        try:
            number = hint(value.text if typed else value)
        except (ValueError, OverflowError):
            return ()
        return () if number != number else (number,)  # NaN is never meant
    value = value.text if typed else value
    if hint is bool:
        known = isinstance(value, bool) or (isinstance(value, str) and value.lower() in _BOOLEANS)
        return (_BOOLEANS[str(value).lower()],) if known else ()
    if hint is str:
        return (value,) if isinstance(value, str) and _is_text(value) else ()
    if hint is Path:
        named = isinstance(value, str | Path) and str(value) and _is_text(str(value))
        return (Path(os.path.expanduser(value)),) if named else ()
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        same = (member for member in hint if value in (member, _plain(member)) or str(value) == str(member.value))
        return tuple(same)[:1]
    raise TypeError(f"a configuration field cannot have the type {hint!r}")


def _is_configuration(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _is_text(value: str) -> bool:
    """Whether files and file names can hold it: no NUL, and no half of a surrogate pair."""
    return not any(symbol == "\0" or "\ud800" <= symbol <= "\udfff" for symbol in value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else value.name
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _parsed(value: Any) -> Any:
    return value.parse(value.text) if isinstance(value, Typed) else value


def _split(value: Typed, place: _Place) -> list[Typed]:
    """``a,b`` as two values; nothing at all as none."""
    parts = [text.strip() for text in value.text.split(",") if value.text]
    if not all(parts):
        raise place.error(f"a value is missing beside a comma in {shown(value)}; write a,b")
    return [dataclasses.replace(value, text=text) for text in parts]


def _is_sequence(hint: Any) -> bool:
    return (get_origin(hint) or hint) in _SEQUENCES


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all known ones."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"


def _unknown(key: Any, valid: Mapping[str, Any], place: _Place) -> ConfigError:
    return place.error(no_such("key", str(key), valid))


def no_such(what: str, key: str, valid: Collection[str]) -> str:
    """The sentence about a name that is not among the valid ones, with the one that is probably meant."""
    same = [name for name in SYNONYMS.get(key, ()) if name in valid]
    close = same or difflib.get_close_matches(key[:100], valid, n=1)
    suggestion = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {what} {shown(key)}; {suggestion}The {what}s are: {', '.join(valid)}"


def _name(hint: Any) -> str:
    """A type as a reader would say it."""
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path", Any: "anything"}
    if hint in words:
        return words[hint]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if len(members_of(hint)) > 1:
        return " or ".join("null" if member is types.NoneType else _name(member) for member in members_of(hint))
    if _is_configuration(hint):
        return f"the keys of {hint.__name__} ({', '.join(field_types(hint))})"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(_plain(member)) for member in hint)
    if _is_sequence(hint):
        inner = [_name(item) for item in get_args(hint) if item is not ...]
        return f"a list ({', '.join(inner)})" if inner else "a list"
    return "keys with values" if (get_origin(hint) or hint) is dict else str(hint)
