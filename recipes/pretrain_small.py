"""Make a small encoder in minutes on a GPU: distil Whisper's encoder into a WavLM encoder that also learns context.

    python recipes/pretrain_small.py data=/path/to/data minutes=12 device=cuda

The student starts as close to the teacher as its format allows: its front-end as a log-mel filterbank with the
teacher's two convolutions (:mod:`speech_adapters.objectives.mel_start`), its layers as the teacher's. Training takes
the absolute positions away: every state is to be the teacher's, whatever the place of the speech. In a share of the
crops, spans of the projected features are hidden (as in WavLM and HuBERT); there, the upper states are still to be
what the teacher makes of the whole speech, and a linear layer, thrown away in the end, is to name the cluster that the
teacher's last state belongs to.

Teacher and student hear the same speech, so that the target is exact however the speech is varied: a few hours of it
are heard in many speeds, joined in any order, cut anywhere, a little louder or softer, brighter or duller. It stays
clean: noise and telephones are left for adapters to learn.

The schedule follows the clock: after ``minutes`` the learning rate has fallen to its end. The run folder holds
``metrics.jsonl``, ``results.json`` and ``encoder/`` in Hugging Face's format, written anew every few minutes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, max_pool1d, pad
from torchaudio.functional import resample

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.audio import SAMPLE_RATE
from speech_adapters.data.crops import Speech
from speech_adapters.data.manifest import Manifest, check_disjoint
from speech_adapters.encoders import encode
from speech_adapters.errors import ConfigError
from speech_adapters.objectives.distillation import HiddenStateDistillation
from speech_adapters.objectives.mel_start import mel_stack, start_as_mel
from speech_adapters.objectives.whisper_student import save_encoder, wav2vec2_like, whisper_student
from speech_adapters.objectives.whisper_teacher import STRIDE, WhisperTeacher
from speech_adapters.runs.environment import environment
from speech_adapters.runs.folder import RunFolder

FIELD = 1040
"""Receptive field in samples of :func:`mel_stack`'s frames: five mel frames."""
LEVEL = 0.06
"""The teacher hears unit variance at this root mean square, the usual one of read speech."""
FROZEN = 2
"""Blocks of the front-end that stay as they start: the filterbank and its logarithms."""


@dataclass(kw_only=True)
class Pretrain:
    """Which student learns from which teacher, on which speech."""

    data: Path | None = option(None, "where relative paths below start; by default $SPEECH_ADAPTERS_DATA")
    train: tuple[Path, ...] = option(
        (Path("manifests/sv_librispeech_train.jsonl"), Path("manifests/asr_arctic_train.jsonl")),
        "clean speech; no text is needed",
    )
    held_out: Path = option(Path("manifests/asr_librispeech_dev.jsonl"), "other speakers, to watch over-fitting")
    teacher: Path = option(Path("teacher/whisper_base_encoder.safetensors"), "a Whisper encoder")

    minutes: float = option(12.0, "of training; the learning rate follows the clock")
    learning_rate: float = option(1e-3, "peak, of AdamW")
    front_learning_rate: float = option(1e-4, "of the front-end, which starts near its end")
    warmup_steps: int = option(200, "linear, from 0")
    flat: float = option(0.25, "share of the time before the rate begins to fall, in a line to 1 %")
    batch_frames: int = option(14592, "frames of 20 ms a batch: 292 s")
    crop_frames: tuple[int, ...] = option((152, 304, 608, 1216), "3 to 24 s, so that any length works; multiples of 8")
    crop_shares: tuple[float, ...] = option((0.15, 0.35, 0.35, 0.15), "how often each is drawn")
    speeds: tuple[float, ...] = option(
        (0.86, 0.9, 0.94, 0.96, 1.0, 1.0, 1.04, 1.06, 1.1, 1.16), "each a copy of all speech: other pitches, voices"
    )
    gain_db: float = option(3.0, "louder or softer by up to so much")
    tilt: float = option(0.4, "in half of the crops, up to so much of the last sample is added or taken away")

    layer_weights: tuple[float, ...] = option((0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0), "of states 0 to n")
    hidden_crops: float = option(1 / 3, "share of the crops of which spans are hidden; 0 for none")
    hidden_starts: float = option(0.03, "chance of a frame to start a span of 10: about 26 % of the frames")
    hidden_weights: tuple[float, ...] = option(
        (0.0, 0.0, 0.0, 0.1, 0.2, 0.35, 0.5), "of hidden frames in states 0 to n, beside 1 of the others"
    )
    clusters: int = option(500, "of the teacher's last state, which hidden frames are to name; 0 for none")
    cluster_weight: float = option(0.05, "of their cross-entropy")

    start_crops: int = option(48, "of 10 s, to which the front-end is fitted")
    statistics_batches: int = option(60, "of the longest crops: the teacher's moments and its means by position")
    report_seconds: float = option(45.0, "between lines of metrics.jsonl, with cosines on held-out speech")
    save_minutes: float = option(2.0, "between writings of encoder/")
    out: Path | None = option(None, "run folder; by default runs/pretrain_small/<time>")
    seed: int = option(0, "of weights and crops")
    device: str = option("cpu", "or cuda")

    def __post_init__(self) -> None:
        if len(self.crop_frames) != len(self.crop_shares) or self.minutes <= 0:
            raise ConfigError("crop_shares: give one share a length of crop_frames; minutes must be above 0")
        if len(self.layer_weights) != len(self.hidden_weights):
            raise ConfigError("hidden_weights: give one weight a state, as many as layer_weights")


