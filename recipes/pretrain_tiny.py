"""Make a small encoder: distil Whisper's encoder into a raw-waveform one of the wav2vec 2.0, HuBERT or WavLM family.

    python recipes/pretrain_tiny.py --config recipes/pretrain_tiny.yaml data=/path/to/data
    python recipes/pretrain_tiny.py --config recipes/pretrain_tiny.yaml        # again: goes on where it stopped
    python recipes/pretrain_tiny.py data=... student.family=wavlm init_from=runs/pretrain_tiny/wav2vec2 \\
        front.hours=0 joint.hours=0

Whisper's layers fit the pre-norm layers of the three families tensor for tensor; its log-mel front-end and sinusoidal
positions do not. So the student starts from the teacher's layers and learns a convolutional front-end that feeds them
(``front``); then everything learns to give the teacher's hidden state in every layer (``joint`` at a constant learning
rate, ``anneal`` with a falling one), hearing noisy and telephone speech where the teacher hears it clean.

The run folder holds ``checkpoint.pt`` (written every few minutes and on Ctrl-C; the same command resumes it to the
same weights), ``metrics.jsonl``, ``results.json`` and, in the end, ``encoder/`` in Hugging Face's format.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from speech_adapters.config import load_config, option, parse_cli, run_main, to_dict
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.augmentation import Augmentation
from speech_adapters.data.crops import Crops, Speech, crop_batches
from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders import encode
from speech_adapters.encoders.forward import receptive_field
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.files import read_log, write_text
from speech_adapters.objectives.distillation import HiddenStateDistillation
from speech_adapters.objectives.whisper_student import save_encoder, start_at_mean, whisper_student
from speech_adapters.objectives.whisper_teacher import WhisperTeacher
from speech_adapters.runs.folder import RunFolder, environment


@dataclass(kw_only=True)
class Student:
    """What is built; width, layers and heads are the teacher's."""

    family: Literal["wav2vec2", "hubert", "wavlm"] = option("wav2vec2", "same tensors but for WavLM's position bias")
    conv_dim: tuple[int, ...] = option((320, 384, 384, 384), "CNN channels: 9.0 M parameters in all, 18 MB in fp16")
    conv_kernel: tuple[int, ...] = option((400, 1, 3, 3), "windows, compression, two convolutions: the teacher's own")
    conv_stride: tuple[int, ...] = option((160, 1, 1, 2), "product 320, the families' and the teacher's: 50 frames/s")
    position_kernel: int = option(64, "frames of the positional convolution: 1.3 s; Base has 128")
    position_groups: int = option(16, "of the positional convolution, as Base")


@dataclass(kw_only=True)
class Stage:
    """One part of the training, with an optimizer of its own."""

    hours: float = option(0.0, "of audio heard; 0 skips the stage")
    learning_rate: float = option(1e-3, "peak, of AdamW")
    schedule: Literal["flat", "cosine"] = option("flat", "after the warm-up; cosine falls to 2 % of the peak")
    warmup_steps: int = option(200, "linear, from 0")
    max_norm: float = option(2.0, "gradients are clipped to this norm")
    crop_seconds: float = option(5.0, "longest piece of an utterance")
    layer_weights: tuple[float, ...] = option(
        (0.5, 1.0, 1.0, 1.0, 2.0), "of states 0 to n; later ones are not run. One alone: the front-end, no positions"
    )
    corrupt: bool = option(True, "augment what the student hears (see heard below)")


FRONT_PARTS = ("feature_extractor", "feature_projection")


@dataclass(kw_only=True)
class Pretrain:
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

    statistics_batches: int = option(24, "of 12 s crops: half an hour for the teacher's moments")
    front: Stage = option(
        Stage(hours=10.0, learning_rate=4e-3, schedule="cosine", warmup_steps=30, max_norm=1.0, crop_seconds=3.0,
              layer_weights=(1.0,), corrupt=False),
        "the front-end alone, on the teacher's layer 0 without positions: 5 times faster than whole steps",
    )  # fmt: skip
    joint: Stage = option(Stage(hours=100.0), "everything, at a constant rate: may be prolonged")
    anneal: Stage = option(Stage(hours=40.0, schedule="cosine"), "everything; the falling rate gives the last gain")

    crops: int = option(4, "full crops a batch")
    speeds: tuple[float, ...] = option((0.9, 1.0, 1.1), "Ko et al. 2015; teacher and student hear the same speed")
    heard: Augmentation = option(
        # The speed is the teacher's as well, see above. Mu-law stands for all codecs: a probe on it is the bar.
        Augmentation(speed_probability=0.0, noise_manifest="manifests/noise_esc10.jsonl", noise_probability=0.3,
                     snr_db=(3.0, 20.0), telephone_probability=0.3, codecs=("mu-law",)),
        "what happens to the student's input, where the teacher hears clean speech and its states stay the target",
    )  # fmt: skip
    peaks: tuple[float, float] = option((0.1, 0.9), "level before that; the codec's noise depends on it")

    out: Path | None = option(None, "run folder, resumed where it exists; by default runs/pretrain_tiny/<family>")
    shared_with: str | None = option(None, "such as ../tiny-wav2vec2: point to its equal weights instead")
    seed: int = option(0, "of weights, order and augmentation")
    device: str = option("cpu", "or cuda")
    bf16: bool = option(True, "autocast: a third faster on a CPU that has it, the same losses")
    workers: int = option(0, "processes that prepare batches; 0 suits a CPU, 8 a GPU")
    checkpoint_minutes: float = option(5.0, "between checkpoints")
    log_steps: int = option(50, "between lines of metrics.jsonl")

    def __post_init__(self) -> None:
        if math.prod(self.student.conv_stride) != 320:
            raise ConfigError("student.conv_stride: the strides must multiply to 320, the teacher's frame rate")
        sizes = {len(self.student.conv_dim), len(self.student.conv_kernel), len(self.student.conv_stride)}
        if len(sizes) != 1:
            raise ConfigError("student: conv_dim, conv_kernel and conv_stride need one entry a layer each")


