"""The recipes for emotions, speakers and intents on small data, to the files they leave."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import load_script
from small_encoders import stock_model, whisper_model

from speech_adapters import ClassificationHead
from speech_adapters.config import parse_cli
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.errors import ConfigError, InputError
from speech_adapters.metrics.bootstrap import Interval
from speech_adapters.metrics.verification import mean_metrics, verification_result
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.runs.results import Results
from speech_adapters.saving.parts import load_part
from speech_adapters.tasks import experiment
from speech_adapters.tasks.classification import Classification
from speech_adapters.tasks.slots import SlotFilling
from speech_adapters.training import supervised

SMALL = ("training.updates=4", "training.batch_seconds=8", "training.log_every=2", "training.trackers=none")
TASKS = ("asr_librispeech", "emotion_recognition", "speaker_verification", "intent_classification")


def recipe(name: str):
    return load_script(f"recipes/{name}.py")


def run(name: str, output: Path, *arguments: object) -> dict:
    """Run a recipe as its command line does, in this process; returns results.json."""
    module = recipe(name)
    presets = getattr(module, "PRESETS", None)
    config = parse_cli(module.Config, [*map(str, arguments), f"--output={output}", *SMALL], presets=presets)
    module.main(config)
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Tones: the pitch says the emotion, the overtones the speaker; six speakers train, three each watch and test."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    everything = []
    for split, speakers, each in (("train", 6, 6), ("dev", 3, 3), ("test", 3, 4)):
        utterances = []
        for number in range(speakers * each):
            speaker, index = divmod(number, each)
            time = np.arange(int((0.6 + 0.02 * index) * 16000)) / 16000
            pitch = 2 * np.pi * (200 + 300 * (index % 3)) * time
            tone = 0.3 * np.sin(pitch) + 0.1 * np.sin((speaker + 2) * pitch) + rng.normal(0, 0.01, len(time))
            path = folder / "audio" / f"{split}{number}.wav"
            path.parent.mkdir(exist_ok=True)
            write_audio(path, torch.tensor(tone, dtype=torch.float32))
            utterances.append(
                Utterance(
                    id=f"{split}{number}",
                    audio_filepath=path,
                    duration=len(time) / 16000,
                    emotion=("low", "middle", "high")[index % 3],
                    label=("stop", "go")[index % 2],
                    speaker=f"{split}-{speaker}",
                    extra={"action": ("on", "off")[index % 2], "object": ("lamp", "heat", "door")[index % 3]},
                )
            )
        Manifest(utterances, split).write(folder / f"{split}.jsonl")
        everything += utterances
    Manifest(everything, "all").write(folder / "all.jsonl")
    pairs = [(a, b) for a in range(12) for b in range(a)]
    lines = [f"{int(a // 4 == b // 4)} audio/test{a}.wav audio/test{b}.wav" for a, b in pairs]
    (folder / "trials.txt").write_text("\n".join(lines) + "\n")
    stock_model("wavlm", "pre-norm").save_pretrained(folder / "encoder")
    (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return folder


def sets(corpus: Path) -> list[str]:
    return [f"--{split}={corpus / split}.jsonl" for split in ("train", "dev", "test")] + [
        f"--encoder={corpus / 'encoder'}"
    ]


def check_folder(output: Path, results: dict, names: tuple[str, ...]) -> None:
    for file in ("config.yaml", "metrics.jsonl", "report.html"):
        assert (output / file).stat().st_size > 0, file
    for name in names:
        assert (output / "adapters" / name / "adapter.json").is_file()
        assert (output / "heads" / name / "head.json").is_file()
    assert results["parameters"]["trainable"] > 0 and results["peak_memory_bytes"] > 0 and results["versions"]["torch"]


@pytest.mark.slow
def test_emotions_with_seeds(corpus, tmp_path):
    output = tmp_path / "run"
    results = run("emotion_recognition", output, *sets(corpus), "--seeds=0,1", "training.crop_seconds=0.5")
    check_folder(output, results, ("l-seed0", "l-seed1", "head-only-seed0", "head-only-seed1"))
    assert (results["task"], results["adapter"], results["updates"]) == ("emotion", "l", 4)
    for metrics in (results["metrics"], results["baselines"]["head-only"]["metrics"]):
        assert 0 <= metrics["ua"]["low"] <= metrics["ua"]["value"] <= metrics["ua"]["high"] <= 1
        assert metrics["confusion"]["labels"] == ["high", "low", "middle"]
    assert np.mean(results["ua_by_seed"]) == pytest.approx(results["metrics"]["ua"]["value"])
    assert len((output / "predictions" / "l-seed1.jsonl").read_text().splitlines()) == 12
    assert (output / "worst.json").is_file() and (output / "layer_weights.json").is_file()
    head = json.loads((output / "heads" / "l-seed0" / "head.json").read_text())["config"]
    assert head["labels"] == ["high", "low", "middle"] and len(head["class_weights"]) == 3


def test_methods_in_one_pass_score_as_one_by_one(corpus, tmp_path, monkeypatch):
    arguments = (*sets(corpus), "--seeds=0,1", "training.evaluate_every=2", "training.precision=fp32")
    apart = run("emotion_recognition", tmp_path / "apart", *arguments)
    steps = []
    for step in ("train_in_one_pass", "_score"):
        done = getattr(experiment, step)
        monkeypatch.setattr(experiment, step, lambda *a, step=step, done=done: steps.append(step) or done(*a))
    together = run("emotion_recognition", tmp_path / "together", *arguments, "--together")
    assert steps == 2 * ["train_in_one_pass", "_score", "_score"], "no more models are held than one pass has"
    check_folder(tmp_path / "together", together, ("l-seed0", "l-seed1", "head-only-seed0", "head-only-seed1"))
    assert together["together"] == together["baselines"]["head-only"]["together"] == 2
    assert together["metrics"] == apart["metrics"] and together["parameters"] == apart["parameters"]
    assert together["baselines"]["head-only"]["metrics"] == apart["baselines"]["head-only"]["metrics"]
    again = run("emotion_recognition", tmp_path / "together", *arguments, "--together")
    assert again["metrics"] == together["metrics"], "a finished run is read back"
    assert together["total_seconds"] > 0 and "total_seconds" not in again


@pytest.mark.slow
def test_emotions_in_folds(corpus, tmp_path):
    output = tmp_path / "run"
    arguments = (f"--encoder={corpus / 'encoder'}", f"--manifest={corpus / 'all.jsonl'}", "--baselines=")
    results = run("emotion_recognition", output, *arguments, "--folds=3-fold", "--network=conv")
    check_folder(output, results, ("l-fold1", "l-fold2", "l-fold3"))
    assert results["metrics"]["utterances"] == len(Manifest.read(corpus / "all.jsonl"))  # each one tested once
    assert len(results["ua_by_fold"]) == 3 and len(results["ua_by_seed"]) == 1
    assert results["ua_by_seed"][0] == pytest.approx(results["metrics"]["ua"]["value"])
    assert set(results["data"]) >= {"fold 1 train", "fold 3 test"}


@pytest.mark.slow
def test_speakers_with_seeds_and_a_large_margin_stage(corpus, tmp_path):
    output = tmp_path / "run"
    rows = [line.split() for line in (corpus / "trials.txt").read_text().splitlines()]
    (tmp_path / "trials.csv").write_text("verdict,left,right\n" + "".join(",".join(row) + "\n" for row in rows))
    arguments = [a for a in sets(corpus) if not a.startswith("--dev")] + [f"--trials={tmp_path / 'trials.csv'}"]
    results = run(
        "speaker_verification", output, *arguments, "--columns=label=verdict,enrol=left,test=right", "--seeds=0,1",
        "--embedding-size=16", "training.crop_seconds=0.4",
        "large_margin.updates=3", "large_margin.crop_seconds=0.5", "--cohort=12",
    )  # fmt: skip
    check_folder(output, results, ("l-seed0", "head-only-seed1"))
    assert set(results["baselines"]) == {"frozen-mean", "head-only"}
    for entry in (results, *results["baselines"].values()):
        eer = entry["metrics"]["eer"]
        assert 0 <= eer["low"] <= eer["value"] <= eer["high"] <= 1 and "min_dcf_0.01" in entry["metrics"]
        assert entry["metrics"]["trials"] == 66
    assert results["baselines"]["frozen-mean"]["parameters"]["trainable"] == 0
    assert np.mean(results["eer_by_seed"]) == pytest.approx(results["metrics"]["eer"]["value"])
    assert len((output / "scores" / "l-seed1.txt").read_text().splitlines()) == 66
    assert set(json.loads((output / "detection.json").read_text())) == {"frozen-mean", "l"}
    # the margin that training ended with is the one that is saved
    assert json.loads((output / "heads" / "l-seed0" / "head.json").read_text())["config"]["margin"] == 0.5
    methods = {json.loads(line)["method"] for line in (output / "metrics.jsonl").read_text().splitlines()}
    assert "l-seed0-large-margin" in methods


@pytest.mark.slow
def test_a_slot_that_is_given_twice_is_refused():
    with pytest.raises(InputError, match="slots: 'count' is given twice; give each key once"):
        SlotFilling(("count", "room", "count"))


def test_intents_in_slots_and_as_one_label(corpus, tmp_path):
    results = run("intent_classification", tmp_path / "slots", *sets(corpus), "--adapter=l", "--slots=action,object")
    check_folder(tmp_path / "slots", results, ("l", "head-only"))
    by_slot = results["metrics"]["by_slot"]
    assert set(by_slot) == {"action", "object"}
    assert results["metrics"]["accuracy"]["value"] <= min(slot["value"] for slot in by_slot.values())
    scored = recipe("evaluate_slots")  # base and head are found from the adapter's folder
    words = [f"--adapter={tmp_path / 'slots' / 'adapters' / 'l'}", f"--manifest={corpus / 'test.jsonl'}"]
    scored.main(parse_cli(scored.Config, [*words, f"--output={tmp_path / 'scored'}"]))
    again = json.loads((tmp_path / "scored" / "results.json").read_text())
    assert again["metrics"]["accuracy"] == results["metrics"]["accuracy"]
    line = json.loads((tmp_path / "scored" / "predictions" / "test.jsonl").read_text().splitlines()[0])
    assert line["labels"] == {"action": "on", "object": "lamp"} and set(line["predictions"]) == {"action", "object"}
    alone = ("--adapter=l", "--seeds=0,1", "--baselines=")
    results = run("intent_classification", tmp_path / "label", *sets(corpus), *alone)
    assert np.mean(results["accuracy_by_seed"]) == pytest.approx(results["metrics"]["accuracy"]["value"])


def test_what_belongs_to_the_demo_stays_with_the_demo(tmp_path):
    """A call without a preset has the demo's updates and rates, and none of what its corpus alone has."""

    def config(name: str, *words: str):
        module = recipe(name)
        return parse_cli(module.Config, list(words), presets=module.PRESETS)

    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "dev", "test")}
    for file in files.values():
        file.touch()
    own = tuple(f"--{split}={file}" for split, file in files.items())
    assert config("intent_classification").slots == ("domain", "emotion", "gender")
    assert config("intent_classification", *own).slots == () and config("intent_classification", *own).rates
    assert config("intent_classification", "--label-field=emotion").slots == ()
    with pytest.raises(ConfigError, match="--slots or --label-field, not both"):
        config("intent_classification", *own, "--label-field=emotion", "--slots=a,b")
    assert config("call_center", *own).first is None
    adapt = ("--adapter=a", own[-1])
    assert config("adapt_unlabelled", *adapt, "--methods=entropy").limit is None