def samples_of(frames: int) -> int:
    return FIELD + STRIDE * (frames - 1)


class Pool:
    """Speech on the device at one level, a copy at each speed, the utterances of each copy in an order of its own."""

    def __init__(self, speech: Speech, speeds: tuple[float, ...], device: str, seed: int) -> None:
        generator, pieces = np.random.default_rng(seed), []
        for start, length in zip(speech.starts, speech.lengths, strict=True):
            wave = torch.from_numpy(speech.samples[start : start + length].astype(np.float32))
            wave = wave - wave.mean()
            gain = LEVEL * 32767 / (float(wave.square().mean().sqrt()) + 1e-3)
            pieces.append((wave * gain).clamp(-32767, 32767).round().to(torch.int16))
        copies = []
        for factor in speeds:
            joined = torch.cat([pieces[i] for i in generator.permutation(len(pieces))]).to(device)
            if factor != 1:
                parts = (resample(part.float(), round(100 * factor), 100) for part in joined.split(16_000_000))
                joined = torch.cat([part.clamp(-32767, 32767).round().to(torch.int16) for part in parts])
            copies.append(joined)
        self.samples = torch.cat(copies)

    def crops(self, count: int, samples: int, gain_db: float = 0.0, tilt: float = 0.0) -> Tensor:
        """(count, samples) of about unit variance, cut anywhere."""
        device = self.samples.device
        if len(self.samples) <= samples:
            raise ConfigError(f"train: {len(self.samples) / SAMPLE_RATE:.0f} s of speech; give more than a crop's")
        start = torch.randint(len(self.samples) - samples, (count, 1), device=device)
        waves = self.samples[start + torch.arange(samples, device=device)].float()
        if tilt:
            share = tilt * (2 * torch.rand(count, 1, device=device) - 1) * torch.randint(2, (count, 1), device=device)
            waves = waves + share * pad(waves[:, :-1], (1, 0))
        waves = waves - waves.mean(1, keepdim=True)
        waves = waves / (waves.square().mean(1, keepdim=True) + 1e-3).sqrt()
        return waves * 10 ** (gain_db * (2 * torch.rand(count, 1, device=device) - 1) / 20)


