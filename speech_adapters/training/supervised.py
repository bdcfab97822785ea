"""Train adapters and a head on labelled speech, fusions and routers among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from speech_adapters.data.batches import (
    LengthBatches,
    SpeechDataset,
    UtteranceDataset,
    ahead,
    evaluation_loader,
    training_loader,
)
from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders.encoder import Encoder
from speech_adapters.errors import ConfigError
from speech_adapters.heads.base import HeadModule, HeadOutput, check_audible
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.processes import processes
from speech_adapters.training.cached_dataset import CachedDataset, check_crops
from speech_adapters.training.frozen import Frozen, frozen_part, model_inputs
from speech_adapters.training.learner import Learner, Loss, Position
from speech_adapters.training.loop import fit
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import LoopConfig, TrainingConfig

MASK_SPAN = 10
"""Frames per hidden span of SpecAugment; wav2vec 2.0 (Baevski et al., 2020)."""


def train(
    model: SpeechAdapterModel,
    dataset: UtteranceDataset,
    config: TrainingConfig,
    run: RunFolder,
    dev: UtteranceDataset | None = None,
    name: str = "adapter",
) -> TrainingResult:
    """Train what :meth:`SpeechAdapterModel.train_adapter` has chosen.

    Args:
        dev: what ``config.evaluate_every`` evaluates on; unused where that is 0.
        name: of this training in the run folder. Where it was stopped there it goes on; where it is finished its
            weights are put into the model and nothing is trained.

    Raises:
        ConfigError: nothing to train, no active head, crops for a CTC head, evaluations without a dev set, or a
            method's schedule that the updates cannot hold.
        AudioError: an utterance that a speed of the augmentation makes too long for the encoder, or too short.
        RuntimeError, TrainingError, Interrupted: see :func:`~speech_adapters.training.loop.fit`.
    """
    check(model, dataset, config, dev)
    model.check_trained()
    model.to(processes().device)
    watched = dev if config.evaluate_every else None
    if config.cache is not None:
        if isinstance(dataset, SpeechDataset):
            frozen = constant(model, config)
            dataset = CachedDataset(dataset, model, config.cache, config.batch_seconds, frozen=frozen)
        if isinstance(watched, SpeechDataset):
            frozen = frozen_part(model, pooled=True)
            watched = CachedDataset(watched, model, config.cache, config.batch_seconds, frozen=frozen)
    return fit(Supervised(model, dataset, config, watched), config, run, name)


def check(
    model: SpeechAdapterModel, dataset: UtteranceDataset, config: TrainingConfig, dev: UtteranceDataset | None
) -> None:
    """Raise a ConfigError, or an AudioError of the data, for what :func:`train` cannot train."""
    if model.head is None:
        raise ConfigError("train: no head is active; add_head and train_adapter(name, head=...) first.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("train: nothing is trainable; call model.train_adapter(name, head=...) first.")
    if config.evaluate_every and dev is None:
        raise ConfigError("train: training.evaluate_every needs a dev set.")
    kept_by(model, config)
    for name in model.trained_adapters:
        model.registry.adapter(name).check_updates(config.updates)
    if getattr(dataset, "crop_seconds", None) is not None and isinstance(model.head, CTCHeadModule):
        raise ConfigError("train: training.crop_seconds cuts speech but not its text; a CTC head needs it whole.")
    if isinstance(dataset, SpeechDataset):
        for option in ("augmentation", "crop_seconds"):
            if (said := getattr(config, option)) is not None and getattr(dataset, option) is None:
                raise ConfigError(
                    f"train: training.{option}={said}, which the dataset does not apply; make it with "
                    "SpeechDataset(manifest, model.head.config.target, **training.dataset_options)."
                )
        check_hearing(dataset.manifest, model.encoder, config)


def batches_of(dataset: UtteranceDataset, config: TrainingConfig, rank: int, world_size: int) -> LengthBatches:
    """The batches of process ``rank``. Raises an InputError for fewer utterances than an update takes."""
    return LengthBatches(
        dataset.durations,
        config.batch_seconds,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        accumulation=config.accumulation,
        name=dataset.manifest.name,
    )


def kept_by(model: SpeechAdapterModel, config: TrainingConfig) -> str:
    """Which figure chooses the state to keep. Raises a ConfigError for errors of a head that counts none."""
    counts = model.head is not None and type(model.head).mistakes is not HeadModule.mistakes
    if config.keep == "error" and not counts:
        raise ConfigError("training.keep=error: this head cannot score held-out speakers; keep by the loss.")
    return config.keep or ("error" if counts else "loss")


def check_hearing(manifest: Manifest, encoder: Encoder, config: TrainingConfig, stage: str = "training") -> None:
    """Raise an AudioError that names utterances which the augmentation makes too long or short for the encoder, or a
    ConfigError for crops that cannot be taken from the cache; ``stage`` is what the configuration calls it."""
    if config.cache is not None:
        check_crops(encoder, config.crop_seconds, stage)
    for speed in () if config.augmentation is None else config.augmentation.drawn_speeds:
        check_audible(manifest, encoder, any_length=config.crop_seconds is not None, speed=speed)


def constant(model: SpeechAdapterModel, config: TrainingConfig, pooled: bool = True) -> Frozen:
    """What of the forward no update of a training changes; with ``pooled``, means may stand for frames."""
    whole = config.crop_seconds is None and not config.time_mask_probability
    return frozen_part(model, whole=whole, pooled=pooled)


class Supervised(Learner):
    """The active adapters, fusions and head of a model, with the head's loss."""

    def __init__(
        self,
        model: SpeechAdapterModel,
        dataset: UtteranceDataset,
        config: TrainingConfig,
        dev: UtteranceDataset | None = None,
    ) -> None:
        self.model, self.dataset, self.config, self.dev = model, dataset, config, dev
        self.device, self.seconds = model.encoder.device, dataset.durations
        self.kept_by = kept_by(model, config)
        model.gradient_checkpointing = config.gradient_checkpointing

    def config_of(self, shared: LoopConfig) -> LoopConfig:
        return self.config

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        rates = self.model.learning_rates(self.config.learning_rates)
        return {group: (parameters, rates[group]) for group, parameters in self.model.parameter_groups().items()}

    def order(self, at: Position) -> LengthBatches:
        """The batches of this process, as lists of places in the dataset."""
        return batches_of(self.dataset, self.config, at.rank, at.processes)

    def batches(self, at: Position) -> Iterator[dict[str, Any]]:
        loader = training_loader(self.dataset, self.order(at), at.epoch, at.place, self.config.workers)
        return iter(loader) if self.config.workers else ahead(loader)

    def endless(self, at: Position, place: int) -> Iterator[dict[str, Any]]:
        """The batches from the ``place``-th of all on, epoch after epoch."""
        epoch, place = divmod(place, len(self.order(at)))
        while True:
            yield from self.batches(replace(at, epoch=epoch, place=place))
            epoch, place = epoch + 1, 0

    def loss(self, batch: dict[str, Any], update: int) -> Loss:
        return self.score(model_inputs(batch, self.model), batch)

    def score(self, inputs: dict[str, Any], batch: dict[str, Any]) -> Loss:
        """The loss on the model's ``inputs`` of a batch, wherever they start."""
        places = batch["indices"].tolist()
        if self.config.time_mask_probability:
            inputs["time_mask"] = time_mask(self.model.encoder, inputs, self.config)
        output = self.model(**inputs, targets=batch["targets"])
        ids = [self.dataset.manifest[place].id for place in places]
        return Loss(output.loss, float(sum(self.seconds[place] for place in places)), ids)

    def evaluate(self) -> dict[str, float]:
        assert self.dev is not None
        totals: Counter[str] = Counter()
        for batch in evaluation_loader(self.dev, self.config.batch_seconds):
            totals.update(self.held_out(model_inputs(batch, self.model), batch))
        return held_out_figures(totals)

    def held_out(self, inputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, float]:
        """Sums over a batch of the dev set, for :func:`held_out_figures`."""
        targets, head = batch["targets"].to(self.device), self.model.head
        output = self.model(**inputs, targets=targets)
        assert head is not None, "check has seen it"
        sums = {"loss": float(output.loss) * (1 if head.sums_losses else len(targets)), "utterances": len(targets)}
        answer = HeadOutput(output.logits, output.frame_lengths, output.embedding)
        if (found := head.mistakes(answer, targets)) is not None:
            sums |= dict(zip(("wrong", "of"), found, strict=True))
        return sums

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, and the running statistics of a head with batch norm and of a router."""
        model = self.model
        trained = {id(p) for parameters in model.parameter_groups().values() for p in parameters}
        tensors = {name: p.detach() for name, p in model.named_parameters() if id(p) in trained}
        if model.head is not None:
            tensors |= {f"head/{name}": buffer for name, buffer in model.head.named_buffers()}
        for fusion in model.active_fusions:
            module = model.registry.fusion(fusion.name)
            tensors |= {f"fusion/{fusion.name}/{name}": buffer for name, buffer in module.named_buffers()}
        return tensors

    def train(self, mode: bool = True) -> None:
        self.model.train(mode)

    def check_alive(self) -> None:
        self.model.check_alive()

    def before_update(self, update: int) -> None:
        for name in self.model.trained_adapters:
            self.model.registry.adapter(name).before_update(update, self.config.updates)

    def after_update(self, update: int) -> None:
        for name in self.model.trained_adapters:
            self.model.registry.adapter(name).after_update(update + 1, self.config.updates)

    def state(self) -> dict[str, Any]:
        return {name: self.model.registry.adapter(name).schedule_state() for name in self.model.trained_adapters}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in self.model.trained_adapters:
            self.model.registry.adapter(name).load_schedule_state(state[name])


def held_out_figures(sums: Mapping[str, float]) -> dict[str, float]:
    """``loss`` by utterance and, of heads that have one, ``error``: the share of wrong words or utterances."""
    figures = {"loss": sums["loss"] / sums["utterances"]}
    return figures | ({"error": sums["wrong"] / max(1, sums["of"])} if "of" in sums else {})


def time_mask(encoder: Encoder, inputs: Mapping[str, Any], config: TrainingConfig) -> Tensor:
    """(B, T) frames to hide: SpecAugment over time (Park et al., 2019) as in wav2vec 2.0 fine-tuning, spans of 10.

    Args:
        inputs: the model's: ``waveforms`` with ``lengths`` in samples, or ``cnn_output`` with ``frames``.
    """
    if (waveforms := inputs.get("waveforms")) is not None:
        lengths, total = encoder.frame_lengths(inputs["lengths"]), int(encoder.frame_lengths(waveforms.shape[1]))
    else:
        total, lengths = inputs["cnn_output"].shape[1], inputs["frames"]
        if lengths is None:
            lengths = torch.full((len(inputs["cnn_output"]),), total, device=inputs["cnn_output"].device)
    frames = lengths.unsqueeze(1)
    starts = torch.rand(len(lengths), total, device=lengths.device) < config.time_mask_probability / MASK_SPAN
    padded = nn.functional.pad(starts.float(), (MASK_SPAN - 1, 0)).unsqueeze(1)
    spans = nn.functional.max_pool1d(padded, MASK_SPAN, 1).squeeze(1) > 0
    return spans & (torch.arange(total, device=lengths.device) < frames)
