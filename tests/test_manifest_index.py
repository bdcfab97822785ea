"""Manifests with an index, and audio in shards: the same utterances, batches and weights as without."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_corpora import speak
from test_training import HEAD, Killed, kill_at, make_model, run_training

from speech_adapters.cli.verbs import run_verb
from speech_adapters.data import manifest_index
from speech_adapters.data.audio import audio_info, read_audio, stream_audio
from speech_adapters.data.audio_files import audio_hashes, identity
from speech_adapters.data.batches import LengthBatches, SpeechDataset, training_loader
from speech_adapters.data.formats.webdataset import read, write
from speech_adapters.data.manifest import Manifest, Utterance, check_disjoint
from speech_adapters.data.manifest_index import IndexedLines
from speech_adapters.errors import AudioError, ManifestError


@pytest.fixture
def plain(tmp_path: Path) -> Manifest:
    """Twelve utterances of three recordings, read from a file without an index."""
    utterances = []
    for number in range(12):
        audio = tmp_path / "wav" / f"{number % 3}.wav"
        if not audio.exists():
            speak(audio, 2.0)
        texts = {"text": "YES" * (number % 2 + 1), "speaker": f"s{number % 4}", "domain": "é" if number % 3 else None}
        extra = {"room": number} if number else {}
        utterances.append(Utterance(f"u{number}", audio, 0.6 + 0.05 * number, 0.01 * number, **texts, extra=extra))
    path = tmp_path / "train.jsonl"
    Manifest(utterances).write(path)
    path.write_bytes(
        b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\n\n", 3)
    )  # blank lines, a mark at the start
    return Manifest.read(path)


@pytest.fixture
def indexed(plain: Manifest) -> Manifest:
    manifest = Manifest.make_index(plain.name)
    assert isinstance(manifest._utterances, IndexedLines)
    return manifest


def test_an_index_is_never_of_lines_that_were_replaced_meanwhile(plain: Manifest, monkeypatch) -> None:
    check, turned = manifest_index._check_ids, Manifest(list(plain)[::-1], plain.name)

    def replaced(*arguments):
        turned.write(plain.name)  # after the lines were read, before the index is written
        return check(*arguments)

    monkeypatch.setattr(manifest_index, "_check_ids", replaced)
    with pytest.raises(ManifestError, match="has changed since its index was made"):
        Manifest.make_index(plain.name)
    monkeypatch.undo()
    assert list(Manifest.make_index(plain.name)) == list(turned)
    hashes = manifest_index.audio_hashes

    def replaced_after(paths):
        found = hashes(paths)
        plain.write(plain.name)  # after the look at what it holds
        return found

    monkeypatch.setattr(manifest_index, "audio_hashes", replaced_after)
    assert list(Manifest.read(plain.name)) == list(turned)


def test_an_index_changes_nothing_of_what_a_manifest_says(plain: Manifest, indexed: Manifest) -> None:
    assert list(indexed) == list(plain) and indexed == plain and hash(indexed) == hash(plain)
    for key in ("speaker", "domain", "label", "text", "room"):
        assert indexed.values(key) == plain.values(key)
    assert (indexed.hours, indexed.summary()) == (plain.hours, plain.summary())
    assert indexed.durations.tolist() == plain.durations.tolist()
    assert indexed.content_keys() == plain.content_keys()
    for chosen, other in zip(parts(indexed), parts(plain), strict=True):
        assert isinstance(chosen._utterances, IndexedLines) and chosen == other
        assert (chosen.values("speaker"), chosen.summary()) == (other.values("speaker"), other.summary())
    assert indexed[-1] == plain[-1]
    with pytest.raises(IndexError):
        indexed[12]
    assert indexed.map(lambda u: replace(u, text="NO")) == plain.map(lambda u: replace(u, text="NO"))
    assert len({indexed.sha256, indexed[:5].sha256, indexed[:6].sha256}) == 3
    with pytest.raises(ManifestError, match="utterance 'u0': lacks 'room'"):
        Manifest.read(plain.name, require=("text", "room"))
    with pytest.raises(ManifestError, match="shares 3 speakers with"):
        check_disjoint(indexed[:3], indexed)


def parts(manifest: Manifest) -> list[Manifest]:
    return [
        manifest[3:9],
        manifest.filter(lambda u: u.speaker != "s1"),
        manifest.subset(hours=5 / 3600, seed=1),
        manifest.subset(size=4)[1:],
        manifest.with_channel(0),
        Manifest.read(manifest.name, ("text",), channel="mix"),
    ]


def test_batches_and_audio_are_the_same_in_other_processes_too(plain: Manifest, indexed: Manifest) -> None:
    found = []
    for manifest, workers in ((plain, 0), (indexed, 0), (indexed, 2)):
        dataset = SpeechDataset(manifest, HEAD.target, keep_in_memory=False)
        batches = LengthBatches(dataset.durations, 4.0, seed=1)
        found.append(list(training_loader(dataset, batches, epoch=1, start=1, workers=workers)))
    for each in found[1:]:
        assert len(each) == len(found[0]) > 1
        for one, other in zip(each, found[0], strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("waveforms", "lengths", "targets", "indices"))
    again = pickle.loads(pickle.dumps(indexed[2:]))
    assert again == plain[2:] and len(pickle.dumps(indexed)) < 1000


def test_a_manifest_that_changed_and_a_broken_index_are_noticed(indexed: Manifest) -> None:
    path, index = Path(indexed.name), Path(f"{indexed.name}.index")
    content = index.read_bytes()
    for broken in (content[:-100], content[:10], b"", content.replace(b'"format": 1', b'"format": 9')):
        index.write_bytes(broken)
        with pytest.raises(ManifestError, match="train.jsonl.index: cannot be used .* manifest index"):
            Manifest.read(path)
    index.write_bytes(content)
    path.write_bytes(path.read_bytes().replace(b"YES", b"YEA"))
    with pytest.raises(ManifestError, match="has changed since its index was made; make it again: .* manifest index"):
        Manifest.read(path)
    assert run_verb("speech_adapters.cli.manifest.index", "index", [str(path)]) in (0, None)
    assert Manifest.read(path)[0].text == "YEA"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], ":1: empty manifest"),
        (["{"], ":1: not JSON"),
        (['{"audio_filepath": "a.wav", "duration": 1}'] * 2, "id 'a' of utterance 2 repeats that of utterance 1"),
        (['{"audio_filepath": "a.wav", "duration": 1}', '{"duration": 2}', "[]"], ":2: lacks 'audio_filepath'"),
    ],
)
def test_what_is_wrong_is_said_when_the_index_is_made(lines: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ManifestError, match=said):
        Manifest.make_index(path)
    assert not list(tmp_path.glob("*.index*"))


VALUES = st.one_of(st.none(), st.text(min_size=1, max_size=5).filter(str.isprintable))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.tuples(st.floats(0.01, 1e4), VALUES, VALUES), min_size=1, max_size=20))
def test_any_manifest_is_the_same_with_an_index(lines: list[tuple], tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.with_name("m.jsonl.index").unlink(missing_ok=True)
    entries = [
        {"id": f"{n}", "audio_filepath": "a.wav", "duration": d, "speaker": s, "x": x} for n, (d, s, x) in
        enumerate(lines)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(entry, ensure_ascii=n % 2 == 0) + "\n" for n, entry in enumerate(entries)))
    plain = Manifest.read(path)
    indexed = Manifest.make_index(path)
    assert list(indexed) == list(plain) and indexed.summary() == plain.summary()
    assert indexed.speakers == plain.speakers and np.array_equal(indexed.durations, plain.durations)


@pytest.mark.slow
def test_training_from_indexed_shards_ends_with_the_same_bits_after_a_kill(plain: Manifest, tmp_path: Path) -> None:
    whole = plain.map(lambda u: replace(u, offset=0.0, duration=2.0))
    write(whole, tmp_path / "shards")
    read(tmp_path / "shards").write(tmp_path / "sharded.jsonl")
    sharded = Manifest.make_index(tmp_path / "sharded.jsonl")
    options = {"updates": 8, "save_minutes": 0}
    expected, _, _ = run_training(whole, tmp_path / "expected", **options)
    for killed_at in (3, 4):
        model = make_model()
        kill_at(model, killed_at)
        with pytest.raises(Killed):
            run_training(sharded, tmp_path / "part", model, **options)
    again, _, _ = run_training(sharded, tmp_path / "part", **options)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in expected.state_dict().items())


# ---------------------------------------------------------------------- shards


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    speak(tmp_path / "a.wav", 1.5)
    return tmp_path / "a.wav"


def test_members_of_shards_are_audio_files(audio: Path, tmp_path: Path) -> None:
    content = audio.read_bytes()
    described = json.dumps({"transcript": "NO", "spk_id": 7, "room": "b", "audio": "elsewhere.wav"}).encode()
    shard(tmp_path / "0.tar", {"x/1.wav": content, "x/1.json": described, "2.wav": content, "2.txt": b"YES\n",
                               "2.cls": b"joy", "2.npy": b"left alone"})  # fmt: skip
    manifest = read(tmp_path)
    assert [(u.id, u.text, u.speaker, u.label, u.extra, u.duration) for u in manifest] == [
        ("0-x-1", "NO", "7", None, {"room": "b"}, 1.5),
        ("0-2", "YES", None, "joy", {}, 1.5),
    ]
    manifest.write(tmp_path / "m.jsonl")
    for utterance in Manifest.read(tmp_path / "m.jsonl", check_files=True):
        assert torch.equal(utterance.waveform(), read_audio(audio))
        path = utterance.audio_filepath
        assert audio_info(path) == audio_info(audio) and audio_hashes([path]) == audio_hashes([audio])
        assert torch.equal(torch.cat(list(stream_audio(path, offset=0.5))), read_audio(audio, offset=0.5))
        assert identity(path) == identity(tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.json": b"{}"}, "1: 0 recordings"),
        ({"1.wav": b"", "1.flac": b""}, "1: 2 recordings"),
        ({"1.wav": b"", "1.json": b"["}, "1: its .json, .txt or .cls cannot be read"),
        ({"1.wav": b"", "1.json": b"[]"}, "1: its .json, .txt or .cls cannot be read"),
        (
            {"1.wav": b"", "1.json": b'{"text": "a", "transcript": "b"}'},
            "'transcript' and another could both hold text",
        ),
        ({"1.wav": b"no audio"}, "corrupt, or not audio"),
    ],
)
def test_what_is_wrong_in_a_shard(members: dict[str, bytes], said: str, tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", members)
    with pytest.raises(ManifestError, match=said):
        read(tmp_path)


def test_shards_that_are_none_or_cut_short(audio: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no shards"):
        read(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"\x1f\x8b compressed")
    with pytest.raises(ManifestError, match="no tar file that can be read"):
        read(tmp_path)
    path = shard(tmp_path / "0.tar", {"1.wav": audio.read_bytes()})
    (utterance,) = read(path)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(AudioError, match="the archive ends before"):
        utterance.waveform()
    path.unlink()
    with pytest.raises(AudioError, match="cannot be read .No such file"):
        utterance.waveform()
