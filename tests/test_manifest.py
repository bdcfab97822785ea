"""Manifests and trial lists: what is read, kept and written; what each broken line is told; subsets and splits."""

from __future__ import annotations

import json
import os
import pickle
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_adapters.data import audio_files
from speech_adapters.data.audio import write_audio
from speech_adapters.data.corpus_check import check_apart, check_corpus, corpus_notes
from speech_adapters.data.manifest import Manifest, Utterance, check_disjoint, equal_shares
from speech_adapters.errors import ManifestError


def line(**changes: object) -> str:
    entry = {"audio_filepath": "audio/a.wav", "duration": 1.5, "text": "HELLO"} | changes
    return json.dumps({key: value for key, value in entry.items() if value is not ...})


def make(count: int, **fields: object) -> Manifest:
    return Manifest(Utterance(f"u{i}", Path(f"/x/u{i}.wav").absolute(), 1.0 + i, **fields) for i in range(count))


def write_lines(folder: Path, *lines: str, name: str = "m.jsonl") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def test_reads_nemo_lines_and_keeps_extras(tmp_path: Path):
    path = write_lines(tmp_path, line(speaker=84, offset=2, emotion="sad", gender="F", snr=3.5), "", line(id="b"))
    first, second = Manifest.read(path, require=("text",))
    assert first == Utterance(
        "a-2.000",
        tmp_path / "audio" / "a.wav",
        1.5,
        2.0,
        text="HELLO",
        speaker="84",
        emotion="sad",
        extra={"gender": "F", "snr": 3.5},
    )
    assert second.id == "b" and second.speaker is None
    assert first.get("gender") == "F" and first.get("text") == "HELLO" and first.get("nothing") is None