@pytest.fixture(scope="module")
def drawer(corpus) -> Path:
    """Two bottleneck adapters, and a head of two classes that was saved with the first."""
    model = SpeechAdapterModel.from_pretrained(corpus / "encoder")
    for name in ("two", "one"):
        model.add_adapter(name, "pfeiffer")
        for parameter in model.adapters[name].parameters():
            parameter.data.normal_(std=0.1)
        model.save_adapter(name, corpus / "drawer" / name)
    model.add_head("go", ClassificationHead(labels=("go", "stop"), label_field="label"))
    model.save_head("go", corpus / "drawer" / "head")
    return corpus / "drawer"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fusion", "router"])
def test_a_fusion_over_saved_adapters(method, corpus, drawer, tmp_path):
    parts = [f"--adapters={drawer / 'one'},{drawer / 'two'}", f"--head={drawer / 'head'}", f"--method={method}"]
    parts += [*sets(corpus)[:3], "learning_rate=1e-3"]
    results = run("fuse_adapters", tmp_path / "run", *parts)
    assert (results["adapter"], list(results["baselines"])) == (method, ["one", "two"])
    check_folder(tmp_path / "run", results, ())
    assert len((tmp_path / "run" / "predictions" / f"{method}.jsonl").read_text().splitlines()) == 12
    model = SpeechAdapterModel.from_pretrained(corpus / "encoder")
    for name in ("one", "two"):  # copies that lie beside the fusion and are the ones it was trained on
        model.load_adapter(tmp_path / "run" / "adapters" / name)
        assert (tmp_path / "run" / "adapters" / name / "adapter_model.safetensors").read_bytes() == (
            drawer / name / "adapter_model.safetensors"
        ).read_bytes()
    assert model.load_fusion(tmp_path / "run" / "fusions" / method) == method
    before, after = (load_part(folder, "head")[1] for folder in (drawer / "head", tmp_path / "run" / "heads" / method))
    assert all(torch.equal(before[key], after[key]) for key in before)  # it stays as it is unless --train-head
    run("fuse_adapters", tmp_path / "again", *parts)  # the seed draws its start, too
    once, again = (tmp_path / name / "fusions" / method / "fusion_model.safetensors" for name in ("run", "again"))
    assert once.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapters={0}/one"], "give --adapters .two folders or more."),
        (["--adapters={0}/one,{0}/one"], "names=.*give each of the 2 adapters its own"),
        (["--adapters={0}/one,{0}/two", "--guide=1"], "no adapter is called street"),
    ],
)
def test_what_cannot_be_fused(arguments, message, corpus, drawer, tmp_path):
    domains = Manifest.read(corpus / "train.jsonl").map(lambda u: replace(u, domain="street"))
    domains.write(tmp_path / "train.jsonl")
    words = [argument.format(drawer) for argument in arguments] + [f"--head={drawer / 'head'}"]
    data = [f"--train={tmp_path / 'train.jsonl'}", *sets(corpus)[1:3]]
    with pytest.raises(InputError, match=message):
        run("fuse_adapters", tmp_path / "run", *words, *data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("emotion_recognition", ["--folds=5-fold"], "need --corpus or --manifest"),
        ("emotion_recognition", ["--manifest={0}/all.jsonl"], "--manifest needs --folds"),
        ("emotion_recognition", ["--corpus=ravdess"], "needs --corpus-root"),
        ("emotion_recognition", ["--manifest={0}/all.jsonl", "--folds=5-folds"], "protocol '5-folds' is unknown"),
        ("emotion_recognition", ["--train={0}/train.jsonl"], "give --train and --dev"),
        (
            "emotion_recognition",
            ["--train={0}/train.jsonl", "--dev={0}/dev.jsonl", "--test={0}/train.jsonl"],
            "given as both train and test",
        ),
        (
            "emotion_recognition",
            ["--train={0}/train.jsonl", "--dev={0}/dev.jsonl", "--test={0}/test.jsonl", "--label-field=mood"],
            "lacks 'mood'",
        ),
        ("speaker_verification", ["--train={0}/train.jsonl"], "--train, --test and --trials together"),
        ("speaker_verification", ["training.evaluate_every=2"], "other speakers have no dev loss"),
        ("speaker_verification", ["--columns=enrol=left"], "columns are those of --trials"),
        ("speaker_verification", ["--loss=ce", "large_margin.updates=5"], "needs a loss with a margin"),
        ("speaker_verification", ["--corpus-root={0}"], "--corpus-root takes --trials"),
        ("speaker_verification", ["large_margin.rate=0"], "large_margin.rate=0"),
        ("intent_classification", ["--train={0}/train.jsonl", "--corpus-root={0}"], "not both"),
        ("intent_classification", ["--seeds="], "give one or more different numbers"),
        ("intent_classification", ["--seeds=-1"], "seeds.0=-1: must be a whole number, at least 0"),
        ("emotion_recognition", ["--baselines=e,e"], "give different presets"),
        ("emotion_recognition", ["rates.l=-1"], "rates.l=-1.0: must be a number, at least 0"),
        ("asr_librispeech", ["--train-hours=0"], "train_hours=0.0: must be a number, above 0"),
        ("asr_librispeech", ["training.crop_seconds=2"], "cuts speech but not its text"),
    ],
)
def test_mistakes_are_said_before_training(name, arguments, message, corpus, tmp_path):
    arguments = [argument.format(corpus) for argument in arguments]
    with pytest.raises(InputError, match=message):
        run(name, tmp_path / "run", f"--encoder={corpus / 'encoder'}", *arguments)
    assert not (tmp_path / "run").exists()


