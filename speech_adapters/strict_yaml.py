"""YAML, read strictly and within limits.

The rules are those of YAML 1.2's core schema, so that ``1e-4`` is a number and ``no`` is text; a key that stands twice
in one mapping is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from speech_adapters.errors import ConfigError

MAX_BYTES, MAX_NODES, MAX_DEPTH = 100_000, 10_000, 50
"""Limits of one configuration: characters of the file, values with aliases written out, and levels of nesting. Ours
have a hundred values on four levels; a few lines of aliases can stand for more values than a machine holds."""


def dump_yaml(content: Any) -> str:
    """Plain values as YAML that :func:`parse_yaml` reads back as equal ones."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, and a key twice in one mapping is an error rather than a silent last-one-wins."""

    name: str
    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise _too_much(self.name)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError(f"{self.name}:{line}: key '{key}' stands on line {seen[key]} already; remove one")
            seen[key] = line
        return node


class _Dumper(yaml.SafeDumper):
    """The same scalars."""


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}  # nothing of YAML 1.1

_EXPONENT = r"[eE][-+]?[0-9]+"
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", rf"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:{_EXPONENT})?|[0-9]+{_EXPONENT})", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""])


def parse_yaml(text: str, where: str) -> Any:
    """The value that a text is; ``where`` it stands opens errors."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where}: {len(text)} characters are too many for a configuration; give a YAML file")
    try:
        loader = _Loader(text)
        loader.name = where
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, where, {})
        return loader.construct_document(node)
    except ConfigError:  # a ValueError, too
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"{where}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # PyYAML's own, of `!!int abc` and the like
        raise ConfigError(f"{where}: not valid YAML: a value is not what its tag says ({error})") from error


def _too_much(where: str) -> ConfigError:
    limits = f"{MAX_NODES} values, aliases written out, or {MAX_DEPTH} levels of nesting"
    return ConfigError(f"{where}: more than {limits}; a configuration needs a hundred on four: write the values out")


def _count_nodes(node: yaml.Node, where: str, known: dict[int, int], depth: int = 0) -> int:
    """How many values a node stands for; an alias is the same node again and is counted, not walked, again."""
    if depth > MAX_DEPTH:  # an alias of what it stands in has no end
        raise _too_much(where)
    if id(node) not in known:
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inside = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        known[id(node)] = 1 + sum(_count_nodes(child, where, known, depth + 1) for child in inside)
        if known[id(node)] > MAX_NODES:
            raise _too_much(where)
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a file holds; an empty file holds an empty one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; check the path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a UTF-8 YAML file: {error}") from error
    content = parse_yaml(text, str(path))
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys with values ('key: value' lines), got a {type(content).__name__}")
    return content or {}
