"""What does a frozen encoder know, and in which layer? Linear probes, in minutes, without fine-tuning anything.

    python benchmarks/probe_encoder.py --encoder tiny-wavlm --random
    python benchmarks/probe_encoder.py --encoder microsoft/wavlm-base-plus --tasks speed,digits --device cuda

- digits, emotion, speaker: hidden states averaged over time, standardised, logistic regression, for every layer.
  Digits and emotion are scored on speakers that the probe has not heard; the speaker probe on other utterances of the
  speakers that it has.
- ctc: one linear layer over the frozen last layer, greedy decoding, no language model: word error rate; and the same
  probe on copies of the speech sent through a telephone channel (8 kHz, 300 to 3400 Hz, mu-law).
- speed: 10 s of audio on 2 threads; and how far padding in a batch moves the output.

``--random`` puts the same architecture with random weights beside it: what it scores, the architecture gives away.
``--teacher`` puts a Whisper encoder (safetensors) beside it. Manifests are given by flags, or found as
``$SPEECH_ADAPTERS_DATA/manifests/*.jsonl``. Writes ``table.txt``, ``results.json`` and ``layers.png``.

Probes as in Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016), and, for
speech, Pasad et al., "Layer-wise analysis of a self-supervised speech representation model" (ASRU 2021).
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from speech_adapters.config import option, parse_cli, run_main, write_text
from speech_adapters.data.audio import SAMPLE_RATE, read_audio
from speech_adapters.data.augmentation import telephone
from speech_adapters.data.manifest import Manifest, Utterance, check_disjoint
from speech_adapters.encoders import Encoder, load_encoder
from speech_adapters.errors import ConfigError
from speech_adapters.heads.ctc import CTCHead, check_ctc_lengths
from speech_adapters.heads.decoding import greedy_decode
from speech_adapters.metrics.bootstrap import Interval, bootstrap, bootstrap_statistic
from speech_adapters.metrics.wer import WERResult, word_error_rate
from speech_adapters.objectives.whisper_teacher import STRIDE, WhisperTeacher
from speech_adapters.runs.environment import environment
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.loop import fit
from speech_adapters.training.on_features import FeatureBatch, FeatureLearner
from speech_adapters.training.settings import LoopConfig

Task = Literal["speed", "digits", "emotion", "speaker", "ctc"]
LAYER_TASKS = ("digits", "emotion", "speaker")
MEASURES = {"digits": "accuracy", "emotion": "unweighted average recall", "speaker": "accuracy"}


@dataclass(kw_only=True)
class Probe:
    """Which encoder is scored, by which probes, on which manifests."""

    encoder: str | None = option(None, "packaged name, folder or hub id")
    random: bool = option(False, "also score the encoder's architecture with random weights")
    teacher: Path | None = option(None, "also score this Whisper encoder (safetensors)")
    tasks: tuple[Task, ...] = option(("speed", *LAYER_TASKS, "ctc"), "which probes")
    hours: float | None = option(None, "use at most so many hours of each manifest, for a first look")
    out: Path | None = option(None, "output folder; by default runs/probe_encoder/<time>")
    digits_train: tuple[Path, ...] = option((), "manifests; of those with a domain telephone_digits, only that")
    digits_test: tuple[Path, ...] = option((), "manifests of other speakers")
    emotion_train: tuple[Path, ...] = option((), "manifests with emotion")
    emotion_test: tuple[Path, ...] = option((), "manifests of other speakers")
    speaker: tuple[Path, ...] = option((), "manifests with several utterances per speaker; half of them train")
    ctc_train: tuple[Path, ...] = option((), "manifests with text")
    ctc_test: tuple[Path, ...] = option((), "manifests of other speakers")
    ctc_layer: int = option(-1, "which hidden state the CTC probe reads; -1: the encoder's output")
    ctc_epochs: int = option(8, "passes over the CTC training data; most of the probe's time on a CPU")
    ctc_learning_rate: float = option(1e-2, "of Adam, peak; features are standardised, so one value fits all encoders")
    device: str = option("cpu", "or cuda")
    dtype: Literal["float32", "bfloat16"] = option("float32", "of the encoder")
    seed: int = option(0, "of the random weights, the splits and the CTC probe")


MANIFESTS = {  # name: (files in $SPEECH_ADAPTERS_DATA/manifests, keys that each line needs)
    "digits_train": ("asr_telephone_train", ("speaker",)),
    "digits_test": ("asr_telephone_test", ("speaker",)),
    "emotion_train": ("ser_ravdess_train", ("emotion", "speaker")),
    "emotion_test": ("ser_ravdess_test", ("emotion", "speaker")),
    "speaker": ("sv_librispeech_test", ("speaker",)),
    "ctc_train": ("asr_librispeech_train", ("text", "speaker")),
    "ctc_test": ("asr_librispeech_dev", ("text", "speaker")),
}

# --- models: a list of waveforms -> for each, its hidden states (T, D), one a layer ----------------------------------


class EncoderStates:
    """The layers' inputs and the encoder's output, in padded batches where padding does no harm."""

    def __init__(self, encoder: Encoder, device: str) -> None:
        self.encoder, self.device = encoder, device
        self.batch_seconds = 0.0 if encoder.group_norm else 40.0  # a CNN normalised over time hears the padding

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        lengths = torch.tensor([len(waveform) for waveform in waveforms], device=self.device)
        batch = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True).to(self.device)
        output = self.encoder(batch, lengths if len(waveforms) > 1 else None)
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        frames = self.encoder.frame_lengths(lengths).tolist()
        return [tuple(state[i, :count].float() for state in states) for i, count in enumerate(frames)]


class TeacherStates:
    """Whisper's encoder knows no padding mask: one utterance at a time."""

    batch_seconds = 0.0

    def __init__(self, weights: Path, device: str) -> None:
        self.teacher, self.device = WhisperTeacher(weights, receptive_field=780).to(device), device

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return [self._states(waveform.to(self.device)) for waveform in waveforms]

    def _states(self, waveform: Tensor) -> tuple[Tensor, ...]:
        teacher = self.teacher
        frames = (len(waveform) - teacher.receptive_field) // STRIDE + 1
        most = (teacher.max_samples - teacher.receptive_field) // STRIDE + 1
        pieces = []
        for first in range(0, frames, most):  # beyond 30 s, in pieces
            last = min(first + most, frames) - 1
            pieces.append(teacher(waveform[None, first * STRIDE : last * STRIDE + teacher.receptive_field]))
        return tuple(torch.cat(layer, dim=1)[0] for layer in zip(*pieces, strict=True))


