"""The engine: what many clients at once are told is what the library says of each recording alone."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoders import stock_model
from small_server import engine_of, make_adapters, make_encoder, shake, tone

from speech_adapters.bank.bank import Bank
from speech_adapters.composition import Fuse, Route
from speech_adapters.data.windows import Window, Windows
from speech_adapters.errors import AudioError, CheckpointError, ConfigError
from speech_adapters.heads.classification import ClassificationHead
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.inference.recordings import Recording, recordings_of
from speech_adapters.inference.utterances import stitched as library_stitched
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.model_output import ModelOutput
from speech_adapters.saving.fusions import SavedFusion
from speech_adapters.serving import catalog
from speech_adapters.serving.answers import classify, embed, stitched, transcribe, verify_speaker, whole_transcript
from speech_adapters.serving.catalog import UnknownModel, UnsupportedTask, read_folder, read_named, read_place
from speech_adapters.serving.engine import Engine, Source
from speech_adapters.serving.http.server import add_place, base_of
from speech_adapters.serving.queue import BatchQueue, Waiting
from speech_adapters.serving.residents import Loaded, Slots, load
from speech_adapters.serving.served import Served

TASKS = ("transcription", "classification", "embedding")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def folder(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(encoder, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    place = tmp_path_factory.mktemp("sounds")
    files = [tone(place / f"{n}.wav", 0.6 + 0.5 * n, seed=n) for n in range(6)]
    return [each[0] for each in recordings_of(files)]


def run(engine: Engine, ask: Any) -> Any:
    """What ``ask()`` gives while the engine runs."""

    async def within() -> Any:
        await engine.start()
        try:
            return await ask()
        finally:
            await engine.stop()

    return asyncio.run(within())


async def output(engine: Engine, served: Served, task: str | None, recording: Recording) -> tuple[Any, Any]:
    found, _ = await stitched(engine, await engine.shelf.get(served), task, recording)
    return found.logits, found.embedding


def alone(encoder: Path, served: Served, task: str, recording: Recording) -> tuple[Any, Any]:
    """What the library says."""
    model = bare(encoder)
    model.load_adapter(served.adapter, "a")
    model.load_head(served.heads[task], "h")
    (found,) = library_stitched(model.eval(), [recording])
    model.delete_head("h")
    model.delete_adapter("a")
    return found.logits, found.embedding


@cache
def bare(encoder: Path) -> SpeechAdapterModel:
    return SpeechAdapterModel.from_pretrained(encoder)


def difference(one: tuple[Any, Any], other: tuple[Any, Any]) -> float:
    assert [a is None for a in one] == [b is None for b in other]
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True) if a is not None)


def test_concurrent_requests_get_the_single_calls_answers(
    encoder: Path, folder: Path, sounds: list[Recording]
) -> None:
    engine = engine_of(encoder, folder)
    adapters = [served for served in engine.catalog if served.adapter is not None]
    asked = [(adapters[n % 16], TASKS[n % 3], sounds[n % 6]) for n in range(32)]

    async def ask() -> list[tuple[Any, Any]]:
        return await asyncio.gather(*(output(engine, *one) for one in asked))

    answers = run(engine, ask)
    assert len({served.method for served, _, _ in asked}) == 4 and engine.counts.mixed > 0
    assert engine.counts.batches < engine.counts.windows / 2
    for one, answer in zip(asked, answers, strict=True):
        assert difference(answer, alone(encoder, *one)) < 1e-5, one[0].name


def test_base_models_hear_no_padding(sounds: list[Recording], tmp_path: Path) -> None:
    """Their CNN normalises over time: what stands beside a recording in its batch must not be part of it."""
    encoder = make_encoder(tmp_path / "base", "post-norm")
    folder = make_adapters(encoder, tmp_path / "served", 4, ("lora", "houlsby", "cnn-adapter"))
    engine = engine_of(encoder, folder, deadline=0.1)
    assert engine.encoder.group_norm
    adapters = [served for served in engine.catalog if served.adapter is not None]
    asked = [(adapters[n % 4], TASKS[n % 3], sounds[n % 6]) for n in range(8)]

    async def ask() -> list[tuple[Any, Any]]:
        return await asyncio.gather(*(output(engine, *one) for one in asked))

    answers = run(engine, ask)
    assert engine.counts.batches < engine.counts.windows
    for one, answer in zip(asked, answers, strict=True):
        assert difference(answer, alone(encoder, *one)) < 1e-5, one[0].name


def test_below_an_output_adapter_each_model_has_frames_of_its_own(sounds: list[Recording], tmp_path: Path) -> None:
    encoder = tmp_path / "base"
    stock_model("wavlm", "pre-norm", add_adapter=True).save_pretrained(encoder)
    engine = engine_of(encoder, make_adapters(encoder, tmp_path / "served", 2, ("lora", "elp")))
    adapters = [served for served in engine.catalog if served.adapter is not None]

    async def ask() -> list[tuple[Any, Any]]:
        return await asyncio.gather(*(output(engine, one, "transcription", sounds[3]) for one in adapters))

    for served, answer in zip(adapters, run(engine, ask), strict=True):
        expected = alone(encoder, served, "transcription", sounds[3])
        assert answer[0].shape == expected[0].shape and difference(answer, expected) < 1e-5, served.name


def test_adding_and_replacing_an_adapter_changes_no_bit_of_the_others(
    encoder: Path, folder: Path, sounds: list[Recording], tmp_path: Path
) -> None:
    engine = engine_of(encoder, folder, adapters=4)  # slots are shared by more adapters than there are
    other = [s for s, _ in read_folder(make_adapters(encoder, tmp_path, 6), engine.encoder)]
    watched = [engine.catalog.find(name) for name in ("lora-0", "houlsby-1", "elp-2", "prefix-3")]

    async def ask() -> tuple[list[Any], list[Any], list[Any]]:
        before = [await output(engine, one, "transcription", sounds[0]) for one in watched]
        replaced = []
        for served in other:  # of the same names as six that are served
            if served.name not in {one.name for one in watched}:
                engine.catalog.add(served)
                replaced.append(await output(engine, served, "transcription", sounds[0]))
        return before, [await output(engine, one, "transcription", sounds[0]) for one in watched], replaced

    before, after, replaced = run(engine, ask)
    for (logits, _), (again, _) in zip(before, after, strict=True):
        assert torch.equal(logits, again)
    assert len(replaced) == 2 and not any(torch.equal(a, b) for a, _ in before for b, _ in replaced)


def test_a_cpus_workers_share_its_weights_and_answer_alike(
    encoder: Path, folder: Path, sounds: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # this machine's own number is none of this test's
    engine = engine_of(encoder, folder, batch_seconds=2.0, cpu_workers=2)
    first, second = (worker.model for worker in engine._workers)
    assert first.registry is not second.registry
    for mine, yours in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True):
        assert mine is yours
    threads: list[int] = []
    for worker in engine._workers:
        monkeypatch.setattr(
            worker, "hear", lambda batch, count, hear=worker.hear: threads.append(count) or hear(batch, 1)
        )
    adapters = [served for served in engine.catalog if served.adapter is not None][:8]

    async def ask() -> list[Any]:
        lonely = await output(engine, adapters[0], "embedding", sounds[1])
        return [lonely, *await asyncio.gather(*(output(engine, one, "embedding", sounds[1]) for one in adapters))]

    answers = run(engine, ask)
    assert threads[0] == 3 and set(threads[1:]) >= {1}  # alone: all of them; else half, at least one
    for served, answer in zip((adapters[0], *adapters), answers, strict=True):
        assert difference(answer, alone(encoder, served, "embedding", sounds[1])) < 1e-5


def test_adapters_come_and_go_within_their_memory(encoder: Path, folder: Path, sounds: list[Recording]) -> None:
    free = engine_of(encoder, folder)
    sizes = {served.name: served.size for served in free.catalog}
    budget = 3 * max(sizes.values())
    engine = engine_of(encoder, folder, memory=budget, adapters=2)
    adapters = [served for served in engine.catalog if served.adapter is not None]
    seen = []

    async def ask() -> list[Any]:
        found = []
        for served in (*adapters, *adapters[:4]):
            found.append(await output(engine, served, "embedding", sounds[1]))
            seen.append((engine.shelf.kept.bytes, len(engine._workers[0].model.adapters)))
        return found

    answers = run(engine, ask)
    assert max(size for size, _ in seen) <= budget and max(attached for _, attached in seen) <= 2
    assert engine.shelf.kept.misses > 16  # what had to go was read again
    for served, answer in zip((*adapters, *adapters[:4]), answers, strict=True):
        assert difference(answer, alone(encoder, served, "embedding", sounds[1])) < 1e-5


def test_models_of_equal_parts_share_them_under_their_own_names(encoder: Path, folder: Path) -> None:
    engine = engine_of(encoder, folder)
    first = engine.catalog.find("lora-0")
    twins = [replace(first, name=f"twin-{number}") for number in range(3)]

    async def ask() -> list[Any]:
        return [*await asyncio.gather(*map(engine.shelf.get, twins[:2])), await engine.shelf.get(twins[2])]

    found = run(engine, ask)
    assert [loaded.served.name for loaded in found] == ["twin-0", "twin-1", "twin-2"]
    assert len({id(loaded.adapter) for loaded in found}) == 1


def test_long_recordings_are_heard_as_the_library_hears_them_and_share_batches(
    encoder: Path, folder: Path, tmp_path: Path
) -> None:
    windows = Windows(seconds=2.0, context=0.5)
    engine = engine_of(encoder, folder, windows=windows, deadline=0.2)
    long, short = (recordings_of(tone(tmp_path / f"{s}.wav", s, 3))[0][0] for s in (15.0, 1.0))
    one, two = engine.catalog.find("lora-0"), engine.catalog.find("elp-2")

    async def ask() -> Any:
        first, second = [await engine.shelf.get(served) for served in (one, two)]
        return await asyncio.gather(whole_transcript(engine, first, long), embed(engine, second, short))

    transcript, (embedding, duration) = run(engine, ask)
    model = SpeechAdapterModel.from_adapter(one.adapter, head=one.heads["transcription"], encoder=encoder)
    expected = model.transcribe(long.source, windows=windows)
    assert transcript.text == expected.text and transcript.duration == expected.duration == 15.0
    assert [w.start for w in transcript.words] == [w.start for w in expected.words]
    assert duration == 1.0 and embedding.shape == (16,)
    assert engine.counts.windows > 8 and engine.counts.mixed == 1


def test_segments_come_as_they_are_final(encoder: Path, folder: Path, tmp_path: Path) -> None:
    engine = engine_of(encoder, folder, windows=Windows(seconds=2.0, context=0.5))
    recording = recordings_of(tone(tmp_path / "a.wav", 12.0, 4))[0][0]

    async def ask() -> list[Any]:
        async with aclosing(
            transcribe(engine, await engine.shelf.get(engine.catalog.find("elp-2")), recording)
        ) as parts:
            return [part async for part in parts]

    *parts, transcript = run(engine, ask)
    assert len(parts) > 2 and [s for part in parts for s in part] == list(transcript.segments)


def save_composition(
    encoder: Path, folder: Path, composition: Fuse | Route, sound: Recording
) -> tuple[SpeechAdapterModel, ModelOutput]:
    """A composition of ``folder``'s adapters, with a head, saved there as "both"; its model, and what that hears."""
    model = SpeechAdapterModel.from_pretrained(encoder)
    for name in ("houlsby-0", "houlsby-1"):
        model.load_adapter(folder / "adapters" / name, name)
    model.add_fusion(composition)
    with torch.no_grad():
        for parameter in model.fusions.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_fusion(next(iter(model.fusions)), folder / "fusions" / "both")
    model.add_head("asr", CTCHead())
    model.save_head("asr", folder / "heads" / "both")
    (heard,) = library_stitched(model.eval(), [sound])
    return model, heard


