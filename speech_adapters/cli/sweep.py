"""Search a recipe's settings: trials pruned on dev data, finalists over seeds, ablation tables.

  speech-adapters sweep asr --trials 30 --output sweeps/asr --train train.jsonl --dev dev.jsonl --test test.jsonl \\
      training.updates=600 training.evaluate_every=60
  speech-adapters sweep asr --space space.yaml --output sweeps/mine ...
  speech-adapters sweep emotion 'over.adapter=[l,lora]' 'over.options.lora.rank=[2,8,32]' --output sweeps/emotion ...
  speech-adapters sweep asr --output sweeps/asr ... --finalists 3 --seeds 0,1,2     # the best ones over seeds, on dev
  speech-adapters sweep asr --output sweeps/asr ... --score-test                    # and only now on the test set

Whatever is no flag of the sweep goes to the recipe, as in speech-adapters train. The same command goes on with a sweep
that was stopped, or works at it beside others: start it several times. Without --space and over.* the recipe's own
space is searched (recipes/sweep). Needs the extra `sweep`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from speech_adapters.cli.recipes import load_recipe, recipes_folder
from speech_adapters.cli.train import RECIPES as TRAINED
from speech_adapters.errors import ConfigError
from speech_adapters.flags import Parser
from speech_adapters.schema import near

RECIPES = {name: TRAINED[name] for name in ("asr", "emotion", "keyword", "intent")}
"""What can be searched -> its recipe; verification has no dev loss, and the others are no single experiment."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Run the sweep."""
    parser = Parser(f"{prog} NAME", description=f"{__doc__}\nNAME: {', '.join(RECIPES)}")
    add_arguments(parser)
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help") or {"-h", "--help"} & set(rest):
        parser.print_help()
        return
    if name not in RECIPES:
        raise ConfigError(f"{prog}: there is no '{name}'; {near(name, RECIPES)}")
    arguments, others = parser.parse_known_args(rest)
    run(name, arguments, others)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the sweep itself."""
    parser.add_argument("--output", "-o", required=True, type=Path, metavar="DIR", help="folder of the sweep")
    parser.add_argument("--space", type=Path, metavar="FILE", help="YAML with over: and other settings of the sweep")
    parser.add_argument("--trials", metavar="N", help="trials in all (default: 20)")
    parser.add_argument("--at-once", metavar="N", help="trials in one pass over the data (default: 1)")
    parser.add_argument("--pruner", metavar="NAME", help="halving, median or none (default: halving)")
    parser.add_argument("--sampler-seed", metavar="N", help="of what is drawn (default: 0)")
    parser.add_argument("--finalists", type=int, metavar="N", help="train the best N trials over the recipe's --seeds")
    parser.add_argument("--score-test", action="store_true", help="score the finalists on the test set")


def run(name: str, arguments: argparse.Namespace, others: Sequence[str]) -> None:
    """Search, then what else was asked for; print where it lies."""
    if find_spec("optuna") is None:
        raise ConfigError("sweep needs optuna: pip install 'speech-adapters[sweep]'")
    from speech_adapters.config import load_config, parse_cli
    from speech_adapters.reports.sweep_report import sweep_table
    from speech_adapters.sweeps.finalists import run_finalists, score_finalists
    from speech_adapters.sweeps.settings import SweepConfig
    from speech_adapters.sweeps.study import Sweep

    over = [argument for argument in others if argument.startswith("over.")]
    space = arguments.space or (None if over else _own_space(RECIPES[name]))
    flags = {key: getattr(arguments, key) for key in ("trials", "at_once", "pruner", "sampler_seed")}
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    settings = load_config(SweepConfig, space, [*over, *given])
    if arguments.finalists is not None and arguments.finalists < 1:
        raise ConfigError(f"--finalists {arguments.finalists}: give how many of the best trials, from 1")
    recipe = load_recipe(RECIPES[name])
    config = parse_cli(
        recipe.Config,
        [argument for argument in others if argument not in over],
        presets=getattr(recipe, "PRESETS", None),
        description=recipe.__doc__ or "",
    )
    sweep = Sweep(recipe.experiment(config), settings, arguments.output)
    print(f"{sweep.encoder!r}\ntrain {sweep.corpus.train.summary()}\ndev   {sweep.corpus.test.summary()}")
    print(f"sweep {sweep.folder}\n", flush=True)
    sweep.run()
    trained = None if arguments.finalists is None else run_finalists(sweep, recipe.experiment, arguments.finalists)
    if arguments.score_test and trained != []:  # where others train all finalists, they test them
        score_finalists(sweep, recipe.experiment)
    print(f"\n{sweep_table(sweep.folder)}\n\nreport  {sweep.write()}")


def _own_space(recipe: str) -> Path:
    path = recipes_folder() / "sweep" / f"{recipe}.yaml"
    if not path.is_file():
        raise ConfigError(f"{recipe} has no space of its own; give --space FILE, or over.KEY=[..]")
    return path
