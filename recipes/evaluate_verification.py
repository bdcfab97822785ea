"""Score speaker verification: from audio and a model, from saved embeddings, or from a score file.

    python recipes/evaluate_verification.py                       # the demo corpus, frozen mean-pooled baseline
    python recipes/evaluate_verification.py --trials trials.txt --manifest test.jsonl \\
        --adapter runs/speaker_verification/latest/adapters/l
    python recipes/evaluate_verification.py --trials trials.txt --embeddings test.npz --manifest test.jsonl
    python recipes/evaluate_verification.py --trials trials.txt --scores scores.txt --manifest test.jsonl

Without a head the embedding is the mean of the features. A manifest with speakers makes the intervals bootstrap by
speaker. Cllr and actual DCF want log-likelihood ratios: calibrate on development trials (--dev-trials), or say --llr
for a score file that holds them. Writes results.json, scores/, embeddings.npz, calibration.json and report.html with
the DET curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from speech_adapters.config import option, parse_cli, run_main
from speech_adapters.data.manifest import Manifest, check_disjoint
from speech_adapters.errors import ConfigError, counted
from speech_adapters.ranges import Count, Prior, Range, Size
from speech_adapters.tasks.evaluation_settings import EvaluationSettings

if TYPE_CHECKING:
    from speech_adapters.data.embeddings import Embeddings
    from speech_adapters.data.trials import TrialList
    from speech_adapters.metrics.calibration import Calibration
    from speech_adapters.model import SpeechAdapterModel


NEAREST = 300
"""Members of a cohort that normalise a score, where there are as many."""


@dataclass(kw_only=True)
class Config(EvaluationSettings):
    """What to score on what."""

    trials: Path | None = option(None, 'trial list, "1 enrol test" per line; the demo corpus without one', file=True)
    manifest: Path | None = option(
        None, "JSON Lines manifest of the trials' utterances (with speaker, for the intervals)", file=True
    )
    enrolment: Path | None = option(
        None, 'models of several utterances, "model utterance utterance ..." per line', file=True
    )
    allow_repeats: bool = option(False, "score pairs that the trial list repeats as often as it does")

    adapter: Path | None = option(None, "folder of a saved adapter, or of a run; none scores the frozen encoder")
    head: Path | None = option(
        None, "folder of a saved speaker head; the one trained on the adapter, else the mean of the features"
    )
    encoder: str | None = option(None, "packaged name, local folder or hub id; the adapter's base, else tiny-wavlm")
    embeddings: Path | None = option(None, ".npz or .safetensors of saved embeddings, in place of a model", file=True)
    scores: Path | None = option(
        None, 'score file ("enrol test score" lines, .npy or .npz), in place of a model', file=True
    )
    columns: tuple[str, ...] = option(
        (), "columns of trials and scores that are tables (csv, tsv, jsonl): enrol=file1,test=file2,score=llr"
    )
    llr: bool = option(False, "the score file holds log-likelihood ratios")

    cohort: Path | None = option(None, "manifest with speakers, or embeddings, for score normalisation", file=True)
    top: Count | None = option(NEAREST, "nearest cohort members of adaptive s-norm; none for s-norm over all")
    plda: Path | None = option(None, "manifest with speakers to train PLDA on, which replaces the cosine", file=True)
    plda_rank: Size = option(100, "dimensions of PLDA's speaker space")

    calibration: Path | None = option(None, "saved calibration.json", file=True)
    dev_trials: Path | None = option(None, "trial list to fit a calibration on, scored in the same way", file=True)
    dev_manifest: Path | None = option(
        None, "manifest of the dev trials' utterances; none takes --manifest", file=True
    )
    dev_enrolment: Path | None = option(None, "enrolment map of the dev trials", file=True)
    dev_embeddings: Path | None = option(None, "embeddings of the dev utterances, with --embeddings", file=True)
    dev_scores: Path | None = option(None, "scores of the dev trials, with --scores", file=True)
    p_target: Prior = option(0.5, "prior that the calibration is fitted for")

    draws: Annotated[int, Range(1, 1_000_000)] = option(
        1000, "of the bootstrap; lists of more than half a million trials get fewer, at least 100"
    )

    def __post_init__(self) -> None:
        if self.embeddings is not None and self.scores is not None:
            raise ConfigError("give --embeddings or --scores, not both.")
        if (self.embeddings or self.scores) and (self.adapter or self.head):
            raise ConfigError("--adapter and --head belong to a model; leave them out with --embeddings or --scores.")
        if self.trials is None and any((self.manifest, self.embeddings, self.scores)):
            raise ConfigError("give --trials: the list of trials to score.")
        if self.trials is not None and not any((self.manifest, self.embeddings, self.scores)):
            raise ConfigError("give --manifest: the utterances that the trials name.")
        if self.calibration is not None and self.dev_trials is not None:
            raise ConfigError("give --calibration or --dev-trials to fit one, not both.")
        if self.dev_trials is not None and self.dev_trials == self.trials:
            raise ConfigError("--dev-trials are the --trials: a calibration fitted on them would flatter the figures.")
        for own, dev in (("embeddings", self.dev_embeddings), ("scores", self.dev_scores)):
            if self.dev_trials is not None and getattr(self, own) is not None and dev is None:
                raise ConfigError(f"give --dev-{own}: the dev trials are scored as the others are.")


def main(config: Config) -> None:
    from speech_adapters.data.embeddings import Embeddings
    from speech_adapters.data.score_files import read_scores, write_scores
    from speech_adapters.data.trials import read_enrolment, read_trials, write_trials
    from speech_adapters.files import write_json
    from speech_adapters.metrics.calibration import Calibration
    from speech_adapters.metrics.verification import P_TARGETS
    from speech_adapters.reports.detection_charts import chart_data
    from speech_adapters.reports.report import report_results
    from speech_adapters.runs.environment import environment
    from speech_adapters.runs.folder import RunFolder
    from speech_adapters.runs.results import MethodResults, Results
    from speech_adapters.tasks.saved_model import load_saved
    from speech_adapters.tasks.verification import evaluate_verification

    if config.trials is None:
        from speech_adapters.corpora import prepare_demo

        demo = prepare_demo()
        config.trials, config.manifest = demo.trials("test"), demo.test
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    columns = table_columns(config)
    trials = read_trials(config.trials, allow_repeats=config.allow_repeats, columns=columns)
    manifest = None if config.manifest is None else Manifest.read(config.manifest, channel=config.channel)
    enrolment = None if config.enrolment is None else read_enrolment(config.enrolment)
    calibration = None if config.calibration is None else Calibration.load(config.calibration)

    model, name = None, "scores"
    if config.scores is not None:
        source: Any = read_scores(config.scores, trials, columns)
    elif config.embeddings is not None:
        source, name = Embeddings.load(config.embeddings), "embeddings"
    else:
        manifest.check_audio()
        alone = config.adapter is None and config.head is None
        source = model = load_saved(
            config.adapter, config.head, config.encoder or ("tiny-wavlm" if alone else None), device
        )
        name = "+".join(model.active_adapters) or "frozen encoder"
    cohort = load_cohort(config, model, manifest)
    options = {
        "enrolment": enrolment,
        "cohort": cohort,
        "top": config.top if cohort is None else nearest(config, len(cohort)),
        "plda": train_plda(config, model, manifest),
        **config.hearing,
        "device": device,
    }
    if config.dev_trials is not None:
        calibration = fit_calibration(config, source, trials, manifest, options)
    run = RunFolder.open("evaluate_verification", config, config.output)
    run.begin()
    if config.dev_trials is not None:
        calibration.save(run.path / "calibration.json")
    scored = evaluate_verification(
        source, trials, manifest, calibration=calibration, llr=config.llr, draws=config.draws, **options
    )
    result = scored.result
    scores = run.scores(config.trials.stem)
    write_scores(scores, trials, result.scores)
    write_trials(run.trials_file, trials, scored.speakers)
    if model is not None:
        scored.embeddings.save(run.path / "embeddings.npz")
    write_json(run.detection_file, {name: chart_data(result.curve, P_TARGETS)})
    results = Results(
        task="speaker verification",
        encoder=None if model is None else model.encoder.name,
        adapter=name,
        data={} if manifest is None else {"test": manifest.describe()},
        own=MethodResults(
            metrics=result.to_dict(),
            parameters=None if model is None else model.count_parameters(),
            **vars(scored.cost),
        ),
        more={"thresholds": {"eer": result.curve.eer().threshold}},
        environment=environment(device),
    )
    table, report = report_results(run, results)
    print(f"{result}\n\n{table}\n\nreport {report}\nscores {scores}")


def table_columns(config: Config) -> dict[str, str]:
    """What --columns says of trial lists and score files."""
    from speech_adapters.data import score_files, trials
    from speech_adapters.data.records import said_columns

    return said_columns(config.columns, trials.COLUMNS, score_files.COLUMNS)


def embed(config: Config, model: SpeechAdapterModel | None, manifest: Manifest, purpose: str) -> Embeddings:
    """Embeddings of other utterances than the trials', which need the model."""
    from speech_adapters.tasks.predict import extract_embeddings

    if model is None:
        raise ConfigError(f"{purpose}: audio is embedded by a model; leave --embeddings and --scores out.")
    manifest.require("speaker").check_audio()
    return extract_embeddings(model, manifest, **config.hearing)


