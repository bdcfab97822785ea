"""What a training run is: every value with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from speech_adapters.data.audio_files import cache_folder
from speech_adapters.data.augmentation import Augmentation
from speech_adapters.encoders.forward import Checkpointing
from speech_adapters.errors import ConfigError
from speech_adapters.precision import fast_bfloat16
from speech_adapters.ranges import (
    Count,
    CountOrNone,
    Dropout,
    NotNegative,
    Positive,
    Range,
    Rate,
    Seed,
    Share,
    check_values,
)
from speech_adapters.schema import Configuration

TRACKERS = {
    "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "comet_ml": "comet_ml", "aim": "aim",
    "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab", "trackio": "trackio",
}  # fmt: skip
"""Accelerate's names of trackers -> the package that each needs."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where activations that no update changes are kept, so that they are computed once for all epochs, methods, seeds
    and runs. An hour of speech and state of a Base encoder takes 276 MB in half precision."""

    folder: Path | None = None
    """On a local disk; null for ``activations`` in the toolkit's cache folder (``$SPEECH_ADAPTERS_CACHE``)."""

    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """fp16 keeps 11 bits of each value, bf16 has fp32's range and keeps 8; fp32 is exact and takes twice the disk."""

    max_gb: NotNegative | None = None
    """Most that the folder may hold, in 10^9 bytes; what does not fit is computed each time. null: no limit."""

    def __post_init__(self) -> None:
        check_values(self, "cache.")

    @classmethod
    def of(cls, value: Cache | str | os.PathLike[str]) -> Cache:
        """A cache, or the folder of one."""
        return value if isinstance(value, Cache) else cls(folder=Path(value))

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder if self.folder is not None else cache_folder() / "activations"


@dataclass(kw_only=True)
class LoopConfig(Configuration):
    """Settings of one run of the loop, whatever it trains."""

    free_to_change: ClassVar = ("log_every", "save_minutes", "workers", "trackers", "cache")
    """Settings that may change when a run is resumed: no update depends on them, but for a cache's rounding."""

    updates: Count = 1000
    """Optimizer steps. Methods are compared at equal updates."""

    accumulation: Count = 1
    """Batches per update; two processes with 1 give the same update as one process with 2."""

    learning_rates: dict[str, Rate] = field(default_factory=dict)
    """By parameter group ("head", "e", "l", "lora", ...), over the adapter's own published rates."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay after the warm-up; the published recipes decay by hand-made steps, which cosine comes close to."""

    final_rate: Share = 0.0
    """Where the decay ends, as a share of the peak rates."""

    warmup: Dropout = 0.1
    """Share of the updates in which the rates rise from zero; 10 % as in the SURE benchmark."""

    weight_decay: NotNegative = 0.0
    """Otake et al. (2023) use Adam without decay."""

    betas: tuple[Dropout, Dropout] = (0.9, 0.999)
    """Decay of Adam's two moments; Kingma and Ba (2015)."""

    max_grad_norm: Annotated[float, Range(0, above=True)] = 1.0
    """Gradients are clipped to this norm; ``.inf`` does not clip."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 are autocast: weights, loss and optimizer stay in fp32. auto: bf16 where the hardware computes in
    it (GPUs since Ampere, CPUs with AMX or AVX512-BF16), else fp32."""

    evaluate_every: CountOrNone = 0
    """Updates between evaluations on held-out data; 0 makes none. Where there are any, the best state is
    what the training leaves behind (of AdaLoRA perhaps one from before its last pruning)."""

    patience: CountOrNone = 0
    """Stop after this many evaluations in a row without a better state; 0 never stops early."""

    log_every: Count = 10
    """Updates between lines of metrics.jsonl."""

    save_minutes: NotNegative | None = 5.0
    """Minutes between checkpoints that a stopped run goes on from; 0 saves after every update, null only when asked
    to stop (Ctrl-C, SIGTERM). A run that went on ends with the same weights as one that was not stopped."""

    workers: Annotated[int, Range(0, 1024)] = 0
    """Processes that read and augment audio; 0 does it in the training process."""

    seed: Seed = 0
    """Of the order of the data, augmentation, masks and dropout: all follow from it and the update's number."""

    trackers: tuple[str, ...] = ("tensorboard",)
    """Where else metrics go, by accelerate's names: "tensorboard", "wandb", "mlflow", ...; "none" for nowhere."""

    def __post_init__(self) -> None:
        check_values(self, "training.")
        self._require(
            not self.patience or self.evaluate_every > 0, "patience", "watches evaluations: set evaluate_every"
        )
        for tracker in self.trackers:
            if tracker != "none" and find_spec(TRACKERS.get(tracker, "") or "-") is None:
                known = ", ".join((*TRACKERS, "none"))
                remedy = f"install {TRACKERS[tracker]}" if tracker in TRACKERS else f"choose from {known}"
                raise ConfigError(f"training.trackers: {tracker!r} cannot be used; {remedy}.")
        if self.precision == "auto":
            self.precision = "bf16" if fast_bfloat16() else "fp32"

    def _require(self, fine: bool, name: str, what: str) -> None:
        if not fine:
            raise ConfigError(f"training.{name}={getattr(self, name)}: {what}.")


