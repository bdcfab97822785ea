"""How to use the adapter of a run: lines to copy, with the run's own folders."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCORES = {  # task -> the recipe that scores a saved adapter, and what it takes besides
    "asr": "recipes/evaluate_asr.py --manifest test.jsonl",
    "emotion": "recipes/evaluate_emotion.py --manifest test.jsonl",
    "speaker": "recipes/evaluate_verification.py --trials trials.txt --manifest test.jsonl",
}
_READ_OUT = {  # task -> what becomes of the model's output
    "asr": "greedy_decode(output.logits, output.frame_lengths, model.head.config.vocabulary)[0]",
    "emotion": "model.head.config.labels[output.logits.argmax()]",
    "speaker": "output.embedding",
}


def how_to_use(results: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Lines of Python and of the command line by title; nothing where the run kept no adapter of its own."""
    adapter = saved_part(folder / "adapters", str(results.get("adapter") or ""))
    encoder, task = results.get("encoder"), str(results.get("task"))
    if adapter is None or not isinstance(encoder, str):
        return {}
    head = folder.resolve() / "heads" / adapter.name
    parts = {"--encoder": encoder, "--adapter": str(adapter)} | ({"--head": str(head)} if head.is_dir() else {})
    options = " \\\n    ".join(f"{name} {shlex.quote(value)}" for name, value in parts.items())
    shown = {"Python": _python(encoder, adapter, head if head.is_dir() else None, task)}
    if task == "asr":
        shown["Transcribe"] = f"speech-adapters transcribe \\\n    {options} \\\n    call.wav"
    if task in _SCORES:
        shown["Score on other data"] = f"python {_SCORES[task]} \\\n    {options}"
    return shown


def saved_part(folder: Path, method: str) -> Path | None:
    """The folder of a method's adapter, of its first fold and seed where there are several."""
    name = method.replace("+", "-")
    found = sorted(path for path in folder.resolve().glob("*") if path.name == name) or sorted(
        path for path in folder.resolve().glob("*") if path.name.startswith((f"{name}-fold", f"{name}-seed"))
    )
    return found[0] if found else None


def _python(encoder: str, adapter: Path, head: Path | None, task: str) -> str:
    lines = ["from speech_adapters import SpeechAdapterModel", "from speech_adapters.data.audio import read_audio"]
    if head is not None and task == "asr":
        lines.append("from speech_adapters.heads.decoding import greedy_decode")
    lines += [
        "",
        f"model = SpeechAdapterModel.from_pretrained({encoder!r})",
        f"model.load_adapter({str(adapter)!r})",
        *([f"model.load_head({str(head)!r})"] if head is not None else []),
        "model.eval()",
        "output = model(read_audio('call.wav')[None])",
        f"print({_READ_OUT.get(task, 'output.logits') if head is not None else 'output.last_hidden_state'})",
    ]
    return "\n".join(lines)
