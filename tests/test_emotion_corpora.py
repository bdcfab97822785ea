"""IEMOCAP, RAVDESS, EmoDB and CREMA-D: miniatures in the exact layouts, and layouts that are broken."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from small_corpora import speak

from speech_adapters.cli import main
from speech_adapters.corpora import (
    download_emodb,
    download_ravdess,
    prepare_crema_d,
    prepare_emodb,
    prepare_iemocap,
    prepare_ravdess,
    ravdess,
)
from speech_adapters.corpora.download import download_archive
from speech_adapters.corpora.folds import make_folds
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError, InputError, ManifestError

NOWHERE = "http://127.0.0.1:9/"


def read(path: Path) -> Manifest:
    return Manifest.read(path, require=("emotion", "speaker"), check_files=True)


# IEMOCAP

RATINGS = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes0{s}{g}_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
A-E3:\tval 3; act 2; dom  2;\t()

[10.0100 - 11.3925]\tSes0{s}{g}_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]
[14.8872 - 18.0175]\tSes0{s}{g}_impro01_F002\txxx\t[2.5000, 2.5000, 2.5000]
[19.2900 - 20.7875]\tSes0{s}{g}_impro01_M003\thap\t[2.5000, 2.5000, 2.5000]
"""
TEXTS = """Ses0{s}{g}_impro01_F000 [006.2901-008.2357]: Excuse me. [LAUGHTER] Yes?
Ses0{s}{g}_impro01_M001 [010.0100-011.3925]: Oh, great!
M: (not a turn)
"""


def make_iemocap(root: Path, sessions: int = 3) -> Path:
    for session in range(1, sessions + 1):
        for gender in "FM":
            name = f"Ses0{session}{gender}_impro01"
            folder = root / f"Session{session}"
            for kind, text in (("EmoEvaluation", RATINGS), ("transcriptions", TEXTS)):
                (folder / "dialog" / kind).mkdir(parents=True, exist_ok=True)
                (folder / "dialog" / kind / f"{name}.txt").write_text(text.format(s=session, g=gender))
            for turn in ("F000", "M001", "F002", "M003"):
                speak(folder / "sentences" / "wav" / name / f"{name}_{turn}.wav")
        (folder / "dialog" / "EmoEvaluation" / f"._{name}.txt").write_bytes(b"\0macOS")
        (folder / "dialog" / "EmoEvaluation" / "Attribute").mkdir()
    return root


def test_iemocap(tmp_path):
    root = make_iemocap(tmp_path / "IEMOCAP_full_release")
    manifest = read(prepare_iemocap(root.parent, tmp_path / "manifests"))
    assert Counter(u.emotion for u in manifest) == {"happy": 12, "neutral": 6}, "excited is happy; xxx is left out"
    first = manifest[0]
    assert (first.id, first.speaker, first.text) == ("Ses01F_impro01_F000", "Ses01F", "Excuse me. Yes?")
    assert first.extra == {"session": "Ses01", "gender": "F", "improvised": True, "code": "neu"}
    partner = manifest[1]
    assert (partner.id, partner.speaker) == ("Ses01F_impro01_M001", "Ses01M"), "the turn's letter, not the dialogue's"
    folds = make_folds(manifest, "leave-one-session-out")
    assert [fold.test.speakers for fold in folds] == [(f"Ses0{s}F", f"Ses0{s}M") for s in (1, 2, 3)]
    strict = {"ang": "angry", "hap": "happy", "neu": "neutral"}
    assert len(read(prepare_iemocap(root, tmp_path / "strict", strict))) == 12


def test_iemocap_bad_layouts(tmp_path):
    with pytest.raises(InputError, match="no IEMOCAP there .*Session\\?/dialog/EmoEvaluation.*request"):
        prepare_iemocap(tmp_path, tmp_path / "m")
    root = make_iemocap(tmp_path / "corpus", sessions=1)
    ratings = root / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    text = ratings.read_text()
    ratings.write_text(text.replace("\tneu\t", " neu "))
    with pytest.raises(ManifestError, match=r'Ses01F_impro01.txt:3: expected "\[start - end\]'):
        prepare_iemocap(root, tmp_path / "m")
    ratings.write_text(text)
    wavs = root / "Session1" / "sentences" / "wav"
    (wavs / "Ses01F_impro01" / "Ses01F_impro01_M001.wav").unlink()
    with pytest.raises(ManifestError, match=r"Ses01F_impro01.txt:7: .*M001.wav: no such audio file"):
        prepare_iemocap(root, tmp_path / "m")
    ratings.unlink()
    with pytest.raises(InputError, match="Ses01F_impro01 has no ratings in dialog/EmoEvaluation; unpack"):
        prepare_iemocap(root, tmp_path / "m")
    assert not (tmp_path / "m").exists()


