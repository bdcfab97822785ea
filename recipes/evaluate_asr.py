"""Score a saved adapter and head, or a plain Hugging Face CTC checkpoint, on any manifest.

    python recipes/evaluate_asr.py --encoder tiny-wavlm --adapter runs/asr_librispeech/latest/adapters/elp \\
        --head runs/asr_librispeech/latest/heads/elp --manifest test.jsonl
    python recipes/evaluate_asr.py --encoder facebook/wav2vec2-base-960h --manifest test.jsonl

Runs on the GPU when there is one (--precision bf16 for speed), else on the CPU. Writes results.json, worst.json,
report.html and the ``trn`` files that sclite reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError
from speech_adapters.ranges import Finite, Positive, Range


@dataclass(kw_only=True)
class Config:
    """What to score on what."""

    encoder: str = option(
        "tiny-wavlm", "packaged name, local folder or hub id; a *ForCTC checkpoint brings its own head"
    )
    adapter: Path | None = option(None, "folder of a saved adapter; none scores the frozen encoder")
    head: Path | None = option(None, "folder of a saved CTC head; none takes the checkpoint's own")
    manifest: Path | None = option(None, "JSON Lines manifest with text (and speaker, for the intervals); required")
    beam: Annotated[int, Range(1, 10_000)] | None = option(None, "beam width; greedy decoding without one")
    language_model: Path | None = option(
        None, "ARPA or KenLM file for the beam search (pip install 'speech-adapters[decode]')"
    )
    lexicon: Path | None = option(
        None, "file of the words that can come out, one a line; a KenLM binary needs it, an ARPA file lists its own"
    )
    alpha: Finite = option(0.5, "weight of the language model; tune it and beta on held-out speech")
    beta: Finite = option(1.5, "added for each word, in natural logarithms")
    batch_seconds: Positive = option(120.0, "audio per batch, padding included")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16: autocast")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    output: Path | None = option(None, "run folder; runs/evaluate_asr/<time> by default")


def main(config: Config) -> None:
    from speech_adapters.files import write_json
    from speech_adapters.heads.decoding import BeamSearch
    from speech_adapters.model import SpeechAdapterModel
    from speech_adapters.reports.report import method_rows, summary_table, write_report
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.tasks.asr import evaluate_asr, use_own_ctc_head, worst_utterances

    if config.manifest is None:
        raise ConfigError("give --manifest: the JSON Lines file to score.")
    manifest = Manifest.read(config.manifest, require=("text",), check_files=True)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    model = SpeechAdapterModel.from_pretrained(config.encoder, device=device)
    name = "frozen encoder"
    if config.adapter is not None:
        name = model.load_adapter(config.adapter)
    if config.head is not None:
        model.load_head(config.head)
    else:
        use_own_ctc_head(model)
    head = model.head.config
    head.check(manifest, model.encoder)
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
    scored = evaluate_asr(model, manifest, batch_seconds=config.batch_seconds, precision=config.precision, beam=beam)
    trn = run.trn(config.manifest.stem)
    scored.result.save_trn(trn)
    write_json(run.worst_file, worst_utterances(scored.result, manifest))
    results = Results(
        task="asr",
        encoder=config.encoder,
        adapter=name,
        data={"test": manifest.describe()},
        own=MethodResults(metrics=scored.result.to_dict(), parameters=model.count_parameters(), **vars(scored.cost)),
        environment=environment(device),
    )
    results.write(run.results_file)
    report = write_report(run.path)
    print(f"{scored.result}\n\n{summary_table(method_rows(results.to_dict()))}\n\nreport {report}\ntrn    {trn}")


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__)))
