"""How much of what was said can be read off a frozen encoder? A small convolutional CTC head answers in minutes.

    python benchmarks/probe_conv_head.py --encoder tiny-wavlm
    python benchmarks/probe_conv_head.py --encoder runs/pretrain/encoder --device cuda
    python benchmarks/probe_conv_head.py --teacher whisper_base_encoder.safetensors

The head is LayerNorm, two convolutions of 384 channels (7 and 3 frames, GELU) and a linear layer; it sees the
encoder's output, computed once. It is trained on every second utterance of ``asr_librispeech_train`` and scored on
every third of ``asr_librispeech_test``: Adam, its learning rate falling in a line from 1e-3 to 0, batches of 2,500
frames, six passes; greedy decoding without a language model. A linear probe (``probe_encoder.py``) asks for more of
the encoder; this head, like adapters, can join neighbouring frames, and its figure ranks encoders as adapters do.

Prints the word error rate after each pass, and at the end the character error rate and 95 % intervals by speaker;
writes ``results.json``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from probe_encoder import EncoderStates, TeacherStates
from torch import Tensor, nn
from tqdm import tqdm

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.audio import SAMPLE_RATE, read_audio
from speech_adapters.data.folder import data_path
from speech_adapters.data.manifest import Manifest, check_disjoint
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.heads.decoding import greedy_decode
from speech_adapters.metrics.wer import WERResult, word_error_rate
from speech_adapters.runs.environment import environment
from speech_adapters.runs.folder import RunFolder
from speech_adapters.runs.results import MethodResults, Results
from speech_adapters.training.loop import fit
from speech_adapters.training.on_features import FeatureBatch, FeatureLearner
from speech_adapters.training.settings import LoopConfig


@dataclass(kw_only=True)
class Probe:
    """Which encoder is scored, on which transcripts, and the head that is trained on it."""

    encoder: str | None = option(None, "packaged name, folder or hub id")
    teacher: Path | None = option(None, "a Whisper encoder (safetensors) in its place")
    train: Path | None = option(None, "manifest; by default asr_librispeech_train of $SPEECH_ADAPTERS_DATA")
    test: Path | None = option(None, "manifest of other speakers; by default asr_librispeech_test")
    train_step: int = option(2, "train on every so-manieth utterance")
    test_step: int = option(3, "score on every so-manieth")
    passes: int = option(6, "over the training data")
    batch_frames: int = option(2500, "most frames of a batch")
    learning_rate: float = option(1e-3, "of Adam, at the start; it falls in a line to 0")
    width: int = option(384, "channels of the convolutions")
    output: Path | None = option(None, "run folder, which must be new; by default runs/probe_conv_head/<time>")
    device: str = option("cpu", "or cuda")
    seed: int = option(0, "of the head's weights and the order of the batches")

    def __post_init__(self) -> None:
        if (self.encoder is None) == (self.teacher is None):
            raise ConfigError("encoder: give one of --encoder NAME and --teacher FILE")
        if min(self.train_step, self.test_step, self.passes, self.batch_frames, self.width) < 1:
            raise ConfigError("train_step, test_step, passes, batch_frames and width must be above 0")


class ConvHead(nn.Module):
    """Features (B, T, D), zero where padded, with frames (B,) -> logits (B, T, V)."""

    def __init__(self, size: int, width: int, symbols: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.first = nn.Conv1d(size, width, 7, padding=3)
        self.second = nn.Conv1d(width, width, 3, padding=1)
        self.output = nn.Linear(width, symbols)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        # Padding stays zero between the layers, so that it changes nothing.
        real = (torch.arange(features.shape[1], device=frames.device) < frames[:, None]).unsqueeze(1)
        hidden = self.norm(features).transpose(1, 2) * real
        hidden = nn.functional.gelu(self.first(hidden)) * real
        hidden = nn.functional.gelu(self.second(hidden))
        return self.output(hidden.transpose(1, 2))


def features_of(model: EncoderStates | TeacherStates, manifest: Manifest) -> list[Tensor]:
    """The encoder's output (T, D) for each utterance, fp16 on the CPU, in the manifest's order."""
    found: list[Tensor | None] = [None] * len(manifest)
    order = sorted(range(len(manifest)), key=lambda i: manifest[i].duration)

    def read(i: int) -> Tensor:
        u = manifest[i]
        return read_audio(u.audio_filepath, offset=u.offset, duration=u.duration, channel="mix")

    batch: list[tuple[int, Tensor]] = []

    def flush() -> None:
        for (i, _), states in zip(batch, model([wave for _, wave in batch]), strict=True):
            found[i] = states[-1].half().cpu()
        batch.clear()

    with ThreadPoolExecutor(os.cpu_count()) as readers:
        waves = readers.map(read, order)
        for i, wave in zip(order, tqdm(waves, total=len(order), desc="features", disable=None), strict=True):
            if batch and (len(batch) + 1) * len(wave) > model.batch_seconds * SAMPLE_RATE:
                flush()
            batch.append((i, wave))
        flush()
    return [features for features in found if features is not None]


def batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Utterances of like lengths in batches of at most ``most`` frames; longer ones alone."""
    groups: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups[-1] and sum(lengths[j] for j in groups[-1]) + lengths[i] > most:
            groups.append([])
        groups[-1].append(i)
    return groups