def test_compositions_and_whole_layers_are_served_beside_the_others(
    encoder: Path, sounds: list[Recording], tmp_path: Path
) -> None:
    make_adapters(encoder, tmp_path, 2, ("houlsby",))
    model, fused = save_composition(encoder, tmp_path, Fuse("houlsby-0", "houlsby-1"), sounds[2])
    model.add_adapter("full", "full")
    shake(model, "full")
    model.save_adapter("full", tmp_path / "adapters" / "full")
    model.add_head("emotion", ClassificationHead(labels=("a", "b")))
    model.save_head("emotion", tmp_path / "heads" / "full")
    model.eval()
    (full,) = library_stitched(model, [sounds[2]])

    engine = engine_of(encoder, tmp_path)
    names = [engine.catalog.find(name) for name in ("both", "fuse:houlsby-0+houlsby-1", "full", "houlsby-0")]
    assert names[0] is names[1] and names[0].method == "fuse" and list(names[0].members) == ["houlsby-0", "houlsby-1"]
    tasks = ["transcription", "transcription", "classification", "embedding"]

    async def ask() -> list[Any]:
        asked = zip(names, tasks, strict=True)
        return await asyncio.gather(*(output(engine, name, task, sounds[2]) for name, task in asked))

    answers = run(engine, ask)
    assert float((answers[0][0] - fused.logits).abs().max()) < 1e-5
    assert float((answers[2][0] - full.logits).abs().max()) < 1e-5
    assert difference(answers[3], alone(encoder, names[3], "embedding", sounds[2])) < 1e-5
    with pytest.raises(ConfigError, match="part of 'both'"):
        engine.catalog.remove("houlsby-0")


