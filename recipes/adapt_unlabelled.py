"""Adapt a trained recogniser to each utterance or speaker without their texts, and see whether that is worth it.

    python recipes/adapt_unlabelled.py                                  # demo corpus, packaged encoder
    python recipes/adapt_unlabelled.py --adapter runs/asr_librispeech/latest --dev dev.jsonl --test test.jsonl
    python recipes/adapt_unlabelled.py --adapter DIR --dev dev.jsonl --test test.jsonl --methods entropy,speaker-code

Every method (speech_adapters/unlabelled/) is compared with the model as it is, on the same utterances: WER with
intervals by speaker, the paired difference, and the same for each `domain` of the test manifest. A method's learning
rate is the one with the lowest WER on --dev, whose speakers must be others; texts serve for scoring alone. The model
forgets each utterance (entropy, prompt) or speaker (speaker-code) before the next. Again with the same --output, a
stopped run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.audio_suffixes import READABLE
from speech_adapters.data.manifest import Channel, Manifest, check_disjoint
from speech_adapters.data.windows import Windows
from speech_adapters.errors import ConfigError, shown
from speech_adapters.ranges import Positive, Rate, Seed, Size
from speech_adapters.tasks.downstream import Downstream

PRESETS = {path.stem: path for path in (Path(__file__).parent / "adapt_unlabelled").glob("*.yaml")}
RATES = {"entropy": (2.0e-5, 2.0e-4), "speaker-code": (0.003, 0.01)}
"""Tried on dev speech where ``learning_rates`` says none: the published one is for wav2vec 2.0 Base under 960 h of
labels, ten times it for less."""
DEMO_LIMIT = 40
"""Utterances of the demo's dev and test each: ten steps cost twenty times as much as listening."""
Name = Literal["entropy", "speaker-code", "prompt"]


@dataclass(kw_only=True)
class Config:
    """A recogniser, speech to adapt it to, and methods."""

    adapter: Path | None = option(
        None, "folder of a trained adapter, or of its run; one is trained on the demo without"
    )
    head: Path | None = option(None, "folder of its head, where it cannot be found from the adapter")
    encoder: str | None = option(None, "its base, where its name in the file is not to be found here")
    test: Path | None = option(None, "manifest to adapt to and score; texts are for scoring alone", file=True)
    dev: Path | None = option(None, "manifest of other speakers, to choose learning rates on", file=True)
    source: Path | None = option(
        None, "manifest of speech like that the adapter was trained on, for prompt", file=True
    )
    source_utterances: Size = option(100, "how many of them give the statistics")
    channel: Channel | None = option(
        None, "heard of files with several, where a line does not say it: a number, or mix"
    )
    methods: tuple[Name, ...] = option(("entropy", "speaker-code"), "entropy, speaker-code and prompt, or some")
    learning_rates: dict[str, tuple[Rate, ...]] = field(default_factory=dict)
    """Of each method: one, or several to choose from on dev; without, those of RATES with --dev, else the method's
    own default."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other settings of each method: ``{entropy: {steps: 20}}``."""
    minutes: Positive = option(10.0, "most speech of a speaker that speaker-code adapts to; all of it is scored")
    window: Positive = option(20.0, "longest piece heard at once, in seconds")
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "of all forwards; auto: bf16 where that is fast")
    seeds: tuple[Seed, ...] = option((0,), "of prompt's search; the other methods draw nothing")
    limit: Size | None = option(None, "how many utterances of each manifest, drawn with the first seed (demo: 40)")
    training: Downstream = field(default_factory=Downstream)
    """What trains the demo's adapter, on its studio speech."""
    output: Path | None = option(None, "run folder; one that holds the same run goes on")
    resume: str | None = option(None, "latest, or a run folder: go on with that run")

    def __post_init__(self) -> None:
        if (self.adapter is None) != (self.test is None):
            raise ConfigError("give --adapter and --test together, or neither for the demo.")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"methods={self.methods}: name one or more, each once.")
        if "prompt" in self.methods and self.test is not None and self.source is None:
            raise ConfigError("prompt needs --source, speech like that the adapter was trained on.")
        for key, settings in (("learning_rates", self.learning_rates), ("options", self.options)):
            if unused := sorted(set(settings) - set(self.methods)):
                value = shown(settings[unused[0]])
                raise ConfigError(f"{key}.{unused[0]}={value}: is for none of the methods {', '.join(self.methods)}.")
        if "prompt" in self.learning_rates:
            raise ConfigError("learning_rates.prompt=: it has none; its search has a step size, options.prompt.sigma.")
        if any(len(rates) != 1 for rates in self.learning_rates.values()) and self.test and not self.dev:
            raise ConfigError("learning_rates: several to choose from need --dev, with other speakers than --test.")
        if not self.seeds:
            raise ConfigError("seeds: give one or more, such as --seeds 0,1,2.")


