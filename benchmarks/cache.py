"""Training from cached activations against what a user would run otherwise: an epoch of both, in the same run.

    python benchmarks/cache.py                       # packaged encoder, LibriSpeech of $SPEECH_ADAPTERS_DATA
    python benchmarks/cache.py --methods head-only --encoder small-wavlm --minutes 10

The other way ("stock") is ``transformers``' own forward with the same head, L-adapters on its hidden states or
``peft``'s LoRA in the top layers' feed-forwards, trained as Hugging Face's ``Trainer`` does: a fixed number of
utterances per batch in random order, padded to the longest, fp32, AdamW; audio is decoded as it is read, as in
``datasets`` (ours holds it in memory). A step of each holds about the same seconds of audio. "ours" is our loop's step
without the cache in fp32, "cached" the same with it, "default" with it in the precision that
``training.precision=auto`` chooses here. Losses are those of 50 updates with and without a cache in fp32: their
greatest relative difference.

PAC (Ouyang et al., arXiv 2408.10746) reports 8.64 times for parallel adapters with cached activations on language
models: the best published figure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from material import speech
from timing import Record, Row, in_turns, parse, parser_of, the_device
from torch import nn

from speech_adapters import SpeechAdapterModel
from speech_adapters.adapters import AdapterConfig, Bottleneck, LoRA, preset
from speech_adapters.data.batches import SpeechDataset, collate
from speech_adapters.data.manifest import Manifest
from speech_adapters.encoders import Encoder, load_encoder
from speech_adapters.heads import ClassificationHead, CTCHead, HeadConfig
from speech_adapters.precision import autocast
from speech_adapters.runs.folder import RunFolder
from speech_adapters.training.cached_dataset import CachedDataset
from speech_adapters.training.learner import Position
from speech_adapters.training.settings import Cache, TrainingConfig
from speech_adapters.training.supervised import Supervised, constant, train


def methods_of(encoder: Encoder) -> dict[str, tuple[AdapterConfig, str]]:
    """Name -> our adapter, and the head that it trains: "ctc" or "class"."""
    top = max(1, round(encoder.num_layers / 3))
    return {
        "head-only, ctc": (preset("head-only"), "ctc"),
        "head-only, classes": (preset("head-only"), "class"),
        "l-frozen, ctc": (preset("l-frozen"), "ctc"),
        "l-frozen, classes": (preset("l-frozen"), "class"),
        "weighted-sum, classes": (preset("weighted-sum"), "class"),
        f"bottleneck top-{top}, ctc": (Bottleneck(layers=f"top-{top}"), "ctc"),
        f"lora top-{top}, ctc": (LoRA(layers=f"top-{top}"), "ctc"),
    }


def head_of(kind: str, manifest: Manifest) -> HeadConfig:
    if kind == "ctc":
        return CTCHead(dropout=0.0)
    return ClassificationHead(labels=manifest.values("speaker"), label_field="speaker", dropout=0.0)


class Stock(nn.Module):
    """The encoder by ``transformers``' own forward, with our head on it, and our L-adapters on its hidden states or
    ``peft``'s LoRA in its feed-forwards (stock WavLM's attention would not run it)."""

    def __init__(self, encoder: Encoder, adapter: AdapterConfig, head: HeadConfig) -> None:
        super().__init__()
        self.encoder, built = encoder, adapter.build(encoder)
        self.adapter = None if built.states is None else built
        if self.adapter is None:
            from peft import LoraConfig, inject_adapter_in_model

            top = list(range(encoder.num_layers))[-max(1, round(encoder.num_layers / 3)) :]
            names = [
                encoder.part_name(layer, name) for layer in top for name in ("intermediate_dense", "output_dense")
            ]
            inject_adapter_in_model(LoraConfig(r=8, target_modules=names), encoder.model)
        size = encoder.hidden_size if self.adapter is None else self.adapter.output_size or encoder.hidden_size
        self.head = head.build(size)

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        encoder = self.encoder
        mask = (torch.arange(waveforms.shape[1], device=lengths.device) < lengths[:, None]).long()
        output = encoder.model(
            encoder.normalized(waveforms, lengths), attention_mask=mask, output_hidden_states=self.adapter is not None
        )
        features = output.last_hidden_state
        if self.adapter is not None and self.adapter.output_size is not None:
            features = self.adapter.read(encoder, output)
        scored = self.head(features, encoder.frame_lengths(lengths))
        return self.head.loss(scored, targets)


def stock_epoch(model: Stock, data: SpeechDataset, batch_seconds: float, seed: int) -> Iterator[float]:
    """An epoch of updates as Hugging Face's Trainer makes them; yields losses."""
    size = max(1, round(batch_seconds / statistics.mean(data.durations)))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for start in range(0, len(order), size):
        batch = send_to_device(collate([data[i] for i in order[start : start + size]]), model.encoder.device)
        optimizer.zero_grad()
        loss = model(batch["waveforms"], batch["lengths"], batch["targets"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield float(loss.detach())


def ours(encoder: Encoder, adapter: AdapterConfig, head: HeadConfig) -> SpeechAdapterModel:
    torch.manual_seed(0)
    model = SpeechAdapterModel(encoder)
    model.add_adapter("a", adapter)
    model.add_head("head", head)
    model.train_adapter("a", head="head")
    return model


def measure(
    name: str, arguments: argparse.Namespace, manifest: Manifest, folder: Path, device: torch.device
) -> tuple[str, dict[str, Row]]:
    """What is kept, and the rows of the ways."""
    adapter, kind = methods_of(load_encoder(arguments.encoder))[name]
    head = head_of(kind, manifest)
    data, read_anew = (SpeechDataset(manifest, head.target, keep_in_memory=kept) for kept in (True, False))
    settings: dict[str, Any] = {"precision": "fp32", "trackers": (), "save_minutes": None, "log_every": 1}
    settings["batch_seconds"] = arguments.batch_seconds
    cache = Cache(folder=folder / "cache", precision=arguments.precision)

    def run(updates: int, label: str, cache: Cache | None) -> RunFolder:
        model = ours(load_encoder(arguments.encoder), adapter, head)
        run = RunFolder.create("benchmark", path=folder / label)
        short = settings | {"batch_seconds": min(20.0, arguments.batch_seconds)}
        train(model, data, TrainingConfig(updates=updates, cache=cache, **short), run)
        return run

    exact = Cache(folder=folder / "exact", precision="fp32")
    losses = [
        [line["loss"] for line in run(arguments.updates, f"{name}-{label}", one).read_metrics()]
        for label, one in (("plain", None), ("cached", exact))
    ]
    difference = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))

    stock_encoder = load_encoder(arguments.encoder)
    stock = Stock(stock_encoder, adapter, head).to(device).train()
    stock_encoder.model.eval()

    def epoch(dataset: Any, precision: str) -> Callable[[int], None]:
        config = TrainingConfig(**settings | {"precision": precision})
        learner = Supervised(
            ours(load_encoder(arguments.encoder).to(device), adapter, head).to(device), dataset, config
        )
        parameters = [p for group, _ in learner.groups().values() for p in group]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

        def once(number: int) -> None:
            for batch in learner.batches(Position(number, 0)):
                batch = send_to_device(batch, device)
                optimizer.zero_grad()
                with autocast(device, config.precision):
                    loss = learner.loss(batch, 0).loss
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()

        return once

    model = ours(load_encoder(arguments.encoder).to(device), adapter, head)
    frozen = constant(model, TrainingConfig(**settings))
    kept = CachedDataset(data, model, cache, 120, frozen=frozen)
    ways: dict[str, Callable[[int], Any]] = {
        "stock": lambda number: list(stock_epoch(stock, read_anew, arguments.batch_seconds, number)),
        "ours": epoch(data, "fp32"),
        "cached": epoch(kept, "fp32"),
        "default": epoch(kept, "auto"),
    }
    numbers = {way: itertools.count() for way in ways}  # each epoch has an order of its own
    rows = in_turns(
        {way: (lambda way=way: ways[way](next(numbers[way]))) for way in ways}, arguments.rounds, device, "stock"
    )
    for row in rows.values():
        row["faster"] = 1 / row["ratio"]
    size = sum(path.stat().st_size for tap in kept.taps.values() for path in tap.folder.glob("*.bin"))
    rows["cached"] |= {"megabytes": size / 1e6, "loss_difference": difference}
    return str(frozen), rows


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--encoder", default="tiny-wavlm")
    parser.add_argument("--manifest", type=Path, help="labelled speech; by default LibriSpeech's")
    parser.add_argument("--minutes", type=float, default=4.0, help="audio per epoch")
    parser.add_argument("--methods", nargs="+", help="words that names of rows hold; all by default")
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--precision", default="fp16", choices=["fp16", "bf16", "fp32"], help="of the timed cache")
    parser.add_argument("--updates", type=int, default=50, help="whose losses are compared")
    quick = {"minutes": 0.3, "methods": ["head-only, classes"], "batch_seconds": 10.0, "updates": 2}
    arguments, device = parse(parser, quick), the_device()
    record = Record(arguments, device)
    manifest = speech(arguments.manifest, arguments.minutes)
    shape = f"{60 * manifest.hours:.1f} min of speech, {arguments.batch_seconds:g} s per batch"
    for name in methods_of(load_encoder(arguments.encoder)):
        if arguments.methods and not any(word in name for word in arguments.methods):
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            kept, rows = measure(name, arguments, manifest, Path(folder), device)
        record.add(f"{name}: an epoch, {arguments.encoder}, {shape}; kept: {kept}", rows, "stock")
    record.write()


if __name__ == "__main__":
    main()
