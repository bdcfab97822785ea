"""What a task is: the corpus it learns from, the head it trains, and how a trained model is scored.

A new task is a recipe that makes a :class:`Task` (one of those here, under a name of its own, or a new one) and calls
:func:`~speech_adapters.tasks.experiment.run_experiment`. Any name will do: presets have rates for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from speech_adapters.config import option
from speech_adapters.data.corpus_check import check_apart
from speech_adapters.data.manifest import Channel, Manifest
from speech_adapters.data.trials import TrialList
from speech_adapters.data.windows import Windows
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Positive, Rate, Seed, check_values
from speech_adapters.training.settings import TrainingConfig

if TYPE_CHECKING:  # the rest is imported where it is used, so that a recipe's --help answers at once
    from speech_adapters.data.batches import SpeechDataset
    from speech_adapters.encoders import Encoder
    from speech_adapters.heads import HeadConfig, HeadModule
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults
    from speech_adapters.training.result import TrainingResult

R = TypeVar("R")

KEPT_HOURS = 50.0
"""Training sets below this stay decoded in memory (6 GB at most); larger ones are read anew each epoch."""


@dataclass(kw_only=True)
class ExperimentConfig:
    """What every training recipe is asked: an adapter and its baselines on one encoder."""

    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    quantize: Literal["int8", "int4", "nf4"] | None = option(None, "hold the frozen base in 8 or 4 bits; null: as is")
    adapter: str = option("elp", "preset of the adapter: elp, el, lora, houlsby, ..., or several as one: lora+l")
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the adapter's preset to change, such as ``e_size`` or ``rank``."""
    baselines: tuple[str, ...] = option(
        ("head-only",), "presets trained beside it, or none; add full for full fine-tuning"
    )
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same by preset, for any of them: ``{lora: {rank: 16}}`` (also as part of ``lora+l``); presets that this run
    leaves out may be named."""
    rates: dict[str, Rate] = field(default_factory=dict)
    """Learning rates by parameter group, over the published ones, for whichever methods are trained; groups that this
    run has not may be named. ``training.learning_rates`` goes over them, and must be used."""
    channel: Channel | None = option(
        None, "heard of files with several, where a manifest's line does not say it: a number from 0, or mix"
    )
    from_adapter: Path | None = option(
        None, "saved adapter to train on from, with the settings it was saved with; adapter names its method"
    )
    from_head: str | None = option(
        None, "saved head to train on from, or checkpoint: the CTC head that the encoder brings along"
    )
    learning_rate: Positive | None = option(
        None, "one peak rate for the adapter's parameter groups and its head, over the published ones and rates"
    )
    seeds: tuple[Seed, ...] = option((0,), "one training run per method and seed; figures are means over seeds")
    together: bool = option(
        False, "train the methods of a seed in one pass: the frozen part runs once for all of them"
    )
    windows: Windows | None = option(
        None, "score recordings in pieces, as transcribe hears them: windows.seconds=20; none: each in one forward"
    )
    output: Path | None = option(None, "run folder; one that holds the same run goes on")
    resume: str | None = option(None, "latest, or a run folder: go on with that run")
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check_values(self)
        check_seeds(self.seeds)
        if self.baselines == ("none",):
            self.baselines = ()
        if len(set(self.baselines)) < len(self.baselines):
            raise ConfigError(f"baselines={list(self.baselines)}: give different presets.")

    @property
    def trained_methods(self) -> dict[str, dict[str, Any]]:
        """Preset -> changed settings, of all that is trained, the adapter first."""
        names = dict.fromkeys((self.adapter, *self.baselines))
        settings = {name: _settings(self.options, name) for name in names}
        settings[self.adapter] = settings[self.adapter] | self.adapter_options
        return settings

    @property
    def scoring(self) -> dict[str, Any]:
        """How trained models are scored: options of :func:`~speech_adapters.tasks.predict.predict`."""
        settings = self.training
        return {
            "batch_seconds": 2 * settings.batch_seconds,
            "precision": settings.precision,
            "windows": self.windows,
        }

    def rates_for(self, groups: Mapping[str, set[str]]) -> dict[str, dict[str, float]]:
        """Method -> the rates that it trains with where they are not its published ones; see :func:`chosen_rates`.

        ``learning_rate`` goes to the groups of the adapter, here and in the baselines that have them too.

        Args:
            groups: method -> its parameter groups.
        """
        table = dict(self.rates)
        if self.learning_rate is not None:
            table |= dict.fromkeys(groups[self.adapter], self.learning_rate)
        return chosen_rates(table, self.training.learning_rates, groups)


@dataclass(frozen=True)
class Corpus:
    """What a method trains on, watches and is scored on; ``dev`` is None for tasks without a dev loss, ``trials`` are
    those of speaker verification."""

    train: Manifest
    dev: Manifest | None
    test: Manifest
    name: str
    trials: TrialList | None = None

    @classmethod
    def read(
        cls, train: Path, dev: Path | None, test: Path, name: str, require: Sequence[str], **options: Any
    ) -> Corpus:
        """Read manifests; ``require`` and ``options`` are those of :meth:`Manifest.read`.

        Raises:
            ConfigError: the training set is given as another one too.
        """
        for other, path in (("dev", dev), ("test", test)):
            if path is not None and path.resolve() == train.resolve():
                raise ConfigError(
                    f"{train}: given as both train and {other}; figures on what was learnt from say nothing of other "
                    "speech: divide it with speech-adapters manifest split, or name another file."
                )
        dev_set = None if dev is None else Manifest.read(dev, require, **options)
        test_set = dev_set if dev_set is not None and test == dev else Manifest.read(test, require, **options)
        return cls(Manifest.read(train, require, **options), dev_set, test_set, name)

    @classmethod
    def given(
        cls,
        train: Path | None,
        dev: Path | None,
        test: Path | None,
        require: Sequence[str],
        channel: Channel | None = None,
    ) -> Corpus | None:
        """The manifests that --train, --dev and --test name, every audio file checked; None when none is given.

        ``channel`` is heard of files with several where a line does not say it. Without ``test`` the figures are those
        of ``dev``, which is said.
        """
        if not (train or dev or test):
            return None
        if not (train and dev):
            raise ConfigError("give --train and --dev, and --test to score other speech, or none of them.")
        corpus = cls.read(train, dev, test or dev, train.stem, require, check_files=True, channel=channel)
        if test is None:
            print(f"No --test: the figures are of {dev}, which also chose what to keep where training watches it.\n")
        return corpus

    @classmethod
    def demo(cls, require: Sequence[str], hint: str = "No data was named") -> Corpus:
        """The demo corpus, which is synthesised on first use; ``hint`` says why it is taken."""
        from speech_adapters.corpora.demo import prepare_demo

        print(f"{hint}: using the demo corpus (synthetic speech). See --help for real ones.\n")
        demo = prepare_demo()
        return cls.read(demo.train, demo.dev, demo.test, "demo", require)

    @property
    def splits(self) -> dict[str, Manifest]:
        """Manifests by name, without a dev set that is not there."""
        named = {"train": self.train, "dev": self.dev, "test": self.test}
        return {name: manifest for name, manifest in named.items() if manifest is not None}

    @property
    def scored(self) -> str:
        """What is scored, by its name: dev where no test set was given, or is kept for later."""
        return "dev" if self.test is self.dev else "test"

    def values(self, key: str) -> tuple[str, ...]:
        """What stands under a key of any split, sorted."""
        return tuple(sorted({value for split in self.splits.values() for value in split.values(key)}))

    def check_speakers(self) -> Corpus:
        """Itself when no speaker of the training set is in another split, and nothing that it hears.

        Raises:
            ManifestError: names the shared speakers, or utterances.
        """
        for name, manifest in self.splits.items():
            if name != "train":
                check_apart(self.train, manifest)
        return self


class Task(ABC, Generic[R]):
    """What is learnt and how it is scored; ``R`` is the result of scoring one trained model.

    Attributes:
        name: as presets, heads and ``results.json`` call it, such as "asr" or "keyword".
        metric: the main figure, printed after each method; a key of :meth:`metrics`.
    """

    name: str
    metric: str
    start_head: HeadConfig | None = None
    """The head that is trained on from, in place of :meth:`head`; set by the experiment."""

    def chosen_head(self, corpus: Corpus) -> HeadConfig:
        """The head that every method trains: the one that is trained on from, or a new one."""
        return self.head(corpus) if self.start_head is None else self.start_head

    @abstractmethod
    def head(self, corpus: Corpus) -> HeadConfig:
        """A new head for this corpus."""

    @abstractmethod
    def score(self, model: SpeechAdapterModel, corpus: Corpus, **options: Any) -> R:
        """Score a trained model on the test set; options of :func:`~speech_adapters.tasks.predict.predict`."""

    @abstractmethod
    def metrics(self, results: Sequence[R]) -> dict[str, Any]:
        """Figures of one method over its seeds and folds, as ``results.json`` holds them."""

    def doubt(self, metrics: Mapping[str, Any]) -> str:
        """What to look into where figures cannot be right, printed behind them."""
        return ""

    def own_head(self, encoder: Encoder) -> HeadModule:
        """The head of this task that the encoder's checkpoint brings along.

        Raises:
            ConfigError: it has none.
        """
        raise ConfigError(
            f"from_head=checkpoint: a checkpoint's head is for recognition, and this task is {self.name}."
        )

    def notes(self, corpus: Corpus) -> list[str]:
        """What people should know before training, and beside the figures, a line each."""
        return []

    def check(self, corpus: Corpus, encoder: Encoder, *, crops: bool = False, windows: Windows | None = None) -> None:
        """Find whatever training and scoring would fail of; raises an InputError that names the utterances.

        Args:
            crops: training hears pieces of its utterances. windows: how the test set is heard.
        """
        head = self.chosen_head(corpus)
        any_length = {"train": crops, "test": windows is not None}
        for split, manifest in corpus.splits.items():
            head.check(manifest, encoder, any_length=any_length.get(split, False))

    def train(
        self, model: SpeechAdapterModel, corpus: Corpus, settings: TrainingConfig, run: RunFolder, name: str
    ) -> TrainingResult:
        """Train what is trainable, in all stages."""
        from speech_adapters.training.supervised import train

        assert model.head is not None, "the task's own is active"
        data, dev = self.data(corpus, model.head.config, settings)
        first = train(model, data, settings, run, dev, name)
        further = self.further(model, corpus, settings, run, name)
        return first if further is None else first + further

    def data(
        self, corpus: Corpus, head: HeadConfig, settings: TrainingConfig
    ) -> tuple[SpeechDataset, SpeechDataset | None]:
        """What a head is trained on and watched on."""
        from speech_adapters.data.batches import SpeechDataset

        data = SpeechDataset(
            corpus.train,
            head.target,
            keep_in_memory=corpus.train.hours < KEPT_HOURS,
            **settings.dataset_options,
        )
        return data, None if corpus.dev is None else SpeechDataset(corpus.dev, head.target)

    def stages(self, settings: TrainingConfig) -> dict[str, TrainingConfig]:
        """The settings of each stage of a training, by what the configuration calls it."""
        return {"training": settings}

    def further(
        self, model: SpeechAdapterModel, corpus: Corpus, settings: TrainingConfig, run: RunFolder, name: str
    ) -> TrainingResult | None:
        """Stages after the first; None for a task that has none."""
        return None

    def write(self, result: R, corpus: Corpus, run: RunFolder, name: str) -> None:
        """Write what was predicted into the run folder, in the field's format; ``name`` is the training's."""

    def show(self, method: str, result: R, corpus: Corpus, run: RunFolder) -> None:
        """Write what the report shows of the adapter's first result, such as its worst utterances."""

    def untrained(self, encoder: Encoder, corpus: Corpus, run: RunFolder, **options: Any) -> dict[str, MethodResults]:
        """Baselines that need no training, by name."""
        return {}