States = EncoderStates | TeacherStates


def random_twin(encoder: Encoder, seed: int) -> Encoder:
    """The same architecture with the random weights that training would start from."""
    torch.manual_seed(seed)
    twin = type(encoder.model)(encoder.config).to(encoder.model.device, encoder.model.dtype)
    return Encoder(twin, f"{encoder.name} (random)", normalize=encoder.normalize)


def encode_manifest(
    model: States,
    manifest: Manifest,
    keep: Callable[[tuple[Tensor, ...]], Any],
    change: Callable[[Tensor], Tensor] | None = None,
) -> list[Any]:
    """``keep(states)`` of every utterance, in the manifest's order; ``change`` is done to its waveform first."""
    kept: list[Any] = [None] * len(manifest)
    batch: list[tuple[int, Tensor]] = []
    with tqdm(total=len(manifest), desc=Path(manifest.name).stem, leave=False, disable=None) as bar:
        for place in sorted(range(len(manifest)), key=lambda i: manifest[i].duration):
            utterance = manifest[place]
            waveform = read_audio(
                utterance.audio_filepath, offset=utterance.offset, duration=utterance.duration, channel="mix"
            )
            if batch and (len(batch) + 1) * len(waveform) > model.batch_seconds * SAMPLE_RATE:
                _flush(model, batch, kept, keep, bar)
            batch.append((place, change(waveform) if change else waveform))
        _flush(model, batch, kept, keep, bar)
    return kept