STAGES = ("front", "joint", "anneal")
FREE_TO_CHANGE = {"data", "out", "device", "bf16", "workers", "checkpoint_minutes", "log_steps", "shared_with"}


def normalized(waves: Tensor) -> Tensor:
    """Zero mean and unit variance, what ``do_normalize`` promises of the student's input."""
    centred = waves - waves.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-7).sqrt()


def load_weights(model: nn.Module, key: str, source: Path, part: str = "") -> None:
    """Start from another run, or a folder in Hugging Face's format, maybe of another family; or a part of it.

    ``key`` is the configuration's, for the errors.
    """
    from safetensors.torch import load_file

    if (source / "checkpoint.pt").is_file():
        tensors = torch.load(source / "checkpoint.pt", map_location="cpu", weights_only=True)["model"]
    elif (file := source / "model.safetensors").is_file():
        tensors = load_file(str(file))
    else:
        raise CheckpointError(f"{key}={source}: holds neither checkpoint.pt nor model.safetensors; give a run folder")
    tensors = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(part)}
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{key}={source}: other sizes than the student's; give it the same student") from error
    differing = [name for name in (*missing, *unexpected) if name.startswith(part)]
    if wrong := [name for name in differing if "rel_attn_embed" not in name and "gru_rel" not in name]:
        raise CheckpointError(f"{key}={source}: {wrong[0]} is not in both; it is another architecture")


def student_states(model: nn.Module, waves: Tensor, stop: int) -> tuple[Tensor, ...]:
    """States 0 to ``stop``; the last layer's after the final LayerNorm, as the teacher's.

    State 0 alone is what the front-end says, before positions are added: they take half of its time.
    """
    if stop == 0:
        projected = model.feature_projection(model.feature_extractor(normalized(waves)).transpose(1, 2))
        return (projected[0] if isinstance(projected, tuple) else projected,)
    output = encode(model, normalized(waves), stop_layer=stop)
    return (*output.hidden_states[:-1], output.last_hidden_state)


# --- training --------------------------------------------------------------------------------------------------------