def find_speech(config: Config) -> tuple[Manifest, Manifest | None, Manifest | None]:
    """Test, dev and source speech."""
    if config.test is None:
        from speech_adapters.corpora.demo import prepare_demo

        print("No data was named: using the demo corpus (synthetic speech). See --help for real ones.\n")
        demo = prepare_demo()
        test, dev, train = (Manifest.read(path) for path in (demo.test, demo.dev, demo.train))
        test, dev = (manifest.filter(lambda u: u.domain != "studio") for manifest in (test, dev))
        source = train.filter(lambda u: u.domain == "studio")
    else:
        if config.test.is_dir() or config.test.suffix.lower() in READABLE:
            raise ConfigError(without_texts(config, "recordings, not a manifest with their texts", config.test))
        read = [path and Manifest.read(path, check_files=True, channel=config.channel)
                for path in (config.test, config.dev, config.source)]  # fmt: skip
        test, dev, source = read
        if not any(utterance.has("text") for utterance in test):
            raise ConfigError(without_texts(config, "no line has a text", "RECORDINGS"))
        test.require("text", "speaker")
        if dev is not None:
            check_disjoint(dev.require("text", "speaker"), test)
    limit = config.limit or (DEMO_LIMIT if config.test is None else None)
    if limit is not None:
        test, dev = (m and m.subset(size=min(limit, len(m)), seed=config.seeds[0]) for m in (test, dev))
    return test, dev, source


def without_texts(config: Config, found: str, recordings: Path | str) -> str:
    """Why recordings without texts cannot be compared on, and what adapts to them all the same."""
    return (
        f"{config.test}: {found}; methods are compared by what was said. To adapt to recordings without texts, and "
        f"write them down: speech-adapters transcribe --adapter {config.adapter} --adapt entropy {recordings}"
    )


def find_model(config: Config, source: Manifest | None, run):
    """The trained model; the demo's is trained on the source speech, or found in the run folder."""
    from speech_adapters.encoders import load_encoder
    from speech_adapters.tasks.saved_model import load_saved

    if config.adapter is not None:
        return load_saved(config.adapter, config.head, config.encoder)
    encoder = load_encoder(config.encoder or "tiny-wavlm")
    task = config.training
    task.check(source, source, encoder)
    return task.train(encoder, task.head(source), source, run, "source", config.seeds[0]).eval()


def make(config: Config, name: str, model, source: Manifest | None, windows: Windows):
    """A method with the run's settings, prompt with its statistics."""
    from speech_adapters.inference.recordings import of_utterances
    from speech_adapters.unlabelled import Entropy, Prompt, SpeakerCode, source_statistics

    options = config.options.get(name, {})
    if name == "prompt":
        few = source.subset(size=min(config.source_utterances, len(source)), seed=config.seeds[0])
        return Prompt(source=source_statistics(model, of_utterances(few), windows), **options)
    return {"entropy": Entropy, "speaker-code": SpeakerCode}[name](**options)