# RAVDESS


def make_ravdess(root: Path) -> Path:
    for actor in (1, 2, 3):
        for emotion in range(1, 9):
            speak(root / f"Actor_{actor:02d}" / f"03-01-{emotion:02d}-01-01-01-{actor:02d}.wav", rate=48_000)
    speak(root / "Actor_01" / "03-02-05-01-01-01-01.wav")  # song
    speak(root / "Actor_02" / "03-01-05-02-02-02-02.wav", rate=48_000, channels=2)
    return root


def test_ravdess(tmp_path):
    root = make_ravdess(tmp_path / "Audio_Speech_Actors_01-24")
    path = prepare_ravdess(tmp_path, tmp_path / "m")
    manifest = read(path)
    assert len(manifest) == 25 and manifest.speakers == ("ravdess01", "ravdess02", "ravdess03")
    assert manifest.values("emotion") == tuple(sorted(ravdess.EMOTIONS))
    by_id = {u.id: u for u in manifest}
    assert by_id["03-01-05-01-01-01-01"].emotion == "angry" and by_id["03-01-05-01-01-01-01"].extra["gender"] == "M"
    stereo = by_id["03-01-05-02-02-02-02"]
    assert (stereo.text, stereo.extra["gender"]) == ("DOGS ARE SITTING BY THE DOOR", "F")
    info = soundfile.info(stereo.audio_filepath)
    assert (info.channels, info.samplerate, info.duration) == (1, 48_000, pytest.approx(0.1)), (
        "training reads mono only"
    )
    assert read(prepare_ravdess(root, tmp_path / "m")) == manifest, "prepared again, nothing changes"


def test_command_line(tmp_path, capsys):
    make_ravdess(tmp_path / "r")
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "ravdess", str(tmp_path / "r"), str(tmp_path / "m")])
    assert stopped.value.code == 0
    assert f"{tmp_path / 'm' / 'ravdess.jsonl'}: 25 utterances" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "emodb", str(tmp_path / "none"), str(tmp_path / "m")])
    assert stopped.value.code == 2 and "no EmoDB there" in capsys.readouterr().err


def test_ravdess_bad_layouts(tmp_path):
    with pytest.raises(InputError, match="no RAVDESS there .*download_ravdess.*zenodo"):
        prepare_ravdess(tmp_path, tmp_path)
    root = make_ravdess(tmp_path / "r")
    (root / "Actor_01" / "03-01-01-01-01-01-01.wav").rename(root / "Actor_02" / "03-01-01-01-01-01-01.wav")
    with pytest.raises(ManifestError, match="Actor_02/03-01-01-01-01-01-01.wav: not a name of RAVDESS in its actor's"):
        prepare_ravdess(root, tmp_path / "m")


# EmoDB


def test_emodb(tmp_path):
    for name in ("03a01Fa", "03a01Nc", "08b10Wa", "16a05Tb"):
        speak(tmp_path / "EmoDB" / "wav" / f"{name}.wav")
    manifest = read(prepare_emodb(tmp_path, tmp_path / "m"))
    assert [(u.speaker, u.emotion, u.extra["gender"]) for u in manifest] == [
        ("emodb03", "happiness", "M"), ("emodb03", "neutral", "M"), ("emodb08", "anger", "F"),
        ("emodb16", "sadness", "F"),
    ]  # fmt: skip
    assert manifest[0].text == "Der Lappen liegt auf dem Eisschrank." and manifest[0].lang == "de"
    speak(tmp_path / "EmoDB" / "wav" / "03a03Fa.wav")
    with pytest.raises(ManifestError, match="03a03Fa.wav: not a name of EmoDB"):
        prepare_emodb(tmp_path, tmp_path / "m")
    with pytest.raises(InputError, match="no EmoDB there .*download_emodb"):
        prepare_emodb(tmp_path / "EmoDB" / "wav", tmp_path / "m")


# CREMA-D

VOTES = '"","FileName","VoiceVote","MultiModalVote"\n"1","1001_DFA_ANG_XX","N","A"\n"2","1002_IEO_HAP_HI","H","D:H"\n'