# What scoring or a later method would stumble over: name -> (a change of an utterance, arguments, what is said).
LATE = {
    "a test label that differs in case": (lambda u: replace(u, emotion=u.emotion.title()), (), "differ in case"),
    "a test set of one class": (lambda u: replace(u, emotion="low"), (), "UA and F1 of a single class"),
    "a test utterance that is too short": (lambda u: replace(u, duration=0.01), (), "receptive field"),
    "fewer utterances than an update takes": (
        None,
        ("training.accumulation=99",),
        "train.jsonl: 36 utterances make fewer",
    ),
    "a group that no method has": (None, ("rates.nope=1",), "rates.nope: no method has this group"),
    "a group that none of these has": (None, ("training.learning_rates.lora=1",), "learning_rates.lora: no method of"),
    "a baseline that is no preset": (None, ("--baselines=head-only,lorra",), "Did you mean 'lora'"),
    "a baseline that does not fit": (None, ("--baselines=lora", "options.lora.rank=0"), "rank=0"),
    "a schedule that the updates cannot hold": (
        None,
        ("--baselines=adalora", "options.adalora.warmup=0.5", "options.adalora.settle=0.49"),
        "adalora: of .* leaves none to prune in",
    ),
    "options of no preset": (None, ("options.lorra.rank=2",), "unknown adapter preset 'lorra'"),
}


