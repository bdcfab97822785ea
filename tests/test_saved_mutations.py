"""Saved parts under damage and under kills: refused in a sentence, or loaded as what they were.

``SAVED_MUTATIONS=2000`` runs the whole harness; CI runs 300.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from small_models import METHODS, shake, small_model

from speech_adapters.adapters import Bottleneck, LAdapter, VeRA
from speech_adapters.composition import Fuse, FusionConfig, Route
from speech_adapters.errors import InputError
from speech_adapters.heads import ClassificationHead, CTCHead, SpeakerHead
from speech_adapters.saving.parts import _sha256, _text, load_part, save_part

MUTATIONS = int(os.environ.get("SAVED_MUTATIONS", "300"))

#: What a hand, a script or a fuzzer writes where a value stood.
VALUES: tuple[Any, ...] = (
    None, True, "", "x", "../../etc", [], {}, [1], {"a": 1}, 0, 1, -1, 3, 10**9, 10**18, 10**4000, 0.5, -1e308, 1e-320,
    float("inf"), float("nan"), ["a", "a"], [[[]]], "lora", "gelu", "\ud800", "a" * 5000,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    folder: Path
    kind: str
    meaning: Any

    @property
    def files(self) -> tuple[Path, Path]:
        return self.folder / f"{self.kind}.json", self.folder / f"{self.kind}_model.safetensors"


class Bench:
    """A model, saved parts, and the model that they are loaded into."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        model = small_model(layers=2)
        adapters = {
            "a": Bottleneck(size=4), "b": Bottleneck(size=4), "c": Bottleneck(size=4, activation="tanh"),
            "lora": METHODS["lora"], "dora": METHODS["dora-two"], "vera": VeRA(rank=8), "l": LAdapter(size=16),
            "el": METHODS["el"], "full": METHODS["last-2"],
        }  # fmt: skip
        for name, config in adapters.items():
            model.add_adapter(name, config)
            shake(model)
            model.save_adapter(name, root / f"adapter-{name}", wer=0.1)
        model.set_active("a")
        heads = {
            "ctc": CTCHead(), "emotion": ClassificationHead(labels=("a", "b")),
            "speaker": SpeakerHead(speakers=("a", "b", "c"), network="xvector", channels=8, embedding_size=8),
        }  # fmt: skip
        for name, head in heads.items():
            model.add_head(name, head)
            model.save_head(name, root / f"head-{name}")
        for value, settings in ((Fuse("a", "b"), FusionConfig(rank=4)), (Route("a", "b"), None)):
            model.add_fusion(value, settings)
            model.save_fusion(value.name, root / f"fusion-{value.name}")
        self.model = small_model(layers=2)
        for name in ("a", "b"):
            self.model.load_adapter(root / f"adapter-{name}")
        parts = [path for path in sorted(root.iterdir()) if path.name not in ("adapter-a", "adapter-b")]
        self.parts = [Part(path, kind := path.name.split("-")[0], self.load(path, kind)) for path in parts]

    def load(self, folder: Path, kind: str) -> Any:
        """What a part means: its settings and its weights; the model is left as it was."""
        model, active = self.model, self.model.active
        name = getattr(model, f"load_{kind}")(folder)
        module = {"adapter": model.adapters, "head": model.heads, "fusion": model.fusions}[kind][name]
        tensors = module.tensors() if kind == "adapter" else module.state_dict()
        meaning = repr(module.config), {key: tensor.clone() for key, tensor in tensors.items()}
        getattr(model, f"delete_{kind}")(name)
        model.set_active(active)
        return meaning


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Bench(tmp_path_factory.mktemp("parts"))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a description but its checksums."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [place for key, item in items if "sha256" not in str(key) for place in places(item, (*path, key))]
    return [*([path] if path else []), *inner]


