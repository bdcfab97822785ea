"""Train an adapter for speech recognition on a frozen encoder, next to honest baselines, and score it.

    python recipes/asr_librispeech.py                                    # demo corpus, packaged encoder, minutes
    python recipes/asr_librispeech.py --preset librispeech_10h --librispeech-root /data/LibriSpeech \\
        --encoder microsoft/wavlm-base-plus
    python recipes/asr_librispeech.py --train train.jsonl --dev dev.jsonl --test test.jsonl --adapter lora

Without --train, LibriSpeech is used when it is found (--librispeech-root, or the variable LIBRISPEECH_ROOT), else the
demo corpus, which is synthesised on first use. Every method trains with the same data, updates and seeds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Positive
from speech_adapters.tasks.base import Corpus, ExperimentConfig
from speech_adapters.tasks.recognition_settings import RecognitionSettings

if TYPE_CHECKING:
    from speech_adapters.tasks.experiment import Experiment

PRESETS = {path.stem: path for path in (Path(__file__).parent / "asr_librispeech").glob("*.yaml")}
HINT = """LibriSpeech was not found (give --librispeech-root or set LIBRISPEECH_ROOT; to get it:
  python -c "from speech_adapters.corpora import download_librispeech as d
d('data', ['train-clean-100', 'dev-other', 'dev-clean'])"
)"""


@dataclass(kw_only=True)
class Config(RecognitionSettings, ExperimentConfig):
    """An adapter and its baselines for speech recognition."""

    train: Path | None = option(
        None, "manifest to train on; then --dev too, and --test to score other speech", file=True
    )
    dev: Path | None = option(None, "manifest that chooses the state to keep (training.evaluate_every)", file=True)
    test: Path | None = option(None, "manifest to score", file=True)
    librispeech_root: Path | None = option(None, "folder LibriSpeech was unpacked in (holds train-clean-100, ...)")
    train_subset: str = option("train-clean-100", "LibriSpeech subset to train on")
    test_subset: str = option("dev-clean", "LibriSpeech subset to score; the published 10 h protocol scores dev-clean")
    train_hours: Positive | None = option(None, "how many hours of the training set to use, drawn with the first seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.crop_seconds is not None:
            raise ConfigError("training.crop_seconds cuts speech but not its text; leave it at null for recognition.")


def find_corpus(config: Config) -> Corpus:
    """Manifests as given, else LibriSpeech where it is, else the demo corpus."""
    if given := Corpus.given(config.train, config.dev, config.test, ("text",), config.channel):
        corpus = given
    elif root := config.librispeech_root or os.environ.get("LIBRISPEECH_ROOT"):
        from speech_adapters.corpora.demo import demo_root
        from speech_adapters.corpora.librispeech import find_librispeech, prepare_librispeech

        folder = demo_root().parent / "librispeech"
        subsets = list(dict.fromkeys([config.train_subset, "dev-other", config.test_subset]))
        paths = prepare_librispeech(find_librispeech(root), folder, subsets)
        used = (paths[subset] for subset in (config.train_subset, "dev-other", config.test_subset))
        corpus = Corpus.read(*used, name="LibriSpeech", require=("text",))
    else:
        corpus = Corpus.demo(("text",), HINT)
    if config.train_hours is not None:
        corpus = replace(corpus, train=corpus.train.subset(hours=config.train_hours, seed=config.seeds[0]))
    return corpus.check_speakers()


def experiment(config: Config) -> Experiment:
    """What is trained and scored."""
    from speech_adapters.tasks.experiment import Experiment

    task = config.recognition(config.encoder)
    return Experiment("asr_librispeech", config, task, lambda: [find_corpus(config)])


def main(config: Config) -> Any:
    from speech_adapters.tasks.experiment import run_experiment

    return run_experiment(*experiment(config))


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, description=__doc__, recipe="asr_librispeech")))