BAD_LINES = {
    "not JSON": ("{audio", "not JSON"),
    "NaN": ('{"audio_filepath": "a.wav", "duration": NaN}', "not JSON .*NaN"),
    "a list": ("[1, 2]", "a list; each line must be one JSON object"),
    "no path": (line(audio_filepath=...), "lacks 'audio_filepath'"),
    "no duration": (line(duration=...), "lacks 'duration'"),
    "no text": (line(text=...), "lacks 'text', which this task needs"),
    "path type": (line(audio_filepath=3), "audio_filepath is 3"),
    "duration type": (line(duration="1.5"), "duration is '1.5', expected seconds as a number"),
    "duration bool": (line(duration=True), "duration is True"),
    "zero duration": (line(duration=0), "duration is 0 s, expected more than 0"),
    "negative duration": (line(duration=-2.5), "duration is -2.5 s"),
    "negative offset": (line(offset=-1), "offset is -1 s"),
    "text type": (line(text=["HELLO"]), "text is \\['HELLO'\\], expected a string"),
    "repeated id": (line(id="first"), "id 'first' repeats that of line 1"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_broken_line_is_named(tmp_path: Path, name: str):
    bad, message = BAD_LINES[name]
    path = write_lines(tmp_path, line(id="first"), "", bad)
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.read(path, require=("text",))
    assert str(caught.value).startswith(f"{path}:3: ")


def test_unreadable_manifests(tmp_path: Path):
    with pytest.raises(ManifestError, match=r"m\.jsonl:1: empty manifest"):
        Manifest.read(write_lines(tmp_path, "", ""))
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.read(tmp_path / "missing.jsonl")
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.read(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(line(text="é").encode("utf-8").replace(b"\\u00e9", b"\xe9"))
    with pytest.raises(ManifestError, match="not UTF-8"):
        Manifest.read(tmp_path / "latin.jsonl")


def test_check_audio(tmp_path: Path):
    write_audio(tmp_path / "a.wav", torch.zeros(16_000))
    good = write_lines(tmp_path, line(audio_filepath="a.wav", duration=1.0))
    assert Manifest.read(good, check_files=True).check_audio()[0].duration == 1.0
    long = write_lines(tmp_path, line(audio_filepath="a.wav", duration=1.0, offset=0.5))
    with pytest.raises(ManifestError, match=r"'a-0.500': .*a\.wav: 1.500 s asked .* ends at 1.000 s"):
        Manifest.read(long, check_files=True)
    gone = write_lines(tmp_path, line(audio_filepath="b.wav"))
    with pytest.raises(ManifestError, match=r"m\.jsonl: utterance 'b': .*b\.wav: no such audio file"):
        Manifest.read(gone, check_files=True)
    assert len(Manifest.read(gone)) == 1, "files are looked at on request only"


def test_write_makes_paths_relative_and_reads_back_equal(tmp_path: Path):
    path = write_lines(tmp_path, line(speaker="s", offset=1.0, gender="F", text="É\u2028X"), line(id="b", lang="en"))
    manifest = Manifest.read(path)
    copy = tmp_path / "deep" / "er" / "copy.jsonl"
    manifest.write(copy)
    assert Manifest.read(copy) == manifest
    assert json.loads(copy.read_text(encoding="utf-8").split("\n")[0])["audio_filepath"] == "../../audio/a.wav"
    assert [entry.name for entry in copy.parent.iterdir()] == ["copy.jsonl"]


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            dict,
            text=st.none() | st.text(),
            speaker=st.none() | st.text(st.characters(exclude_categories=("Cs", "Cc"))),
            duration=st.floats(0.01, 1e4),
            offset=st.just(0.0) | st.floats(0, 100),
            extra=st.dictionaries(st.text().map("x_".__add__), st.integers() | st.text() | st.booleans(), max_size=2),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_content_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, entries: list[dict]):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    manifest = Manifest(Utterance(f"u{i}", path.parent / f"{i}.wav", **entry) for i, entry in enumerate(entries))
    manifest.write(path)
    assert Manifest.read(path) == manifest


def test_write_refuses_repeated_ids(tmp_path: Path):
    with pytest.raises(ManifestError, match="id 'u0' is repeated"):
        Manifest([*make(1), *make(1)]).write(tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match="id 'u0' is repeated"):
        make(1) + make(2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["inside", "elsewhere"])
def test_audio_is_found_through_links_however_the_manifest_was_written(tmp_path: Path, there: str):
    real, link = tmp_path / "disk" / "a" / "corpus", tmp_path / "home" / "corpus"
    real.mkdir(parents=True)
    link.parent.mkdir()
    link.symlink_to(real)
    audio = (link if there == "inside" else tmp_path / "audio") / "wav" / "u.wav"
    audio.parent.mkdir(parents=True)
    write_audio(audio, torch.full((16_000,), 0.1))
    Manifest([Utterance("u", audio, 1.0)]).write(link / "m.jsonl")
    for path in (link / "m.jsonl", real / "m.jsonl"):
        (found,) = Manifest.read(path, check_files=True)
        assert found.audio_filepath.samefile(audio)
    assert Manifest.read(link / "m.jsonl")[0].audio_filepath == audio
    if there == "inside":  # the folder may move
        (tmp_path / "disk" / "a").rename(tmp_path / "disk" / "b")
        Manifest.read(tmp_path / "disk" / "b" / "corpus" / "m.jsonl", check_files=True)
    else:  # as other programs read it
        (real / "m.jsonl").write_text('{"audio_filepath": "../../../audio/wav/u.wav", "duration": 1.0}\n')
        assert Manifest.read(link / "m.jsonl", check_files=True)[0].audio_filepath == audio


def test_a_manifest_is_a_value():
    manifest = make(5, speaker="a")
    assert manifest[1:3] == Manifest(list(manifest)[1:3])
    assert len(manifest.filter(lambda u: u.duration > 2)) == 3 and len(manifest) == 5
    assert manifest.map(lambda u: replace(u, speaker="b")).speakers == ("b",)
    assert manifest.hours == pytest.approx(15 / 3600)
    assert pickle.loads(pickle.dumps(manifest)) == manifest
    with pytest.raises(AttributeError):
        manifest[0].text = "X"


def test_require():
    assert make(2, text="A").require("text")
    with pytest.raises(ManifestError, match="utterance 'u0': lacks 'emotion'"):
        make(2, text="A").require("text", "emotion")


def test_a_blank_class_is_a_missing_one(tmp_path: Path):
    base = tone(tmp_path / "a.wav", 0.1)
    said = ("sad", "sad", "calm", "", "  ")
    path = write_lines(tmp_path, *(line(**base, id=str(n), emotion=emotion) for n, emotion in enumerate(said)))
    with pytest.raises(ManifestError, match=r":4: lacks 'emotion', which.*\n.*:5: lacks 'emotion'"):
        Manifest.read(path, require=("emotion",))
    manifest = Manifest.read(path)
    assert manifest.values("emotion") == ("calm", "sad") and "emotion: calm 1, sad 2" in manifest.summary()
    (finding,) = check_corpus([manifest])
    assert finding.endswith("utterance '3', '4': no emotion where most lines have one")
    Manifest.make_index(path)
    with pytest.raises(ManifestError, match="utterance '3': lacks 'emotion'"):
        Manifest.read(path, require=("emotion",))
    assert Manifest.read(path).values("emotion") == ("calm", "sad")
    assert make(1, text="").require("text"), "nothing said is a transcript"


def test_whole_numbers_are_classes_under_every_key(tmp_path: Path):
    whole = [line(id=str(n), count=n % 2, label=n % 2) for n in range(3)]
    manifest = Manifest.read(write_lines(tmp_path, *whole), require=("count", "label"))
    assert manifest.values("count") == manifest.values("label") == ("0", "1")
    assert manifest[1].get("count") == "1" and manifest[1].extra == {"count": 1}, "what is written again is as it was"


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"a": 1}])
def test_what_names_no_class_is_told_by_line_and_key(tmp_path: Path, value: object):
    path = write_lines(tmp_path, line(id="a", count="b"), line(id="b", count=value))
    with pytest.raises(
        ManifestError, match=r":2: count is .*, which is not the name of a class; write text or a whole number"
    ):
        Manifest.read(path, require=("count",))
    with pytest.raises(ManifestError, match=r"utterance 'b': count is .*, which is not the name of a class"):
        Manifest.read(path).values("count")
    Manifest.make_index(path)
    with pytest.raises(ManifestError, match=r"utterance 'b': count is .*, which is not the name of a class"):
        Manifest.read(path, require=("count",))


