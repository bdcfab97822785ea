"""How to use the adapter of a run: lines to copy, with the run's own folders."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speech_adapters.files import read_json

_SCORES = {  # task -> what speech-adapters evaluate takes to score a saved adapter
    "asr": "asr --manifest test.jsonl",
    "emotion": "classification --manifest test.jsonl",
    "speaker": "verification --trials trials.txt --manifest test.jsonl",
}
_READ_OUT = {  # task -> what becomes of the model's output
    "asr": "greedy_decode(output.logits, output.frame_lengths, model.head.config.vocabulary)[0]",
    "emotion": "model.head.config.labels[output.logits.argmax()]",
    "speaker": "output.embedding",
}


def how_to_use(results: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Lines of Python and of the command line by title; nothing where the run kept no adapter of its own."""
    method, encoder, task = str(results.get("adapter") or ""), results.get("encoder"), str(results.get("task"))
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
        return {"Python": _python(encoder, parts, head, fusion, task.partition(" ")[0])}
    head = next((path for path in heads if path.name == adapter.name), None)
    options = f"--adapter {shlex.quote(str(adapter))}"  # tells its base, and the head that was trained on it
    shown = {"Python": _python(encoder, [adapter], head, None, task)}
    if task == "asr":
        shown["Transcribe"] = f"speech-adapters transcribe \\\n    {options} \\\n    call.wav"
    if task in _SCORES:
        shown["Score on other data"] = f"speech-adapters evaluate {_SCORES[task]} \\\n    {options}"
    return shown


def saved_part(folder: Path, method: str) -> Path | None:
    """The folder of a method's adapter, of its first fold and seed where there are several."""
    name = method.replace("+", "-")
    found = sorted(path for path in folder.resolve().glob("*") if path.name == name) or sorted(
        path for path in folder.resolve().glob("*") if path.name.startswith((f"{name}-fold", f"{name}-seed"))
    )
    return found[0] if found else None


def _python(encoder: str, adapters: Sequence[Path], head: Path | None, fusion: Path | None, task: str) -> str:
    lines = ["from speech_adapters import SpeechAdapterModel", "from speech_adapters.data.audio import read_audio"]
    if head is not None and task == "asr":
        lines.append("from speech_adapters.heads.decoding import greedy_decode")
    lines += [
        "",
        f"model = SpeechAdapterModel.from_pretrained({encoder!r})",
        *(f"model.load_adapter({str(adapter)!r})" for adapter in adapters),
        *([f"model.load_head({str(head)!r})"] if head is not None else []),
        *([f"model.load_fusion({str(fusion)!r})"] if fusion is not None else []),
        "model.eval()",
        "output = model(read_audio('call.wav')[None])",
        f"print({_READ_OUT.get(task, 'output.logits') if head is not None else 'output.last_hidden_state'})",
    ]
    return "\n".join(lines)
