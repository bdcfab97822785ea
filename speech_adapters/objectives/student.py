"""Distil a teacher into a student, in stages that share the student, the teacher's statistics and the run folder.

Each :class:`Stage` is one training by the loop; :func:`distil` runs them in order and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from speech_adapters.config import option
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.crops import Crops, Speech, crop_batches
from speech_adapters.encoders import BASE, encode
from speech_adapters.encoders.families import family_of
from speech_adapters.encoders.families.wav2vec2 import Model, Wav2Vec2
from speech_adapters.encoders.families.wavlm import WavLM
from speech_adapters.errors import CheckpointError
from speech_adapters.files import atomic
from speech_adapters.objectives.distillation import HiddenStateDistillation
from speech_adapters.objectives.whisper_teacher import WhisperTeacher
from speech_adapters.ranges import CountOrNone, NotNegative, Positive, Range, Rate, check_values
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.learner import Learner, Loss, Position
from speech_adapters.training.loop import fit
from speech_adapters.training.result import TrainingResult
from speech_adapters.training.settings import LoopConfig

Augment = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(kw_only=True)
class Stage:
    """One part of the training, with an optimizer of its own."""

    hours: NotNegative = option(0.0, "of audio heard; 0 skips the stage")
    learning_rate: Rate = option(1e-3, "peak, of AdamW")
    schedule: Literal["constant", "cosine"] = option("constant", "after the warm-up; cosine falls to 2 % of the peak")
    warmup_steps: CountOrNone = option(200, "linear, from 0")
    max_norm: Annotated[float, Range(0, above=True)] = option(2.0, "gradients are clipped to this norm")
    crop_seconds: Positive = option(5.0, "longest piece of an utterance")
    layer_weights: tuple[NotNegative, ...] = option(
        (0.5, 1.0, 1.0, 1.0, 2.0), "of states 0 to n; later ones are not run. One alone: the front-end, no positions"
    )
    corrupt: bool = option(True, "augment what the student hears (see heard below)")

    def __post_init__(self) -> None:
        check_values(self)

    def loop(self, crops: int, **options: object) -> LoopConfig:
        """Settings of the loop, for batches of ``crops`` full crops; ``options`` are further ones."""
        updates = max(1, round(self.hours * 3600 / (crops * self.crop_seconds)))
        return LoopConfig(
            updates=updates,
            schedule=self.schedule,
            final_rate=0.02,
            warmup=min(0.5, self.warmup_steps / updates),
            weight_decay=0.01,
            betas=(0.9, 0.98),  # of wav2vec 2.0 (Baevski et al. 2020, section 4.2): gradients change fast at first
            max_grad_norm=self.max_norm,
            **options,  # type: ignore[arg-type]
        )


class StudentLearner(Learner):
    """A student in training: all of it is saved, and nothing in it is dropped out."""

    student: Model

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.student.state_dict())

    def train(self, mode: bool = True) -> None:
        self.student.eval()  # distillation needs no dropout

    def check_alive(self) -> None:
        """A student has tensors that cannot learn: key biases, the mask embedding, what later layers would read."""


class StudentDistillation(StudentLearner):
    """The student, or its front-end alone, against the teacher's states on random crops.

    Args:
        distillation: the loss over the teacher's statistics, for all states.
        key: of the crops, beside their epoch.
        augment: what the student hears of a clean crop; None hears it clean.
    """

    def __init__(
        self,
        student: Model,
        teacher: WhisperTeacher,
        distillation: HiddenStateDistillation,
        stage: Stage,
        speech: Speech,
        key: Sequence[int],
        crops: int,
        workers: int = 0,
        speeds: Sequence[float] = (1.0,),
        augment: Augment | None = None,
    ) -> None:
        self.student, self.teacher, self.stage, self.speech = student, teacher, stage, speech
        self.key, self.count, self.workers = tuple(key), crops, workers
        self.speeds, self.augment = speeds, augment if stage.corrupt else None
        self.device = next(student.parameters()).device
        self.stop = len(stage.layer_weights) - 1
        self.distillation = distillation.of_layers(stage.layer_weights).to(self.device)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(self.stop > 0 or any(part in name for part in Wav2Vec2.front_parts))

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return {"student": (trained, self.stage.learning_rate)}

    def batches(self, at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        crops = Crops(
            self.speech,
            (*self.key, at.epoch),
            crop_seconds=self.stage.crop_seconds,
            crops=self.count,
            speeds=self.speeds,
            augment=self.augment,
        )
        whole = len(crops) - len(crops) % at.processes
        return crop_batches(crops, range(at.place * at.processes + at.rank, whole, at.processes), self.workers)

    def loss(self, batch: tuple[Tensor, Tensor], update: int) -> Loss:
        clean, heard = batch
        wanted = self.teacher(clean, self.stop)
        output = self.distillation(student_states(self.student, heard, self.stop), wanted)
        figures = {f"layer_{i}_loss": value for i, value in enumerate(output.layer_losses)}
        figures |= {f"layer_{i}_cosine": value for i, value in enumerate(output.layer_cosines)}
        return Loss(output.loss, clean.numel() / SAMPLE_RATE, (), figures)


def distil(
    student: Model,
    teacher: WhisperTeacher,
    distillation: HiddenStateDistillation,
    stages: Mapping[str, Stage],
    speech: Speech,
    run: RunFolder,
    *,
    seed: int,
    crops: int,
    speeds: Sequence[float],
    augment: Augment | None,
    workers: int,
    **loop: object,
) -> dict[str, TrainingResult]:
    """Run the stages in order, each from where the one before ended; stages of no hours are left out."""
    results = {}
    for number, (name, stage) in enumerate(stages.items()):
        if stage.hours == 0:
            continue
        learner = StudentDistillation(
            student, teacher, distillation, stage, speech, (seed, number), crops, workers, speeds, augment
        )
        config = stage.loop(crops, seed=seed, workers=workers, trackers=("none",), **loop)
        results[name] = fit(learner, config, run, name)
    return results


def observe_teacher(
    distillation: HiddenStateDistillation,
    teacher: WhisperTeacher,
    waves: Iterable[Tensor],
    file: Path,
    precision: torch.autocast,
) -> None:
    """Take the teacher's statistics on batches (B, samples) of clean speech; once taken, they are kept in ``file``."""
    device = distillation.mean.device

    def observed() -> dict[str, Tensor]:
        for clean in tqdm(waves, desc="teacher's statistics", unit="batch", leave=False, disable=None):
            with precision:
                states = teacher(clean.to(device))
            distillation.observe([state.float() for state in states])
        distillation.finish_observing()
        return distillation.state_dict()

    distillation.load_state_dict(made_once(file, device, observed))


