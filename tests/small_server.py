"""A small random encoder with a folder of adapters and heads on it, and a server of them on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_encoders import stock_model

from speech_adapters.data.audio import SAMPLE_RATE, write_audio
from speech_adapters.heads.classification import ClassificationHead
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.heads.speaker import SpeakerHead
from speech_adapters.metrics.calibration import Calibration
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.serving.catalog import Catalog, read_place
from speech_adapters.serving.engine import Engine, EngineSettings
from speech_adapters.serving.http.app import create_app
from speech_adapters.serving.http.keys import Keys
from speech_adapters.serving.http.server import Server
from speech_adapters.serving.http.settings import HttpSettings

METHODS = ("lora", "houlsby", "elp", "prefix")

HEADS = {
    "transcription": lambda: CTCHead(),
    "classification": lambda: ClassificationHead(labels=("anger", "calm", "joy")),
    "embedding": lambda: SpeakerHead(speakers=("ann", "bob"), embedding_size=16, calibration=Calibration(5.0, -1.0)),
}


def make_encoder(folder: Path, style: str = "pre-norm") -> Path:
    """A wavlm of three layers, saved as stock checkpoints are."""
    stock_model("wavlm", style).save_pretrained(folder)
    return folder


def make_adapters(encoder: Path, folder: Path, count: int = 16, methods: tuple[str, ...] = METHODS) -> Path:
    """``count`` adapters of four methods in turn, moved away from their start, each with a head of every task."""
    model = SpeechAdapterModel.from_pretrained(encoder)
    torch.manual_seed(0)
    for number in range(count):
        name = f"{methods[number % len(methods)]}-{number}"
        model.add_adapter("a", methods[number % len(methods)])
        shake(model, "a")
        model.save_adapter("a", folder / "adapters" / name)
        for task, config in HEADS.items():
            model.add_head(task, config())
            model.save_head(task, folder / "heads" / f"{name}-{task}")
            model.delete_head(task)
        model.delete_adapter("a")
    return folder


def shake(model: SpeechAdapterModel, name: str) -> None:
    """Move an adapter's tensors, as training would."""
    with torch.no_grad():
        for tensor in model.registry.adapter(name).tensors().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor))


def engine_of(encoder: str | Path, *folders: Path, **settings: Any) -> Engine:
    """An engine, not started, that serves all in the folders."""
    model = SpeechAdapterModel.from_pretrained(encoder)
    catalog = Catalog(model.encoder)
    for folder in folders:
        for served, calls in read_place(folder, model.encoder):
            catalog.add(served, *calls)
    return Engine([model], catalog, EngineSettings(**settings))


@contextmanager
def running(engine: Engine, settings: HttpSettings | None = None, keys: Keys | None = None) -> Iterator[str]:
    """A server on a free port of loopback, in a thread; its address."""
    server = Server(create_app(engine, settings or HttpSettings(), keys), port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


def tone(path: Path, seconds: float = 1.0, seed: int = 0) -> Path:
    """Noise in bursts of a second, with pauses as long: what voice activity takes for speech."""
    generator = np.random.default_rng(seed)
    samples = 0.1 * generator.standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    beat = np.arange(len(samples)) // (SAMPLE_RATE // 2) % 4 < 2
    write_audio(path, torch.from_numpy(samples * beat))
    return path