def load_cohort(config: Config, model: SpeechAdapterModel | None, test: Manifest | None) -> Embeddings | None:
    """One embedding per speaker, of speakers that are not in the test."""
    from speech_adapters.data.embeddings import Embeddings
    from speech_adapters.tasks.verification import speaker_means

    if config.cohort is None:
        return None
    if config.cohort.suffix in (".npz", ".safetensors"):
        return Embeddings.load(config.cohort)
    manifest = Manifest.read(config.cohort, require=("speaker",), channel=config.channel)
    if test is not None:
        check_disjoint(manifest, test)
    nearest(config, len(manifest.speakers))  # said before all is embedded
    return speaker_means(embed(config, model, manifest, "--cohort"), manifest)


def nearest(config: Config, size: int) -> int | None:
    """How many of a cohort of this size normalise a score; the default of a small one is all of it."""
    if size < 2:
        raise ConfigError(f"--cohort {config.cohort}: {counted(size, 'speaker')}; give two or more.")
    top = min(NEAREST, size) if config.top == NEAREST else config.top
    if top is not None and not 2 <= top <= size:
        raise ConfigError(f"--top {top}: --cohort {config.cohort} has {size} speakers; take from 2 to {size}.")
    return top


def train_plda(config: Config, model: SpeechAdapterModel | None, test: Manifest | None) -> Any:
    """PLDA trained on speakers that are not in the test."""
    if config.plda is None:
        return None
    from speech_adapters.metrics.plda import PLDA, check_speakers

    manifest = Manifest.read(config.plda, require=("speaker",), channel=config.channel)
    if test is not None:
        check_disjoint(manifest, test)
    speakers = [utterance.speaker for utterance in manifest]
    if model is not None:  # said before all is embedded
        head = model.head
        width = model.feature_size if head is None else getattr(head.config, "embedding_size", None)
        if width is not None:  # what else a head lacks for this, embedding says
            check_speakers(speakers, width)
    embeddings = embed(config, model, manifest, "--plda")
    return PLDA.fit(embeddings.vectors, speakers, rank=config.plda_rank)


