"""The Hugging Face Trainer, taught three things: parameter groups, batches by length, and that adapters must be alive.

What comes with it: bf16, gradient accumulation, several processes (``torchrun``), resuming, trackers.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.batches import EpochLoader, LengthBatches, SpeechDataset, collate, evaluation_loader
from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder, peak_memory_bytes, reset_peak_memory
from speech_adapters.training.cache import CachedDataset
from speech_adapters.training.settings import TrainingConfig

STATE = "trainable.pt"
MASK_SPAN = 10


@dataclass(frozen=True)
class TrainingResult:
    """What a run cost: updates made, wall seconds of training, audio seconds a wall second, peak memory in bytes."""

    updates: int
    seconds: float
    audio_seconds_per_second: float
    peak_memory_bytes: int
    final_loss: float
    best_dev_loss: float | None

    def __add__(self, later: TrainingResult) -> TrainingResult:
        """Two stages of one training."""
        seconds = self.seconds + later.seconds
        audio = sum(stage.audio_seconds_per_second * stage.seconds for stage in (self, later))
        return TrainingResult(
            updates=self.updates + later.updates,
            seconds=seconds,
            audio_seconds_per_second=audio / max(seconds, 1e-9),
            peak_memory_bytes=max(self.peak_memory_bytes, later.peak_memory_bytes),
            final_loss=later.final_loss,
            best_dev_loss=later.best_dev_loss,
        )


def train(
    model: SpeechAdapterModel,
    dataset: SpeechDataset,
    config: TrainingConfig,
    run: RunFolder,
    dev: SpeechDataset | None = None,
    method: str = "adapter",
    resume: bool = False,
) -> TrainingResult:
    """Train what :meth:`SpeechAdapterModel.train_adapter` has chosen.

    Args:
        method: name under which metrics and checkpoints of this run are kept in the run folder.
        resume: go on from the run's last checkpoint of this method (``config.save_every``).

    Raises:
        ConfigError: nothing to train, no active head, crops for a CTC head, or nothing to resume from.
        RuntimeError: a trainable tensor without gradient after two updates.
    """
    if model.head is None:
        raise ConfigError("train: no head is active; add_head and train_adapter(name, head=...) first.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("train: nothing is trainable; call model.train_adapter(name, head=...) first.")
    if config.evaluate_every and dev is None:
        raise ConfigError("train: training.evaluate_every needs a dev set.")
    if dataset.crop_seconds is not None and isinstance(model.head, CTCHeadModule):
        raise ConfigError("train: training.crop_seconds cuts speech but not its text; a CTC head needs it whole.")
    if config.cache is not None:
        cached = partial(CachedDataset, model=model, folder=config.cache, batch_seconds=config.batch_seconds)
        dataset, dev = cached(dataset), None if dev is None else cached(dev)
    model.gradient_checkpointing = config.gradient_checkpointing
    checkpoints = run.path / "checkpoints" / method
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard / method)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config.updates,
        gradient_accumulation_steps=config.accumulation,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if config.evaluate_every else "no",
        eval_steps=config.evaluate_every or None,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        save_total_limit=1,
        dataloader_num_workers=config.workers,
        remove_unused_columns=False,
        report_to=[name for name in config.trackers if name != "none"],
        run_name=method,
        seed=config.seed,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    trainer = AdapterTrainer(model, dataset, dev, config, arguments, run, method)
    reset_peak_memory(arguments.device)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints) if resume else None)
    seconds = time.perf_counter() - started
    trainer.restore_best()
    model.eval()
    return TrainingResult(
        updates=trainer.state.global_step,
        seconds=seconds,
        audio_seconds_per_second=trainer.audio_seconds / max(seconds, 1e-9),
        peak_memory_bytes=peak_memory_bytes(arguments.device),
        final_loss=next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), float("nan")),
        best_dev_loss=trainer.best_loss,
    )


class AdapterTrainer(Trainer):
    """See the module; use :func:`train`."""

    def __init__(
        self,
        model: SpeechAdapterModel,
        dataset: SpeechDataset,
        dev: SpeechDataset | None,
        config: TrainingConfig,
        arguments: TrainingArguments,
        run: RunFolder,
        method: str,
    ) -> None:
        self.config, self.adapter_model = config, model
        self.audio_seconds = 0.0
        self.best_loss: float | None = None
        self._best: dict[str, Tensor] | None = None
        self._worse = 0
        super().__init__(model=model, args=arguments, train_dataset=dataset, eval_dataset=dev, data_collator=collate)
        self.model_accepts_loss_kwargs = False  # our loss is a mean over utterances, not over tokens
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_Follow(self, run, method))

    # -- data

    def get_train_dataloader(self) -> EpochLoader:
        batches = LengthBatches(
            self.train_dataset.durations,
            self.config.batch_seconds,
            seed=self.config.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            accumulation=self.config.accumulation,
        )
        return EpochLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.config.workers,
            persistent_workers=False,
        )

    # -- loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("indices", None)
        if model.training and "waveforms" in inputs:
            lengths = inputs["lengths"]
            self.audio_seconds += float(lengths.sum()) / SAMPLE_RATE * self.args.world_size
            inputs["time_mask"] = self._time_mask(lengths, inputs["waveforms"].shape[1])
        elif model.training:
            samples = float(inputs["frames"].sum()) * self.adapter_model.encoder.stride
            self.audio_seconds += samples / SAMPLE_RATE * self.args.world_size
        output = model(**inputs)
        return (output.loss, output) if return_outputs else output.loss

    def _time_mask(self, lengths: Tensor, samples: int) -> Tensor | None:
        """SpecAugment over time (Park et al., 2019), as in wav2vec 2.0 fine-tuning: spans of 10 frames."""
        probability = self.config.time_mask_probability
        if probability == 0:
            return None
        encoder = self.adapter_model.encoder
        frames = encoder.frame_lengths(lengths).unsqueeze(1)
        total = int(encoder.frame_lengths(samples))
        starts = torch.rand(len(lengths), total, device=lengths.device) < probability / MASK_SPAN
        spans = torch.nn.functional.max_pool1d(
            torch.nn.functional.pad(starts.float(), (MASK_SPAN - 1, 0)).unsqueeze(1), MASK_SPAN, 1
        )
        return (spans.squeeze(1) > 0) & (torch.arange(total, device=lengths.device) < frames)

    # -- optimizer: one group a part, each with its rate

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = self.adapter_model.parameter_groups()
            rates = self.adapter_model.learning_rates(self.config.learning_rates)
            self.optimizer = torch.optim.AdamW(
                [{"params": groups[name], "lr": rates[name], "name": name} for name in groups],
                weight_decay=self.config.weight_decay,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            factor = partial(rate_factor, self.config.schedule, round(self.config.warmup * num_training_steps))
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, partial(factor, num_training_steps)
            )
        return self.lr_scheduler

    # -- evaluation on the dev set, keeping the best

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        model, total, count = self.adapter_model, 0.0, 0
        model.eval()
        for batch in evaluation_loader(self.eval_dataset, self.config.batch_seconds):
            batch = self._prepare_inputs(batch)
            size = len(batch["indices"])
            with self.compute_loss_context_manager():
                total += float(self.compute_loss(model, batch)) * size
            count += size
        model.train()
        loss = total / count
        self.log({"eval_loss": loss})
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self._worse = loss, 0
            self._best = {name: tensor.detach().clone() for name, tensor in self._trainable().items()}
        else:
            self._worse += 1
            self.control.should_training_stop |= bool(self.config.patience) and self._worse >= self.config.patience
        return {"eval_loss": loss}

    def restore_best(self) -> None:
        """Put back the parameters of the best evaluation, when early stopping was on."""
        if self.config.patience and self._best is not None:
            with torch.no_grad():
                for name, tensor in self._trainable().items():
                    tensor.copy_(self._best[name])

    # -- checkpoints hold what trains, not the frozen base

    def _trainable(self) -> dict[str, Tensor]:
        """What training changes: parameters, and the running statistics of a head with batch norm."""
        chosen = {id(p) for group in self.adapter_model.parameter_groups().values() for p in group}
        parameters = {name: p for name, p in self.adapter_model.named_parameters() if id(p) in chosen}
        return parameters | {f"head/{name}": buffer for name, buffer in self.adapter_model.head.named_buffers()}

    def _save(self, output_dir=None, state_dict=None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: tensor.detach().cpu() for name, tensor in self._trainable().items()}, folder / STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        saved = torch.load(Path(resume_from_checkpoint) / STATE, map_location=self.args.device, weights_only=True)
        with torch.no_grad():
            for name, tensor in self._trainable().items():
                if name not in saved:
                    raise ConfigError(f"{resume_from_checkpoint}: holds no {name!r}; it belongs to another adapter.")
                tensor.copy_(saved[name])


def rate_factor(schedule: str, warmup: int, updates: int, done: int) -> float:
    """Share of the learning rate for the update after ``done`` ones.

    The warm-up starts above zero: a first update at rate zero would waste it, and hide a dead adapter for one longer.
    """
    if done < warmup:
        return (done + 1) / (warmup + 1)
    progress = min(1.0, (done - warmup) / max(1, updates - warmup))
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[schedule]


class _Follow(TrainerCallback):
    """Progress bar, metrics.jsonl, and the check that every trainable tensor learns."""

    def __init__(self, trainer: AdapterTrainer, run: RunFolder, method: str) -> None:
        self.trainer, self.run, self.method = trainer, run, method
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.method, unit="update", leave=False
            )

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:  # the second update: what a zero start hides in the first is alive by now
            self.trainer.adapter_model.check_alive()

    def on_step_begin(self, args, state, control, **kwargs):
        for name in self.trainer.adapter_model.trained_adapters:
            self.trainer.adapter_model.adapters[name].before_update(state.global_step, state.max_steps)

    def on_optimizer_step(self, args, state, control, **kwargs):
        for name in self.trainer.adapter_model.trained_adapters:
            self.trainer.adapter_model.adapters[name].after_update(state.global_step + 1, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or not ({"loss", "eval_loss"} & set(logs)):
            return
        line = {"method": self.method, "step": state.global_step}
        line |= {key: value for key, value in logs.items() if isinstance(value, int | float)}
        if "loss" in logs and self.trainer.optimizer is not None:
            line["learning_rate"] = {g["name"]: g["lr"] for g in self.trainer.optimizer.param_groups}
        self.run.log_metrics(line)
        if self.bar is not None:
            self.bar.set_postfix(
                {key: f"{logs[key]:.3f}" for key in ("loss", "eval_loss") if key in logs}, refresh=False
            )

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


def _last_checkpoint(folder: Path) -> str:
    from transformers.trainer_utils import get_last_checkpoint

    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last is None:
        raise ConfigError(f"{folder}: no checkpoint to resume from; train with training.save_every above 0 first.")
    return last
