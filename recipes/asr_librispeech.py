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
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.errors import ConfigError
from speech_adapters.manifest import Manifest, check_disjoint
from speech_adapters.training.settings import TrainingConfig

PRESETS = {path.stem: path for path in (Path(__file__).parent / "asr_librispeech").glob("*.yaml")}


@dataclass(kw_only=True)
class Config:
    """One comparison: an adapter and its baselines on one encoder and corpus."""

    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    adapter: str = option("elp", "preset of the adapter: elp, el, l, e, lora, houlsby, pfeiffer, parallel, ...")
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the preset to change, such as ``e_size`` or ``rank``."""
    baselines: tuple[str, ...] = option(("head-only",), "presets trained beside it; add full for full fine-tuning")
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
    seeds: tuple[int, ...] = option((0,), "one training run a method and seed; figures are means over seeds")
    output: Path | None = option(None, "run folder; runs/asr_librispeech/<time> by default")
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class Corpus:
    """Speaker-disjoint manifests and where they came from."""

    train: Manifest
    dev: Manifest
    test: Manifest
    name: str


def find_corpus(config: Config) -> Corpus:
    """Manifests as given, else LibriSpeech where it is, else the demo corpus."""
    if config.train or config.dev or config.test:
        if not (config.train and config.dev and config.test):
            raise ConfigError("give --train, --dev and --test together, or none of them.")
        sets = [
            Manifest.read(path, require=("text",), check_files=True)
            for path in (config.train, config.dev, config.test)
        ]
        name = config.train.stem
    elif root := config.librispeech_root or os.environ.get("LIBRISPEECH_ROOT"):
        from speech_adapters.corpora.demo import demo_root
        from speech_adapters.corpora.librispeech import find_librispeech, prepare_librispeech

        folder = demo_root().parent / "librispeech"
        subsets = list(dict.fromkeys([config.train_subset, "dev-other", config.test_subset]))
        paths = prepare_librispeech(find_librispeech(root), folder, subsets)
        sets = [
            Manifest.read(paths[s], require=("text",)) for s in (config.train_subset, "dev-other", config.test_subset)
        ]
        name = "LibriSpeech"
    else:
        from speech_adapters.corpora.demo import prepare_demo

        print(
            "LibriSpeech was not found: using the demo corpus (synthetic speech, 59 minutes of training).\n"
            "For the real one, give --librispeech-root or set LIBRISPEECH_ROOT; to get it:\n"
            '  python -c "from speech_adapters.corpora import download_librispeech as d; '
            "d('data', ['train-clean-100', 'dev-other', 'dev-clean'])\"\n"
        )
        demo = prepare_demo()
        sets = [Manifest.read(path, require=("text",)) for path in (demo.train, demo.dev, demo.test)]
        name = "demo"
    train, dev, test = sets
    if config.train_hours is not None:
        train = train.subset(hours=config.train_hours, seed=config.seeds[0])
    check_disjoint(train, dev)
    check_disjoint(train, test)
    return Corpus(train, dev, test, name)


def make_head(config: Config, corpus: Corpus):
    """The CTC head: vocabulary and normaliser."""
    from speech_adapters.heads import CTCHead
    from speech_adapters.text import Vocabulary, normalize

    if config.vocabulary == "wav2vec2":
        vocabulary = Vocabulary.wav2vec2()
    elif config.vocabulary == "characters":
        vocabulary = Vocabulary.from_texts(normalize(u.text, config.normalizer) for u in corpus.train)
    else:
        raise ConfigError(f"vocabulary={config.vocabulary!r}: choose wav2vec2 or characters.")
    return CTCHead(vocabulary, normalizer=config.normalizer, hidden_size=config.head_hidden_size)


def run_method(config: Config, corpus: Corpus, encoder, head, method: str, options: dict, seed: int, run) -> dict:
    """Train one method with one seed, score it, keep it; returns its figures."""
    import copy
    from dataclasses import replace

    from accelerate import PartialState

    from speech_adapters.adapters import preset
    from speech_adapters.evaluation.asr import evaluate_asr
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.training.data import SpeechDataset, ctc_target
    from speech_adapters.training.trainer import train

    settings = replace(config.training, seed=seed)
    torch.manual_seed(seed)
    model = SpeechAdapterModel(copy.deepcopy(encoder))
    name = method if len(config.seeds) == 1 else f"{method}-seed{seed}"
    model.add_adapter(name, preset(method, "asr", **options))
    model.add_head("asr", head)
    model.train_adapter(name, head="asr")
    rates = {group: rate for group, rate in settings.learning_rates.items() if group in model.parameter_groups()}
    settings = replace(settings, learning_rates=rates)
    target = ctc_target(head)
    trained = train(
        model,
        SpeechDataset(corpus.train, target, settings.augmentation, seed),
        settings,
        run,
        SpeechDataset(corpus.dev, target),
        method=name,
    )
    if not PartialState().is_main_process:  # under torchrun all train, one scores
        return {}
    scored = evaluate_asr(model, corpus.test, batch_seconds=2 * settings.batch_seconds, precision=settings.precision)
    model.save_adapter(name, run.adapter(name), wer=scored.result.wer.to_dict(), data=corpus.test.name)
    model.save_head("asr", run.head(name))
    scored.result.save_trn(run.trn(name))
    weights = {n: p.softmax(0).tolist() for n, p in model.adapters[name].named_parameters() if "layer_weights" in n}
    return {
        "method": method,
        "result": scored.result,
        "parameters": model.count_parameters(),
        "seconds": trained.seconds,
        "audio_seconds_per_second": trained.audio_seconds_per_second,
        "peak_memory_bytes": trained.peak_memory_bytes,
        "layer_weights": next(iter(weights.values()), None),
    }


def combine_seeds(runs: list[dict]) -> dict:
    """Figures of one method: means over seeds; intervals by speaker over all seeds' errors."""
    from speech_adapters.evaluation.bootstrap import bootstrap

    results = [run["result"] for run in runs]
    scores = [score for result in results for score in result.utterances]
    speakers = [score.speaker for score in scores]
    by_speaker = speakers if all(speakers) else None
    metrics = {
        "wer": bootstrap([s.errors for s in scores], [s.words for s in scores], by_speaker).to_dict(),
        "cer": bootstrap([s.character_errors for s in scores], [s.characters for s in scores], by_speaker).to_dict(),
    }
    for count in ("words", "characters", "substitutions", "deletions", "insertions"):
        metrics[count] = round(sum(getattr(result, count) for result in results) / len(results))
    mean = {key: sum(run[key] for run in runs) / len(runs) for key in ("seconds", "audio_seconds_per_second")}
    return {
        "metrics": metrics,
        "wer_by_seed": [result.wer.value for result in results],
        "parameters": runs[0]["parameters"],
        **mean,
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
    }


