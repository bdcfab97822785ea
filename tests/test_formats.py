"""Other tools' lists of speech: there and back again, and what is wrong with them in a sentence."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import string
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_corpora import speak

from speech_adapters.data.formats import FORMATS, read_format, write_format
from speech_adapters.data.formats.folder import read_folder
from speech_adapters.data.formats.tables import read_table
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import AudioError, ConfigError, InputError, ManifestError
from speech_adapters.inference.sources import local_files

FILES = {
    "kaldi": "data",
    "lhotse": "cuts.jsonl.gz",
    "nemo": "n.jsonl",
    "speechbrain": "s.csv",
    "huggingface": "hf",
    "webdataset": "shards",
    "csv": "t.csv",
}


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Two recordings, 2 s and 1 s, the second in a folder of its own."""
    speak(tmp_path / "wav" / "a.wav", 2.0)
    speak(tmp_path / "wav" / "b" / "b.wav", 1.0)
    return tmp_path / "wav"


def pieces(audio: Path, text: str = "YES IT IS") -> Manifest:
    """A whole recording and two pieces of another."""
    a, b = audio / "a.wav", audio / "b" / "b.wav"
    return Manifest(
        [
            Utterance("s1-a1", a, 0.75, 0.0, text=text, speaker="s1"),
            Utterance("s1-a2", a, 1.0, 1.0, text="NO", speaker="s1"),
            Utterance("s2-b", b, 1.0, text="MAYBE", speaker="s2"),
        ],
        "pieces",
    )


def told(manifest: Manifest) -> list[tuple]:
    return [(u.id, round(u.duration, 4), u.text, u.speaker) for u in manifest]


def test_every_format_is_known_by_its_name() -> None:
    assert set(FILES) == set(FORMATS)
    with pytest.raises(ConfigError, match="no format 'kaldy'; did you mean 'kaldi'"):
        read_format("kaldy", "x")


@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(name: str, audio: Path, tmp_path: Path) -> None:
    manifest, path = pieces(audio), tmp_path / FILES[name]
    write_format(name, manifest, path)
    again = read_format(name, path)
    assert told(again) == told(manifest)
    again.check_audio()
    for one, other in zip(again, manifest, strict=True):
        assert one.waveform().shape == other.waveform().shape
        assert abs(one.waveform() - other.waveform()).max() < 1e-4


PLAIN = st.text(string.ascii_letters + "äßЖ好'\",;|", min_size=1, max_size=20)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(PLAIN, min_size=1, max_size=4))
def test_texts_survive_with_their_quotes_and_commas(words: list[str], audio: Path, tmp_path: Path) -> None:
    text = " ".join(words)
    manifest = pieces(audio, text)
    shutil.rmtree(tmp_path / FILES["kaldi"], ignore_errors=True)
    for name in ("kaldi", "lhotse", "speechbrain", "csv"):
        write_format(name, manifest, tmp_path / FILES[name])
        assert read_format(name, tmp_path / FILES[name])[0].text == text, name
    write_format("csv", manifest, tmp_path / "t.tsv")
    assert read_format("csv", tmp_path / "t.tsv")[0].text == text


def test_keys_of_ones_own_survive_in_tables_and_cuts(audio: Path, tmp_path: Path) -> None:
    manifest = pieces(audio).map(lambda u: replace(u, label="up", lang="de", extra={"mood": "calm"}))
    for name in ("lhotse", "csv", "huggingface"):
        write_format(name, manifest, tmp_path / FILES[name])
        first = read_format(name, tmp_path / FILES[name])[0]
        assert (first.label, first.lang, first.extra["mood"]) == ("up", "de", "calm"), name


def test_kaldi_names_begin_with_the_speaker_and_are_sorted_as_bytes(audio: Path, tmp_path: Path) -> None:
    a = audio / "a.wav"
    Z = Utterance("Z", a, 1.0, text="Z", speaker="b")
    write_format("kaldi", Manifest([Z, replace(Z, id="a", speaker="B")]), tmp_path / "k")
    assert (tmp_path / "k" / "utt2spk").read_text() == "B-a B\nb-Z b\n"
    assert (tmp_path / "k" / "spk2utt").read_text() == "B B-a\nb b-Z\n"


def test_kaldi_recordings_of_one_name_keep_theirs_apart(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("d1/x.wav", "d2/x-2.wav", "d3/x.wav", "d4/x-2.wav", "d5/x-3.wav")]
    for number, file in enumerate(files):
        speak(file, 1.0 + number / 10)
    manifest = Manifest([Utterance(f"u{n}", file, 1.0 + n / 10) for n, file in enumerate(files)], "same names")
    write_format("kaldi", manifest, tmp_path / "k")
    found = {u.id: (u.audio_filepath, round(u.duration, 4)) for u in read_format("kaldi", tmp_path / "k")}
    assert found == {u.id: (u.audio_filepath, u.duration) for u in manifest}