def made_once(file: Path, device: torch.device, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors that a run makes once: those in ``file``, or what ``make`` gives, written there.

    Raises:
        CheckpointError: a damaged file.
    """
    if not file.is_file():
        tensors = make()
        with atomic(file) as opened:
            torch.save(tensors, opened)
        return tensors
    try:
        return cast(dict[str, Tensor], torch.load(file, map_location=device, weights_only=True))
    except Exception as error:  # whatever a damaged file makes torch.load raise
        raise CheckpointError(f"{file}: cannot be read; remove it, and it is made anew.") from error


def clean_crops(speech: Speech, key: Sequence[int], seconds: float, crops: int, batches: int) -> Iterator[Tensor]:
    """So many batches (B, samples) of clean crops at their own speed, of as many passes as that takes."""
    for epoch in count():
        drawn = Crops(speech, (*key, epoch), crop_seconds=seconds, crops=crops)
        for clean, _ in islice(crop_batches(drawn), batches):
            yield clean
        batches -= len(drawn)
        if batches <= 0:
            return


def normalized(waves: Tensor) -> Tensor:
    """(B, samples) at zero mean and unit variance, what ``do_normalize`` promises of the student's input."""
    centred = waves - waves.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-7).sqrt()


def student_states(model: Model, waves: Tensor, stop: int) -> tuple[Tensor, ...]:
    """States 0 to ``stop``, (B, T, D) each; the last layer's after the final LayerNorm, as the teacher's.

    State 0 alone is what the front-end says, before positions are added: they take half of its time.
    """
    if stop == 0:
        family = family_of(model.config)
        return (family.project(model, family.front_end(model, normalized(waves), None, BASE)),)
    output = encode(model, normalized(waves), stop_layer=stop)
    return (*output.hidden_states[:-1], output.last_hidden_state)


def load_weights(model: nn.Module, key: str, source: Path, part: str = "") -> None:
    """Start from a folder in Hugging Face's format, maybe of another family; or from a part of it.

    Args:
        key: the setting that named it, for errors. source: the folder, or a run folder that holds ``encoder/``.
        part: how the names of the tensors to take begin.

    Raises:
        CheckpointError: no weights there, or those of another architecture.
    """
    from safetensors.torch import load_file

    found = [file for folder in (source, source / "encoder") if (file := folder / "model.safetensors").is_file()]
    if not found:
        raise CheckpointError(
            f"{key}={source}: holds no model.safetensors; give a finished run or an encoder's folder"
        )
    tensors = {name: tensor.float() for name, tensor in load_file(str(found[0])).items() if name.startswith(part)}
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{key}={source}: other sizes than the student's; give it the same student") from error
    differing = [name for name in (*missing, *unexpected) if name.startswith(part)]
    if wrong := [name for name in differing if not any(part in name for part in WavLM.position_names)]:
        raise CheckpointError(f"{key}={source}: {wrong[0]} is not in both; it is another architecture")