def train(
    module: ConvHead,
    features: list[Tensor],
    targets: list[Tensor],
    head: CTCHead,
    config: Probe,
    run: RunFolder,
    after_pass: Callable[[], None],
) -> None:
    """All passes of Adam, the rate falling in a line to 0."""
    groups, blank = batches([len(f) for f in features], config.batch_frames), head.vocabulary.blank_id

    def loss_of(batch: FeatureBatch) -> Tensor:
        inputs, frames, wanted = batch
        logits = module(inputs, frames).log_softmax(-1).transpose(0, 1)
        sizes = (wanted >= 0).sum(-1)
        return nn.functional.ctc_loss(logits, wanted.clamp(min=0), frames, sizes, blank, zero_infinity=True)

    learner = FeatureLearner(module, loss_of, features, targets, groups, config.learning_rate, config.seed, after_pass)
    loop = LoopConfig(
        updates=config.passes * len(groups), schedule="linear", warmup=0.0, max_grad_norm=math.inf, precision="fp32",
        seed=config.seed, trackers=("none",),
    )  # fmt: skip
    fit(learner, loop, run, "probe")


@torch.inference_mode()
def score(module: ConvHead, features: list[Tensor], manifest: Manifest, head: CTCHead, device: str) -> WERResult:
    texts = []
    for utterance in features:
        frames = torch.tensor([len(utterance)])
        logits = module(utterance[None].to(device).float(), frames.to(device)).cpu()
        texts += greedy_decode(logits, frames, head.vocabulary)
    return word_error_rate(
        [u.text or "" for u in manifest], texts, [u.speaker for u in manifest], [u.id for u in manifest]
    )


def manifest_of(config: Probe, name: str) -> Manifest:
    """Every so-manieth utterance of the split ``name``."""
    given = config.train if name == "train" else config.test
    path = given or data_path(Path(f"manifests/asr_librispeech_{name}.jsonl"))
    manifest = Manifest.read(path).require("text", "speaker")
    step = config.train_step if name == "train" else config.test_step
    chosen = {u.id for u in list(manifest)[::step]}
    return manifest.filter(lambda u: u.id in chosen)


def main(argv: Sequence[str] | None = None) -> Results:
    config = parse_cli(Probe, argv, description=__doc__)
    data = {name: manifest_of(config, name) for name in ("train", "test")}
    check_disjoint(data["train"], data["test"])
    if config.teacher is not None:
        model = TeacherStates(config.teacher, config.device)
    else:
        encoder = load_encoder(config.encoder, device=config.device)
        model = EncoderStates(encoder, config.device)
        if encoder.max_samples is not None:  # Whisper's positions end at 30 s
            for part, manifest in data.items():
                data[part] = manifest.filter(lambda u: u.duration * SAMPLE_RATE <= encoder.max_samples)
                if left := len(manifest) - len(data[part]):
                    print(f"{part}: {left} of {len(manifest)} utterances are too long for {config.encoder}; left out")
    name = str(config.encoder or config.teacher)
    head = CTCHead()
    targets = [torch.tensor(head.encode(u.text or "", u.id)) for u in data["train"]]
    run = RunFolder.create("probe_conv_head", path=config.output)
    run.save_config(config)

    start = time.perf_counter()
    features = {part: features_of(model, manifest) for part, manifest in data.items()}
    print(f"{name}: features of {data['train'].hours + data['test'].hours:.1f} h, {time.perf_counter() - start:.0f} s")
    torch.manual_seed(config.seed)
    module = ConvHead(features["train"][0].shape[1], config.width, len(head.vocabulary)).to(config.device)
    by_pass: list[WERResult] = []

    def after_pass() -> None:
        by_pass.append(score(module, features["test"], data["test"], head, config.device))
        print(f"  pass {len(by_pass)}: WER {100 * by_pass[-1].wer.value:.1f} %", flush=True)

    train(module, features["train"], targets, head, config, run, after_pass)
    result = by_pass[-1]
    print(f"{name}: WER {result.wer.percent()}, CER {result.cer.percent()}")
    results = Results(
        task="probe_conv_head",
        encoder=name,
        adapter="head-only",
        data={part: manifest.describe() for part, manifest in data.items()},
        own=MethodResults(
            metrics={"wer": result.wer, "cer": result.cer},
            parameters={"trainable": sum(p.numel() for p in module.parameters())},
            seconds=time.perf_counter() - start,
        ),
        seeds=[config.seed],
        more={"by_pass": [{"wer": one.wer.value, "cer": one.cer.value} for one in by_pass]},
        environment=environment(config.device),
    )
    results.write(run.results_file)
    return results


if __name__ == "__main__":
    run_main(lambda: bool(main()) and 0)
