"""How a verb is found and run.

A verb is a module with a docstring, whose first line stands in the list of verbs and which as a whole is the verb's
help, and with ``add_arguments(parser)`` and ``run(arguments)``, which returns nothing or the exit code. It imports
what is heavy inside ``run``: ``--help`` must not wait for torch. A folder whose ``__init__`` has ``VERBS`` is a group
of verbs (``speech-adapters manifest make``). A verb that parses its own arguments has ``main(prog, argv)`` instead.
"""

from __future__ import annotations

import keyword
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from speech_adapters.errors import ConfigError
from speech_adapters.flags import Parser
from speech_adapters.schema import near


def run_verb(module: str, prog: str, argv: Sequence[str]) -> int | None:
    """Run the verb that lies in ``module``, called ``prog`` in its help, with its arguments; returns its exit code.

    Raises:
        ConfigError: an unknown verb or flag, with the near one as a suggestion.
    """
    verb = import_module(module)
    if hasattr(verb, "VERBS"):
        return _run_group(verb, prog, argv)
    if hasattr(verb, "main"):
        return verb.main(prog, argv)
    parser = Parser(prog, description=verb.__doc__)
    verb.add_arguments(parser)
    return verb.run(parser.parse_all(argv))


def module_of(group: str, name: str) -> str:
    """The module of a verb: ``copy-recipe`` is ``copy_recipe``, ``import`` is ``import_``."""
    return f"{group}.{name.replace('-', '_')}{'_' if keyword.iskeyword(name) else ''}"


def names_in(group: ModuleType) -> list[str]:
    """The verbs of a group, in the order of its help."""
    return [name for names in group.VERBS.values() for name in names]


def _run_group(group: ModuleType, prog: str, argv: Sequence[str]) -> int | None:
    name, *rest = argv or [""]
    if name in ("-h", "--help", "help"):
        print(overview(group, prog))
        return None
    if name == "--version":
        from speech_adapters import __version__

        print(f"speech-adapters {__version__}")
        return None
    if not name:
        print(overview(group, prog), file=sys.stderr)
        return 2
    known = names_in(group)
    if name not in known:
        raise ConfigError(f"{prog}: there is no verb '{name}'; {near(name, known)}")
    return run_verb(module_of(group.__name__, name), f"{prog} {name}", rest)


def overview(group: ModuleType, prog: str) -> str:
    """The help of a group: each verb with the first line of its module's docstring."""
    lines = [f"usage: {prog} VERB ...", "", (group.__doc__ or "").strip()]
    width = max(map(len, names_in(group)))
    for title, names in group.VERBS.items():
        lines += ["", f"{title}:"]
        for name in names:
            described = import_module(module_of(group.__name__, name)).__doc__ or ""
            lines.append(f"  {name:{width}}  {described.strip().partition(chr(10))[0].rstrip('.')}")
    return "\n".join([*lines, "", f"{prog} VERB --help says more."])