def units(name: str, manifest: Manifest) -> Iterator[list[Any]]:
    """What is adapted to together: an utterance, or a speaker's."""
    if name != "speaker-code":
        return ([utterance] for utterance in manifest)
    keys = dict.fromkeys((utterance.speaker, utterance.domain) for utterance in manifest)
    return ([u for u in manifest if (u.speaker, u.domain) == key] for key in keys)


def up_to(utterances: list[Any], minutes: float) -> list[Any]:
    """The first utterances that make up so many minutes; one at least."""
    seconds, kept = 0.0, []
    for utterance in utterances:
        if kept and seconds + utterance.duration > 60 * minutes:
            break
        kept.append(utterance)
        seconds += utterance.duration
    return kept


class Listener:
    """Texts of manifests by a method, each logged in the run folder as soon as it is there and read from it again."""

    def __init__(self, config: Config, model, run, windows: Windows, precision: str) -> None:
        self.config, self.model, self.run, self.windows, self.precision = config, model, run, windows, precision
        lines = [line for line in run.read_metrics() if "utterance" in line]
        self.texts = {(line["method"], line["utterance"]): line["text"] for line in lines}

    def hear(self, key: str, name: str, method, manifest: Manifest):
        """The WER result of a method (None: the model as it is) on a manifest; ``key`` tells its settings apart."""
        from tqdm.auto import tqdm

        from speech_adapters.inference.recordings import of_utterances
        from speech_adapters.inference.transcripts import transcribe
        from speech_adapters.metrics.wer import word_error_rate
        from speech_adapters.unlabelled import adapted

        def write(recordings) -> list[str]:
            files = [[recording] for recording in recordings]
            found = transcribe(self.model, files, self.windows, precision=self.precision)
            return [transcript.text for transcript in found]

        for unit in tqdm(list(units(name, manifest)), desc=f"{key}, {manifest.name}", unit=name, leave=False):
            if all((key, utterance.id) in self.texts for utterance in unit):
                continue
            recordings, more = of_utterances(unit), {}
            if method is None:
                texts = write(recordings)
            else:
                few = of_utterances(up_to(unit, self.config.minutes))
                with adapted(self.model, few, method, self.windows, precision=self.precision) as done:
                    texts = write(recordings)
                more = {"first_loss": done.losses[0], "last_loss": done.losses[-1]} if done.losses else {}
            for utterance, text in zip(unit, texts, strict=True):
                if (key, utterance.id) in self.texts:  # a speaker's, of whom a stopped run had written some
                    continue
                self.texts[key, utterance.id] = text
                self.run.log_metrics({"method": key, "utterance": utterance.id, "text": text, **more})
        return word_error_rate(
            [utterance.text for utterance in manifest],
            [self.texts[key, utterance.id] for utterance in manifest],
            [utterance.speaker for utterance in manifest],
            [utterance.id for utterance in manifest],
            normalizer=self.model.head.config.normalizer,
        )


def choose_rate(config: Config, listener: Listener, name: str, method, dev: Manifest | None) -> tuple[Any, dict]:
    """The method with the learning rate that is best on dev, and the WERs of all."""
    rates = config.learning_rates.get(name, () if dev is None else RATES.get(name, ()))
    if not rates:
        return method, {}
    if len(rates) == 1 or dev is None:
        return replace(method, learning_rate=rates[0]), {}
    found = {
        rate: listener.hear(f"dev {name} {rate:g}", name, replace(method, learning_rate=rate), dev).wer.value
        for rate in rates
    }
    best = min(found, key=found.get)
    return replace(method, learning_rate=best), {
        "learning_rate": best,
        "dev_wer": {f"{k:g}": v for k, v in found.items()},
    }


