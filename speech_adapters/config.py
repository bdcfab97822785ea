"""Typed configurations from YAML, ``key=value`` overrides and command-line flags; unknown keys are errors.

    @dataclass(kw_only=True)
    class Recipe:
        learning_rate: float = option(1e-4, "peak rate; halve it when the loss jumps")
        training: Training = option(Training(updates=300))

    config = load_config(Recipe, Path("recipe.yaml"), ["learning_rate=3e-4", "training.updates=500"])
    config = parse_cli(Recipe)          # recipe.py --config recipe.yaml --learning-rate 3e-4 training.updates=500

YAML is read by :mod:`~speech_adapters.strict_yaml`, where ``no`` is text; a ``bool`` field still takes yes/no/on/off.
Paths are relative to the working directory, and ``~`` is the home folder.
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

from speech_adapters.errors import ConfigError, InputError, Interrupted, out_of_memory
from speech_adapters.files import write_text
from speech_adapters.flags import Parser, add_flags, check_conflicts, keys_help, use_device
from speech_adapters.locks import held
from speech_adapters.schema import Typed, from_dict, put, to_dict
from speech_adapters.strict_yaml import dump_yaml, parse_yaml, read_yaml

__all__ = [
    "from_dict", "load_config", "option", "parse_cli", "run_main", "save_config", "to_dict", "to_yaml", "write_text"
]  # fmt: skip

C = TypeVar("C")
REQUIRED: Any = dataclasses.MISSING


def option(default: Any = REQUIRED, help: str = "", *, file: bool = False) -> Any:
    """A dataclass field with a help text; lists, dicts and nested configurations are given as plain defaults.

    With ``file`` it names a file that is read: :func:`parse_cli` looks whether it exists.
    """
    metadata = {"help": help, "file": file}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if type(default).__hash__ is None:  # mutable: each configuration gets its own
        return dataclasses.field(default_factory=partial(copy.deepcopy, default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load_config(cls: type[C], file: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()) -> C:
    """Build ``cls`` from its defaults, then a YAML ``file``, then ``overrides`` such as ``training.updates=500``.

    Raises :class:`ConfigError` that names the file or the override, the key, the value and what was expected.
    """
    alone, where = ({}, "configuration") if file is None else (read_yaml(Path(file)), str(file))
    mapping = copy.deepcopy(alone)
    for override in overrides:
        key, equals, text = override.partition("=")
        where_override = f"argument '{override}'"
        if not equals or not key.strip():
            raise ConfigError(f"{where_override}: write key=value, for example {_example(cls)}")
        put(cls, mapping, key.strip(), Typed(text.strip(), where_override, partial(parse_yaml, where=where_override)))
    try:
        return from_dict(cls, mapping, where)
    except ConfigError as error:
        for override in overrides:  # a value that the command line gave is not the file's fault
            _, found, told = str(error).partition(f"{override.partition('=')[0].strip()}=")
            if found and str(error).startswith(f"{where}: "):
                raise ConfigError(f"{found}{told}") from error
        if overrides and _is_sound(cls, alone):  # nor is what only both make together
            raise ConfigError(str(error).removeprefix(f"{where}: ")) from error
        raise


def _is_sound(cls: type[Any], mapping: dict[str, Any]) -> bool:
    try:
        from_dict(cls, mapping, "")
    except ConfigError:
        return False
    return True


def to_yaml(config: Any) -> str:
    """The configuration as YAML that :func:`load_config` reads back as an equal one."""
    return dump_yaml(to_dict(config))


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
    """The command line of a recipe: a preset or file, then ``key=value`` overrides and a flag per top-level field.

    A bare call runs the preset ``demo``, where there is one; ``--config`` takes its place, and so does the
    configuration of the run of ``recipe`` that ``--resume`` names. What everyone sets has a short flag
    (:data:`~speech_adapters.flags.SHORT`); a key that is set twice is an error. ``--help`` lists every key.
    ``--print-config`` prints the resolved configuration and exits. Raises :class:`ConfigError` for anything it cannot
    use, such as files that do not exist; :func:`run_main` turns that into one line and exit code 2.
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
    _check_files(config, resumed=resume is not None)
    return config


def _check_files(config: Any, resumed: bool) -> None:
    """Find files that do not exist before anything is loaded or downloaded.

    Raises:
        ConfigError: names all of them, and their flags.
    """
    missing = {
        "--" + field.name.replace("_", "-"): str(path)
        for field in dataclasses.fields(config)
        if field.metadata.get("file") and (path := getattr(config, field.name)) and not os.path.exists(path)
    }
    if not missing:
        return
    flags = ", ".join(missing)
    hint = f"if the run's files are elsewhere now, name them with {flags}" if resumed else f"check {flags}"
    first = min(missing.values(), key=os.path.isabs)  # a relative one, whose folder is told
    raise ConfigError(f"{', '.join(missing.values())}: no such file; {hint}") from FileNotFoundError(
        errno.ENOENT, os.strerror(errno.ENOENT), first
    )


def _given(key: str, overrides: Sequence[str]) -> Any:
    """What the overrides set a top-level key to; None where they do not."""
    values = [text for name, _, text in (override.partition("=") for override in overrides) if name.strip() == key]
    return parse_yaml(values[-1].strip(), where=f"argument '{key}={values[-1]}'") if values else None


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
    before = held()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # any name of a file can be printed, whatever the terminal's encoding
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}{_looked_for(error.__cause__)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as stop:
        print(f"interrupted; {stop}" if str(stop) else "interrupted", file=sys.stderr)
        if (folder := getattr(stop, "folder", None) or _trained_run(before)) is not None:
            print(f"go on with: {_command(folder)}", file=sys.stderr)
        code = getattr(stop, "exit_code", 130)
    except BrokenPipeError:  # `... | head` has read enough; the interpreter's own flush must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (MemoryError, OSError, RuntimeError) as error:
        if (said := _no_room(error)) is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        code = 2
    raise SystemExit(code if isinstance(code, int) else 0)


def _no_room(error: Exception) -> str | None:
    """What to say where a disk, a folder or memory has no room for us; None for any other error."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; free space, or name a folder that you may write to"
    if not out_of_memory(error):
        return None
    asked = re.search(r"tried to allocate (\d[\d.]* \w+)", str(error), re.I)
    return (
        f"out of memory{f' ({asked[1]} asked for)' if asked else ''}; what takes most are long utterances, which can "
        "be cut into pieces, and large batches (training.batch_seconds, --batch-seconds)"
    )


def _terminated(number: int, frame: Any) -> NoReturn:
    raise Interrupted("", 128 + number)


def _trained_run(before: Sequence[Path]) -> str | None:
    """The run that this script writes to, None where nothing of it has been trained: it would only start anew.

    Args:
        before: the folders that this process held when the script began.
    """
    runs = (folder for folder in held() if folder not in before and is_run(folder))
    return next((str(folder) for folder in runs if (folder / "checkpoints").is_dir()), None)


def _looked_for(cause: BaseException | None) -> str:
    """Where a relative path is missing: the folder that it was taken from."""
    if not isinstance(cause, FileNotFoundError) or cause.filename is None or Path(cause.filename).is_absolute():
        return ""
    return f"\nlooked for in {Path.cwd()}"


def _command(folder: str) -> str:
    """The command line that goes on with a run: this one, with its folder."""
    named = any(re.match(r"-o|(--)?(output|resume)(=|$)", argument) for argument in sys.argv[1:])
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else sys.argv[0].split()
    return shlex.join([*program, *sys.argv[1:], *([] if named else ["--output", folder])])
