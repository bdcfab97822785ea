"""Score a saved adapter and head, or a plain Hugging Face CTC checkpoint, on any manifest.

    python recipes/evaluate_asr.py --adapter runs/asr_librispeech/latest/adapters/elp --manifest test.jsonl
    python recipes/evaluate_asr.py --encoder facebook/wav2vec2-base-960h --manifest test.jsonl

Runs on the GPU when there is one (--precision bf16 for speed), else on the CPU. Writes results.json, worst.json,
report.html and the ``trn`` files that sclite reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Finite, Range
from speech_adapters.tasks.evaluation_settings import EvaluationSettings


@dataclass(kw_only=True)
class Config(EvaluationSettings):
    """What to score on what."""

    head: Path | None = option(None, "folder of a saved CTC head; the one trained on the adapter by default")
    encoder: str | None = option(
        None, "packaged name, local folder or hub id; the adapter's base by default. A *ForCTC one brings its own head"
    )
    normalizer: str = option(
        "librispeech",
        "how texts are written, for the checkpoint's own head: librispeech, basic, basic-upper, whisper-english, "
        "none, or a file of replacements",
    )
    accept_letters: str | None = option(
        None, "letters that the normaliser may change or drop, all for any; by default those of the head's training"
    )
    manifest: Path | None = option(
        None, "JSON Lines manifest with text (and speaker, for the intervals); required", file=True
    )
    beam: Annotated[int, Range(1, 10_000)] | None = option(None, "beam width; greedy decoding without one")
    language_model: Path | None = option(
        None, "ARPA or KenLM file for the beam search (pip install 'speech-adapters[decode]')", file=True
    )
    lexicon: Path | None = option(
        None,
        "file of the words that can come out, one per line; a KenLM binary needs it, an ARPA file lists its own",
        file=True,
    )
    alpha: Finite = option(0.5, "weight of the language model; tune it and beta on held-out speech")
    beta: Finite = option(1.5, "added for each word, in natural logarithms")


def main(config: Config) -> None:
    from speech_adapters.data.transcripts import write_transcripts
    from speech_adapters.files import write_json
    from speech_adapters.heads.decoding import BeamSearch
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.tasks.asr import evaluate_asr, main_metric, use_own_ctc_head, worst_utterances
    from speech_adapters.tasks.saved_model import check_head
    from speech_adapters.text import choose_normalizer

    if config.manifest is None:
        raise ConfigError("give --manifest: the JSON Lines file to score.")
    manifest = Manifest.read(config.manifest, ("text",), check_files=True, channel=config.channel)
    model = config.load()
    name = "+".join(model.active_adapters) or "frozen encoder"
    if model.head is None:
        use_own_ctc_head(model, choose_normalizer(config.normalizer))
    check_head(model, "ctc")
    head = model.head.config
    if config.accept_letters is not None:
        head.accept_letters = config.accept_letters
    head.check(manifest, model.encoder, any_length=config.windows is not None)
    if config.language_model is not None and config.beam is None:
        raise ConfigError("--language-model needs --beam: a language model works in the beam search only.")
    beam = config.beam and BeamSearch(
        head.vocabulary,
        beam_size=config.beam,
        lm_path=config.language_model,
        lexicon_path=config.lexicon,
        alpha=config.alpha,
        beta=config.beta,
    )
    run = RunFolder.open("evaluate_asr", config, config.output)
    run.begin()
    scored = evaluate_asr(model, manifest, beam=beam, **config.hearing)
    trn = run.trn(config.manifest.stem)
    scored.result.save_trn(trn)
    write_transcripts(run.predictions(config.manifest.stem), scored.result)
    write_json(run.worst_file, worst_utterances(scored.result, manifest))
    metric, metrics = main_metric(head.vocabulary), scored.result.to_dict()
    notes = [head.vocabulary.note] if head.vocabulary.note else []
    results = Results(
        task="asr",
        encoder=model.encoder.name,
        adapter=name,
        data={"test": manifest.describe()},
        own=MethodResults(
            metrics={metric: metrics.pop(metric), **metrics},
            parameters=model.count_parameters(),
            **vars(scored.cost),
        ),
        more={"notes": notes} if notes else {},
        environment=environment(model.encoder.device),
    )
    table, report = report_results(run, results)
    print("\n".join([str(scored.result), *notes]))
    print(f"\n{table}\n\nreport {report}\ntrn    {trn}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__)))