def make_crema_d(root: Path) -> Path:
    for name in ("1001_DFA_ANG_XX", "1002_IEO_HAP_HI", "1076_MTI_SAD_XX"):
        speak(root / "AudioWAV" / f"{name}.wav")
    (root / "processedResults").mkdir()
    (root / "processedResults" / "summaryTable.csv").write_text(VOTES)
    (root / "VideoDemographics.csv").write_text('"ActorID","Age","Sex"\n1001,51,"Male"\n1002,21,"Female"\n')
    return root


def test_crema_d(tmp_path):
    root = make_crema_d(tmp_path / "CREMA-D")
    manifest = read(prepare_crema_d(tmp_path, tmp_path / "m"))
    assert [(u.speaker, u.emotion, u.extra) for u in manifest] == [
        ("crema1001", "anger", {"intensity": "XX", "gender": "M"}),
        ("crema1002", "happy", {"intensity": "HI", "gender": "F"}),
    ], "the silent file is left out"
    assert manifest[0].text == "Don't forget a jacket"
    assert [u.emotion for u in read(prepare_crema_d(root, tmp_path / "v", "voice"))] == ["neutral", "happy"]
    assert [u.emotion for u in read(prepare_crema_d(root, tmp_path / "b", "multimodal"))] == ["anger"], "no ties"


def test_crema_d_bad_layouts(tmp_path):
    with pytest.raises(InputError, match="no CREMA-D there .*git lfs install && git clone"):
        prepare_crema_d(tmp_path, tmp_path / "m")
    root = make_crema_d(tmp_path / "CREMA-D")
    with pytest.raises(ConfigError, match="labels='votes': choose intended, voice or multimodal"):
        prepare_crema_d(root, tmp_path / "m", "votes")
    pointer = root / "AudioWAV" / "1001_DFA_ANG_XX.wav"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    with pytest.raises(ManifestError, match="1001_DFA_ANG_XX.wav is a git LFS pointer; .*git lfs pull"):
        prepare_crema_d(root, tmp_path / "m")
    speak(pointer)
    table = root / "processedResults" / "summaryTable.csv"
    table.write_text(VOTES.splitlines(keepends=True)[0])
    with pytest.raises(ManifestError, match="1001_DFA_ANG_XX.wav: no vote for it"):
        prepare_crema_d(root, tmp_path / "m", "voice")
    table.write_text('"","FileName"\n')
    with pytest.raises(InputError, match="summaryTable.csv:1: no column 'VoiceVote'"):
        prepare_crema_d(root, tmp_path / "m", "voice")
    table.unlink()
    with pytest.raises(InputError, match="summaryTable.csv: no such file"):
        prepare_crema_d(root, tmp_path / "m", "voice")


# Archives


def zipped(root: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for file in sorted(root.rglob("*.wav")):
            content.write(file, file.relative_to(root).as_posix())
    return buffer.getvalue()


def test_archives_brought_by_hand_are_checked_and_unpacked(tmp_path, monkeypatch):
    archive = zipped(make_ravdess(tmp_path / "source"))
    monkeypatch.setattr(ravdess, "MD5", hashlib.md5(archive).hexdigest())
    by_hand = tmp_path / "corpora" / "Audio_Speech_Actors_01-24.zip"
    by_hand.parent.mkdir()
    by_hand.write_bytes(archive[:-1])
    with pytest.raises(InputError, match="Audio_Speech_Actors_01-24.zip: MD5 .*remove the file"):
        download_ravdess(by_hand.parent)
    by_hand.write_bytes(archive)
    folder = download_ravdess(by_hand.parent)
    assert [p.name for p in by_hand.parent.iterdir()] == ["RAVDESS"] and folder.name == "RAVDESS"
    assert len(read(prepare_ravdess(folder, tmp_path / "m"))) == 25
    assert download_ravdess(by_hand.parent) == folder, "left alone when it is there, and no network asked"


def test_broken_archives_leave_nothing(tmp_path):
    (tmp_path / "download.zip").write_bytes(zipped(make_ravdess(tmp_path / "source"))[:500])
    with pytest.raises(InputError, match="download.zip: cannot be unpacked .*remove the file"):
        download_emodb(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"download.zip", "source"}


def test_tar_with_a_single_folder(tmp_path):
    speak(tmp_path / "name-master" / "data" / "a.wav")
    with tarfile.open(tmp_path / "master.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "name-master", "name-master")
    folder = download_archive(f"{NOWHERE}master.tar.gz", tmp_path / "corpus")
    assert (folder / "data" / "a.wav").exists() and not (tmp_path / "master.tar.gz").exists()


def test_offline_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(InputError, match=r"download.zip: cannot be downloaded .*put it at .*EmoDB|download.zip.*url="):
        download_emodb(tmp_path / "new", url=f"{NOWHERE}download.zip")
