"""Score a saved adapter and slots head (intents of several labels) on any manifest.

    python recipes/evaluate_slots.py --encoder tiny-wavlm --adapter runs/intent_classification/latest/adapters/elp \\
        --head runs/intent_classification/latest/heads/elp --manifest test.jsonl

An utterance is right only if all its slots are. Runs on the GPU when there is one (--precision bf16 for speed), else
on the CPU. Writes results.json, report.html and predictions/, a JSON line an utterance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError


@dataclass(kw_only=True)
class Config:
    """What to score on what."""

    encoder: str = option("tiny-wavlm", "packaged name, local folder or hub id")
    adapter: Path | None = option(None, "folder of a saved adapter; none scores the head on the frozen encoder")
    head: Path | None = option(None, "folder of a saved slots head; required")
    manifest: Path | None = option(None, "JSON Lines manifest with a key per slot (and speaker, for the intervals)")
    batch_seconds: float = option(120.0, "audio per batch, padding included")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16: autocast")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    output: Path | None = option(None, "run folder; runs/evaluate_slots/<time> by default")


def main(config: Config) -> None:
    import torch

    from speech_adapters.files import write_text
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.reports.report import method_rows, summary_table, write_report
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.tasks.slots import evaluate_slots

    if config.head is None or config.manifest is None:
        raise ConfigError("give --head and --manifest: what is scored, and on what.")
    manifest = Manifest.read(config.manifest, check_files=True)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    model = SpeechAdapterModel.from_pretrained(config.encoder, device=device)
    name = "frozen encoder" if config.adapter is None else model.load_adapter(config.adapter)
    model.load_head(config.head)
    model.head.config.check(manifest, model.encoder)
    run = RunFolder.open("evaluate_slots", config, config.output)
    run.begin()
    scored = evaluate_slots(model, manifest, batch_seconds=config.batch_seconds, precision=config.precision)
    result = scored.result
    lines = []
    for u in result.utterances:
        pairs = {"labels": u.reference, "predictions": u.prediction}
        named = {key: dict(zip(result.slots, values, strict=True)) for key, values in pairs.items()}
        lines.append(json.dumps({"id": u.id, "speaker": u.speaker, **named}, ensure_ascii=False) + "\n")
    write_text(run.predictions(config.manifest.stem), lines)
    results = Results(
        task="slots",
        encoder=config.encoder,
        adapter=name,
        data={"test": manifest.describe()},
        own=MethodResults(metrics=result.to_dict(), parameters=model.count_parameters(), **vars(scored.cost)),
        environment=environment(device),
    )
    results.write(run.results_file)
    report = write_report(run.path)
    print(f"accuracy {result.accuracy.percent()} of {len(result.utterances)} utterances, all slots right")
    print("\n".join(f"  {slot}: {interval.percent()}" for slot, interval in result.by_slot.items()))
    print(f"\n{summary_table(method_rows(results.to_dict()))}\n\nreport {report}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__)))
