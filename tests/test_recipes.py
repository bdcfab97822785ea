"""The recipes as a user runs them: the real command line, on small data, to the files it leaves."""

from __future__ import annotations

import io
import json
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from small_encoders import stock_model

from speech_adapters.corpora.demo import prepare_demo
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders import packaged_encoders

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(*command: object, expect: int = 0) -> subprocess.CompletedProcess:
    """A recipe, or ``-m`` and a module, as the shell runs it, less the seconds of a process that imports torch."""
    words, out, err, code = [*map(str, command)], io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(ROOT)
        patch.syspath_prepend(str(ROOT / "recipes"))
        patch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
        try:
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
    done = subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Three manifests of tones whose pitch says which word they are, other speakers in each, and an encoder."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("dev", 6), ("test", 9)):
        utterances = []
        for index in range(count):
            time = np.arange(int((0.7 + 0.02 * index) * 16000)) / 16000
            tone = np.sin(2 * np.pi * (200 + 300 * (index % 3)) * time) * 0.3 + rng.normal(0, 0.01, len(time))
            path = folder / "audio" / f"{split}{index}.wav"
            path.parent.mkdir(exist_ok=True)
            write_audio(path, torch.tensor(tone, dtype=torch.float32))
            utterances.append(
                Utterance(
                    id=f"{split}{index}",
                    audio_filepath=path,
                    duration=len(time) / 16000,
                    text=("YES", "NO", "MAYBE SO")[index % 3],
                    speaker=f"{split}-{index % 3}",
                )
            )
        Manifest(utterances, split).write(folder / f"{split}.jsonl")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return folder


@pytest.fixture(scope="module")
def finished(corpus) -> Path:
    """A finished run of the ASR recipe with two methods and two seeds."""
    sets = [f"--{split}={corpus / split}.jsonl" for split in ("train", "dev", "test")]
    output = corpus / "run"
    done = run(
        "recipes/asr_librispeech.py", *sets, f"--encoder={corpus / 'encoder'}", f"--output={output}", "--seeds=0,1",
        "training.updates=6", "training.batch_seconds=6", "training.log_every=2", "adapter_options.e_size=8",
        "adapter_options.l_size=16",
    )  # fmt: skip
    assert "elp" in done.stdout and "head-only" in done.stdout and "WER" in done.stdout
    assert "Warning" not in done.stderr
    return output


def test_asr_recipe_leaves_what_the_readme_promises(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["task"] == "asr" and results["adapter"] == "elp" and results["seeds"] == [0, 1]
    for metrics in (results["metrics"], results["baselines"]["head-only"]["metrics"]):
        assert 0 <= metrics["wer"]["low"] <= metrics["wer"]["value"] <= metrics["wer"]["high"]
    assert results["data"]["train"]["speakers"] == 3 and len(results["data"]["test"]["sha256"]) == 64
    assert results["parameters"]["trainable"] > results["baselines"]["head-only"]["parameters"]["trainable"]
    assert results["versions"]["torch"] and results["peak_memory_bytes"] > 0
    for file in ("config.yaml", "metrics.jsonl", "report.html", "worst.json", "layer_weights.json"):
        assert (finished / file).stat().st_size > 0, file
    for name in ("elp-seed0", "elp-seed1", "head-only-seed0"):
        assert (finished / "adapters" / name / "adapter.json").is_file()
        assert (finished / "heads" / name / "head.json").is_file()
        assert (finished / "trn" / name / "hyp.trn").is_file()
    assert list((finished / "tensorboard").rglob("events*"))
    methods = {json.loads(line)["method"] for line in (finished / "metrics.jsonl").read_text().splitlines()}
    assert methods == {"elp-seed0", "elp-seed1", "head-only-seed0", "head-only-seed1"}


def test_the_saved_config_reproduces_the_run(corpus, finished):
    again = corpus / "again"
    run("recipes/asr_librispeech.py", f"--config={finished / 'config.yaml'}", f"--output={again}")
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (finished, again))
    assert first["metrics"] == second["metrics"] and first["wer_by_seed"] == second["wer_by_seed"]


