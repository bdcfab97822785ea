"""Folds: a partition, by whole speakers or sessions, balanced, and the same whatever the order of the lines."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_adapters.corpora.folds import make_folds
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, ManifestError

EMOTIONS = ("angry", "happy", "sad")


def corpus(sessions: int = 5, per_speaker: int = 12) -> Manifest:
    """Two speakers a session, like IEMOCAP, who show each emotion equally often."""
    return Manifest(
        Utterance(
            f"{speaker}-{i}", Path(f"/{speaker}-{i}.wav"), 1.0, speaker=speaker, emotion=EMOTIONS[i % 3],
            extra={"session": f"Ses0{session}"},
        )
        for session in range(1, sessions + 1)
        for speaker in (f"Ses0{session}F", f"Ses0{session}M")
        for i in range(per_speaker)
    )  # fmt: skip


def check_partition(folds, manifest: Manifest) -> None:
    ids = Counter(u.id for fold in folds for u in fold.test)
    assert ids == Counter(u.id for u in manifest), "every utterance is tested once"
    for fold in folds:
        parts = [fold.train, fold.test] + ([fold.dev] if fold.dev is not None else [])
        assert all(len(part) for part in parts)
        assert sorted(u.id for part in parts for u in part) == sorted(u.id for u in manifest)


def test_leave_one_session_out():
    manifest = corpus()
    folds = make_folds(manifest, "leave-one-session-out")
    check_partition(folds, manifest)
    assert [fold.name for fold in folds] == ["Ses01", "Ses02", "Ses03", "Ses04", "Ses05"]
    assert folds[0].test.speakers == ("Ses01F", "Ses01M") and folds[0].dev.speakers == ("Ses02F", "Ses02M")
    assert folds[4].dev.values("session") == ("Ses01",)
    for fold in folds:
        assert len({*fold.train.speakers} & {*fold.test.speakers, *fold.dev.speakers}) == 0
    without = make_folds(manifest, "leave-one-session-out", dev=False)
    assert without[0].dev is None and len(without[0].train) == 96
    check_partition(without, manifest)
    assert len(make_folds(manifest, "leave-one-speaker-out")) == 10


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 10), st.integers(0, 100), st.randoms())
def test_folds_of_whole_speakers(k, seed, rng):
    manifest = corpus()
    folds = make_folds(manifest, f"{k}-fold", seed=seed)
    check_partition(folds, manifest)
    for fold in folds:
        assert not {*fold.train.speakers} & {*fold.test.speakers}
        counts = Counter(u.emotion for u in fold.test)
        assert len(set(counts.values())) == 1, "labels stay balanced"
    lines = list(manifest)
    rng.shuffle(lines)
    shuffled = make_folds(Manifest(lines), f"{k}-fold", seed=seed)
    assert [f.test.speakers for f in shuffled] == [f.test.speakers for f in folds]


def test_labels_spread_where_speakers_differ():
    """Half the speakers are only ever sad: folds that ignored labels would differ widely in them."""
    manifest = Manifest(
        Utterance(f"s{s}-{i}", Path("/a.wav"), 1.0, speaker=f"s{s}", emotion="sad" if s % 2 else EMOTIONS[i % 2])
        for s in range(12)
        for i in range(10)
    )
    for fold in make_folds(manifest, "6-fold"):
        assert Counter(u.emotion for u in fold.test) == {"sad": 10, "angry": 5, "happy": 5}
    unlabelled = manifest.map(lambda u: Utterance(u.id, u.audio_filepath, 1.0, speaker=u.speaker))
    check_partition(make_folds(unlabelled, "4-fold", label_field=None), unlabelled)


def test_random_folds_only_by_name_and_with_a_warning():
    manifest = corpus()
    with pytest.warns(UserWarning, match="otake2023: random folds put the same speakers into training and test"):
        folds = make_folds(manifest, "otake2023")
    check_partition(folds, manifest)
    assert set(folds[0].train.speakers) & set(folds[0].test.speakers)
    from sklearn.model_selection import KFold

    _, test = next(KFold(5, shuffle=True, random_state=42).split(list(manifest)))
    assert [u.id for u in folds[0].test] == [manifest[i].id for i in test]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_folds(manifest, "5-fold"), make_folds(manifest, "leave-one-session-out")


def test_folds_are_written(tmp_path):
    fold = make_folds(corpus(), "leave-one-session-out")[1]
    paths = fold.write(tmp_path)
    assert {split: path.name for split, path in paths.items()} == {
        "train": "Ses02_train.jsonl", "dev": "Ses02_dev.jsonl", "test": "Ses02_test.jsonl"
    }  # fmt: skip
    assert Manifest.read(paths["test"]) == fold.test
    assert "dev" not in make_folds(corpus(), "3-fold", dev=False)[0].write(tmp_path / "b")


def test_bad_protocols_are_named():
    manifest = corpus()
    for protocol, error, message in (
        ("random", ConfigError, "protocol 'random' is unknown; use leave-one-session-out"),
        ("leave-one-cat-out", ManifestError, "lacks 'cat'"),
        ("leave-one-emotion-out", None, ""),
        ("leave-one-domain-out", ManifestError, "lacks 'domain'"),
        ("11-fold", ConfigError, "10 speakers cannot make 11 speaker-disjoint folds; use 2 to 10"),
        ("1-fold", ConfigError, "cannot make 1"),
        ("2-fold", ConfigError, "makes 2 part.* training, dev, and test need 3; .* or dev=False"),
    ):
        if error is None:
            check_partition(make_folds(manifest, protocol), manifest)
        else:
            with pytest.raises(error, match=message):
                make_folds(manifest, protocol)
    check_partition(make_folds(manifest, "2-fold", dev=False), manifest)
    with pytest.raises(ConfigError, match="makes 1 part"):
        make_folds(corpus(sessions=1), "leave-one-session-out", dev=False)
    with (
        pytest.warns(UserWarning, match="otake2023"),
        pytest.raises(ConfigError, match="3 utterances cannot make 5 folds"),
    ):
        make_folds(manifest[:3], "otake2023")
    leaking = manifest.map(lambda u: replace(u, speaker="x"))
    with pytest.raises(ManifestError, match="shares 1 speaker with"):
        make_folds(leaking, "leave-one-session-out")
    rare = Manifest(Utterance(f"{i}", Path("/a.wav"), 1.0, speaker=f"s{i}", emotion=f"e{i}") for i in range(4))
    with pytest.raises(ConfigError, match="no 3 folds by emotion .*use fewer folds"):
        make_folds(rare, "3-fold")


def test_the_seed_decides():
    tests = [[fold.test.speakers for fold in make_folds(corpus(), "5-fold", seed=seed)] for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]