@pytest.fixture
def no_updates(monkeypatch) -> list[str]:
    """The names of trainings that began; each fails at once."""
    begun: list[str] = []

    def train(*arguments, **options):
        begun.append(str(options))
        raise AssertionError("a training began")

    monkeypatch.setattr(supervised, "train", train)
    return begun


@pytest.mark.parametrize("what", LATE)
def test_nothing_is_trained_when_a_later_step_would_fail(what, corpus, tmp_path, no_updates):
    change, arguments, message = LATE[what]
    splits = sets(corpus)
    if change is not None:
        Manifest.read(corpus / "test.jsonl").map(change).write(tmp_path / "test.jsonl")
        splits = [a for a in splits if not a.startswith("--test")] + [f"--test={tmp_path / 'test.jsonl'}"]
    with pytest.raises(InputError, match=message):
        run("emotion_recognition", tmp_path / "run", *splits, *arguments)
    assert not no_updates and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def short_hearing(corpus) -> str:
    """--encoder of a Whisper that hears 1.2 s, as published ones hear 30."""
    whisper_model(positions=60).save_pretrained(corpus / "whisper")
    return f"--encoder={corpus / 'whisper'}"


def lengthened(corpus: Path, folder: Path, *splits: str) -> list[str]:
    """The sets, with a first utterance of 3 s in those named."""
    arguments = []
    for split in ("train", "dev", "test"):
        manifest = Manifest.read(corpus / f"{split}.jsonl")
        if split in splits:
            audio = folder / f"{split}.wav"
            write_audio(audio, 0.1 * torch.randn(48_000, generator=torch.Generator().manual_seed(0)))
            first = replace(manifest[0], audio_filepath=audio, duration=3.0)
            manifest = Manifest([first, *list(manifest)[1:]], split)
        manifest.write(folder / f"{split}.jsonl")
        arguments.append(f"--{split}={folder / split}.jsonl")
    return arguments


