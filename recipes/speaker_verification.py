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

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.heads.margin import Margin
from speech_adapters.ranges import CountOrNone, Positive, Size
from speech_adapters.tasks.base import Corpus, ExperimentConfig
from speech_adapters.tasks.large_margin import LargeMargin

PRESETS = {path.stem: path for path in (Path(__file__).parent / "speaker_verification").glob("*.yaml")}


@dataclass(kw_only=True)
class Config(ExperimentConfig):
    """An adapter and its baselines for speaker verification."""

    adapter: str = option("l", "preset of the adapter: l, el, elp, e, lora, houlsby, ...")
    train: Path | None = option(None, "manifest to train on; then --test and --trials too", file=True)
    test: Path | None = option(None, "manifest of the trials' utterances", file=True)
    trials: Path | None = option(None, 'trial list, "1 enrol test" per line', file=True)
    columns: tuple[str, ...] = option(
        (), "columns of trials that are a table (csv, tsv, jsonl): enrol=file1,test=file2,label=same"
    )
    corpus_root: Path | None = option(None, "folder of VoxCeleb; then --trials too")
    train_set: Literal["voxceleb1_dev", "voxceleb2_dev"] = option("voxceleb1_dev", "what of VoxCeleb to train on")
    test_sets: tuple[str, ...] = option(
        ("voxceleb1_test",), "what of VoxCeleb holds the trials' utterances; add voxceleb1_dev for Vox1-E and H"
    )
    network: Literal["linear", "xvector", "ecapa"] = option(
        "linear", "head: linear with pooling, x-vector, ECAPA-TDNN"
    )
    pooling: Literal["mean", "statistics", "attentive"] = option("statistics", "of the linear head")
    embedding_size: Size = option(256, "width of the embedding; Otake 2023: 768 with mean pooling and ce")
    channels: Size = option(512, "width of the x-vector and ECAPA-TDNN layers")
    loss: Literal["ce", "am", "aam", "subcenter"] = option("aam", "softmax, or with an additive margin")
    margin: Margin = option(0.2, "of the margin losses")
    scale: Positive = option(30.0, "of the margin losses")
    cohort: CountOrNone = option(
        0, "training utterances whose speakers' means normalise scores (adaptive s-norm); 0: none"
    )
    large_margin: LargeMargin = field(default_factory=LargeMargin)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.train, self.test, self.trials)
        if self.corpus_root is not None:
            if self.train or self.test or not self.trials:
                raise ConfigError("--corpus-root takes --trials, and neither --train nor --test.")
        elif any(given) and not all(given):
            raise ConfigError("give --train, --test and --trials together, or none of them.")
        if self.columns and not self.trials:
            raise ConfigError("columns are those of --trials; give both.")
        if self.training.evaluate_every:
            raise ConfigError("training.evaluate_every: other speakers have no dev loss; leave it at 0.")
        if self.large_margin.updates and self.loss == "ce":
            raise ConfigError("large_margin.updates needs a loss with a margin: am, aam or subcenter.")


def find_corpus(config: Config) -> Corpus:
    """VoxCeleb where its folder is, manifests as given, else the demo corpus."""
    from speech_adapters.data.records import said_columns
    from speech_adapters.data.trials import COLUMNS, read_trials

    trials, columns = config.trials, said_columns(config.columns, COLUMNS)
    if config.corpus_root is not None:
        from speech_adapters.corpora import prepare_voxceleb
        from speech_adapters.corpora.demo import demo_root

        paths = prepare_voxceleb(config.corpus_root, demo_root().parent / "voxceleb", [trials])
        missing = [name for name in (config.train_set, *config.test_sets) if name not in paths]
        if missing:
            raise ConfigError(f"{config.corpus_root} holds no {missing[0]}; there are {', '.join(paths)}.")
        tests = [Manifest.read(paths[name], ("speaker",)) for name in config.test_sets]
        train, test = Manifest.read(paths[config.train_set], ("speaker",)), sum(tests[1:], tests[0])
        corpus = Corpus(train, None, test, config.train_set)
    elif config.train is not None:
        options = {"check_files": True, "channel": config.channel}
        corpus = Corpus.read(config.train, None, config.test, config.train.stem, ("speaker",), **options)
    else:
        from speech_adapters.corpora.demo import prepare_demo

        trials, columns = prepare_demo().trials("test"), {}
        corpus = replace(Corpus.demo(("speaker",)), dev=None)
    return replace(corpus, trials=read_trials(trials, columns=columns)).check_speakers()


def main(config: Config) -> Any:
    from speech_adapters.tasks.experiment import run_experiment
    from speech_adapters.tasks.verification import SpeakerVerification

    head = ("network", "pooling", "embedding_size", "channels", "loss", "margin", "scale")
    task = SpeakerVerification(
        {name: getattr(config, name) for name in head}, cohort=config.cohort, large_margin=config.large_margin
    )
    return run_experiment("speaker_verification", config, task, lambda: [find_corpus(config)])


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, description=__doc__, recipe="speaker_verification")))
