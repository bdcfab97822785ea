"""The server as its clients see it: OpenAI's own client, curl's multipart forms, and those who mean no good."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import fcntl
import gc
import hashlib
import io
import itertools
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
from fastapi import UploadFile
from small_server import engine_of, make_adapters, make_encoder, running, shake, tone

from speech_adapters.bank.bank import Bank
from speech_adapters.cli import main as cli_main
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.files import temporary_of
from speech_adapters.inference.formats import as_srt, as_vtt
from speech_adapters.inference.transcripts import TranscriptSegment
from speech_adapters.inference.utterances import Verification
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.serving import residents
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http import models as http_models
from speech_adapters.serving.http import server as http_server
from speech_adapters.serving.http.app import create_app, openapi
from speech_adapters.serving.http.keys import ApiKey, Keys
from speech_adapters.serving.http.models import AdapterFields, add_adapter
from speech_adapters.serving.http.server import host_name, page_origin
from speech_adapters.serving.http.settings import HttpSettings
from speech_adapters.serving.http.uploads import recordings
from speech_adapters.serving.residents import Loaded, load
from speech_adapters.serving.served import Served

TRANSCRIPTIONS = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def folder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(encoder, tmp_path_factory.mktemp("served"), 4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone(tmp_path_factory.mktemp("sounds") / "secret-name.wav", 3.0)


@pytest.fixture(scope="module")
def server(encoder: Path, folder: Path) -> Iterator[tuple[str, Engine]]:
    engine = engine_of(encoder, folder)
    with running(engine) as address:
        yield address, engine


@pytest.fixture(scope="module")
def http(server: tuple[str, Engine]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server[0], timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: tuple[str, Engine]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def expected(encoder: Path, folder: Path, sound: Path) -> Any:
    """What the library says."""
    folders = folder / "adapters" / "elp-2", folder / "heads" / "elp-2-transcription"
    return SpeechAdapterModel.from_adapter(folders[0], head=folders[1], encoder=encoder).transcribe(sound)


def upload(path: Path) -> dict[str, Any]:
    return {"file": (path.name, path.read_bytes())}


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of an answer, which must be one of OpenAI's."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert content.keys() == {"error"} and content["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(content["error"]["message"], str) and isinstance(content["error"]["type"], str)
    return content["error"]


# ---------------------------------------------------------------------- OpenAI's client


def test_openais_client_transcribes_in_every_format(client: openai.OpenAI, sound: Path, expected: Any) -> None:
    def ask(**options: Any) -> Any:
        with sound.open("rb") as file:
            return client.audio.transcriptions.create(model="elp-2", file=file, **options)

    plain = ask()
    assert plain.text == expected.text != "" and plain.usage.seconds == 3.0
    assert ask(response_format="text") == expected.text + "\n"
    assert ask(response_format="srt") == as_srt(expected) and ask(response_format="vtt") == as_vtt(expected)
    verbose = ask(response_format="verbose_json", timestamp_granularities=["word", "segment"], language="en")
    assert verbose.duration == 3.0 and verbose.language == "en" and verbose.text == expected.text
    assert [w.word for w in verbose.words] == [w.text for w in expected.words]
    assert [w.start for w in verbose.words] == [round(w.start, 3) for w in expected.words]
    assert [(s.id, s.text, s.end) for s in verbose.segments] == [
        (number, s.text, round(s.end, 3)) for number, s in enumerate(expected.segments)
    ]
    assert all(s.avg_logprob < 0 for s in verbose.segments)
    assert ask(response_format="verbose_json").words is None
    scored = ask(include=["logprobs"])
    assert [entry.token for entry in scored.logprobs] == [w.text for w in expected.words]
    assert ask(prompt="Dear all").warnings == ["prompt: a CTC head has no use for it; it was left out"]


def test_openais_client_streams(client: openai.OpenAI, sound: Path, expected: Any) -> None:
    with sound.open("rb") as file:
        stream = client.audio.transcriptions.create(
            model="base:elp-2", file=file, stream=True, response_format="verbose_json", include=["logprobs"]
        )
        events = list(stream)
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) == len(expected.segments) == kinds.count("transcript.text.segment") > 0
    assert "".join(event.delta for event in deltas) == expected.text == events[-1].text
    assert kinds[-1] == "transcript.text.done" and events[-1].usage.seconds == 3.0
    assert len(events[-1].logprobs) == len(expected.words)


def test_openais_client_lists_models(client: openai.OpenAI, server: tuple[str, Engine]) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed] == ["base", "elp-2", "houlsby-1", "lora-0", "prefix-3"]
    one = client.models.retrieve("lora-0")
    assert one.parent == "base" and one.fingerprint == server[1].catalog.find("lora-0").fingerprint
    assert one.tasks == ["transcription", "classification", "embedding", "verification"] and one.calibrated
    assert one.labels == {"": ["anger", "calm", "joy"]} and listed[0].parent is None
    with pytest.raises(openai.NotFoundError, match="did you mean 'lora-0'"):
        client.models.retrieve("lora-1")


def test_classes_embeddings_and_verifications_are_the_librarys(
    http: httpx.Client, encoder: Path, folder: Path, sound: Path
) -> None:
    adapter, heads = folder / "adapters" / "houlsby-1", folder / "heads"
    model = SpeechAdapterModel.from_adapter(adapter, head=heads / "houlsby-1-classification", encoder=encoder)
    expected = model.classify(sound)
    found = http.post("/v1/audio/classifications", data={"model": "houlsby-1"}, files=upload(sound)).json()
    assert found["label"] == expected.label and list(found["probabilities"]) == list(expected.probabilities)
    assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    model.load_head(heads / "houlsby-1-embedding")
    answer = http.post("/v1/audio/embeddings", data={"model": "houlsby-1"}, files=upload(sound))
    vector = torch.tensor(answer.json()["data"][0]["embedding"])
    assert torch.allclose(vector, model.embed(sound), atol=1e-5)
    fields = {"model": "houlsby-1", "encoding_format": "base64"}
    packed = http.post("/v1/audio/embeddings", data=fields, files=upload(sound)).json()["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(packed), "<f4"), vector, atol=1e-6)
    verdict = model.verify([sound, sound], sound)
    files = [("enrolment", sound.read_bytes()), ("enrolment", sound.read_bytes()), ("test", sound.read_bytes())]
    found = http.post("/v1/audio/verifications", data={"model": "houlsby-1"}, files=files).json()
    assert found["score"] == pytest.approx(verdict.score, abs=1e-5) == pytest.approx(1.0)
    assert found["llr"] == pytest.approx(4.0, abs=1e-4) and found["probability"] == pytest.approx(0.982, abs=1e-3)
    base = http.post("/v1/audio/embeddings", data={"model": "base"}, files=upload(sound)).json()
    assert len(base["data"][0]["embedding"]) == 64  # without a head: the mean of the features


def test_which_of_several_recordings_is_broken_is_said(http: httpx.Client, sound: Path) -> None:
    whole, cut = sound.read_bytes(), sound.read_bytes()[:2000]
    for broken, field in ((1, "enrolment"), (10, "enrolment"), (11, "test")):
        name = "test" if field == "test" else f"enrolment {broken + 1}"
        files = [(one, cut if place == broken else whole) for place, one in enumerate(["enrolment"] * 11 + ["test"])]
        found = error(http.post("/v1/audio/verifications", data={"model": "houlsby-1"}, files=files), 400)
        assert found["param"] == field and found["message"].startswith(f"{name}: cut short"), found


def test_what_is_shorter_than_an_encoder_hears_is_named() -> None:
    short = io.BytesIO()
    soundfile.write(short, 0.1 * np.random.default_rng(0).standard_normal(480), 16_000, format="WAV")
    with running(engine_of("tiny-wavlm")) as address:  # which needs 65 ms
        fields = {"model": "tiny-wavlm"}
        found = error(httpx.post(f"{address}/v1/audio/embeddings", data=fields, files={"file": short}), 400)
    assert found["param"] == "file" and found["message"].startswith("the audio: 30.0 ms are shorter"), found


def test_the_surest_verdicts_have_a_probability(
    http: httpx.Client, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for llr, probability in ((-1000.0, 0.0), (1000.0, 1.0), (0.0, 0.5)):

        async def verdict(*_: Any, llr: float = llr) -> tuple[Verification, float]:
            return Verification(0.0, llr), 1.0

        monkeypatch.setattr("speech_adapters.serving.http.tasks.verify_speaker", verdict)
        files = [("enrolment", sound.read_bytes()), ("test", sound.read_bytes())]
        found = http.post("/v1/audio/verifications", data={"model": "houlsby-1"}, files=files)
        assert found.json()["probability"] == probability


def test_a_field_that_is_sent_twice_is_an_error(http: httpx.Client, sound: Path) -> None:
    """One of the two would go unheard."""
    for files in ([*upload(sound).items()] * 2, [("model", (None, "houlsby-1")), *upload(sound).items()]):
        found = error(http.post(TRANSCRIPTIONS, data={"model": "lora-0"}, files=files), 400)
        assert found["param"] in ("file", "model") and "sent 2 times" in found["message"]
    asked = {"model": "lora-0", "response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    assert {"words", "segments"} <= http.post(TRANSCRIPTIONS, data=asked, files=upload(sound)).json().keys()


def test_every_answer_says_which_weights_it_is_of(http: httpx.Client, server: Any, sound: Path) -> None:
    for name in ("lora-0", "prefix-3"):
        print_ = server[1].catalog.find(name).fingerprint
        text = http.post(TRANSCRIPTIONS, data={"model": name, "response_format": "srt"}, files=upload(sound))
        assert text.headers["x-speech-adapters-fingerprint"] == print_
        for route in ("transcriptions", "classifications", "embeddings"):
            answer = http.post(f"/v1/audio/{route}", data={"model": name}, files=upload(sound)).json()
            assert answer["model"] == name and answer["fingerprint"] == print_


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("fields", "status", "param", "said"),
    [
        ({"model": "nobody"}, 404, "model", "does not exist here"),
        ({}, 400, "model", "Field required"),
        ({"model": "lora-0", "temprature": "0"}, 400, "temprature", "no such field"),
        ({"model": "lora-0", "temperature": "0.5"}, 400, "temperature", "nothing is sampled"),
        ({"model": "lora-0", "response_format": "docx"}, 400, "response_format", "Input should be"),
        ({"model": "lora-0", "response_format": "diarized_json"}, 400, "response_format", "not told apart"),
        ({"model": "lora-0", "known_speaker_names[]": "Ann"}, 400, "known_speaker_names[]", "not told apart"),
        ({"model": "lora-0", "keywords[]": "Zbigniew"}, 400, "keywords[]", "no language model"),
        ({"model": "lora-0", "timestamp_granularities[]": "word"}, 400, "timestamp_granularities[]", "verbose_json"),
        ({"model": "lora-0", "response_format": "srt", "stream": "true"}, 400, "stream", "events carry text"),
        ({"model": "lora-0", "chunking_strategy": "server_vad"}, 400, "chunking_strategy", "choose auto"),
        ({"model": "lora-0", "channel": "left"}, 400, "channel", 'give a number from 0, or "mix"'),
        ({"Model": "lora-0"}, 400, "Model", "no such field; model is missing"),
        ({"model": "base"}, 400, "model", "does no transcription; it does: embedding"),
    ],
)
def test_what_has_no_meaning_is_refused(
    http: httpx.Client, sound: Path, fields: dict[str, str], status: int, param: str | None, said: str
) -> None:
    found = error(http.post(TRANSCRIPTIONS, data=fields, files=upload(sound)), status)
    assert found["param"] == param and said in found["message"]


def test_broken_audio_is_an_error_that_names_no_path(http: httpx.Client, sound: Path, tmp_path: Path) -> None:
    whole = sound.read_bytes()
    stereo = tmp_path / "stereo.wav"
    soundfile.write(stereo, np.zeros((16000, 2), np.float32), 16000)
    cases = {
        "text": b"hello",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "a header alone": whole[:44],
        "a header that lies": whole[:40] + b"\x00\x00\x10\x00" + whole[44:3000],
        "two channels": stereo.read_bytes(),
        "short": whole[:44].replace(whole[40:44], (200).to_bytes(4, "little")) + whole[44:244],
    }
    for name, data in cases.items():
        files = {"file": ("secret-name.wav", data)}
        for stream in ("false", "true"):
            fields = {"model": "lora-0", "stream": stream}
            found = error(http.post(TRANSCRIPTIONS, data=fields, files=files), 400)
            assert found["code"] == "invalid_audio", name
            assert (
                "/tmp" not in found["message"] and "secret" not in found["message"] and "the audio" in found["message"]
            )
    found = error(http.post(TRANSCRIPTIONS, data={"model": "lora-0", "channel": "7"}, files=upload(stereo)), 400)
    assert found["param"] == "file" and "channel=7 does not exist" in found["message"]
    found = error(http.post(TRANSCRIPTIONS, data={"model": "lora-0", "channel": "1"}, files=upload(sound)), 400)
    assert found["message"] == "the audio: channel=1 does not exist; there is one channel, 0; name none"
    both = http.post(TRANSCRIPTIONS, data={"model": "lora-0", "channel": "mix"}, files=upload(stereo))
    assert both.status_code == 200


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    error(http.get("/v2/models"), 404)
    error(http.put("/v1/models"), 405)
    error(http.post(TRANSCRIPTIONS, content=b"x", headers={"content-type": "multipart/form-data; boundary=y"}), 400)
    error(http.post(TRANSCRIPTIONS, json={"model": "lora-0"}), 400)


def test_a_head_request_is_answered_as_get_without_the_body(http: httpx.Client) -> None:
    for path in ("/health", "/ready", "/v1/models", "/"):
        asked, watched = http.get(path), http.head(path)
        assert (watched.status_code, watched.content) == (200, b"")
        assert watched.headers["content-length"] == asked.headers["content-length"]
    assert http.head(TRANSCRIPTIONS).status_code == 405


def test_a_folder_for_uploads_that_cannot_be_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/within"):
        with pytest.raises(SystemExit) as stopped:
            cli_main(["serve", "--encoder", "tiny-wavlm", "--port", "0", "--uploads", str(tmp_path / name)])
        assert stopped.value.code == 2 and "choose another folder" in capsys.readouterr().err
    (tmp_path / "shared").mkdir()
    with (tmp_path / "shared" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another server has it: neither would see what the other adds
        with pytest.raises(ConfigError, match="shared: another server keeps its adapters there"):
            http_server._uploads(str(tmp_path / "shared"))


def test_what_killed_servers_left_of_uploads_goes_at_the_next_start(
    encoder: Path, folder: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = engine_of(encoder, folder)

    def of_process(name: str, process: int) -> str:
        return name.replace("adapters.", "adapters.x").replace(f".{os.getpid()}.tmp", f".{process}.tmp")

    async def hear() -> Path:
        with sound.open("rb") as file:
            async with recordings(engine, {"the audio": ("file", UploadFile(file))}, None) as (recording,):
                assert isinstance(recording.source, Path)
                left = recording.source.parent
                for process in (os.getpid(), os.getppid(), 99_999_999):  # once ours, alive, dead
                    shutil.copytree(left, left.with_name(of_process(left.name, process)))
                (tmp_path / ".another.99999999.tmp").mkdir()
                return left

    left = asyncio.run(hear())
    with pytest.raises(SystemExit):
        cli_main(["serve", "--port", "0"])  # names nothing to serve
    kept = {of_process(left.name, os.getppid()), ".another.99999999.tmp"}
    assert wait_for(lambda: not left.exists()) and {path.name for path in tmp_path.iterdir()} == kept


def test_an_empty_host_is_not_every_address(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli_main(["serve", "--encoder", "nowhere", "--port", "0", "--host", ""])
    assert stopped.value.code == 2 and "--host: is empty; name an address" in capsys.readouterr().err


def test_what_is_no_http_is_told_so_in_json(server: Any) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    for data in (b"GET nonsense\r\n\r\n", b"\x16\x03\x01 tls", b"GET / HTTP/1.1\r\n" + b"a" * 100_000):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(data + b"\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 400 " in head and json.loads(body)["error"]["code"] == "invalid_http"


def test_bodies_are_limited_whatever_their_headers_say(encoder: Path, folder: Path, sound: Path) -> None:
    engine = engine_of(encoder, folder)
    with (
        running(engine, HttpSettings(max_body=50_000)) as address,
        httpx.Client(base_url=address, timeout=30) as http,
    ):
        fields = {"model": "lora-0"}
        assert "0.0477 MB" in error(http.post(TRANSCRIPTIONS, data=fields, files=upload(sound)), 413)["message"]
        host, port = address.removeprefix("http://").split(":")
        head = f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n"
        head += "content-type: multipart/form-data; boundary=x\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode() + b"ea60\r\n" + b"0" * 60_000 + b"\r\n")  # and no end of it
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_form_that_is_cut_short_loses_no_field(http: httpx.Client, sound: Path) -> None:
    request = http.build_request("POST", TRANSCRIPTIONS, data={"model": "lora-0"}, files=upload(sound))
    whole, headers = request.read().rstrip(), {"content-type": request.headers["content-type"]}
    answer = http.post(TRANSCRIPTIONS, content=whole, headers=headers)
    assert answer.status_code == 200
    for epilogue in (b"\r\n", b"and what no reader of forms looks at"):
        assert http.post(TRANSCRIPTIONS, content=whole + epilogue, headers=headers).json() == answer.json()
    pieces = (whole[start : start + 7] for start in range(0, len(whole), 7))  # the end lies across pieces
    assert http.post(TRANSCRIPTIONS, content=pieces, headers=headers).json() == answer.json()
    between = whole.removesuffix(b"--")
    option = b'\r\ncontent-disposition: form-data; name="response_format"\r\n\r\ntext'
    for cut in (between, between + option, between + option + b"\r\n" + between[between.rindex(b"--") :]):
        found = error(http.post(TRANSCRIPTIONS, content=cut, headers=headers), 400)
        assert "cut short" in found["message"] and found["code"] == "invalid_request"


def test_a_client_s_mistakes_are_named(encoder: Path, folder: Path, sound: Path, caplog) -> None:
    caplog.set_level("INFO")
    settings = HttpSettings(log_requests=True)
    with running(engine_of(encoder, folder), settings) as address, httpx.Client(base_url=address, timeout=30) as http:
        lost = error(http.post("/audio/transcriptions", data={"model": "lora-0"}, files=upload(sound)), 404)
        assert (
            "'/audio/transcriptions': no such address" in lost["message"] and "base_url ends in /v1" in lost["message"]
        )
        assert "takes POST" in error(http.get(TRANSCRIPTIONS), 405)["message"]
        text = error(http.post(TRANSCRIPTIONS, data={"model": "lora-0", "file": "call.flac"}), 400)
        assert "-F 'file=@PATH'" in text["message"] and "UploadFile" not in text["message"]
        assert "multipart/form-data" in error(http.post(TRANSCRIPTIONS, json={"model": "lora-0"}), 400)["message"]
        bare = {"content-type": "audio/wav"}
        wav = error(http.post(TRANSCRIPTIONS, content=sound.read_bytes(), headers=bare), 400)
        assert "in a form (multipart/form-data), not as 'audio/wav'" in wav["message"]
        assert error(http.post(TRANSCRIPTIONS), 400)["message"].endswith("in a form (multipart/form-data)")
        form = {"content-type": "multipart/form-data"}
        for body, kind in ((b"x", {}), (b"x", {"content-type": form["content-type"] + "; boundary=y"})):
            unread = error(http.post(TRANSCRIPTIONS, content=body, headers=form | kind), 400)
            assert unread["message"].endswith("; send a whole form, as curl -F does")
            assert unread["code"] == "invalid_request"
        no_file = error(http.post(TRANSCRIPTIONS, data={"model": "lora-0"}, files={"prompt": (None, "x")}), 400)
        assert no_file["message"] == "file: Field required"
        other = {"model": "lora-0", "response_format": "xml"}
        assert "diarized" not in error(http.post(TRANSCRIPTIONS, data=other, files=upload(sound)), 400)["message"]
        silence = io.BytesIO()
        soundfile.write(silence, np.zeros(16_000), 16_000, format="WAV")
        said = error(http.post("/v1/audio/embeddings", data={"model": "lora-0"}, files={"file": silence}), 400)
        assert said["message"].endswith("by voice activity 'energy'; leave the recording out.")
        error(http.get("/a%0Ab"), 404)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("POST /audio/transcriptions 404") for line in lines)
    assert any(line.startswith(r"GET /a\nb 404") for line in lines)


def test_recordings_are_limited(encoder: Path, folder: Path, sound: Path, tmp_path: Path) -> None:
    engine = engine_of(encoder, folder, max_seconds=2.0)
    with running(engine) as address, httpx.Client(base_url=address, timeout=30) as http:
        found = error(http.post(TRANSCRIPTIONS, data={"model": "lora-0"}, files=upload(sound)), 400)
        assert "lasts more than the 2 s" in found["message"]


def test_a_length_that_a_header_leaves_open_is_counted_to_the_limit_alone(
    encoder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "piped.flac"
    soundfile.write(path, np.zeros(1200 * 16_000, np.int16), 16_000)  # silence: an hour of it takes 100 kB
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the number of samples
    content[22:26] = bytes(4)
    decoded = 0
    read = soundfile.SoundFile.read

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal decoded
        samples = read(*arguments, **options)
        decoded += len(samples)
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    with (
        running(engine_of(encoder, folder, max_seconds=2.0)) as address,
        httpx.Client(base_url=address, timeout=30) as http,
    ):
        files = {"file": ("piped.flac", bytes(content))}
        found = error(http.post(TRANSCRIPTIONS, data={"model": "lora-0"}, files=files), 400)
    assert "lasts more than the 2 s" in found["message"] and 0 < decoded < 300 * 16_000


def test_who_comes_when_it_is_full_is_told_when_to_come_again(encoder: Path, folder: Path, sound: Path) -> None:
    engine = engine_of(encoder, folder, deadline=1.0)

    async def many(address: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            asked = (http.post(TRANSCRIPTIONS, data={"model": "lora-0"}, files=upload(sound)) for _ in range(6))
            return await asyncio.gather(*asked)

    with running(engine, HttpSettings(max_requests=2)) as address:
        answers = asyncio.run(many(address))
    taken = [answer for answer in answers if answer.status_code == 200]
    turned_away = [answer for answer in answers if answer.status_code != 200]
    assert len(taken) >= 2 and turned_away
    for answer in turned_away:
        assert error(answer, 429)["code"] == "busy" and int(answer.headers["retry-after"]) >= 1


def test_what_takes_too_long_is_given_up(encoder: Path, folder: Path, sound: Path) -> None:
    engine = engine_of(encoder, folder, deadline=20.0)
    with running(engine, HttpSettings(timeout=0.3)) as address, httpx.Client(base_url=address, timeout=30) as http:
        error(http.post(TRANSCRIPTIONS, data={"model": "lora-0"}, files=upload(sound)), 504)
        assert wait_for(lambda: len(engine.queue) == 0 or all(w.future.done() for w in engine.queue._waiting))


def test_a_stream_that_takes_too_long_ends_with_an_error(
    encoder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one the text would seem to end there."""

    async def slowly(*_: Any) -> Any:
        yield [TranscriptSegment("ONE", 0.0, 1.0, 1.0, ())]
        await asyncio.sleep(30)

    monkeypatch.setattr("speech_adapters.serving.http.transcriptions.transcribe", slowly)
    sound = tone(tmp_path / "a.wav")
    with (
        running(engine_of(encoder, folder), HttpSettings(timeout=2)) as address,
        httpx.Client(base_url=address, timeout=30) as http,
    ):
        said = http.post(TRANSCRIPTIONS, data={"model": "lora-0", "stream": "true"}, files=upload(sound))
        first, last, done = said.text.strip().split("\n\n")
    assert "ONE" in first and done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"


