"""Score a saved adapter and classification head on any manifest, or any classifier's file of predictions.

    python recipes/evaluate_emotion.py --adapter runs/emotion_recognition/latest/adapters/elp --manifest test.jsonl
    python recipes/evaluate_emotion.py --predictions theirs.csv --manifest test.jsonl

Any label works, not emotions alone: --label-field names its key in the manifest. A file of predictions holds id, label
and prediction, and speaker for the intervals (JSON Lines or CSV); with --manifest the report also plays the most
confident mistakes. Runs on the GPU when there is one (--precision bf16 for speed), else on the CPU. Writes
results.json, predictions.jsonl, worst.json and report.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError, InputError, counted
from speech_adapters.tasks.evaluation_settings import EvaluationSettings

if TYPE_CHECKING:
    from speech_adapters.metrics.classification import ClassificationResult


@dataclass(kw_only=True)
class Config(EvaluationSettings):
    """What to score on what."""

    head: Path | None = option(None, "folder of a saved head of classes; the one trained on the adapter by default")
    manifest: Path | None = option(None, "JSON Lines manifest with labels (and speaker, for the intervals)", file=True)
    label_field: str = option("emotion", "key of the manifest that holds the class: emotion, label, or one of its own")
    predictions: Path | None = option(
        None, "score this file of predictions (JSON Lines or CSV) instead of a model", file=True
    )
    columns: tuple[str, ...] = option(
        (), "columns of the predictions whose names do not tell: id=clip,label=gold,prediction=guess"
    )


def evaluate_model(config: Config, manifest: Manifest) -> tuple[ClassificationResult, dict[str, Any], dict[str, Any]]:
    """The result of the model on the manifest, what ``results.json`` says of the model, and its costs."""
    from speech_adapters.runs.environment import environment
    from speech_adapters.tasks.classification import evaluate_classification
    from speech_adapters.tasks.saved_model import check_head

    model = config.load()
    name = "+".join(model.active_adapters) or "frozen encoder"
    if model.head is None:
        raise ConfigError("give --head: none was found near the adapter.")
    check_head(model, "classification")
    model.head.config.check(manifest, model.encoder, any_length=config.windows is not None)
    scored = evaluate_classification(model, manifest, label_field=config.label_field, **config.hearing)
    facts = {"encoder": model.encoder.name, "adapter": name, "environment": environment(model.encoder.device)}
    return scored.result, facts, {"parameters": model.count_parameters(), **vars(scored.cost)}


def check_same_utterances(result, manifest: Manifest, label_field: str, source: Path) -> None:
    """Predictions must be of exactly the manifest's utterances, with its labels: no subset is scored unnoticed."""
    labels = {utterance.id: str(utterance.get(label_field)) for utterance in manifest}
    for utterance in result.runs[0]:
        if labels.get(utterance.id) != utterance.label:
            found = f"has the label {labels[utterance.id]!r}" if utterance.id in labels else "does not stand"
            raise InputError(f"{source}: {utterance.id!r}, labelled {utterance.label!r}, {found} in {manifest.name}")
    if missing := labels.keys() - {utterance.id for utterance in result.runs[0]}:
        raise InputError(
            f"{source}: lacks {counted(len(missing), 'utterance')} of {manifest.name}, such as {min(missing)!r}"
        )


def main(config: Config) -> None:
    from speech_adapters.data.predictions import COLUMNS, read_predictions, write_predictions
    from speech_adapters.data.records import said_columns
    from speech_adapters.data.trials import UtteranceIndex
    from speech_adapters.files import write_json
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.tasks.classification import confident_mistakes

    if config.predictions is not None and (config.head or config.adapter):
        raise ConfigError("give --predictions, or --head and --adapter: one or the other is scored.")
    if config.predictions is None and not ((config.adapter or config.head) and config.manifest):
        raise ConfigError(
            "give --adapter or --head, and --manifest, to score a model; or --predictions to score a file."
        )
    manifest = None
    if config.manifest is not None:
        manifest = Manifest.read(config.manifest, (config.label_field,), check_files=True, channel=config.channel)
    if config.predictions is not None:
        columns = said_columns(config.columns, COLUMNS)
        index = None if manifest is None else UtteranceIndex.of_manifest(manifest)
        result = read_predictions(config.predictions, columns=columns, index=index)
        if manifest is not None:
            check_same_utterances(result, manifest, config.label_field, config.predictions)
        facts = {"adapter": config.predictions.name, "more": {"predictions": str(config.predictions)}}
        costs = {}
    else:
        result, facts, costs = evaluate_model(config, manifest)
    run = RunFolder.open("evaluate_emotion", config, config.output)
    run.begin()
    write_predictions(run.path / "predictions.jsonl", result)
    if manifest is not None:
        write_json(run.worst_file, confident_mistakes(result, manifest))
    results = Results(
        task=config.label_field,
        data={"test": manifest.describe()} if manifest is not None else {},
        own=MethodResults(metrics=result.to_dict(), **costs),
        **facts,
    )
    table, report = report_results(run, results)
    print(f"{result}\n\n{table}\n\nreport {report}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__)))
