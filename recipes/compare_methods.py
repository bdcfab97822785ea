"""Compare adapter methods on speech recognition: same data, updates and seeds; WER, parameters, time and memory.

    python recipes/compare_methods.py                                    # demo corpus, packaged encoder
    python recipes/compare_methods.py --train train.jsonl --dev dev.jsonl --test test.jsonl --seeds 0,1,2
    python recipes/compare_methods.py --methods lora,pissa,dora --encoder microsoft/wavlm-base-plus

The table is printed and kept in results.json; the report adds the scatter plot of WER against trained parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_librispeech import Config as ASRConfig
from asr_librispeech import find_corpus

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.errors import ConfigError

PRESETS = {path.stem: path for path in (Path(__file__).parent / "compare_methods").glob("*.yaml")}


@dataclass(kw_only=True)
class Config(ASRConfig):
    """Methods side by side."""

    methods: tuple[str, ...] = option(("elp", "head-only"), "presets to compare; the worst utterances are the first's")
    adapter: str = option("", "the first of --methods")
    baselines: tuple[str, ...] = option((), "the others of --methods")

    def __post_init__(self) -> None:
        if len(set(self.methods)) < max(2, len(self.methods)):
            raise ConfigError(f"methods={list(self.methods)}: give two or more different presets.")
        first, *others = self.methods
        if self.adapter not in ("", first) or self.baselines not in ((), tuple(others)):
            raise ConfigError("--adapter and --baselines are taken from --methods: name all presets there.")
        self.adapter, self.baselines = first, tuple(others)
        super().__post_init__()


def main(config: Config) -> Any:
    from speech_adapters.tasks.experiment import run_experiment

    task = config.recognition(config.encoder)
    return run_experiment("compare_methods", config, task, lambda: [find_corpus(config)])


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, description=__doc__, recipe="compare_methods")))
