"""Sets that share no speaker."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_adapters.cli import main
from speech_adapters.data.corpus_check import corpus_notes
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.splits import split
from speech_adapters.errors import ManifestError

SHARES = {"test": 0.2, "dev": 0.1, "train": 1.0}


def spoken(seconds: dict[str, list[float]]) -> Manifest:
    lines = [Utterance(f"{s}-{n}", "a.wav", d, speaker=s) for s, ds in seconds.items() for n, d in enumerate(ds)]
    return Manifest(lines, "all")


@given(
    seconds=st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=3), st.lists(st.floats(0.5, 20), min_size=1, max_size=4),
        min_size=3, max_size=12,
    ),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_whole_speakers_go_to_one_set_and_none_is_lost(seconds: dict[str, list[float]], seed: int) -> None:
    manifest = spoken(seconds)
    sets = split(manifest, SHARES, seed=seed)
    assert list(sets) == list(SHARES) and all(len(one) for one in sets.values())
    speakers = [set(one.speakers) for one in sets.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == len(seconds)
    assert sorted(u.id for one in sets.values() for u in one) == sorted(u.id for u in manifest)
    assert split(manifest, SHARES, seed=seed) == sets


def test_shares_are_near_what_was_asked_and_seeds_differ() -> None:
    manifest = spoken({f"s{n}": [10.0] for n in range(100)})
    sets = split(manifest, SHARES)
    assert [len(sets[name]) for name in SHARES] == [20, 10, 70]
    assert split(manifest, SHARES, seed=1)["test"] != sets["test"]


@pytest.mark.parametrize(
    ("shares", "by", "message"),
    [
        ({"test": 0.5, "dev": 0.5, "train": 1}, "speaker", "less than 1 in all"),
        ({"test": 0.0, "train": 1}, "speaker", "give each more than 0"),
        (SHARES, "session", "4 utterances without 'session', such as 'a-0'"),
        (SHARES, "speaker", "2 different values of 'speaker' for 3 sets"),
    ],
)
def test_what_cannot_be_divided(shares: dict[str, float], by: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        split(spoken({"a": [1.0, 1.0], "b": [1.0, 1.0]}), shares, by)


def test_pieces_of_a_recording_stay_together_where_nobody_says_who_speaks(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Manifest(Utterance(f"{f}-{n}", f"{f}.wav", 1.0, n) for f in range(6) for n in range(4)).write("all.jsonl")

    def cli(*arguments: str) -> str:
        with contextlib.suppress(SystemExit):
            main(["manifest", *arguments])
        return capsys.readouterr().err

    assert "such as --by audio_filepath (each recording on its own" in cli("split", "all.jsonl")
    said = cli("split", "all.jsonl", "--by", "id", "-o", "id")
    assert "note: all.jsonl, train: pieces of 2 recordings, such as 3.wav, are in all.jsonl, dev too" in said
    assert "--by audio_filepath keeps the pieces of a recording together" in said
    assert cli("split", "all.jsonl", "--by", "audio_filepath", "-o", "files") == ""
    for folder, told in (("id", True), ("files", False)):
        sets = [Manifest.read(f"{folder}/{name}.jsonl") for name in ("train", "dev", "test")]
        assert any("pieces of" in note for note in corpus_notes(sets)) is told
        known = [one.map(lambda u, name=one.name: replace(u, speaker=name)) for one in sets]
        assert corpus_notes(known) == [], "two sides of a call, each with its own speaker"


def test_utterances_on_their_own() -> None:
    sets = split(spoken({"a": [1.0] * 10}), SHARES, by="id")
    assert [len(sets[name]) for name in SHARES] == [2, 1, 7]
