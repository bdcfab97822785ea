"""Several tasks or domains in one run: their batches take turns, each trains its own adapters and head.

What two tasks share learns from both, as "shared" in ``Stack("shared", "asr")`` and ``Stack("shared", "emotion")``.
What only one has is changed by that one's batches alone: an update of one task leaves every bit of the others' as it
was, the optimizer's moments and weight decay included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from speech_adapters.composition.blocks import Composition
from speech_adapters.data.batches import EpochLoader, LengthBatches, SpeechDataset, collate
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.settings import TrainingConfig
from speech_adapters.training.trainer import rate_factor


@dataclass(frozen=True, kw_only=True)
class JointTask:
    """One task of a joint run.

    Attributes:
        name: in the metrics log. value: the adapter or composition that it trains. head: its head.
    """

    name: str
    value: str | Composition
    head: str
    dataset: SpeechDataset


def train_jointly(
    model: SpeechAdapterModel,
    tasks: Sequence[JointTask],
    config: TrainingConfig,
    run: RunFolder | None = None,
) -> dict[str, list[float]]:
    """Train all tasks together, ``config.updates`` batches each, in turn; returns the losses of each task.

    One AdamW over everything, each group at its own learning rate. Batches, warm-up, schedule, clipping, seed and
    logging follow ``config``; evaluation, checkpoints and several processes are the single-task trainer's.

    Raises:
        ConfigError: no tasks, two of one name, a composition and a head that do not fit, or settings of the
            single-task trainer.
        RuntimeError: a trainable tensor without gradient after two updates of its task.
    """
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ConfigError(f"train_jointly: tasks {names}: give at least one, each with a name of its own.")
    for setting in ("evaluate_every", "save_every", "patience", "time_mask_probability", "accumulation"):
        default = TrainingConfig.__dataclass_fields__[setting].default
        if getattr(config, setting) != default:
            raise ConfigError(f"train_jointly: training.{setting} is the single-task trainer's; set it to {default}.")
    torch.manual_seed(config.seed)
    groups, members = _groups(model, tasks, config)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    factor = partial(rate_factor, config.schedule, round(config.warmup * config.updates), config.updates)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    batches = [_endless(task.dataset, config) for task in tasks]
    losses: dict[str, list[float]] = {name: [] for name in names}
    device = model.encoder.device
    model.gradient_checkpointing = config.gradient_checkpointing
    for update in tqdm(range(config.updates), desc=" + ".join(names), unit="round", leave=False):
        for task, stream in zip(tasks, batches, strict=True):
            model.train_adapter(task.value, head=task.head)
            optimizer.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient: the other tasks' own
            batch = {
                k: v.to(device) if isinstance(v, Tensor) else v for k, v in next(stream).items() if k != "indices"
            }
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            if update == 1:
                model.check_alive()
            nn.utils.clip_grad_norm_(members[task.name], config.max_grad_norm)
            optimizer.step()
            losses[task.name].append(float(loss.detach()))
            if run is not None and (update + 1) % config.log_every == 0:
                run.log_metrics({"method": task.name, "step": update + 1, "loss": losses[task.name][-1]})
        schedule.step()
    model.eval()
    return losses


def _groups(model: SpeechAdapterModel, tasks: Sequence[JointTask], config: TrainingConfig):
    """The optimizer's groups over all tasks, every tensor once, and each task's own list of parameters."""
    seen: set[int] = set()
    groups, members = [], {}
    for task in tasks:
        model.train_adapter(task.value, head=task.head)
        own = model.parameter_groups()
        rates = model.learning_rates({k: v for k, v in config.learning_rates.items() if k in own})
        members[task.name] = [parameter for group in own.values() for parameter in group]
        for name, parameters in own.items():
            new = [parameter for parameter in parameters if id(parameter) not in seen]
            seen.update(map(id, new))
            if new:
                groups.append({"params": new, "lr": rates[name], "name": f"{task.name}.{name}"})
    if not groups:
        raise ConfigError("train_jointly: nothing is trainable.")
    return groups, members


def _endless(dataset: SpeechDataset, config: TrainingConfig) -> Iterator[dict[str, Tensor]]:
    durations = [utterance.duration for utterance in dataset.manifest]
    loader = EpochLoader(
        dataset,
        batch_sampler=LengthBatches(durations, config.batch_seconds, seed=config.seed),
        collate_fn=collate,
        num_workers=config.workers,
    )
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1
