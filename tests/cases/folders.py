"""Bad encoder folders and saved parts: name -> (what is done to a good one, what the error says)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from speech_adapters.saving.parts import _sha256, _text

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
PAGE = b"<!DOCTYPE html><html><head><title>429 Too Many Requests</title></head></html>"

Change = Callable[[Path], Any]


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, part: float) -> Change:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * part)])

    return change


def configured(name: str, /, **values: Any) -> Change:
    """Other values in a JSON file; ``...`` takes a key out."""

    def change(folder: Path) -> None:
        old = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        new = {key: value for key, value in (old | values).items() if value is not ...}
        (folder / name).write_text(json.dumps(new))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return changed


def first_nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


NOT_JSON = "config.json.*not JSON|config.json: cannot be read as"

BAD_ENCODERS: dict[str, tuple[Change, str]] = {
    "nothing": (lambda f: [path.unlink() for path in f.iterdir()], "no config.json in this folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors or pytorch_model.bin"),
    "a pointer of Git LFS": (write("model.safetensors", LFS), "is a Git LFS pointer.*git lfs pull"),
    "a page of a web site": (write("model.safetensors", PAGE), "is a web page, not the file"),
    "empty weights": (write("model.safetensors", b""), "is empty"),
    "zeros": (write("model.safetensors", bytes(4096)), "cut short, changed"),
    "a header of 2^60 bytes": (write("model.safetensors", (2**60).to_bytes(8, "little")), "cut short, changed"),
    "half the weights": (cut("model.safetensors", 0.5), "cut short, changed"),
    "a NaN": (weights(first_nan), "values that are not finite"),
    "a tensor less": (weights(lambda t: t.pop("encoder.layers.0.attention.q_proj.weight")), "lacks 1 of the encode"),
    "config empty": (write("config.json", b""), "config.json: is empty"),
    "config a list": (write("config.json", b"[]"), "config.json: not a JSON object"),
    "config a page": (write("config.json", PAGE), "config.json: is a web page"),
    "config nested without end": (write("config.json", b"[" * 100_000), NOT_JSON),
    "config cut": (cut("config.json", 0.5), NOT_JSON),
    "no model_type": (configured("config.json", model_type=...), "no model_type, which names the family"),
    "another model_type": (configured("config.json", model_type="bert"), "model_type 'bert' .* not supported"),
    "model_type a list": (configured("config.json", model_type=["wavlm"]), r"model_type \['wavlm'\] .* not supported"),
    "a million layers": (configured("config.json", num_hidden_layers=10**6), "does not belong to these weights"),
    "another width": (configured("config.json", hidden_size=1024), "does not belong to these weights|cannot be used"),
    "a kernel of 0": (configured("config.json", conv_kernel=[0] * 7), "does not belong to these weights|cannot be"),
    "strides of another CNN": (configured("config.json", conv_stride=[5]), "does not belong to these weights|cannot"),
    "a rate of 8 kHz": (configured("preprocessor_config.json", sampling_rate=8000), "sampling_rate is 8000; .* 16000"),
    "do_normalize in words": (configured("preprocessor_config.json", do_normalize="no"), "do_normalize is 'no'"),
    "preprocessor a list": (write("preprocessor_config.json", b"[1]"), "not a JSON object"),
    "the index of no file": (
        lambda f: ((f / "model.safetensors").unlink(),
                   (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')),
        "b.safetensors: cannot be read",
    ),
    "an index of numbers": (
        lambda f: ((f / "model.safetensors").unlink(),
                   (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')),
        "its weight_map gives no file",
    ),
    "a pickle in place of weights": (
        lambda f: ((f / "model.safetensors").unlink(), torch.save({"a": print}, f / "pytorch_model.bin")),
        "holds more than tensors .*print.*, which would be run as code",
    ),
}  # fmt: skip


def sealed(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any], kind: str = "adapter") -> Change:
    """A change of description and tensors, with the checksums made valid again."""

    def changed(folder: Path) -> None:
        described = json.loads((folder / f"{kind}.json").read_text())
        tensors = load_file(folder / f"{kind}_model.safetensors")
        change(described, tensors)
        content = save(tensors, {"format": "pt"})
        described |= {"weights_sha256": _sha256(content)}
        described.pop("sha256", None)
        (folder / f"{kind}_model.safetensors").write_bytes(content)
        (folder / f"{kind}.json").write_bytes(_text(described, _sha256(_text(described, ""))))

    return changed


def set_config(**values: Any) -> Change:
    return sealed(lambda described, _: described["config"].update(values))


def in_place_of(name: str, make: Callable[[Path], Any]) -> Change:
    return lambda folder: ((folder / name).unlink(), make(folder / name))


JSON, WEIGHTS = "adapter.json", "adapter_model.safetensors"

BAD_ADAPTERS: dict[str, tuple[Change, str]] = {
    "no folder": (shutil.rmtree, "adapter.json: no such file|no such folder"),
    "no description": (
        lambda f: [path.unlink() for path in f.glob("*.json")], "adapter.json: no such file|it holds no adapter"
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "adapter_model.safetensors: no such file"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_bytes(b"")), "adapter.json: no such file|no such folder"),
    "a folder in place of the weights": (in_place_of(WEIGHTS, Path.mkdir), "cannot be read .not a regular file"),
    "a pipe in place of the description": (in_place_of(JSON, os.mkfifo), "cannot be read .not a regular file"),
    "a link to itself": (in_place_of(JSON, lambda p: p.symlink_to(p)), "cannot be read .*symbolic links"),
    "a pointer of Git LFS": (write(WEIGHTS, LFS), "cut short or changed"),
    "a page of a web site": (write(JSON, PAGE), "cut short or changed"),
    "description empty": (write(JSON, b""), "cut short or changed"),
    "description a list": (write(JSON, b"[]"), "cut short or changed"),
    "description cut": (cut(JSON, 0.7), "cut short or changed"),
    "description nested without end": (write(JSON, b"[" * 100_000), "cut short or changed"),
    "description in Latin-1": (write(JSON, b'{"name": "\xe9"}'), "cut short or changed"),
    "weights cut": (cut(WEIGHTS, 0.9), "cut short or changed"),
    "weights of 2^60 bytes": (write(WEIGHTS, (2**60).to_bytes(8, "little")), "cut short or changed"),
    "a value changed": (configured(JSON, name="other"), "cut short or changed"),
    "a newer format": (sealed(lambda d, t: d.update(format=99)), "format 99 is newer than this version reads"),
    "a NaN in the weights": (sealed(lambda d, t: first_nan(t)), "values that are not finite"),
    "a tensor less": (sealed(lambda d, t: t.popitem()), "is missing"),
    "a tensor more": (sealed(lambda d, t: t.update(x=torch.zeros(1))), "'x' is unexpected"),
    "tensors of another width": (sealed(lambda d, t: t.update({k: torch.zeros(2, 2) for k in t})), "in place of"),
    "integers for weights": (sealed(lambda d, t: t.update({k: t[k].char() for k in t})), "of type int8"),
    "another base": (sealed(lambda d, t: d["base"].update(fingerprint="0" * 64)), "frozen weights have changed since"),
    "another preprocessing": (sealed(lambda d, t: d["base"].update(normalize=not d["base"]["normalize"])), "wavefor"),
    "an unknown method": (set_config(method="verra"), "unknown adapter method 'verra'"),
    "an unknown setting": (set_config(rang=3), "unknown key 'rang'; did you mean 'rank'"),
    "another rank": (set_config(rank=2), "in place of"),
    "a rank of 10^9": (set_config(rank=10**9), "rank=1000000000: must be a whole number"),
    "a rank of -1": (set_config(rank=-1), "rank=-1: must be a whole number"),
    "a dropout of 2": (set_config(dropout=2.0), "dropout=2.0: must be a number"),
    "a rate below 0": (set_config(learning_rate=-1.0), "learning_rate=-1.0: must be a number"),
    "a layer that is not there": (set_config(layers=[99]), "do not fit the encoder's layers"),
    "targets in words": (set_config(targets="q_proj"), "expected a list"),
    "no config": (sealed(lambda d, t: d.pop("config")), "missing key 'config'"),
    "no base": (sealed(lambda d, t: d.pop("base")), "missing key 'base'"),
    "a name in numbers": (sealed(lambda d, t: d.update(name=3)), "name: expected text"),
}  # fmt: skip
