"""VoxCeleb, Fluent Speech Commands, HarperValleyBank and two-channel calls: miniatures, and broken layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_corpora import speak

from speech_adapters.corpora import prepare_fluent_speech_commands, prepare_harper_valley, prepare_voxceleb, voxceleb
from speech_adapters.corpora.calls import split_call
from speech_adapters.corpora.folds import make_folds
from speech_adapters.data.audio import read_audio
from speech_adapters.data.manifest import Manifest
from speech_adapters.data.trials import read_trials
from speech_adapters.errors import AudioError, ConfigError, InputError, ManifestError

# VoxCeleb

TRIAL = "1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav\n"
OTHER = "0 id10270/x6uYqmx31kE/00001.wav id10309/0cYFdtyWVds/00001.wav\n"


def make_voxceleb(root: Path, split: bool) -> Path:
    for test, name in (
        (False, "id10001/1zcIwhmdeo4/00001"), (False, "id11251/XHCSVYEZvlM/00002"),
        (True, "id10309/0cYFdtyWVds/00001"), (True, "id10270/x6uYqmx31kE/00001"),
        (True, "id10270/8jEAjG6SegY/00008"),
    ):  # fmt: skip
        speak(root / (("test/wav" if test else "dev/wav") if split else "wav") / f"{name}.wav")
    (root / "trials.txt").write_text(TRIAL + OTHER)
    return root


@pytest.mark.parametrize("split", [True, False])
def test_voxceleb1(tmp_path, split):
    root = make_voxceleb(tmp_path / "vox1", split)
    paths = prepare_voxceleb(root, tmp_path / "m", [root / "trials.txt"])
    assert set(paths) == {"voxceleb1_dev", "voxceleb1_test", "voxceleb1", "trials"}
    test = Manifest.read(paths["voxceleb1_test"], require=("speaker",), check_files=True)
    assert test.speakers == ("id10270", "id10309")
    assert Manifest.read(paths["voxceleb1_dev"]).speakers == ("id10001", "id11251")
    assert len(Manifest.read(paths["voxceleb1"], check_files=True)) == 5, "dev and test, for Vox1-E and H"
    by_path = {f"{u.id}.wav": u for u in test}
    for trial in read_trials(paths["trials"]):
        same = by_path[trial.enrol].speaker == by_path[trial.test].speaker
        assert same == bool(trial.label)
    assert test[0].extra == {"video": "8jEAjG6SegY"}


def test_voxceleb2_converted_or_not(tmp_path):
    for folder in ("dev/aac/id00012/21Uxsk56VDQ", "test/aac/id00017/01dfn2spqyE"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "00001.m4a").write_bytes(b"aac")
    with pytest.raises(InputError, match="id00012: holds .m4a files, .*ffmpeg"):
        prepare_voxceleb(tmp_path, tmp_path / "m")
    for file in tmp_path.rglob("*.m4a"):
        speak(file.with_suffix(".wav"))
    paths = prepare_voxceleb(tmp_path, tmp_path / "m")
    assert Manifest.read(paths["voxceleb2_test"]).speakers == ("id00017",)
    assert Manifest.read(paths["voxceleb2_dev"]).speakers == ("id00012",)


def test_voxceleb_bad_layouts(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no VoxCeleb there .*request it at"):
        prepare_voxceleb(tmp_path, tmp_path / "m")
    root = make_voxceleb(tmp_path / "vox1", True)
    with pytest.raises(InputError, match="is one path; write a list"):
        prepare_voxceleb(root, tmp_path / "m", root / "trials.txt")
    (root / "trials.txt").write_text(TRIAL + "\n" + OTHER.replace("00001.wav id1", "00009.wav id1"))
    with pytest.raises(ManifestError, match=r"trials.txt:3: utterance 'id10270/x6uYqmx31kE/00009.wav' is not in what"):
        prepare_voxceleb(root, tmp_path / "m", [root / "trials.txt"])
    (root / "trials.txt").write_text(TRIAL.replace("1 ", "0 ", 1) + OTHER.replace("0 ", "1 ", 1))
    with pytest.raises(ManifestError, match=r"trials.txt:1: "):
        prepare_voxceleb(root, tmp_path / "m", [root / "trials.txt"])
    (root / "veri_test2.txt").write_text(TRIAL + OTHER)
    with pytest.raises(InputError, match="veri_test2.txt: 2 trials, the official list has 37611"):
        prepare_voxceleb(root, tmp_path / "m", [root / "veri_test2.txt"])
    monkeypatch.setitem(voxceleb.TRIALS, "veri_test2.txt", 2)
    assert prepare_voxceleb(root, tmp_path / "m", [root / "veri_test2.txt"])["veri_test2"].read_text() == TRIAL + OTHER
    (root / "dev" / "wav" / "id10002" / "video").mkdir(parents=True)
    with pytest.raises(InputError, match="id10002: no <video>/<utterance>.wav in it"):
        prepare_voxceleb(root, tmp_path / "m")


# Fluent Speech Commands

HEADER = ",path,speakerId,transcription,action,object,location\n"


def make_commands(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    for number, table in enumerate(("train", "valid", "test")):
        name = f"wavs/speakers/s{number}/{table}-0a3129c0.wav"
        speak(root / name)
        row = f'0,{name},s{number},"Turn up, please",increase,volume,none\n'
        (root / "data" / f"{table}_data.csv").write_text(HEADER + row)
    return root


def test_fluent_speech_commands(tmp_path):
    root = make_commands(tmp_path / "fluent_speech_commands_dataset")
    paths = prepare_fluent_speech_commands(tmp_path, tmp_path / "m")
    assert list(paths) == ["train", "dev", "test"]
    (command,) = Manifest.read(paths["dev"], require=("label", "text", "speaker", "action"), check_files=True)
    assert (command.id, command.speaker, command.text) == ("valid-0a3129c0", "s1", "Turn up, please")
    assert command.label == "increase|volume|none"
    assert command.extra == {"action": "increase", "object": "volume", "location": "none"}
    table = root / "data" / "test_data.csv"
    good = table.read_text()
    for text, message in (
        (good.replace("s2,", "s0,"), "shares 1 speaker with"),
        (good.replace(",volume,", ",,"), "lacks 'object'"),
        (good.replace(",object,", ",thing,"), "test_data.csv:1: no column 'object'"),
        (good.replace("/test-", "/none-"), "test_data.csv:2: .*no such audio file"),
    ):
        table.write_text(text)
        with pytest.raises(ManifestError, match=message):
            prepare_fluent_speech_commands(root, tmp_path / "m")
    table.unlink()
    with pytest.raises(ManifestError, match="test_data.csv: the table cannot be read"):
        prepare_fluent_speech_commands(root, tmp_path / "m")
    with pytest.raises(InputError, match="no Fluent Speech Commands there .*request it"):
        prepare_fluent_speech_commands(root / "wavs", tmp_path / "m")


# HarperValleyBank


def segment(index: int, role: str, offset: int, duration: int, text: str) -> dict:
    return {
        "index": index, "speaker_role": role, "offset_ms": offset, "duration_ms": duration,
        "human_transcript": text, "transcript": "what a machine heard", "channel_index": 2 if role == "agent" else 1,
    }  # fmt: skip


SEGMENTS = [
    segment(1, "agent", 100, 500, "hello this is harper valley national bank"),
    segment(2, "caller", 700, 400, "[noise] i lost my debit card [laughter]"),
    segment(3, "caller", 1200, 100, "[noise]"),
    segment(4, "agent", 1300, 200, "which <unk> please"),
    segment(5, "agent", 1900, 300, "the recording ends in my"),
    segment(6, "caller", 2500, 100, "too late"),
    segment(7, "caller", 1500, 10, "uh"),
]


def make_harper(root: Path, calls: tuple[str, ...] = ("0002f70f7386445b", "004860b1ab2e4c88")) -> Path:
    for number, call in enumerate(calls):
        for role in ("agent", "caller"):
            speak(root / "data" / "audio" / role / f"{call}.wav", seconds=2.0, rate=8000)
        people = {"agent": {"speaker_id": 40 + number}, "caller": {"speaker_id": 41 - number}}
        metadata = {**people, "tasks": [{"task_type": "replace card"}, {"task_type": "get branch hours"}]}
        for kind, content in (("metadata", metadata), ("transcript", SEGMENTS)):
            (root / "data" / kind).mkdir(parents=True, exist_ok=True)
            (root / "data" / kind / f"{call}.json").write_text(json.dumps(content))
    return root


def test_harper_valley(tmp_path):
    root = make_harper(tmp_path / "gridspace-stanford-harper-valley")
    reasons = "2 below 25 ms, 2 outside of the recording, 2 with unclear words, 2 without words"
    with pytest.warns(UserWarning, match=f"8 of 14 segments left out: {reasons}"):
        path = prepare_harper_valley(root, tmp_path / "m")
    manifest = Manifest.read(path, require=("text", "speaker", "role"), check_files=True)
    agent, caller, last = manifest[:3]
    assert (agent.id, agent.speaker) == ("0002f70f7386445b-001", "harper40")
    assert agent.extra == {"role": "agent", "call": "0002f70f7386445b", "task": "get branch hours+replace card"}
    assert (agent.offset, agent.duration, agent.audio_filepath.parent.name) == (0.1, 0.5, "agent")
    assert (caller.text, caller.speaker, caller.audio_filepath.parent.name) == (
        "i lost my debit card", "harper41", "caller"
    )  # fmt: skip
    assert last.duration == 0.1, "cut at the end of its recording"
    assert len(read_audio(last.audio_filepath, offset=last.offset, duration=last.duration)) == 1600
    assert manifest.speakers == ("harper40", "harper41"), "people take either role"
    folds = make_folds(manifest, "2-fold", label_field=None, dev=False)
    assert [fold.test.speakers for fold in folds] in ([("harper40",), ("harper41",)], [("harper41",), ("harper40",)])


def test_harper_valley_bad_layouts(tmp_path):
    with pytest.raises(InputError, match="no HarperValleyBank .*download_harper_valley"):
        prepare_harper_valley(tmp_path, tmp_path / "m")
    root = make_harper(tmp_path / "h", ("c1",))
    data = root / "data"
    transcript, metadata = data / "transcript" / "c1.json", data / "metadata" / "c1.json"
    for content, message in (
        (
            [{**SEGMENTS[0], "speaker_role": "boss"}],
            "c1.json: segment 1: speaker_role is 'boss', expected one of caller",
        ),
        ([{**SEGMENTS[0], "offset_ms": "x"}], "c1.json: segment 1: offset_ms is 'x'; a segment needs a number"),
        ([{"index": 3}], "c1.json: segment 3: speaker_role is None; a segment needs text"),
        (["hello"], "c1.json: index is None"),
        ({"a": 1}, "c1.json: expected a list of segments"),
    ):
        transcript.write_text(json.dumps(content))
        with pytest.raises(ManifestError, match=message):
            prepare_harper_valley(root, tmp_path / "m")
    transcript.write_text(json.dumps(SEGMENTS[:2]))
    metadata.write_text('{"agent": {}, "tasks": []}')
    with pytest.raises(ManifestError, match="metadata/c1.json: lacks .*each side needs its speaker_id"):
        prepare_harper_valley(root, tmp_path / "m")
    metadata.unlink()
    with pytest.raises(InputError, match="metadata/c1.json: no such file"):
        prepare_harper_valley(root, tmp_path / "m")
    (data / "audio" / "agent" / "c1.wav").unlink()
    with pytest.raises(ManifestError, match="transcript/c1.json: .*agent/c1.wav: no such audio file"):
        prepare_harper_valley(root, tmp_path / "m")


# Two-channel calls


def test_call_is_split_into_its_sides(tmp_path):
    rng = np.random.default_rng(0)
    sides = rng.uniform(-0.5, 0.5, (4000, 2))
    soundfile.write(tmp_path / "c1.wav", sides, 8000, subtype="PCM_16")
    files = split_call(tmp_path / "c1.wav", tmp_path / "audio")
    assert files == {role: tmp_path / "audio" / role / "c1.wav" for role in ("caller", "agent")}
    for channel, role in enumerate(("caller", "agent")):
        info = soundfile.info(files[role])
        assert (info.channels, info.samplerate, info.frames) == (1, 8000, 4000)
        whole = read_audio(tmp_path / "c1.wav", channel=channel, sample_rate=8000)
        assert torch.equal(read_audio(files[role], sample_rate=8000), whole)
    before = files["agent"].stat().st_mtime_ns
    split_call(tmp_path / "c1.wav", tmp_path / "audio")
    assert files["agent"].stat().st_mtime_ns == before, "resumes: what is there stays"
    (tmp_path / "tuesday").mkdir()
    soundfile.write(tmp_path / "tuesday" / "c1.wav", sides[:3000], 8000)
    with pytest.raises(AudioError, match=r"c1.wav: a side of another recording called 'c1'; give .*tuesday"):
        split_call(tmp_path / "tuesday" / "c1.wav", tmp_path / "audio")


def test_split_calls_feed_the_corpus(tmp_path):
    """A call recorded in two channels becomes HarperValleyBank's layout."""
    root = make_harper(tmp_path / "h", ("c1",))
    both = [soundfile.read(root / "data" / "audio" / role / "c1.wav")[0] for role in ("caller", "agent")]
    soundfile.write(tmp_path / "c1.wav", np.stack([both[0], -both[1]], axis=1), 8000)
    for role in ("agent", "caller"):
        (root / "data" / "audio" / role / "c1.wav").unlink()
    split_call(tmp_path / "c1.wav", root / "data" / "audio")
    with pytest.warns(UserWarning, match="left out"):
        assert len(Manifest.read(prepare_harper_valley(root, tmp_path / "m"), check_files=True)) == 3


def test_calls_that_cannot_be_split(tmp_path):
    speak(tmp_path / "mono.wav")
    with pytest.raises(AudioError, match="mono.wav: 1 channel.* for the roles caller, agent"):
        split_call(tmp_path / "mono.wav", tmp_path)
    side = np.random.default_rng(0).uniform(-0.5, 0.5, 4000)
    soundfile.write(tmp_path / "twice.wav", np.stack([side, side], axis=1), 8000)
    with pytest.raises(AudioError, match="channels 0 and 1 hold the same sound"):
        split_call(tmp_path / "twice.wav", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for roles in (("a", "a"), ("a", "../b"), ("", "b")):
        with pytest.raises(ConfigError, match="give each channel its own name"):
            split_call(tmp_path / "twice.wav", tmp_path, roles)
