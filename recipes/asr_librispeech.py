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

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.experiment import Corpus, ExperimentConfig, Task, run_experiment

PRESETS = {path.stem: path for path in (Path(__file__).parent / "asr_librispeech").glob("*.yaml")}


@dataclass(kw_only=True)
class Config(ExperimentConfig):
    """An adapter and its baselines for speech recognition."""

    train: Path | None = option(None, "manifest to train on; then --dev and --test too")
    dev: Path | None = option(None, "manifest for early stopping and dev loss")
    test: Path | None = option(None, "manifest to score")
    librispeech_root: Path | None = option(None, "folder LibriSpeech was unpacked in (holds train-clean-100, ...)")
    train_subset: str = option("train-clean-100", "LibriSpeech subset to train on")
    test_subset: str = option("dev-clean", "LibriSpeech subset to score; the published 10 h protocol scores dev-clean")
    train_hours: float | None = option(None, "use so many hours of the training set, drawn with the first seed")
    vocabulary: str = option(
        "wav2vec2", "wav2vec2: that of wav2vec2-base-960h; characters: built from the training text"
    )
    normalizer: str = option("librispeech", "text normaliser, saved with the head")
    head_hidden_size: int | None = option(None, "a hidden layer in the CTC head; none by default, as published")


def find_corpus(config: Config) -> Corpus:
    """Manifests as given, else LibriSpeech where it is, else the demo corpus."""
    if given := Corpus.given(config.train, config.dev, config.test, require=("text",)):
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
        from speech_adapters.corpora.demo import prepare_demo

        print(
            "LibriSpeech was not found: using the demo corpus (synthetic speech, 59 minutes of training).\n"
            "For the real one, give --librispeech-root or set LIBRISPEECH_ROOT; to get it:\n"
            '  python -c "from speech_adapters.corpora import download_librispeech as d; '
            "d('data', ['train-clean-100', 'dev-other', 'dev-clean'])\"\n"
        )
        demo = prepare_demo()
        corpus = Corpus.read(demo.train, demo.dev, demo.test, name="demo", require=("text",))
    if config.train_hours is not None:
        corpus = replace(corpus, train=corpus.train.subset(hours=config.train_hours, seed=config.seeds[0]))
    return corpus.check_speakers()


class ASR(Task):
    """Characters by CTC, scored by WER and CER."""

    name, metric = "asr", "wer"

    def corpora(self) -> list[Corpus]:
        return [find_corpus(self.config)]

    def head(self, corpus: Corpus):
        """The CTC head: vocabulary and normaliser."""
        from speech_adapters.heads import CTCHead
        from speech_adapters.text import Vocabulary, normalize

        config = self.config
        if config.vocabulary == "wav2vec2":
            vocabulary = Vocabulary.wav2vec2()
        elif config.vocabulary == "characters":
            vocabulary = Vocabulary.from_texts(normalize(u.text, config.normalizer) for u in corpus.train)
        else:
            raise ConfigError(f"vocabulary={config.vocabulary!r}: choose wav2vec2 or characters.")
        return CTCHead(vocabulary, normalizer=config.normalizer, hidden_size=config.head_hidden_size)

    def score(self, model, corpus: Corpus, run, name: str):
        from speech_adapters.tasks.asr import evaluate_asr

        training = self.config.training
        batch_seconds = 2 * training.batch_seconds
        result = evaluate_asr(model, corpus.test, batch_seconds=batch_seconds, precision=training.precision).result
        result.save_trn(run.trn(name))
        return result

    def combine(self, results):
        """Intervals by speaker over all seeds' errors; mean counts."""
        from speech_adapters.tasks.asr import pooled_metrics

        return {"metrics": pooled_metrics(results)}

    def keep(self, result, corpus: Corpus, run) -> None:
        from speech_adapters.files import write_json
        from speech_adapters.tasks.asr import worst_utterances

        write_json(run.worst_file, worst_utterances(result, corpus.test))


if __name__ == "__main__":
    run_main(
        lambda: run_experiment(
            "asr_librispeech", ASR(parse_cli(Config, presets=PRESETS, default_preset="demo", description=__doc__))
        )
    )
