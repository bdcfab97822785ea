"""To a hub and back: the same bytes; wrong commits, changed files, pickles are refused; and what the card says."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from fake_hub import Hub, serving
from small_models import batch, shake, small_model

from speech_adapters.bank.bank import Bank
from speech_adapters.bank.hub import pull, push
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.metrics.bootstrap import Interval
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.reports.card import CardOptions, card, eval_results, write_card
from speech_adapters.runs.results import MethodResults, Results

WER = Interval(0.2, 0.1, 0.3)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub that huggingface_hub talks to in place of its own, with a cache of its own."""
    from huggingface_hub import constants

    hub = Hub()
    with serving(hub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)  # as HF_ENDPOINT would before it is imported
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter, its head and its results, beside its encoder."""
    folder = tmp_path_factory.mktemp("run")
    small_model("wav2vec2", "pre-norm").encoder.model.save_pretrained(folder / "encoder")
    model = SpeechAdapterModel.from_pretrained(folder / "encoder")
    torch.manual_seed(1)
    model.add_adapter("lora", "lora")
    model.add_head("asr", CTCHead())
    model.train_adapter("lora", head="asr")
    shake(model, 0.1)
    model.save_adapter("lora", folder / "adapters" / "lora", wer=WER.to_dict())
    model.save_head("asr", folder / "heads" / "lora")
    split = {"hours": 1.5, "speakers": 3, "utterances": 40, "sha256": "ab" * 32}
    Results(
        task="asr",
        encoder=str(folder / "encoder"),
        adapter="lora",
        data={"train": {"name": "calls_train", **split}, "test": {"name": "calls|test", **split}},
        own=MethodResults(metrics={"wer": WER, "words": 400}, seconds=12.3),
        baselines={"head-only": MethodResults(metrics={"wer": Interval(0.9, 0.8, 1.0)})},
        seeds=[0],
    ).write(folder / "results.json")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_push_pull_and_load_give_the_same_bytes_online_and_off(hub, run, tmp_path, monkeypatch) -> None:
    commit = push(run, "team/calls", CardOptions(licence="cc-by-4.0", dataset="team/calls-data"), private=True)
    assert commit == hub.repositories["team/calls"][-1][0] and hub.private == {"team/calls"}
    assert len(hub.repositories["team/calls"]) == 1  # one commit, whole or not at all
    assert set(hub.repositories["team/calls"][-1][1]) == {
        "adapter.json", "adapter_model.safetensors", "adapter_config.json", "head.json", "head_model.safetensors",
        "README.md", ".eval_results/wer.yaml",
    }  # fmt: skip
    assert pull("team/calls", tmp_path / "pulled") == commit
    own = files(run / "adapters" / "lora") | files(run / "heads" / "lora")
    pulled = files(tmp_path / "pulled")
    assert {name: pulled[name] for name in own} == own
    assert "team/calls@COMMIT" in pulled["README.md"].decode() and "USER/REPO" not in pulled["README.md"].decode()

    def logits(place) -> torch.Tensor:
        with torch.no_grad():
            return SpeechAdapterModel.from_adapter(place)(*batch()).logits

    expected = logits(run / "adapters" / "lora")
    assert torch.equal(logits(f"team/calls@{commit}"), expected)
    from huggingface_hub import constants

    before = hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = SpeechAdapterModel.from_pretrained(run / "encoder")
    model.load_adapter(f"team/calls@{commit}")
    model.load_head(f"team/calls@{commit}")
    with torch.no_grad():
        assert torch.equal(model.eval()(*batch()).logits, expected)
    assert hub.requests == before
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        model.load_adapter(f"team/calls@{'1' * 40}")


def test_a_new_push_leaves_the_old_commit_as_it_was(hub, run, tmp_path) -> None:
    first = push(run, "team/calls")
    folder = tmp_path / "other"
    model = SpeechAdapterModel.from_adapter(run / "adapters" / "lora")
    with torch.no_grad():
        model.adapters["lora"].parts[0].weight.mul_(2)
    model.save_adapter("lora", folder)
    second = push(folder, "team/calls")
    assert first != second
    for commit, place in ((first, run / "adapters" / "lora"), (second, folder)):
        pull(f"team/calls@{commit}", tmp_path / commit)
        name = "adapter_model.safetensors"
        assert (tmp_path / commit / name).read_bytes() == (place / name).read_bytes()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("team/calls@main", "after @ comes the full commit"),
        ("team/calls@abc", "after @ comes the full commit"),
        (f"team/calls@{'0123456789' * 4}", "no such commit, branch or tag"),
        (f"team/none@{'0123456789' * 4}", "no such repository"),
    ],
)
def test_what_is_no_commit_is_refused(hub, run, reference, message) -> None:
    push(run, "team/calls")
    with pytest.raises(ConfigError, match=message):
        SpeechAdapterModel.from_adapter(reference)


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors"])  # no checksum of ours covers the card
def test_a_changed_file_is_refused_though_the_commit_is_the_same(hub, run, name, monkeypatch) -> None:
    import fake_hub

    commit = push(run, "team/calls")
    served = hub.repositories["team/calls"][-1][1]
    kept = dict(served)
    monkeypatch.setattr(fake_hub._Handler, "recorded", lambda _, name, content: fake_hub._git(kept[name]))
    changed = bytearray(kept[name])
    changed[len(changed) // 2] ^= 1
    served[name] = bytes(changed)
    for _ in range(2):  # the changed file does not stay in the cache
        with pytest.raises(CheckpointError, match=f"{name} is not the file of this commit"):
            SpeechAdapterModel.from_adapter(f"team/calls@{commit}")
    served[name] = kept[name]
    SpeechAdapterModel.from_adapter(f"team/calls@{commit}")


def test_a_changed_file_in_the_cache_is_refused_offline(hub, run, monkeypatch) -> None:
    from huggingface_hub import constants

    commit = push(run, "team/calls")
    SpeechAdapterModel.from_adapter(f"team/calls@{commit}")
    (weights,) = Path(constants.HF_HUB_CACHE).rglob("snapshots/*/adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cut short or changed"):
        SpeechAdapterModel.from_adapter(f"team/calls@{commit}")


@pytest.mark.parametrize("name", ["training_args.bin", "old/weights.PT", "model.pkl", "modeling.py"])
def test_a_repository_with_a_pickle_or_code_is_refused(hub, run, tmp_path, name) -> None:
    push(run, "team/calls")
    commit = hub.commit("team/calls", {name: b"cos\nsystem\n"})
    for attempt in (lambda: SpeechAdapterModel.from_adapter(f"team/calls@{commit}"),
                    lambda: pull("team/calls", tmp_path / "pulled")):  # fmt: skip
        with pytest.raises(CheckpointError, match="nothing of this repository was fetched"):
            attempt()
    assert not (tmp_path / "pulled").exists() and not list(tmp_path.rglob("*.safetensors"))


def test_a_bank_pushes_and_takes_in_what_was_pulled(hub, run, tmp_path, monkeypatch) -> None:
    bank = Bank.create(tmp_path / "bank")
    found = bank.add(run / "adapters" / "lora", "calls", licence="cc-by-4.0")
    assert (
        found.facts.task == "asr" and found.facts.metrics["wer"]["value"] == 0.2 and found.facts.data == "calls|test"
    )
    monkeypatch.setenv("SPEECH_ADAPTERS_BANK", str(bank.folder))
    commit = push("bank:calls", "team/calls")
    added = bank.add(f"team/calls@{commit}", "pulled")
    assert files(bank.path("pulled")).items() >= files(bank.path("calls")).items()
    assert added.facts.method == "lora"


def front_matter(text: str) -> dict:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_card_says_what_the_run_found(run) -> None:
    text = card(run, CardOptions(licence="cc-by-4.0", language="en"))
    head = front_matter(text)
    assert head["library_name"] == "speech-adapters" and head["pipeline_tag"] == "automatic-speech-recognition"
    assert head["license"] == "cc-by-4.0" and head["language"] == "en" and "lora" in head["tags"]
    assert "base_model" not in head  # a folder on a disk is nothing that a hub could show
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "wer", "value": 20.0, "name": "WER [10, 30]"}]
    assert "| lora | **20.0 [10.0, 30.0]** |" in text and "| head-only | 90.0 [80.0, 100.0] |" in text
    assert "calls\\|test" in text and "| 1.5 | 3 | 40 | `" + "ab" * 32 in text
    assert "The test set has 3 speakers" in text and "One seed" in text and "12.3 s" in text
    assert SpeechAdapterModel.from_pretrained(run / "encoder").encoder.fingerprint in text
    assert "speech-adapters export --adapter" in text and "pipeline(" in text
    assert "None" not in text and "{{" not in text


@pytest.mark.parametrize(("family", "dead"), [("wavlm", True), ("hubert", False)])
def test_the_card_warns_of_unfolded_lora_on_stock_wavlm_alone(family, dead, tmp_path) -> None:
    model = small_model(family, "pre-norm", "lora")
    model.encoder.name, model.encoder.revision = "team/encoder", "12" * 20
    model.save_adapter("a", tmp_path)
    text = card(tmp_path)
    head = front_matter(text)
    assert (head["base_model"], head["base_model_relation"]) == ("team/encoder", "adapter")
    assert 'PeftModel.from_pretrained(AutoModel.from_pretrained("team/encoder")' in text and "12" * 20 in text
    assert ("does nothing until it is folded" in text) is dead
    assert "None are recorded" in text and "No record of the training data" in text and "No licence is stated" in text


def test_a_method_that_neither_folds_nor_is_of_peft_says_neither(tmp_path) -> None:
    small_model("wavlm", "pre-norm", "elp").save_adapter("a", tmp_path)
    text = card(tmp_path)
    assert "peft" not in text and "folded" not in text


def test_stock_transformers_does_what_the_card_says_of_wavlm(tmp_path) -> None:
    """Unfolded LoRA changes nothing there, and the folded one does."""
    from peft import PeftModel
    from transformers import AutoModel

    small_model("wavlm", "pre-norm").encoder.model.save_pretrained(tmp_path / "base")
    model = SpeechAdapterModel.from_pretrained(tmp_path / "base")
    model.add_adapter("a", "lora")
    model.train_adapter("a")
    shake(model, 0.3)
    model.save_adapter("a", tmp_path / "a")
    model.save_folded("a", tmp_path / "folded")
    waveforms = batch()[0][:1]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModel.from_pretrained(tmp_path / "base").eval()
        plain = base(waveforms).last_hidden_state
        unfolded = PeftModel.from_pretrained(base, tmp_path / "a").eval()(waveforms).last_hidden_state
        folded = AutoModel.from_pretrained(tmp_path / "folded").eval()(waveforms).last_hidden_state
    assert torch.equal(plain, unfolded) and not torch.allclose(plain, folded, atol=1e-3)


def test_eval_results_need_the_test_sets_id(run) -> None:
    assert eval_results(run, CardOptions()) == {}
    (text,) = eval_results(run, CardOptions(dataset="team/calls", task_id="asr")).values()
    assert yaml.safe_load(text) == [
        {"dataset": {"id": "team/calls", "task_id": "asr"}, "value": 20.0, "notes": "wer in percent [10, 30]"}
    ]
    with pytest.raises(ConfigError, match="give an id on the hub"):
        CardOptions(dataset="calls")


def test_a_card_that_was_written_goes_along_as_it_is(hub, run, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = write_card(tmp_path / "run" / "adapters" / "lora")
    file.write_text(file.read_text() + "\nOur own words.\n")
    push(tmp_path / "run", "team/calls")
    pushed = hub.repositories["team/calls"][-1][1]["README.md"].decode()
    assert pushed.endswith("Our own words.\n") and "team/calls@COMMIT" in pushed
