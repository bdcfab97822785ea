"""Live audio: what is told on the way is what two hearings agree on, and the end is the offline transcript."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import websockets.exceptions
from hypothesis import given, settings
from hypothesis import strategies as st
from small_server import engine_of, make_adapters, make_encoder, running, tone
from websockets.sync.client import connect

from speech_adapters.data.audio import read_audio
from speech_adapters.heads.decoding import Segment
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http.keys import ApiKey, Keys
from speech_adapters.serving.http.realtime import PENDING
from speech_adapters.serving.http.settings import HttpSettings
from speech_adapters.serving.live import EDGE, LONGEST, Agreement, LiveItem

PREFIX = "conversation.item.input_audio_transcription"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def folder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(encoder, tmp_path_factory.mktemp("served"), 2)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone(tmp_path_factory.mktemp("sounds") / "a.wav", 13.0)


@pytest.fixture(scope="module")
def expected(encoder: Path, folder: Path, sound: Path) -> str:
    adapter, head = folder / "adapters" / "lora-0", folder / "heads" / "lora-0-transcription"
    return SpeechAdapterModel.from_adapter(adapter, head=head, encoder=encoder).transcribe(sound).text


@pytest.fixture(scope="module")
def address(encoder: Path, folder: Path) -> Iterator[str]:
    settings = HttpSettings(max_sessions=2, max_idle=5.0)
    with running(engine_of(encoder, folder, max_seconds=20.0), settings) as address:
        yield address.replace("http", "ws")


def pcm(path: Path) -> bytes:
    return (read_audio(path).numpy() * 32768).round().astype("<i2").tobytes()


def append(data: bytes) -> dict[str, str]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}


def update(**audio: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": audio}}}


RATE = {"format": {"type": "audio/pcm", "rate": 16000}, "turn_detection": None}


class Client:
    """A plain websocket that speaks JSON."""

    def __init__(self, address: str, model: str = "lora-0", **options: Any) -> None:
        self.connecting = connect(f"{address}/v1/realtime?model={model}", open_timeout=30, **options)

    def __enter__(self) -> Client:
        self.socket = self.connecting.__enter__()
        assert self.receive("session.created")["session"]["type"] == "transcription"
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *events: dict[str, Any]) -> None:
        for event in events:
            self.socket.send(json.dumps(event))

    def receive(self, *kinds: str) -> dict[str, Any]:
        event = json.loads(self.socket.recv(timeout=60))
        assert event["type"] in kinds, event
        return event


def test_the_end_is_the_offline_transcript(address: str, sound: Path, expected: str) -> None:
    data = pcm(sound)
    with Client(address) as client:
        client.send(update(**RATE))
        assert client.receive("session.updated")["session"]["audio"]["input"]["format"]["rate"] == 16000
        client.send(*(append(data[start : start + 6400]) for start in range(0, len(data), 6400)))
        client.send({"type": "input_audio_buffer.commit"})
        event = client.receive(f"{PREFIX}.delta", "input_audio_buffer.committed")
        deltas = []
        while event["type"] == f"{PREFIX}.delta":
            deltas.append(event)
            event = client.receive(f"{PREFIX}.delta", "input_audio_buffer.committed")
        done = client.receive(f"{PREFIX}.completed")
        assert done["transcript"] == expected != "" and done["item_id"] == event["item_id"]
        assert done["usage"] == {"type": "duration", "seconds": 13.0} and done["model"] == "lora-0"
        assert all(delta["item_id"] == done["item_id"] for delta in deltas)
        client.send(append(data[:64_000]), {"type": "input_audio_buffer.commit"})
        second = client.receive(f"{PREFIX}.delta", "input_audio_buffer.committed")
        while second["type"] == f"{PREFIX}.delta":
            second = client.receive(f"{PREFIX}.delta", "input_audio_buffer.committed")
        assert second["previous_item_id"] == event["item_id"] != second["item_id"]
        assert client.receive(f"{PREFIX}.completed")["usage"]["seconds"] == 2.0


def test_openais_realtime_client_and_24_khz(address: str, sound: Path, expected: str) -> None:
    import soxr

    samples = soxr.resample(read_audio(sound).numpy(), 16000, 24000)
    data = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    client = openai.OpenAI(base_url=address.replace("ws", "http") + "/v1", api_key="none")
    with client.realtime.connect(model="lora-0") as connection:
        connection.session.update(session={"type": "transcription", "audio": {"input": {
            "format": {"type": "audio/pcm", "rate": 24000}, "turn_detection": None}}})  # fmt: skip
        for start in range(0, len(data), 48_000):
            connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + 48_000]).decode())
        connection.input_audio_buffer.commit()
        for event in connection:
            assert event.type != "error", event
            if event.type == f"{PREFIX}.completed":
                break
    # resampled twice, a few symbols of a random model's text may change
    assert abs(len(event.transcript) - len(expected)) < 0.2 * len(expected)
    assert event.usage.seconds == pytest.approx(13.0, abs=0.01)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("no json", "not JSON"),
        ("[1]", 'an object with a "type"'),
        ({"type": "response.create"}, "no event 'response.create'"),
        ({"type": "input_audio_buffer.append", "audio": "***"}, "give base64"),
        ({"type": "input_audio_buffer.append"}, "give base64"),
        (append(b"odd"), "odd number of bytes"),
        ({"type": "input_audio_buffer.commit"}, "append audio first"),
        (update(turn_detection={"type": "server_vad"}), "turn_detection: choose null"),
        (update(format={"type": "audio/pcm", "rate": 8000}), "choose 16000 or 24000"),
        (update(format={"type": "audio/pcmu"}), "format.type: Input should be 'audio/pcm'"),
        (update(transcription={"model": "lora-9"}), "does not exist here"),
        (update(transcription={"model": "base"}), "does no transcription"),
        (update(transcription={"model": "lora-0", "prompt": "x"}), "prompt"),
        (update(loudness=3), "loudness: no such field"),
        (update(transcription=None), "transcription: give an object"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type: Input should be 'transcription'"),
        ({"type": "session.update"}, "session: give an object"),
        ('{"type": "x", "event_id": "\\ud800"}', "no event 'x'"),  # half of a letter, which no text can be sent with
    ],
)
def test_a_wrong_event_is_answered_and_the_session_goes_on(address: str, event: Any, said: str) -> None:
    with Client(address) as client:
        if isinstance(event, dict):
            event = json.dumps({**event, "event_id": "mine"})
        client.socket.send(event)
        found = client.receive("error")["error"]
        assert said in found["message"] and found["type"] and {"code", "param"} <= found.keys()
        assert found.get("event_id", "mine") in ("mine", "\ud800")
        client.send({"type": "input_audio_buffer.clear"})
        client.receive("input_audio_buffer.cleared")


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [("lora-9", "model_not_found", "does not exist here"), ("base", "unsupported_task", "does no transcription")],
)
def test_a_model_that_cannot_transcribe_is_told_as_the_session_starts(
    address: str, model: str, code: str, said: str
) -> None:
    with Client(address, model) as client:
        found = client.receive("error")["error"]
        assert (found["code"], found["param"]) == (code, "model") and said in found["message"]
        client.send(update(transcription={"model": "lora-0"}, **RATE))
        client.receive("session.updated")


def test_what_an_update_does_not_name_stays_as_it_is(address: str, sound: Path, expected: str) -> None:
    with Client(address) as client:
        client.send(
            update(**RATE), update(transcription={"language": "en"}), update(transcription={"model": "lora-0"})
        )
        for _ in range(3):
            said = client.receive("session.updated")["session"]["audio"]["input"]
        assert said["format"]["rate"] == 16000 and said["transcription"]["language"] == "en"
        client.send(append(pcm(sound)), {"type": "input_audio_buffer.commit"})
        while (event := client.receive(f"{PREFIX}.delta", f"{PREFIX}.completed", "input_audio_buffer.committed"))[
            "type"
        ] != f"{PREFIX}.completed":
            pass
        assert event["transcript"] == expected and event["usage"]["seconds"] == 13.0


def test_no_audio_begins_no_item(address: str) -> None:
    with Client(address) as client:
        client.send(append(b""), {"type": "input_audio_buffer.commit"})
        assert client.receive("error")["error"]["code"] == "input_audio_buffer_commit_empty"
        client.send(append(bytes(200)), {"type": "input_audio_buffer.commit"})
        client.receive("input_audio_buffer.committed")
        assert client.receive(f"{PREFIX}.failed")["error"]["param"] == "audio"


def test_too_little_and_too_much_audio(address: str) -> None:
    with Client(address) as client:
        client.send(update(**RATE), append(bytes(200)), {"type": "input_audio_buffer.commit"})
        client.receive("session.updated")
        client.receive("input_audio_buffer.committed")
        assert "less than 25 ms" in client.receive(f"{PREFIX}.failed")["error"]["message"]
        client.send(append(bytes(640_000)), append(bytes(3200)))
        while (event := client.receive(f"{PREFIX}.delta", "error"))["type"] != "error":
            pass
        assert "longer than the 20 s" in event["error"]["message"]


def test_sessions_are_limited_and_guarded(address: str, encoder: Path, folder: Path) -> None:
    status = websockets.exceptions.InvalidStatus
    with Client(address), Client(address), pytest.raises(status) as busy, Client(address):
        pass
    assert busy.value.response.status_code == 429
    assert json.loads(busy.value.response.body)["error"]["code"] == "busy"
    with pytest.raises(status) as foreign, Client(address, origin="https://evil.example"):
        pass
    assert foreign.value.response.status_code == 403
    with pytest.raises(status) as lost, connect(f"{address}/realtime"):
        pass
    assert lost.value.response.status_code == 404
    assert json.loads(lost.value.response.body)["error"]["message"].endswith("live sessions are at /v1/realtime")
    keys = Keys((ApiKey(name="a", sha256=hashlib.sha256(b"k").hexdigest()),))
    with running(engine_of(encoder, folder), keys=keys) as guarded:
        guarded = guarded.replace("http", "ws")
        with pytest.raises(status) as unknown, Client(guarded):
            pass
        assert unknown.value.response.status_code == 401
        with Client(guarded, additional_headers={"authorization": "Bearer k"}):
            pass
        with Client(guarded, subprotocols=["realtime", "openai-insecure-api-key.k"]) as client:
            assert client.socket.subprotocol == "realtime"


def test_a_fault_of_the_server_is_told_and_the_session_goes_on(
    address: str, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("CUDA out of memory")

    with Client(address) as client, monkeypatch.context() as patched:
        client.send(update(**RATE))
        client.receive("session.updated")
        patched.setattr(LiveItem, "finish", broken)
        client.send(append(pcm(sound)[:64_000]), {"type": "input_audio_buffer.commit"})
        while (event := client.receive(f"{PREFIX}.delta", "input_audio_buffer.committed"))["type"].endswith("delta"):
            pass
        assert client.receive(f"{PREFIX}.failed")["item_id"] == event["item_id"]
        patched.setattr(LiveItem, "add", broken)
        client.send(append(pcm(sound)[:64_000]) | {"event_id": "mine"})
        assert client.receive("error")["error"]["event_id"] == "mine"


def test_a_session_waits_where_it_commits_faster_than_it_is_answered(
    address: str, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on, finish = threading.Event(), LiveItem.finish

    async def held(item: LiveItem) -> Any:
        await asyncio.to_thread(going_on.wait)
        return await finish(item)

    monkeypatch.setattr(LiveItem, "finish", held)
    with Client(address) as client:
        client.send(update(**RATE))
        client.receive("session.updated")
        for _ in range(PENDING + 2):
            client.send(append(pcm(sound)[:3200]), {"type": "input_audio_buffer.commit"})
        for _ in range(PENDING):
            client.receive("input_audio_buffer.committed")
        with pytest.raises(TimeoutError):
            client.socket.recv(timeout=0.5)
        going_on.set()
        kinds = [
            client.receive(f"{PREFIX}.completed", "input_audio_buffer.committed")["type"] for _ in range(PENDING + 4)
        ]
        assert kinds.count(f"{PREFIX}.completed") == PENDING + 2


def test_silent_clients_are_let_go(encoder: Path, folder: Path) -> None:
    settings = HttpSettings(max_idle=0.2)
    with (
        running(engine_of(encoder, folder), settings) as address,
        Client(address.replace("http", "ws")) as client,
    ):
        assert client.receive("error")["error"]["code"] == "session_idle"
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            client.socket.recv(timeout=30)


def test_what_was_heard_is_answered_when_the_server_stops(encoder: Path, folder: Path, sound: Path) -> None:
    data = pcm(sound)[:128_000]
    with ExitStack() as stack:
        address = stack.enter_context(running(engine_of(encoder, folder)))
        with Client(address.replace("http", "ws")) as client, Client(address.replace("http", "ws")) as idle:
            client.send(update(**RATE), append(data))
            client.receive("session.updated")
            client.send({"type": "input_audio_buffer.unknown"})  # answered after the audio has been taken in
            while client.receive("error", f"{PREFIX}.delta")["type"] != "error":
                pass
            stopping = threading.Thread(target=stack.close)
            stopping.start()
            while (event := client.receive(f"{PREFIX}.delta", "input_audio_buffer.committed"))["type"].endswith(
                "delta"
            ):
                pass
            done = client.receive(f"{PREFIX}.completed")
            assert done["item_id"] == event["item_id"] and done["usage"]["seconds"] == 4.0 and done["transcript"]
            for each in (client, idle):
                assert each.receive("error")["error"]["code"] == "stopping"
                with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
                    each.socket.recv(timeout=30)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
            stopping.join(60)
            assert not stopping.is_alive()


def test_a_live_item_told_nothing_wrong_of_itself(encoder: Path, folder: Path, sound: Path, expected: str) -> None:
    """Fed at its own pace, the item tells words in order, each once, and ends with the offline text."""
    engine = engine_of(encoder, folder)
    samples = read_audio(sound).numpy()
    told: list[Segment] = []

    async def tell(words: list[Segment]) -> None:
        told.extend(words)

    async def ask(engine: Engine) -> str:
        await engine.start()
        item = LiveItem(engine, await engine.shelf.get(engine.catalog.find("lora-0")), tell)
        for start in range(0, len(samples), 8000):
            heard = item.heard
            await item.add(samples[start : start + 8000])
            while item.heard == heard:  # until it is heard again
                await asyncio.sleep(0.01)
        assert len(item.window) <= 9.5 * 16000
        transcript = await item.finish()
        await engine.stop()
        return transcript.text

    assert asyncio.run(ask(engine)) == expected
    starts = [word.start for word in told]
    assert told and starts == sorted(starts)


def test_words_that_leave_the_window_are_told_though_no_two_hearings_agree(
    encoder: Path, folder: Path, sound: Path
) -> None:
    class Never(Agreement):
        def __call__(self, words: Sequence[Segment], end: float) -> list[Segment]:
            self.before = [word for word in words if word.start >= self.told]
            return []

    engine, samples, told = engine_of(encoder, folder), read_audio(sound).numpy(), []

    async def tell(words: list[Segment]) -> None:
        told.extend(words)

    async def ask() -> None:
        await engine.start()
        item = LiveItem(engine, await engine.shelf.get(engine.catalog.find("lora-0")), tell)
        item.agreement = Never()
        for start in range(0, len(samples), 8000):
            heard = item.heard
            await item.add(samples[start : start + 8000])
            while item.heard == heard:
                await asyncio.sleep(0.01)
        await item.finish()
        await engine.stop()

    asyncio.run(ask())
    starts = [word.start for word in told]
    assert told and starts == sorted(starts) and max(word.end for word in told) <= 13.0 - LONGEST


# ---------------------------------------------------------------------- agreement

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6)


def spoken(texts: list[str]) -> list[Segment]:
    return [Segment(text, 0.5 * n, 0.5 * n + 0.4, 1.0) for n, text in enumerate(texts)]


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6))
def test_words_are_told_when_two_hearings_agree_and_once_only(hearings: list[list[str]]) -> None:
    agreement, told = Agreement(), []
    end = 100.0
    previous: list[str] = []
    for texts in hearings:
        final = agreement(spoken(texts), end)
        for number, word in enumerate(final, start=len(told)):
            assert texts[number] == previous[number] == word.text
        told += [word.text for word in final]
        assert told == [*told[: len(told) - len(final)], *texts[len(told) - len(final) : len(told)]]
        previous = told + texts[len(told) :]


def test_the_word_at_the_end_waits() -> None:
    agreement = Agreement()
    words = spoken(["a", "b"])  # b ends at 0.9
    assert agreement(words, 0.9) == [] and agreement(words, 0.9 + EDGE / 2) == words[:1]
    assert agreement(words, 2.0) == words[1:] and agreement(words, 2.0) == []


def test_what_leaves_the_window_is_told() -> None:
    agreement = Agreement()
    words = spoken(["a", "b", "c"])
    assert agreement(words, 9.0) == []
    assert agreement.force(1.0) == words[:2] and agreement.before == words[2:]
