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
from typing import TYPE_CHECKING, Any, Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.base import Corpus, ExperimentConfig

if TYPE_CHECKING:
    from speech_adapters.tasks.experiment import Experiment

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
    train: Path | None = option(
        None, "manifest to train on; then --dev too, and --test to score other speech", file=True
    )
    dev: Path | None = option(None, "manifest that chooses the state to keep (training.evaluate_every)", file=True)
    test: Path | None = option(None, "manifest to score", file=True)
    manifest: Path | None = option(None, "one manifest to divide into folds; then --folds too", file=True)
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


def find_corpora(config: Config) -> list[Corpus]:
    """Manifests as given, a corpus or manifest in folds, or the demo corpus."""
    require = (config.label_field, "speaker")
    if given := Corpus.given(config.train, config.dev, config.test, require, config.channel):
        return [given.check_speakers()]
    if config.manifest or config.corpus:
        return make_folds(config, *whole_corpus(config, require))
    if config.folds or config.corpus_root:
        raise ConfigError("--folds and --corpus-root need --corpus or --manifest: what is to be divided?")
    return [Corpus.demo(require).check_speakers()]


def whole_corpus(config: Config, require: tuple[str, ...]) -> tuple[Manifest, str]:
    """The corpus that is to be divided, and its protocol."""
    if config.manifest and config.corpus:
        raise ConfigError("give --manifest or --corpus, not both.")
    if config.manifest:
        if config.folds is None:
            raise ConfigError("--manifest needs --folds: how is it to be divided?")
        return Manifest.read(config.manifest, require, check_files=True, channel=config.channel), config.folds
    if config.corpus_root is None:
        raise ConfigError(f"--corpus {config.corpus} needs --corpus-root: the folder it was unpacked in.")
    from speech_adapters.corpora.demo import demo_root

    module = import_module(f"speech_adapters.corpora.{config.corpus}")
    prepare = getattr(module, f"prepare_{config.corpus}")
    path = prepare(config.corpus_root, demo_root().parent / config.corpus)
    return Manifest.read(path, require), config.folds or FOLDS[config.corpus]


def make_folds(config: Config, manifest: Manifest, protocol: str) -> list[Corpus]:
    """A corpus per fold."""
    from speech_adapters.corpora import folds

    name = f"{config.corpus or manifest.name}, {protocol}"
    divided = folds.make_folds(manifest, protocol, label_field=config.label_field)
    corpora = [Corpus(fold.train, fold.dev, fold.test, name) for fold in divided]
    return corpora if protocol == "otake2023" else [corpus.check_speakers() for corpus in corpora]


def experiment(config: Config) -> Experiment:
    """What is trained and scored."""
    from speech_adapters.tasks.classification import Classification
    from speech_adapters.tasks.experiment import Experiment

    task = Classification(
        "emotion",
        label_field=config.label_field,
        network=config.network,
        pooling=config.pooling,
        class_weights=config.class_weights,
    )
    return Experiment("emotion_recognition", config, task, lambda: find_corpora(config))


def main(config: Config) -> Any:
    from speech_adapters.tasks.experiment import run_experiment

    return run_experiment(*experiment(config))


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, description=__doc__, recipe="emotion_recognition")))
