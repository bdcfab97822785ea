"""Score a saved adapter and slots head (intents of several labels) on any manifest.

    python recipes/evaluate_slots.py --adapter runs/intent_classification/latest/adapters/elp --manifest test.jsonl

An utterance is right only if all its slots are. Runs on the GPU when there is one (--precision bf16 for speed), else
on the CPU. Writes results.json, report.html and predictions/, a JSON line per utterance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError, counted
from speech_adapters.tasks.evaluation_settings import EvaluationSettings


@dataclass(kw_only=True)
class Config(EvaluationSettings):
    """What to score on what."""

    head: Path | None = option(None, "folder of a saved slots head; the one trained on the adapter by default")
    manifest: Path | None = option(
        None, "JSON Lines manifest with a key per slot (and speaker, for the intervals)", file=True
    )


def main(config: Config) -> None:
    from speech_adapters.files import write_text
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.tasks.saved_model import check_head
    from speech_adapters.tasks.slots import evaluate_slots

    if config.manifest is None:
        raise ConfigError("give --manifest: the JSON Lines file to score.")
    manifest = Manifest.read(config.manifest, check_files=True, channel=config.channel)
    model = config.load()
    name = "+".join(model.active_adapters) or "frozen encoder"
    if model.head is None:
        raise ConfigError("give --head: none was found near the adapter.")
    check_head(model, "slots")
    model.head.config.check(manifest, model.encoder, any_length=config.windows is not None)
    run = RunFolder.open("evaluate_slots", config, config.output)
    run.begin()
    scored = evaluate_slots(model, manifest, **config.hearing)
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
