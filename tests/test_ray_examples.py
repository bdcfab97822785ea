"""The examples for Ray, on a local Ray of two workers: the library's own answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from scripts import load_script
from small_server import make_adapters, make_encoder, tone

from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.model import SpeechAdapterModel

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="needs speech-adapters[ray]")


TIMEOUTS = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
}
"""Of a busy machine; Ray's own are of seconds."""


def example(name: str) -> Any:
    module = load_script(f"examples/ray/{name}.py")
    ray.cloudpickle.register_pickle_by_value(module)  # the workers do not find it by its name
    return module


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    encoder = make_encoder(tmp_path_factory.mktemp("base") / "base")
    return encoder, make_adapters(encoder, tmp_path_factory.mktemp("served"), 2)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        for name, seconds in TIMEOUTS.items():
            patch.setenv(name, seconds)
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, runtime_env=environment)
        yield
        ray.shutdown()


def test_an_archive_is_transcribed_and_embedded(parts: tuple[Path, Path], tmp_path: Path) -> None:
    encoder, folder = parts
    files = [tone(tmp_path / f"{n}.wav", 0.8 + 0.3 * n, seed=n) for n in range(5)]
    utterances = [Utterance(f"u{n}", file, 0.8 + 0.3 * n) for n, file in enumerate(files)]
    Manifest([*utterances, Utterance("gone", tmp_path / "gone.wav", 1.0)]).write(tmp_path / "m.jsonl")
    Manifest.make_index(tmp_path / "m.jsonl")
    archive = example("archive")
    for task, head in (("transcribe", "transcription"), ("embed", "embedding")):
        chosen = tmp_path / task  # an adapter with this head alone
        for kind, name in (("adapters", "lora-0"), ("heads", f"lora-0-{head}")):
            (chosen / kind).mkdir(parents=True)
            (chosen / kind / name).symlink_to(folder / kind / name)
        model = SpeechAdapterModel.from_adapter(chosen, encoder=encoder)
        rows = archive.hear(task, tmp_path / "m.jsonl", chosen, encoder=str(encoder), workers=2, cpus=0.5, batch=2)
        found = {row["id"]: row for row in rows.take_all()}
        assert len(found) == 6 and "no such audio file" in found["gone"]["error"]
        for utterance, file in zip(utterances, files, strict=True):
            row = found[utterance.id]
            assert row["error"] is None
            if task == "transcribe":
                assert row["text"] == model.transcribe(file).text != ""
            else:
                assert torch.allclose(torch.tensor(row["embedding"]), model.embed(file), atol=1e-5)


def test_replicas_answer_as_the_library_and_an_adapter_stays_with_its_own(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    from ray import serve

    encoder, folder = parts
    audio = tone(tmp_path / "a.wav", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    application = example("serve_speech").application([str(folder)], str(encoder), replicas=2, cpus=0.5)
    serve.run(application)
    try:
        loads: dict[str, list[float]] = {}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            for name in ("lora-0", "houlsby-1"):
                adapter, head = folder / "adapters" / name, folder / "heads" / f"{name}-transcription"
                said = SpeechAdapterModel.from_adapter(adapter, head=head, encoder=encoder).transcribe(audio).text
                for _ in range(4):
                    headers = {"x-session-id": name}
                    answer = http.post(
                        "/v1/audio/transcriptions", data={"model": name}, files={"file": audio.read_bytes()},
                        headers=headers,
                    )  # fmt: skip
                    assert answer.status_code == 200 and answer.json()["text"] == said
                    heard = http.get("/metrics", headers=headers).text
                    loads.setdefault(name, []).append(windows(heard))
        # all four of an adapter were heard by one replica, which the metrics of that replica show
        assert all(found == [found[0] + n for n in range(4)] for found in loads.values()), loads
        unknown = httpx.post(f"http://127.0.0.1:{port}/v1/audio/transcriptions", data={"model": "x"},
                             files={"file": audio.read_bytes()}, timeout=60)  # fmt: skip
        assert unknown.status_code == 404 and unknown.json()["error"]["code"]
    finally:
        serve.shutdown()


def windows(metrics: str) -> float:
    return float(
        next(line.split()[1] for line in metrics.splitlines() if line.startswith("speech_adapters_windows_total"))
    )
