"""``speech-adapters serve`` as a process: how it starts, what stops it from starting, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from small_server import make_adapters, make_encoder, tone

from speech_adapters.cli.verbs import run_verb
from speech_adapters.errors import InputError

COMMAND = [sys.executable, "-m", "speech_adapters.cli", "serve"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    encoder = make_encoder(tmp_path_factory.mktemp("base") / "base")
    return encoder, make_adapters(encoder, tmp_path_factory.mktemp("served"), 4)


def test_what_was_taken_is_answered_after_sigterm(parts: tuple[Path, Path], tmp_path: Path) -> None:
    encoder, folder = parts
    audio = tone(tmp_path / "a.wav", 2.0).read_bytes()
    log = tmp_path / "log"
    # the batch of all twelve is still waiting for others when the signal comes
    command = [*COMMAND, "--adapters", str(folder), "--port", "0", "--deadline", "2000"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        address = wait_for_address(process, log)

        async def ask() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=address, timeout=60) as http:
                names = ["lora-0", "houlsby-1", "elp-2", "prefix-3"]
                asked = [
                    asyncio.create_task(
                        http.post("/v1/audio/embeddings", data={"model": names[n % 4]}, files={"file": ("a", audio)})
                    )
                    for n in range(12)
                ]
                while "queue_windows 12.0" not in (await http.get("/metrics")).text:
                    assert not any(task.done() for task in asked)
                    await asyncio.sleep(0.02)
                process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked)

        answers = asyncio.run(ask())
        assert [answer.status_code for answer in answers] == [200] * 12
        assert process.wait(60) == 0
    finally:
        process.kill()
    text = log.read_text()
    assert f"5 models on {encoder}: http://127.0.0.1:" in text and "other machines" not in text
    assert "models: base, elp-2, houlsby-1, lora-0, prefix-3\n" in text
    assert "all that was taken has been answered" in text and "Traceback" not in text


def test_a_second_ctrl_c_ends_it_at_once_and_says_so(parts: tuple[Path, Path], tmp_path: Path) -> None:
    audio = tone(tmp_path / "a.wav", 2.0).read_bytes()
    log = tmp_path / "log"
    command = [*COMMAND, "--adapters", str(parts[1]), "--port", "0", "--deadline", "60000"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        with (
            httpx.Client(base_url=wait_for_address(process, log), timeout=60) as http,
            ThreadPoolExecutor() as pool,
        ):
            asked = pool.submit(
                http.post, "/v1/audio/embeddings", data={"model": "lora-0"}, files={"file": ("a", audio)}
            )
            while "queue_windows 1.0" not in http.get("/metrics").text:
                assert not asked.done()
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert asked.result().status_code == 503 and asked.result().json()["error"]["code"] == "stopping"
        assert process.wait(60) in (0, 130)
    finally:
        process.kill()
    text = log.read_text()
    assert "what was not answered yet is lost" in text
    assert "Exception in ASGI application" not in text and "Traceback" not in text


def wait_for_address(process: subprocess.Popen[Any], log: Path) -> str:
    for _ in range(1200):
        if found := re.search(r"http://\S+(?=/)", log.read_text()):
            return found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def refused(*flags: str) -> str:
    with pytest.raises(InputError) as error:
        run_verb("speech_adapters.cli.serve", "serve", flags)
    return str(error.value)


def test_what_stops_it_from_starting(parts: tuple[Path, Path], tmp_path: Path) -> None:
    folder = str(parts[1])
    assert "name what to serve: --adapters FOLDER" in refused("--port", "0")
    assert "no adapters/NAME there" in refused("--port", "0", "--adapters", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port}: Address already in use" in refused("--port", port, "--adapters", folder)
    keys = tmp_path / "keys.yaml"
    digest = hashlib.sha256(b"k").hexdigest()
    keys.write_text(f"keys:\n  - {{name: a, sha256: {digest}, adapters: [nobody]}}\n")
    said = refused("--port", "0", "--adapters", folder, "--keys", str(keys))
    assert "key 'a': there is no model 'nobody'" in said
