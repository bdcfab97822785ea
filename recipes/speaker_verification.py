"""Train an adapter for speaker verification on a frozen encoder, next to honest baselines, and score it.

    python recipes/speaker_verification.py                               # demo corpus, packaged encoder, minutes
    python recipes/speaker_verification.py --train train.jsonl --test test.jsonl --trials trials.txt --adapter l
    python recipes/speaker_verification.py --preset voxceleb1 --corpus-root /data/voxceleb --trials veri_test2.txt

Training tells the training speakers apart; trials of other speakers are scored by the cosine of embeddings. The
baseline "frozen-mean" trains nothing: the cosine of the frozen encoder's mean-pooled features. A second, large-margin
stage follows with large_margin.updates above 0. Score other trial lists, calibrate, or normalise scores with
recipes/evaluate_verification.py.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.tasks.experiment import Corpus, ExperimentConfig, Task, run_experiment

PRESETS = {path.stem: path for path in (Path(__file__).parent / "speaker_verification").glob("*.yaml")}


@dataclass(kw_only=True)
class LargeMargin:
    """Large-margin fine-tuning: a short second stage with longer crops and a larger margin (Thienpondt et al., "The
    IDLab VoxSRC-20 submission", ICASSP 2021, section 3)."""

    updates: int = 0
    """Of the second stage; 0 leaves it out."""
    margin: float = 0.5
    crop_seconds: float = 6.0
    rate: float = 0.1
    """Learning rates, as a share of the first stage's."""

    def __post_init__(self) -> None:
        if self.updates < 0 or self.rate <= 0:
            raise ConfigError(f"large_margin: updates={self.updates}, rate={self.rate}: 0 or more, and above 0.")


@dataclass(kw_only=True)
class Config(ExperimentConfig):
    """An adapter and its baselines for speaker verification."""

    adapter: str = option("l", "preset of the adapter: l, el, elp, e, lora, houlsby, ...")
    train: Path | None = option(None, "manifest to train on; then --test and --trials too")
    test: Path | None = option(None, "manifest of the trials' utterances")
    trials: Path | None = option(None, 'trial list, "1 enrol test" a line')
    corpus_root: Path | None = option(None, "folder of VoxCeleb; then --trials too")
    train_set: Literal["voxceleb1_dev", "voxceleb2_dev"] = option("voxceleb1_dev", "what of VoxCeleb to train on")
    test_sets: tuple[str, ...] = option(
        ("voxceleb1_test",), "what of VoxCeleb holds the trials' utterances; add voxceleb1_dev for Vox1-E and H"
    )
    network: Literal["linear", "xvector", "ecapa"] = option(
        "linear", "head: linear with pooling, x-vector, ECAPA-TDNN"
    )
    pooling: Literal["mean", "statistics", "attentive"] = option("statistics", "of the linear head")
    embedding_size: int = option(256, "width of the embedding; Otake 2023: 768 with mean pooling and ce")
    channels: int = option(512, "width of the x-vector and ECAPA-TDNN layers")
    loss: Literal["ce", "am", "aam", "subcenter"] = option("aam", "softmax, or with an additive margin")
    margin: float = option(0.2, "of the margin losses")
    scale: float = option(30.0, "of the margin losses")
    cohort: int = option(0, "training utterances whose speakers' means normalise scores (adaptive s-norm); 0: none")
    large_margin: LargeMargin = field(default_factory=LargeMargin)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.train, self.test, self.trials)
        if self.corpus_root is not None:
            if self.train or self.test or not self.trials:
                raise ConfigError("--corpus-root takes --trials, and neither --train nor --test.")
        elif any(given) and not all(given):
            raise ConfigError("give --train, --test and --trials together, or none of them.")
        if self.training.evaluate_every:
            raise ConfigError("training.evaluate_every: other speakers have no dev loss; leave it at 0.")
        if self.large_margin.updates and self.loss == "ce":
            raise ConfigError("large_margin.updates needs a loss with a margin: am, aam or subcenter.")


