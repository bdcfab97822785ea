"""What a path is: an adapter, head, fusion, run, checkpoint or manifest; its base, its size, how to load it.

speech-adapters info runs/asr_librispeech/latest
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote
from typing import Any

from speech_adapters.data.audio_suffixes import READABLE
from speech_adapters.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The paths."""
    parser.add_argument("paths", nargs="+", metavar="path", help="folder or file, or an encoder's name")


def run(arguments: argparse.Namespace) -> None:
    """Describe each path."""
    for number, path in enumerate(arguments.paths):
        if number:
            print()
        describe(path)


def describe(given: str) -> None:
    """Print what a path is, by the files in it. Raises ConfigError where it is nothing known."""
    from speech_adapters.saving.places import folder_of

    path = folder_of(given)
    kinds = [kind for kind in ("adapter", "head", "fusion") if (path / f"{kind}.json").is_file()]
    if kinds:
        for kind in kinds:
            _part(path, kind)
    elif (path / "results.json").is_file() or ((path / "config.yaml").is_file() and path.is_dir()):
        _run(path)
    elif path.suffix.lower() in (".jsonl", ".csv", ".tsv") and path.is_file():  # a table's message says what to do
        _manifest(path)
    elif (path / "config.json").is_file():
        _encoder(given)
    elif not path.exists():
        if given.startswith((".", "/", "~")) or given.count("/") > 1:
            raise ConfigError(f"{path}: no such file or folder; give that of a run, part, manifest or encoder")
        try:
            _encoder(given)
        except ConfigError as error:
            raise ConfigError(f"{path}: no such file or folder; and of an encoder: {error}") from None
    else:
        raise ConfigError(
            f"{path}: neither an adapter, head, fusion, run, checkpoint nor manifest (.jsonl){_hint(path)}"
        )


def _show(title: str, facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    print(title)
    for name, value in facts.items():
        if value not in (None, "", {}):
            print(f"  {name:{width}}  {value}")


def _part(folder: Path, kind: str) -> None:
    from speech_adapters.saving.parts import load_part

    described, tensors = load_part(folder, kind)
    config = dict(described["config"])
    name = next((config.pop(key) for key in ("method", "head_type") if key in config), kind)
    features = described.get("features") or {}
    base = described.get("base") or features.get("base")
    values = sum(tensor.numel() for tensor in tensors.values())
    megabytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
    facts = {
        "name": described.get("name"),
        "settings": ", ".join(
            f"{key}={_short(value)}" for key, value in config.items() if value not in (None, {}, [])
        ),
        "base": base and f"{base['name']} ({base['family']}), weights {base['fingerprint'][:12]}",
        "reads": ", ".join(described.get("parts") or features.get("adapters") or ()),
        "size": f"{values:,} values in {len(tensors)} tensors, {megabytes:.2f} MB",
        "card": ", ".join(f"{key}: {_short(value)}" for key, value in described.get("card", {}).items()),
        "load it": f"model.load_{kind}({str(folder)!r})",
    }
    if kind == "adapter" and base:
        facts["load it"] = f"model = SpeechAdapterModel.from_pretrained({base['name']!r}); {facts['load it']}"
    _show(f"{folder}: {kind}, {name}", facts)


def _short(value: Any) -> str:
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        return f"{value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
    if isinstance(value, dict) and "tokens" in value:
        return f"{len(value['tokens'])} symbols"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _run(folder: Path) -> None:
    from speech_adapters.reports.summary import method_rows, summary_table
    from speech_adapters.runs.results import Results

    def parts(kind: str) -> str:
        return ", ".join(sorted(path.name for path in (folder / kind).glob("*") if path.is_dir()))

    facts: dict[str, Any] = {kind: parts(kind) for kind in ("adapters", "heads", "fusions")}
    if not (folder / "results.json").is_file():
        facts["state"] = f"not finished; continue with the same command and --resume {folder}"
        _show(f"{folder}: run", facts)
        return
    results = Results.read(folder / "results.json")
    facts["encoder"] = results.encoder
    facts["data"] = ", ".join(f"{s}: {d['name']}" for s, d in results.data.items() if isinstance(d, dict))
    facts["report"] = folder / "report.html" if (folder / "report.html").is_file() else None
    _show(f"{folder}: run, {results.task}", facts)
    print(f"\n{summary_table(method_rows(results.to_dict()))}")


def _encoder(name: str) -> None:
    from speech_adapters.encoders import load_encoder

    encoder = load_encoder(name)
    own = None if encoder.ctc is None else "CTC, used where no other is given"
    _show(
        f"{name}: encoder, {encoder.family}",
        {
            "layers": f"{encoder.num_layers} of width {encoder.hidden_size}",
            "size": f"{sum(p.numel() for p in encoder.parameters()):,} parameters",
            "weights": encoder.fingerprint[:12],
            "its head": own,
            "load it": f"model = SpeechAdapterModel.from_pretrained({name!r})",
        },
    )


def _manifest(path: Path) -> None:
    from speech_adapters.data.manifest import Manifest

    manifest = Manifest.read(path)
    names = [name for name in manifest[0].__dataclass_fields__ if name != "extra"]
    keys = [key for key in (*names, *manifest[0].extra) if manifest[0].get(key) is not None]
    facts = {"holds": manifest.summary(), "keys": ", ".join(keys), "load it": f"Manifest.read({str(path)!r})"}
    _show(f"{path}: manifest", facts)


def _hint(path: Path) -> str:
    """Which command knows what lies there, or what makes a checkpoint of it."""
    from speech_adapters.encoders.others import others_in, remedy_of

    if (path / "bank.json").is_file():
        return f"; it is a bank: speech-adapters bank list --bank {quote(str(path))}"
    if (path / "sweep.json").is_file():
        return "; it is a sweep: its report.html and trials.json tell what was found"
    found = path.rglob("*") if path.is_dir() else [path]
    if any(file.suffix.lower() in READABLE for file in found):
        folder = path if path.is_dir() else path.parent
        made = f"speech-adapters manifest make {quote(str(folder))} -o NAME.jsonl"
        return f"; recordings are described by a manifest: {made}"
    other = others_in(path) if path.is_dir() else remedy_of(path)
    return f"; {other}" if other else ""
