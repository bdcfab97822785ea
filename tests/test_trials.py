"""Trial lists and enrolment maps: reading, checking, refusing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.trials import Trial, UtteranceIndex, read_enrolment, read_trials, resolve, trial_speakers
from speech_adapters.errors import ManifestError

COMMITTED = Path(__file__).parents[1] / "manifests"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_pair_is_repeated_whatever_its_names_are(tmp_path, manifest):
    path = write(tmp_path / "t.txt", "1 a0 a1", "0 a0 b0", "1 x/a/0.wav a1")
    index = UtteranceIndex.of_manifest(manifest)
    with pytest.raises(ManifestError, match=r"t\.txt:3: repeats the pair of line 1; remove one of the two"):
        resolve(read_trials(path), index)
    assert len(resolve(read_trials(path, allow_repeats=True), index).trials) == 3
    models = read_enrolment(write(tmp_path / "models.txt", "m a0 b0", "n b0 a0", "o b0"))
    with pytest.raises(ManifestError, match=r"u\.txt:2: repeats the pair of line 1"):
        resolve(read_trials(write(tmp_path / "u.txt", "1 m a1", "1 n a1", "0 o a1")), index, models)


@pytest.fixture
def manifest() -> Manifest:
    """Two speakers, two utterances each, of which one path is of another form and one id is no path."""
    rows = [("a0", "a", "x/a/0.wav"), ("a1", "a", "x/a/1.wav"), ("b0", "b", "x/b/0.wav"), ("b1", "b", "y/b/1.flac")]
    return Manifest((Utterance(i, Path("/data") / p, 1.0, speaker=s) for i, s, p in rows), "test.jsonl")


def test_trials_are_arrays_that_read_as_trials(tmp_path):
    trials = read_trials(write(tmp_path / "t.txt", "\ufeff1 a.wav b.wav", "", "0  a.wav\tc.wav", "0 b.wav a.wav"))
    assert list(trials) == [Trial(1, "a.wav", "b.wav"), Trial(0, "a.wav", "c.wav"), Trial(0, "b.wav", "a.wav")]
    assert len(trials) == 3 and trials[2].test == "a.wav" and trials.lines.tolist() == [1, 3, 4]
    assert trials.enrol.dtype == np.int32 and trials.labels.dtype == bool


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("a.wav b.wav", "2 columns, expected 3"),
        ("0 a.wav b.wav 7", "4 columns, expected 3"),
        ("2 a.wav b.wav", "label '2'; expected 1 .* or 0"),
        ("a.wav b.wav 1", "label 'a.wav'; expected 1"),
        ("0 x.wav y.wav", "repeats the pair of line 1"),
    ],
)
def test_bad_trials_are_named_by_line(tmp_path, bad, message):
    path = write(tmp_path / "trials.txt", "1 x.wav y.wav", "", "0 x.wav z.wav", bad)
    with pytest.raises(ManifestError, match=f"trials.txt:4: .*{message}"):
        read_trials(path)


def test_lists_that_cannot_be_scored(tmp_path):
    with pytest.raises(ManifestError, match="none.txt:1: empty trial list"):
        read_trials(write(tmp_path / "none.txt", "", " "))
    with pytest.raises(ManifestError, match="ones.txt:2: all 2 trials .* targets .*need non-targets"):
        read_trials(write(tmp_path / "ones.txt", "1 a b", "1 a c"))
    with pytest.raises(ManifestError, match="zeros.txt:1: all 1 trials .* non-targets"):
        read_trials(write(tmp_path / "zeros.txt", "0 a b"))
    with pytest.raises(ManifestError, match="missing.txt: the trial list cannot be read"):
        read_trials(tmp_path / "missing.txt")
    (tmp_path / "bytes.txt").write_bytes(b"1 a b\n0 \xff\xfe c\n")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_trials(tmp_path / "bytes.txt")
    repeated = write(tmp_path / "repeated.txt", "1 a b", "0 a c", "1 a b")
    assert len(read_trials(repeated, allow_repeats=True)) == 3


def test_names_are_ids_or_ends_of_paths(tmp_path, manifest):
    trials = read_trials(write(tmp_path / "t.txt", "1 a0 a/1.wav", "0 x/a/0.wav b1", "1 /data/x/b/0.wav y/b/1.flac"))
    resolved = resolve(trials, UtteranceIndex.of_manifest(manifest))
    assert resolved.models == ((0,), (0,), (2,)) and resolved.tests.tolist() == [1, 3, 3]
    assert resolved.utterances().tolist() == [0, 1, 2, 3]
    enrol, test = trial_speakers(resolved, [u.speaker for u in manifest])
    assert (enrol == test).tolist() == [True, False, True]
    assert trial_speakers(resolved, ["a", "a", None, "b"]) is None


def test_ids_that_are_paths_are_found_by_their_end(tmp_path):
    trials = read_trials(write(tmp_path / "t.txt", "1 0.wav y/1.wav", "0 0.wav z/1.flac"))
    resolved = resolve(trials, UtteranceIndex.of_ids(["x/0.wav", "y/1.wav", "z/1.wav"], "e.npz"))
    assert resolved.models == ((0,),) and resolved.tests.tolist() == [1, 2]
    with pytest.raises(
        ManifestError, match="t.txt:1: utterance '0.wav' is not in e.npz.*give the manifest of these ids"
    ):
        resolve(trials, UtteranceIndex.of_ids(["3", "4"], "e.npz"))


@pytest.mark.parametrize("name", ["call.2", "call.speakerB", "day/call.2", "call.2.wav"])
def test_the_end_of_a_name_that_is_no_audio_suffix_belongs_to_it(tmp_path, name):
    index = UtteranceIndex.of_ids(["day/call.wav", "day/call.speakerA.flac", "night/other.wav"], "e.npz")
    found = read_trials(write(tmp_path / "t.txt", "1 call call.speakerA", "0 day/call.ogg other.FLAC"))
    assert resolve(found, index).models == ((0,), (0,)) and resolve(found, index).tests.tolist() == [1, 2]
    trials = read_trials(write(tmp_path / "t.txt", "1 call call.speakerA", f"0 {name} other"))
    with pytest.raises(ManifestError, match=f"t.txt:2: utterance '{name}' is not in e.npz"):
        resolve(trials, index)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 a0 c.wav", "t.txt:3: utterance 'c.wav' is not in test.jsonl, neither as an id nor"),
        ("0 / a0", "t.txt:3: utterance '/' is not in test.jsonl"),
        ("0 nobody a0", "t.txt:3: utterance 'nobody' is not in test.jsonl"),
        ("0 0.wav b1", "t.txt:3: '0.wav' is the end of several audio paths"),
        ("0 b0 b1", "t.txt:3: label 0, but the speakers are 'b' and 'b'"),
        ("1 b0 a0", "t.txt:3: label 1, but the speakers are 'b' and 'a'"),
        ("1 b1 y/b/1.wav", "t.txt:3: 'y/b/1.wav' is compared with itself"),
    ],
)
def test_names_and_labels_that_do_not_fit_are_named_by_line(tmp_path, manifest, line, message):
    trials = read_trials(write(tmp_path / "t.txt", "1 a0 a1", "0 a0 b0", line))
    with pytest.raises(ManifestError, match=message):
        trial_speakers(resolve(trials, UtteranceIndex.of_manifest(manifest)), [u.speaker for u in manifest])


def test_enrolment_of_several_utterances(tmp_path, manifest):
    index = UtteranceIndex.of_manifest(manifest)
    trials = read_trials(write(tmp_path / "t.txt", "1 anna a1", "0 anna b1"))
    enrolment = read_enrolment(write(tmp_path / "map.txt", "anna a0 x/b/0.wav", "", "bert b0"))
    resolved = resolve(trials, index, enrolment)
    assert resolved.models == ((0, 2),)

    def refused(*lines: str, message: str) -> None:
        file, speakers = write(tmp_path / "map.txt", *lines), [u.speaker for u in manifest]
        with pytest.raises(ManifestError, match=message):
            trial_speakers(resolve(trials, index, read_enrolment(file)), speakers)

    refused("", message="map.txt:1: empty enrolment map")
    refused("anna", message="map.txt:1: model 'anna' has no utterances")
    refused("anna a0", "anna a1", message="map.txt:2: model 'anna' repeats that of line 1")
    refused("anna a0 a0", message="map.txt:1: utterance 'a0' is there twice")
    refused("bert b0", "anna a0 zz", message="map.txt:2: utterance 'zz' is not in test.jsonl")
    refused("bert b0", message="t.txt:1: model 'anna' is not in .*map.txt")
    refused("anna a0 a1", message="t.txt:1: 'a1' is compared with itself")
    refused("anna a0 b0", message="t.txt:1: model 'anna' mixes several speakers")


def test_the_demo_corpus(tmp_path):
    for split in ("dev", "test"):
        manifest = Manifest.read(COMMITTED / f"demo_{split}.jsonl")
        resolved = resolve(read_trials(COMMITTED / f"demo_{split}_trials.txt"), UtteranceIndex.of_manifest(manifest))
        assert trial_speakers(resolved, [u.speaker for u in manifest]) is not None


def test_real_trial_lists(real_data):
    for split, count in (("dev", 3540), ("test", 6980)):
        manifest = Manifest.read(real_data / "manifests" / f"sv_librispeech_{split}.jsonl")
        trials = read_trials(real_data / "manifests" / f"sv_librispeech_{split}_trials.txt")
        resolved = resolve(trials, UtteranceIndex.of_manifest(manifest))
        assert len(trials) == count and trial_speakers(resolved, [u.speaker for u in manifest]) is not None