def test_sha256_follows_the_content(tmp_path: Path):
    manifest = make(3, text="A")
    moved = manifest.map(lambda u: replace(u, audio_filepath=tmp_path / u.audio_filepath.name))
    assert moved.sha256 == manifest.sha256
    assert manifest.map(lambda u: replace(u, text="B")).sha256 != manifest.sha256
    assert manifest[:2].sha256 != manifest.sha256


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.floats(0.001, 0.3), st.integers(0, 9))
def test_equal_shares_take_as_much_of_each(counts: list[int], hours: float, seed: int):
    manifests = [
        make(count).map(lambda u, n=n: replace(u, id=f"{n}{u.id}", domain=str(n))) for n, count in enumerate(counts)
    ]
    longest = max(u.duration for manifest in manifests for u in manifest) / 3600
    pool = equal_shares(manifests, hours, seed)
    assert pool == equal_shares(manifests, hours, seed)
    for number, manifest in enumerate(manifests):
        own = pool.filter(lambda u, n=number: u.domain == str(n))
        assert abs(own.hours - hours / len(counts)) <= 1.01 * longest
        assert len(own)
        assert {u.audio_filepath for u in own} <= {u.audio_filepath for u in manifest}
        if manifest.hours < hours / len(counts):
            assert set(manifest) <= set(own), "all of a short one"
        if 2 * manifest.hours < hours / len(counts):
            assert len(own) >= 2 * len(manifest), "and again"


def test_nothing_has_no_share():
    with pytest.raises(ManifestError, match="nothing: no audio"):
        equal_shares([make(3), Manifest([], "nothing")], 0.1)


def test_subsets_are_seeded_and_nested():
    manifest = make(50)
    part = manifest.subset(size=10, seed=1)
    assert part == manifest.subset(size=10, seed=1) != manifest.subset(size=10, seed=2)
    assert set(part) < set(manifest.subset(size=20, seed=1)), "budgets grow by adding"
    assert [u.id for u in part] == [u.id for u in manifest if u in set(part)], "order is kept"
    half_hour = manifest.subset(hours=0.1, seed=3)
    assert 0.08 < half_hour.hours <= 0.1
    assert set(manifest.subset(hours=0.05, seed=3)) < set(half_hour)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs hours= or size="),
        ({"size": 1, "hours": 1.0}, "only one"),
        ({"size": 6}, "size=6 but there are 5"),
        ({"size": 0}, "more than 0"),
        ({"hours": 1e-6}, "no utterance fits"),
    ],
)
def test_bad_subsets(arguments: dict, message: str):
    with pytest.raises(ManifestError, match=message):
        make(5).subset(**arguments)


