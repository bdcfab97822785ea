"""The call-center recipe: its domains, its command line to the files it leaves, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import load_script
from small_encoders import small_encoder, whisper_model

from speech_adapters.bank.facts import read_facts
from speech_adapters.config import parse_cli
from speech_adapters.data.audio import write_audio
from speech_adapters.data.manifest import Manifest, Utterance
from speech_adapters.encoders import load_encoder
from speech_adapters.errors import ConfigError, InputError, ManifestError
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.reports.comparison import compare_runs, read_runs
from speech_adapters.runs.folder import RunFolder
from speech_adapters.serving.catalog import read_folder
from speech_adapters.tasks.domains import MERGES, DomainsRun, domains_head, forgetting

DOMAINS = ("studio", "telephone", "noisy")


@pytest.fixture(scope="module")
def recipe():
    return load_script("recipes/call_center.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Noise with texts: a manifest a split, three domains in each, and a small encoder."""
    folder, rng = tmp_path_factory.mktemp("domains"), np.random.default_rng(0)
    small_encoder("wavlm", "pre-norm", layers=2).model.save_pretrained(folder / "encoder")
    for split in ("train", "dev", "test"):
        utterances = []
        for index in range(12):
            path, samples = folder / f"{split}{index}.wav", 9600 + 300 * index
            write_audio(path, torch.tensor(rng.normal(0, 0.1, samples), dtype=torch.float32))
            facts = {"text": "YES NO"[: 3 + 3 * (index % 2)].strip(), "domain": DOMAINS[index % 3]}
            utterances.append(
                Utterance(
                    id=f"{split}{index}",
                    audio_filepath=path,
                    duration=samples / 16000,
                    speaker=f"{split}{index % 4}",
                    **facts,
                )
            )
        Manifest(utterances, split).write(folder / f"{split}.jsonl")
    return folder


def configure(recipe, data, *arguments):
    splits = [f"--{split}={data / split}.jsonl" for split in ("train", "dev", "test")]
    quick = ["training.updates=2", "combination.updates=2", "training.batch_seconds=2", "combination.batch_seconds=2"]
    options = {"presets": recipe.PRESETS, "description": recipe.__doc__}
    first = [] if any(word.startswith("--first=") for word in arguments) else ["--first=studio"]
    words = [*splits, f"--encoder={data / 'encoder'}", *quick, *first, *arguments]
    return parse_cli(recipe.Config, words, **options)


