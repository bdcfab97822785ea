"""Several processes that write the same thing at once: one of them wins, whole; nothing is mixed or left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_model

from speech_adapters import CTCHead
from speech_adapters.adapters import Bottleneck
from speech_adapters.composition import Fuse
from speech_adapters.data.store import Store
from speech_adapters.errors import InputError
from speech_adapters.files import _HERE, atomic, new_folder, sweep, temporary_of, write_text
from speech_adapters.locks import locked
from speech_adapters.saving import parts
from speech_adapters.saving.parts import load_part, part_files, save_part
from speech_adapters.text import Vocabulary

FORK = multiprocessing.get_context("fork")


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(number)`` in so many processes at once; all must end well."""
    torch.set_num_threads(1)
    processes = [FORK.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def part_of(number: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Description and weights that say whose they are."""
    return {"name": f"n{number}"}, {"weight": torch.full((20_000,), float(number))}


@pytest.mark.parametrize("kind", ["adapter", "head", "fusion"])
def test_a_part_that_several_save_is_one_of_theirs_at_any_time(tmp_path: Path, kind: str):
    save_part(tmp_path, kind, *part_of(0))

    def save_often(number: int) -> None:
        if number == 0:  # reads while the others write
            for _ in range(150):
                described, tensors = load_part(tmp_path, kind)
                assert described["name"] == f"n{int(tensors['weight'][0])}" and tensors["weight"].unique().numel() == 1
            os._exit(0)
        for _ in range(25):
            save_part(tmp_path, kind, *part_of(number), extra_files={"other.json": str(number)})
        os._exit(0)

    in_processes(4, save_often)
    described, tensors = load_part(tmp_path, kind)
    assert described["name"] == f"n{int(tensors['weight'][0])}"
    assert (tmp_path / "other.json").read_text() == described["name"].removeprefix("n")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{kind}.json", f"{kind}_model.safetensors", "other.json"]


def test_a_copy_of_a_part_that_is_saved_over_meanwhile_is_one_of_the_two(tmp_path: Path, monkeypatch):
    save_part(tmp_path, "adapter", *part_of(0))
    read, numbers = parts._read_weights, iter((1,))

    def saved_over(*arguments: Any) -> bytes:
        for number in numbers:  # between the looks at the description and at the weights, once
            save_part(tmp_path, "adapter", *part_of(number))
        return read(*arguments)

    monkeypatch.setattr(parts, "_read_weights", saved_over)
    (tmp_path / "copy").mkdir()
    for name, content in part_files(tmp_path, "adapter").items():
        (tmp_path / "copy" / name).write_bytes(content)
    described, tensors = load_part(tmp_path / "copy", "adapter")
    assert described["name"] == "n1" and tensors["weight"].unique() == 1


def test_models_of_two_threads_save_into_one_folder(tmp_path: Path):
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = small_model()
        for name in ("a", "b"):
            model.add_adapter(name, Bottleneck(size=4))
        model.add_fusion(Fuse("a", "b"))
        model.add_head("h", CTCHead(Vocabulary.wav2vec2()))
        models.append(model)

    def save_all(model: Any) -> None:
        for _ in range(5):
            model.save_adapter("a", tmp_path)
            model.save_head("h", tmp_path)
            model.save_fusion("fuse-a-b", tmp_path)

    threads = [threading.Thread(target=save_all, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for kind in ("adapter", "head", "fusion"):
        load_part(tmp_path, kind)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_store_is_written_once_and_the_others_wait(tmp_path: Path):
    def write(number: int) -> None:
        def arrays() -> Any:
            (tmp_path / f"began-{number}").touch()
            for place in (0, 1, 2) if number % 2 else (2, 1, 0):
                time.sleep(0.02)
                yield place, np.full(1000 + place, place, np.int16)

        Store.write(tmp_path / "store", np.int16, 1, arrays(), 3, 6000)
        store = Store(tmp_path / "store", np.int16)
        assert all((store[place] == place).all() and len(store[place]) == 1000 + place for place in range(3))
        os._exit(0)

    in_processes(4, write)
    assert len(list(tmp_path.glob("began-*"))) == 1
    assert {path.name for path in tmp_path.glob("*store*")} == {"store.bin", "store.npz"}


def test_a_store_whose_writer_was_killed_is_made_anew(tmp_path: Path):
    def arrays(last: int) -> Any:
        for place in range(3):
            if place == last:
                os.kill(os.getpid(), signal.SIGKILL)
            yield place, np.full(1000, place, np.int16)

    for last in (0, 2):
        process = FORK.Process(
            target=lambda last=last: Store.write(tmp_path / "s", np.int16, 1, arrays(last), 3, 6000)
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL and not Store.exists(tmp_path / "s")
        assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
    Store.write(tmp_path / "s", np.int16, 1, arrays(3), 3, 6000)
    assert (Store(tmp_path / "s", np.int16)[2] == 2).all()
    assert {path.name for path in tmp_path.iterdir()} == {"s.bin", "s.npz"}


def test_a_lock_ends_with_its_process_and_says_who_holds_it(tmp_path: Path):
    path = tmp_path / "thing"

    def die_inside(number: int) -> None:
        with locked(path):
            os._exit(0)

    in_processes(1, die_inside)
    assert (tmp_path / ".thing.lock").exists()
    message = "thing: another process has been writing it for 0 s"
    with locked(path), pytest.raises(InputError, match=message), locked(path, seconds=0.05):
        pass
    assert not list(tmp_path.iterdir())


def test_temporary_files_of_other_machines_stay(tmp_path: Path):
    dead, other = tmp_path / f".a.{_HERE}.99999999.tmp", tmp_path / ".a.at-00000000.99999999.tmp"
    old = tmp_path / ".a.99999999.tmp"
    for path in (dead, other, old):
        path.touch()
    sweep(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [other]
    with atomic(tmp_path / "a") as file:
        assert _HERE in file.name
    write_text(tmp_path / "a", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "a"]


def test_a_new_folder_takes_a_leftovers_place_and_no_other_folders(tmp_path: Path):
    path = tmp_path / "a"
    left = temporary_of(path)  # processes of a container have the same numbers each time
    left.mkdir()
    (left / "half").touch()
    with new_folder(path) as folder:
        assert folder == left and not list(folder.iterdir())
    with pytest.raises(InputError, match="a: cannot be written .*not empty"), new_folder(path):
        (path / "of another").touch()
    assert list(tmp_path.iterdir()) == [path] and (path / "of another").exists()


def test_a_folder_that_is_replaced_is_there_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a"
    for round_ in range(3):
        with new_folder(path, replace=True) as folder:
            (folder / str(round_)).touch()
    assert [file.name for file in path.iterdir()] == ["2"] and list(tmp_path.iterdir()) == [path]

    def killed(place: Path, target: Path) -> Path:
        if place.name.endswith(".tmp"):
            os._exit(0)
        return Path(os.rename(place, target) or target)

    def replace(number: int) -> None:
        monkeypatch.setattr(Path, "replace", killed)
        with new_folder(path, replace=True):
            pass

    in_processes(1, replace)
    assert (tmp_path / ".a.old" / "2").exists()
    with new_folder(path, replace=True) as folder:
        pass
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["adapter.json", "adapter_model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str):
    save_part(tmp_path, "adapter", *part_of(0))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read .not a regular file"):
        load_part(tmp_path, "adapter")