def part(result, ids: set[str]):
    """A WER result of some of its utterances, with their own intervals."""
    from speech_adapters.metrics.wer import word_error_rate

    scores = [score for score in result.utterances if score.id in ids]
    return word_error_rate(
        [score.reference for score in scores],
        [score.hypothesis for score in scores],
        [score.speaker for score in scores],
        [score.id for score in scores],
        normalizer="none",
    )


def main(config: Config) -> None:
    from speech_adapters.files import write_json
    from speech_adapters.metrics.comparison import compare_transcripts
    from speech_adapters.metrics.wer import pooled_metrics
    from speech_adapters.precision import fast_bfloat16
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.tasks.asr import worst_utterances

    test, dev, source = find_speech(config)
    windows = Windows(seconds=config.window, voice_activity="none")
    precision = config.precision if config.precision != "auto" else ("bf16" if fast_bfloat16() else "fp32")
    model = None if config.adapter is None else find_model(config, source, None)
    data = {"test": test.describe()} | ({} if dev is None else {"dev": dev.describe()})
    base = None if model is None else model.encoder.identity
    run = RunFolder.open("adapt_unlabelled", config, config.output, resume=config.resume, data=data, base=base)
    model = model or find_model(config, source, run)
    run.begin()
    model.head.config.check(test, model.encoder, any_length=True)
    print(f"{model.encoder!r}\ntest {test.summary()}\nrun  {run.path}\n")
    listener = Listener(config, model, run, windows, precision)
    domains = {domain: {u.id for u in test if u.domain == domain} for domain in test.values("domain")}

    def figures(results: list[Any], **more: Any) -> MethodResults:
        """Of one result a seed, beside the model as it is."""
        by_domain: dict[str, Any] = {}
        for domain, ids in {"all": {u.id for u in test}, **domains}.items():
            parts = [part(result, ids) for result in results]
            by_domain[domain] = {"wer": pooled_metrics(parts)["wer"]}
            if results[0] is not as_it_is:
                paired = [compare_transcripts(one, part(as_it_is, ids)) for one in parts]
                by_domain[domain]["less_than_without"] = [
                    {"difference": c.difference.to_dict(), "p_value": c.p_value, "wins": c.wins, "ties": c.ties,
                     "losses": c.losses, "speakers": c.speakers} for c in paired
                ]  # fmt: skip
        return MethodResults(metrics=pooled_metrics(results), more={"by_domain": by_domain, **more})

    started = time.perf_counter()
    as_it_is = listener.hear("without", "without", None, test)
    found = {"without": figures([as_it_is], **run.took("listening_seconds", started))}
    heard = {}
    for name in config.methods:
        method, chosen = choose_rate(config, listener, name, make(config, name, model, source, windows), dev)
        started, results = time.perf_counter(), []
        for seed in config.seeds if name == "prompt" else config.seeds[:1]:
            seeded = replace(method, seed=seed) if name == "prompt" else method
            key = f"{name}-seed{seed}" if name == "prompt" else name
            results.append(listener.hear(key, name, seeded, test))
            results[-1].save_trn(run.trn(key))
        heard[name] = results[0]
        found[name] = figures(results, **chosen, **run.took("listening_seconds", started))
        for domain, numbers in found[name].more["by_domain"].items():
            for paired in numbers["less_than_without"]:
                d = paired["difference"]
                print(
                    f"{name:12s} {domain:10s} WER {numbers['wer']['value']:.1%}, "
                    f"{d['value']:+.1%} [{d['low']:+.1%}, {d['high']:+.1%}], p {paired['p_value']:.3f}"
                )
    own = config.methods[0]
    results = Results(
        task="adapt_unlabelled",
        encoder=model.encoder.name,
        adapter=own,
        data=data,
        own=found.pop(own),
        baselines=found,
        seeds=list(config.seeds),
        more={"precision": precision},
    )
    write_json(run.worst_file, worst_utterances(heard[own], test))
    table, report = report_results(run, results)
    print(f"\n{table}\n\nreport {report}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, presets=PRESETS, description=__doc__, recipe="adapt_unlabelled")))