@pytest.mark.slow
def test_the_command_line_leaves_a_matrix_a_report_and_everything_that_was_trained(recipe, data, tmp_path, capsys):
    outside = f"outside.dev={data / 'dev.jsonl'}"
    config = configure(recipe, data, f"--output={tmp_path / 'run'}", "--seeds=0,1", outside)
    recipe.main(config)
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    cells = json.loads((run / "domains.json").read_text())["cells"]
    methods = {
        *DOMAINS,
        "average",
        "oracle-routing",
        "fusion",
        "router",
        "posterior",
        *(f"merge-{merge}" for merge in MERGES),
        "pooled",
        *(f"full-after-{d}" for d in DOMAINS),
    }
    assert set(cells) == methods
    for method, row in cells.items():
        assert set(row) == {*DOMAINS, *(["dev"] if method != "oracle-routing" else [])}
        assert all(c["low"] <= c["value"] <= c["high"] for c in row.values())
    assert cells["oracle-routing"] == {domain: cells[domain][domain] for domain in DOMAINS}
    assert results["adapter"] == "fusion" and set(results["baselines"]) == methods - {"fusion"}
    assert results["baselines"]["oracle-routing"]["relative_to_oracle"] == 0
    pairs = compare_runs(read_runs([run]))
    assert {pair.b.name for pair in pairs} == methods - {"fusion"}
    for pair in pairs:  # of both seeds and all domains, as the figures are
        assert pair.found is not None and pair.found.wins + pair.found.ties + pair.found.losses == 2 * 12, pair.reason
        difference = results["metrics"]["wer"]["value"] - results["baselines"][pair.b.name]["metrics"]["wer"]["value"]
        assert pair.found.difference.value == pytest.approx(difference)
    assert set(results["forgetting"]["full"]) == {"studio", "noisy"}
    page = (run / "report.html").read_text()
    assert "dev, not trained on" in page and results["data"]["dev test"]["utterances"] == 12
    assert "full-after-telephone" in page and "fusion.feed_forward_0" in page
    model = SpeechAdapterModel.from_pretrained(data / "encoder")
    for domain in DOMAINS:  # saved under "<domain>-seed0"; the fusion knows the adapters by the domain's name
        model.load_adapter(run / "adapters" / f"{domain}-seed0", domain)
    for name in ("fusion", "router", "posterior"):
        assert model.load_fusion(run / "fusions" / f"{name}-seed0") == name
    assert "average" in capsys.readouterr().out

    served = {entry.name: entry for entry, _ in read_folder(run, load_encoder(data / "encoder"))}
    wanted = {*DOMAINS, "start", "pooled", "fusion", "router", "posterior"}
    assert set(served) == {f"{name}-seed{seed}" for name in wanted for seed in (0, 1)}
    assert all("transcription" in entry.heads for entry in served.values())  # none has to be told its head
    noisy = run / "adapters" / "noisy-seed1"
    card, wer = (noisy / "README.md").read_text(), cells["noisy"]["noisy"]
    own, other = (results["data"][f"{domain} test"] for domain in ("noisy", "studio"))  # of as many utterances each
    assert own["sha256"] in card and other["sha256"] not in card and f"{100 * wer['value']:.1f} [" in card
    assert str(data / "test.jsonl") not in card and "| test | test.jsonl |" in card  # where files lie stays here
    assert "full-after-noisy" in card and "adapters of other domains" in card
    facts = read_facts({"adapter": noisy, "head": run / "heads" / "noisy-seed1"}, 1, {})
    assert (facts.task, facts.domain, facts.metrics["wer"]) == ("asr", "noisy", wer)

    saved = [f"--start-adapter={run / 'adapters/noisy-seed1'}", f"--start-head={run / 'heads/noisy-seed1'}"]
    recipe.main(
        configure(
            recipe, data, *saved, f"--output={tmp_path / 'next'}", "full=false", "training.updates=1", "--merges=tsv"
        )
    )
    trained = {path.name for path in (tmp_path / "next" / "tensorboard").iterdir()}
    assert trained == {*DOMAINS, "fusion", "router", "posterior", "pooled"}  # and no "start"
    head = "heads/{}/head_model.safetensors"
    shared = {(tmp_path / "next" / head.format(name)).read_bytes() for name in (*DOMAINS, "fusion", "router")}
    assert shared == {(run / head.format("noisy-seed1")).read_bytes()}


def test_domains_come_from_fields_or_from_files_of_their_own(recipe, data):
    domains = recipe.find_domains(configure(recipe, data, "--first=telephone"))
    assert [domain.name for domain in domains] == ["telephone", "noisy", "studio"] and len(domains[0].test) == 4
    files = {split: data / f"{split}.jsonl" for split in ("train", "test")}
    config = replace(
        configure(recipe, data), train=None, dev=None, test=None, first=None,
        domains={name: recipe.DomainFiles(**files) for name in ("a", "b")},
    )  # fmt: skip
    domains = recipe.find_domains(config)
    assert [domain.name for domain in domains] == ["a", "b"] and domains[1].dev is None
    assert {utterance.domain for utterance in domains[1].train} == {"b"}
    assert len(domains[0].train + domains[1].train) == 24  # the same ids in both files, as in a coded copy


