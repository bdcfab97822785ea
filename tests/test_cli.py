"""The command line as a user types it: help, suggestions, exit codes, and what each verb prints and leaves."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from small_corpora import speak
from small_encoders import stock_model

from speech_adapters import CTCHead, LoRA, SpeechAdapterModel, Vocabulary, cli
from speech_adapters.cli import doctor, recipes, verbs
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.data.transcripts import read_transcripts, write_transcripts
from speech_adapters.errors import InputError
from speech_adapters.metrics.wer import word_error_rate
from speech_adapters.runs.results import MethodResults, Results
from speech_adapters.training.cache import PREFIX, Activations, code_version

ROOT = Path(__file__).parents[1]


class Outcome(str):
    """What a command printed on standard output; ``err`` and ``code`` beside it."""

    err: str
    code: int


@pytest.fixture
def sa(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object, expect: int = 0) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        shown = capsys.readouterr()
        outcome = Outcome(shown.out)
        outcome.err, outcome.code = shown.err, int(stop.value.code or 0)
        assert outcome.code == expect, shown.out + shown.err
        return outcome

    return run


def every_verb(group: str = "speech_adapters.cli", before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name in verbs.names_in(import_module(group)):
        module = verbs.module_of(group, name)
        found.append((*before, name))
        if hasattr(import_module(module), "VERBS"):
            found += every_verb(module, (*before, name))
    return found


# ------------------------------------------------------------------ help


def test_the_help_of_every_verb_loads_nothing_heavy() -> None:
    """Counted modules, not seconds: torch and its like are not imported by any help but those of recipes."""
    quick = [list(words) for words in every_verb() if words not in (("fuse",), ("adapt",))]  # recipes' own
    heavy = ("torch", "numpy", "scipy", "transformers", "peft", "soundfile", "speechbrain", "sklearn", "matplotlib")
    code = f"""
import contextlib, io, sys
from speech_adapters.cli import main
for words in [[], *{quick!r}]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        try:
            main([*words, "--help"])
        except SystemExit as stop:
            assert not stop.code, words
    assert shown.getvalue().startswith("usage: speech-adapters"), words
    loaded = set({heavy!r}) & sys.modules.keys()
    assert not loaded, (words, loaded)