def change_description(rng: random.Random, described: dict[str, Any], other: dict[str, Any]) -> None:
    """Remove, rename, retype, replace or take from another part one value."""
    path = rng.choice(places(described))
    holder = described
    for key in path[:-1]:
        holder = holder[key]
    action = rng.choice(("remove", "value", "value", "add", "foreign"))
    if action == "remove":
        del holder[path[-1]]
    elif action == "value":
        holder[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    elif action == "add" and isinstance(holder, dict):
        holder[rng.choice(("extra", "rank", "scale"))] = rng.choice(VALUES)
    elif path[0] in other:
        described[path[0]] = other[path[0]]


def change_tensors(rng: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    """Drop, rename, retype, reshape, enlarge or poison one tensor."""
    if not tensors:
        return
    name = rng.choice(sorted(tensors))
    action = rng.choice(("drop", "rename", "int8", "half", "flatten", "grow", "nan", "inf", "extra"))
    tensor = tensors.pop(name)
    if action == "drop":
        return
    tensors[name + ("x" if action == "rename" else "")] = {
        "int8": lambda: tensor.to(torch.int8),
        "half": lambda: tensor.half(),
        "flatten": lambda: tensor.flatten()[None],
        "grow": lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor[None],
        "nan": lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor,
        "inf": lambda: torch.full_like(tensor, float("inf")) if tensor.is_floating_point() else tensor,
    }.get(action, lambda: tensor)()
    if action == "extra":
        tensors["extra"] = torch.zeros(2)


def mutate(rng: random.Random, part: Part, other: Part, signed: bool) -> None:
    """Damage a part in its folder; with ``signed`` its checksums are made right again."""
    description, weights = part.files
    if not signed and rng.random() < 0.5:
        target, foreign = rng.choice(((description, other.files[0]), (weights, other.files[1])))
        content = bytearray(target.read_bytes())
        action = rng.choice(("flip", "flip", "cut", "empty", "zeros", "foreign", "page", "gone", "twice"))
        if action == "flip":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif action == "cut":
            del content[rng.randrange(len(content)) :]
        elif action == "gone":
            return target.unlink()
        else:
            content = bytearray(
                {
                    "empty": b"", "zeros": bytes(len(content)), "foreign": foreign.read_bytes(),
                    "page": b"<!doctype html><html></html>", "twice": bytes(content) * 2,
                }[action]
            )  # fmt: skip
        target.write_bytes(content)
        return None
    described = json.loads(description.read_text())
    if rng.random() < 0.7:
        change_description(rng, described, json.loads(other.files[0].read_text()))
    else:
        tensors = load_file(weights)
        change_tensors(rng, tensors)
        weights.write_bytes(save(tensors))
    if rng.random() < 0.1:  # the weights of another part under this description
        shutil.copy(other.files[1], weights)
    if signed:
        described["weights_sha256"] = _sha256(weights.read_bytes())
        described.pop("sha256", None)
        described["sha256"] = _sha256(_text(described, ""))
    description.write_text(json.dumps(described, indent=2))
    return None


@pytest.mark.filterwarnings("ignore")
def test_mutated_parts_are_refused_in_a_sentence_or_mean_what_they_meant(bench, tmp_path):
    outcomes: Counter[str] = Counter()
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        part, other, signed = rng.choice(bench.parts), rng.choice(bench.parts), seed % 2 == 0
        hurt = Part(tmp_path / "hurt", part.kind, part.meaning)
        shutil.rmtree(hurt.folder, ignore_errors=True)
        shutil.copytree(part.folder, hurt.folder)
        mutate(rng, hurt, other, signed)
        start = time.perf_counter()
        try:
            config, tensors = bench.load(hurt.folder, part.kind)
        except InputError:  # in a sentence; any other error fails the test
            outcomes["refused"] += 1
        else:
            assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()), seed
            if not signed:
                assert config == part.meaning[0], seed
                assert tensors.keys() == part.meaning[1].keys(), seed
                assert all(torch.equal(tensor, part.meaning[1][key]) for key, tensor in tensors.items()), seed
            outcomes["loaded, signed" if signed else "loaded"] += 1
        assert time.perf_counter() - start < 5, f"{seed}: slow"
    print(dict(outcomes))
    assert outcomes["refused"] > 0.7 * MUTATIONS  # the harness does harm
    assert sorted(bench.model.adapters) == ["a", "b"] and not bench.model.heads and not bench.model.fusions


# --- kills ---------------------------------------------------------------------------------------------------------


def versions(number: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return {"number": number}, {"w": torch.full((50_000,), float(number))}


def check_whole(folder: Path) -> None:
    """One version is there, and its weights are those of its description."""
    described, tensors = load_part(folder, "adapter")
    assert described in ({"number": 0}, {"number": 1})
    assert torch.equal(tensors["w"], versions(described["number"])[1]["w"])


def check_swept(folder: Path) -> None:
    """The next save leaves what a first save leaves."""
    save_part(folder, "adapter", *versions(0))
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.json", "adapter_model.safetensors"]
    check_whole(folder)


def in_a_child(work) -> int:
    """Run ``work`` in a forked process; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", range(20))
def test_a_kill_while_saving_over_a_part_leaves_the_old_or_the_new(seed, tmp_path):
    save_part(tmp_path, "adapter", *versions(0))

    def save_for_ever() -> None:
        for number in range(10**9):
            save_part(tmp_path, "adapter", *versions(number % 2))

    child = in_a_child(save_for_ever)
    time.sleep(random.Random(seed).uniform(0.005, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    check_whole(tmp_path)
    check_swept(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(3))
def test_a_kill_at_each_rename_leaves_the_old_or_the_new(step, after, tmp_path, monkeypatch):
    save_part(tmp_path, "adapter", *versions(0))
    rename, done = os.replace, []

    def killing(source, target) -> None:
        if len(done) == step:
            if after:
                rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", killing)
    _, status = os.waitpid(in_a_child(lambda: save_part(tmp_path, "adapter", *versions(1))), 0)
    monkeypatch.undo()
    assert os.WTERMSIG(status) == signal.SIGKILL
    check_whole(tmp_path)
    new = step > 1 or (step == 1 and after)  # the description is the second thing renamed
    assert load_part(tmp_path, "adapter")[0] == {"number": int(new)}
    check_swept(tmp_path)
