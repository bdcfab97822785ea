"""Train an adapter for intents on a frozen encoder, next to honest baselines, and score it.

    python recipes/intent_classification.py                              # demo corpus, packaged encoder, minutes
    python recipes/intent_classification.py --preset fluent_speech_commands --corpus-root DIR
    python recipes/intent_classification.py --train train.jsonl --dev dev.jsonl --test test.jsonl --label-field label
    python recipes/intent_classification.py --train ... --dev ... --test ... --slots action,object,location

With --slots an utterance has several labels, and is right only if all of them are; without, it has one
(--label-field). The demo corpus has no intents: there the slots are domain, emotion and gender.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.base import Corpus, ExperimentConfig

if TYPE_CHECKING:
    from speech_adapters.tasks.experiment import Experiment

PRESETS = {path.stem: path for path in (Path(__file__).parent / "intent_classification").glob("*.yaml")}

DEMO_SLOTS = ("domain", "emotion", "gender")
"""The demo corpus has no intents; three slots that it does have show the form."""


@dataclass(kw_only=True)
class Config(ExperimentConfig):
    """An adapter and its baselines for intent classification."""

    train: Path | None = option(
        None, "manifest to train on; then --dev too, and --test to score other speech", file=True
    )
    dev: Path | None = option(None, "manifest that chooses the state to keep (training.evaluate_every)", file=True)
    test: Path | None = option(None, "manifest to score", file=True)
    corpus_root: Path | None = option(None, "folder Fluent Speech Commands was unpacked in")
    slots: tuple[str, ...] = option((), "keys of the manifest that hold the labels of an utterance")
    label_field: str = option("label", "key of the manifest that holds the one label, without --slots")
    network: Literal["linear", "conv"] = option("linear", "head: linear (Otake 2023), or conv")
    pooling: Literal["mean", "statistics", "attentive"] = option("mean", "how the head pools frames")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train and self.corpus_root:
            raise ConfigError("give --train, --dev and --test, or --corpus-root, not both.")
        if self.slots and self.label_field != "label":
            raise ConfigError("give --slots or --label-field, not both: an utterance has several labels, or one.")
        if not (self.slots or self.train or self.dev or self.test or self.corpus_root) and self.label_field == "label":
            self.slots = DEMO_SLOTS


def find_corpus(config: Config) -> Corpus:
    """Manifests as given, Fluent Speech Commands where its folder is, else the demo corpus."""
    keys = config.slots or (config.label_field,)
    if given := Corpus.given(config.train, config.dev, config.test, keys, config.channel):
        return given.check_speakers()
    if config.corpus_root is not None:
        from speech_adapters.corpora import prepare_fluent_speech_commands
        from speech_adapters.corpora.demo import demo_root

        paths = prepare_fluent_speech_commands(config.corpus_root, demo_root().parent / "fluent_speech_commands")
        return Corpus.read(paths["train"], paths["dev"], paths["test"], "Fluent Speech Commands", keys)
    return Corpus.demo(keys).check_speakers()


def experiment(config: Config) -> Experiment:
    """What is trained and scored."""
    from speech_adapters.tasks.base import Task
    from speech_adapters.tasks.classification import Classification
    from speech_adapters.tasks.experiment import Experiment
    from speech_adapters.tasks.slots import SlotFilling

    if config.slots:
        task: Task[Any] = SlotFilling(config.slots, "intent", network=config.network, pooling=config.pooling)
    else:
        task = Classification(
            "intent",
            label_field=config.label_field,
            metric="accuracy",
            network=config.network,
            pooling=config.pooling,
            class_weights=False,
        )
    return Experiment("intent_classification", config, task, lambda: [find_corpus(config)])


def main(config: Config) -> Any:
    from speech_adapters.tasks.experiment import run_experiment

    return run_experiment(*experiment(config))


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, description=__doc__, recipe="intent_classification")))