def test_a_client_that_goes_away_takes_its_work_along(
    encoder: Path, folder: Path, sound: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "speech_adapters")
    engine = engine_of(encoder, folder, deadline=20.0)
    with running(engine) as address:
        host, port = address.removeprefix("http://").split(":")
        body = httpx.Request("POST", address + TRANSCRIPTIONS, data={"model": "lora-0"}, files=upload(sound))
        head = (
            f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {body.headers['content-length']}\r\n"
        )
        head += f"content-type: {body.headers['content-type']}\r\n\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body.read())
            assert wait_for(lambda: len(engine.queue) > 0)
        assert wait_for(lambda: all(waiting.future.cancelled() for waiting in engine.queue._waiting))
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body.read()[:1000])  # and then one that leaves while it uploads
        assert wait_for(lambda: caplog.text.count(f"POST {TRANSCRIPTIONS} ") == 2)
        assert caplog.text.count(f"POST {TRANSCRIPTIONS} 499 ") == 2
        with httpx.Client(base_url=address) as http:
            assert wait_for(lambda: "requests_open 1.0" in http.get("/metrics").text)  # that of /metrics itself


def wait_for(condition: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# ---------------------------------------------------------------------- keys, origins, logs


def key(name: str, secret: str, **options: Any) -> ApiKey:
    return ApiKey(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), **options)