def test_long_test_recordings_are_scored_through_windows(corpus, short_hearing, tmp_path, no_updates):
    sets = [*lengthened(corpus, tmp_path, "test"), short_hearing]
    with pytest.raises(InputError, match=r"longer than the 1.2 s .* such as test0; .*windows.seconds=20"):
        run("emotion_recognition", tmp_path / "run", *sets)
    with pytest.raises(InputError, match="window seconds=20: .* hears up to 1.2 s at once"):
        run("emotion_recognition", tmp_path / "run", *sets, "windows.seconds=20")
    with pytest.raises(InputError, match="longer than the 1.2 s .* such as dev0"):  # heard whole
        run("emotion_recognition", tmp_path / "run", *lengthened(corpus, tmp_path, "dev"), short_hearing,
            "windows.seconds=1.2")  # fmt: skip
    assert not no_updates and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["emotion_recognition", "speaker_verification"])
def test_crops_and_windows_hear_recordings_of_any_length(name, corpus, short_hearing, tmp_path):
    sets = [a for a in lengthened(corpus, tmp_path, "train", "test") if name[0] == "e" or not a.startswith("--dev")]
    heard = ["training.crop_seconds=0.5", "windows.seconds=1.2", "windows.voice_activity=none"]
    if name == "speaker_verification":
        trials = (corpus / "trials.txt").read_text().replace("audio/test0.wav", "test0")
        (tmp_path / "trials.txt").write_text(trials.replace("audio/", f"{corpus}/audio/"))
        heard += [f"--trials={tmp_path / 'trials.txt'}", "--cohort=36", "--embedding-size=16"]
    results = run(name, tmp_path / "run", *sets, short_hearing, "--adapter=l", "--baselines=none", *heard)
    assert results["metrics"]["utterances" if name[0] == "e" else "trials"] in (12, 66)