class Speaker(Task):
    """Speakers told apart in training, embeddings compared in trials; scored by EER, minDCF and minCllr."""

    name, metric = "speaker", "eer"

    def corpora(self) -> list[Corpus]:
        from speech_adapters.data.trials import UtteranceIndex, read_trials, resolve, trial_speakers

        config = self.config
        if config.corpus_root is not None:
            from speech_adapters.corpora import prepare_voxceleb
            from speech_adapters.corpora.demo import demo_root

            paths = prepare_voxceleb(config.corpus_root, demo_root().parent / "voxceleb", [config.trials])
            missing = [name for name in (config.train_set, *config.test_sets) if name not in paths]
            if missing:
                raise ConfigError(f"{config.corpus_root} holds no {missing[0]}; there are {', '.join(paths)}.")
            tests = [Manifest.read(paths[name], ("speaker",)) for name in config.test_sets]
            test, trials = sum(tests[1:], tests[0]), config.trials
            corpus = Corpus(Manifest.read(paths[config.train_set], ("speaker",)), None, test, config.train_set)
        elif config.train is not None:
            trials = config.trials
            corpus = Corpus.read(config.train, None, config.test, config.train.stem, ("speaker",), check_files=True)
        else:
            from speech_adapters.corpora.demo import prepare_demo

            demo = prepare_demo()
            print("No data was named: using the demo corpus (synthetic speech). See --help for real ones.\n")
            trials = demo.trials("test")
            corpus = Corpus.read(demo.train, None, demo.test, "demo", ("speaker",))
        self.trials = read_trials(trials)
        resolved = resolve(self.trials, UtteranceIndex.of_manifest(corpus.test))
        self.speakers = trial_speakers(resolved, [utterance.speaker for utterance in corpus.test])
        return [corpus.check_speakers()]

    def check(self, corpus: Corpus, encoder) -> None:
        from speech_adapters.data.batches import check_before_training

        check_before_training(corpus.train, encoder, self.head(corpus))
        check_before_training(corpus.test, encoder)  # its speakers are others than the head's

    def head(self, corpus: Corpus):
        from speech_adapters.heads import SpeakerHead

        config = self.config
        return SpeakerHead(
            speakers=corpus.train.speakers,
            network=config.network,
            pooling=config.pooling,
            embedding_size=config.embedding_size,
            channels=config.channels,
            loss=config.loss,
            margin=config.margin,
            scale=config.scale,
        )

    def train(self, model, corpus: Corpus, settings, run, name: str):
        first = super().train(model, corpus, settings, run, name)
        stage = self.config.large_margin
        if not stage.updates:
            return first
        model.head.config = replace(model.head.config, margin=stage.margin)
        rates = {group: stage.rate * rate for group, rate in model.learning_rates(settings.learning_rates).items()}
        further = replace(
            settings, updates=stage.updates, crop_seconds=stage.crop_seconds, learning_rates=rates, warmup=0.0
        )
        return first + super().train(model, corpus, further, run, f"{name}-large-margin")

    def evaluate(self, model, corpus: Corpus):
        from speech_adapters.data.embeddings import extract_embeddings
        from speech_adapters.tasks.verification import evaluate_verification, speaker_means

        training = self.config.training
        options = {"batch_seconds": 2 * training.batch_seconds, "precision": training.precision}
        cohort, top = None, 300
        if size := min(self.config.cohort, len(corpus.train)):
            part = corpus.train.subset(size=size, seed=0)
            cohort = speaker_means(extract_embeddings(model, part, **options), part)
            top = min(top, len(cohort))
        return evaluate_verification(model, self.trials, corpus.test, cohort=cohort, top=top, **options)

    def score(self, model, corpus: Corpus, run, name: str):
        from speech_adapters.data.score_files import write_scores

        result = self.evaluate(model, corpus).result
        write_scores(run.scores(name), self.trials, result.scores)
        return result

    def combine(self, results):
        from speech_adapters.tasks.verification import mean_metrics

        if len(results) == 1:
            return {"metrics": results[0].to_dict()}
        return {"metrics": mean_metrics(results, self.speakers)}

    def untrained(self, encoder, corpora, run):
        from speech_adapters.model import SpeechAdapterModel

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = SpeechAdapterModel(copy.deepcopy(encoder)).to(device)
        scored = self.evaluate(model, corpora[0])
        self._add_chart(run, "frozen-mean", scored.result)
        figures = {
            "metrics": scored.result.to_dict(),
            "parameters": model.count_parameters(),
            "seconds": scored.seconds,
        }
        return {"frozen-mean": figures}

    def keep(self, result, corpus: Corpus, run) -> None:
        self._add_chart(run, self.config.adapter, result)

    def _add_chart(self, run, name: str, result) -> None:
        from speech_adapters.files import read_json, write_json
        from speech_adapters.reports.detection_charts import chart_data
        from speech_adapters.tasks.verification import P_TARGETS

        drawn = read_json(run.detection_file) if run.detection_file.exists() else {}
        write_json(run.detection_file, drawn | {name: chart_data(result.curve, P_TARGETS)})


if __name__ == "__main__":
    run_main(
        lambda: run_experiment(
            "speaker_verification",
            Speaker(parse_cli(Config, presets=PRESETS, default_preset="demo", description=__doc__)),
        )
    )
