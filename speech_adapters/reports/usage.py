"""How to use the adapter of a run: lines to copy, with the run's own folders."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speech_adapters.files import read_json

_EMBEDDED = ("embed('call.wav')", "embed --output voices.npz")
_ASKED = {  # type of the head, or None without one -> what the model is asked, and the command that asks it
    "ctc": ("transcribe('call.wav').text", "transcribe"),
    "classification": ("classify('call.wav').label", "classify"),
    "slots": ("classify('call.wav').label", "classify"),
    "speaker": _EMBEDDED,
    None: _EMBEDDED,
}
_SCORES = {  # type of the head -> what speech-adapters evaluate takes to score a saved adapter
    "ctc": "asr --manifest test.jsonl",
    "classification": "classification --manifest test.jsonl",
    "speaker": "verification --trials trials.txt --manifest test.jsonl",
}


def how_to_use(results: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Lines of Python and of the command line by title; nothing where the run kept no adapter of its own."""
    method, encoder = str(results.get("adapter") or ""), results.get("encoder")
    adapter, fusion = saved_part(folder / "adapters", method), saved_part(folder / "fusions", method)
    if not isinstance(encoder, str) or (adapter is None and fusion is None):
        return {}
    heads = sorted((folder.resolve() / "heads").glob("*"))
    if adapter is None:  # a fusion stands on the adapters that it weighs and the head that the domains share
        assert fusion is not None
        seed = fusion.name.removeprefix(method)
        members = read_json(fusion / "fusion.json")["composition"]["members"]
        parts = [folder.resolve() / "adapters" / f"{member}{seed}" for member in members]
        if not all(part.is_dir() for part in parts):  # trained over adapters of elsewhere
            return {}
        head = next((path for path in heads if path.name == fusion.name), next(iter(heads), None))
        model = f"SpeechAdapterModel.from_pretrained({encoder!r})"
        loaded = [f"model.load_adapter({str(part)!r})" for part in parts]
        loaded += [f"model.load_head({str(head)!r})"] if head is not None else []
        return {"Python": _python(model, [*loaded, f"model.load_fusion({str(fusion)!r})"], _type_of(head))}
    head = next((path for path in heads if path.name == adapter.name), None)
    kind, options = _type_of(head), f"--adapter {shlex.quote(str(adapter))}"  # its files tell the base and the head
    shown = {"Python": _python(f"SpeechAdapterModel.from_adapter({str(adapter)!r})", [], kind)}
    if kind in _ASKED:
        command = _ASKED[kind][1]
        shown[command.split()[0].capitalize()] = f"speech-adapters {command} \\\n    {options} \\\n    call.wav"
    if kind in _SCORES:
        shown["Score on other data"] = f"speech-adapters evaluate {_SCORES[kind]} \\\n    {options}"
    return shown


def saved_part(folder: Path, method: str) -> Path | None:
    """The folder of a method's adapter, of its first fold and seed where there are several."""
    name = method.replace("+", "-")
    found = sorted(path for path in folder.resolve().glob("*") if path.name == name) or sorted(
        path for path in folder.resolve().glob("*") if path.name.startswith((f"{name}-fold", f"{name}-seed"))
    )
    return found[0] if found else None


def _type_of(head: Path | None) -> str | None:
    return None if head is None else str(read_json(head / "head.json")["config"]["head_type"])


def _python(model: str, loaded: Sequence[str], kind: str | None) -> str:
    lines = ["from speech_adapters import SpeechAdapterModel"]
    if kind in _ASKED:
        asked = [f"print(model.{_ASKED[kind][0]})"]
    else:  # a head of the user's own type, which none of the model's verbs reads
        lines.append("from speech_adapters.data.audio import read_audio")
        asked = ["model.eval()", "print(model(read_audio('call.wav')[None]).logits)"]
    return "\n".join([*lines, "", f"model = {model}", *loaded, *asked])
