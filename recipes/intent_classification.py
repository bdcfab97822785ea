"""Train an adapter for intents or keywords on a frozen encoder, next to honest baselines, and score it.

    python recipes/intent_classification.py                              # demo corpus, packaged encoder, minutes
    python recipes/intent_classification.py --preset fluent_speech_commands --corpus-root DIR
    python recipes/intent_classification.py --train train.jsonl --dev dev.jsonl --test test.jsonl --label-field label
    python recipes/intent_classification.py --train ... --dev ... --test ... --slots action,object,location

With --slots an utterance has several labels, and is right only if all of them are; without, it has one
(--label-field). The demo corpus has no intents: there the slots are domain, emotion and gender.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.experiment import Corpus, ExperimentConfig, Task, run_experiment

PRESETS = {path.stem: path for path in (Path(__file__).parent / "intent_classification").glob("*.yaml")}


@dataclass(kw_only=True)
class Config(ExperimentConfig):
    """An adapter and its baselines for intent classification."""

    train: Path | None = option(None, "manifest to train on; then --dev and --test too")
    dev: Path | None = option(None, "manifest for early stopping and dev loss")
    test: Path | None = option(None, "manifest to score")
    corpus_root: Path | None = option(None, "folder Fluent Speech Commands was unpacked in")
    slots: tuple[str, ...] = option((), "keys of the manifest that hold the labels of an utterance")
    label_field: str = option("label", "key of the manifest that holds the one label, without --slots")
    network: Literal["linear", "conv"] = option("linear", "head: linear (Otake 2023), or conv")
    pooling: Literal["mean", "statistics", "attentive"] = option("mean", "how the head pools frames")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train and self.corpus_root:
            raise ConfigError("give --train, --dev and --test, or --corpus-root, not both.")


class Intent(Task):
    """One label or several slots an utterance, scored by accuracy."""

    name, metric = "intent", "accuracy"

    @property
    def keys(self) -> tuple[str, ...]:
        return self.config.slots or (self.config.label_field,)

    def corpora(self) -> list[Corpus]:
        config = self.config
        if given := Corpus.given(config.train, config.dev, config.test, self.keys):
            return [given.check_speakers()]
        from speech_adapters.corpora.demo import demo_root, prepare_demo

        if config.corpus_root is not None:
            from speech_adapters.corpora import prepare_fluent_speech_commands

            paths = prepare_fluent_speech_commands(config.corpus_root, demo_root().parent / "fluent_speech_commands")
            return [Corpus.read(paths["train"], paths["dev"], paths["test"], "Fluent Speech Commands", self.keys)]
        print("No data was named: using the demo corpus (synthetic speech). See --help for real ones.\n")
        demo = prepare_demo()
        return [Corpus.read(demo.train, demo.dev, demo.test, "demo", self.keys).check_speakers()]

    def head(self, corpus: Corpus):
        from speech_adapters.heads import ClassificationHead, SlotsHead

        options = {"network": self.config.network, "pooling": self.config.pooling}
        if self.config.slots:
            return SlotsHead(slots={slot: corpus.train.values(slot) for slot in self.config.slots}, **options)
        (field,) = self.keys
        return ClassificationHead(labels=corpus.train.values(field), label_field=field, **options)

    def score(self, model, corpus: Corpus, run, name: str):
        from speech_adapters.data.predictions import write_predictions
        from speech_adapters.tasks.classification import evaluate_classification
        from speech_adapters.tasks.slots import evaluate_slots

        training = self.config.training
        options = {"batch_seconds": 2 * training.batch_seconds, "precision": training.precision}
        if self.config.slots:
            return evaluate_slots(model, corpus.test, **options)
        (field,) = self.keys
        result = evaluate_classification(model, corpus.test, label_field=field, **options).result
        write_predictions(run.predictions(name), result)
        return result

    def combine(self, results):
        if self.config.slots:
            return {"metrics": reduce(add, results).to_dict()}
        from speech_adapters.metrics.classification import ClassificationResult

        metrics = (results[0] if len(results) == 1 else ClassificationResult.combine(results)).to_dict()
        return {"metrics": {"accuracy": metrics.pop("wa"), **metrics}}


if __name__ == "__main__":
    run_main(
        lambda: run_experiment(
            "intent_classification",
            Intent(parse_cli(Config, presets=PRESETS, default_preset="demo", description=__doc__)),
        )
    )