print(len(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) < 400  # torch alone brings some 1,300


def test_a_recipe_s_help_lists_every_key_of_training(sa) -> None:
    from speech_adapters.training.settings import TrainingConfig

    shown = sa("train", "asr", "--help")
    assert shown.startswith("usage: speech-adapters train asr")
    assert "    speech-adapters train asr --train train.jsonl" in shown and "python recipes" not in shown
    for field in dataclasses.fields(TrainingConfig):
        assert f"\n  training.{field.name}\n" in shown, field.name
    flat = " ".join(shown.split())
    assert "Optimizer steps. Methods are compared at equal updates. (default: 1000)" in flat
    assert "training.augmentation.snr_db Lowest and highest signal-to-noise ratio" in flat
    assert "--updates VALUE short for training.updates" in flat and "--lr VALUE short for learning_rate" in flat


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "speech-adapters: there is no verb 'trian'; did you mean 'train'?"),
        (["manifest", "mkae"], "speech-adapters manifest: there is no verb 'mkae'; did you mean 'make'?"),
        (["train", "ars"], "speech-adapters train: there is no 'ars'; did you mean 'asr'?"),
        (
            ["train", "asr", "--learning-rte", "1"],
            "unknown argument '--learning-rte'; did you mean '--learning-rate'?",
        ),
        (["train", "asr", "training.updatse=1"], "did you mean 'updates'?"),
        (["transcribe", "--adaptr", "x", "a.wav"], "unknown argument '--adaptr'; did you mean '--adapter'?"),
        (["copy-recipe", "asr_libri"], "there is no recipe 'asr_libri'; did you mean 'asr_librispeech'?"),
        (["info", "nothing/here/at/all"], "no such file or folder"),
        (["compare", "one"], "one: no such run folder"),
        (["fuse"], "give --adapters"),
        (
            ["manifest", "import", "kaldi", ".", "--columns", "a=b", "-o", "x.jsonl"],
            "--columns: means nothing for kaldi",
        ),
        (["manifest", "make", ".", "-o", "x.csv"], "'x.csv': a manifest's name ends in .jsonl"),
        (["manifest", "make", ".", "-o", "there.jsonl"], "'there.jsonl': exists already; name another file"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(sa, tmp_path, monkeypatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.jsonl").touch()
    outcome = sa(*words, expect=2)
    assert message in outcome.err and outcome.err.startswith("error: ") and "Traceback" not in outcome.err


def test_without_a_verb_all_are_shown(sa) -> None:
    outcome = sa(expect=2)
    assert not outcome and all(name in outcome.err for name, *_ in every_verb())
    assert sa("--version").startswith("speech-adapters ")


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m speech_adapters.cli train asr --print-config | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 1


# ------------------------------------------------------------------ short flags


def test_short_flags_are_keys(sa) -> None:
    flags = {"updates": 7, "lr": 1e-4, "rank": 3, "batch-seconds": 5, "seed": 9}
    words = [f"--{name}={value}" for name, value in flags.items()]
    shown = sa("train", "asr", "--adapter", "lora", *words, "--print-config")
    long = [
        "training.updates=7",
        "learning_rate=0.0001",
        "adapter_options.rank=3",
        "training.batch_seconds=5",
        "seeds=9",
    ]
    assert shown == sa("train", "asr", "--adapter", "lora", *long, "--print-config")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--updates", "3", "training.updates=4"], "--updates and 'training.updates=4' both set training.updates"),
        (["--seed", "3", "--seeds", "4"], "--seed and '--seeds' both set seeds"),
        (["--rank", "3", "adapter_options={rank: 4}"], "both set adapter_options.rank"),
        (["--adapter", "l", "adapter=e"], "--adapter and 'adapter=e' both set adapter"),
        (["--updates", "many"], "training.updates: expected an integer, got 'many'"),
        (["--lr", "-1"], "learning_rate=-1.0: must be a number, above 0"),
        (["--device", "gpu"], "--device gpu: give auto, cpu, cuda, or cuda:N"),
        (["--device", "cpu:1"], "--device cpu:1: give auto"),
    ],
)
def test_conflicts_and_bad_values_are_named(sa, words: list[str], message: str) -> None:
    assert message in sa("train", "asr", *words, expect=2).err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(sa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "--device cuda: there is no such GPU" in sa("train", "asr", "--device", "cuda", expect=2).err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert "CUDA_VISIBLE_DEVICES=5 shows no GPU" in sa("train", "asr", "--device", "cuda:1", expect=2).err


def test_one_learning_rate_goes_to_all_groups_of_the_adapter() -> None:
    from speech_adapters.tasks.base import ExperimentConfig

    config = ExperimentConfig(adapter="lora", learning_rate=3e-5, rates={"lora": 1.0, "layers": 0.5})
    assert config.rates_for({"lora": {"lora", "head"}, "full": {"layers", "head"}}) == {
        "lora": {"lora": 3e-5, "head": 3e-5},
        "full": {"layers": 0.5, "head": 3e-5},
    }
    config.training.learning_rates = {"head": 1e-2}
    assert config.rates_for({"lora": {"lora", "head"}})["lora"] == {"lora": 3e-5, "head": 1e-2}


# ------------------------------------------------------------------ recipes


def test_every_recipe_is_run_or_is_said_to_be_the_maintainers_own() -> None:
    from speech_adapters.cli.evaluate import RECIPES as EVALUATIONS
    from speech_adapters.cli.train import RECIPES as TRAININGS

    used = {*TRAININGS.values(), *EVALUATIONS.values(), "fuse_adapters", "adapt_unlabelled"}
    assert used <= set(recipes.recipe_names())
    assert set(recipes.recipe_names()) - used == {"pretrain_tiny", "pretrain_small"}  # make the packaged encoders


def test_a_copied_recipe_brings_all_it_needs_and_runs(sa, tmp_path: Path) -> None:
    shown = sa("copy-recipe", "compare_methods", "mine")
    script = tmp_path / "mine" / "compare_methods.py"
    assert str(Path("mine") / "compare_methods.py") in shown and "run it: python" in shown
    assert (script.parent / "asr_librispeech.py").is_file()  # which it imports
    done = subprocess.run(
        [sys.executable, script, "--preset", "small", "--print-config"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "methods:" in done.stdout, done.stderr
    assert "compare_methods.py: exists already" in sa("copy-recipe", "compare_methods", "mine", expect=2).err
    assert "asr_librispeech" in sa("copy-recipe")


def test_the_wheel_holds_the_recipes() -> None:
    import tomllib

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"recipes": "speech_adapters/recipes"}


# ------------------------------------------------------------------ saved parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder, and two LoRA adapters with heads as a run leaves them."""
    folder = tmp_path_factory.mktemp("parts")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    for number, name in enumerate(("one", "two")):
        model = SpeechAdapterModel.from_pretrained(folder / "encoder")
        torch.manual_seed(number)
        model.add_adapter("asr", LoRA(rank=2))
        for parameter in model.adapters["asr"].parameters():
            parameter.data.normal_(std=0.1)
        model.add_head("asr", CTCHead(Vocabulary.wav2vec2()))
        model.save_adapter("asr", folder / name / "adapters" / "lora", wer={"value": 0.5, "low": 0.4, "high": 0.6})
        model.save_head("asr", folder / name / "heads" / "lora")
    return folder


def test_info_says_what_each_path_is(sa, parts: Path, tmp_path: Path) -> None:
    speak(tmp_path / "a.wav")
    Manifest([Utterance("a", tmp_path / "a.wav", 0.1, text="A", speaker="s")]).write(tmp_path / "m.jsonl")
    shown = sa(
        "info", parts / "one" / "adapters" / "lora", parts / "one" / "heads" / "lora", parts / "encoder", "m.jsonl"
    )
    adapter, head, encoder, manifest = shown.split("\n\n")
    assert "adapter, lora" in adapter and "rank=2" in adapter and str(parts / "encoder") in adapter
    assert "wer: 0.5000 [0.4000, 0.6000]" in adapter and "load_adapter(" in adapter
    assert "head, ctc" in head and "vocabulary=32 symbols" in head
    assert "encoder, wavlm" in encoder and "3 of width 64" in encoder
    assert "1 utterance;" in manifest and "text, speaker" in manifest


def test_info_names_the_command_that_knows_what_it_does_not(sa, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "table.csv").write_text("audio,text\na.wav,hi\n")
    (tmp_path / "drawer").mkdir()
    (tmp_path / "drawer" / "bank.json").write_text("{}")
    (tmp_path / "calls" / "may").mkdir(parents=True)
    (tmp_path / "calls" / "may" / "a.wav").write_bytes(b"")
    for name, hint in {
        "nothing": "manifest (.jsonl)\n",
        "drawer": "bank list --bank drawer\n",
        "calls": "manifest make calls -o NAME.jsonl\n",
        "calls/may/a.wav": "manifest make calls/may -o NAME.jsonl\n",
        "table.csv": "manifest make FOLDER --table table.csv -o table.jsonl\n",
    }.items():
        assert sa("info", name, expect=2).err.endswith(hint)


def test_average_is_the_mean_of_adapters_and_heads(sa, parts: Path, tmp_path: Path) -> None:
    one, two = (parts / name / "adapters" / "lora" for name in ("one", "two"))
    heads = [parts / name / "heads" / "lora" for name in ("one", "two")]
    sa("average", one, two, "--weights", "0.25,0.75", "--heads", *heads, "--head-output", "h", "-o", "a")
    from speech_adapters.saving.parts import load_part

    for kind, folders, made in (("adapter", (one, two), "a"), ("head", heads, "h")):
        first, second = (load_part(folder, kind)[1] for folder in folders)
        for name, tensor in load_part(made, kind)[1].items():
            torch.testing.assert_close(tensor, 0.25 * first[name] + 0.75 * second[name])
    assert "a: exists already" in sa("average", one, two, "-o", "a", expect=2).err
    sa("average", parts / "one", parts / "two", "-o", "of-runs")
    first, second, mean = (load_part(folder, "adapter")[1] for folder in (one, two, "of-runs"))
    assert all(torch.allclose((first[name] + second[name]) / 2, tensor) for name, tensor in mean.items())
    assert "holds no adapter" in sa("average", heads[0], two, "-o", "b", expect=2).err
    for rank in (2, 4):
        model = SpeechAdapterModel.from_pretrained(str(parts / "encoder"))
        model.add_adapter("x", LoRA(rank=rank))
        model.save_adapter("x", tmp_path / f"rank{rank}")
    told = sa("average", "rank2", "rank4", "-o", "c", expect=2).err
    assert "1-rank2" in told and "2-rank4" in told
    assert "3 weights for 2 adapters" in sa("average", one, two, "--weights", "1,2,3", "-o", "b", expect=2).err
    model = SpeechAdapterModel.from_adapter(two)
    model.add_head("other", CTCHead(Vocabulary.from_texts(["a b"])))
    model.save_head("other", tmp_path / "other")
    told = sa("average", one, two, "--heads", heads[0], "other", "--head-output", "g", "-o", "b", expect=2).err
    assert "different configurations (vocabulary)" in told and not Path("b").exists() and not Path("g").exists()


def test_fold_and_export_are_opened_by_transformers(sa, parts: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCTC, Wav2Vec2Processor

    sa("fold", parts / "one", "folded")
    model = SpeechAdapterModel.from_adapter(parts / "one")
    waveform = torch.randn(1, 8000)
    with torch.no_grad():
        expected = model(waveform)
        heard = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-7).sqrt()
        stock = AutoModel.from_pretrained("folded").eval()(heard)
    torch.testing.assert_close(stock.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    assert "pipeline('automatic-speech-recognition', 'exported')" in sa("export", "-a", parts / "one", "exported")
    with torch.no_grad():
        logits = AutoModelForCTC.from_pretrained("exported").eval()(heard).logits
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert Wav2Vec2Processor.from_pretrained("exported").tokenizer.vocab_size >= 32
    assert "exported: exists already" in sa("export", "-a", parts / "one", "exported", expect=2).err
    assert "peft.PeftModel.from_pretrained" in sa("export", "-a", parts / "one", "--peft", "peft")


def saved_run(name: str, method: str) -> SpeechAdapterModel:
    """A fresh adapter under a CTC head, saved in ``run`` as recipes do."""
    model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    model.add_adapter(name, method)
    model.add_head("h", CTCHead())
    model.save_adapter(name, f"run/adapters/{name}")
    model.save_head("h", f"run/heads/{name}")
    return model


def test_a_run_of_the_head_alone_is_exported_as_it_is(sa, tmp_path: Path) -> None:
    from transformers import AutoModelForCTC

    model = saved_run("head-only", "head-only")
    assert "pipeline('automatic-speech-recognition', 'x')" in sa("export", "-a", "run", "x")
    stock = AutoModelForCTC.from_pretrained("x")
    torch.testing.assert_close(stock.lm_head.weight, model.heads["h"].linear.weight)


def test_what_cannot_be_folded_is_named_with_what_can_be_done(sa, tmp_path: Path) -> None:
    saved_run("a", "houlsby")
    for words in (
        ("fold", "run/adapters/a", "x"),
        ("export", "-a", "run", "x"),
        ("export", "-a", "run", "--peft", "x"),
    ):
        place = "run/adapters/a" if words[0] == "fold" else "run"
        told = sa(*words, expect=2).err
        assert f"{place}: bottleneck: " in told and "export --onnx" in told and not Path("x").exists()


def test_the_package_runs_as_the_command(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "speech_adapters", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("speech-adapters ")


def test_export_writes_a_graph_and_adapters_for_it(sa, parts: Path, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    shown = sa("export", "-a", parts / "one", "--onnx", "--int8", "edge")
    assert "InferenceSession('edge/model.onnx')" in shown and "model.int8.onnx" in shown
    assert "from_omnilingual_asr_ctc('edge/model.onnx', tokens='edge/tokens.txt')" in shown
    shown = sa("export", "-a", parts / "two", "--onnx", "edge/two.onnx_adapter")
    assert "LoraAdapter().Load('edge/two.onnx_adapter')" in shown
    session, options, loaded = ort.InferenceSession("edge/model.onnx"), ort.RunOptions(), ort.LoraAdapter()
    loaded.Load("edge/two.onnx_adapter")
    options.add_active_adapter(loaded)
    waveform = torch.randn(1, 8000)
    found = session.run(["logits"], {"waveforms": waveform.numpy()}, options)[0]
    with torch.no_grad():
        expected = SpeechAdapterModel.from_adapter(parts / "two")(waveform).logits
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)
    assert "edge: exists already" in sa("export", "-a", parts / "one", "--onnx", "edge", expect=2).err
    assert "--int8 goes with --onnx" in sa("export", "-a", parts / "one", "--int8", "x", expect=2).err
    words = ("export", "-a", parts / "two", "--onnx", "--slots", "q_proj", "edge/three.onnx_adapter")
    assert "--int8 and --slots are the graph's" in sa(*words, expect=2).err


# ------------------------------------------------------------------ compare


def a_run(folder: Path, wrong: int, size: int = 40, sha: str = "x", name: str = "lora") -> Path:
    """A finished run whose hypothesis of the first ``wrong`` utterances is wrong."""
    names, speakers = [f"u{n}" for n in range(size)], [f"s{n % 8}" for n in range(size)]
    texts = ["NO" if n < wrong else "YES" for n in range(size)]
    result = word_error_rate(["YES"] * size, texts, speakers, names)
    (folder / "predictions").mkdir(parents=True)
    write_transcripts(folder / "predictions" / f"{name}.jsonl", result)
    own = MethodResults(metrics=result.to_dict())
    Results(task="asr", adapter=name, data={"test": {"name": "t", "sha256": sha}}, own=own).write(
        folder / "results.json"
    )
    return folder


def test_compare_pairs_what_runs_predicted(sa, tmp_path: Path) -> None:
    a, b, c = a_run(tmp_path / "a", 30), a_run(tmp_path / "b", 6), a_run(tmp_path / "c", 7)
    shown = sa("compare", a, b, c)
    pairs = {tuple(lines[:2]): lines[2:] for lines in map(str.splitlines, shown.split("\n\n"))}
    far = pairs[f"A  {a}: lora", f"B  {b}: lora"]
    assert far[0] == f"  = {b}: lora is better" and "WER 60.00 % [" in far[1] and "won 0, tied 16, lost 24" in far[1]
    assert far[2:5] == ["    u10 (1 worse)", "      said  YES", "      A     NO"]
    assert pairs[f"B  {b}: lora", f"C  {c}: lora"][0] == "  = no difference beyond chance"
    other = a_run(tmp_path / "d", 3, sha="y")
    assert "scored on different test sets" in sa("compare", a, other)
    (b / "predictions" / "lora.jsonl").unlink()
    assert "not paired, look at the intervals above" in sa("compare", a, b)


def test_compare_of_classes(sa, tmp_path: Path) -> None:
    from speech_adapters.data.predictions import write_predictions
    from speech_adapters.metrics.classification import compare_ua, score_classification

    found = {}
    for name, wrong in (("a", 12), ("b", 2)):
        truth = ["happy", "sad"] * 20
        guess = ["sad" if n < wrong else label for n, label in enumerate(truth)]
        found[name] = score_classification(truth, guess, [f"s{n % 10}" for n in range(40)], labels=["happy", "sad"])
        (tmp_path / name / "predictions").mkdir(parents=True)
        write_predictions(tmp_path / name / "predictions" / "l.jsonl", found[name])
        own = MethodResults(metrics=found[name].to_dict())
        data = {"test": {"name": "t", "sha256": "x"}}
        Results(task="emotion", adapter="l", data=data, own=own).write(tmp_path / name / "results.json")
    assert "UA -12.50 % [" in sa("compare", tmp_path / "a", tmp_path / "b")
    difference = compare_ua(found["a"], found["b"])
    assert difference.value == pytest.approx(found["a"].ua.value - found["b"].ua.value)
    same = compare_ua(found["a"], found["a"])
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_transcripts_are_read_back_as_they_were_scored(tmp_path: Path) -> None:
    result = word_error_rate(["Yes, it is", "no"], ["YES IT", "NO"], ["a", "b"], ["u1", "u2"])
    write_transcripts(tmp_path / "t.jsonl", result)
    again = read_transcripts(tmp_path / "t.jsonl")
    assert again.utterances == result.utterances and again.wer == result.wer
    (tmp_path / "t.jsonl").write_text('{"id": "a", "reference": "A"}\n')
    with pytest.raises(InputError, match="t.jsonl:1: hypothesis is None"):
        read_transcripts(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"id": "a", "reference": "A", "hypothesis": "A"}\n{"id": "b", "ref')
    with pytest.raises(InputError, match="t.jsonl:2: not JSON"):
        read_transcripts(tmp_path / "t.jsonl")


# ------------------------------------------------------------------ cache, manifest, doctor


def test_cache_lists_and_clears_activations_only(sa, tmp_path: Path) -> None:
    from speech_adapters.files import write_json

    folder = tmp_path / "cache"
    for name, code in (("a", code_version()), ("b", "of last year")):
        kept = Activations(folder / f"{PREFIX}{name}" / "state-1-fp16", 2, "fp16")
        kept.add(["one", "two"], [torch.zeros(5, 2), torch.zeros(3, 2)])
        write_json(folder / f"{PREFIX}{name}" / "about.json", {"encoder": "tiny", "code": code})
    (folder / "notes.txt").write_text("mine")
    shown = sa("cache", "list", folder)
    assert f"{PREFIX}a  tiny" in shown and "state-1-fp16: 2 utterances" in shown and "2 encoders" in shown
    assert shown.count("never read again") == 1
    assert "MB freed" in sa("cache", "clear", folder, "--stale")
    assert sorted(path.name for path in folder.iterdir()) == [f"{PREFIX}a", "notes.txt"]
    sa("cache", "clear", folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert "0 encoders" in sa("cache", "list", tmp_path / "none")


def test_manifest_verbs_say_what_they_did(sa, tmp_path: Path) -> None:
    rows = []
    for number in range(10):
        speak(tmp_path / "calls" / f"c{number}.wav", 0.5 + number / 100)
        rows.append(f"c{number},yes,s{number % 5},calm")
    (tmp_path / "t.csv").write_text("\n".join(["file,transcript,speaker,mood", *rows[:9]]))
    made = sa("manifest", "make", "calls", "--table", "t.csv", "-o", "all.jsonl")
    assert "file -> audio_filepath, transcript -> text" in made and "kept under their names: mood" in made
    assert "left out: 1 recording without a row in the table, such as calls/c9.wav" in made.err
    for kind in ("txt", "srt"):
        (tmp_path / "calls" / f"c9.{kind}").write_text("yes")
    texts = sa("manifest", "make", "calls", "--texts", "txt", "-o", "texts.jsonl")
    assert "texts.jsonl: 1 utterance;" in texts and "9 recordings without a text beside (.txt)" in texts.err
    shown = sa("manifest", "split", "all.jsonl", "-o", "data")
    assert [line.split(":")[0] for line in shown.splitlines()] == [f"data/{s}.jsonl" for s in ("train", "dev", "test")]
    assert "data/train.jsonl: exists already" in sa("manifest", "split", "all.jsonl", "-o", "data", expect=2).err
    assert "share no speaker" in sa("manifest", "check", "data/train.jsonl", "data/test.jsonl")
    after = sa("manifest", "speeds", "data/dev.jsonl", "-o", "fast.jsonl")
    count = len(Manifest.read("data/dev.jsonl"))
    assert after.startswith(f"fast.jsonl: {3 * count} utterances") and len([*Path("fast").iterdir()]) == 2 * count
    assert sa("manifest", "check", "fast.jsonl").endswith("nothing found: audio decodes\n")
    text = (tmp_path / "all.jsonl").read_text().replace('"s0"', '"n/a"').replace('"s1"', '"S2"')
    (tmp_path / "names.jsonl").write_text(text)
    told = sa("manifest", "split", "names.jsonl", "-o", "names").err
    assert "speaker 'n/a' (2 utterances): not a name" in told and "'S2' (names.jsonl) and 's2' (names.jsonl)" in told
    sa("manifest", "export", "kaldi", "all.jsonl", "kaldi")
    assert "9 utterances" in sa("manifest", "import", "kaldi", "kaldi", "-o", "back.jsonl")
    assert "kaldi: exists already" in sa("manifest", "export", "kaldi", "all.jsonl", "kaldi", expect=2).err


def test_manifest_make_tells_that_words_choose_no_channel(sa, tmp_path: Path) -> None:
    speak(tmp_path / "calls" / "c.wav", 1.0, channels=2)
    speak(tmp_path / "calls" / "mono.wav", 1.0)
    for cells, told in (("agent", "(its 'agent' is neither a number nor mix)"), ("1", None)):
        (tmp_path / "t.csv").write_text(f"file,channel\nc.wav,{cells}\nmono.wav,landline\n")
        said = sa("manifest", "make", "calls", "--table", "t.csv", "-o", f"{cells}.jsonl").err
        assert (told in said and '(0, 1 or "mix")' in said) if told else "note" not in said


def test_doctor_looks_at_this_machine(sa, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = sa("doctor")
    assert f"torch {torch.__version__.partition('+')[0]}" in shown and "HF_HUB_OFFLINE is set" in shown
    assert "GB free" in shown and "nothing in the way" in shown
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch==1.0", "no-such-package>=2"])
    shown = sa("doctor", expect=2)
    assert "\n! " in shown and "tested with ==1.0" in shown and "no-such-package is missing" in shown
    assert "2 things will not work" in shown