def test_keys_open_their_own_models_at_their_own_rate(encoder: Path, folder: Path, sound: Path) -> None:
    engine = engine_of(encoder, folder)
    keys = Keys((key("a", "sesame", adapters=("lora-0",)), key("b", "thyme", requests_per_minute=4.0)))
    with running(engine, keys=keys) as address, httpx.Client(base_url=address, timeout=30) as http:

        def ask(secret: str, model: str) -> httpx.Response:
            headers = {"authorization": f"Bearer {secret}"}
            return http.post("/v1/audio/embeddings", data={"model": model}, files=upload(sound), headers=headers)

        assert http.get("/health").status_code == http.get("/").status_code == 200
        assert error(http.get("/v1/models"), 401)["type"] == "authentication_error"
        error(http.get("/metrics"), 401)
        error(ask("sesam", "lora-0"), 401)
        assert ask("sesame", "lora-0").status_code == 200
        other = error(ask("sesame", "elp-2"), 404)
        assert other["message"] == error(ask("sesame", "elp-3"), 404)["message"].replace("elp-3", "elp-2")
        listed = http.get("/v1/models", headers={"authorization": "Bearer sesame"}).json()["data"]
        assert [model["id"] for model in listed] == ["lora-0"]
        assert ask("thyme", "elp-2").status_code == 200
        late = ask("thyme", "elp-2")
        assert error(late, 429)["code"] == "rate_limit_exceeded" and 1 <= int(late.headers["retry-after"]) <= 15


