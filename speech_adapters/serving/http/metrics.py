"""What Prometheus is told. Names of models and clients are no labels: there may be thousands."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from speech_adapters.serving.engine import Engine

PREFIX = "speech_adapters"


class Metrics:
    """The figures of one server."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}_requests", "answers by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "from the first byte of a request to the last of its answer",
            ["route"],
            buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self.registry,
        )
        self.open = Gauge(f"{PREFIX}_requests_open", "requests being answered", registry=self.registry)
        self.sessions = Gauge(f"{PREFIX}_live_sessions", "live sessions", registry=self.registry)
        self.registry.register(_EngineFigures(engine))


class _EngineFigures:
    """Reads the engine's counts when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """The engine's figures now."""
        engine, counts = self.engine, self.engine.counts
        for name, text, value in (
            ("batches", "forwards of the encoder", counts.batches),
            ("mixed_batches", "forwards for several models at once", counts.mixed),
            ("windows", "windows heard", counts.windows),
            ("audio_seconds", "audio heard", counts.seconds),
            ("padded_audio_seconds", "audio heard, with the padding of batches", counts.padded_seconds),
            ("busy_seconds", "time that workers spent on batches", counts.busy),
            ("queue_wait_seconds", "time that windows waited for their batch", counts.waited),
            ("model_loads", "models read from disk", engine.shelf.kept.misses),
            ("model_hits", "models found in memory", engine.shelf.kept.hits),
        ):
            yield CounterMetricFamily(f"{PREFIX}_{name}", text, value)
        for name, text, number in (
            ("queue_windows", "windows that wait", len(engine.queue)),
            ("queue_audio_seconds", "audio that waits", engine.queue.waiting_seconds),
            ("models", "models served", len(engine.catalog)),
            ("models_in_memory", "models in memory", len(engine.shelf.kept)),
            ("models_bytes", "their size", engine.shelf.kept.bytes),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, number)