def check_seeds(seeds: Sequence[int]) -> None:
    """ConfigError unless there are different ones."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds={list(seeds)}: give one or more different numbers, such as --seeds 0,1,2.")


def chosen_rates(
    table: Mapping[str, float], demanded: Mapping[str, float], models: Mapping[str, set[str]]
) -> dict[str, dict[str, float]]:
    """The rates that each method trains with, by parameter group, where they are not its published ones.

    Args:
        table: rates for whichever groups are there. demanded: rates over these, each of which some method must use.
        models: method -> its parameter groups.

    Raises:
        ConfigError: a group in ``table`` that no method of the toolkit has, one in ``demanded`` that none of this run.
    """
    from speech_adapters.adapters.presets import known_groups

    known = known_groups()
    if unknown := sorted(table.keys() - known):
        raise ConfigError(f"rates.{unknown[0]}: no method has this group; there are {', '.join(sorted(known))}.")
    here = sorted(set().union(*models.values()))
    if unused := sorted(demanded.keys() - set(here)):
        raise ConfigError(
            f"training.learning_rates.{unused[0]}: no method of this run has this group; they have {', '.join(here)}."
        )
    return {
        method: {group: rate for group, rate in {**table, **demanded}.items() if group in groups}
        for method, groups in models.items()
    }


def _settings(options: dict[str, dict[str, Any]], method: str) -> dict[str, Any]:
    """A preset's settings; those of presets joined by "+" go to their parts."""
    if "+" not in method:
        return options.get(method, {})
    parts = {part: options[part] for part in method.split("+") if part in options}
    return parts | options.get(method, {})
