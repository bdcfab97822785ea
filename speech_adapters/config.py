"""Typed configurations from YAML, ``key=value`` overrides and command-line flags; unknown keys are errors.

    @dataclass(kw_only=True)
    class Recipe:
        learning_rate: float = option(1e-4, "peak rate; halve it when the loss jumps")
        training: Training = option(Training(updates=300))

    config = load_config(Recipe, Path("recipe.yaml"), ["learning_rate=3e-4", "training.updates=500"])
    config = parse_cli(Recipe)          # recipe.py --config recipe.yaml --learning-rate 3e-4 training.updates=500

YAML is read by the rules of YAML 1.2's core schema, so that ``1e-4`` is a number and ``no`` is text (a ``bool`` field
still takes yes/no/on/off). Paths are relative to the working directory, and ``~`` is the home folder.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from speech_adapters.errors import ConfigError, InputError, Interrupted
from speech_adapters.files import write_text
from speech_adapters.flags import Parser, add_flags, check_conflicts, keys_help, use_device
from speech_adapters.schema import Typed, from_dict, put, to_dict

__all__ = [
    "from_dict", "load_config", "option", "parse_cli", "run_main", "save_config", "to_dict", "to_yaml", "write_text"
]  # fmt: skip

C = TypeVar("C")
REQUIRED: Any = dataclasses.MISSING


def option(default: Any = REQUIRED, help: str = "") -> Any:
    """A dataclass field with a help text; lists, dicts and nested configurations are given as plain defaults."""
    if default is REQUIRED:
        return dataclasses.field(metadata={"help": help})
    if type(default).__hash__ is None:  # mutable: each configuration gets its own
        return dataclasses.field(default_factory=partial(copy.deepcopy, default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def load_config(cls: type[C], file: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()) -> C:
    """Build ``cls`` from its defaults, then a YAML ``file``, then ``overrides`` such as ``training.updates=500``.

    Raises :class:`ConfigError` that names the file or the override, the key, the value and what was expected.
    """
    mapping, where = ({}, "configuration") if file is None else (_read_yaml(Path(file)), str(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        where_override = f"argument '{override}'"
        if not equals or not key.strip():
            raise ConfigError(f"{where_override}: write key=value, for example {_example(cls)}")
        put(cls, mapping, key.strip(), Typed(text.strip(), where_override, partial(_parse, where=where_override)))
    try:
        return from_dict(cls, mapping, where)
    except ConfigError as error:
        for override in overrides:  # a value that the command line gave is not the file's fault
            _, found, told = str(error).partition(f"{override.partition('=')[0].strip()}=")
            if found and str(error).startswith(f"{where}: "):
                raise ConfigError(f"{found}{told}") from error
        raise


def to_yaml(config: Any) -> str:
    """The configuration as YAML that :func:`load_config` reads back as an equal one."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


RUN_CONFIG = "config.yaml"
"""What a run folder calls its configuration."""


def find_run(recipe: str, name: str | os.PathLike[str], root: str | os.PathLike[str] = "runs") -> Path:
    """The folder of a run to go on with: "latest" for ``<root>/<recipe>/latest``, or a path.

    Raises :class:`InputError` where no run was begun.
    """
    path = Path(root, recipe, "latest") if name == "latest" else Path(name)
    if not is_run(path):
        raise InputError(f"{path}: no run to resume; see what lies in {Path(root, recipe)}, or omit --resume.")
    return path.resolve()


def is_run(folder: Path) -> bool:
    """Whether a run was begun in a folder. Raises InputError for what cannot be a folder's name."""
    try:
        return (folder / RUN_CONFIG).is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be a run folder ({getattr(error, 'strerror', None) or error})") from error


def save_config(config: Any, path: str | os.PathLike[str]) -> None:
    """Write the resolved configuration as YAML, whole or not at all."""
    write_text(path, to_yaml(config))


