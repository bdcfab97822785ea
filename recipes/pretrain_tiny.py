"""Make a small encoder: distil Whisper's encoder into a raw-waveform one of the wav2vec 2.0, HuBERT or WavLM family.

    python recipes/pretrain_tiny.py --config recipes/pretrain_tiny.yaml data=/path/to/data
    python recipes/pretrain_tiny.py --config recipes/pretrain_tiny.yaml        # again: goes on where it stopped
    python recipes/pretrain_tiny.py data=... student.family=wavlm init_from=runs/pretrain_tiny/wav2vec2 \\
        front.hours=0 joint.hours=0

Whisper's layers fit the pre-norm layers of the three families tensor for tensor; its log-mel front-end and sinusoidal
positions do not. So the student starts from the teacher's layers and learns a convolutional front-end that feeds them
(``front``); then everything learns to give the teacher's hidden state in every layer (``joint`` at a constant learning
rate, ``anneal`` with a falling one), hearing noisy and telephone speech where the teacher hears it clean.

The run folder holds checkpoints (written every few minutes and on Ctrl-C; the same command resumes them to the same
weights), ``metrics.jsonl``, ``results.json`` and, in the end, ``encoder/`` in Hugging Face's format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from speech_adapters.config import option, parse_cli, run_main, to_dict
from speech_adapters.data.augmentation import Augmentation, Speed
from speech_adapters.data.crops import Speech
from speech_adapters.data.folder import data_path
from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders.families.wav2vec2 import receptive_field
from speech_adapters.errors import ConfigError
from speech_adapters.objectives.distillation import HiddenStateDistillation
from speech_adapters.objectives.student import Stage, clean_crops, distil, load_weights, observe_teacher
from speech_adapters.objectives.whisper_student import save_encoder, start_at_mean, whisper_student
from speech_adapters.objectives.whisper_teacher import WhisperTeacher
from speech_adapters.precision import autocast, fast_bfloat16
from speech_adapters.ranges import Count, NotNegative, Range, Seed, Share, Size
from speech_adapters.runs.environment import environment
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.results import MethodResults, Results

POSITIONS = 600
"""Frames whose mean over utterances is taken out of the teacher's states: 12 s."""
STAGES = ("front", "joint", "anneal")
FREE_TO_CHANGE = ("data", "device", "workers", "checkpoint_minutes", "log_steps", "shared_with")


@dataclass(kw_only=True)
class Student:
    """What is built; width, layers and heads are the teacher's."""

    family: Literal["wav2vec2", "hubert", "wavlm"] = option("wav2vec2", "same tensors but for WavLM's position bias")
    conv_dim: tuple[Size, ...] = option((320, 384, 384, 384), "CNN channels: 9.0 M parameters in all, 18 MB in fp16")
    conv_kernel: tuple[Size, ...] = option((400, 1, 3, 3), "windows, compression, two convolutions: the teacher's own")
    conv_stride: tuple[Size, ...] = option((160, 1, 1, 2), "product 320, the families' and the teacher's: 50 frames/s")
    position_kernel: Size = option(64, "frames of the positional convolution: 1.3 s; Base has 128")
    position_groups: Size = option(16, "of the positional convolution, as Base")


@dataclass(kw_only=True)
class Pretrain:
    """Which student learns from which teacher, on which speech."""

    data: Path | None = option(None, "where relative paths below start; by default $SPEECH_ADAPTERS_DATA")
    train: tuple[Path, ...] = option(
        (Path("manifests/sv_librispeech_train.jsonl"), Path("manifests/asr_arctic_train.jsonl")),
        "speech; no text is needed",
    )
    teacher: Path = option(Path("teacher/whisper_tiny_en_encoder.safetensors"), "a Whisper encoder")
    student: Student = option(Student())
    init_from: Path | None = option(None, "run folder or Hugging Face folder whose weights to start from")
    layers_from: Path | None = option(
        None, "the same, for the transformer layers alone: from a student with another front-end"
    )

    statistics_batches: Count = option(24, "of 12 s crops: half an hour for the teacher's moments")
    front: Stage = option(
        Stage(hours=10.0, learning_rate=4e-3, schedule="cosine", warmup_steps=30, max_norm=1.0, crop_seconds=3.0,
              layer_weights=(1.0,), corrupt=False),
        "the front-end alone, on the teacher's layer 0 without positions: 5 times faster than whole steps",
    )  # fmt: skip
    joint: Stage = option(Stage(hours=100.0), "everything, at a constant rate: may be prolonged")
    anneal: Stage = option(Stage(hours=40.0, schedule="cosine"), "everything; the falling rate gives the last gain")

    crops: Size = option(4, "full crops a batch")
    speeds: tuple[Speed, ...] = option((0.9, 1.0, 1.1), "Ko et al. 2015; teacher and student hear the same speed")
    heard: Augmentation = option(
        # The speed is the teacher's as well, see above. Mu-law stands for all codecs: a probe on it is the bar.
        Augmentation(speed_probability=0.0, noise_manifest="manifests/noise_esc10.jsonl", noise_probability=0.3,
                     snr_db=(3.0, 20.0), telephone_probability=0.3, codecs=("mu-law",)),
        "what happens to the student's input, where the teacher hears clean speech and its states stay the target",
    )  # fmt: skip
    peaks: tuple[Share, Share] = option((0.1, 0.9), "level before that; the codec's noise depends on it")

    output: Path | None = option(None, "run folder, resumed where it exists; by default runs/pretrain_tiny/<family>")
    shared_with: str | None = option(None, "such as ../tiny-wav2vec2: point to its equal weights instead")
    seed: Seed = option(0, "of weights, order and augmentation")
    device: str = option("cpu", "or cuda")
    bf16: bool | None = option(None, "autocast, the same losses; by default where the hardware has it: a third faster")
    workers: Annotated[int, Range(0, 1024)] = option(0, "processes that prepare batches; 0 suits a CPU, 8 a GPU")
    checkpoint_minutes: NotNegative = option(5.0, "between checkpoints")
    log_steps: Count = option(50, "between lines of metrics.jsonl")

    def __post_init__(self) -> None:
        if math.prod(self.student.conv_stride) != 320:
            raise ConfigError("student.conv_stride: the strides must multiply to 320, the teacher's frame rate")
        sizes = {len(self.student.conv_dim), len(self.student.conv_kernel), len(self.student.conv_stride)}
        if len(sizes) != 1:
            raise ConfigError("student: conv_dim, conv_kernel and conv_stride each need one entry per layer")


