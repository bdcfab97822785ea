"""The flags of a command line that fills in a configuration; its help comes from the configuration's class."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NoReturn, get_origin

from speech_adapters.errors import ConfigError
from speech_adapters.schema import field_types, members_of

SHORT = {
    "updates": ("training.updates",),
    "lr": ("learning_rate",),
    "rank": ("adapter_options.rank",),
    "batch_seconds": ("training.batch_seconds",),
    "seed": ("seeds", "training.seed"),
}
"""Flags for what everyone sets -> the key that each stands for: the first that the configuration has."""

DEVICE = "where to compute: auto, cpu, cuda, or cuda:1 for the second GPU (default: auto, a GPU where there is one)"


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are a :class:`ConfigError`; its description is shown as it is written."""

    def __init__(self, prog: str | None = None, description: str | None = None) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=raw, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """What argparse finds."""
        raise ConfigError(f"{message}; see --help")

    def parse_all(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments, flags and values in any order. A ConfigError for an unknown flag suggests the near one."""
        arguments, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            known = [string for action in self._actions for string in action.option_strings]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            raise ConfigError(
                f"unknown argument '{unknown[0]}'" + (f"; did you mean '{close[0]}'?" if close else "; see --help")
            )
        return arguments


def add_flags(parser: argparse.ArgumentParser, cls: type) -> dict[str, str]:
    """A flag for each top-level field that fits on a command line, and those of :data:`SHORT`.

    Returns: destination among the parsed arguments -> key of the configuration. Nested configurations take
    ``key.sub=value``. ``--device`` belongs to no key, since it does not say what a run is: see :func:`use_device`.
    """
    taken = {action.dest for action in parser._actions}
    helps, keys = field_helps(cls), {}
    group = parser.add_argument_group("values")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, hint in field_types(cls).items():
        members = members_of(hint)
        if name in taken or any(dataclasses.is_dataclass(m) or (get_origin(m) or m) is dict for m in members):
            continue
        default = fields[name].default
        text = _with_default(helps.get(name, ""), None if default is dataclasses.MISSING else default)
        flag = "--" + name.replace("_", "-")
        if bool in members:
            group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(flag, dest=name, metavar="VALUE", help=text)
        keys[name] = name
    for name, candidates in SHORT.items():
        key = next((key for key in candidates if _has_key(cls, key)), None)
        if name not in keys and key is not None:
            flag = "--" + name.replace("_", "-")
            group.add_argument(flag, dest=name, metavar="VALUE", help=f"short for {key}")
            keys[name] = key
    if "device" not in keys and _has_key(cls, "training"):
        group.add_argument("--device", dest="where", metavar="VALUE", help=DEVICE)
    return keys


def check_conflicts(given: dict[str, str], overrides: Sequence[str]) -> None:
    """Raise a ConfigError where two arguments set the same key.

    Args:
        given: flag -> its key. overrides: ``key=value`` arguments.
    """
    said: list[tuple[str, str]] = [(override.partition("=")[0].strip(), override) for override in overrides]
    for flag, key in given.items():
        for other, argument in said:
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                raise ConfigError(f"{flag} and '{argument}' both set {key}; give one of them")
        said.append((key, flag))


def use_device(name: str) -> None:
    """Let this process see one device alone; ``auto`` leaves all as it is. Before CUDA is first asked for anything.

    Raises:
        ConfigError: no such device here.
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdecimal())):
        raise ConfigError(f"--device {name}: give auto, cpu, cuda, or cuda:N for GPU number N")
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if kind != "cuda":
        return
    if index:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        every = None if seen is None else seen.split(",")
        if every is not None and int(index) >= len(every):
            raise ConfigError(f"--device {name}: CUDA_VISIBLE_DEVICES={seen} shows no GPU of that number")
        os.environ["CUDA_VISIBLE_DEVICES"] = index if every is None else every[int(index)]
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: there is no such GPU; see speech-adapters doctor, or give --device cpu")


def keys_help(cls: type) -> str:
    """Every key that has no flag, as ``training.updates``, with its documentation and default, a paragraph each."""
    lines = ["keys (given as key=value, such as training.updates=500, or in a YAML file):"]
    width = min(shutil.get_terminal_size().columns, 120) - 2
    indent = " " * 6
    for key, text in _keys(cls, "", _defaults(cls)):
        lines += [f"  {key}", *textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)]
    return "\n".join(lines)


def field_helps(cls: type) -> dict[str, str]:
    """The help of each field: ``option(help=...)``, or the docstring under the field in the class's source."""
    helps: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        except (OSError, SyntaxError):  # defined where there is no source to read
            continue
        for pair in pairwise(body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    helps[name] = " ".join(text.split())
    written = {field.name: field.metadata["help"] for field in dataclasses.fields(cls) if field.metadata.get("help")}
    return helps | written


def _keys(cls: type, prefix: str, defaults: dict[str, Any]) -> Iterator[tuple[str, str]]:
    helps = field_helps(cls)
    for name, hint in field_types(cls).items():
        inner = [member for member in members_of(hint) if dataclasses.is_dataclass(member)]
        is_mapping = any((get_origin(member) or member) is dict for member in members_of(hint))
        key = f"{prefix}{name}"
        if prefix or is_mapping or len(inner) > 1:
            yield key, _with_default(helps.get(name, ""), defaults.get(name)).replace("%%", "%")
        if len(inner) == 1 and isinstance(inner[0], type):
            own = defaults.get(name)
            yield from _keys(inner[0], f"{key}.", _defaults(inner[0]) | _changed(inner[0], own))


def _defaults(cls: type) -> dict[str, Any]:
    """What the class declares, by field; configurations that are made anew as they come."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _changed(cls: type, own: Any) -> dict[str, Any]:
    """Where a configuration differs from a fresh one of its class: what a recipe sets of its own."""
    if type(own) is not cls:
        return {}
    fresh = cls()
    return {
        field.name: getattr(own, field.name)
        for field in dataclasses.fields(cls)
        if getattr(own, field.name) != getattr(fresh, field.name)
    }


def _with_default(text: str, default: Any) -> str:
    if default is None or default in ({}, ()) or dataclasses.is_dataclass(default):
        shown = ""
    else:
        shown = f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"
    return f"{text}{shown}".strip().replace("``", "").replace("%", "%%")


def _has_key(cls: type, key: str) -> bool:
    name, _, rest = key.partition(".")
    hints = field_types(cls)
    if name not in hints:
        return False
    members = members_of(hints[name])
    if not rest:
        return True
    inner = [member for member in members if dataclasses.is_dataclass(member) and isinstance(member, type)]
    return any(_has_key(member, rest) for member in inner) or any((get_origin(m) or m) is dict for m in members)