def parse_cli(
    cls: type[C],
    argv: Sequence[str] | None = None,
    *,
    presets: Mapping[str, Path] | None = None,
    description: str = "",
    recipe: str | None = None,
) -> C:
    """The command line of a recipe: a preset or file, then ``key=value`` overrides and a flag a top-level field.

    A bare call runs the preset ``demo``, where there is one; ``--config`` takes its place, and so does the
    configuration of the run of ``recipe`` that ``--resume`` names. What everyone sets has a short flag
    (:data:`~speech_adapters.flags.SHORT`); a key that is set twice is an error. ``--help`` lists every key.
    ``--print-config`` prints the resolved configuration and exits. Raises :class:`ConfigError` for anything it cannot
    use; :func:`run_main` turns that into one line and exit code 2.
    """
    presets = presets or {}
    default_preset = "demo" if "demo" in presets else None
    given_argv = sys.argv[1:] if argv is None else argv
    parser = Parser()
    parser.description = _EXAMPLE.sub(parser.prog, description) if " " in parser.prog else description
    if {"-h", "--help"} & set(given_argv):
        parser.epilog = keys_help(cls)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"any value, for example {_example(cls)}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, metavar="FILE", help="a YAML file with values to change")
    if presets:
        source.add_argument(
            "--preset",
            choices=sorted(presets),
            help=f"a configuration that comes with the recipe (default: {default_preset or 'none'})",
        )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    keys = add_flags(parser, cls)

    arguments = parser.parse_all(given_argv)
    given = {name: getattr(arguments, name) for name in keys if getattr(arguments, name) is not None}
    check_conflicts({"--" + name.replace("_", "-"): keys[name] for name in given}, arguments.overrides)
    use_device(getattr(arguments, "where", None) or "auto")
    preset, file = getattr(arguments, "preset", None), arguments.config
    overrides = [*arguments.overrides, *(f"{keys[name]}={value}" for name, value in given.items())]
    resume = given.get("resume") or _given("resume", arguments.overrides)
    if recipe is not None and resume and not (preset or file):
        file = find_run(recipe, str(resume)) / RUN_CONFIG
        overrides = ["output=null", *overrides]
    preset = preset or (None if file else default_preset)
    config = load_config(cls, presets[preset] if preset else file, overrides)
    if arguments.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def _given(key: str, overrides: Sequence[str]) -> Any:
    """What the overrides set a top-level key to; None where they do not."""
    values = [text for name, _, text in (override.partition("=") for override in overrides) if name.strip() == key]
    return _parse(values[-1].strip(), where=f"argument '{key}={values[-1]}'") if values else None


def _example(cls: type[Any]) -> str:
    """An override that this configuration takes: a number of a nested one, or else a key of its own."""
    own = dataclasses.fields(cls)
    for field in own:
        nested = None if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(nested):
            for key in dataclasses.fields(nested):
                if type(value := getattr(nested, key.name)) in (int, float):
                    return f"{field.name}.{key.name}={value}"
    told = [f"{field.name}={field.default}" for field in own if type(field.default) in (int, float, str)]
    return told[0] if told else f"{own[0].name}=value"


_EXAMPLE = re.compile(r"python recipes/\w+\.py")
"""How a recipe's docstring calls it; ``speech-adapters train asr`` shows its own name in its place."""

_NO_ROOM = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EIO, errno.ESTALE,
}  # fmt: skip
"""Disks that are full or break, folders that are not ours, names that cannot be: nothing that a program could mend."""


def run_main(main: Callable[[], Any]) -> NoReturn:
    """Run a script's ``main`` and exit: 0 done (or the integer it returns), 2 bad input, 130 or 143 interrupted."""
    signal.signal(signal.SIGTERM, _terminated)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # any name of a file can be printed, whatever the terminal's encoding
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Interrupted as stop:
        print(f"interrupted; {stop}" if str(stop) else "interrupted", file=sys.stderr)
        if stop.folder is not None:
            print(f"go on with: {_command(stop.folder)}", file=sys.stderr)
        code = stop.exit_code
    except BrokenPipeError:  # `... | head` has read enough; the interpreter's own flush must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; free space, or name a folder that you may write to", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    raise SystemExit(code if isinstance(code, int) else 0)


def _terminated(number: int, frame: Any) -> NoReturn:
    raise Interrupted("", 128 + number)


def _command(folder: str) -> str:
    """The command line that goes on with a run: this one, with its folder."""
    named = any(a.partition("=")[0] in ("--output", "output", "--resume", "resume") for a in sys.argv[1:])
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else sys.argv[0].split()
    return shlex.join([*program, *sys.argv[1:], *([] if named else ["--output", folder])])


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


MAX_BYTES, MAX_NODES, MAX_DEPTH = 100_000, 10_000, 50
"""Limits of one configuration: characters of the file, values with aliases written out, and levels of nesting. Ours
have a hundred values on four levels; a few lines of aliases can stand for more values than a machine holds."""


def _parse(text: str, where: str) -> Any:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where}: {len(text)} characters are no configuration; give a YAML file of values")
    try:
        loader = _Loader(text)
        loader.name = where
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, where, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"{where}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # PyYAML's own, of `!!int abc` and the like
        if isinstance(error, ConfigError):
            raise
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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; check the path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a UTF-8 YAML file: {error}") from error
    content = _parse(text, str(path))
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys with values ('key: value' lines), got a {type(content).__name__}")
    return content or {}