def test_one_voice_in_training_and_test_must_be_said_and_never_crosses_domains(recipe, data):
    whole = sorted(Manifest.read(data / "train.jsonl"), key=lambda u: u.speaker)
    for name, part in (("read", whole[::2]), ("others", whole[1::2])):
        Manifest(part, name).write(data / f"{name}.jsonl")
    one_voice = {"train": data / "read.jsonl", "test": data / "others.jsonl"}
    other = {"train": data / "dev.jsonl", "test": data / "test.jsonl"}
    plain = replace(configure(recipe, data), train=None, dev=None, test=None, first=None)

    def domains(**files):
        return recipe.find_domains(replace(plain, domains={n: recipe.DomainFiles(**f) for n, f in files.items()}))

    with pytest.raises(ManifestError, match="speaker"):
        domains(prompts=one_voice, calls=other)
    said = one_voice | {"shared_speakers": True}
    assert [domain.name for domain in domains(prompts=said, calls=other)] == ["prompts", "calls"]
    with pytest.raises(ManifestError, match="shares the audio of 6 utterances"):
        domains(prompts=said | {"test": data / "train.jsonl"}, calls=other)
    with pytest.raises(ManifestError, match="speaker"):
        domains(prompts=said, calls={"train": data / "train.jsonl", "test": data / "test.jsonl"})


def test_what_cannot_be_compared_is_refused(recipe, data, tmp_path):
    Manifest.read(data / "test.jsonl").filter(lambda u: u.domain != "noisy").write(data / "two.jsonl")
    Manifest.read(data / "train.jsonl").filter(lambda u: u.domain == "noisy").write(data / "one.jsonl")
    for arguments, error, message in (
        ((f"--test={data / 'two.jsonl'}",), ConfigError, "no utterance of domain 'noisy'"),
        ((f"--train={data / 'one.jsonl'}",), ConfigError, r"1 domain\(s\) found; a comparison needs at least two"),
        (("--first=studioo",), ConfigError, "first='studioo' is none of the domains"),
        ((f"--test={data / 'train.jsonl'}",), ManifestError, "speaker"),
        (("--test=null",), ConfigError, "give --train and --test together"),
        (("--start-adapter=a",), ConfigError, "give --start-adapter and --start-head together"),
    ):
        with pytest.raises(error, match=message):
            recipe.find_domains(configure(recipe, data, *arguments))


def test_what_cannot_be_merged_or_read_and_voices_from_training_are_refused_before_training(recipe, data):
    def prepare(*arguments):
        config = configure(recipe, data, "full=false", *arguments)
        domains, encoder = recipe.find_domains(config), load_encoder(config.encoder)
        outside = recipe.find_outside(config, domains)
        return DomainsRun(config, domains, encoder, domains_head(config, domains), 0, outside)

    Manifest.read(data / "dev.jsonl").filter(lambda u: u.domain != "noisy").write(data / "two_dev.jsonl")
    for argument, error, message in (
        ("training.crop_seconds=1", ConfigError, "training.crop_seconds=1: cuts speech but not its text"),
        ("combination.crop_seconds=1", ConfigError, "combination.crop_seconds=1: cuts"),
        (f"outside.far field={data / 'test.jsonl'}", ConfigError, "name 'far field': use letters"),
        (f"--dev={data / 'two_dev.jsonl'} training.evaluate_every=1", ConfigError, "training.*'noisy' has no dev set"),
        ("--dev=null combination.evaluate_every=1", ConfigError, "combination.evaluate_every=1: domain 'studio' has"),
        ("--adapter=lora+l", ConfigError, "method='tsv' is for LoRA and rsLoRA"),
        ("--posterior-layer=2", ConfigError, "posterior_layer=2: the encoder's layers are 0 to 1"),
        (f"outside.noisy={data / 'test.jsonl'}", ConfigError, "outside.noisy: a domain that is trained on has"),
        (f"outside.other={data / 'train.jsonl'}", ManifestError, "speaker"),
        ("--density=0", ConfigError, "density=0.0: must be a number"),
        ("--merges=mean", ConfigError, "merges"),
        (
            "--adapter=lora",
            ConfigError,
            "acts on q_proj, where AdapterFusion is not defined.* leave it out: --combinations router,posterior",
        ),
        ("--combinations=fuse", ConfigError, "combinations"),
    ):
        with pytest.raises(error, match=message):
            prepare(*re.split(" (?=--|combination|training)", argument))


