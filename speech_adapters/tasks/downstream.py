"""One labelled task, trained and scored as often as wanted: what pre-training and active learning are judged by.

Each call trains a fresh adapter and head from one seed; only the labelled utterances, or the adapter's start, differ.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from speech_adapters.adapters import preset
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.windows import Windows
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads import ClassificationHead, CTCHead, HeadConfig
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.ranges import Rate, check_values
from speech_adapters.runs.folder import RunFolder
from speech_adapters.saving.parts import load_part
from speech_adapters.tasks.asr import SpeechRecognition
from speech_adapters.tasks.base import Corpus, chosen_rates
from speech_adapters.tasks.classification import Classification
from speech_adapters.tasks.recognition_settings import RecognitionSettings
from speech_adapters.tasks.start import CHECKPOINT
from speech_adapters.training.cached_dataset import CachedDataset
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import check as check_training
from speech_adapters.training.supervised import check_hearing, constant, train

ADAPTER, BELOW = "task", "tapt"


@dataclass(kw_only=True)
class Downstream(RecognitionSettings):
    """Speech recognition scored by WER, or one label per utterance scored by UA."""

    task: str = "asr"
    """``asr``, or any name of a single label, such as ``emotion``; see ``label_field``."""
    adapter: str = "e"
    """Preset of the adapter."""
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the preset to change."""
    label_field: str = "emotion"
    """Key of the manifest that holds the class."""
    rates: dict[str, Rate] = field(default_factory=dict)
    """Learning rates by parameter group, over the published ones; groups that the adapter has not may be named.
    ``training.learning_rates`` goes over them, and must be used."""
    windows: Windows | None = None
    """Score recordings in pieces, as transcribe hears them; None for each in one forward."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(updates=400, trackers=("none",)))

    def __post_init__(self) -> None:
        check_values(self)
        if every := self.training.evaluate_every:
            raise ConfigError(f"training.evaluate_every={every}: there is no dev set to evaluate on; set it to 0.")
        if self.vocabulary == CHECKPOINT:
            raise ConfigError("vocabulary=checkpoint: here the head is made for the labelled text; choose another.")
        own = {one.name: getattr(self, one.name) for one in fields(RecognitionSettings)}
        changed = [f"{name}={value}" for name, value in own.items() if value != getattr(RecognitionSettings, name)]
        if self.task != "asr" and changed:
            raise ConfigError(
                f"{', '.join(changed)}: for recognition (task=asr), and task is {self.task}; leave it out."
            )

    @property
    def _task(self) -> SpeechRecognition | Classification:
        if self.task == "asr":
            return self.recognition(None)
        return Classification(self.task, label_field=self.label_field)

    @property
    def metric(self) -> str:
        """``wer`` or ``ua``."""
        return self._task.metric

    @property
    def required(self) -> tuple[str, ...]:
        """Keys that a labelled utterance has."""
        return ("text",) if self.task == "asr" else (self.label_field,)

    def head(self, labelled: Manifest, labels: Sequence[str] = ()) -> HeadConfig:
        """The head to train on ``labelled``; ``labels`` are all classes, also those it has no example of.

        Classes are weighted by their rarity where each has an example: a choice of utterances is seldom balanced.
        """
        task = self._task
        return task.head_for(labelled) if isinstance(task, SpeechRecognition) else task.head_for(labelled, labels)

    def check(self, labelled: Manifest, test: Manifest, encoder: Encoder) -> None:
        """Find whatever training and scoring would fail of; raises an InputError that names the utterances."""
        self._task.check(Corpus(labelled, None, test, labelled.name), encoder, windows=self.windows)
        check_hearing(labelled, encoder, self.training)

    def check_labels(self, labelled: Manifest, encoder: Encoder, labels: Sequence[str] = ()) -> None:
        """Find whatever training on these labels would fail of; raises an InputError that names the utterances.
        ``labels`` are all classes."""
        self.head(labelled, labels).check(labelled, encoder, any_length=True)

    def check_test(self, test: Manifest, encoder: Encoder, labels: Sequence[str] = ()) -> None:
        """Find whatever scoring on ``test`` would fail of, where nothing is labelled yet; raises an InputError."""
        one = replace(self, vocabulary="characters") if self.vocabulary == "subwords" else self  # many, of few texts
        task = one._task
        task.start_head = one.head(test, labels)
        task.check(Corpus(test, None, test, test.name), encoder, crops=True, windows=self.windows)

    def check_adapter(
        self, encoder: Encoder, start: Path | None = None, use: Literal["continue", "stack"] = "continue"
    ) -> None:
        """Find what of the settings, or of the adapter to start from, does not fit; raises an InputError."""
        if self.windows is not None:
            self.windows.check(encoder.max_samples, encoder.name)
        stand_in: HeadConfig = CTCHead() if self.task == "asr" else ClassificationHead(labels=("a", "b"))
        model, settings = self._prepared(encoder, stand_in, 0, start, use)
        check_training(model, SpeechDataset(Manifest((), "labels"), **settings.dataset_options), settings, None)

    def train(
        self,
        encoder: Encoder,
        head: HeadConfig,
        labelled: Manifest,
        run: RunFolder,
        name: str,
        seed: int,
        start: Path | None = None,
        use: Literal["continue", "stack"] = "continue",
        pool: Manifest | None = None,
    ) -> SpeechAdapterModel:
        """A model trained on ``labelled``, its adapter called "task"; both are saved under ``name``.

        Args:
            start: folder of an adapter that was pre-trained without labels. With ``use="continue"`` it is where the
                task's adapter starts from; with "stack" it lies, frozen, below the task's own.
            pool: with ``training.cache``, the manifest that all labelled sets are parts of: cached once for all.

        Raises:
            ConfigError: ``start`` is another kind of adapter than the task's, with "continue".
        """
        model, settings = self._prepared(encoder, head, seed, start, use)
        data: Any = SpeechDataset(labelled, head.target, **settings.dataset_options)
        whole = settings.crop_seconds is None  # the pool is; crops are cut from a cache of the training's own
        if whole and pool is not None and (cached := self.cached(model, pool)) is not None:
            data, settings = cached.part(data), replace(settings, cache=None)
        train(model, data, settings, run, name=name)
        model.save_adapter(ADAPTER, run.adapter(name))
        model.save_head(self.task, run.head(name))
        return model

    def cached(self, model: SpeechAdapterModel, manifest: Manifest) -> CachedDataset | None:
        """A manifest's activations below the model's lowest adapter, in ``training.cache``; None where that is."""
        if self.training.cache is None:
            return None
        dataset = SpeechDataset(manifest, keep_in_memory=False)
        frozen = constant(model, self.training, pooled=False)
        return CachedDataset(dataset, model, self.training.cache, self.training.batch_seconds, frozen=frozen)

    def _prepared(
        self, encoder: Encoder, head: HeadConfig, seed: int, start: Path | None, use: str
    ) -> tuple[SpeechAdapterModel, TrainingConfig]:
        """A model that is ready to train, and how it is trained."""
        torch.manual_seed(seed)
        model = self._model(encoder, start, use)
        stack = tuple(name for name in model.active_adapters if name != ADAPTER)
        model.add_head(self.task, head)
        model.train_adapter(*stack, ADAPTER, head=self.task)
        for name_below in stack:
            model.adapters[name_below].requires_grad_(False)
        groups = {self.adapter: set(model.parameter_groups())}
        rates = chosen_rates(self.rates, self.training.learning_rates, groups)[self.adapter]
        return model, replace(self.training, seed=seed, learning_rates=rates)

    def _model(self, encoder: Encoder, start: Path | None, use: str) -> SpeechAdapterModel:
        """A model of its own with the task's adapter, from or above the one to start from."""
        model = SpeechAdapterModel(copy.deepcopy(encoder))
        if start is not None and use == "stack":
            model.load_adapter(start, BELOW)
        stack = model.active_adapters
        model.add_adapter(ADAPTER, preset(self.adapter, self.task, **self.adapter_options))
        if start is not None and use == "continue":
            self._start_from(model, start)
        model.set_active(*stack, ADAPTER)
        return model

    def _start_from(self, model: SpeechAdapterModel, start: Path) -> None:
        loaded = model.load_adapter(start, BELOW)  # checks the file, and that it belongs to this base
        method = model.registry.adapter(loaded).config.method
        adapter = model.registry.adapter(ADAPTER)
        try:
            adapter.load_tensors(load_part(start, "adapter")[1])
        except (RuntimeError, CheckpointError) as error:
            raise ConfigError(
                f"{start}: its {method} adapter does not fit the task's {adapter.config.method} adapter; give the "
                "task the same adapter and options, or use stack."
            ) from error
        model.delete_adapter(loaded)

    def score(self, model: SpeechAdapterModel, test: Manifest) -> Any:
        """WER or classification result of a trained model."""
        options: dict[str, Any] = {
            "batch_seconds": 2 * self.training.batch_seconds,
            "precision": self.training.precision,
            "progress": False,
            "windows": self.windows,
            "cache": self.training.cache if self.windows is None else None,
        }
        return self._task.score(model, Corpus(test, None, test, test.name), **options)

    def metrics(self, results: Sequence[Any]) -> dict[str, Any]:
        """``{"wer" or "ua": {value, low, high}}`` over the results of all seeds, intervals by speaker."""
        metrics = self._task.metrics(results)
        return {key: metrics[key] for key in ("wer", "ua", "wa", "macro_f1") if key in metrics}
