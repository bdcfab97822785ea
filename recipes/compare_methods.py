"""Compare adapter methods on speech recognition: same data, updates and seeds; WER, parameters, time and memory.

    python recipes/compare_methods.py                                    # demo corpus, packaged encoder
    python recipes/compare_methods.py --train train.jsonl --dev dev.jsonl --test test.jsonl --seeds 0,1,2
    python recipes/compare_methods.py --methods lora,pissa,dora --encoder microsoft/wavlm-base-plus

The table is printed and kept in results.json; the report adds the scatter plot of WER against trained parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asr_librispeech import ASR
from asr_librispeech import Config as ASRConfig

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.experiment import run_experiment

PRESETS = {path.stem: path for path in (Path(__file__).parent / "compare_methods").glob("*.yaml")}


@dataclass(kw_only=True)
class Config(ASRConfig):
    """Methods side by side; ``adapter`` and ``baselines`` are taken from ``methods``."""

    methods: tuple[str, ...] = option(("elp", "head-only"), "presets to compare; the worst utterances are the first's")

    def __post_init__(self) -> None:
        if len(set(self.methods)) < max(2, len(self.methods)):
            raise ConfigError(f"methods={list(self.methods)}: give two or more different presets.")
        self.adapter, *others = self.methods
        self.baselines = tuple(others)
        super().__post_init__()


if __name__ == "__main__":
    run_main(
        lambda: run_experiment(
            "compare_methods", ASR(parse_cli(Config, presets=PRESETS, default_preset="demo", description=__doc__))
        )
    )