def test_check_disjoint_lists_the_leak():
    train = Manifest((Utterance(f"t{i}", Path("/x"), 1.0, speaker=f"s{i}") for i in range(9)), "train.jsonl")
    test = Manifest((Utterance(f"e{i}", Path("/x"), 1.0, speaker=f"s{i}") for i in range(2, 12)), "test.jsonl")
    leak = r"train\.jsonl: shares 7 speakers with test\.jsonl: 's2', 's3'.*\.\.\."
    with pytest.raises(ManifestError, match=leak):
        check_disjoint(train, test)
    check_disjoint(train, test.filter(lambda u: u.speaker > "s8" or u.speaker < "s2"))
    check_disjoint(train, test, key="text")


def test_check_apart_finds_what_is_heard_twice_where_speakers_do_not_tell():
    train = Manifest((Utterance(f"t{i}", Path(f"/{i}.wav"), 1.0) for i in range(3)), "train.jsonl")
    test = Manifest((Utterance(f"e{i}", Path(f"/{i}.wav"), 1.0, speaker=f"{i}") for i in range(2, 5)), "test.jsonl")
    with pytest.raises(ManifestError, match=r"train\.jsonl: shares the audio of 1 utterance with test\.jsonl: 't2'"):
        check_apart(train, test)
    later, left = (test.map(lambda u, new=new: replace(u, **new)) for new in ({"offset": 1.0}, {"channel": 0}))
    check_apart(train, later)  # other seconds of the recording
    check_apart(train.map(lambda u: replace(u, channel=1)), left)
    check_apart(train, test.map(lambda u: replace(u, offset=0.6)))  # who is interrupted, and who interrupts
    with pytest.raises(ManifestError, match="shares the audio of 1 utterance"):
        check_apart(train, test.map(lambda u: replace(u, offset=0.4)))
    known = train.map(lambda u: replace(u, speaker="2"))
    with pytest.raises(ManifestError, match="shares 1 speaker"):
        check_apart(known, later)
    check_apart(known, later, speakers=False)
    with pytest.raises(ManifestError, match="shares the audio of 1 utterance"):
        check_apart(known, test, speakers=False)


def test_summary_is_one_line():
    summary = make(3, speaker="a", emotion="sad", domain="studio").summary()
    assert summary == "3 utterances; 0.1 min; 1 speaker; domain: studio 3; emotion: sad 3"


@pytest.mark.skipif("SPEECH_ADAPTERS_DATA" not in os.environ, reason="SPEECH_ADAPTERS_DATA names no real speech")
def test_real_manifests():
    folder = Path(os.environ["SPEECH_ADAPTERS_DATA"]) / "manifests"
    train, dev, test = (
        Manifest.read(folder / f"asr_librispeech_{split}.jsonl", require=("text", "speaker"), check_files=check)
        for split, check in (("train", False), ("dev", True), ("test", False))  # hours take their time
    )
    check_disjoint(train, dev)
    check_disjoint(train, test)
    assert 0.9 < train.subset(hours=1, seed=1).hours <= 1


def test_all_bad_lines_are_found_in_one_pass(tmp_path: Path):
    lines = [line(id=f"u{i}", duration=-1 if i % 100 == 7 else 1.0) for i in range(10_000)]
    with pytest.raises(ManifestError) as caught:
        Manifest.read(write_lines(tmp_path, *lines))
    shown = str(caught.value).split("\n")
    assert shown[0].endswith("m.jsonl:8: duration is -1 s, expected more than 0; drop the line or measure it")
    assert shown[1].split(": ")[0].endswith("m.jsonl:108")
    assert len(shown) == 21 and "... and 80 more: 100 problems in" in shown[-1]