def test_crops_of_a_later_stage_that_no_cache_has_are_refused_first(corpus, tmp_path, no_updates):
    arguments = [a for a in sets(corpus) if not a.startswith("--dev")] + [f"--trials={corpus / 'trials.txt'}"]
    with pytest.raises(ConfigError, match="training.cache: .* large_margin.crop_seconds is 6;"):
        run("speaker_verification", tmp_path / "run", *arguments, "large_margin.updates=3",
            f"training.cache={tmp_path / 'cache'}", "training.crop_seconds=null")  # fmt: skip
    assert not no_updates and not (tmp_path / "run").exists()


def test_a_cohort_is_heard_as_the_trials_are(corpus, short_hearing, tmp_path, no_updates):
    sets = [a for a in lengthened(corpus, tmp_path, "train") if not a.startswith("--dev")]
    with pytest.raises(InputError, match="longer than the 1.2 s .* such as train0"):
        run("speaker_verification", tmp_path / "run", *sets, short_hearing, f"--trials={corpus / 'trials.txt'}",
            "training.crop_seconds=0.5", "--cohort=36")  # fmt: skip
    assert not no_updates and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("split", "text", "message"),
    [("test", "...", "have no words"), ("train", "", "have no words"), ("dev", "A" * 200, "longer than their audio")],
)
def test_transcripts_that_cannot_be_learnt_or_scored_are_found_first(
    split, text, message, corpus, tmp_path, no_updates
):
    arguments = [f"--encoder={corpus / 'encoder'}"]
    for name in ("train", "dev", "test"):
        texts = Manifest.read(corpus / f"{name}.jsonl").map(lambda u: replace(u, text="YES"))
        if name == split:
            texts = Manifest([replace(texts[0], text=text), *texts[1:]], name)
        texts.write(tmp_path / f"{name}.jsonl")
        arguments.append(f"--{name}={tmp_path / name}.jsonl")
    with pytest.raises(InputError, match=message):
        run("asr_librispeech", tmp_path / "run", *arguments)
    assert not no_updates and not (tmp_path / "run").exists()