def test_evaluating_the_saved_adapter_gives_the_same_figures(corpus, finished):
    output = corpus / "scored"
    command = [
        "recipes/evaluate_asr.py", f"--encoder={corpus / 'encoder'}",
        f"--adapter={finished / 'adapters' / 'elp-seed1'}",
        f"--head={finished / 'heads' / 'elp-seed1'}", f"--manifest={corpus / 'test.jsonl'}",
    ]  # fmt: skip
    done = run(*command, f"--output={output}")
    assert re.search(r"WER \d", done.stdout)
    run(*command, f"--output={corpus / 'windowed'}", "windows.seconds=4")
    hypotheses = [(folder / "trn" / "test" / "hyp.trn").read_text() for folder in (output, corpus / "windowed")]
    assert hypotheses[0] == hypotheses[1], "utterances without pauses are one window each"
    assert (output / "trn" / "test" / "hyp.trn").read_text() == (
        finished / "trn" / "elp-seed1" / "hyp.trn"
    ).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter=lorra"], "Did you mean 'lora'"),
        (["--encoder=tiny-wavml"], "unknown encoder 'tiny-wavml'"),
        (["--train=train.jsonl"], "train.jsonl: no such file; check --train"),
        (["--train=README.md"], "give --train and --dev"),
        (["training.updatez=3"], "updatez"),
        (["--encoder=microsoft/wavlm-base-plus"], "cannot be reached"),
    ],
)
def test_a_beginners_mistake_gets_one_clear_line(arguments, message, corpus, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if arguments[0].startswith("--adapter"):
        arguments = [*arguments, f"--encoder={corpus / 'encoder'}"]
        arguments += [f"--{split}={corpus / split}.jsonl" for split in ("train", "dev", "test")]
    done = run("recipes/asr_librispeech.py", *arguments, expect=2)
    assert message in done.stderr and "Traceback" not in done.stderr


def test_command_line_lists_checks_and_transcribes(corpus, finished):
    assert "elp" in run("-m", "speech_adapters.cli", "adapters", f"--encoder={corpus / 'encoder'}").stdout
    done = run("-m", "speech_adapters.cli", "check", corpus / "train.jsonl", corpus / "test.jsonl")
    assert "share no speaker" in done.stdout
    done = run(
        "-m", "speech_adapters.cli", "transcribe", f"--encoder={corpus / 'encoder'}",
        f"--adapter={finished / 'adapters' / 'elp-seed0'}", f"--head={finished / 'heads' / 'elp-seed0'}",
        corpus / "audio" / "test0.wav",
    )  # fmt: skip
    assert "test0.wav\t" in done.stdout


@pytest.mark.skipif("tiny-wavlm" not in packaged_encoders(), reason="tiny-wavlm is not packaged in this checkout")
def test_an_adapter_beats_the_frozen_head_on_the_packaged_encoder(tmp_path):
    """The demo's corpus and encoder, its quickest adapter, a twentieth of its audio."""
    demo = prepare_demo()
    for split, size in (("train", 400), ("dev", 12), ("test", 72)):
        Manifest.read(demo.manifest(split)).subset(size=size, seed=0).write(tmp_path / f"{split}.jsonl")
    sets = [f"--{split}={tmp_path / split}.jsonl" for split in ("train", "dev", "test")]
    short = ["--adapter=l", "training.updates=120", "training.batch_seconds=6", "training.cache=null"]
    run("recipes/asr_librispeech.py", *sets, *short, f"--output={tmp_path / 'run'}")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    adapter, head = results["metrics"]["cer"]["value"], results["baselines"]["head-only"]["metrics"]["cer"]["value"]
    assert adapter < 0.9 * head


def test_the_recipe_runs_on_the_packaged_whisper(corpus):
    output = corpus / "whisper"
    sets = [f"--{split}={corpus / split}.jsonl" for split in ("train", "dev", "test")]
    run(
        "recipes/asr_librispeech.py", *sets, "--encoder=whisper-tiny-en", "--adapter=lora", f"--output={output}",
        "training.updates=12", "training.batch_seconds=6", "training.time_mask_probability=0.1",
        "training.cache=null", "--head-hidden-size=16", "--head-kernel-size=3", "--head-dropout=0.3",
        "--head-consistency=0.2",
    )  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    head = json.loads((output / "heads" / "lora" / "head.json").read_text())["config"]
    chosen = {"hidden_size": 16, "kernel_size": 3, "dropout": 0.3, "consistency": 0.2}
    assert {key: head[key] for key in chosen} == chosen
    assert results["encoder"] == "whisper-tiny-en" and results["parameters"]["total"] > 8_208_384
    saved = json.loads((output / "adapters" / "lora" / "adapter.json").read_text())
    assert saved["base"]["family"] == "whisper" and saved["base"]["normalize"] is False


def test_comparing_methods_leaves_a_table_and_a_scatter_plot(corpus):
    output = corpus / "compared"
    sets = [f"--{split}={corpus / split}.jsonl" for split in ("train", "dev", "test")]
    methods = ["lora+l", "prefix", "adalora", "gradual", "cnn-adapter"]
    done = run(
        "recipes/compare_methods.py", *sets, f"--encoder={corpus / 'encoder'}", f"--output={output}",
        f"--methods={','.join(methods)}", "training.updates=8", "training.batch_seconds=6", "--quantize=int8",
        "options.lora.rank=2", "options.prefix.length=3", "options.houlsby.size=4",
    )  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    assert [results["adapter"], *results["baselines"]] == methods
    assert all(re.search(rf"^{re.escape(method)} .*\d", done.stdout, re.M) for method in methods)
    lora, *_ = json.loads((output / "adapters" / "lora-l" / "adapter.json").read_text())["config"]["parts"]
    prefix = json.loads((output / "adapters" / "prefix" / "adapter.json").read_text())["config"]
    assert lora["rank"] == 2 and prefix["length"] == 3
    report = (output / "report.html").read_text()
    assert "Figures against parameters" in report and ">cnn-adapter</text>" in report
    wrong = run("recipes/compare_methods.py", "--methods=lora,lora", expect=2)
    assert "give two or more different presets" in wrong.stderr
    wrong = run("recipes/compare_methods.py", *sets, "--methods=lora,l", "options.lorra.rank=2", expect=2)
    assert "unknown adapter preset 'lorra'. Did you mean 'lora'?" in wrong.stderr