def test_segments_of_a_file_have_ids(tmp_path: Path):
    lines = (line(), line(offset=1.5), line(offset=3, channel=1), line(offset=4, channel="mix"), line(id="x"))
    path = write_lines(tmp_path, *lines)
    assert [u.id for u in Manifest.read(path)] == ["a", "a-1.500", "a-3.000-channel1", "a-4.000", "x"]


def test_marks_and_returns_of_other_systems(tmp_path: Path):
    (tmp_path / "m.jsonl").write_bytes(
        b"\xef\xbb\xbf" + f"{line()}\r\n{line(id='b', text='A{chr(0x2028)}B')}\r\n".encode()
    )
    first, second = Manifest.read(tmp_path / "m.jsonl")
    assert (first.id, second.id) == ("a", "b")


def test_channel_chooses_what_is_heard(tmp_path: Path):
    sides = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1)
    soundfile.write(tmp_path / "call.wav", sides, 16_000, subtype="FLOAT")
    call = {"audio_filepath": "call.wav", "duration": 0.05}
    path = write_lines(
        tmp_path, line(**call, channel=1), line(**call, channel="mix"), line(**call, channel="gsm", id="g")
    )
    first, mixed, named = manifest = Manifest.read(path)
    assert first.waveform().unique().tolist() == [-0.25] and mixed.waveform().unique().tolist() == [0.125]
    assert named.get("channel") == "gsm", "a word names the telephone channel"
    with pytest.raises(ManifestError, match=r"'g': .*2 channels") as caught:
        manifest.check_audio()
    assert "\n" not in str(caught.value), "the other two say what they need"
    manifest.write(tmp_path / "copy.jsonl")
    assert Manifest.read(tmp_path / "copy.jsonl") == manifest
    with pytest.raises(ManifestError, match="'g': hears channel 0, and has a key .* 'channel'; rename .*'gsm'"):
        manifest.with_channel(0).write(tmp_path / "other.jsonl")