class Run:
    """The state of a run: everything that ``checkpoint.pt`` holds."""

    def __init__(self, config: Pretrain) -> None:
        self.config = config
        out = config.out or Path("runs/pretrain_tiny") / config.student.family
        self.resumed = (out / "checkpoint.pt").is_file()
        manifests = [Manifest.read(resolve(config, path)) for path in config.train]
        self.manifest = sum(manifests[1:], manifests[0])
        if self.resumed:
            check_same(config, out)
        noise = config.heard.noise_manifest
        self.augmentation = replace(config.heard, noise_manifest=noise and str(resolve(config, Path(noise))))
        if noise:
            len(self.augmentation.noises)  # read now: a missing file is an error before training

        field = receptive_field(config.student)
        self.teacher = WhisperTeacher(resolve(config, config.teacher), field).to(config.device)
        torch.manual_seed(config.seed)
        self.student = whisper_student(self.teacher, **to_dict(config.student))
        layers = self.teacher.encoder.config.encoder_layers
        for name in STAGES:
            if not 1 <= len(getattr(config, name).layer_weights) <= layers + 1:
                raise ConfigError(f"{name}.layer_weights: give 1 to {layers + 1} weights, for states 0 to {layers}")
        if config.init_from is not None and not self.resumed:
            load_weights(self.student, "init_from", config.init_from)
        if config.layers_from is not None and not self.resumed:
            load_weights(self.student, "layers_from", config.layers_from, "encoder.layer")
        self.student.to(config.device)
        width = self.student.config.hidden_size
        self.distillation = HiddenStateDistillation(width, width, [(i, i) for i in range(layers + 1)], None, 600)
        self.distillation.to(config.device)  # 600 frames: the positions of 12 s
        self.folder = RunFolder(out) if out.is_dir() else RunFolder.create("pretrain_tiny", path=out)
        self.speech = Speech(self.manifest, self.folder.path.parent, math.ceil(field * max(1.0, *config.speeds)))
        self.progress = {"stage": 0, "step": 0, "epoch": 0, "place": 0, "samples": 0, "seconds": 0.0}
        self.optimizer: torch.optim.Optimizer | None = None
        self.optimizer_state: dict[str, Any] | None = None
        self.stop = False
        if self.resumed:
            self.load()
        else:
            self.folder.save_config(config)
            self.observe_teacher()
            if config.init_from is None:
                start_at_mean(self.student, self.distillation.mean[0], self.distillation.std[0])

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.config.device).type, torch.bfloat16, enabled=self.config.bf16)

    def crops(self, key: tuple[int, ...], seconds: float, **options: Any) -> Crops:
        return Crops(self.speech, key, crop_seconds=seconds, crops=self.config.crops, **options)

    def augment(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """Clean speech (samples,) -> what the student hears, of the same length."""
        return self.augmentation(wave * (rng.uniform(*self.config.peaks) / (float(wave.abs().max()) + 1e-6)), rng)

    def observe_teacher(self) -> None:
        """The teacher's statistics, on clean 12 s crops at their own speed."""
        total, count = self.config.statistics_batches, 0
        with tqdm(total=total, desc="statistics", leave=False, disable=None) as bar:
            while count < total:
                key = (self.config.seed, len(STAGES), count)
                for clean, _ in islice(crop_batches(self.crops(key, 12.0)), total - count):
                    with self.autocast():
                        states = self.teacher(clean.to(self.config.device))
                    self.distillation.observe([state.float() for state in states])
                    count += 1
                    bar.update()
        self.distillation.finish_observing()

    def train(self) -> None:
        """All stages, from where the run stands."""
        with self.signals():
            while self.progress["stage"] < len(STAGES):
                name = STAGES[self.progress["stage"]]
                self.train_stage(name, getattr(self.config, name))
                self.progress |= {"stage": self.progress["stage"] + 1, "step": 0, "epoch": 0, "place": 0, "samples": 0}
                self.optimizer = self.optimizer_state = None
                self.save()

    def train_stage(self, name: str, stage: Stage) -> None:
        config, progress, student = self.config, self.progress, self.student
        total = stage.hours * 3600 * SAMPLE_RATE
        if progress["samples"] >= total:
            return
        alone = len(stage.layer_weights) == 1
        for parameter_name, parameter in student.named_parameters():
            parameter.requires_grad_(not alone or any(part in parameter_name for part in FRONT_PARTS))
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        # betas of wav2vec 2.0's training (Baevski et al. 2020, section 4.2): gradients change fast at first.
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)
        if self.optimizer_state is not None:
            self.optimizer.load_state_dict(self.optimizer_state)
        loss_of = self.distillation_of(stage)
        stop_layer = len(stage.layer_weights) - 1
        log, logged, saved = [], (time.perf_counter(), progress["samples"]), time.perf_counter()
        bar = tqdm(total=round(stage.hours, 3), initial=progress["samples"] / total * stage.hours, desc=name, unit="h",
                   bar_format="{desc}: {n:.2f}/{total} h {postfix}", disable=None)  # fmt: skip
        while progress["samples"] < total:
            key = (config.seed, progress["stage"], progress["epoch"])
            augment = self.augment if stage.corrupt else None
            crops = self.crops(key, stage.crop_seconds, speeds=config.speeds, augment=augment)
            for clean, heard in crop_batches(crops, progress["place"], config.workers):
                progress["step"] += 1
                progress["place"] += 1
                progress["samples"] += clean.numel()
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(stage, progress["step"], progress["samples"] / total)
                with self.autocast():
                    wanted = self.teacher(clean.to(config.device), stop_layer)
                    found = student_states(student, heard.to(config.device), stop_layer)
                    output = loss_of(found, wanted)
                output.loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, stage.max_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
                log.append(torch.stack([output.loss.detach(), norm, *output.layer_losses, *output.layer_cosines]))
                done = progress["samples"] >= total
                if progress["step"] % config.log_steps == 0 or done:
                    logged = self.log(name, log, logged)
                    bar.set_postfix_str(f"loss {float(log[-1][0]):.3f}")
                    log.clear()
                bar.update(clean.numel() / SAMPLE_RATE / 3600)
                if self.stop or (time.perf_counter() - saved > 60 * config.checkpoint_minutes and not done):
                    progress["seconds"] += time.perf_counter() - saved
                    self.save()
                    saved = time.perf_counter()
                    if self.stop:
                        bar.close()
                        raise KeyboardInterrupt
                if done:
                    break
            else:
                progress |= {"epoch": progress["epoch"] + 1, "place": 0}
        progress["seconds"] += time.perf_counter() - saved
        bar.close()

    def distillation_of(self, stage: Stage) -> HiddenStateDistillation:
        """The loss over the stage's layers, with the statistics of all."""
        count, width = len(stage.layer_weights), self.student.config.hidden_size
        pairs = [(i, i) for i in range(count)]
        loss = HiddenStateDistillation(
            width, width, pairs, stage.layer_weights, self.distillation.position_mean.shape[1]
        )
        for name in ("mean", "std", "position_mean"):
            getattr(loss, name).copy_(getattr(self.distillation, name)[:count])
        return loss.to(self.config.device)

    def log(self, name: str, log: list[Tensor], logged: tuple[float, int]) -> tuple[float, int]:
        loss, norm, *rest = torch.stack(log).mean(0).tolist()
        now, progress = time.perf_counter(), self.progress
        speed_ratio = (progress["samples"] - logged[1]) / SAMPLE_RATE / (now - logged[0])
        self.folder.log_metrics({
            "stage": name,
            "step": progress["step"],
            "hours": progress["samples"] / SAMPLE_RATE / 3600,
            "loss": loss,
            "gradient_norm": norm,
            "layer_losses": rest[: len(rest) // 2],
            "layer_cosines": rest[len(rest) // 2 :],
            "times_real_time": speed_ratio,
        })  # fmt: skip
        return now, progress["samples"]

    def save(self) -> None:
        path = self.folder.path / "checkpoint.pt"
        content = {
            "model": self.student.state_dict(),
            "distillation": self.distillation.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
            "progress": self.progress,
            "rng": torch.get_rng_state(),
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(content, temporary)
        os.replace(temporary, path)

    def load(self) -> None:
        path = self.folder.path / "checkpoint.pt"
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); remove it to begin anew") from error
        self.student.load_state_dict(content["model"])
        self.distillation.load_state_dict(content["distillation"])
        self.optimizer_state, self.progress = content["optimizer"], content["progress"]
        torch.set_rng_state(content["rng"])
        # Lines logged after the checkpoint are about to come again.
        order = {name: i for i, name in enumerate(STAGES)}
        here = (self.progress["stage"], self.progress["step"])
        kept = [line for line in read_log(self.folder.metrics_file) if (order[line["stage"]], line["step"]) <= here]
        write_text(self.folder.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM let the step end, save, then stop."""

        def stop(*_: Any) -> None:
            self.stop = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def learning_rate(stage: Stage, step: int, done: float) -> float:
    """Of one step; ``done`` is the stage's finished share."""
    shape = 1.0 if stage.schedule == "flat" else max(0.02, 0.5 * (1 + math.cos(math.pi * done)))
    return stage.learning_rate * min(1.0, step / max(1, stage.warmup_steps)) * shape


def resolve(config: Pretrain, path: Path) -> Path:
    if path.is_absolute():
        return path
    folder = config.data or os.environ.get("SPEECH_ADAPTERS_DATA")
    if folder is None:
        raise ConfigError(f"data: where is {path}? Give data=FOLDER, set SPEECH_ADAPTERS_DATA, or use absolute paths")
    return Path(folder) / path


def check_same(config: Pretrain, out: Path) -> None:
    """A resumed run must be the run that was begun."""
    before, now = to_dict(load_config(Pretrain, out / "config.yaml")), to_dict(config)
    if changed := [key for key in now if key not in FREE_TO_CHANGE and now[key] != before[key]]:
        key = changed[0]
        raise ConfigError(
            f"{key}: {out} was begun with {before[key]}, not {now[key]}; use that value, or another folder as out="
        )


def main(argv: list[str] | None = None) -> Path:
    config = parse_cli(Pretrain, argv, description=__doc__)
    run = Run(config)
    run.train()
    folder = run.folder.path / "encoder"
    save_encoder(run.student, folder, config.shared_with)
    lines, manifest = run.folder.read_metrics(), run.manifest
    run.folder.write_results({
        "task": "pretrain_tiny",
        "encoder": folder,
        "data": {"train": {"sha256": manifest.sha256, "hours": manifest.hours, "speakers": len(manifest.speakers)}},
        "final": lines[-1] if lines else None,
        "parameters": {"total": sum(p.numel() for p in run.student.parameters())},
        "seconds": run.progress["seconds"],
        "seed": config.seed,
        **environment(config.device),
    })  # fmt: skip
    print(f"{folder}: done. Score it with: python benchmarks/probe_encoder.py --encoder {folder} --random")
    return folder


if __name__ == "__main__":
    run_main(lambda: bool(main()) and 0)