class Run:
    """Teacher, student and speech of one run."""

    def __init__(self, config: Pretrain) -> None:
        self.config, device = config, config.device
        manifests = [Manifest.read(resolve(config, path)) for path in config.train]
        self.manifest = sum(manifests[1:], manifests[0])
        held_out = Manifest.read(resolve(config, config.held_out))
        check_disjoint(self.manifest, held_out)
        self.folder = RunFolder.create("pretrain_small", path=config.out)
        self.folder.save_config(config)
        torch.manual_seed(config.seed)
        torch.backends.cudnn.allow_tf32 = False  # it blurs the filterbank's quiet bands; the rest runs in bf16 anyway
        self.rng = np.random.default_rng(config.seed)
        cache = self.folder.path.parent
        self.pool = Pool(Speech(self.manifest, cache), config.speeds, device, config.seed)
        self.held = Pool(Speech(held_out, cache), (1.0,), device, config.seed)

        self.teacher = WhisperTeacher(resolve(config, config.teacher), FIELD).to(device)
        whisper = self.teacher.encoder.config
        self.width, self.layers = whisper.d_model, whisper.encoder_layers
        if len(config.layer_weights) != self.layers + 1:
            raise ConfigError(f"layer_weights: give {self.layers + 1} weights, for states 0 to {self.layers}")
        stack = mel_stack(self.width, whisper.num_mel_bins)
        self.student = whisper_student(self.teacher, "wavlm", **stack).to(device)
        family = wav2vec2_like(self.student)
        self.blocks = family.blocks(self.student)
        family.quieten_positions(self.student, 0.2)  # it has to add to a front-end that is right already
        heard = self.pool.crops(config.start_crops, samples_of(500))
        self.explained = start_as_mel(self.student, self.teacher, heard, LEVEL * heard)
        for parameter in self.blocks[:FROZEN].parameters():
            parameter.requires_grad_(False).copy_(parameter.half())  # as it will be saved
        self.observe_teacher(heard)
        self.weights = torch.tensor(config.layer_weights, device=device)
        self.hidden_weights = torch.tensor(config.hidden_weights, device=device)

    def autocast(self, enabled: bool = True) -> torch.autocast:
        device = torch.device(self.config.device).type
        return torch.autocast(device, torch.bfloat16, enabled=enabled and device == "cuda")

    @torch.no_grad()
    def observe_teacher(self, heard: Tensor) -> None:
        """The teacher's statistics and clusters, on crops of the longest kind; the student's state 0 gets its mean."""
        config, longest = self.config, max(self.config.crop_frames)
        pairs = [(i, i) for i in range(self.layers + 1)]
        self.statistics = HiddenStateDistillation(self.width, self.width, pairs, None, longest).to(config.device)
        frames = []
        for _ in range(config.statistics_batches):
            waves = self.pool.crops(max(1, config.batch_frames // longest), samples_of(longest))
            with self.autocast():
                states = self.teacher(LEVEL * waves)
            self.statistics.observe([state.float() for state in states])
            last = states[-1].float().flatten(0, 1)
            frames.append(last[torch.randperm(len(last), device=last.device)[:1200]])
        self.statistics.finish_observing()
        shift = self.statistics.mean[0] - self.states(heard[:24], stop=0)[0].mean((0, 1))
        wav2vec2_like(self.student).projection(self.student).bias += shift
        self.centroids = k_means(self.standardised(torch.cat(frames), -1), config.clusters)
        self.names = nn.Linear(self.width, max(1, config.clusters)).to(config.device)

    def standardised(self, state: Tensor, index: int) -> Tensor:
        return (state - self.statistics.mean[index]) / self.statistics.std[index]

    def states(
        self, waves: Tensor, hidden: Tensor | None = None, stop: int | None = None, half: bool = False
    ) -> list[Tensor]:
        """The student's states 0 to ``stop``, (B, T, D), with ``hidden`` (B, T) frames replaced by the mask.

        The filterbank is computed in full precision but for ``half``: bf16 blurs its quiet bands.
        """
        with torch.no_grad(), self.autocast(half):
            signal = waves.unsqueeze(1)
            for block in self.blocks[:FROZEN]:
                signal = block(signal)
        with self.autocast():
            for block in self.blocks[FROZEN:]:
                signal = block(signal)
            output = encode(self.student, cnn_output=signal.transpose(1, 2), time_mask=hidden, stop_layer=stop)
        states = list(output.hidden_states)
        if len(states) == self.layers + 1:
            states[-1] = output.last_hidden_state
        return [state.float() for state in states]

    @torch.no_grad()
    def targets(self, waves: Tensor) -> list[Tensor]:
        """The teacher's states (B, T, D), absolute positions removed."""
        with self.autocast():
            states = self.teacher(LEVEL * waves)
        return [self.statistics.target(state.float(), i) for i, state in enumerate(states)]

    def spans(self, count: int, frames: int) -> Tensor:
        """(count, frames), True in spans of 10 frames that may overlap."""
        starts = torch.rand(count, frames, device=self.config.device) < self.config.hidden_starts
        return max_pool1d(pad(starts.float(), (9, 0)), 10, stride=1).bool()

    def loss(self, frames: int) -> tuple[Tensor, Tensor]:
        """One batch's loss and its parts: each state's, then the cross-entropy of the clusters."""
        config = self.config
        crops = max(1, config.batch_frames // frames)
        waves = self.pool.crops(crops, samples_of(frames), config.gain_db, config.tilt)
        wanted = self.targets(waves)
        hidden = torch.zeros(crops, frames, dtype=torch.bool, device=config.device)
        masked = round(crops * config.hidden_crops)
        hidden[:masked] = self.spans(masked, frames) if masked else False
        found = self.states(waves, hidden, half=bool(self.rng.random() < 0.25))  # users run it in bf16 as well
        losses = []
        for i, (state, target) in enumerate(zip(found, wanted, strict=True)):
            error = ((state - target) / self.statistics.std[i]).square().mean(-1)
            losses.append((error * torch.where(hidden, self.hidden_weights[i], 1.0)).mean())
        total, named = (torch.stack(losses) * self.weights).sum(), losses[0].new_zeros(())
        if masked and config.clusters:
            nearest = nearest_to(self.standardised(wanted[-1][:masked], -1).flatten(0, 1), self.centroids)
            each = cross_entropy(self.names(found[-1][:masked]).flatten(0, 1), nearest, reduction="none")
            where = hidden[:masked].flatten()
            named = (each * where).sum() / where.sum().clamp_min(1)
            total = total + config.cluster_weight * named
        return total, torch.stack([*losses, named]).detach()

    @torch.no_grad()
    def held_out_cosines(self, hidden: bool) -> list[float]:
        """Of each state with the teacher's, on crops of other speakers, the same ones each time."""
        kept = torch.random.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        torch.manual_seed(1)
        frames = self.config.crop_frames[len(self.config.crop_frames) // 2]
        waves = self.held.crops(min(32, max(1, self.config.batch_frames // frames)), samples_of(frames))
        where = self.spans(len(waves), frames) if hidden else None
        torch.random.set_rng_state(kept[0])
        if kept[1] is not None:
            torch.cuda.set_rng_state(kept[1])
        cosines = []
        for i, (a, b) in enumerate(zip(self.states(waves, where), self.targets(waves), strict=True)):
            cosine = cosine_similarity(self.standardised(a, i), self.standardised(b, i), dim=-1)
            cosines.append(float(cosine.mean() if where is None else cosine[where].mean()))
        return cosines

    def train(self) -> dict[str, float]:
        """All steps. Returns how much was done."""
        config, student = self.config, self.student
        named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        front = [p for name, p in named if name.startswith("feature_")]
        rest = [p for name, p in named if not name.startswith("feature_")]
        vectors = [p for p in rest if p.ndim < 2] + list(self.names.parameters())
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "peak": config.learning_rate, "weight_decay": 0.01},
            {"params": vectors, "peak": config.learning_rate, "weight_decay": 0.0},
            {"params": front, "peak": config.front_learning_rate, "weight_decay": 0.0},
        ]
        parameters = [p for group in groups for p in group["params"]]
        # betas of wav2vec 2.0's training (Baevski et al. 2020, section 4.2): gradients change fast at first.
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=config.device.startswith("cuda"))
        step, heard, log = 0, 0.0, []
        began = reported = saved = time.perf_counter()
        while (done := (time.perf_counter() - began) / (60 * config.minutes)) < 1:
            frames = int(self.rng.choice(config.crop_frames, p=config.crop_shares))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate(config, step, done)
            loss, parts = self.loss(frames)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            heard += max(1, config.batch_frames // frames) * frames * STRIDE / SAMPLE_RATE / 3600
            log.append(torch.cat([parts, norm.detach()[None]]))
            if time.perf_counter() - reported > config.report_seconds:
                self.report(step, heard, log)
                reported = time.perf_counter()
            if time.perf_counter() - saved > 60 * config.save_minutes:
                save_encoder(student, self.folder.path / "encoder")
                saved = time.perf_counter()
        self.report(step, heard, log)
        save_encoder(student, self.folder.path / "encoder")
        return {"steps": step, "hours_heard": heard, "seconds": time.perf_counter() - began}

    def report(self, step: int, heard: float, log: list[Tensor]) -> None:
        *losses, named, norm = torch.stack(log).mean(0).tolist()
        log.clear()
        if not np.isfinite(losses).all():
            raise ConfigError(f"learning_rate={self.config.learning_rate}: the loss is no longer finite; take less")
        cosines = self.held_out_cosines(hidden=False)
        self.folder.log_metrics({
            "step": step,
            "hours": heard,
            "layer_losses": losses,
            "cluster_loss": named,
            "gradient_norm": norm,
            "held_out_cosines": cosines,
            "held_out_hidden_cosines": self.held_out_cosines(hidden=True),
        })  # fmt: skip
        print(
            f"step {step}: {heard:.1f} h heard, last state's cosine on held-out speech {cosines[-1]:.4f}", flush=True
        )


def learning_rate(config: Pretrain, step: int, done: float) -> float:
    """Share of the peak, ``done`` being the finished share of the time."""
    falling = max(0.01, (1 - done) / (1 - config.flat)) if done > config.flat else 1.0
    return min(1.0, (step + 1) / max(1, config.warmup_steps)) * falling


def nearest_to(frames: Tensor, centroids: Tensor) -> Tensor:
    """(N, D), (K, D) -> (N,) the number of the nearest centroid."""
    return (centroids.square().sum(1) - 2 * frames @ centroids.T).argmin(1)


def k_means(frames: Tensor, clusters: int, rounds: int = 15) -> Tensor:
    """Lloyd's algorithm on frames (N, D) -> centroids (clusters, D), on whatever device the frames are."""
    if len(frames) < clusters:
        raise ConfigError(f"clusters={clusters}: {len(frames)} frames were seen; take fewer clusters")
    centroids = frames[torch.randperm(len(frames), device=frames.device)[:clusters]].clone()
    for _ in range(rounds if clusters else 0):
        nearest = torch.cat([nearest_to(part, centroids) for part in frames.split(20_000)])
        sums = torch.zeros_like(centroids).index_add_(0, nearest, frames)
        counts = torch.bincount(nearest, minlength=clusters).unsqueeze(1)
        centroids = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
    return centroids


def resolve(config: Pretrain, path: Path) -> Path:
    if path.is_absolute():
        return path
    folder = config.data or os.environ.get("SPEECH_ADAPTERS_DATA")
    if folder is None:
        raise ConfigError(f"data: where is {path}? Give data=FOLDER, set SPEECH_ADAPTERS_DATA, or use absolute paths")
    return Path(folder) / path


def main(argv: list[str] | None = None) -> Path:
    config = parse_cli(Pretrain, argv, description=__doc__)
    run = Run(config)
    print(f"front-end: explains {', '.join(f'{100 * share:.1f} %' for share in run.explained)} of the teacher's")
    done = run.train()
    lines, folder = run.folder.read_metrics(), run.folder.path / "encoder"
    run.folder.write_results({
        "task": "pretrain_small",
        "encoder": folder,
        "data": {"train": {"sha256": run.manifest.sha256, "hours": run.manifest.hours,
                           "speakers": len(run.manifest.speakers)}},
        "front_end_explained": run.explained,
        "final": lines[-1],
        "parameters": {"total": sum(p.numel() for p in run.student.parameters())},
        **done,
        "seed": config.seed,
        **environment(config.device),
    })  # fmt: skip
    print(f"{folder}: done. Score it with: python benchmarks/probe_conv_head.py --encoder {folder}")
    return folder


if __name__ == "__main__":
    run_main(lambda: bool(main()) and 0)