@pytest.mark.slow
def test_lora_is_routed_where_it_cannot_be_fused(recipe, data, tmp_path):
    few = ["--adapter=lora", "--combinations=router", "merges=[linear]", "full=false"]
    recipe.main(configure(recipe, data, f"--output={tmp_path / 'run'}", *few))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["adapter"] == "router" and "fusion" not in results["baselines"]
    assert (tmp_path / "run" / "fusions" / "router").is_dir() and (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_recordings_longer_than_the_encoder_hears_are_scored_through_windows(recipe, data, tmp_path):
    whisper_model(positions=60).save_pretrained(data / "whisper")
    write_audio(tmp_path / "long.wav", 0.1 * torch.randn(48_000, generator=torch.Generator().manual_seed(0)))
    test = Manifest.read(data / "test.jsonl")
    long = replace(test[0], audio_filepath=tmp_path / "long.wav", duration=3.0)
    Manifest([long, *list(test)[1:]], "test").write(tmp_path / "test.jsonl")
    command = [
        f"--encoder={data / 'whisper'}", f"--test={tmp_path / 'test.jsonl'}", f"--output={tmp_path / 'run'}",
        "--adapter=l-frozen", "--combinations=router", "merges=[linear]", "full=false",
        f"outside.again={tmp_path / 'test.jsonl'}", f"training.cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"longer than the 1.2 s .* such as test0; .*windows.seconds=20"):
        recipe.main(configure(recipe, data, *command))
    with pytest.raises(InputError, match="window seconds=20: .* hears up to 1.2 s at once"):
        recipe.main(configure(recipe, data, *command, "windows.seconds=20"))
    assert not (tmp_path / "run").exists()
    recipe.main(configure(recipe, data, *command, "windows.seconds=1.2", "windows.voice_activity=none"))
    cells = json.loads((tmp_path / "run" / "domains.json").read_text())["cells"]
    assert set(cells["router"]) == {*DOMAINS, "again"}
    assert (tmp_path / "run" / "report.html").is_file()


def test_combinations_start_alike_whatever_was_drawn_before_them(recipe, data, tmp_path, monkeypatch):
    """A run that goes on reads its adapters back, which draws other numbers than training them."""
    config = configure(recipe, data, "full=false", "merges=[]")
    domains, encoder = recipe.find_domains(config), load_encoder(config.encoder)
    prepared = DomainsRun(config, domains, encoder, domains_head(config, domains), 0)
    prepared.run = RunFolder.create("call_center", path=tmp_path / "run")
    starts: list[torch.Tensor] = []

    def train(self, model, *_):
        starts.extend(parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad)
        torch.rand(7)

    monkeypatch.setattr(DomainsRun, "train", train)
    monkeypatch.setattr(DomainsRun, "score", lambda self, *_: torch.rand(5))
    monkeypatch.setattr("speech_adapters.tasks.domains.mean_attention", lambda *_, **__: {})
    for drawn in (1, 2):
        model = prepared.model()
        for name in DOMAINS:
            model.average_adapters(name, {"start": 1.0})
        torch.rand(drawn)
        prepared.combine(model)
    half = len(starts) // 2
    assert half and all(map(torch.equal, starts[:half], starts[half:]))


def test_forgetting_is_read_off_the_matrix():
    cells = {
        "full-after-a": {"a": {"value": 0.2}, "b": {"value": 0.9}},
        "full-after-b": {"a": {"value": 0.5}, "b": {"value": 0.3}},
    }
    assert forgetting(cells, ["a", "b"]) == {"adapters": {"a": 0.0}, "full": {"a": pytest.approx(0.3)}}
    assert forgetting({}, ["a", "b"]) == {"adapters": {"a": 0.0}}
