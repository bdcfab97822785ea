"""One labelled task, trained and scored as often as wanted: what pre-training and active learning are judged by.

Each call trains a fresh adapter and head from one seed; only the labelled utterances, or the adapter's start, differ.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from speech_adapters.adapters import preset
from speech_adapters.data.batches import SpeechDataset
from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders.loading import Encoder
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads import ClassificationHead, CTCHead, HeadConfig, balanced_class_weights
from speech_adapters.metrics.bootstrap import bootstrap
from speech_adapters.metrics.classification import ClassificationResult
from speech_adapters.metrics.wer import WERResult
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.saving.parts import load_part
from speech_adapters.tasks.asr import evaluate_asr
from speech_adapters.tasks.classification import evaluate_classification
from speech_adapters.training.cache import CachedDataset
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.supervised import train

Result = WERResult | ClassificationResult
ADAPTER, BELOW = "task", "tapt"


@dataclass(kw_only=True)
class Downstream:
    """Speech recognition scored by WER, or one label an utterance scored by UA."""

    task: Literal["asr", "emotion"] = "asr"
    """What is learnt; ``emotion`` is any single label, see ``label_field``."""
    adapter: str = "e"
    """Preset of the adapter."""
    adapter_options: dict[str, Any] = field(default_factory=dict)
    """Settings of the preset to change."""
    label_field: str = "emotion"
    """Key of the manifest that holds the class."""
    normalizer: str = "librispeech"
    """How transcripts are written before they are learnt or scored."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(updates=400, trackers=("none",)))

    @property
    def metric(self) -> str:
        """``wer`` or ``ua``."""
        return "wer" if self.task == "asr" else "ua"

    @property
    def required(self) -> tuple[str, ...]:
        """Keys that a labelled utterance has."""
        return ("text",) if self.task == "asr" else (self.label_field,)

    def head(self, labelled: Manifest, labels: Sequence[str] = ()) -> HeadConfig:
        """The head to train on ``labelled``; ``labels`` are all classes, also those it has no example of.

        Classes are weighted by their rarity where each has an example: a choice of utterances is seldom balanced.
        """
        if self.task == "asr":
            return CTCHead(normalizer=self.normalizer)
        labels = tuple(labels) or labelled.values(self.label_field)
        seen = set(labelled.values(self.label_field))
        weights = balanced_class_weights(labelled, labels, self.label_field) if seen >= set(labels) else None
        return ClassificationHead(labels=labels, label_field=self.label_field, class_weights=weights)

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
        """A model trained on ``labelled``, its adapter called "task".

        Args:
            start: folder of an adapter that was pre-trained without labels. With ``use="continue"`` it is where the
                task's adapter starts from; with "stack" it lies, frozen, below the task's own.
            pool: with ``training.cache``, the manifest that all labelled sets are parts of: cached once for all.

        Raises:
            ConfigError: ``start`` is another kind of adapter than the task's, with "continue".
        """
        torch.manual_seed(seed)
        model = SpeechAdapterModel(copy.deepcopy(encoder))
        if start is not None and use == "stack":
            model.load_adapter(start, BELOW)
        stack = model.active_adapters
        model.add_adapter(ADAPTER, preset(self.adapter, self.task, **self.adapter_options))
        if start is not None and use == "continue":
            self._start_from(model, start)
        model.set_active(*stack, ADAPTER)
        model.add_head(self.task, head)
        model.train_adapter(*stack, ADAPTER, head=self.task)
        for name_below in stack:
            model.adapters[name_below].requires_grad_(False)
        groups = model.parameter_groups()
        rates = {group: rate for group, rate in self.training.learning_rates.items() if group in groups}
        settings = replace(self.training, seed=seed, learning_rates=rates)
        data = SpeechDataset(labelled, head.target, settings.augmentation, seed)
        if settings.cache is not None and pool is not None:
            data, settings = self.cached(model, pool).part(data), replace(settings, cache=None)
        train(model, data, settings, run, name=name)
        return model

    def cached(self, model: SpeechAdapterModel, manifest: Manifest) -> CachedDataset:
        """A manifest's activations below the model's lowest adapter, in ``training.cache``."""
        dataset = SpeechDataset(manifest, keep_in_memory=False)
        return CachedDataset(dataset, model, self.training.cache, self.training.batch_seconds)

    def _start_from(self, model: SpeechAdapterModel, start: Path) -> None:
        loaded = model.load_adapter(start, BELOW)  # checks the file, and that it belongs to this base
        method = model.adapters[loaded].config.method
        try:
            model.adapters[ADAPTER].load_tensors(load_part(start, "adapter")[1])
        except (RuntimeError, CheckpointError) as error:
            own = model.adapters[ADAPTER].config.method
            raise ConfigError(
                f"{start}: its {method} adapter does not fit the task's {own} adapter; give the task the same adapter "
                "and options, or use stack."
            ) from error
        model.delete_adapter(loaded)

    def score(self, model: SpeechAdapterModel, test: Manifest) -> Result:
        """WER or classification result of a trained model."""
        options: dict[str, Any] = {
            "batch_seconds": 2 * self.training.batch_seconds,
            "precision": self.training.precision,
            "progress": False,
            "cache": self.training.cache,
        }
        if self.task == "asr":
            return evaluate_asr(model, test, **options).result
        return evaluate_classification(model, test, label_field=self.label_field, **options).result

    def metrics(self, results: Sequence[Result]) -> dict[str, Any]:
        """``{"wer" or "ua": {value, low, high}}`` over the results of all seeds, intervals by speaker."""
        if self.task == "asr":
            scores = [score for result in results for score in result.utterances]
            speakers = [score.speaker for score in scores]
            by = speakers if all(speakers) else None
            return {"wer": bootstrap([s.errors for s in scores], [s.words for s in scores], by).to_dict()}
        combined = results[0] if len(results) == 1 else ClassificationResult.combine(results)
        return {key: value for key, value in combined.to_dict().items() if key in ("ua", "wa", "macro_f1")}
