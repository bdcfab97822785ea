"""What a training run is: every value with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from speech_adapters.data.augmentation import Augmentation
from speech_adapters.errors import ConfigError


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of one training run; the same for an adapter and its baselines, so that updates match."""

    updates: int = 1000
    """Optimizer steps. Methods are compared at equal updates."""

    batch_seconds: float = 60.0
    """Audio per batch and process, in seconds, padding included; utterances of like length share a batch."""

    crop_seconds: float | None = None
    """Train on a random piece of at most this length; None on whole utterances. Otake et al. (2023) cut at 12.5 for
    emotion and speakers, margin losses are usually trained on 3; not for recognition, whose text would not fit."""

    accumulation: int = 1
    """Batches per update; two processes with 1 give the same update as one process with 2."""

    learning_rates: dict[str, float] = field(default_factory=dict)
    """By parameter group ("head", "e", "l", "lora", ...), over the adapter's own published rates."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay to zero after the warm-up; the published recipes decay by hand-made steps, which cosine comes close to."""

    warmup: float = 0.1
    """Share of the updates in which the rates rise from zero; 10 % as in the SURE benchmark."""

    weight_decay: float = 0.0
    """Otake et al. (2023) use Adam without decay."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""

    time_mask_probability: float = 0.0
    """Share of frames hidden by SpecAugment (spans of 10) at the encoder's input; 0.05 for wav2vec 2.0 fine-tuning."""

    augmentation: Augmentation | None = None
    """Speed, noise and telephone augmentation of the waveforms; None for none."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast: weights, loss and optimizer stay in fp32. auto: bf16 where the hardware computes in it (GPUs
    since Ampere, CPUs with AMX or AVX512-BF16), else fp32."""

    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, about a third more time."""

    evaluate_every: int = 0
    """Updates between evaluations on the dev set; 0 evaluates at the end only."""

    patience: int = 0
    """Stop after so many evaluations without a better dev loss, and keep the best; 0 never stops early."""

    log_every: int = 10
    """Updates between lines of metrics.jsonl."""

    save_every: int = 0
    """Updates between checkpoints to resume from; 0 saves none."""

    cache: Path | None = None
    """Folder for activations below the lowest adapter, computed once for all epochs, methods, seeds and runs: a head
    alone trains many times faster, adapters in upper layers up to twice. Goes with no augmentation, no crops; null
    caches nothing."""

    workers: int = 0
    """Processes that read and augment audio; 0 does it in the training process."""

    seed: int = 0

    trackers: tuple[str, ...] = ("tensorboard",)
    """Where else metrics go, by their transformers names: "tensorboard", "wandb", "mlflow", ..."""

    def __post_init__(self) -> None:
        for name in ("updates", "accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name}={getattr(self, name)}: must be at least 1.")
        if self.batch_seconds <= 0:
            raise ConfigError(f"training.batch_seconds={self.batch_seconds}: must be above 0.")
        if self.crop_seconds is not None and self.crop_seconds < 0.1:
            raise ConfigError(
                f"training.crop_seconds={self.crop_seconds}: must be at least 0.1, or null for no crops."
            )
        if not 0 <= self.warmup < 1 or not 0 <= self.time_mask_probability < 1:
            raise ConfigError("training.warmup and training.time_mask_probability must lie in [0, 1).")
        if self.precision == "auto":
            self.precision = "bf16" if fast_bfloat16() else "fp32"
        if self.cache is not None and (
            self.augmentation is not None or self.time_mask_probability or self.crop_seconds
        ):
            raise ConfigError(
                "training.cache: augmentation, time masks and crops change what is cached; turn one off."
            )
        if self.patience and not self.evaluate_every:
            raise ConfigError("training.patience needs training.evaluate_every: early stopping watches evaluations.")


def fast_bfloat16() -> bool:
    """True where bf16 is faster than fp32: a GPU or CPU with instructions for it (AMX, AVX512-BF16)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