def test_a_composition_is_answered_of_what_was_read_and_nothing_else(
    encoder: Path, sounds: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of its files, and whatever goes wrong as it is attached."""
    make_adapters(encoder, tmp_path, 2, ("houlsby",))
    model, fused = save_composition(encoder, tmp_path, Fuse("houlsby-0", "houlsby-1"), sounds[2])
    engine = engine_of(encoder, tmp_path)
    both = engine.catalog.find("both")
    loaded = load(both, engine.encoder)
    with torch.no_grad():
        for parameter in model.fusions.parameters():
            parameter.add_(1.0)
    shutil.rmtree(tmp_path / "fusions")
    model.save_fusion(next(iter(model.fusions)), tmp_path / "fusions" / "both")
    with pytest.raises(CheckpointError, match="the fusion of 'both' has changed since it was added"):
        load(both, engine.encoder)
    slots = Slots(SpeechAdapterModel.from_pretrained(encoder), 4)
    with monkeypatch.context() as patched:
        patched.setattr(SavedFusion, "load_into", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                slots.alone(loaded)
        assert not slots.model.adapters and not slots.model.fusions
    slots.model.set_active(slots.alone(loaded))
    slots.model.add_head("asr", CTCHead())
    slots.model.head.load_state_dict(loaded.heads["transcription"].state_dict())
    (heard,) = library_stitched(slots.model.eval(), [sounds[2]])
    assert float((heard.logits - fused.logits).abs().max()) < 1e-5


def test_a_bank_is_served_with_its_versions_tags_and_a_router(
    encoder: Path, sounds: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    make_adapters(encoder, tmp_path, 3, ("houlsby",))
    _, routed = save_composition(encoder, tmp_path, Route("houlsby-0", "houlsby-1"), sounds[2])
    bank = Bank.create(tmp_path / "bank")
    head = "heads/houlsby-{}-transcription"
    for number in range(3):  # the third is newer than production
        bank.add(tmp_path / "adapters" / f"houlsby-{number}", "client/asr", head=tmp_path / head.format(number))
    bank.promote("client/asr@1")
    bank.add(tmp_path / "fusions" / "both", "client/routed", head=tmp_path / "heads" / "both")
    other = make_encoder(tmp_path / "other", "post-norm")
    make_adapters(other, tmp_path / "others", 1)
    lone = tmp_path / "others"
    bank.add(lone / "adapters" / "lora-0", "other/asr", head=lone / "heads" / "lora-0-transcription")

    engine = engine_of(encoder, bank.folder)
    assert re.search(r"bank: not served: other/asr@1 \(for .*other\)", caplog.text)
    find = engine.catalog.find
    newest, production, route = find("client/asr"), find("client/asr@production"), find("client/routed")
    assert [one.name for one in engine.catalog] == ["base", "client/asr@1", "client/asr", "client/routed"]
    assert find("client/asr@3") is find("bank:client/asr@latest") is newest and route.method == "route"
    assert production.name == "client/asr@1" and production.fingerprint != newest.fingerprint

    async def ask() -> list[Any]:
        asked = (output(engine, one, "transcription", sounds[2]) for one in (newest, production, route))
        return await asyncio.gather(*asked)

    answers = run(engine, ask)
    assert difference(answers[0], alone(encoder, newest, "transcription", sounds[2])) < 1e-5
    assert difference(answers[1], alone(encoder, production, "transcription", sounds[2])) < 1e-5
    assert float((answers[2][0] - routed.logits).abs().max()) < 1e-5

    monkeypatch.setenv("SPEECH_ADAPTERS_BANK", str(bank.folder))
    ((served, calls),) = read_place("bank:client/asr@production", engine.encoder)
    assert served.name == "client/asr@production" and served.key == production.key and calls == ()
    with pytest.raises(CheckpointError, match=r"nothing in this bank is for .*base; what it holds is for .*other"):
        list(read_place(_only(bank, "other/asr", tmp_path), engine.encoder))


def _only(bank: Bank, name: str, folder: Path) -> Path:
    """A bank that holds the newest version of one name."""
    chosen = Bank.create(folder / "chosen")
    chosen.add(bank.path(name), name)
    return chosen.folder


def test_a_broken_model_fails_its_own_requests_alone(
    encoder: Path, folder: Path, sounds: list[Recording], tmp_path: Path
) -> None:
    model = SpeechAdapterModel.from_pretrained(encoder)
    model.add_adapter("a", "lora")
    shake(model, "a")
    model.save_adapter("a", tmp_path / "adapters" / "broken")
    model.add_head("asr", CTCHead())
    with torch.no_grad():
        model.heads["asr"].linear.weight.fill_(3e38)
    model.save_head("asr", tmp_path / "heads" / "broken")
    engine = engine_of(encoder, folder, tmp_path, deadline=0.1)
    names = ["lora-0", "broken", "elp-2", "houlsby-1"]

    async def ask() -> list[Any]:
        served = [engine.catalog.find(name) for name in names]
        asked = (output(engine, one, "transcription", sounds[0]) for one in served)
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = run(engine, ask)
    assert isinstance(answers[1], CheckpointError) and "not finite" in str(answers[1])
    for name, answer in zip(names, answers, strict=True):
        if name != "broken":
            served = engine.catalog.find(name)
            assert difference(answer, alone(encoder, served, "transcription", sounds[0])) < 1e-5


def test_who_goes_away_leaves_the_queue(encoder: Path, folder: Path, tmp_path: Path) -> None:
    engine = engine_of(encoder, folder, windows=Windows(seconds=1.0, context=0.1), deadline=30.0)
    recording = recordings_of(tone(tmp_path / "a.wav", 20.0, 5))[0][0]

    async def ask() -> tuple[int, int]:
        served = engine.catalog.find("lora-0")
        loaded = await engine.shelf.get(served)
        hearing = asyncio.create_task(anext(engine.hear(loaded, "transcription", Source(recording, 100.0))))
        while len(engine.queue) < engine.settings.ahead:
            await asyncio.sleep(0.01)
        waiting = len(engine.queue)
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        engine.queue.close()
        assert await engine.queue.batch() == []
        return waiting, len(engine.queue)

    waiting, left = run(engine, ask)
    assert waiting == engine.settings.ahead and left == 0 and engine.counts.windows == 0


def test_with_a_broken_enrolment_the_others_are_heard_no_further(encoder: Path, folder: Path, tmp_path: Path) -> None:
    engine = engine_of(encoder, folder, windows=Windows(seconds=1.0, context=0.1), deadline=30.0)
    long = recordings_of(tone(tmp_path / "a.wav", 20.0, 5))[0][0]
    broken = recordings_of(tone(tmp_path / "b.wav", 1.0, 5))[0][0]
    (tmp_path / "b.wav").unlink()

    async def ask() -> None:
        loaded = await engine.shelf.get(engine.catalog.find("lora-0"))
        others = asyncio.all_tasks()
        with pytest.raises(AudioError, match=r"b\.wav"):
            await verify_speaker(engine, loaded, [long, broken], long)
        assert asyncio.all_tasks() == others

    run(engine, ask)


def test_a_changed_adapter_is_not_served_under_the_old_fingerprint(
    encoder: Path, sounds: list[Recording], tmp_path: Path
) -> None:
    make_adapters(encoder, tmp_path, 1)
    engine = engine_of(encoder, tmp_path)
    model = SpeechAdapterModel.from_pretrained(encoder)
    model.load_adapter(tmp_path / "adapters" / "lora-0", "a")
    shake(model, "a")
    model.save_adapter("a", tmp_path / "adapters" / "lora-0")

    async def ask() -> Any:
        return await output(engine, engine.catalog.find("lora-0"), "embedding", sounds[0])

    with pytest.raises(CheckpointError, match="changed since it was added"):
        run(engine, ask)


def test_models_are_found_by_their_names(encoder: Path, folder: Path) -> None:
    catalog = engine_of(encoder, folder).catalog
    assert catalog.find("base:lora-0") is catalog.find("lora-0") is catalog.find(f"{encoder}:lora-0")
    assert catalog.find("base").method == "base" and len(catalog) == 17
    with pytest.raises(UnknownModel, match="did you mean 'lora-0'"):
        catalog.find("lora_0")
    with pytest.raises(UnknownModel, match="did you mean 'houlsby-1' or 'houlsby-13' or 'houlsby-5'"):
        catalog.find("houlsby")
    with pytest.raises(UnknownModel, match="did you mean 'elp-2'"):
        catalog.find("base:el", allowed=["elp-2", "lora-0"])
    with pytest.raises(UnknownModel, match="GET /v1/models"):
        catalog.find("lora-0", allowed=["elp-2"])
    with pytest.raises(UnknownModel):
        catalog.find("other:lora-0")


def test_an_adapter_without_a_head_is_warned_of(
    encoder: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "served")
    for head in (tmp_path / "served" / "heads").glob("lora-0-*"):
        shutil.rmtree(head)
    add_place(engine_of(encoder), tmp_path / "served")
    warned = [record.getMessage() for record in caplog.records if "no head near it" in record.getMessage()]
    assert len(warned) == 1 and warned[0].startswith(str(tmp_path / "served" / "adapters" / "lora-0"))


def test_two_runs_with_adapters_of_one_name_are_served_under_names_of_their_own(encoder: Path, tmp_path: Path) -> None:
    for run in ("one", "two"):
        make_adapters(encoder, tmp_path / run, 2)
    engine = engine_of(encoder)
    add_place(engine, f"desk={tmp_path / 'one'}")
    with pytest.raises(CheckpointError, match="served already; call one of the two otherwise"):
        add_place(engine, f"desk={tmp_path / 'two'}")
    add_place(engine, f"phone={tmp_path / 'two'}")
    own = {served.name for served, _ in read_place(tmp_path / "one", engine.encoder)}
    names = {model.name for model in engine.catalog} - {engine.catalog.base}
    assert len(own) == 2 and names == {f"{run}-{name}" for run in ("desk", "phone") for name in own}
    make_adapters(encoder, tmp_path / "three", 1)
    ((served, _),) = read_named(f"third={tmp_path / 'three'}", engine.encoder)
    assert served.name == "third"


def test_a_named_run_s_own_adapter_has_the_name_alone(encoder: Path, tmp_path: Path) -> None:
    make_adapters(encoder, tmp_path / "run", 2)
    (tmp_path / "run" / "results.json").write_text('{"adapter": "houlsby-1"}')
    engine = engine_of(encoder)
    add_place(engine, f"mood={tmp_path / 'run'}")
    assert {model.name for model in engine.catalog} == {engine.catalog.base, "mood", "mood-lora-0"}
    assert engine.catalog.find("mood").adapter == tmp_path / "run" / "adapters" / "houlsby-1"


def test_heads_on_the_base_alone_are_told_apart(encoder: Path, tmp_path: Path) -> None:
    model = SpeechAdapterModel.from_pretrained(encoder)
    for seed, name in enumerate(("desk", "phone")):
        torch.manual_seed(seed)
        model.add_head(name, CTCHead())
        model.save_head(name, tmp_path / "one" / "heads" / name)
    model.add_adapter("mood", "head-only")
    model.add_head("mood", ClassificationHead(labels=("calm", "joy")))
    for save, kind in ((model.save_adapter, "adapters"), (model.save_head, "heads")):
        save("mood", tmp_path / "two" / kind / "mood")
    served = engine_of(encoder, tmp_path / "one", tmp_path / "two").catalog
    prints = {served.find(name).fingerprint for name in ("desk", "phone", "mood", served.base)}
    assert len(prints) == 4 and {served.find(name).method for name in ("desk", "mood")} == {"head_only"}
    for name in ("desk", "mood"):
        assert load(served.find(name), model.encoder).heads


def test_what_cannot_be_served_is_refused_at_the_start(encoder: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        base_of(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="no such folder"):
        engine_of(encoder, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no adapters/NAME"):
        engine_of(encoder, tmp_path / "empty")
    alone = tmp_path / "alone"
    make_adapters(encoder, alone, 2)
    for name in ("adapter.json", "adapter_model.safetensors", "adapter_config.json"):
        (alone / "adapters" / "lora-0" / name).unlink()
    with pytest.raises(CheckpointError, match=r"lora-0-classification.*trained on none of the adapters"):
        engine_of(encoder, alone)
    weights = alone / "adapters" / "houlsby-1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cut short or changed"):
        engine_of(encoder, alone)


def test_a_folder_that_a_run_saves_into_meanwhile_is_served(
    encoder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, having = SpeechAdapterModel.from_pretrained(encoder).encoder, catalog._having
    saved = [
        f"{kind}/lora-{number}{end}"
        for number in (0, 4)
        for kind, end in (("adapters", ""), ("heads", "-transcription"))
    ]
    for name in saved[:2]:
        shutil.copytree(folder / name, tmp_path / name)
    missing = saved[2:]

    def then_saved(*arguments: Any) -> list[Path]:
        found = having(*arguments)
        while missing:  # the adapter, then the head that was trained on it
            shutil.copytree(folder / missing[0], tmp_path / missing.pop(0))
        return found

    monkeypatch.setattr(catalog, "_having", then_saved)
    assert {served.name: set(served.heads) for served, _ in read_folder(tmp_path, base)} == {
        "lora-0": {"transcription"},
        "lora-4": set(),
    }


def test_classifying_without_such_a_head_says_what_there_is(encoder: Path, folder: Path, sounds: Any) -> None:
    engine = engine_of(encoder, folder)

    async def ask() -> Any:
        return await classify(engine, await engine.shelf.get(engine.catalog.find("base")), sounds[0])

    with pytest.raises(UnsupportedTask, match="does no classification; it does: embedding"):
        run(engine, ask)


# ---------------------------------------------------------------------- the queue

LENGTHS = st.lists(st.tuples(st.floats(0.1, 20.0), st.integers(0, 3), st.booleans()), min_size=1, max_size=30)


def waiting(lengths: list[tuple[float, int, bool]], since: float = 0.0) -> list[Waiting]:
    found = []
    for number, (seconds, adapter, composed) in enumerate(lengths):
        members = {"x": Path("x")} if composed else {}
        served = Served(name=f"{adapter}", key=f"{adapter}{composed}", fingerprint="", method="", size=0, created=0)
        loaded = Loaded(served, members=members)  # type: ignore[arg-type]
        window = Window(torch.zeros(round(16000 * seconds)), 0, 0, round(16000 * seconds))
        future = asyncio.get_running_loop().create_future()
        found.append(Waiting(window, loaded, "transcription", future, "a", since=since + number))
    return found


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_batches_are_full_but_not_too_full_and_nobody_starves(lengths: list[tuple[float, int, bool]]) -> None:
    async def drain() -> None:
        queue = BatchQueue(seconds=30.0, deadline=0.0, most=2)
        items = waiting(lengths)
        for item in items:
            queue.put(item)
        left = list(items)
        while left:
            batch = await queue.batch()
            assert left[0] in batch  # the oldest
            assert len({item.lane for item in batch}) == 1
            assert len({item.loaded.served.key for item in batch}) <= 2
            longest = max(item.window.seconds for item in batch)
            assert len(batch) == 1 or longest * len(batch) <= 30.0
            left = [item for item in left if item not in batch]
        queue.close()
        assert await queue.batch() == []

    asyncio.run(drain())


def test_a_batch_closes_when_it_is_full_or_when_its_oldest_has_waited() -> None:
    async def check() -> None:
        queue = BatchQueue(seconds=4.0, deadline=3600.0, most=8)
        items = waiting([(1.5, 0, False), (1.5, 1, False), (1.5, 2, False)], time.monotonic())
        queue.put(items[0])
        closing = asyncio.create_task(queue.batch())
        await asyncio.sleep(0.01)
        assert not closing.done()  # there is room, and time
        queue.put(items[1])
        assert await closing == items[:2]  # a third would not fit
        queue = BatchQueue(seconds=4.0, deadline=0.05, most=8)
        queue.put(items[2])
        assert await queue.batch(clock=lambda: 1e9) == items[2:]  # long past

    asyncio.run(check())
