"""Recipes from the command line: ``speech-adapters train asr`` is ``python recipes/asr_librispeech.py``.

They lie in ``recipes/`` of a checkout, and in the package where it was installed from a wheel.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import speech_adapters
from speech_adapters.errors import ConfigError
from speech_adapters.schema import near


def recipes_folder() -> Path:
    """Where the recipes lie. Raises ConfigError where they are missing."""
    package = Path(speech_adapters.__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / "asr_librispeech.py").is_file():
            return folder
    raise ConfigError(f"{package / 'recipes'}: the recipes are missing; install speech-adapters again")


def recipe_names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.py"))


def run_named(prog: str, named: Mapping[str, str], argv: Sequence[str], description: str) -> None:
    """Run the recipe that ``argv`` names first, with the rest of it as its own command line.

    Args:
        prog: the verb, as its help calls it. named: what ``argv`` may name -> the recipe's name.
        description: help of the verb.

    Raises:
        ConfigError: nothing named, or nothing of that name; the near one is suggested.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_overview(prog, named, description))
        return
    if name not in named:
        raise ConfigError(f"{prog}: there is no '{name}'; {near(name, named)}")
    run_recipe(named[name], [f"{prog} {name}", *rest])


def run_recipe(recipe: str, argv: list[str]) -> None:
    """Run a recipe as Python itself would, but for ``argv[0]``: the name that it goes by in its help."""
    before = sys.argv, sys.modules["__main__"]
    sys.argv = argv
    try:
        _execute(recipe, "__main__")
    finally:
        sys.argv, sys.modules["__main__"] = before


def load_recipe(recipe: str) -> ModuleType:
    """A recipe as a module, to take its parts from."""
    return _execute(recipe, recipe)


def _execute(recipe: str, name: str) -> ModuleType:
    """A recipe's script, executed as the module ``name``; it finds its neighbours, as when Python runs it."""
    script = recipes_folder() / f"{recipe}.py"
    spec = spec_from_file_location(name, script)
    assert spec is not None and spec.loader is not None, "a file that ends in .py"
    module = module_from_spec(spec)
    sys.modules[name], before = module, sys.path  # dataclasses look their module up
    sys.path = [str(script.parent), *sys.path]
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path = before
    return module


def files_of(recipe: str) -> list[Path]:
    """A recipe's files, relative to its folder: the script, the recipes that it imports, their YAML files."""
    folder = recipes_folder()
    names, found = [recipe], []
    for name in names:  # grows by what each imports
        script = folder / f"{name}.py"
        found += [script, *sorted((folder / name).rglob("*.yaml")), *folder.glob(f"{name}.yaml")]
        names += [other for other in _imports(script) if other not in names and (folder / f"{other}.py").is_file()]
    return [path.relative_to(folder) for path in found]


def summary(recipe: str) -> str:
    """The first line of a recipe's docstring."""
    text = (recipes_folder() / f"{recipe}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].rstrip(".")


def _imports(script: Path) -> set[str]:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def _overview(prog: str, named: Mapping[str, str], description: str) -> str:
    width = max(map(len, named))
    lines = [f"  {name:{width}}  {summary(recipe)}" for name, recipe in named.items()]
    return "\n".join(
        [f"usage: {prog} NAME ...", "", description.strip(), "", *lines, "", f"{prog} NAME --help says more."]
    )