def main(config: Config) -> None:
    from accelerate import PartialState

    from speech_adapters.adapters import preset
    from speech_adapters.encoders import load_encoder
    from speech_adapters.evaluation.asr import worst_utterances
    from speech_adapters.evaluation.report import method_rows, summary_table, write_report
    from speech_adapters.files import write_json
    from speech_adapters.training.data import check_before_training
    from speech_adapters.training.run_folder import RunFolder, environment

    processes = PartialState(cpu=not torch.cuda.is_available())
    encoder = load_encoder(config.encoder)
    with processes.main_process_first():
        corpus = find_corpus(config)
    head = make_head(config, corpus)
    for manifest in (corpus.train, corpus.dev, corpus.test):
        check_before_training(manifest, encoder, head)
    methods = {config.adapter: config.adapter_options}
    methods |= {name: {} for name in config.baselines if name not in methods}
    for method, options in methods.items():
        preset(method, "asr", **options)  # a typing mistake shows now, not after an hour
    run = RunFolder.create("asr_librispeech", path=config.output)
    run.save_config(config)
    processes.print(f"{encoder!r}\ntrain {corpus.train.summary()}\ntest  {corpus.test.summary()}\nrun   {run.path}\n")

    started = time.perf_counter()
    figures: dict[str, dict] = {}
    for method, options in methods.items():
        runs = [run_method(config, corpus, encoder, head, method, options, seed, run) for seed in config.seeds]
        if not processes.is_main_process:
            continue
        figures[method] = combine_seeds(runs)
        wer, seconds = figures[method]["metrics"]["wer"], figures[method]["seconds"]
        print(f"{method}: WER {wer['value']:.1%} [{wer['low']:.1%}, {wer['high']:.1%}], {seconds:.0f} s")
        if method == config.adapter:
            write_json(run.worst_file, worst_utterances(runs[0]["result"], corpus.test))
            if runs[0]["layer_weights"]:
                write_json(run.layer_weights_file, {method: runs[0]["layer_weights"]})

    if not processes.is_main_process:
        return
    own = figures.pop(config.adapter)
    results = {
        "task": "asr",
        "encoder": config.encoder,
        "adapter": config.adapter,
        "data": {"corpus": corpus.name} | {s: getattr(corpus, s).describe() for s in ("train", "dev", "test")},
        **own,
        "baselines": figures,
        "updates": config.training.updates,
        "seeds": list(config.seeds),
        "total_seconds": time.perf_counter() - started,
        **environment(),
    }
    run.write_results(results)
    report = write_report(run.path)
    print(f"\n{summary_table(method_rows(results))}\n\nreport  {report}\nadapter {run.path / 'adapters'}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, default_preset="demo", description=__doc__)))
