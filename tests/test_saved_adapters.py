"""What is saved comes back bit for bit, on its own base only, and no damage goes unnoticed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from small_encoders import stock_model
from small_models import METHODS, batch, shake, small_model

from speech_adapters.adapters import Bottleneck, preset
from speech_adapters.encoders import Encoder
from speech_adapters.errors import CheckpointError, ConfigError, InputError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving.parts import load_part, save_part
from speech_adapters.text import Vocabulary

SAVED = ("elp", "lora", "houlsby", "full", "lora+l", "dora", "weighted-sum", "head-only")

LOAD = """
import sys, torch
from speech_adapters.model import SpeechAdapterModel
torch.set_num_threads(1)
folder, names = sys.argv[1], sys.argv[2:]
model = SpeechAdapterModel.from_pretrained(folder + "/base")
inputs = torch.load(folder + "/batch.pt", weights_only=True)
outputs = {}
for name in names:
    model.load_adapter(f"{folder}/{name}")
    model.load_head(f"{folder}/{name}")
    with torch.no_grad():
        output = model.eval()(*inputs)
    scored = model.head(output.features, output.frame_lengths)
    outputs[name] = output.features, output.logits, model.head.predict(scored)
torch.save(outputs, folder + "/outputs.pt")
"""


@pytest.mark.slow
def test_a_new_process_gives_the_same_features_and_texts_bit_for_bit(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum hangs on their number
    small_model("wavlm", "pre-norm").encoder.model.save_pretrained(tmp_path / "base")
    model = SpeechAdapterModel.from_pretrained(tmp_path / "base")
    torch.save(batch(), tmp_path / "batch.pt")
    expected = {}
    for number, method in enumerate(SAVED):
        name = f"saved-{number}"
        torch.manual_seed(number)
        model.add_adapter(name, METHODS[method])
        model.add_head(name, CTCHead(Vocabulary.from_texts(["abc de"]), normalizer="none"))
        shake(model, 0.1)
        with torch.no_grad():
            output = model(*batch())
        assert output.features.isfinite().all()
        expected[name] = output.features, output.logits
        model.save_adapter(name, tmp_path / name)
        model.save_head(name, tmp_path / name)
    torch.set_num_threads(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path), *expected], check=True, env=environment)
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    for name, (features, logits) in expected.items():
        assert torch.equal(found[name][0], features), name
        assert torch.equal(found[name][1], logits), name
        assert set("".join(found[name][2])) <= set("abcde ")


@torch.no_grad()
def test_loading_names_activates_and_can_rename(tmp_path):
    model = shake(small_model(method="lora+l", head=True))
    model.save_adapter("a", tmp_path, wer=0.123, data={"hours": 5})
    model.save_head("asr", tmp_path)
    expected = model(*batch())
    for loader in (model.load_adapter, model.load_head):
        with pytest.raises(ConfigError, match="exists already"):
            loader(tmp_path)
    assert model.load_adapter(tmp_path, "b") == "b" and model.active_adapters == ("b",)
    assert model.load_head(tmp_path, "second") == "second" and model.active_head == "second"
    output = model(*batch())
    assert torch.equal(output.features, expected.features) and torch.equal(output.logits, expected.logits)
    assert model.heads["second"].config == model.heads["asr"].config
    description = json.loads((tmp_path / "adapter.json").read_text())
    assert description["card"] == {"wer": 0.123, "data": {"hours": 5}}
    assert description["base"]["family"] == "wavlm"


@torch.no_grad()
def test_a_saved_adapter_can_be_saved_over(tmp_path):
    model = shake(small_model(method="houlsby"))
    model.save_adapter("a", tmp_path)
    expected = shake(model, 0.5)(*batch()).features
    model.save_adapter("a", tmp_path)
    model.load_adapter(tmp_path, "b")
    assert torch.equal(model(*batch()).features, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("method", ["elp", "lora"])
def test_another_base_is_refused(method, tmp_path):
    small_model(method=method).save_adapter("a", tmp_path)
    for other in (small_model("hubert"), small_model("wavlm", "post-norm")):
        with pytest.raises(CheckpointError, match="trained on 'small-wavlm-pre-norm'.*load it onto its own base"):
            other.load_adapter(tmp_path)
        assert not other.adapters
    changed = small_model()
    changed.encoder.model.encoder.layers[0].attention.q_proj.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match="frozen weights have changed since; restore"):
        changed.load_adapter(tmp_path)


SETTINGS = [
    ("wav2vec2", "num_attention_heads", 4, 2), ("wav2vec2", "hidden_act", "gelu", "relu"),
    ("hubert", "layer_norm_eps", 1e-5, 1e-3), ("wavlm", "conv_stride", [10, 8, 4], [10, 8, 2]),
    ("wavlm", "max_bucket_distance", 800, 400), ("data2vec-audio", "feat_extract_activation", "gelu", "relu"),
    ("whisper", "encoder_attention_heads", 4, 2), ("wav2vec2-bert", "hidden_act", "swish", "relu"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "key", "value", "other"), SETTINGS, ids=lambda value: str(value))
def test_the_same_weights_under_another_configuration_are_refused(family, key, value, other, tmp_path, monkeypatch):
    stock_model(family, "pre-norm").save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config[key] == value
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, key: other}))
    for folder in ("base", "copy"):
        (tmp_path / folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    model = SpeechAdapterModel.from_pretrained(tmp_path / "base")
    model.add_adapter("a", "lora")
    model.add_head("asr", CTCHead())
    model.save_adapter("a", tmp_path / "a")
    model.save_head("asr", tmp_path / "a")
    changed = SpeechAdapterModel.from_pretrained(tmp_path / "copy")
    assert changed.encoder.fingerprint == model.encoder.fingerprint
    said = rf"trained where config.json said {key}={re.escape(repr(value))}, .* says {re.escape(repr(other))}"
    for load in (changed.load_adapter, changed.load_head):
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path / "a")
    with monkeypatch.context() as patch:  # as files were before this was kept
        patch.setattr(Encoder, "settings", None)
        model.save_adapter("a", tmp_path / "old")
        model.save_head("asr", tmp_path / "old")
    changed.load_adapter(tmp_path / "old")
    changed.load_head(tmp_path / "old")


@pytest.mark.parametrize("family", ["wav2vec2", "wavlm", "wav2vec2-bert"])
def test_a_copy_with_another_embedding_of_masked_frames_is_the_same_base(family, tmp_path):
    """It is random where ``transformers`` saved a checkpoint that had none (facebook/wav2vec2-base-960h)."""
    stock = stock_model(family, "pre-norm", mask_time_prob=0.05)
    for folder in ("base", "copy"):
        torch.nn.init.uniform_(stock.masked_spec_embed)
        stock.save_pretrained(tmp_path / folder)
        (tmp_path / folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    del stock.masked_spec_embed
    stock.config.mask_time_prob = stock.config.mask_feature_prob = 0.0
    stock.save_pretrained(tmp_path / "none")
    shutil.copy(tmp_path / "base" / "preprocessor_config.json", tmp_path / "none")
    model = SpeechAdapterModel.from_pretrained(tmp_path / "base")
    model.add_adapter("a", "lora")
    model.add_head("asr", CTCHead())
    model.save_adapter("a", tmp_path / "a")
    model.save_head("asr", tmp_path / "a")
    for folder in ("copy", "none"):
        other = SpeechAdapterModel.from_pretrained(tmp_path / folder)
        other.load_adapter(tmp_path / "a")
        other.load_head(tmp_path / "a")


def test_files_that_know_their_base_by_all_its_weights_are_read_on_it(tmp_path):
    stock_model("wavlm", "pre-norm", mask_time_prob=0.05).save_pretrained(tmp_path / "base")
    model = SpeechAdapterModel.from_pretrained(tmp_path / "base")
    model.add_adapter("a", "lora")
    model.add_head("asr", CTCHead())
    own, older = model.encoder.fingerprints
    model.encoder._fingerprints = (older,)  # as it was before the embedding of masked frames was left out
    model.save_adapter("a", tmp_path / "a")
    assert older in (tmp_path / "a" / "adapter.json").read_text()
    assert own not in (tmp_path / "a" / "adapter.json").read_text()
    model.encoder._fingerprints = (own, older)
    model.save_head("asr", tmp_path / "a")
    again = SpeechAdapterModel.from_adapter(tmp_path / "a")
    assert again.active_adapters == ("a",) and list(again.heads) == ["asr"]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("wav2vec2", {"adapter_stride": 3}), ("wav2vec2-bert", {"adapter_act": "gelu"}),
        ("data2vec-audio", {"do_stable_layer_norm": True}),
    ],
)  # fmt: skip
def test_settings_that_change_nothing_are_no_other_base(family, changes, tmp_path):
    stock_model(family, "pre-norm").save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | changes))
    model = SpeechAdapterModel.from_pretrained(tmp_path / "base")
    model.add_adapter("a", "lora")
    model.save_adapter("a", tmp_path / "a")
    SpeechAdapterModel.from_pretrained(tmp_path / "copy").load_adapter(tmp_path / "a")


def test_a_revision_that_an_older_file_gives_a_folder_is_passed_over(tmp_path):
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path / "base")
    model = SpeechAdapterModel.from_pretrained(tmp_path / "base")
    model.add_adapter("a", "lora")
    model.encoder.revision = "main"
    model.save_adapter("a", tmp_path / "a")
    assert SpeechAdapterModel.from_adapter(tmp_path / "a").active_adapters == ("a",)


def test_the_base_is_known_again_whatever_lives_in_it(tmp_path):
    model = small_model(method="lora")
    model.add_adapter("e", "e")
    model.save_adapter("e", tmp_path)
    other = small_model(method="lora")
    other.encoder.model.bfloat16()  # the fingerprint was taken before
    assert other.load_adapter(tmp_path) == "e"


def test_tensors_of_another_configuration_are_refused_and_leave_the_model_alone(tmp_path):
    model = small_model(method="houlsby")
    description = {"name": "b", "base": {"name": "base", "fingerprint": model.encoder.fingerprint}}
    for config in (Bottleneck(size=3), preset("dora"), METHODS["lora+l"]):
        save_part(tmp_path, "adapter", {**description, "config": config.to_dict()}, model.adapters["a"].tensors())
        with pytest.raises(CheckpointError, match="its tensors do not fit its configuration"):
            model.load_adapter(tmp_path)
        assert list(model.adapters) == ["a"] and model.active_adapters == ("a",)
    model.add_head("asr", CTCHead())
    head = {"name": "b", "config": CTCHead().to_dict(), "input_size": 65}
    save_part(tmp_path, "head", head, model.head.state_dict())
    with pytest.raises(CheckpointError, match="its tensors do not fit its configuration"):
        model.load_head(tmp_path)
    assert list(model.heads) == ["asr"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = small_model()
    model.add_adapter("a", Bottleneck(size=1, layers=(0,), learning_rate=1e-5))
    model.add_head("asr", CTCHead(Vocabulary.from_texts(["ab"])))
    model.save_adapter("a", folder, ratios=[1e-20, 0.5], note="réglé\tà 5 %")
    model.save_head("asr", folder)
    return folder


FILES = ("adapter.json", "adapter_model.safetensors", "head.json", "head_model.safetensors")


def refuse(saved: Path, name: str, content: bytes) -> None:
    """The changed file is refused with an error that names a file; the folder is whole again afterwards."""
    with changed(saved, name, content), pytest.raises(CheckpointError, match=r"(cut short or changed|is newer than)"):
        load_part(saved, kind_of(name))


@contextmanager
def changed(saved: Path, name: str, content: bytes):
    whole = (saved / name).read_bytes()
    try:
        (saved / name).write_bytes(content)
        yield
    finally:
        (saved / name).write_bytes(whole)


def kind_of(name: str) -> str:
    return name.split("_")[0].split(".")[0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused(saved, name):
    whole = (saved / name).read_bytes()
    for length in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 3, len(whole) - 2):
        refuse(saved, name, whole[:length])
    refuse(saved, name, whole + b"x")
    refuse(saved, name, b"\x00" * len(whole))
    load_part(saved, kind_of(name))


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(saved, name, place, bit):
    content = bytearray((saved / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    whole, _ = load_part(saved, kind_of(name))
    with changed(saved, name, bytes(content)):
        try:
            found, _ = load_part(saved, kind_of(name))
        except CheckpointError:
            return
        assert name.endswith(".json") and found == whole  # \u00e9 and \u00E9 are the same text


def test_the_checksum_is_of_the_content_and_not_of_its_spelling(saved):
    text = (saved / "adapter.json").read_bytes()
    assert b"1e-05" in text and b"\\u00e9" in text and b'"size": 1,' in text
    for same in (
        text.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + text,
        text.replace(b"1e-05", b"1E-05").replace(b"\\u00e9", b"\\u00E9"),
        json.dumps(json.loads(text), ensure_ascii=False).encode(),
    ):
        with changed(saved, "adapter.json", same):
            assert load_part(saved, "adapter")[0]["card"]["note"] == "réglé\tà 5 %"
    for other in (
        text.replace(b'"size": 1,', b'"size": 2,'),
        text.replace(b'"size": 1,', b'"size": 1.0,'),
        text.replace(b'"size": 1,', b'"size": 2,\n    "size": 1,'),
        json.dumps(json.loads(text), indent=2, sort_keys=True).encode(),
    ):
        refuse(saved, "adapter.json", other)


ODD = ["[]", "null", "3", '"x"', "{}", '{"sha256": 3, "format": 1}', '{"format": [1]}', "[" * 100_000, "\ufeff{}"]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_json_of_another_shape_is_refused(saved, text):
    refuse(saved, "adapter.json", text.encode())


def test_a_newer_format_asks_for_a_newer_package(saved, tmp_path):
    described = json.loads((saved / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps({**described, "format": 2}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="format 2 is newer than this version reads; update the package"):
        load_part(tmp_path, "adapter")


@pytest.mark.parametrize("kind", ["adapter", "head"])
def test_missing_files_are_named(saved, tmp_path, kind):
    model = small_model()
    load = getattr(model, f"load_{kind}")
    with pytest.raises(CheckpointError, match=rf"nowhere/{kind}.json: no such file; give a folder that holds"):
        load(tmp_path / "nowhere")
    (tmp_path / f"{kind}.json").write_bytes((saved / f"{kind}.json").read_bytes())
    with pytest.raises(CheckpointError, match=rf"{kind}_model.safetensors: no such file"):
        load(tmp_path)
    for name in ("l", "m"):
        part = tmp_path / "run" / f"{kind}s" / name / f"{kind}.json"
        part.parent.mkdir(parents=True)
        part.write_bytes((saved / f"{kind}.json").read_bytes())
    with pytest.raises(CheckpointError, match=rf"give .*run/{kind}s/l or .*run/{kind}s/m\.$"):
        load(tmp_path / "run")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    model = small_model(method="houlsby")
    with pytest.raises(CheckpointError, match="does not fit JSON .*Path.*; give plain values"):
        model.save_adapter("a", tmp_path / "new", data=tmp_path)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match=r"cannot be written \((File exists|Not a directory)\)"):
            model.save_adapter("a", folder)

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=r"cannot be written \(disk full\)"):
        model.save_adapter("a", tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_cards_keep_odd_but_plain_values(tmp_path):
    model = small_model(method="houlsby")
    model.save_adapter("a", tmp_path, seeds={9: 0.1, 10: float("nan")}, none=None, words=("a", "ü"))
    description, _ = load_part(tmp_path, "adapter")
    assert description["card"]["seeds"].keys() == {"9", "10"} and description["card"]["words"] == ["a", "ü"]


def test_the_same_part_is_the_same_bytes(tmp_path):
    """Safetensors orders metadata at random: twenty saves would differ in about half."""
    tensors = {"b": torch.randn(2, 3), "a": torch.randn(3), "ä": torch.zeros(0)}
    saved = {
        save_part(tmp_path / str(n), "adapter", {}, tensors).joinpath("adapter_model.safetensors").read_bytes()
        for n in range(20)
    }
    assert len(saved) == 1
    assert load_part(tmp_path / "0", "adapter")[1]["b"].equal(tensors["b"])
    with safe_open(tmp_path / "0" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"description": "adapter.json", "format": "pt"}
        assert torch.equal(file.get_tensor("ä"), tensors["ä"])