def main(argv: list[str] | None = None) -> Path:
    config = parse_cli(Pretrain, argv, description=__doc__)
    manifests = [Manifest.read(data_path(path, config.data), check_files=True) for path in config.train]
    manifest = sum(manifests[1:], manifests[0])
    noise = config.heard.noise_manifest
    augmentation = replace(config.heard, noise_manifest=noise and str(data_path(Path(noise), config.data)))
    if noise:
        len(augmentation.noises)  # read now: a missing file is an error before training

    # What teaches and what learns: the student starts from the teacher's layers.
    field = receptive_field(config.student)
    teacher = WhisperTeacher(data_path(config.teacher, config.data), field).to(config.device)
    torch.manual_seed(config.seed)
    student = whisper_student(teacher, **to_dict(config.student))
    layers = teacher.encoder.config.encoder_layers
    stages = {name: getattr(config, name) for name in STAGES}
    for name, stage in stages.items():
        if not 1 <= len(stage.layer_weights) <= layers + 1:
            raise ConfigError(f"{name}.layer_weights: give 1 to {layers + 1} weights, for states 0 to {layers}")
    if config.init_from is not None:
        load_weights(student, "init_from", config.init_from)
    if config.layers_from is not None:
        load_weights(student, "layers_from", config.layers_from, "encoder.layer")
    out = config.output or Path("runs/pretrain_tiny") / config.student.family
    run = RunFolder.open("pretrain_tiny", config, out, ignore=FREE_TO_CHANGE)
    speech = Speech(manifest, run.path.parent, math.ceil(field * max(1.0, *config.speeds)))

    # The teacher's mean and deviation, by channel and by position.
    width = student.config.hidden_size
    distillation = HiddenStateDistillation(width, width, [(i, i) for i in range(layers + 1)], None, POSITIONS)
    precision = "bf16" if config.bf16 or (config.bf16 is None and fast_bfloat16(config.device)) else "fp32"
    clean = clean_crops(speech, (config.seed, len(STAGES)), POSITIONS / 50, config.crops, config.statistics_batches)
    observe_teacher(
        distillation.to(config.device), teacher, clean, run.path / "statistics.pt", autocast(config.device, precision)
    )
    if config.init_from is None:
        start_at_mean(student, distillation.mean[0].cpu(), distillation.std[0].cpu())

    def augment(wave: Tensor, rng: np.random.Generator) -> Tensor:
        """Clean speech (samples,) -> what the student hears, of the same length."""
        return augmentation(wave * (rng.uniform(*config.peaks) / (float(wave.abs().max()) + 1e-6)), rng)

    results = distil(
        student.to(config.device), teacher, distillation, stages, speech, run,
        seed=config.seed, crops=config.crops, speeds=config.speeds, augment=augment, workers=config.workers,
        precision=precision, log_every=config.log_steps,
        save_minutes=config.checkpoint_minutes,
    )  # fmt: skip
    folder = run.path / "encoder"
    save_encoder(student, folder, config.shared_with)
    lines = run.read_metrics()
    Results(
        task="pretrain_tiny",
        encoder=str(folder),
        adapter="student",
        data={"train": manifest.describe()},
        own=MethodResults(
            metrics={key: value for key, value in (lines[-1] if lines else {}).items() if key.startswith("layer_")},
            parameters={"total": sum(p.numel() for p in student.parameters())},
            seconds=sum(result.seconds for result in results.values()),
        ),
        seeds=[config.seed],
        environment=environment(config.device),
    ).write(run.results_file)
    print(f"{folder}: done. Score it with: python benchmarks/probe_encoder.py --encoder {folder} --random")
    return folder


if __name__ == "__main__":
    run_main(lambda: bool(main()) and 0)
