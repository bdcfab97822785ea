"""Stores of arrays: what is written is read back, damage and full disks are said."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from speech_adapters.data.store import Store
from speech_adapters.errors import CheckpointError, InputError

RNG = np.random.default_rng(0)
ARRAYS = [RNG.normal(size=(rows, 3)).astype(np.float16) for rows in (4, 1, 7)]


def write(base: Path, order=(2, 0, 1)) -> Store:
    Store.write(base, np.float16, 3, ((i, ARRAYS[i]) for i in order), 3, 100, {"scales": np.arange(3.0)})
    return Store(base, np.float16, 3)


def test_arrays_come_back_in_whatever_order_they_were_written(tmp_path: Path) -> None:
    store = write(tmp_path / "new" / "store")
    assert len(store) == 3 and all(np.array_equal(store[i], array) for i, array in enumerate(ARRAYS))
    assert np.array_equal(store.piece(2, 3, 2), ARRAYS[2][3:5])
    assert store.arrays["scales"].tolist() == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["store.bin", "store.npz"]


@pytest.mark.parametrize("name", ["store.bin", "store.npz"])
@pytest.mark.parametrize("damage", ["zeros", "cut", "empty", "gone", "a byte"])
def test_damage_is_never_read(name: str, damage: str, tmp_path: Path) -> None:
    write(tmp_path / "store")
    file = tmp_path / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    changed = {
        "zeros": bytes(len(whole)),
        "cut": whole[:middle],
        "empty": b"",
        "a byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }
    file.unlink() if damage == "gone" else file.write_bytes(changed[damage])
    if damage == "gone" and name == "store.npz":
        assert not Store.exists(tmp_path / "store")
    problem = ""
    try:
        store = Store(tmp_path / "store", np.float16, 3)
        read = [store[index] for index in range(3)]
    except CheckpointError as error:
        problem = str(error)
    if problem:
        assert "store.bin: this cache is damaged" in problem and "remove it and store.npz" in problem
    else:  # a byte of the index that says nothing, such as a date in the archive
        assert (name, damage) == ("store.npz", "a byte")
        assert all(np.array_equal(found, array) for found, array in zip(read, ARRAYS, strict=True))


def test_a_disk_that_is_too_small_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 50, 50))

    def compute():
        raise AssertionError("computed")
        yield

    with pytest.raises(InputError, match="are needed and .* are free"):
        Store.write(tmp_path / "store", np.float16, 3, compute(), 3, 100)


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    def compute():
        yield 0, ARRAYS[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        Store.write(tmp_path / "store", np.float16, 3, compute(), 3, 100)
    assert not list(tmp_path.iterdir())