@dataclass(kw_only=True)
class TrainingConfig(LoopConfig):
    """Settings of one training on labelled speech, the same for an adapter and its baselines."""

    batch_seconds: Positive = 60.0
    """Audio per batch and process, in seconds, padding included; utterances of like length share a batch."""

    keep: Literal["error", "loss"] | None = None
    """Which of the evaluated states is left behind, and what ``patience`` waits for: the smallest share of wrong words
    (CTC) or utterances (classes), of equal ones the lower loss; or the lowest loss. By default errors, where the head
    counts them: a CTC loss turns up long before words stop getting better."""

    crop_seconds: Annotated[float, Range(0.1, below=True)] | None = None
    """Train on a random piece of at most this length; None on whole utterances. Otake et al. (2023) cut at 12.5 for
    emotion and speakers, margin losses are usually trained on 3; not for recognition, whose text would not fit."""

    time_mask_probability: Dropout = 0.0
    """Share of frames hidden by SpecAugment (spans of 10) at the encoder's input; 0.05 for wav2vec 2.0 fine-tuning."""

    augmentation: Augmentation | None = None
    """Speed, noise and telephone augmentation of the waveforms; None for none."""

    gradient_checkpointing: Checkpointing = False
    """Recompute layers in the backward pass: less memory, about a third more time; ``selective`` recomputes only what
    is large and cheap, attention weights and activations, for a sixth more time."""

    cache: Cache | Path | None = None
    """Activations below the lowest place that trains, computed once for all epochs, methods, seeds and runs: a folder,
    or ``{folder, precision, max_gb}``; null computes all in each epoch. Heads and L-adapters on frozen layers then run
    no encoder at all. Goes with no augmentation; crops and time masks leave the CNN's output to be kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(not self.keep or self.evaluate_every > 0, "keep", "needs evaluations: set evaluate_every")
        if self.cache is not None and self.augmentation is not None:
            raise ConfigError("training.cache: augmentation changes the audio in each epoch; set one of them to null.")

    @property
    def dataset_options(self) -> dict[str, Any]:
        """How a :class:`~speech_adapters.data.batches.SpeechDataset` to train on reads its utterances."""
        return {"augmentation": self.augmentation, "seed": self.seed, "crop_seconds": self.crop_seconds}


def settings_of_updates(config: LoopConfig) -> dict[str, str]:
    """All that shapes the updates, as text: what a checkpoint belongs to."""
    return {f.name: repr(getattr(config, f.name)) for f in fields(config) if f.name not in config.free_to_change}