def test_what_is_trained_is_saved_before_it_is_scored(corpus, tmp_path, monkeypatch):
    def score(*_, **__):
        raise RuntimeError("scoring failed")

    monkeypatch.setattr(Classification, "score", score)
    with pytest.raises(RuntimeError, match="scoring failed"):
        run("emotion_recognition", tmp_path / "run", *sets(corpus), "--adapter=bitfit", "--baselines=none")
    model = SpeechAdapterModel.from_pretrained(corpus / "encoder")
    model.load_adapter(tmp_path / "run" / "adapters" / "bitfit")
    model.load_head(tmp_path / "run" / "heads" / "bitfit")
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_keywords_are_a_task_of_their_own(corpus, tmp_path):
    """A recipe of its own and nothing else: presets, heads, results and the report take the new name."""
    results = run("keyword_spotting", tmp_path / "run", *sets(corpus), "--adapter=l", "--baselines=none")
    assert results["task"] == "keyword" and results["baselines"] == {}
    accuracy = results["metrics"]["accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert json.loads((tmp_path / "run" / "heads" / "l" / "head.json").read_text())["name"] == "keyword"
    assert "keyword: l" in (tmp_path / "run" / "report.html").read_text()
    again = Results.read(tmp_path / "run" / "results.json")
    assert json.loads(json.dumps(again.to_dict())) == results and isinstance(again.own.metrics["accuracy"], Interval)


def test_presets_train_one_adapter_and_its_baseline():
    """More methods and seeds are asked for on the command line: a preset must not multiply a run unasked."""
    for name in TASKS:
        module = recipe(name)
        for path in module.PRESETS.values():
            config = parse_cli(module.Config, [f"--config={path}"])
            assert config.baselines == ("head-only",) and len(config.seeds) == 1, path
            other = parse_cli(module.Config, [f"--config={path}", "--adapter=bitfit"])
            assert list(other.trained_methods) == ["bitfit", "head-only"], path
            assert list(parse_cli(module.Config, [f"--config={path}", "--baselines=none"]).trained_methods) == [
                config.adapter
            ]


def test_methods_are_named_once_in_a_comparison():
    recipe("asr_librispeech")  # which it imports
    module = recipe("compare_methods")
    for flag in ("--adapter=l", "--baselines=full"):
        with pytest.raises(InputError, match="name all presets there"):
            parse_cli(module.Config, [flag, "--methods=lora,e"])
    config = parse_cli(module.Config, ["--methods=lora,e"])
    assert list(config.trained_methods) == ["lora", "e"] and (config.adapter, config.baselines) == ("lora", ("e",))


def test_a_class_that_training_lacks_is_named(corpus, tmp_path):
    train = Manifest.read(corpus / "train.jsonl").filter(lambda u: u.emotion != "high")
    train.write(tmp_path / "train.jsonl")
    arguments = [a for a in sets(corpus) if not a.startswith("--train")]
    with pytest.raises(InputError, match="no utterance has emotion 'high'"):
        run("emotion_recognition", tmp_path / "run", f"--train={tmp_path / 'train.jsonl'}", *arguments)


def test_the_random_folds_warn(corpus):
    module = recipe("emotion_recognition")
    config = parse_cli(module.Config, [f"--manifest={corpus / 'all.jsonl'}", "--folds=otake2023"])
    with pytest.warns(UserWarning, match="same speakers"):
        assert len(module.find_corpora(config)) == 5


@pytest.mark.parametrize("name", TASKS)
def test_presets_are_valid(name):
    module = recipe(name)
    assert "demo" in module.PRESETS
    for path in module.PRESETS.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parse_cli(module.Config, [f"--config={path}"])


def test_means_over_seeds_see_the_same_draws():
    """One result is its own mean; a duplicate changes neither value nor interval; two differ and average."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    speakers = (rng.integers(0, 8, 300), rng.integers(8, 16, 300))
    scores = [labels + rng.normal(0, 1, 300) for _ in range(2)]
    first, second = (verification_result(s, labels, speakers, draws=50) for s in scores)
    for results in ([first], [first, first]):
        means = mean_metrics(results, speakers, draws=50)
        assert (means["trials"], means["targets"]) == (300, labels.sum())
        for name, interval in first.metrics.items():
            assert means[name] == pytest.approx(interval.to_dict())
    both = mean_metrics([first, second], speakers, draws=50)
    for name in ("eer", "min_dcf_0.01", "min_cllr"):
        mean = (first.metrics[name].value + second.metrics[name].value) / 2
        assert both[name]["value"] == pytest.approx(mean)
        assert both[name]["low"] <= mean <= both[name]["high"]


@pytest.mark.slow
def test_a_frozen_head_is_above_chance_on_real_emotions(real_data, tmp_path):
    """A part of RAVDESS, other actors in its test set, the cheapest method: the whole interval lies above 1 in 8."""
    arguments = []
    for split, size in (("train", 160), ("dev", 16), ("test", 96)):
        part = Manifest.read(real_data / "manifests" / f"ser_ravdess_{split}.jsonl").subset(size=size, seed=0)
        part.write(tmp_path / f"{split}.jsonl")
        arguments.append(f"--{split}={tmp_path / split}.jsonl")
    module = recipe("emotion_recognition")
    arguments += [f"--output={tmp_path / 'run'}", "--adapter=head-only", "--baselines=", "training.updates=200"]
    arguments += [f"training.cache={tmp_path / 'cache'}", "training.batch_seconds=40", "training.trackers=none"]
    config = parse_cli(module.Config, [*arguments, "training.learning_rates.head=0.01"], presets=module.PRESETS)
    assert module.main(config).own.metrics["ua"]["low"] > 1 / 8