@pytest.mark.parametrize(
    ("name", "ids", "speaker"), [("kaldi", ("b", "a-b"), "a"), ("huggingface", ("a/b", "a-b"), None)]
)
def test_ids_that_are_one_name_in_a_format_are_refused(
    name: str, ids: tuple[str, str], speaker: str | None, audio: Path, tmp_path: Path
) -> None:
    manifest = Manifest([Utterance(one, audio / "a.wav", 2.0, speaker=speaker) for one in ids], "two")
    with pytest.raises(ManifestError, match=rf"two: utterances '{ids[0]}' and '{ids[1]}' would both be called 'a"):
        write_format(name, manifest, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_channel_of_a_file_that_shards_hold_as_flac_is_read_again(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (16_000, 2))
    utterances = []
    for suffix in ("aiff", "wav"):
        soundfile.write(tmp_path / f"call.{suffix}", sound, 16_000, "PCM_16")
        utterances.append(Utterance(suffix, tmp_path / f"call.{suffix}", 1.0, channel=1))
    write_format("webdataset", Manifest(utterances, "calls"), tmp_path / "shards")
    converted, copied = read_format("webdataset", tmp_path / "shards")
    assert converted.channel is None and copied.channel == 1
    for utterance in (converted, copied):
        assert np.abs(utterance.waveform().numpy() - sound[:, 1]).max() < 1e-4


def test_kaldi_segments_may_go_to_the_end(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text(f"rec\t{audio / 'a.wav'}\n")
    (tmp_path / "segments").write_text("u \t rec\t0.5 -1\n")
    (tmp_path / "text").write_text("u\n")
    (u,) = read_format("kaldi", tmp_path)
    assert (u.offset, round(u.duration, 3), u.text) == (0.5, 1.5, "")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "wav.scp: the Kaldi file cannot be read"),
        ({"wav.scp": "a sph2pipe a.sph |\n"}, "wav.scp:1: a is a command, which is not run"),
        ({"wav.scp": "a a.wav\na b.wav\n"}, "wav.scp:2: 'a' stands there twice"),
        ({"wav.scp": "a\n"}, "wav.scp:1: 'a' and nothing after it"),
        ({"wav.scp": "a a.wav\n", "text": "b YES\n"}, "text of 'b', which is not in wav.scp"),
        ({"wav.scp": "a a.wav\n", "segments": "u c 0 1\n"}, "segments:1: 'c' is not in wav.scp"),
        ({"wav.scp": "a a.wav\n", "segments": "u a 0\n"}, "segments:1: expected 'utterance recording start end'"),
        ({"wav.scp": "a none.wav\n"}, "wav.scp:1: .*none.wav"),
        ({"wav.scp": "a none/a.wav\n"}, "wav.scp:1: none/a.wav: there is no folder .*none; relative .*start .*--root"),
    ],
)
def test_what_is_wrong_in_a_kaldi_folder(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_format("kaldi", tmp_path)


def test_lhotse_supervisions_find_their_recordings_and_channels(audio: Path, tmp_path: Path) -> None:
    speak(tmp_path / "left.wav", 1.0)
    recording = {"id": "r", "sources": [{"type": "file", "channels": [0, 1], "source": str(audio / "a.wav")}]}
    supervision = {"id": "u", "recording_id": "r", "start": 0.5, "duration": 1.0, "channel": 1, "text": "HI"}
    for kind, entry in (("recordings", recording), ("supervisions", supervision)):
        (tmp_path / f"x_{kind}_dev.jsonl.gz").write_bytes(gzip.compress(json.dumps(entry).encode() + b"\n"))
    (u,) = read_format("lhotse", tmp_path)
    assert (u.id, u.offset, u.duration, u.channel, u.text) == ("u", 0.5, 1.0, 1, "HI")

    def changed(**of_the_supervision: object) -> Utterance:
        line = json.dumps(supervision | of_the_supervision).encode()
        (tmp_path / "x_supervisions_dev.jsonl.gz").write_bytes(gzip.compress(line))
        return read_format("lhotse", tmp_path)[0]

    assert changed(channel=[0, 1]).channel is None  # the run says which
    assert changed(custom={"offset": 0.1, "duration": 9, "id": "x", "audio_filepath": "x", "mood": "calm"}) == replace(
        u, extra={"mood": "calm"}
    )
    with pytest.raises(ManifestError, match=r":1: no file of the recording has the channel \[1, 2\]"):
        changed(channel=[1, 2])
    recording["sources"][0]["channels"] = [0, 1, 2]
    (tmp_path / "x_recordings_dev.jsonl.gz").write_bytes(gzip.compress(json.dumps(recording).encode() + b"\n"))
    with pytest.raises(ManifestError, match=r":1: a supervision of the channels \[1, 2\] of a file with \[0, 1, 2\]"):
        changed(channel=[1, 2])
    changed()
    recording["sources"][0]["type"] = "url"
    (tmp_path / "x_recordings_dev.jsonl.gz").write_bytes(gzip.compress(json.dumps(recording).encode() + b"\n"))
    with pytest.raises(ManifestError, match=":1: audio of the type url; only files are read"):
        read_format("lhotse", tmp_path)
    (tmp_path / "x_recordings_dev.jsonl.gz").unlink()
    with pytest.raises(ManifestError, match="need their recordings beside them, as x_recordings_dev.jsonl.gz"):
        read_format("lhotse", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", ":1: an empty file"), ("[1]\n", ":1: expected a JSON object"), ("{\n", ":1: not JSON"),
     ('{"a": 1}\n', ":1: neither cuts nor supervisions"), ('{"supervisions": [], "id": "c"}\n', ":1: cut 'c' has no")],
)  # fmt: skip
def test_what_is_wrong_in_lhotse_files(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cuts.jsonl").write_text(content)
    with pytest.raises(ManifestError, match=message):
        read_format("lhotse", tmp_path / "cuts.jsonl")


def test_speechbrain_paths_start_at_the_data_root(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("ID,duration,wav,start,stop,spk_id,wrd\nu,0.5,$data_root/a.wav,8000,16000,s,HI\n")
    (u,) = read_format("speechbrain", tmp_path / "s.csv", root=audio)
    assert (u.offset, u.duration, u.speaker, u.text) == (0.5, 0.5, "s", "HI") and not u.extra
    with pytest.raises(ManifestError, match=":2: .* say where that is with --root"):
        read_format("speechbrain", tmp_path / "s.csv")
    (tmp_path / "s.csv").write_bytes("ID,duration,wav,spk_id\nu,0.5,a.wav,Müller\n".encode("cp1252"))
    with pytest.raises(ManifestError, match=r"s\.csv: not UTF-8 text .*; convert the table to UTF-8"):
        read_format("speechbrain", tmp_path / "s.csv", root=audio)
    (tmp_path / "s.csv").write_text("ID,duration,wav,start,stop\nu,0.5,a.wav,8000,\n")
    with pytest.raises(ManifestError, match=":2: start and stop belong together"):
        read_format("speechbrain", tmp_path / "s.csv", root=audio)
    (tmp_path / "s.csv").write_text("ID,duration,wav,start,stop\nu,0.5,a.wav,x,9\n")
    with pytest.raises(ManifestError, match=":2: start 'x', stop '9': expected samples"):
        read_format("speechbrain", tmp_path / "s.csv", root=audio)


def test_speechbrain_itself_reads_what_is_written(audio: Path, tmp_path: Path) -> None:
    from speechbrain.dataio.dataset import DynamicItemDataset

    write_format("speechbrain", pieces(audio), tmp_path / "s.csv")
    data = DynamicItemDataset.from_csv(str(tmp_path / "s.csv")).data
    assert (data["s1-a2"]["wrd"], data["s1-a2"]["start"], data["s1-a2"]["stop"]) == ("NO", "16000", "32000")


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_hugging_face_tables_give_up_their_audio_and_their_classes(suffix: str, audio: Path, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    features = {"label": {"names": ["angry", "calm"], "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    wav = (audio / "b" / "b.wav").read_bytes()
    rows = {
        "audio": [{"bytes": wav, "path": f"{name}.wav"} for name in "bc"]
        + [{"bytes": None, "path": str(audio / "a.wav")}],
        "sentence": ["YES", "", "NO"],
        "label": [1, -1, 0],
        "age": [30, 35, 40],
    }
    table = pyarrow.table(rows).replace_schema_metadata(metadata)
    folder = tmp_path / "saved"
    folder.mkdir()
    if suffix == ".parquet":
        parquet.write_table(table, folder / "train.parquet")
    else:
        with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(table)
    found = read_format("huggingface", folder, audio=tmp_path / "out")
    assert [(u.label, u.extra["age"]) for u in found] == [("calm", 30), (None, 35), ("angry", 40)]
    assert [u.text for u in found] == ["YES", None, "NO"]
    assert found[0].audio_filepath == tmp_path / "out" / "000000-b.wav" and found.check_audio()
    with pytest.raises(ConfigError, match="name a folder to write it to with --audio"):
        read_format("huggingface", folder)
    parquet.write_table(
        pyarrow.table(rows | {"label": [0, 0, 2]}).replace_schema_metadata(metadata), folder / "z.parquet"
    )
    with pytest.raises(ManifestError, match=r"row \d: label is 2; its classes are 0 to 1, and -1 for none"):
        read_format("huggingface", folder / "z.parquet", audio=tmp_path / "out")


def test_hugging_face_metadata_is_whole_and_names_its_files(audio: Path, tmp_path: Path) -> None:
    manifest = pieces(audio).map(lambda u: replace(u, extra={"file_name": "of/before.wav"}))
    folder = tmp_path / "folder"
    write_format("huggingface", manifest, folder)
    assert told(read_format("huggingface", folder)) == told(manifest)
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text()[:-10])
    with pytest.raises(InputError, match=r"metadata\.jsonl:3: not JSON .*; get or write the file again, whole"):
        read_format("huggingface", folder)
    metadata.write_text('{"file_name": 5, "text": "YES"}\n')
    with pytest.raises(ManifestError, match=r"metadata\.jsonl:1: audio_filepath is 5, expected a path"):
        read_format("huggingface", folder)


@pytest.mark.parametrize("name", ["huggingface", "kaldi", "webdataset"])
def test_a_folder_that_cannot_be_written_whole_is_not_there(name: str, audio: Path, tmp_path: Path) -> None:
    manifest = pieces(audio).map(lambda u: replace(u, speaker="b"))
    broken = [*manifest, replace(manifest[0], id="two words", audio_filepath=audio / "gone.wav")]
    with pytest.raises((AudioError, ManifestError)):
        write_format(name, Manifest(broken), tmp_path / "new")
    write_format(name, manifest, tmp_path / "new")
    content = {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="new: exists already; choose a new folder"):
        write_format(name, manifest.map(lambda u: replace(u, speaker="c")), tmp_path / "new")
    assert content == {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()].count("new") == len(list(tmp_path.glob("*new*")))


def test_hugging_face_folders_per_class(audio: Path, tmp_path: Path) -> None:
    for name in ("up/1", "down/1"):
        speak(tmp_path / "words" / f"{name}.wav", 0.5)
    assert [(u.id, u.label) for u in read_format("huggingface", tmp_path / "words")] == [
        ("down-1", "down"),
        ("up-1", "up"),
    ]
    with pytest.raises(ManifestError, match="no metadata.csv, no metadata.jsonl"):
        read_format("huggingface", audio)


def test_channels_that_a_format_cannot_name_are_refused(audio: Path, tmp_path: Path) -> None:
    of_channel = pieces(audio).map(lambda u: replace(u, channel="mix"))
    for name in ("kaldi", "lhotse", "speechbrain"):
        with pytest.raises(ManifestError, match="utterance 's1-a1': .*channels"):
            write_format(name, of_channel, tmp_path / FILES[name])


# ------------------------------------------------------------------ tables


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("file,transcript,speaker\na.wav,\"Yes, it is\",s\n", None),
        ("path\tsentence\tclient_id\na.wav\tYes, it is\ts\n", None),
        ("Audio;Text;Spk\na.wav;Yes, it is;s\n", None),
        ("a.wav|Yes, it is|s\n", {"audio_filepath": "1", "text": "2", "speaker": "3"}),
        ("sep=;\nfile;text;speaker\na.wav;Yes, it is;s\n", None),
        ("file,text,speaker,,\na.wav,\"Yes, it is\",s,,\n", None),
        ("clip,said,who\na.wav,\"Yes, it is\",s\n", {"audio_filepath": "clip", "text": "said", "speaker": "who"}),
    ],
)  # fmt: skip
def test_tables_as_people_write_them(content: str, columns: dict | None, audio: Path, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(content)
    ((_, entry),) = read_table(tmp_path / "t", columns).entries()
    assert entry == {"audio_filepath": "a.wav", "text": "Yes, it is", "speaker": "s"}


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", None, ":1: an empty table"),
        ("file,text\n", None, ":1: a header but no rows"),
        ("name,text\na,b\n", None, ":1: no column names the audio files; there are 'name', 'text': say which"),
        ("file,path,text\na,b,c\n", None, ":1: 'file' and 'path' could both hold audio_filepath"),
        ("file,text\na,b\nc\n", None, ":3: 1 cells, and 2 columns"),
        ("file,file\na,b\n", None, ":1: two columns are called 'file'"),
        ("file,text\na,b\n", {"speaker": "who"}, ":1: no column 'who' for speaker; there are 'file', 'text'"),
        ("a,b\n", {"audio_filepath": "1", "text": "3"}, ":1: no column '3' for text"),
        (
            "file,text\n",
            {"file": "file"},
            ":1: --columns file=file: 'file' is not a key .*; did you mean 'audio_filepath'",
        ),
        ("file,said\na,b\n", {"txt": "said"}, ":1: --columns txt=said: .*; did you mean 'text'"),
        ("file,who\na,b\n", {"spkr": "who"}, ":1: --columns spkr=who: .*; did you mean 'speaker'"),
        ("file,who\na,b\n", {"wxyz": "who"}, ":1: --columns wxyz=who: .*; there are audio_filepath, text, speaker"),
    ],
)
def test_what_is_wrong_in_a_table(content: str, columns: dict | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ManifestError, match=f"t.csv{message}"):
        read_table(tmp_path / "t.csv", columns)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t.xlsx", "a workbook, expected CSV or TSV; save the sheet as CSV"),
        ("t.json", "JSON, expected CSV or TSV"),
        ("t.jsonl", "JSON lines, .*manifest import nemo"),
        ("t.SRT", "a text with times, .*beside its recording"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(ManifestError, match=f"{name}: {message}"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_table_in_utf16_is_told_how_to_become_utf8(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "my t.csv").write_bytes("file;text\na;Ü\n".encode(encoding))
    codec = "UTF-16BE" if encoding == "utf-16-be" else "UTF-16LE"
    with pytest.raises(ManifestError, match=f"not UTF-8 text but UTF-16; .*iconv -f {codec} -t UTF-8 '.*my t.csv'"):
        read_table(tmp_path / "my t.csv")


def test_a_table_of_clips_in_another_folder(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('path\tsentence\tclient_id\na.wav\tSAY "HI"\tx1\n')
    (u,) = read_format("csv", tmp_path / "t.tsv", root=audio)
    assert u == Utterance("a", audio / "a.wav", 2.0, text='SAY "HI"', speaker="x1")
    with pytest.raises(ManifestError, match=r"t\.tsv:2: duration is 'x1', expected seconds"):
        read_format("csv", tmp_path / "t.tsv", root=audio, columns={"duration": "client_id"})
    with pytest.raises(ManifestError, match=r"t\.tsv:2: .*no such audio file"):
        read_format("csv", tmp_path / "t.tsv")


@pytest.mark.parametrize("header", ["path\ttext", '"path"\t"text"'])
def test_tabs_as_spreadsheets_write_them(header: str, audio: Path, tmp_path: Path) -> None:
    quoted = '"a.wav"' if header.startswith('"') else "a.wav"
    (tmp_path / "t.tsv").write_text(f'{header}\r\n{quoted}\t"HE SAID ""HI"",\nAND WENT"\r\n')
    (u,) = read_format("csv", tmp_path / "t.tsv", root=audio)
    assert u.text == 'HE SAID "HI", AND WENT'


def test_quotes_of_a_text_swallow_no_rows_between_them(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('path\ttext\na.wav\t"Hello\nb.wav\tX\ty\nc.wav\tGo"\n')
    with pytest.raises(ManifestError, match=r"t\.tsv:3: 3 cells, and 2 columns"):
        read_table(tmp_path / "t.tsv")


def test_a_number_that_has_lost_its_zeros_is_told(audio: Path, tmp_path: Path) -> None:
    (audio / "a.wav").rename(audio / "007.wav")
    (tmp_path / "t.csv").write_text("file;text\n7;YES\n")
    with pytest.raises(ManifestError, match=r"t\.csv:2: .* has no '7' \('007' is there: .*zeros"):
        read_folder(audio, table=tmp_path / "t.csv")


# ------------------------------------------------------------------ folders


def test_a_folder_and_a_table_by_path_name_or_stem(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,text,text_id\nb/b.wav,NO,1\na,YES,2\n")
    content = read_folder(audio, table=tmp_path / "t.csv")
    assert [(u.id, u.text, u.duration, u.extra) for u in content.manifest] == [
        ("b", "NO", 1.0, {"text_id": "1"}),
        ("a", "YES", 2.0, {"text_id": "2"}),
    ]
    assert content.left_out == () and content.table.kept == ("text_id",)
    (tmp_path / "t.csv").write_text("file,text\na.wav,YES\nc.wav,NO\n")
    with pytest.raises(ManifestError, match="t.csv:3: .*wav has no 'c.wav'"):
        read_folder(audio, table=tmp_path / "t.csv")


def test_a_table_from_before_a_conversion_finds_its_recordings(audio: Path, tmp_path: Path) -> None:
    (audio / "a.m4a").write_bytes(b"aac")
    (tmp_path / "t.csv").write_text("file,text\na.m4a,YES\nold/b/b.MP3,NO\n")
    found = read_folder(audio, table=tmp_path / "t.csv").manifest
    assert [(u.audio_filepath, u.text) for u in found] == [(audio / "a.wav", "YES"), (audio / "b" / "b.wav", "NO")]
    (tmp_path / "t.csv").write_text("file,text\na.v2,YES\n")
    with pytest.raises(ManifestError, match=r"has no 'a\.v2'"):
        read_folder(audio, table=tmp_path / "t.csv")


def test_the_addresses_of_label_studio_are_the_recordings_own_names(audio: Path, tmp_path: Path) -> None:
    a, b = audio / "a.wav", audio / "b" / "b.wav"
    speak(audio / "ü 1.wav")
    table = tmp_path / "t.csv"
    for address, path in {
        "/data/upload/3/0f1e2d3c-a.wav": a,
        "https://studio.example/data/upload/12/0f1e2d3c-%C3%BC%201.wav": audio / "ü 1.wav",
        "/data/local-files/?d=wav%2Fb%2Fb.wav": b,
        "/data/local-files/?d=calls/b/b.wav": b,
        "/data/local-files/?d=a.wav": a,
    }.items():
        table.write_text(f"audio,id,transcription\n{address},1,YES\n")
        assert [(u.audio_filepath, u.text) for u in read_folder(audio, table=table).manifest] == [(path, "YES")]
    table.write_text("audio,id,transcription\n/data/upload/3/0f1e2d3c-c.wav,1,YES\n")
    with pytest.raises(
        ManifestError, match=r"has no 'c\.wav', which Label Studio has as /data/upload/3/0f1e2d3c-c\.wav"
    ):
        read_folder(audio, table=table)
    speak(audio / "0f1e2d3c-c.wav")  # a copy of its own folder of uploads
    assert read_folder(audio, table=table).manifest[0].audio_filepath == audio / "0f1e2d3c-c.wav"
    table.write_text("audio,text\n/data/local-files/?d=old/b.wav,YES\n")
    with pytest.raises(ManifestError, match=r"has no 'old/b\.wav' \(b/b\.wav is another folder's\)"):
        read_folder(audio, table=table)


def test_a_path_from_elsewhere_is_no_other_folders_recording_of_its_name(audio: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for path in ("test/c/b.wav", "/data/test/c/b.wav", "D:\\calls\\b.wav"):
        table.write_text(f"file,text\n{path},YES\n")
        with pytest.raises(ManifestError, match=r"t\.csv:2: .* has no .* \(b/b\.wav is another folder's\); give"):
            read_folder(audio, table=table)
    speak(audio / "c" / "b" / "b.wav", 0.5)
    for path, found in (("old/c/b/b.wav", "c/b/b.wav"), ("/data/wav/b/b", "b/b.wav"), ("wav/c/b/b", "c/b/b.wav")):
        table.write_text(f"file,text\n{path},YES\n")
        assert read_folder(audio, table=table).manifest[0].audio_filepath == audio / found
    table.write_text("file,text\nold/b/b.wav,YES\n")
    with pytest.raises(ManifestError, match=r"could be b/b\.wav, c/b/b\.wav; give the path from"):
        read_folder(audio, table=table)


def test_rows_of_one_recording_are_told_apart_by_channel_and_time(audio: Path, tmp_path: Path) -> None:
    soundfile.write(audio / "call.wav", np.full((16_000 * 4, 2), 0.1), 16_000)
    table = tmp_path / "t.csv"
    table.write_text("file,channel,text\ncall.wav,0,YES\ncall.wav,1,NO\n")
    assert [u.id for u in read_folder(audio, table=table).manifest] == ["call-channel0", "call-channel1"]
    for read in (lambda: read_folder(audio, table=table).manifest, lambda: read_format("csv", table, root=audio)):
        table.write_text("file,Start,end,channel,text\ncall.wav,1.0,2.5,0,YES\ncall.wav,3,3.5,0,NO\n")
        assert [(u.offset, u.duration, u.extra) for u in read()] == [(1.0, 1.5, {}), (3.0, 0.5, {})]
        table.write_text("file,start,duration,end,channel,text\ncall.wav,1.0,0.5,2.5,0,YES\n")
        assert [(u.offset, u.duration, u.extra) for u in read()] == [(1.0, 0.5, {"end": "2.5"})]
        table.write_text("file,start,end,channel,text\ncall.wav,1.0,0.5,0,YES\n")
        with pytest.raises(ManifestError, match=r"t\.csv:2: duration"):
            read()
        table.write_text("file,start,end,channel,text\ncall.wav,1.0,late,0,YES\n")
        with pytest.raises(ManifestError, match=r"t\.csv:2: end is 'late', expected seconds"):
            read()


def test_a_channel_is_one_of_files_with_several(audio: Path, tmp_path: Path) -> None:
    soundfile.write(audio / "call.wav", np.full((16_000, 2), 0.1), 16_000)
    for channel in (0, 1, "mix"):
        found = {u.audio_filepath.name: u.channel for u in read_folder(audio, channel=channel).manifest}
        assert found == {"a.wav": None, "b.wav": None, "call.wav": channel}
    (tmp_path / "t.csv").write_text("file,channel\ncall,landline\na,landline\n")
    assert len(read_folder(audio, table=tmp_path / "t.csv").manifest) == 2
    with pytest.raises(
        ManifestError, match=r"t\.csv:2: the channel 'landline' is neither a number nor 'mix'; give that"
    ):
        read_folder(audio, table=tmp_path / "t.csv", channel=1)
    with pytest.raises(ManifestError, match=r": call.wav: .*call.wav: channel=5 does not exist; use 0 to 1, or"):
        read_folder(audio, channel=5)


def test_the_folders_of_windows_and_the_accents_of_macs(audio: Path, tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    for there, said in ((decomposed, composed), (composed, decomposed)):
        folder = tmp_path / f"{ascii(there)[1]}{len(there)}"
        speak(folder / there / "Anruf 1.wav", 1.0)
        speak(folder / "other" / "Anruf 1.wav", 1.0)
        for path in (f"{said}/Anruf 1.wav", f"{said}\\Anruf 1.wav", f"{there}\\Anruf 1"):
            (tmp_path / "t.csv").write_text(f"file,text\n{path},YES\n")
            (u,) = read_folder(folder, table=tmp_path / "t.csv").manifest
            assert u.audio_filepath == folder / there / "Anruf 1.wav" and u.id == "Anruf 1"
    (tmp_path / "t.csv").write_text("file,text\nC:\\calls\\b\\b.wav,YES\n")
    assert read_folder(audio, table=tmp_path / "t.csv").manifest[0].audio_filepath == audio / "b" / "b.wav"
    (tmp_path / "t.csv").write_text("file,text\nwav\\b\\b.wav,YES\n")
    assert read_format("csv", tmp_path / "t.csv")[0].audio_filepath == audio / "b" / "b.wav"
    speak(audio / "odd\\name.wav", 1.0)
    (tmp_path / "t.csv").write_text("file,text\nodd\\name.wav,YES\n")
    assert read_folder(audio, table=tmp_path / "t.csv").manifest[0].audio_filepath == audio / "odd\\name.wav"


def test_two_rows_of_one_recording_are_named(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,text\na.wav,YES\nb/b.wav,NO\na.wav,YES\n")
    for read in (lambda t: read_folder(audio, table=t), lambda t: read_format("csv", t, root=audio)):
        with pytest.raises(
            ManifestError, match=r"t\.csv:4: id 'a' repeats that of .*t\.csv:2; give each line its own"
        ):
            read(tmp_path / "t.csv")


def test_a_folder_is_searched_through_links_and_not_where_things_are_hidden(audio: Path, tmp_path: Path) -> None:
    speak(tmp_path / "disk" / "tuesday" / "d.wav", 0.5)
    speak(audio / ".Trash" / "old.wav", 0.5)
    (audio / "aa").symlink_to(audio / "b")
    (audio / "linked").symlink_to(tmp_path / "disk")
    (audio / "linked" / "tuesday" / "up").symlink_to(audio)
    (audio / "a").mkdir()
    (audio / "a" / "link").symlink_to(audio / "b")
    found = [u.audio_filepath.relative_to(audio).as_posix() for u in read_folder(audio).manifest]
    assert found == ["a.wav", "b/b.wav", "linked/tuesday/d.wav"]


def test_recordings_that_must_be_converted_are_named(audio: Path, tmp_path: Path) -> None:
    (audio / "c.M4A").write_bytes(b"aac")
    speak(audio / "d.aiff", 1.0)
    content = read_folder(audio)
    assert content.unreadable == (audio / "c.M4A",) and len(content.manifest) == 3
    (tmp_path / "t.csv").write_text("file,text\na,YES\nc.M4A,NO\n")
    with pytest.raises(ManifestError, match=r"t\.csv:3: .*has no 'c.M4A' of a kind that is read: .*ffmpeg"):
        read_folder(audio, table=tmp_path / "t.csv")
    (tmp_path / "phone").mkdir()
    (audio / "c.M4A").rename(tmp_path / "phone" / "c.m4a")
    for read, error in (
        (read_folder, ManifestError),
        (lambda folder: local_files([str(folder)]).__enter__(), AudioError),
    ):
        with pytest.raises(
            error, match=r"phone: 1 recording of a kind that is not read, such as .*c\.m4a; convert to"
        ):
            read(tmp_path / "phone")


def test_a_folders_recordings_of_other_kinds_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "b.m4a").touch()
    left_out: dict[str, str] = {}
    with pytest.raises(AudioError, match="1 recording of a kind that is not read"):
        local_files([str(tmp_path)], left_out=left_out).__enter__()
    speak(tmp_path / "a.wav")
    with local_files([str(tmp_path)], left_out=left_out) as found:
        assert [path for _, path in found] == [tmp_path / "a.wav"]
    assert list(left_out) == [str(tmp_path / "b.m4a")] and "ffmpeg" in left_out[str(tmp_path / "b.m4a")]


def test_a_file_named_like_a_home_folder_is_a_file() -> None:
    with local_files(["~x.wav"]) as found:
        assert found == [("~x.wav", Path("~x.wav"))]


def test_a_name_that_two_recordings_have(audio: Path, tmp_path: Path) -> None:
    speak(audio / "b" / "a.wav", 0.5)
    (tmp_path / "t.csv").write_text("file,text\nb,YES\na.flac,NO\n")
    with pytest.raises(ManifestError, match="t.csv:3: 'a.flac' could be a.wav, b/a.wav; give the path from"):
        read_folder(audio, table=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("file,text\na,YES\n")
    with pytest.raises(ManifestError, match="t.csv:2: 'a' could be a.wav, b/a.wav; give the path from"):
        read_folder(audio, table=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("file,text\na.wav,YES\nb/a.wav,NO\n")
    found = read_folder(audio, table=tmp_path / "t.csv")
    assert [(u.id, u.text) for u in found.manifest] == [("a", "YES"), ("b-a", "NO")]
    assert found.left_out == (audio / "b" / "b.wav",)


def test_a_recording_in_two_formats_is_named(audio: Path, tmp_path: Path) -> None:
    soundfile.write(audio / "a.flac", np.full(16_000, 0.1), 16_000)
    with pytest.raises(ManifestError, match=r": a\.flac: a is there under several suffixes; keep one of these files"):
        read_folder(audio)
    (tmp_path / "t.csv").write_text("file\na.flac\n")
    assert len(read_folder(audio, table=tmp_path / "t.csv").manifest) == 1
    (tmp_path / "t.csv").write_text("file,id\na.flac,1\na.wav,2\n")
    assert len(read_folder(audio, table=tmp_path / "t.csv").manifest) == 2


def test_the_path_from_the_folder_is_the_recording_whatever_sorts_first(audio: Path, tmp_path: Path) -> None:
    speak(audio / "z.wav", 1.0)
    speak(audio / "b" / "z.wav", 2.0)
    for said in ("z.wav", str(audio / "z.wav")):
        (tmp_path / "t.csv").write_text(f"file,text\n{said},YES\n")
        (found,) = read_folder(audio, table=tmp_path / "t.csv").manifest
        assert found.audio_filepath == audio / "z.wav"
    (tmp_path / "t.csv").write_text(f"file,text\n{audio / 'b' / 'z.wav'},YES\n")
    speak(audio / "c" / "z.wav", 1.0)
    with pytest.raises(ManifestError, match=r"t.csv:2: .*c has no '.*z.wav'"):
        read_folder(audio / "c", table=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("file,text\n/of/another/machine/b/b.wav,YES\n")
    assert read_folder(audio, table=tmp_path / "t.csv").manifest[0].audio_filepath == audio / "b" / "b.wav"


def test_texts_beside_the_recordings(audio: Path) -> None:
    assert [u.text for u in read_folder(audio).manifest] == [None, None]
    (audio / "a.txt").write_text("Yes,\n it is.\n")
    content = read_folder(audio)
    assert [(u.id, u.text) for u in content.manifest] == [("a", "Yes, it is.")]
    assert content.left_out == (audio / "b" / "b.wav",)


SUBTITLES = """\
\ufeff1\r
00:00:00,250 --> 00:00:01,000\r
<i>Fish &amp; chips?\r
Yes,</i> it is.\r
\r
2\r
00:00:01,000 --> 00:00:01,100\r
<i></i>\r
\r
3\r
00:00:01,250 --> 00:00:02,000 X1:10\r
{\\an8}No.\r
"""
WEB_VTT = """\
WEBVTT Kind: captions

NOTE of anna

first
00:00.250 --> 00:01.000 align:start
<v Anna Bell>Fish &amp; chips? <c.loud>Yes,</c> it is.

00:00:01.250 --> 00:00:02.000
<v Anna Bell>No. <v Ben>No.
"""
LABELS = "0.250000\t1.000000\tFish & chips? Yes, it is.\n\\\t100.0\t200.0\n1,0\t1,1\t\n1,25\t2\tNo.\n"


@pytest.mark.parametrize(
    ("name", "content", "texts", "speakers"),
    [
        ("a.srt", SUBTITLES, ["Fish &amp; chips? Yes, it is.", "No."], [None, None]),
        ("a.vtt", WEB_VTT, ["Fish & chips? Yes, it is.", "No. No."], ["Anna Bell", None]),
        ("a.txt", LABELS, ["Fish & chips? Yes, it is.", "No."], [None, None]),
    ],
)
def test_texts_with_times_beside_the_recordings(
    name: str, content: str, texts: list[str], speakers: list[str | None], audio: Path
) -> None:
    (audio / name).write_bytes(content.encode())
    found = read_folder(audio)
    assert [(u.id, u.offset, u.duration) for u in found.manifest] == [("a-0.250", 0.25, 0.75), ("a-1.250", 1.25, 0.75)]
    assert [u.text for u in found.manifest] == texts
    assert [u.speaker for u in found.manifest] == speakers
    assert found.left_out == (audio / "b" / "b.wav",)
    speak(audio / "b" / "a.wav", 2.0)
    (audio / "b" / name).write_bytes(content.encode())
    assert [u.id for u in read_folder(audio).manifest] == ["a-0.250", "a-1.250", "b-a-0.250", "b-a-1.250"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.srt", "1\n00:00:00,250 -> 00:00:01,000\nYes.\n", "a.srt:2: .*stands outside of a subtitle"),
        ("a.srt", "\n", "a.srt: no text in it"),
        ("a.srt", "1\n00:00:00,250 --> soon\nYes.\n", "a.srt:2: expected times such as 00:01:02,500 -->"),
        ("a.vtt", "00:00.250 --> 00:01.000\nYes.\n00:01.000 --> 00:02.000\nNo.\n", "a.vtt:3: times .*blank line"),
        ("a.srt", "\n00:00:01,000 --> 00:00:01,000\nYes.\n", "a.srt:2: duration is 0 s"),
        ("a.txt", "0.5\t1.0\tYes.\nNo.\n", "a.txt:2: expected a label of Audacity's"),
        ("a.srt", "1\n00:00:00,250 --> 00:00:01,000\nYes.\n\nNo.\n", r"a.srt:5: 'No\.' stands outside of a subtitle"),
        ("a.vtt", "00:00.250 --> 00:01.000\n \nyes<00:00:00.480><c> it</c>\n", "a.vtt:3: captions that roll"),
        ("a.SRT", "1\n00:00:00,250 --> 00:01:01,000\nYes.\n", r"a.SRT:2: ends at 61.00 s, and a.wav at"),
    ],
)
def test_what_is_wrong_in_texts_with_times(name: str, content: str, message: str, audio: Path) -> None:
    (audio / name).write_text(content)
    with pytest.raises(ManifestError, match=message):
        read_folder(audio)


TEXT_GRID = """\
File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "agent"
        xmin = 0
        xmax = 2.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]: ! "Said twice" 1 2
            xmin = 0.25
            xmax = 1
            text = "He said ""1 < 2""
so!"
        intervals [3]:
            xmin = 2
            xmax = 2.4
            text = "Bye."
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 2.5
        points: size = 1
        points [1]:
            number = 0.5
            mark = "click"
    item [3]:
        class = "IntervalTier"
        name = "customer"
        xmin = 0
        xmax = 2.5
        intervals: size = 1
        intervals [1]:
            xmin = 1.25
            xmax = 2e0
            text = "Åh?"
"""


def _short(text_grid: str) -> str:
    """Praat's short form: the same without the words that are for people."""
    kept = [re.sub(r"^.* = |^tiers\? |^ *\w+ \[\d*\]:.*|^.*: size = ", "", line) for line in text_grid.splitlines()]
    return "\n".join(line for line in kept if line and line != "item []:")


@pytest.mark.parametrize("written", [TEXT_GRID, TEXT_GRID.replace("\n", "\r\n"), _short(TEXT_GRID)])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tiers_of_text_grids(written: str, encoding: str, audio: Path) -> None:
    speak(audio / "a.wav", 2.5)
    (audio / "a.TextGrid").write_bytes(written.encode(encoding))
    (audio / "a.txt").write_text("another text")
    found = read_folder(audio, tiers=["agent"])
    assert [(u.offset, u.duration, u.text, u.speaker) for u in found.manifest] == [
        (0.25, 0.75, 'He said "1 < 2" so!', None),
        (2.0, pytest.approx(0.4), "Bye.", None),
    ]
    assert found.left_out == (audio / "b" / "b.wav",)
    both = read_folder(audio, tiers=["customer", "agent"]).manifest
    assert [(u.id, u.speaker) for u in both] == [("a-0.250", "agent"), ("a-1.250", "customer"), ("a-2.000", "agent")]
    (audio / "a.TextGrid").write_bytes(written.replace("1.25", "0.2501").encode(encoding))
    both = read_folder(audio, tiers=["agent", "customer"], pattern="{speaker}").manifest
    assert [(u.id, u.speaker, u.extra["tier"]) for u in both] == [
        ("a-0.250", "a", "agent"),
        ("a-0.250-2", "a", "customer"),
        ("a-2.000", "a", "agent"),
    ]
    speak(audio / "b" / "a.wav", 2.5)
    (audio / "b" / "a.TextGrid").write_bytes((audio / "a.TextGrid").read_bytes())
    several = read_folder(audio, tiers=["agent", "customer"]).manifest
    assert [u.id for u in several][2:5] == ["a-2.000", "b-a-0.250", "b-a-0.250-2"]
    assert read_folder(audio).manifest[0].text == "another text"


def test_tiers_of_one_name_are_refused_where_they_are_asked_for(audio: Path) -> None:
    speak(audio / "a.wav", 2.5)
    (audio / "a.TextGrid").write_text(TEXT_GRID.replace('"customer"', '" other "').replace('"agent"', '"other"'))
    with pytest.raises(ManifestError, match="a second tier 'other'"):
        read_folder(audio, tiers=["other"])
    (audio / "a.TextGrid").write_text(TEXT_GRID.replace('"TextTier"', '"IntervalTier"').replace("0.5", "0.5\n0.6")
                                      .replace('"clicks"', '"customer"'))  # fmt: skip
    assert len(read_folder(audio, tiers=["agent"]).manifest) == 2


@pytest.mark.parametrize(
    ("broken", "tiers", "message"),
    [
        (TEXT_GRID, "Agent", "a.TextGrid: no tier 'Agent'; it has 'agent', 'customer'"),
        (TEXT_GRID, "agent,client", ": no .TextGrid or .eaf has the tier 'client'; check the name"),
        (TEXT_GRID.replace("2e0", "3"), "customer", "a.TextGrid:46: ends at 3.00 s, and a.wav at 2.50 s"),
        (TEXT_GRID.replace("2e0", "two"), "agent", 'a.TextGrid:46: expected a number, got "Åh\\?"'),
        (TEXT_GRID[: TEXT_GRID.index('class = "TextTier')], "agent", "a.TextGrid: cut short after line"),
        (TEXT_GRID.replace("customer", "agent"), "agent", "a.TextGrid:46: a second tier 'agent'"),
        (TEXT_GRID.replace("size = 3", "size = 1e999", 1), "agent", "a.TextGrid:7: expected a count, got inf"),
        (TEXT_GRID.replace("Åh?", ""), "customer", "a.TextGrid: no text in 'customer'"),
        (TEXT_GRID.replace('"TextGrid"', '"Sound"'), "agent", "a.TextGrid: not a TextGrid of Praat's"),
        ("ooBinaryFile\x08TextGrid\x00", "agent", "a.TextGrid: a binary TextGrid"),
        (TEXT_GRID.replace("<exists>\nsize = 3", "<absent>"), "agent", "no tier 'agent'; it has no intervals"),
    ],
)
def test_what_is_wrong_in_text_grids(broken: str, tiers: str, message: str, audio: Path) -> None:
    speak(audio / "a.wav", 2.5)
    with pytest.raises(ManifestError, match="no recording has a .TextGrid or .eaf beside it"):
        read_folder(audio, tiers=["agent"])
    (audio / "a.TextGrid").write_text(broken)
    with pytest.raises(ManifestError, match=message):
        read_folder(audio, tiers=tiers.split(","))
    with pytest.raises(ManifestError, match="give them or a table, not both"):
        read_folder(audio, tiers=["agent"], table="t.csv")


EAF = """\
<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2026-03-02T10:00:00+01:00" FORMAT="3.0" VERSION="3.0">
    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/calls/a.wav" MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./a.wav"/>
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/calls/film.mp4" MIME_TYPE="video/mp4" TIME_ORIGIN="1200"/>
    </HEADER>
    <TIME_ORDER>
        <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="250"/>
        <TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1000"/>
        <TIME_SLOT TIME_SLOT_ID="ts3"/>
        <TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="1250"/>
        <TIME_SLOT TIME_SLOT_ID="ts5" TIME_VALUE="2400"/>
    </TIME_ORDER>
    <TIER LINGUISTIC_TYPE_REF="t" PARTICIPANT="Anna" TIER_ID="turns">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
            <ANNOTATION_VALUE>1</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts4" TIME_SLOT_REF2="ts5">
            <ANNOTATION_VALUE/></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="w" PARENT_REF="turns" PARTICIPANT="Anna" TIER_ID="words">
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a3" ANNOTATION_REF="a1">
            <ANNOTATION_VALUE>Good</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a4" ANNOTATION_REF="a1" PREVIOUS_ANNOTATION="a3">
            <ANNOTATION_VALUE>morning
            &amp; \u00e5h.</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a5" ANNOTATION_REF="a2">
            <ANNOTATION_VALUE>Bye.</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="m" PARENT_REF="words" PARTICIPANT="Anna" TIER_ID="morphs">
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a6" ANNOTATION_REF="a3">
            <ANNOTATION_VALUE>good</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a7" ANNOTATION_REF="a4">
            <ANNOTATION_VALUE>morn</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a8" ANNOTATION_REF="a4" PREVIOUS_ANNOTATION="a7">
            <ANNOTATION_VALUE>-ing</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="t" TIER_ID="noise">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a9" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts3">
            <ANNOTATION_VALUE>door</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="t" TIER_ID="ben">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a10" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts5">
            <ANNOTATION_VALUE>Yes.</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
</ANNOTATION_DOCUMENT>
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_tiers_of_elan(encoding: str, audio: Path) -> None:
    speak(audio / "a.wav", 2.5)
    declared = EAF.replace("UTF-8", {"utf-8-sig": "UTF-8"}.get(encoding, encoding.upper()))
    (audio / "a.eaf").write_bytes(declared.encode(encoding))
    found = read_folder(audio, tiers=["words"])
    assert [(u.offset, u.duration, u.text, u.speaker) for u in found.manifest] == [
        (0.25, 0.75, "Good morning & åh.", "Anna"),
        (1.25, pytest.approx(1.15), "Bye.", "Anna"),
    ]
    assert found.left_out == (audio / "b" / "b.wav",)
    assert [u.text for u in read_folder(audio, tiers=["morphs"]).manifest] == ["good morn -ing"]
    both = read_folder(audio, tiers=["ben", "words"]).manifest
    assert [(u.id, u.speaker, u.extra["tier"]) for u in both] == [
        ("a-0.250", "Anna", "words"),
        ("a-1.000", "ben", "ben"),
        ("a-1.250", "Anna", "words"),
    ]
    assert read_folder(audio, tiers=["ben"]).manifest[0].speaker is None
    assert read_folder(audio, tiers=["words"], pattern="{speaker}").manifest[0].speaker == "a"


@pytest.mark.parametrize(
    ("broken", "tiers", "message"),
    [
        (EAF, "Words", "a.eaf: no tier 'Words'; it has 'turns', 'words', 'morphs', 'noise', 'ben'"),
        (EAF, "noise", r"a.eaf:38: the slot ts3 has no time \(''\); align it in ELAN"),
        (EAF.replace('"2400"', '"2700"'), "ben", "a.eaf:42: ends at 2.70 s, and a.wav at 2.50 s"),
        (EAF.replace('PREVIOUS_ANNOTATION="a3"', 'PREVIOUS_ANNOTATION="a5"'), "words", "a.eaf:23: not in the order"),
        (EAF.replace('"a3" ANNOTATION_REF="a1"', '"a3" ANNOTATION_REF="a3"'), "words", "a.eaf:21: hangs on itself"),
        (
            EAF.replace('ANNOTATION_REF="a2"', 'ANNOTATION_REF="b2"'),
            "words",
            "a.eaf:26: ANNOTATION_REF is 'b2', which",
        ),
        (EAF.replace(' ANNOTATION_REF="a2"', ""), "words", "a.eaf:26: REF_ANNOTATION without ANNOTATION_REF"),
        (EAF.replace("milliseconds", "PAL-frames"), "ben", "a.eaf:3: its times are in PAL-frames"),
        (EAF.replace("film.mp4", "a.mp4"), "ben", "a.eaf:5: the recording is 1200 ms apart"),
        (EAF[: EAF.index('    <TIER LINGUISTIC_TYPE_REF="m"')], "words", "a.eaf:29: no XML any more"),
        (EAF.replace("ANNOTATION_DOCUMENT", "TEI"), "words", "a.eaf: not a file of ELAN's"),
        (EAF.replace('TIER_ID="noise"', 'TIER_ID="ben"'), "ben", "a.eaf:41: a second tier 'ben'"),
        (
            EAF.replace("TIER ", "TIRE ").replace("/TIER", "/TIRE"),
            "ben",
            "a.eaf:15: an annotation outside of any tier",
        ),
        (EAF.replace("film.mp4", "%61.mp4"), "ben", "a.eaf:5: the recording is 1200 ms apart"),
        (EAF.replace("Yes.", " "), "ben", "a.eaf: no text in 'ben'"),
        ("", "ben", "a.eaf:1: no XML any more"),
    ],
)
def test_what_is_wrong_in_elans_files(broken: str, tiers: str, message: str, audio: Path) -> None:
    speak(audio / "a.wav", 2.5)
    (audio / "a.eaf").write_text(broken, encoding="utf-8")
    with pytest.raises(ManifestError, match=message):
        read_folder(audio, tiers=tiers.split(","))


def test_two_files_of_tiers_beside_a_recording_are_refused(audio: Path) -> None:
    speak(audio / "a.wav", 2.5)
    (audio / "a.eaf").write_text(EAF, encoding="utf-8")
    (audio / "a.TextGrid").write_text(TEXT_GRID)
    with pytest.raises(ManifestError, match="a.TextGrid and a.eaf hold what is said; keep one of them"):
        read_folder(audio, tiers=["agent"])


def test_two_subtitles_may_begin_at_once(audio: Path) -> None:
    cue = "{}\n00:00:00,250 --> 00:00:01,000\n{}\n\n"
    (audio / "a.SRT").write_text(cue.format(1, "Yes.") + cue.format(2, "No."))
    found = read_folder(audio).manifest
    assert [(u.id, u.text) for u in found] == [("a-0.250", "Yes."), ("a-0.250-2", "No.")]


def test_of_whispers_files_beside_a_recording_one_kind_is_read(audio: Path) -> None:
    cues = "00:00:00.000 --> 00:00:00.900\nYes.\n\n00:00:01.000 --> 00:00:01.900\nNo.\n"
    for kind, content in {
        "txt": "Yes.\nNo.\n",
        "vtt": f"WEBVTT\n\n{cues}",
        "srt": cues,
        "tsv": "",
        "json": "{}",
    }.items():
        (audio / f"a.{kind}").write_text(content)
    with pytest.raises(
        ManifestError, match="a.vtt hold what is said; say which with --texts srt or txt or vtt, or keep"
    ):
        read_folder(audio)
    for kind, said in {"txt": ["Yes. No."], "vtt": ["Yes.", "No."], "srt": ["Yes.", "No."]}.items():
        found = read_folder(audio, texts=kind)
        assert [u.text for u in found.manifest] == said and found.left_out == (audio / "b" / "b.wav",), kind
    (audio / "a.srt").unlink()
    with pytest.raises(ManifestError, match="no recording has a .srt beside it"):
        read_folder(audio, texts="srt")
    with pytest.raises(ManifestError, match="one of the three"):
        read_folder(audio, texts="txt", table="t.csv")


def test_paths_that_say_it(tmp_path: Path) -> None:
    for name in ("anna/happy-1", "anna/sad-2", "ben/happy-1"):
        speak(tmp_path / "c" / f"{name}.wav", 0.2)
    found = read_folder(tmp_path / "c", pattern="{speaker}/{emotion}-{}").manifest
    assert [(u.id, u.speaker, u.emotion) for u in found] == [
        ("anna-happy-1", "anna", "happy"),
        ("sad-2", "anna", "sad"),
        ("ben-happy-1", "ben", "happy"),
    ]
    (tmp_path / "d").mkdir()
    soundfile.write(tmp_path / "d" / "call-1.wav", np.full((16_000, 2), 0.1), 16_000)
    assert read_folder(tmp_path / "d", pattern="{}-{channel}").manifest[0].channel == 1
    with pytest.raises(ManifestError, match=r"c: 3 of 3 paths do not fit .* {speaker}, such as anna/happy-1; .*whole"):
        read_folder(tmp_path / "c", pattern="{speaker}")
    with pytest.raises(ManifestError, match="name each key once"):
        read_folder(tmp_path / "c", pattern="{speaker}/{speaker}")
    with pytest.raises(ManifestError, match="name each key once, as a word"):
        read_folder(tmp_path / "c", pattern="{1}/{speaker}")


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_folder_without_recordings(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no such folder|no recordings in it"):
        read_folder(tmp_path / name)


def test_rows_of_separators_alone_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file;text\n;\na.wav;YES\n;;;;\n;\n")
    assert read_table(tmp_path / "t.csv").rows == ((":3", {"file": "a.wav", "text": "YES"}),)