def test_hashes_follow_the_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPEECH_ADAPTERS_CACHE", str(tmp_path / "cache"))
    copies = []
    for domain, level in (("clean", 0.1), ("noisy", 0.2), ("again", 0.1)):
        (tmp_path / domain).mkdir()
        write_audio(tmp_path / domain / "a.wav", torch.full((16_000,), level))
        copies.append(Manifest.read(write_lines(tmp_path / domain, line(audio_filepath="a.wav", duration=1.0))))
    clean, noisy, again = copies
    assert clean.sha256 != noisy.sha256 and clean.sha256 == again.sha256, "the bytes count, the folder does not"
    key = clean.content_key()
    assert key == clean.map(lambda u: replace(u, text="B", id="b")).content_key() != noisy.content_key()
    assert clean.content_key(verify=True) == again.content_key(verify=True)
    assert clean.map(lambda u: replace(u, offset=0.1)).content_key() != key
    status = (tmp_path / "clean" / "a.wav").stat()
    sha256 = clean.sha256
    write_audio(tmp_path / "clean" / "a.wav", torch.full((16_000,), 0.3))
    os.utime(tmp_path / "clean" / "a.wav", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert clean.content_key() != key and clean.sha256 != sha256, "exported again in place, with the old times"


def test_a_file_has_one_identity_under_both_forms_of_its_name(tmp_path: Path):
    written, asked = (unicodedata.normalize(form, "café.wav") for form in ("NFC", "NFD"))
    write_audio(tmp_path / written, torch.full((16_000,), 0.1))
    found = [Manifest([Utterance("u", tmp_path / name, 1.0)]).content_keys() for name in (written, asked)]
    assert found[0] == found[1]
    write_audio(tmp_path / written, torch.full((16_000,), 0.2))
    assert Manifest([Utterance("u", tmp_path / asked, 1.0)]).content_keys() != found[0]


def test_what_was_found_sound_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPEECH_ADAPTERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(audio_files, "_SETTLED", 0.0)
    write_audio(tmp_path / "a.wav", torch.zeros(16_000))
    manifest = Manifest.read(write_lines(tmp_path, line(audio_filepath="a.wav", duration=1.0)))
    read: list[Path] = []
    monkeypatch.setattr(audio_files, "check_audio_file", lambda path, **_: read.append(path))
    for _ in range(2):
        manifest.check_audio()
    assert len(read) == 1
    (tmp_path / "cache" / "audio.sqlite3").write_bytes(b"damaged" * 1000)
    manifest.check_audio()
    assert len(read) == 2 and len(manifest.sha256) == 64, "a damaged memory is no memory"


def test_check_corpus_lists_everything(tmp_path: Path):
    write_audio(tmp_path / "a.wav", torch.full((16_000,), 0.1))
    good = {"audio_filepath": "a.wav", "duration": 1.0, "speaker": "s1"}
    lines = [line(**good, id="call (2)", emotion="sad"), line(**good, id="b", text="?!", emotion="Sad")]
    train = Manifest.read(write_lines(tmp_path, *lines, name="train.jsonl"))
    test = Manifest.read(write_lines(tmp_path, line(**good | {"audio_filepath": "b.wav"}), name="test.jsonl"))
    findings = "\n".join(check_corpus([train, test]))
    expected = (
        "'b': text without a letter",
        "'Sad' .* and 'sad' .* in case only and count as two classes",
        "'b': .*b.wav: no such audio file",
        "shares 1 speaker with .*test.jsonl: 's1'",
    )
    assert len(findings.split("\n")) == len(expected)
    for finding in expected:
        assert re.search(finding, findings), finding


def tone(path: Path, level: float) -> dict[str, object]:
    """The keys of a line about one second of a constant sample, written to ``path``."""
    write_audio(path, torch.full((16_000,), level))
    return {"audio_filepath": path.name, "duration": 1.0}


def test_check_finds_one_recording_in_two_splits(tmp_path: Path):
    a, copy, other = (tone(tmp_path / f"{n}.wav", x) for n, x in (("a", 0.1), ("copy", 0.1), ("other", 0.2)))
    train = Manifest.read(
        write_lines(tmp_path, line(**a, speaker="x"), line(**other, speaker="x"), name="train.jsonl")
    )
    for leak, found in (
        (line(**copy, speaker="y"), True),
        (line(**a | {"duration": 0.5}, offset=0.4, speaker="y"), True),
        (line(**other, id="a", speaker="y"), True),
        (line(**tone(tmp_path / "new.wav", 0.3), speaker="y"), False),
    ):
        test = Manifest.read(write_lines(tmp_path, leak, name="test.jsonl"))
        findings = check_corpus([train, test])
        assert len(findings) == found
        assert not found or "train.jsonl: shares the audio of 1 utterance with" in findings[0]
    halves = [line(**a | {"duration": 0.5}, offset=offset, id="same") for offset in (0.0, 0.5)]
    parts = [Manifest.read(write_lines(tmp_path, h, name=f"{n}.jsonl")) for n, h in enumerate(halves)]
    assert check_corpus(parts) == [], "two pieces of a recording that do not overlap"
    notes = "\n".join(corpus_notes(parts))
    assert "0.jsonl: speakers unknown: disjointness not checked" in notes and "shares 1 id with" in notes


def test_splits_are_called_disjoint_only_where_all_speakers_are_known(tmp_path: Path, capsys):
    from speech_adapters.cli import main

    a, b = tone(tmp_path / "a.wav", 0.1), tone(tmp_path / "b.wav", 0.2)
    paths = [str(write_lines(tmp_path, line(**a, speaker="x"), name="a.jsonl"))]
    for speaker, said in (({"speaker": "y"}, True), ({}, False)):
        other = write_lines(tmp_path, line(**b, **speaker), name="b.jsonl")
        with pytest.raises(SystemExit, match="0"):
            main(["check", *paths, str(other)])
        shown = capsys.readouterr()
        assert ("share no speaker" in shown.out) is said
        assert ("note: " in shown.err and "b.jsonl: speakers unknown" in shown.err) is not said
    with pytest.raises(SystemExit, match="0"):
        main(["check", *paths])
    assert capsys.readouterr().out.strip().endswith("nothing found: audio decodes")


def test_check_finds_names_that_are_none_or_written_in_two_ways(tmp_path: Path):
    base = tone(tmp_path / "a.wav", 0.1)
    names = ["Müller", unicodedata.normalize("NFD", "Müller"), "n/a", "NaN", "n/a", None, "Otto", " otto"]
    lines = [
        line(**base, id=str(number), label=("YES", "Yes", "yes")[min(number, 2)], emotion=None if number else "sad",
             **({} if name is None else {"speaker": name}))
        for number, name in enumerate(names)
    ]  # fmt: skip
    findings = check_corpus([Manifest.read(write_lines(tmp_path, *lines))])
    either = "case, white space or Unicode form only and count as two speakers; spell them alike"
    assert [finding.replace(f"{tmp_path}/m.jsonl", "m") for finding in findings] == [
        "m: utterance '5': no speaker where other lines have one",
        "m: speaker 'NaN' (1 utterance), 'n/a' (2 utterances): not a name, but would count as one; give the name, or "
        "leave the key out",
        f"speaker: ' otto' (m) and 'Otto' (m) differ in {either}",
        f"speaker: 'Mu\\u0308ller' (m) and 'M\\xfcller' (m) differ in {either}",
        "label: 'YES' (m), 'Yes' (m) and 'yes' (m) differ in case only and count as 3 classes; spell them alike",
    ]


def test_check_finds_labels_that_most_lines_have(tmp_path: Path):
    base = tone(tmp_path / "a.wav", 0.1)
    lines = [line(**base, id=str(n), **({"emotion": "sad"} if n < 2 else {})) for n in range(3)]
    (finding,) = check_corpus([Manifest.read(write_lines(tmp_path, *lines))])
    assert finding.endswith("utterance '2': no emotion where most lines have one")


def test_check_finds_silence_and_audio_that_is_too_short_for_its_text(tmp_path: Path):
    quiet, short = tone(tmp_path / "quiet.wav", 0.0), tone(tmp_path / "a.wav", 0.1) | {"duration": 0.1}
    manifest = Manifest.read(write_lines(tmp_path, line(**quiet), line(**short), line(**short, id="n", text=...)))
    silence, text, missing = check_corpus([manifest])
    assert "'quiet': all samples are zero" in silence and "'a': a text, but less than 0.2 s" in text
    assert "'n': no text" in missing
    manifest.check_audio()  # silence may be learnt from


def test_long_utterances_are_a_note(tmp_path: Path):
    manifest = make(2).map(lambda u: replace(u, duration=31.0 if u.id == "u1" else 30.0))
    (note,) = corpus_notes([manifest])
    assert "1 utterance of more than 30 s, such as 'u1'" in note
    assert "not recognition, which needs them cut" in note


def test_one_cause_is_one_finding(tmp_path: Path, capsys):
    from speech_adapters.cli import main

    soundfile.write(tmp_path / "call.wav", np.full((16_000, 2), 0.1), 16_000)
    lines = [line(audio_filepath="call.wav", duration=1.0, id=str(number)) for number in range(35)]
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--channel", "5", str(write_lines(tmp_path, *lines))])
    shown = capsys.readouterr()
    assert shown.out.strip().endswith("1 finding") and "'19' and 15 more: " in shown.err
    assert "channel=5 does not exist; use 0 to 1" in shown.err


def test_a_table_is_no_manifest(tmp_path: Path):
    table = tmp_path / "calls.csv"
    table.write_text("file,text\n" + "a.wav,YES\n" * 30)
    for read in (Manifest.read, Manifest.make_index):
        with pytest.raises(
            ManifestError, match=r"^\S*calls.csv: a table, .*manifest make FOLDER --table \S+"
        ) as caught:
            read(table)
        assert caught.value.problems == 1
    table.write_text(line() + "\n")
    assert len(Manifest.read(table)) == 1, "the name alone makes no table"


def test_the_folder_one_stands_in_is_no_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match="Is a directory"):
        Manifest.read(".")


def test_problems_that_are_not_shown_are_counted(tmp_path, capsys):
    from speech_adapters.cli import main

    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n' * 60)
    with pytest.raises(ManifestError, match="more: 60 problems") as caught:
        Manifest.read(tmp_path / "bad.jsonl")
    assert caught.value.problems == 60
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(tmp_path / "bad.jsonl")])
    assert capsys.readouterr().out.strip() == "60 findings"
