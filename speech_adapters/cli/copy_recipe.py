"""Copy a recipe and its YAML files, to read and change as a script of your own.

speech-adapters copy-recipe asr_librispeech mine     then: python mine/asr_librispeech.py --help
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, and where to."""
    parser.add_argument("recipe", nargs="?", help="its name; without one, all are listed")
    parser.add_argument("folder", nargs="?", default=".", type=Path, help="where to; here by default")


def run(arguments: argparse.Namespace) -> None:
    """Print each file that was written; none is written over."""
    from speech_adapters.cli.recipes import files_of, recipe_names, recipes_folder, summary
    from speech_adapters.errors import ConfigError
    from speech_adapters.files import write_text
    from speech_adapters.schema import near

    names = recipe_names()
    if arguments.recipe is None:
        width = max(map(len, names))
        print("\n".join(f"{name:{width}}  {summary(name)}" for name in names))
        return
    name = arguments.recipe.removesuffix(".py")
    if name not in names:
        raise ConfigError(f"there is no recipe '{arguments.recipe}'; {near(name, names)}")
    files = files_of(name)
    if taken := [file for file in files if (arguments.folder / file).exists()]:
        raise ConfigError(f"{arguments.folder / taken[0]}: exists already; name another folder, or remove it")
    for file in files:
        write_text(arguments.folder / file, (recipes_folder() / file).read_text(encoding="utf-8"))
        print(arguments.folder / file)
    print(f"\nrun it: python {arguments.folder / files[0]} --help")
