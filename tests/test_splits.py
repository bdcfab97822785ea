"""Sets that share no speaker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_utterances_on_their_own() -> None:
    sets = split(spoken({"a": [1.0] * 10}), SHARES, by="id")
    assert [len(sets[name]) for name in SHARES] == [2, 1, 7]