def test_a_file_of_keys(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"k").hexdigest()
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n  - {{name: a, sha256: {digest}, adapters: [x], requests_per_minute: 60}}\n")
    keys = Keys.read(path)
    assert keys.of("k").name == "a" and keys.of("l") is None and keys.of(None) is None
    for text, said in (
        ("keys: []\n", "holds no keys"),
        ("keys:\n  - {name: a, sha256: abc}\n", "64 hexadecimal digits"),
        (f"keys:\n  - {{name: a, sha256: {digest}}}\n  - {{name: b, sha256: {digest}}}\n", "stands there twice"),
        (f"keys:\n  - {{name: a, sha256: {digest}, admn: true}}\n", "admn"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            Keys.read(path)


def test_rates_fill_again() -> None:
    now = 0.0
    keys = Keys((key("a", "k", requests_per_minute=60.0),), clock=lambda: now)
    client = keys.of("k")
    assert [keys.wait(client) for _ in range(15)] == [0.0] * 15
    assert keys.wait(client) == pytest.approx(1.0)
    now = 2.0
    assert keys.wait(client) == keys.wait(client) == 0.0 < keys.wait(client)


def test_other_pages_and_names_are_refused(http: httpx.Client, server: Any, sound: Path) -> None:
    data, files = {"model": "lora-0"}, upload(sound)
    evil = http.post(TRANSCRIPTIONS, data=data, files=files, headers={"origin": "https://evil.example"})
    assert error(evil, 403)["code"] == "origin_not_allowed"
    own = http.post(TRANSCRIPTIONS, data=data, files=files, headers={"origin": server[0]})
    assert own.status_code == 200
    assert error(http.get("/v1/models", headers={"host": "evil.example"}), 421)["code"] == "unknown_host"


def test_a_host_or_origin_that_is_no_address_is_refused(
    http: httpx.Client, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    for headers, status in ((b"host: [abc", b" 421 "), (b"host: 127.0.0.1\r\norigin: http://[abc", b" 403 ")):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\n" + headers + b"\r\nconnection: close\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
        assert status in answer.partition(b"\r\n")[0], answer
    assert not any(record.exc_info for record in caplog.records) and http.get("/health").status_code == 200


def test_allowed_pages_may_read_the_answers(encoder: Path, folder: Path) -> None:
    settings, keys = HttpSettings(origins=("https://good.example",)), Keys((key("a", "k"),))
    with running(engine_of(encoder, folder), settings, keys) as address, httpx.Client(base_url=address) as http:
        asked = {"origin": "https://good.example", "access-control-request-method": "POST"}
        preflight = http.options(TRANSCRIPTIONS, headers={**asked, "access-control-request-headers": "authorization"})
        assert preflight.status_code == 200
        headers = {"origin": "https://good.example", "authorization": "Bearer k"}
        answer = http.get("/v1/models", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://good.example"
        unknown = http.get("/v1/models", headers={"origin": "https://good.example"})
        assert error(unknown, 401) and unknown.headers["access-control-allow-origin"] == "https://good.example"
        assert "retry-after" in unknown.headers["access-control-expose-headers"]
        bad = http.options(TRANSCRIPTIONS, headers={**asked, "origin": "https://bad.example"})
        assert bad.status_code == 400 and "access-control-allow-origin" not in bad.headers
        error(http.get("/v1/models", headers={**headers, "origin": "https://bad.example"}), 403)
        assert http.get("/openapi.json").status_code == 200  # tells nothing of models or clients


def test_names_and_origins_are_read_as_browsers_write_them() -> None:
    assert host_name("Speech.Example") == "speech.example" and host_name("::1") == "::1"
    for given in ("Https://Intra.Example/", "https://intra.example", "https://intra.example:443"):
        assert page_origin(given) == "https://intra.example"
    assert page_origin("http://intra:8080/") == "http://intra:8080"
    for wrong in ("speech.example:8000", "http://speech.example", "10.0.0.1:80", ""):
        with pytest.raises(ConfigError, match="--host-name"):
            host_name(wrong)
    for wrong in ("intra.example", "*", "https://a/page", "ftp://a", "https://a b", ""):
        with pytest.raises(ConfigError, match="--origin"):
            page_origin(wrong)


@pytest.mark.parametrize("flag", ["--max-body", "--memory", "--timeout", "--max-waiting"])
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1"])
def test_limits_that_are_no_numbers_are_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli_main(["serve", "--encoder", "tiny-wavlm", "--port", "0", f"{flag}={value}"])
    assert stopped.value.code == 2
    assert flag.strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_logs_hold_nothing_of_what_was_sent(
    http: httpx.Client, sound: Path, expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "speech_adapters"):
        http.post(TRANSCRIPTIONS, data={"model": "elp-2", "prompt": "my secret"}, files=upload(sound))
        http.get("/v1/models/some-secret")
        http.get("/secret?q=secret")
    assert re.search(r"POST /v1/audio/transcriptions 200 \d+ ms", caplog.text)
    assert "secret" not in caplog.text and expected.text not in caplog.text and "elp-2" not in caplog.text


def test_metrics_count(http: httpx.Client, sound: Path) -> None:
    def figure(name: str) -> float:
        return float(re.search(rf"^speech_adapters_{name} (\S+)$", http.get("/metrics").text, re.MULTILINE)[1])

    before = figure("audio_seconds_total")
    http.post("/v1/audio/embeddings", data={"model": "lora-0"}, files=upload(sound))
    assert figure("audio_seconds_total") > before and figure("models") == 5 and figure("queue_windows") == 0
    assert http.get("/ready").json() == {"status": "ready"}


# ---------------------------------------------------------------------- adapters that come and go


def parts(folder: Path, name: str, field: str) -> list[tuple[str, tuple[str, bytes]]]:
    kind = field.removesuffix("s[]").removesuffix("[]")
    files = [folder / name / f"{kind}.json", folder / name / f"{kind}_model.safetensors"]
    return [(field, (path.name, path.read_bytes())) for path in files]


def test_adapters_are_added_replaced_and_removed(encoder: Path, folder: Path, sound: Path, tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    others = make_adapters(encoder, tmp_path / "others", 2)
    with (
        running(engine_of(encoder, folder), HttpSettings(uploads=uploads)) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        own = {"adapter": parts(others / "adapters", "lora-0", "adapter[]"),
               "head": parts(others / "heads", "lora-0-classification", "heads[]")}  # fmt: skip
        # called like the folder of the one before
        data, files = {"name": "before"}, [*own["adapter"], *own["head"]]

        def classify(model: str) -> httpx.Response:
            return http.post("/v1/audio/classifications", data={"model": model}, files=upload(sound))

        before = classify("lora-0").json()
        added = http.post("/v1/adapters", data=data, files=files)
        assert added.status_code == 201 and added.json()["tasks"] == ["classification", "embedding"]
        assert http.get("/v1/models/before").json()["fingerprint"] == added.json()["fingerprint"]
        first = classify("before").json()
        assert first["fingerprint"] == added.json()["fingerprint"] and first["label"] in ("anger", "calm", "joy")
        second = [*parts(others / "adapters", "houlsby-1", "adapter[]"),
                  *parts(others / "heads", "houlsby-1-classification", "heads[]")]  # fmt: skip
        replaced = http.post("/v1/adapters", data=data, files=second)
        assert replaced.status_code == 200 and replaced.json()["method"] == "bottleneck"
        assert classify("before").json()["probabilities"] != first["probabilities"]
        untouched = classify("lora-0").json()  # to a rounding: how many cores hear it depends on what else is heard
        assert untouched.pop("probabilities") == pytest.approx(before.pop("probabilities"), abs=1e-5)
        assert untouched == before

        foreign = error(http.post("/v1/adapters", data=data, files=[*own["adapter"], *second[2:]]), 400)
        assert foreign["code"] == "adapter_refused" and str(tmp_path) not in foreign["message"]
        assert classify("before").json()["fingerprint"] == replaced.json()["fingerprint"]  # as it was
        error(http.post("/v1/adapters", data={"name": "lora-0"}, files=files), 409)
        assert "letters" in error(http.post("/v1/adapters", data={"name": "../x"}, files=files), 400)["message"]
        half = error(http.post("/v1/adapters", data={"name": "half"}, files=[files[0]]), 400)
        assert "adapter[]: sent 1, at least 2 expected" in half["message"]
        twice = error(http.post("/v1/adapters", data={"name": "twice"}, files=[*own["adapter"], files[0]]), 400)
        assert "adapter[]: sent 3, at most 2 expected" in twice["message"]
        renamed = [("adapter[]", ("../../evil", b"{}")), files[1]]
        error(http.post("/v1/adapters", data={"name": "evil"}, files=renamed), 400)
        assert wait_for(lambda: sorted(path.name for path in uploads.iterdir()) == ["before"])
        assert http.delete("/v1/adapters/before").json() == {"id": "before", "object": "model", "deleted": True}
        error(classify("before"), 404)
        error(http.delete("/v1/adapters/lora-0"), 409)
        assert not list(uploads.iterdir())


def test_the_folder_of_added_adapters_may_change_beside_the_server(
    encoder: Path, folder: Path, tmp_path: Path
) -> None:
    """By hand, or by another server that has the same one."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    files = parts(make_adapters(encoder, tmp_path / "others", 1) / "adapters", "lora-0", "adapter[]")
    with (
        running(engine_of(encoder, folder), HttpSettings(uploads=uploads)) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        shutil.copytree(tmp_path / "others" / "adapters" / "lora-0", uploads / "theirs")
        theirs = error(http.post("/v1/adapters", data={"name": "theirs"}, files=files), 409)
        assert "put there by another server or by hand" in theirs["message"]
        (uploads / "notes").write_text("keep")
        error(http.post("/v1/adapters", data={"name": "notes"}, files=files), 409)
        assert (uploads / "notes").read_text() == "keep"
        assert http.post("/v1/adapters", data={"name": "ours"}, files=files).status_code == 201
        shutil.rmtree(uploads / "ours")
        assert http.post("/v1/adapters", data={"name": "ours"}, files=files).status_code == 200
        shutil.rmtree(uploads / "ours")
        assert http.delete("/v1/adapters/ours").status_code == 200
        error(http.get("/v1/models/ours"), 404)


def test_a_name_of_a_bank_is_found_in_every_address(encoder: Path, folder: Path, tmp_path: Path) -> None:
    bank = Bank.create(tmp_path / "bank")
    bank.add(folder / "adapters" / "lora-0", "client/asr", head=folder / "heads" / "lora-0-transcription")
    (tmp_path / "uploads").mkdir()
    with (
        running(engine_of(encoder, bank.folder), HttpSettings(uploads=tmp_path / "uploads")) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        for name in ("client/asr", "client%2Fasr", "bank:client/asr@1"):
            assert http.get(f"/v1/models/{name}").json()["id"] == "client/asr"
            refused = error(http.delete(f"/v1/adapters/{name}"), 409)
            assert "belongs to what the server started with" in refused["message"] and refused["param"] == "name"
        assert error(http.delete("/v1/adapters/client/other"), 404)["code"] == "model_not_found"
        assert "takes DELETE" in error(http.get("/v1/adapters/client/asr"), 405)["message"]
        assert http.get("/v1/models/client/asr").json()["id"] == "client/asr"


def test_an_adapter_is_read_to_its_end_before_its_files_go(
    encoder: Path, folder: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, engine, began, gone = (
        tmp_path / "uploads",
        engine_of(encoder, folder),
        threading.Event(),
        threading.Event(),
    )
    uploads.mkdir()
    probe, reading = engine.probe, []

    def late(served: Served, *arguments: Any) -> Loaded:
        began.set()
        gone.wait(0.5)
        return load(served, *arguments)

    async def then_asked(served: Served) -> None:
        """Somebody asks for the adapter of before when the new one has been tried."""
        await probe(served)
        reading.append(asyncio.ensure_future(engine.shelf.get(engine.catalog.find("a"))))
        await asyncio.sleep(0)

    with (
        running(engine, HttpSettings(uploads=uploads)) as address,
        httpx.Client(base_url=address, timeout=60) as http,
        ThreadPoolExecutor(1) as client,
    ):
        files = [parts(folder / "adapters", name, "adapter[]") for name in ("lora-0", "houlsby-1")]
        assert http.post("/v1/adapters", data={"name": "a"}, files=files[0]).status_code == 201
        monkeypatch.setattr(residents, "load", late)
        monkeypatch.setattr(engine, "probe", then_asked)
        assert http.post("/v1/adapters", data={"name": "a"}, files=files[1]).status_code == 200
        assert wait_for(reading[0].done) and reading[0].result().served.method == "lora"
        began.clear()
        asked = client.submit(http.post, "/v1/audio/embeddings", data={"model": "a"}, files=upload(sound))
        assert began.wait(10) and http.delete("/v1/adapters/a").status_code == 200
        gone.set()
        assert asked.result().status_code == 200


def test_a_server_that_was_killed_in_a_change_starts_with_the_adapter_of_before_or_after(
    encoder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, rename, removed = tmp_path / "uploads", Path.rename, []
    uploads.mkdir()

    def killed(*arguments: Any, **_: Any) -> None:
        if Path(arguments[0]).name == "a" and Path(arguments[-1]).name == "a":  # the new one, to its place
            raise KeyboardInterrupt
        rename(*arguments)

    def half_removed(place: Path, **_: Any) -> None:
        removed.append(place)
        (place / "adapter_model.safetensors").unlink(missing_ok=True)

    with running(engine_of(encoder, folder), HttpSettings(uploads=uploads)) as address:
        files = parts(folder / "adapters", "lora-0", "adapter[]")
        assert httpx.post(f"{address}/v1/adapters", data={"name": "a"}, files=files).status_code == 201
        assert wait_for(lambda: [path.name for path in uploads.iterdir()] == ["a"])
        shutil.copytree(uploads / "a", tmp_path / "incoming" / "a")
        shutil.move(tmp_path / "incoming", uploads / ".incoming-x.a.1.at-00000000.99999999.tmp")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                http_models._swap(next(uploads.glob(".incoming-*")), uploads, "a")
        assert not (uploads / "a").exists()
        (uploads / f".incoming-y{temporary_of(uploads / 'b').name}" / "b").mkdir(parents=True)  # of this number
        assert http_server._uploads(str(uploads)) == uploads and http_server._added(uploads) == [uploads / "a"]
        assert not list(uploads.glob(".incoming-y*"))
        with monkeypatch.context() as patch:
            patch.setattr(http_models.shutil, "rmtree", half_removed)
            assert httpx.delete(f"{address}/v1/adapters/a").status_code == 200
        assert removed and http_server._added(uploads) == []


def test_what_has_begun_ends_under_the_adapter_that_it_began_with(
    encoder: Path, folder: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of its files while it is heard, calibration included."""
    shutil.copytree(folder, tmp_path / "served")
    engine = engine_of(encoder, tmp_path / "served")
    served, hear = engine.catalog.find("houlsby-1"), engine.hear

    def then_gone(*arguments: Any) -> Any:
        engine.shelf.drop(served)
        shutil.rmtree(tmp_path / "served", ignore_errors=True)
        return hear(*arguments)

    with running(engine) as address, httpx.Client(base_url=address, timeout=60) as http:
        monkeypatch.setattr(engine, "hear", then_gone)
        files = [("enrolment", sound.read_bytes()), ("test", sound.read_bytes())]
        found = http.post("/v1/audio/verifications", data={"model": "houlsby-1"}, files=files)
        assert found.status_code == 200 and found.json()["llr"] == pytest.approx(4.0, abs=1e-4)
        assert error(http.post("/v1/audio/verifications", data={"model": "houlsby-1"}, files=files), 503)


def test_a_head_that_has_changed_is_not_taken_for_the_one_that_was_added(
    encoder: Path, folder: Path, sound: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "served")
    head = tmp_path / "served" / "heads" / "houlsby-1-classification"
    engine = engine_of(encoder, tmp_path / "served")
    model = SpeechAdapterModel.from_adapter(tmp_path / "served" / "adapters" / "houlsby-1", head=head, encoder=encoder)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter += 1
    shutil.rmtree(head)
    model.save_head(model.active_head, head)
    engine.shelf.drop(engine.catalog.find("houlsby-1"))
    with pytest.raises(CheckpointError, match="the head of 'houlsby-1' has changed since it was added"):
        load(engine.catalog.find("houlsby-1"), engine.encoder)


class Response:
    """What an application is sent, of whom the client goes away at the first event of a ``kind``."""

    def __init__(self, kind: str) -> None:
        self.kind, self.gone = kind, asyncio.Event()

    async def __call__(self, message: Any) -> None:
        if message["type"] == self.kind:
            self.gone.set()
            await asyncio.Event().wait()


@pytest.mark.parametrize("kind", ["http.response.start", "http.response.body"])
def test_a_stream_whose_client_goes_away_leaves_no_upload(
    encoder: Path, folder: Path, sound: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    engine = engine_of(encoder, folder)
    request = httpx.Request(
        "POST", "http://localhost" + TRANSCRIPTIONS, data={"model": "lora-0", "stream": "true"}, files=upload(sound)
    )
    body = request.read()

    async def ask() -> None:
        app, sent = create_app(engine, HttpSettings()), Response(kind)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await sent.gone.wait()
            return {"type": "http.disconnect"}

        headers = [(key.lower().encode(), value.encode()) for key, value in request.headers.items()]
        scope = {"type": "http", "method": "POST", "path": TRANSCRIPTIONS, "raw_path": TRANSCRIPTIONS.encode(),
                 "headers": headers, "query_string": b"", "http_version": "1.1", "scheme": "http"}  # fmt: skip
        await engine.start()
        await app(scope, receive, sent)
        for _ in range(200):
            if not list(tmp_path.iterdir()):
                break
            await asyncio.sleep(0.02)
        await engine.stop()

    gc.disable()
    try:
        asyncio.run(ask())
        assert not list(tmp_path.iterdir())
    finally:
        gc.enable()


class GoneAt:
    """Awaits a coroutine whose client goes away at its ``number``-th await: before what it awaits is done, or after.

    Attributes:
        gone: False where there are fewer awaits, so that it ran to its end.
    """

    def __init__(self, coroutine: Any, number: int, *, done: bool) -> None:
        self.coroutine, self.number, self.done, self.gone = coroutine, number, done, False

    def __await__(self) -> Iterator[Any]:
        for number in itertools.count():
            try:
                awaited = self.coroutine.send(None)
            except StopIteration as end:
                return end.value
            if number == self.number:
                self.gone = True
                if self.done:
                    yield awaited
                with contextlib.suppress(asyncio.CancelledError):
                    self.coroutine.throw(asyncio.CancelledError())
                return None
            yield awaited


@pytest.mark.parametrize("done", [False, True])
def test_replacing_an_adapter_is_done_or_not_wherever_its_client_goes_away(
    encoder: Path, folder: Path, tmp_path: Path, done: bool
) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    others = make_adapters(encoder, tmp_path / "others", 2)
    engine = engine_of(encoder, folder)
    kinds = {"bottleneck": "houlsby-1", "lora": "lora-0"}

    def form(kind: str) -> AdapterFields:
        files: dict[str, list[UploadFile]] = {}
        for part, field in (("adapters", "adapter[]"), ("heads", "heads[]")):
            name = kinds[kind] + ("-classification" if part == "heads" else "")
            for _, (filename, data) in parts(others / part, name, field):
                files.setdefault(field, []).append(UploadFile(io.BytesIO(data), filename=filename))
        return AdapterFields.model_validate({"name": "new", **files})

    async def replace_until_done() -> list[str]:
        state = SimpleNamespace(engine=engine, settings=HttpSettings(uploads=uploads), changing=asyncio.Lock())
        request: Any = SimpleNamespace(app=SimpleNamespace(state=state))
        own = engine, uploads
        await engine.start()
        try:
            await add_adapter(request, own, form("lora"))
            found = []
            for number in itertools.count():
                going = GoneAt(add_adapter(request, own, form("bottleneck")), number, done=done)
                await going
                served = engine.catalog.find("new")
                engine.shelf.drop(served)
                loaded = await engine.shelf.get(served)  # from the disk
                assert loaded.heads.keys() == {"classification"}
                found.append(served.method)
                while [path.name for path in uploads.iterdir()] != ["new"]:
                    await asyncio.sleep(0.01)
                if not going.gone:
                    return found
                if served.method == "bottleneck":
                    await add_adapter(request, own, form("lora"))
        finally:
            await engine.stop()

    found = asyncio.run(asyncio.wait_for(replace_until_done(), 60))
    assert found[-1] == "bottleneck" and found.count("lora") > 3


def test_a_full_disk_is_the_server_s_fault_and_said(
    encoder: Path, folder: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        running(engine_of(encoder, folder), HttpSettings(uploads=tmp_path)) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        asked = {
            TRANSCRIPTIONS: ("starlette.datastructures.UploadFile.write", {"model": "lora-0"}, upload(sound)),
            "/v1/adapters": ("shutil.copyfileobj", {"name": "a"}, parts(folder / "adapters", "lora-0", "adapter[]")),
        }
        for route, (place, data, files) in asked.items():
            with monkeypatch.context() as patch:
                patch.setattr(place, full)
                found = error(http.post(route, data=data, files=files), 507)
            assert found["code"] == "disk_full" and found["type"] == "server_error"
        assert http.post(TRANSCRIPTIONS, data={"model": "lora-0"}, files=upload(sound)).status_code == 200
        assert wait_for(lambda: not list(tmp_path.iterdir()))
    assert caplog.text.count("no room for what a client sent") == 2 and "Traceback" not in caplog.text


def test_a_folder_that_is_gone_is_the_server_s_fault_and_said(
    encoder: Path, folder: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        running(engine_of(encoder, folder), HttpSettings(uploads=tmp_path / "gone")) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        for route, data, files in (
            (TRANSCRIPTIONS, {"model": "lora-0"}, upload(sound)),
            ("/v1/adapters", {"name": "a"}, parts(folder / "adapters", "lora-0", "adapter[]")),
        ):
            assert error(http.post(route, data=data, files=files), 503)["code"] == "no_storage"
        (tmp_path / "gone").mkdir()
        assert http.post(TRANSCRIPTIONS, data={"model": "lora-0"}, files=upload(sound)).status_code == 200
    assert caplog.text.count("what a client sent cannot be kept: [Errno 2]") == 2 and "Traceback" not in caplog.text


def test_an_adapter_without_effect_is_refused(encoder: Path, folder: Path, tmp_path: Path) -> None:
    model = SpeechAdapterModel.from_pretrained(encoder)
    model.add_adapter("a", "lora")  # at its start: it changes nothing
    model.save_adapter("a", tmp_path / "a" / "dead")
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    with (
        running(engine_of(encoder, folder), HttpSettings(uploads=uploads)) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        files = parts(tmp_path / "a", "dead", "adapter[]")
        found = error(http.post("/v1/adapters", data={"name": "dead"}, files=files), 400)
        assert "changes nothing of what the base hears" in found["message"]
        shake(model, "a")
        model.save_adapter("a", tmp_path / "a" / "dead")
        files = parts(tmp_path / "a", "dead", "adapter[]")
        assert http.post("/v1/adapters", data={"name": "dead"}, files=files).status_code == 201


def test_adding_is_off_unless_allowed_and_for_admins_alone(
    http: httpx.Client, encoder: Path, folder: Path, tmp_path: Path
) -> None:
    files = parts(folder / "adapters", "lora-0", "adapter[]")
    assert error(http.post("/v1/adapters", data={"name": "x"}, files=files), 403)["code"] == "adapters_fixed"
    assert error(http.post("/v1/adapters"), 403)["code"] == "adapters_fixed"  # before anything is said of fields
    error(http.delete("/v1/adapters/lora-0"), 403)
    keys = Keys((key("a", "one"), key("b", "two", admin=True)))
    with (
        running(engine_of(encoder, folder), HttpSettings(uploads=tmp_path), keys) as address,
        httpx.Client(base_url=address, timeout=60) as guarded,
    ):
        for secret, status in (("one", 403), ("two", 201)):
            headers = {"authorization": f"Bearer {secret}"}
            answer = guarded.post("/v1/adapters", data={"name": "x"}, files=files, headers=headers)
            assert answer.status_code == status, answer.text


# ---------------------------------------------------------------------- the page's headers


def test_the_page_runs_its_own_script_alone(http: httpx.Client) -> None:
    answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    script = re.search(r"<script>(.*?)</script>", answer.text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r'\son\w+="|\sstyle="|<script src|https?://(?!www\.w3\.org)', answer.text)


def test_the_committed_openapi_document_is_current() -> None:
    written = json.loads((Path(__file__).parents[1] / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert written == openapi(), "docs/openapi.json is not what the code says: make docs"
    fields = written["components"]["schemas"]["TranscriptionFields"]["properties"]
    assert {"file", "model", "keywords[]", "timestamp_granularities[]", "include[]", "stream"} <= fields.keys()
    assert all(route in written["paths"] for route in (TRANSCRIPTIONS, "/v1/models", "/v1/adapters", "/metrics"))
