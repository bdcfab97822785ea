"""The verification recipe as a user runs it, from audio, from embeddings and from scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import load_script
from small_encoders import stock_model
from small_trials import small_corpus

from speech_adapters.config import parse_cli
from speech_adapters.data.embeddings import Embeddings
from speech_adapters.errors import InputError

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "evaluate_verification.py"


def evaluate(*arguments: str) -> None:
    """The recipe, in this process."""
    recipe = load_script("recipes/evaluate_verification.py")
    recipe.main(parse_cli(recipe.Config, list(map(str, arguments))))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("corpora")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    test, dev = small_corpus(folder / "test"), small_corpus(folder / "dev", first=10)
    return SimpleNamespace(folder=folder, encoder=folder / "encoder", test=test.folder, dev=dev.folder)


@pytest.fixture(scope="module")
def from_audio(corpora) -> Path:
    """A run from audio, with score normalisation and a calibration on other speakers."""
    output = corpora.folder / "audio-run"
    evaluate(
        f"--trials={corpora.test / 'trials.txt'}", f"--manifest={corpora.test / 'test.jsonl'}",
        f"--encoder={corpora.encoder}", f"--cohort={corpora.dev / 'test.jsonl'}", "--top=3",
        f"--dev-trials={corpora.dev / 'trials.txt'}", f"--dev-manifest={corpora.dev / 'test.jsonl'}",
        "--draws=20", "--device=cpu", f"--output={output}",
    )  # fmt: skip
    return output


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_a_run_leaves_everything(from_audio):
    found = results(from_audio)
    metrics = found["metrics"]
    for name in ("eer", "min_dcf_0.01", "min_dcf_0.05", "min_cllr", "cllr", "actual_dcf_0.01", "actual_dcf_0.05"):
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
        assert "resampled" not in metrics[name]  # by speaker
    assert metrics["trials"] == 66 and metrics["targets"] == 12
    assert metrics["min_cllr"]["value"] <= metrics["cllr"]["value"]
    assert found["adapter"] == "frozen encoder" and found["data"]["test"]["speakers"] == 4
    assert found["seconds"] > 0 and found["audio_seconds_per_second"] > 0 and found["versions"]["torch"]
    assert len((from_audio / "scores" / "trials.txt").read_text().splitlines()) == 66
    assert json.loads((from_audio / "calibration.json").read_text())["scale"] > 0
    page = (from_audio / "report.html").read_text()
    assert "DET curve" in page and "EER %" in page and "frozen encoder" in page


def test_saved_embeddings_and_scores_give_the_same_figures(corpora, from_audio):
    lists = [f"--trials={corpora.test / 'trials.txt'}", f"--manifest={corpora.test / 'test.jsonl'}", "--draws=20"]
    scored = corpora.folder / "score-run"
    evaluate(*lists, f"--scores={from_audio / 'scores' / 'trials.txt'}", "--llr", f"--output={scored}")
    for name, interval in results(from_audio)["metrics"].items():
        assert results(scored)["metrics"][name] == pytest.approx(interval, rel=1e-6)

    plain, embedded = corpora.folder / "plain-run", corpora.folder / "embedding-run"
    evaluate(*lists, f"--encoder={corpora.encoder}", "--device=cpu", f"--output={plain}")
    evaluate(*lists, f"--embeddings={plain / 'embeddings.npz'}", f"--output={embedded}")
    assert results(plain)["metrics"] == results(embedded)["metrics"]
    assert "cllr" not in results(plain)["metrics"]


def test_models_of_several_utterances(corpora):
    output = corpora.folder / "model-run"
    evaluate(
        f"--trials={corpora.test / 'models.txt'}", f"--manifest={corpora.test / 'test.jsonl'}",
        f"--enrolment={corpora.test / 'map.txt'}", f"--encoder={corpora.encoder}", "--draws=5", "--device=cpu",
        f"--output={output}",
    )  # fmt: skip
    assert results(output)["metrics"]["trials"] == 16
    assert (output / "scores" / "models.txt").read_text().startswith("m0 s0-2 ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials={test}/trials.txt"], "give --manifest"),
        (["--manifest={test}/test.jsonl"], "give --trials"),
        (
            ["--trials={test}/trials.txt", "--scores={test}/trials.txt", "--embeddings={test}/trials.txt"],
            "--embeddings or --scores, not both",
        ),
        (
            ["--trials={test}/trials.txt", "--scores={test}/trials.txt", "--head=h"],
            "--adapter and --head belong to a model",
        ),
        (
            ["--trials={test}/trials.txt", "--scores={test}/trials.txt", "--dev-trials={test}/test.jsonl"],
            "give --dev-scores",
        ),
        (
            ["--trials={test}/trials.txt", "--scores={test}/trials.txt", "--dev-trials={test}/trials.txt"],
            "would flatter the figures",
        ),
        (["--trials={test}/trials.txt", "--scores={test}/none.txt"], "none.txt: no such file; check --scores"),
        (
            ["--trials={test}/trials.txt", "--manifest={dev}/test.jsonl", "--encoder={folder}/encoder"],
            "trials.txt:1: utterance 's0/1.wav' is not in",
        ),
        (
            [
                *("--trials={test}/trials.txt", "--manifest={test}/test.jsonl", "--encoder={folder}/encoder"),
                "--cohort={test}/test.jsonl",
            ],
            "shares . speakers? with",
        ),
    ],
)
def test_mistakes_are_named(corpora, arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        evaluate(*(argument.format(**vars(corpora)) for argument in arguments), f"output={tmp_path / 'none'}")


@pytest.mark.slow
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(corpora, tmp_path):
    np.save(tmp_path / "scores.npy", np.zeros(3))
    done = subprocess.run(
        [sys.executable, RECIPE, f"--trials={corpora.test / 'trials.txt'}", f"--scores={tmp_path / 'scores.npy'}"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "scores (3,) for the 66 trials" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_copy_of_the_trials_is_no_dev_list(corpora, tmp_path):
    lines = (corpora.test / "trials.txt").read_text().splitlines()
    (tmp_path / "dev.txt").write_text("\n".join(reversed(lines)) + "\n")
    np.save(tmp_path / "scores.npy", np.arange(66.0))
    scores = tmp_path / "scores.npy"
    with pytest.raises(InputError, match=r"--dev-trials .*dev\.txt: the pairs of --trials; .* would flatter"):
        evaluate(
            f"--trials={corpora.test / 'trials.txt'}", f"--scores={scores}", f"--dev-trials={tmp_path / 'dev.txt'}",
            f"--dev-scores={scores}", f"--output={tmp_path / 'none'}",
        )  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_a_small_cohort_is_taken_whole_unless_more_of_it_is_asked_for(corpora, monkeypatch, tmp_path):
    def run(*more: str) -> dict:
        evaluate(
            f"--trials={corpora.test / 'trials.txt'}", f"--manifest={corpora.test / 'test.jsonl'}", "--draws=5",
            f"--encoder={corpora.encoder}", f"--cohort={corpora.dev / 'test.jsonl'}", "--device=cpu", *more,
        )  # fmt: skip
        return results(tmp_path / "plain")["metrics"]

    assert run(f"--output={tmp_path / 'plain'}")["trials"] == 66
    monkeypatch.setattr("speech_adapters.tasks.predict.extract_embeddings", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises(InputError, match=r"--top 99: --cohort .*test\.jsonl has \d+ speakers; take from 2 to \d+"):
        run(f"--output={tmp_path / 'none'}", "--top=99")
    with pytest.raises(InputError, match=r"PLDA training: \d+ utterances of \d+ speakers for embeddings of width"):
        evaluate(
            f"--trials={corpora.test / 'trials.txt'}", f"--manifest={corpora.test / 'test.jsonl'}", "--device=cpu",
            f"--encoder={corpora.encoder}", f"--plda={corpora.dev / 'test.jsonl'}", f"--output={tmp_path / 'none'}",
        )  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_embeddings_of_a_run_load(from_audio):
    assert len(Embeddings.load(from_audio / "embeddings.npz")) == 12
