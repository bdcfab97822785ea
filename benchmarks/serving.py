"""How fast is the server, how fast does it switch adapters, and what does it take without harm?

    python benchmarks/serving.py                       # all of it, tiny-wavlm, about ten minutes on two cores
    python benchmarks/serving.py load --clients 64 --requests 256
    python benchmarks/serving.py switch --adapters 1000
    python benchmarks/serving.py abuse --requests 20000
    python benchmarks/serving.py stop

- load: requests of 3 s of speech-like noise from ``--clients`` at once to ``speech-adapters serve`` on loopback: one
  at a time, then all clients on one adapter, then spread over 16 adapters of four methods; the rounds are repeated in
  turns, so that what else the machine does hits all alike, and the ratios are of their medians. "One adapter" is the
  mean over one of each method.
- switch: how long until an adapter can be used: warm (in memory, not attached) and cold (on disk), in the process.
- abuse: requests of which one in twenty is broken (cut uploads, lying headers, wrong fields, oversize, clients that
  go away, unknown models, no HTTP); every answer must be one of ours, and memory must stay flat.
- stop: SIGTERM while clients ask; what was taken must be answered.

Adapters are copies of four, with other weights; heads are untrained: neither changes how long anything takes.
Everything runs on loopback, and each part ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import torch
from timing import Record, Row, parse, parser_of

from speech_adapters.data.audio import SAMPLE_RATE, write_audio
from speech_adapters.heads.classification import ClassificationHead
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.heads.speaker import SpeakerHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.serving.catalog import Catalog, read_folder
from speech_adapters.serving.residents import Shelf, Slots

Rows = dict[str, Row]

METHODS = ("lora", "houlsby", "l", "prefix")
ROUTES = {"transcription": "transcriptions", "classification": "classifications", "embedding": "embeddings"}


def make_adapters(encoder: str, folder: Path, count: int, heads: bool = True) -> Path:
    """``count`` adapters of four methods in turn, with other weights each."""
    model = SpeechAdapterModel.from_pretrained(encoder)
    torch.manual_seed(0)
    for method in METHODS[:count]:
        model.add_adapter(method, method)
        for number in range(METHODS.index(method), count, len(METHODS)):
            with torch.no_grad():
                for tensor in model.registry.adapter(method).tensors().values():
                    tensor.add_(0.01 * torch.randn_like(tensor))
            name = f"{method}-{number}"
            model.save_adapter(method, folder / "adapters" / name)
            if heads:
                for task, config in (
                    ("transcription", CTCHead()),
                    ("classification", ClassificationHead(labels=("a", "b", "c"))),
                    ("embedding", SpeakerHead(speakers=("x", "y"))),
                ):
                    model.add_head(task, config)
                    model.save_head(task, folder / "heads" / f"{name}-{task}")
                    model.delete_head(task)
        model.delete_adapter(method)
    return folder


def noise(folder: Path, seconds: float, seed: int = 0) -> bytes:
    """A WAV of noise without pauses."""
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    path = folder / f"noise-{seed}.wav"
    write_audio(path, torch.from_numpy(samples))
    return path.read_bytes()


@contextmanager
def serving(encoder: str, folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``speech-adapters serve`` as a process of its own, and its address."""
    command = [sys.executable, "-m", "speech_adapters.cli", "serve", "--encoder", encoder, "--adapters", str(folder)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--port", "0", *flags], stderr=log, text=True)
        try:
            address = None
            for _ in range(3000):
                log.seek(0)
                if (found := re.search(r"http://\S+", log.read())) or process.poll() is not None:
                    address = found and found[0].rstrip("/")
                    break
                time.sleep(0.1)
            if address is None:
                log.seek(0)
                raise SystemExit(f"the server did not start: {log.read()[-500:]}")
            yield process, address
        finally:
            process.terminate()
            process.wait(60)


# ---------------------------------------------------------------------- load


async def ask(http: httpx.AsyncClient, model: str, task: str, audio: bytes) -> float:
    """One request; its seconds."""
    started = time.perf_counter()
    answer = await http.post(f"/v1/audio/{ROUTES[task]}", data={"model": model}, files={"file": ("a.wav", audio)})
    answer.raise_for_status()
    return time.perf_counter() - started


async def load_round(address: str, asked: Sequence[tuple[str, str]], audio: bytes, clients: int) -> dict[str, float]:
    """Requests from so many clients at once: requests a second, and percentiles of their seconds."""
    left, seconds = list(asked), []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as http:

        async def client() -> None:
            while left:
                seconds.append(await ask(http, *left.pop(), audio))

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        total = time.perf_counter() - started
    seconds.sort()
    return {"rate": len(asked) / total, "p50": statistics.median(seconds), "p95": seconds[int(0.95 * len(seconds))]}


def load(arguments: argparse.Namespace, work: Path) -> Rows:
    """Rounds in turns; medians, and how many times the rate of the round before it each has."""
    folder, audio = make_adapters(arguments.encoder, work / "load", 16), noise(work, 3.0)
    names = sorted(path.name for path in (folder / "adapters").iterdir())
    tasks = list(ROUTES)
    count = arguments.requests
    one_each = [next(name for name in names if name.startswith(f"{method}-")) for method in METHODS]
    rounds = {
        "one at a time": ([(name, "transcription") for name in one_each] * max(count // 32, 1), 1),
        **{f"one adapter, {name}": ([(name, "transcription")] * (count // 2), arguments.clients) for name in one_each},
        "16 adapters": ([(names[n % 16], "transcription") for n in range(count)], arguments.clients),
        "16 adapters, 3 tasks": ([(names[n % 16], tasks[n % 3]) for n in range(count)], arguments.clients),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in rounds}
    with serving(arguments.encoder, folder, "--deadline", str(arguments.deadline)) as (_, address):
        asyncio.run(load_round(address, [(name, task) for name in names for task in tasks], audio, 8))  # warm
        for _ in range(arguments.rounds):
            for name, (asked, clients) in rounds.items():
                found[name].append(asyncio.run(load_round(address, asked, audio, clients)))
    medians = {
        name: {key: statistics.median(one[key] for one in each) for key in each[0]} for name, each in found.items()
    }
    rate = {name: figures["rate"] for name, figures in medians.items()}
    # methods cost differently: sixteen adapters of four against as many requests to one adapter of each
    one = statistics.harmonic_mean(rate[f"one adapter, {name}"] for name in one_each)
    medians["one adapter, mean"] = {"rate": one, "times_one_at_a_time": one / rate["one at a time"]}
    medians["16 adapters"]["times_one_adapter"] = rate["16 adapters"] / one
    return medians


# ---------------------------------------------------------------------- switch


def switch(arguments: argparse.Namespace, work: Path) -> Rows:
    """Milliseconds until an adapter that is not attached can be used."""
    folder = make_adapters(arguments.encoder, work / "switch", arguments.adapters, heads=False)
    model = SpeechAdapterModel.from_pretrained(arguments.encoder)
    catalog = Catalog(model.encoder)
    started = time.perf_counter()
    for served, calls in read_folder(folder, model.encoder):
        catalog.add(served, *calls)
    reading = time.perf_counter() - started
    adapters = [served for served in catalog if served.adapter is not None]
    total = sum(served.size for served in adapters)

    async def measure() -> Rows:
        with ThreadPoolExecutor(1) as pool:
            shelf, slots = Shelf(model.encoder, total, pool), Slots(model, 32)
            cold, warm = [], []
            for served in adapters[: 32 + len(METHODS)]:  # slots of every method are made
                slots.place([await shelf.get(served)])
            chosen = random.Random(0).sample(adapters[40:], min(200, len(adapters) - 40))
            for times in (cold, warm):
                for served in chosen:
                    begun = time.perf_counter()
                    slots.place([await shelf.get(served)])
                    times.append(1000 * (time.perf_counter() - begun))
            return {
                f"{len(adapters)} adapters": {"megabytes": total / 1e6, "seconds_to_read": reading},
                **{
                    name: {"median_ms": statistics.median(times), "p95_ms": sorted(times)[-len(times) // 20]}
                    for name, times in (("cold", cold), ("warm", warm))
                },
            }

    return asyncio.run(measure())


# ---------------------------------------------------------------------- abuse


class Abuse:
    """Broken requests of many kinds; ``answered`` counts what came back."""

    def __init__(self, address: str, names: Sequence[str], audio: bytes) -> None:
        self.address, self.names, self.audio = address, names, audio
        parts = urlsplit(address)
        self.place = parts.hostname, parts.port
        self.answered: Counter[str] = Counter()
        self.faults: list[str] = []
        self.kinds = [
            self.cut, self.lying, self.wrong_field, self.oversize, self.gone, self.unknown, self.no_http,
            self.no_audio, self.no_form, self.wrong_route,
        ]  # fmt: skip

    def _check(self, kind: str, status: int, text: str) -> None:
        self.answered[f"{kind} {status}"] += 1
        try:
            error = json.loads(text)["error"]
            sound = 400 <= status < 500 and error.keys() == {"message", "type", "param", "code"}
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            self.faults.append(f"{kind}: {status} {text[:100]}")

    async def _post(self, http: httpx.AsyncClient, kind: str, path: str = "transcriptions", **content: Any) -> None:
        answer = await http.post(f"/v1/audio/{path}", **content)
        self._check(kind, answer.status_code, answer.text)

    async def _raw(self, data: bytes, kind: str | None = None) -> None:
        reader, writer = await asyncio.open_connection(*self.place)
        try:
            writer.write(data)
            await writer.drain()
            if kind is not None:
                answer = await asyncio.wait_for(reader.read(-1), 60)
                head, _, body = answer.partition(b"\r\n\r\n")
                self._check(kind, int(head.split()[1]) if head else 0, body.decode(errors="replace"))
        finally:
            writer.transport.abort()

    def _request(self, length: int | None = None) -> tuple[bytes, bytes]:
        request = httpx.Request("POST", self.address, data={"model": self.names[0]}, files={"file": ("a", self.audio)})
        body = request.read()
        head = (
            f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            f"content-type: {request.headers['content-type']}\r\ncontent-length: {length or len(body)}\r\n\r\n"
        )
        return head.encode(), body

    async def cut(self, http: httpx.AsyncClient) -> None:
        head, body = self._request()
        await self._raw(head + body[: len(body) // 2])
        self.answered["cut"] += 1

    async def gone(self, http: httpx.AsyncClient) -> None:
        head, body = self._request()
        await self._raw(head + body)
        self.answered["gone"] += 1

    async def lying(self, http: httpx.AsyncClient) -> None:
        head, body = self._request(length=len(self.audio) // 3)
        await self._raw(head + body[: len(self.audio) // 3], "lying")

    async def no_http(self, http: httpx.AsyncClient) -> None:
        await self._raw(random.randbytes(200) + b"\r\n\r\n", "no HTTP")

    async def wrong_field(self, http: httpx.AsyncClient) -> None:
        await self._post(http, "field", data={"model": self.names[0], "modle": "x"}, files={"file": self.audio})

    async def oversize(self, http: httpx.AsyncClient) -> None:
        head, body = self._request(length=10**10)
        await self._raw(head + body[:1000], "oversize")

    async def unknown(self, http: httpx.AsyncClient) -> None:
        await self._post(http, "unknown", data={"model": "nobody"}, files={"file": self.audio})

    async def no_audio(self, http: httpx.AsyncClient) -> None:
        await self._post(http, "no audio", data={"model": self.names[0]}, files={"file": random.randbytes(2000)})

    async def no_form(self, http: httpx.AsyncClient) -> None:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        await self._post(http, "no form", content=random.randbytes(500), headers=headers)

    async def wrong_route(self, http: httpx.AsyncClient) -> None:
        await self._post(http, "route", path="translations", data={"model": "x"})


def abuse(arguments: argparse.Namespace, work: Path) -> Rows:
    """Good requests with one broken in twenty; memory at a fifth of them and at the end."""
    folder, audio = make_adapters(arguments.encoder, work / "abuse", 8), noise(work, 0.5)
    names = sorted(path.name for path in (folder / "adapters").iterdir())
    with serving(arguments.encoder, folder, "--memory", "0.005") as (process, address):
        test = Abuse(address, names, audio)

        async def some(count: int, first: int) -> None:
            left = list(range(first, first + count))
            async with httpx.AsyncClient(base_url=address, timeout=120) as http:

                async def client() -> None:
                    while left:
                        number = left.pop()
                        if number % 20 == 0:
                            await test.kinds[number // 20 % len(test.kinds)](http)
                        else:
                            await ask(http, names[number % len(names)], list(ROUTES)[number % 3], audio)
                            test.answered["good"] += 1

                await asyncio.gather(*(client() for _ in range(16)))

        fifth = arguments.requests // 5
        asyncio.run(some(fifth, 0))
        before = memory(process.pid)
        asyncio.run(some(arguments.requests - fifth, fifth))
        after = memory(process.pid)
        figures = httpx.get(f"{address}/metrics").text
        alive = process.poll() is None
    still_open = float(re.search(r"^speech_adapters_requests_open (\S+)", figures, re.MULTILINE)[1])  # type: ignore[index]
    for fault in test.faults[:10]:
        print(fault)
    memories = {"mb_at_a_fifth": before / 2**20, "mb_at_the_end": after / 2**20, "growth": after / before - 1}
    open_ones = still_open - 1  # but for the one that asks for the figure
    return {
        "server": {"alive": str(alive), "faults": len(test.faults), "open_at_the_end": open_ones, **memories},
        **{kind: {"answers": count} for kind, count in test.answered.items()},
    }


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


# ---------------------------------------------------------------------- stop


def stop(arguments: argparse.Namespace, work: Path) -> Rows:
    """SIGTERM while ``--clients`` ask; each request whose body had been sent before must be answered."""
    folder, audio = make_adapters(arguments.encoder, work / "stop", 4), noise(work, 3.0)
    names = sorted(path.name for path in (folder / "adapters").iterdir())
    outcomes: Counter[str] = Counter()
    with serving(arguments.encoder, folder) as (process, address):

        async def one(http: httpx.AsyncClient, number: int) -> None:
            try:
                await ask(http, names[number % 4], "transcription", audio)
                outcomes["answered"] += 1
            except httpx.HTTPError as error:
                outcomes[f"lost: {error!r}"] += 1

        async def run() -> None:
            limits = httpx.Limits(max_connections=arguments.clients + 1)
            async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as http:
                asked = [asyncio.create_task(one(http, number)) for number in range(arguments.clients)]
                while open_requests(await http.get("/metrics")) <= arguments.clients and not all(
                    task.done() for task in asked
                ):
                    await asyncio.sleep(0.02)
                outcomes["answered before SIGTERM"] = outcomes["answered"]
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.5)
                with socket.socket() as late:
                    outcomes["refused after SIGTERM"] = int(late.connect_ex(address_of(address)) != 0)
                await asyncio.gather(*asked)

        asyncio.run(run())
        code = process.wait(120)
    return {f"{arguments.clients} clients": {**outcomes, "exit code": code}}


def open_requests(metrics: httpx.Response) -> float:
    """What the server is answering."""
    return float(re.search(r"^speech_adapters_requests_open (\S+)", metrics.text, re.MULTILINE)[1])  # type: ignore[index]


def address_of(address: str) -> tuple[str, int]:
    """Host and port."""
    parts = urlsplit(address)
    return str(parts.hostname), int(parts.port or 80)


PARTS = {"load": load, "switch": switch, "abuse": abuse, "stop": stop}


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="(default: all)")
    parser.add_argument("--encoder", default="tiny-wavlm")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=None, help="of a round (192), or of the abuse (4000)")
    parser.add_argument("--adapters", type=int, default=1000, help="of the switch")
    parser.add_argument("--deadline", type=float, default=10.0, help="of the queue, in ms")
    arguments = parse(parser, {"adapters": 44})
    record, wanted = Record(arguments, torch.device("cpu")), arguments.requests
    for part in arguments.parts or (["switch"] if arguments.quick else PARTS):
        arguments.requests = wanted or (4000 if part == "abuse" else 192)
        with tempfile.TemporaryDirectory() as work:
            record.add(f"{part}, {arguments.encoder}", PARTS[part](arguments, Path(work)))
    record.write()


if __name__ == "__main__":
    main()
