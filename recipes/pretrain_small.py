"""Make a small encoder in minutes on a GPU: distil Whisper's encoder into a WavLM encoder that also learns context.

    python recipes/pretrain_small.py --config recipes/pretrain_small.yaml data=/path/to/data
    python recipes/pretrain_small.py --config recipes/pretrain_small.yaml output=runs/small  # again: goes on

The student starts as close to the teacher as its format allows: its front-end as a log-mel filterbank with the
teacher's two convolutions (:mod:`speech_adapters.objectives.mel_start`), its layers as the teacher's. Training takes
the absolute positions away and teaches it to guess what is hidden
(:mod:`speech_adapters.objectives.context_distillation`). It hears clean speech alone: noise and telephones are left
for adapters to learn.

The run folder holds checkpoints (written every few minutes and on Ctrl-C; the same command with the same ``output``
resumes them to the same weights), ``metrics.jsonl``, ``results.json`` and, in the end, ``encoder/`` in Hugging Face's
format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.augmentation import Speed
from speech_adapters.data.crops import Speech
from speech_adapters.data.folder import data_path
from speech_adapters.data.joined import JoinedSpeech
from speech_adapters.data.manifest import Manifest, check_disjoint
from speech_adapters.errors import ConfigError
from speech_adapters.objectives.context_distillation import ContextDistillation, ContextDistillationConfig
from speech_adapters.objectives.mel_start import FIELD, mel_student, samples_of
from speech_adapters.objectives.whisper_student import save_encoder
from speech_adapters.objectives.whisper_teacher import WhisperTeacher
from speech_adapters.ranges import Size
from speech_adapters.runs.environment import environment
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.results import MethodResults, Results
from speech_adapters.training.loop import fit

START_FRAMES = 500
"""Of the crops that the front-end is fitted to: 10 s."""


@dataclass(kw_only=True)
class Pretrain:
    """Which student learns from which teacher, on which speech."""

    data: Path | None = option(None, "where relative paths below start; by default $SPEECH_ADAPTERS_DATA")
    train: tuple[Path, ...] = option(
        (Path("manifests/sv_librispeech_train.jsonl"), Path("manifests/asr_arctic_train.jsonl")),
        "clean speech; no text is needed",
    )
    held_out: Path = option(Path("manifests/asr_librispeech_dev.jsonl"), "other speakers: the best state is theirs")
    teacher: Path = option(Path("teacher/whisper_base_encoder.safetensors"), "a Whisper encoder")
    speeds: tuple[Speed, ...] = option(
        (0.86, 0.9, 0.94, 0.96, 1.0, 1.0, 1.04, 1.06, 1.1, 1.16), "each a copy of all speech: other pitches, voices"
    )
    start_crops: Size = option(48, "of 10 s, to which the front-end is fitted")
    training: ContextDistillationConfig = field(default_factory=ContextDistillationConfig)
    output: Path | None = option(None, "run folder, resumed where it exists; by default runs/pretrain_small/<time>")
    device: str = option("cpu", "or cuda")


def main(argv: list[str] | None = None) -> Path:
    config = parse_cli(Pretrain, argv, description=__doc__)
    training = config.training
    manifests = [Manifest.read(data_path(path, config.data), check_files=True) for path in config.train]
    manifest = sum(manifests[1:], manifests[0])
    held_out = Manifest.read(data_path(config.held_out, config.data), check_files=True)
    check_disjoint(manifest, held_out)
    teacher = WhisperTeacher(data_path(config.teacher, config.data), FIELD).to(config.device)
    states = teacher.encoder.config.encoder_layers + 1
    if len(training.layer_weights) != states:
        raise ConfigError(f"training.layer_weights: give {states} weights, for states 0 to {states - 1}")
    run = RunFolder.open("pretrain_small", config, config.output, ignore=("data", "device"))

    # All speech on the device, in all speeds.
    cache = run.path.parent
    speech = JoinedSpeech(Speech(manifest, cache), config.device, config.speeds, training.seed)
    others = JoinedSpeech(Speech(held_out, cache), config.device)

    # The start: the student gives the teacher's states but for positions, which it does not know.
    torch.backends.cudnn.allow_tf32 = False  # it blurs the filterbank's quiet bands; the rest runs in bf16 anyway
    torch.manual_seed(training.seed)
    student, explained = mel_student(teacher, speech.crops(config.start_crops, samples_of(START_FRAMES)))
    print(f"front-end: explains {', '.join(f'{100 * share:.1f} %' for share in explained)} of the teacher's")

    # The training, and what it gave on speech of others.
    learner = ContextDistillation(student, teacher, speech, others, training, run.path)
    result = fit(learner, training, run, "student")
    folder = run.path / "encoder"
    save_encoder(student, folder)
    with torch.no_grad():
        figures = learner.evaluate()
    Results(
        task="pretrain_small",
        encoder=str(folder),
        adapter="student",
        data={"train": manifest.describe(), "held_out": held_out.describe()},
        own=MethodResults(
            metrics=figures,
            parameters={"total": sum(p.numel() for p in student.parameters())},
            seconds=result.seconds,
            audio_seconds_per_second=result.audio_seconds_per_second,
            peak_memory_bytes=result.peak_memory_bytes,
        ),
        seeds=[training.seed],
        more={"updates": result.updates, "front_end_explained": explained},
        environment=environment(config.device),
    ).write(run.results_file)
    print(f"{folder}: done. Score it with: python benchmarks/probe_conv_head.py --encoder {folder}")
    return folder


if __name__ == "__main__":
    run_main(lambda: bool(main()) and 0)
