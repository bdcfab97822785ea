"""Train an adapter for keyword spotting on a frozen encoder, next to honest baselines, and score it.

    python recipes/keyword_spotting.py --train train.jsonl --dev dev.jsonl --test test.jsonl
    python recipes/keyword_spotting.py --train ... --dev ... --test ... --label-field command --adapter lora

One label per utterance (--label-field), scored by accuracy. Without manifests the demo corpus is used, whose
"keywords" are its three domains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.ranges import Rate
from speech_adapters.tasks.base import Corpus, ExperimentConfig
from speech_adapters.training.settings import TrainingConfig

if TYPE_CHECKING:
    from speech_adapters.tasks.experiment import Experiment


@dataclass(kw_only=True)
class Config(ExperimentConfig):
    """An adapter and its baselines for keyword spotting."""

    adapter: str = option("l", "preset of the adapter: l, el, elp, e, lora, houlsby, ...")
    train: Path | None = option(
        None, "manifest to train on; then --dev too, and --test to score other speech", file=True
    )
    dev: Path | None = option(None, "manifest that chooses the state to keep (training.evaluate_every)", file=True)
    test: Path | None = option(None, "manifest to score", file=True)
    label_field: str | None = option(None, "key of the manifest that holds the keyword; label by default")
    network: Literal["linear", "conv"] = option("linear", "head: linear (Otake 2023), or conv (PEFT-SER)")
    pooling: Literal["mean", "statistics", "attentive"] = option("mean", "how the head pools frames")
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            updates=200,  # minutes on two cores; some thousands for 35 words of Speech Commands
            batch_seconds=16.0,
        )
    )
    rates: dict[str, Rate] = field(  # for packaged encoders and minutes; published ones suit 12 layers and days
        default_factory=lambda: {
            "e": 1e-4,
            "l": 1e-3,
            "norm": 5e-4,
            "p": 5e-4,
            "lora": 1e-3,
            "head": 2e-3,
            "layers": 1e-4,
        }
    )


def experiment(config: Config) -> Experiment:
    """What is trained and scored."""
    from speech_adapters.tasks.classification import Classification
    from speech_adapters.tasks.experiment import Experiment

    key = config.label_field or ("label" if config.train else "domain")
    task = Classification(
        "keyword",
        label_field=key,
        metric="accuracy",
        network=config.network,
        pooling=config.pooling,
        class_weights=False,
    )

    def find() -> list[Corpus]:
        given = Corpus.given(config.train, config.dev, config.test, (key,), config.channel)
        return [(given or Corpus.demo((key,))).check_speakers()]

    return Experiment("keyword_spotting", config, task, find)


def main(config: Config) -> Any:
    from speech_adapters.tasks.experiment import run_experiment

    return run_experiment(*experiment(config))


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__, recipe="keyword_spotting")))
