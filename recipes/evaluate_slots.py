"""Score a saved adapter and slots head (intents of several labels) on any manifest.

    python recipes/evaluate_slots.py --adapter runs/intent_classification/latest/adapters/elp --manifest test.jsonl

An utterance is right only if all its slots are. Runs on the GPU when there is one (--precision bf16 for speed), else
on the CPU. Writes results.json, report.html and predictions/, a JSON line per utterance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Channel, Manifest
from speech_adapters.data.windows import Windows
from speech_adapters.errors import ConfigError, counted
from speech_adapters.ranges import Positive


@dataclass(kw_only=True)
class Config:
    """What to score on what."""

    adapter: Path | None = option(None, "folder of a saved adapter, or of a run that holds one")
    head: Path | None = option(None, "folder of a saved slots head; the one trained on the adapter by default")
    encoder: str | None = option(None, "packaged name, local folder or hub id; the adapter's base by default")
    manifest: Path | None = option(None, "JSON Lines manifest with a key per slot (and speaker, for the intervals)")
    windows: Windows | None = option(
        None, "hear recordings in pieces, as transcribe does: windows.seconds=20; none: each in one forward"
    )
    channel: Channel | None = option(
        None, "heard of files with several, where a line does not say it: a number, or mix"
    )
    batch_seconds: Positive = option(120.0, "audio per batch, padding included")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16: autocast")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    output: Path | None = option(None, "run folder; runs/evaluate_slots/<time> by default")


def main(config: Config) -> None:
    from speech_adapters.files import write_text
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.tasks.saved_model import check_head, load_saved
    from speech_adapters.tasks.slots import evaluate_slots

    if config.manifest is None:
        raise ConfigError("give --manifest: the JSON Lines file to score.")
    manifest = Manifest.read(config.manifest, check_files=True, channel=config.channel)
    model = load_saved(config.adapter, config.head, config.encoder, config.device)
    name = "+".join(model.active_adapters) or "frozen encoder"
    if model.head is None:
        raise ConfigError("give --head: none was found near the adapter.")
    check_head(model, "slots")
    model.head.config.check(manifest, model.encoder, any_length=config.windows is not None)
    run = RunFolder.open("evaluate_slots", config, config.output)
    run.begin()
    options = {"batch_seconds": config.batch_seconds, "precision": config.precision, "windows": config.windows}
    scored = evaluate_slots(model, manifest, **options)
    result = scored.result
    lines = []
    for u in result.utterances:
        pairs = {"labels": u.reference, "predictions": u.prediction}
        named = {key: dict(zip(result.slots, values, strict=True)) for key, values in pairs.items()}
        lines.append(json.dumps({"id": u.id, "speaker": u.speaker, **named}, ensure_ascii=False) + "\n")
    write_text(run.predictions(config.manifest.stem), lines)
    results = Results(
        task="slots",
        encoder=model.encoder.name,
        adapter=name,
        data={"test": manifest.describe()},
        own=MethodResults(metrics=result.to_dict(), parameters=model.count_parameters(), **vars(scored.cost)),
        environment=environment(model.encoder.device),
    )
    table, report = report_results(run, results)
    print(f"accuracy {result.accuracy.percent()} of {counted(len(result.utterances), 'utterance')}, all slots right")
    print("\n".join(f"  {slot}: {interval.percent()}" for slot, interval in result.by_slot.items()))
    print(f"\n{table}\n\nreport {report}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__)))