def fit_calibration(
    config: Config, source: Any, scored: TrialList, test: Manifest | None, options: dict[str, Any]
) -> Calibration:
    """A calibration from dev trials, scored by the same model, cohort and PLDA."""
    from speech_adapters.data.embeddings import Embeddings
    from speech_adapters.data.score_files import read_scores
    from speech_adapters.data.trials import read_enrolment, read_trials
    from speech_adapters.metrics.calibration import Calibration
    from speech_adapters.tasks.verification import score_verification

    columns = table_columns(config)
    trials = read_trials(config.dev_trials, allow_repeats=config.allow_repeats, columns=columns)
    same = config.dev_manifest is None and len(trials) == len(scored)
    if same and {(t.enrol, t.test) for t in trials} == {(t.enrol, t.test) for t in scored}:
        raise ConfigError(
            f"--dev-trials {config.dev_trials}: the pairs of --trials; a calibration fitted on them would flatter the "
            "figures: give trials of other speakers."
        )
    manifest = test
    if config.dev_manifest is not None:
        manifest = Manifest.read(config.dev_manifest, channel=config.channel)
        if test is not None:
            check_disjoint(manifest, test)
    if config.scores is not None:
        source = read_scores(config.dev_scores, trials, columns)
    elif config.embeddings is not None:
        source = Embeddings.load(config.dev_embeddings)
    enrolment = None if config.dev_enrolment is None else read_enrolment(config.dev_enrolment)
    scored = score_verification(source, trials, manifest, **{**options, "enrolment": enrolment})
    return Calibration.fit(scored.scores, trials.labels, config.p_target)


if __name__ == "__main__":
    run_main(lambda: main(parse_cli(Config, description=__doc__)))
