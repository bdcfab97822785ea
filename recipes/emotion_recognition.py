"""Train an adapter for emotion recognition on a frozen encoder, next to honest baselines, and score it.

    python recipes/emotion_recognition.py                                # demo corpus, packaged encoder, minutes
    python recipes/emotion_recognition.py --train train.jsonl --dev dev.jsonl --test test.jsonl --adapter l
    python recipes/emotion_recognition.py --preset iemocap --corpus-root /data/IEMOCAP_full_release
    python recipes/emotion_recognition.py --manifest all.jsonl --folds 5-fold     # cross-validation, speaker-disjoint

The main figure is UA (unweighted average recall): the mean of the classes' recalls. Folds are pooled before it is
computed. Any other single label works too: --label-field names its key in the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.experiment import Corpus, ExperimentConfig, Task, run_experiment

PRESETS = {path.stem: path for path in (Path(__file__).parent / "emotion_recognition").glob("*.yaml")}

#: Published folds of each corpus: speakers, or sessions of two speakers, are never on both sides.
FOLDS = {
    "iemocap": "leave-one-session-out",
    "crema_d": "5-fold",
    "ravdess": "6-fold",
    "emodb": "leave-one-speaker-out",
}


@dataclass(kw_only=True)
class Config(ExperimentConfig):
    """An adapter and its baselines for emotion recognition."""

    adapter: str = option("l", "preset of the adapter: l, el, elp, e, lora-ffn, houlsby, ...")
    train: Path | None = option(None, "manifest to train on; then --dev and --test too")
    dev: Path | None = option(None, "manifest for early stopping and dev loss")
    test: Path | None = option(None, "manifest to score")
    manifest: Path | None = option(None, "one manifest to divide into folds; then --folds too")
    corpus: Literal["iemocap", "crema_d", "ravdess", "emodb"] | None = option(None, "a corpus by name")
    corpus_root: Path | None = option(None, "folder the corpus was unpacked in")
    folds: str | None = option(
        None,
        "leave-one-session-out, leave-one-speaker-out, 5-fold (of whole speakers), or otake2023 (random; see there); "
        "each corpus has its own by default",
    )
    label_field: str = option("emotion", "key of the manifest that holds the class")
    network: Literal["linear", "conv"] = option("linear", "head: linear (Otake 2023), or conv (PEFT-SER)")
    pooling: Literal["mean", "statistics", "attentive"] = option("mean", "how the head pools frames")
    class_weights: bool = option(True, "weigh classes in the loss by their rarity, as UA does")


class Emotion(Task):
    """One label an utterance, scored by UA, WA and macro-F1."""

    name, metric = "emotion", "ua"

    def corpora(self) -> list[Corpus]:
        """Manifests as given, a corpus or manifest in folds, or the demo corpus."""
        config = self.config
        require = (config.label_field, "speaker")
        if given := Corpus.given(config.train, config.dev, config.test, require):
            return [given.check_speakers()]
        if config.manifest or config.corpus:
            return self._folds(*self._whole(require))
        if config.folds or config.corpus_root:
            raise ConfigError("--folds and --corpus-root need --corpus or --manifest: what is to be divided?")
        from speech_adapters.corpora.demo import prepare_demo

        demo = prepare_demo()
        print("No data was named: using the demo corpus (synthetic speech). See --help for real ones.\n")
        return [Corpus.read(demo.train, demo.dev, demo.test, "demo", require).check_speakers()]

    def _whole(self, require: tuple[str, ...]) -> tuple[Manifest, str]:
        """The whole corpus, and its protocol."""
        config = self.config
        if config.manifest and config.corpus:
            raise ConfigError("give --manifest or --corpus, not both.")
        if config.manifest:
            if config.folds is None:
                raise ConfigError("--manifest needs --folds: how is it to be divided?")
            return Manifest.read(config.manifest, require, check_files=True), config.folds
        if config.corpus_root is None:
            raise ConfigError(f"--corpus {config.corpus} needs --corpus-root: the folder it was unpacked in.")
        from speech_adapters.corpora.demo import demo_root

        module = import_module(f"speech_adapters.corpora.{config.corpus}")
        prepare = getattr(module, f"prepare_{config.corpus}")
        path = prepare(config.corpus_root, demo_root().parent / config.corpus)
        return Manifest.read(path, require), config.folds or FOLDS[config.corpus]

    def _folds(self, manifest: Manifest, protocol: str) -> list[Corpus]:
        from speech_adapters.corpora.folds import make_folds

        name = f"{self.config.corpus or manifest.name}, {protocol}"
        folds = make_folds(manifest, protocol, label_field=self.config.label_field)
        corpora = [Corpus(fold.train, fold.dev, fold.test, name) for fold in folds]
        return corpora if protocol == "otake2023" else [corpus.check_speakers() for corpus in corpora]

    def head(self, corpus: Corpus):
        from speech_adapters.heads import ClassificationHead, balanced_class_weights

        config = self.config
        labels = sorted({label for split in corpus.splits.values() for label in split.values(config.label_field)})
        weights = balanced_class_weights(corpus.train, labels, config.label_field)
        return ClassificationHead(
            labels=tuple(labels),
            label_field=config.label_field,
            network=config.network,
            pooling=config.pooling,
            class_weights=weights if config.class_weights else None,
        )

    def score(self, model, corpus: Corpus, run, name: str):
        from speech_adapters.data.predictions import write_predictions
        from speech_adapters.tasks.classification import evaluate_classification

        training = self.config.training
        result = evaluate_classification(
            model,
            corpus.test,
            label_field=self.config.label_field,
            batch_seconds=2 * training.batch_seconds,
            precision=training.precision,
        ).result
        write_predictions(run.predictions(name), result)
        return result

    def combine(self, results):
        from speech_adapters.metrics.classification import ClassificationResult

        combined = results[0] if len(results) == 1 else ClassificationResult.combine(results)
        return {"metrics": combined.to_dict()}

    def keep(self, result, corpus: Corpus, run) -> None:
        from speech_adapters.files import write_json
        from speech_adapters.tasks.classification import confident_mistakes

        write_json(run.worst_file, confident_mistakes(result, corpus.test))


if __name__ == "__main__":
    run_main(
        lambda: run_experiment(
            "emotion_recognition",
            Emotion(parse_cli(Config, presets=PRESETS, default_preset="demo", description=__doc__)),
        )
    )