def _flush(model: States, batch: list, kept: list, keep: Callable, bar: tqdm) -> None:
    for (place, _), states in zip(batch, model([waveform for _, waveform in batch]), strict=True):
        kept[place] = keep(states)
    bar.update(len(batch))
    batch.clear()


# --- probes ----------------------------------------------------------------------------------------------------------


def probe_layers(model: States, task: str, data: dict[str, Manifest], config: Probe) -> dict[str, Any]:
    """Logistic regression on each layer: ``layers`` (one score each), ``best`` (layer), ``score`` (its interval)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if task == "speaker":
        train, test = split_speakers(data["speaker"], config.seed)
    else:
        train, test = data[f"{task}_train"], data[f"{task}_test"]
    label = {"digits": _digit, "emotion": lambda u: u.emotion, "speaker": lambda u: u.speaker}[task]
    wanted, truth = np.array([label(u) for u in train]), np.array([label(u) for u in test])
    pool = lambda states: np.stack([state.mean(0).cpu().numpy() for state in states])  # noqa: E731
    heard, unheard = (np.stack(encode_manifest(model, part, pool)) for part in (train, test))

    scores, hits = [], []
    for layer in range(heard.shape[1]):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        hit = classifier.fit(heard[:, layer], wanted).predict(unheard[:, layer]) == truth
        hits.append(hit.astype(float))
        scores.append(recall(hits[-1], truth) if task == "emotion" else float(hit.mean()))
    best = int(np.argmax(scores))
    if task == "emotion":
        speakers = [u.speaker for u in test]
        interval = bootstrap_statistic(lambda index: recall(hits[best][index], truth[index]), speakers)
    else:  # the speakers of the closed-set probe are its classes, no sample of speakers
        groups = [u.speaker for u in test] if task == "digits" else None
        interval = bootstrap(hits[best], np.ones(len(truth)), groups)
    return {
        "measure": MEASURES[task],
        "layers": scores,
        "best": best,
        "score": interval,
        "chance": 1 / len(set(truth)),
        "by_speaker": {s: float(np.mean([h for h, u in zip(hits[best], test, strict=True) if u.speaker == s]))
                       for s in test.speakers} if task != "speaker" else {},
        "utterances": {"train": len(train), "test": len(test)},
    }  # fmt: skip


def recall(hits: np.ndarray, truth: np.ndarray) -> float:
    """Unweighted average recall: the mean over classes of the share that was found."""
    return float(np.mean([hits[truth == label].mean() for label in np.unique(truth)]))


def split_speakers(manifest: Manifest, seed: int) -> tuple[Manifest, Manifest]:
    """Half of each speaker's utterances to train on, the others to score."""
    chosen: set[str] = set()
    for speaker in manifest.speakers:
        own = manifest.filter(lambda u, speaker=speaker: u.speaker == speaker)
        if len(own) < 2:
            raise ConfigError(f"{manifest.name}: speaker {speaker!r} has one utterance; the probe needs two or more")
        chosen |= {u.id for u in own.subset(size=len(own) // 2, seed=seed)}
    return manifest.filter(lambda u: u.id in chosen), manifest.filter(lambda u: u.id not in chosen)


def _digit(utterance: Utterance) -> str:
    return utterance.label or utterance.text or ""


def probe_ctc(model: States, data: dict[str, Manifest], config: Probe, run: RunFolder, name: str) -> dict[str, Any]:
    """Word error rate of a linear CTC layer, and of the same layer on the telephone copies."""
    train, test = data["ctc_train"], data["ctc_test"]
    keep = lambda states: states[config.ctc_layer].half().cpu()  # noqa: E731
    head = CTCHead(dropout=0.0)
    targets = [torch.tensor(head.encode(u.text or "", u.id)) for u in train]
    features = encode_manifest(model, train, keep)
    check_ctc_lengths([t.tolist() for t in targets], [len(f) for f in features], [u.id for u in train])
    probe, standardised = train_ctc(features, targets, head, config, run, name)

    def score(change: Callable[[Tensor], Tensor] | None) -> WERResult:
        texts = []
        for frames in encode_manifest(model, test, keep, change):
            logits = probe(standardised(frames))
            texts += greedy_decode(logits[None], torch.tensor([len(logits)]), head.vocabulary)
        return word_error_rate([u.text or "" for u in test], texts, [u.speaker for u in test], [u.id for u in test])

    with torch.inference_mode():
        clean, phone = score(None), score(telephone)
    return {
        "wer": clean.wer,
        "cer": clean.cer,
        "telephone_wer": phone.wer,
        "telephone_increase": phone.wer.value / max(clean.wer.value, 1e-9) - 1,
        "layer": config.ctc_layer,
        "hours": train.hours,
    }


def moments(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) over all frames of all utterances."""
    count = sum(len(frames) for frames in features)
    mean = sum(frames.double().sum(0) for frames in features) / count
    variance = sum((frames.double() - mean).square().sum(0) for frames in features) / count
    return mean.float(), variance.sqrt().clamp_min(1e-5).float()


def train_ctc(
    features: Sequence[Tensor], targets: Sequence[Tensor], head: CTCHead, config: Probe, run: RunFolder, name: str
) -> tuple[nn.Linear, Callable[[Tensor], Tensor]]:
    """A linear layer by Adam, its learning rate falling along a cosine, on features (T, D) standardised by channel.

    Returns the layer, and how features are standardised for it.
    """
    mean, std = (moment.to(config.device) for moment in moments(features))
    torch.manual_seed(config.seed)
    module = head.build(len(mean)).to(config.device)
    order = sorted(range(len(features)), key=lambda i: len(features[i]))
    batches = [order[i : i + 16] for i in range(0, len(order), 16)]

    def loss_of(batch: FeatureBatch) -> Tensor:
        inputs, frames, wanted = batch
        return module.loss(module((inputs - mean) / std, frames), wanted)

    learner = FeatureLearner(module, loss_of, features, targets, batches, config.ctc_learning_rate, config.seed)
    loop = LoopConfig(
        updates=config.ctc_epochs * len(batches), warmup=0.0, max_grad_norm=math.inf, precision="fp32",
        seed=config.seed, trackers=("none",),
    )  # fmt: skip
    fit(learner, loop, run, name)
    linear = module.linear.cpu().requires_grad_(False)
    return linear, lambda frames: (frames.float() - mean.cpu()) / std.cpu()


def measure_speed(model: States, seed: int) -> dict[str, Any]:
    """Times real time on 10 s of audio (median of 5), 2 threads on a CPU; largest change of the output by padding."""
    generator = torch.Generator().manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        waveform, times = torch.randn(10 * SAMPLE_RATE, generator=generator) * 0.1, []
        for _ in range(6):
            start = time.perf_counter()
            float(model([waveform])[0][-1][0, 0])  # waits for a GPU
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    result: dict[str, Any] = {"times_real_time": 10 / statistics.median(times[1:]), "padding_difference": None}
    if model.batch_seconds:
        waveforms = [waveform[: int(seconds * SAMPLE_RATE)] for seconds in (0.5, 1.3, 4.0, 10.0)]
        pairs = zip(model(waveforms), (model([w])[0] for w in waveforms), strict=True)
        result["padding_difference"] = max(float((a[-1] - b[-1]).abs().max()) for a, b in pairs)
    return result


# --- manifests, table, plot ------------------------------------------------------------------------------------------


def read(config: Probe, name: str) -> Manifest:
    """The manifests of one option as one; by default those of ``$SPEECH_ADAPTERS_DATA``."""
    stem, require = MANIFESTS[name]
    paths = getattr(config, name)
    if not paths:
        folder = os.environ.get("SPEECH_ADAPTERS_DATA")
        flag = "--" + name.replace("_", "-")
        if not folder:
            raise ConfigError(f"{name}: no manifest; give {flag}, leave the task out of --tasks, or set "
                              "SPEECH_ADAPTERS_DATA to a folder with manifests/*.jsonl")  # fmt: skip
        paths = [Path(folder) / "manifests" / f"{stem}.jsonl"]
    manifests = [_read_digits(path) if name.startswith("digits") else Manifest.read(path) for path in paths]
    manifest = sum(manifests[1:], manifests[0]).require(*require)
    if name.startswith("digits"):
        manifest.require("label" if manifest.values("label") else "text")
    return manifest.subset(hours=config.hours) if config.hours and manifest.hours > config.hours else manifest


def _read_digits(path: Path) -> Manifest:
    """A manifest's lines of the domain telephone_digits, or all of it where there are none.

    Selected before it is checked: what else such a manifest holds, such as prompts whose ids repeat, is none of the
    probe's business.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    chosen = [line for line in lines if '"telephone_digits"' in line]
    if not chosen:
        return Manifest.read(path)
    with tempfile.TemporaryDirectory() as folder:
        selection = Path(folder) / path.name
        selection.write_text("".join(chosen), encoding="utf-8")
        # Relative audio paths start at the folder of the manifest they were written in.
        return Manifest.read(selection).map(
            lambda u: replace(
                u, audio_filepath=Path(os.path.abspath(path.parent / os.path.relpath(u.audio_filepath, folder)))
            )
        )


def table(results: dict[str, dict[str, Any]]) -> str:
    """All figures as text: one row per task and model."""
    width = max(map(len, results))
    lines = []
    for task in LAYER_TASKS:
        rows = [(name, result[task]) for name, result in results.items() if task in result]
        for i, (name, row) in enumerate(rows):
            if i == 0:
                lines.append(f"\n{task}: {row['measure']} in % by layer (chance {100 * row['chance']:.1f})")
            scores = " ".join(f"{100 * score:5.1f}" for score in row["layers"])
            lines.append(f"  {name:{width}}  {scores}   best: layer {row['best']}, {row['score'].percent()}")
    rows = [(name, result["ctc"]) for name, result in results.items() if "ctc" in result]
    lines += ["\nctc: WER of a linear probe, greedy"] if rows else []
    for name, row in rows:
        increase = f"{row['telephone_wer'].percent()} ({100 * row['telephone_increase']:+.1f} % relative)"
        lines.append(f"  {name:{width}}  {row['wer'].percent()}   telephone {increase}")
    rows = [(name, result["speed"]) for name, result in results.items() if "speed" in result]
    lines += ["\nspeed: 10 s of audio"] if rows else []
    for name, row in rows:
        padding = row["padding_difference"]
        shown = "one utterance at a time" if padding is None else f"padding moves the output by at most {padding:.1e}"
        lines.append(f"  {name:{width}}  {row['times_real_time']:.0f} times real time; {shown}")
    return "\n".join(lines).lstrip("\n") + "\n"


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel a task: curves over the layers, bars for the CTC probe."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [task for task in (*LAYER_TASKS, "ctc") if any(task in result for result in results.values())]
    if not tasks:
        return
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.4), squeeze=False, layout="constrained")
    for task, axis in zip(tasks, axes[0], strict=True):
        for i, (name, result) in enumerate(results.items()):
            if task == "ctc":
                heights = [100 * result[task][key].value for key in ("wer", "telephone_wer")]
                places = np.arange(2) + (i - (len(results) - 1) / 2) * 0.8 / len(results)
                axis.bar(places, heights, 0.8 / len(results), label=name)
            else:
                axis.plot([100 * score for score in result[task]["layers"]], marker="o", label=name)
        if task == "ctc":
            axis.set(title="linear CTC probe", ylabel="WER (%)", xticks=[0, 1], xticklabels=["as recorded", "mu-law"])
        else:
            chance = 100 * next(iter(results.values()))[task]["chance"]
            axis.axhline(chance, color="grey", linestyle=":", linewidth=1)
            axis.set(title=task, xlabel="layer (0: input of the first)", ylabel=f"{MEASURES[task]} (%)", ylim=(0, 101))
            axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].legend(fontsize="small")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    os.replace(temporary, path)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    config = parse_cli(Probe, argv, description=__doc__)
    if config.encoder is None and config.teacher is None:
        raise ConfigError("encoder: nothing to score; give --encoder NAME, or --teacher FILE")
    if config.random and config.encoder is None:
        raise ConfigError("random: needs --encoder, whose architecture it takes")
    if config.hours is not None and config.hours <= 0:
        raise ConfigError(f"hours={config.hours} must be above 0; leave it out to use everything")
    data = {name: read(config, name) for name in MANIFESTS if name.split("_")[0] in config.tasks}
    for task in {"digits", "emotion", "ctc"} & set(config.tasks):
        check_disjoint(data[f"{task}_train"], data[f"{task}_test"])
    models: dict[str, Callable[[], States]] = {}
    if config.encoder is not None:
        encoder = load_encoder(config.encoder, dtype=getattr(torch, config.dtype), device=config.device)
        name = config.encoder.rstrip("/")
        models[name if name.count("/") < 2 else Path(name).name] = lambda: EncoderStates(encoder, config.device)
        if config.random:
            models["random"] = lambda: EncoderStates(random_twin(encoder, config.seed), config.device)
    if config.teacher is not None:
        models["teacher"] = lambda: TeacherStates(config.teacher, config.device)

    folder = RunFolder.create("probe_encoder", path=config.out)
    folder.save_config(config)
    start, results = time.perf_counter(), {}
    for name, build in models.items():
        model, result = build(), {}
        for task in config.tasks:
            began = time.perf_counter()
            if task == "speed":
                result[task] = measure_speed(model, config.seed)
            else:
                layer = partial(probe_ctc, run=folder, name=f"ctc-{len(results)}")
                probe = layer if task == "ctc" else partial(probe_layers, task=task)
                result[task] = probe(model, data=data, config=config)
            result[task]["seconds"] = time.perf_counter() - began
            print(f"{name}: {task} done in {result[task]['seconds']:.0f} s", flush=True)
        results[name] = result
    text = table(results)
    write_text(folder.path / "table.txt", text)
    plot(results, folder.path / "layers.png")
    first, *others = ({"probes": result, "metrics": metrics(result)} for result in results.values())
    summary = {
        "task": "probe_encoder",
        "encoder": config.encoder or str(config.teacher),
        "data": {n: {"sha256": m.sha256, "hours": m.hours, "speakers": len(m.speakers)} for n, m in data.items()},
        **first,
        "baselines": dict(zip(list(results)[1:], others, strict=True)),
        "seconds": time.perf_counter() - start,
        "seed": config.seed,
        **environment(config.device),
    }
    folder.write_results(summary)
    print(f"\n{text}\n{folder.path}: table.txt, results.json, layers.png")
    return summary


def metrics(result: dict[str, Any]) -> dict[str, Interval]:
    """The figures with intervals, under the names that every ``results.json`` uses."""
    found = {task: result[task]["score"] for task in LAYER_TASKS if task in result}
    if "ctc" in result:
        found |= {"wer": result["ctc"]["wer"], "telephone_wer": result["ctc"]["telephone_wer"]}
    return found


if __name__ == "__main__":
    run_main(lambda: bool(main()) and 0)
