"""The encoder forward equals transformers' own, from any start to any stop, and loading tells what is wrong."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoders import FAMILIES, STYLES, small_encoder, stock_model
from torch import nn

from speech_adapters.encoders import encode, load_encoder, packaged_encoders
from speech_adapters.encoders.shipped import PACKAGED
from speech_adapters.encoders.tensors import fingerprint, fingerprints
from speech_adapters.encoders.weights import open_tensors
from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.saving.peft_import import read_peft_folder

EVERY = [(family, style) for family in FAMILIES for style in STYLES]
OTHERS = [("unispeech-sat", "post-norm"), ("unispeech-sat", "pre-norm"), ("data2vec-audio", "post-norm")]


@pytest.fixture
def batch():
    torch.manual_seed(1)
    lengths = torch.tensor([16000, 11000, 7003])
    waveforms = torch.randn(3, 16000)
    for row, length in enumerate(lengths):
        waveforms[row, length:] = 0
    return waveforms, lengths


def build(family, style):
    extra = {"num_conv_pos_embeddings": 5} if family == "data2vec-audio" else {}
    if family == "data2vec-audio":
        extra["conv_bias"] = False
    return stock_model(family, style, **extra)


@pytest.mark.parametrize(
    ("family", "style", "padded"),
    [
        (*case, padded)
        for case in EVERY + OTHERS
        for padded in (False, True)
        if not (padded and case[0] == "data2vec-audio")  # stock data2vec changes with padding; see its family's file
    ],
)
def test_forward_and_gradients_equal_transformers(family, style, padded, batch):
    waveforms, lengths = batch
    model = build(family, style).requires_grad_(True)
    twin = copy.deepcopy(model)
    attention_mask = (torch.arange(16000) < lengths[:, None]).long() if padded else None
    theirs = twin(waveforms, attention_mask=attention_mask, output_hidden_states=True)
    ours = encode(model, waveforms, lengths if padded else None)

    real = ours.mask if padded else torch.ones(theirs.last_hidden_state.shape[:2], dtype=torch.bool)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    for mine, stock in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], stock[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.last_hidden_state[real], theirs.last_hidden_state[real], atol=1e-5, rtol=0)

    weights = torch.randn_like(ours.last_hidden_state[real])
    (ours.last_hidden_state[real] * weights).mean().backward()
    (theirs.last_hidden_state[real] * weights).mean().backward()
    stock = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if stock[name].grad is None or name == "masked_spec_embed":
            continue
        torch.testing.assert_close(parameter.grad, stock[name].grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("family", "style"), EVERY)
def test_runs_from_cached_activations_and_stops_anywhere(family, style, batch):
    waveforms, lengths = batch
    model = stock_model(family, style)
    with torch.no_grad():
        whole = encode(model, waveforms, lengths)
        from_cnn = encode(model, cnn_output=whole.cnn_output, frames=whole.frame_lengths)
        lower = encode(model, waveforms, lengths, stop_layer=2)
        upper = encode(model, hidden=lower.last_hidden_state, frames=lower.frame_lengths, start_layer=2)
    assert torch.equal(from_cnn.last_hidden_state, whole.last_hidden_state)
    assert len(lower.hidden_states) == 3
    assert torch.equal(upper.last_hidden_state, whole.last_hidden_state)


def test_needs_exactly_one_input_and_a_layer_that_exists(batch):
    model = stock_model("wavlm", "pre-norm")
    with pytest.raises(ConfigError, match="exactly one of"):
        encode(model)
    with pytest.raises(ConfigError, match="stop_layer=9"):
        encode(model, batch[0], stop_layer=9)
    with pytest.raises(ConfigError, match="start_layer=1"):
        encode(model, batch[0], start_layer=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_norm_cnn_is_padding_safe_and_group_norm_is_not(family, batch):
    waveforms, lengths = batch
    for style, safe in (("pre-norm", True), ("post-norm", False)):
        encoder = small_encoder(family, style)
        assert encoder.group_norm is not safe
        together = encoder(waveforms, lengths)
        alone = encoder(waveforms[2:, : lengths[2]])
        difference = (
            together.last_hidden_state[2, : alone.last_hidden_state.shape[1]] - alone.last_hidden_state[0]
        ).abs()
        assert (difference.max() < 1e-4) is safe or (difference.max() < 1e-4).item() is safe


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(family, batch):
    gradients = []
    for checkpointing in (False, True, "selective"):
        model = stock_model(family, "pre-norm").requires_grad_(True)
        encode(model, batch[0], gradient_checkpointing=checkpointing).last_hidden_state.square().mean().backward()
        gradients.append(model.encoder.layers[0].attention.q_proj.weight.grad)
    for recomputed in gradients[1:]:
        torch.testing.assert_close(recomputed, gradients[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_and_compile(family, batch):
    encoder = small_encoder(family, "pre-norm")
    full = encoder(batch[0]).last_hidden_state
    compiled = torch.compile(encode, backend="eager", fullgraph=True)(encoder.model, encoder.normalized(batch[0]))
    torch.testing.assert_close(compiled.last_hidden_state, full)
    encoder.model.to(torch.bfloat16)
    half = encoder(batch[0]).last_hidden_state
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), full, dim=-1).mean() > 0.99


def test_masked_frames_become_the_mask_embedding(batch):
    model = stock_model("hubert", "pre-norm")
    time_mask = torch.zeros(3, 50, dtype=torch.bool)
    time_mask[:, 10:20] = True
    torch.manual_seed(0)
    theirs = model(batch[0], mask_time_indices=time_mask).last_hidden_state
    torch.testing.assert_close(encode(model, batch[0], time_mask=time_mask).last_hidden_state, theirs)


def test_encoder_stays_frozen_and_in_eval_mode():
    encoder = small_encoder()
    encoder.train()
    assert not any(module.training for module in encoder.model.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_a_folder_and_its_ctc_head(family, tmp_path):
    from transformers import AutoModelForCTC

    stock = stock_model(family, "pre-norm", vocab_size=32)
    with_head = AutoModelForCTC.from_config(stock.config)
    with_head.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    encoder = load_encoder(tmp_path)
    assert not encoder.normalize and encoder.family == family
    assert (
        torch.equal(encoder.ctc.weight, with_head.lm_head.weight) and encoder.ctc.vocabulary == tmp_path / "vocab.json"
    )
    inner = getattr(with_head, with_head.base_model_prefix)
    assert torch.equal(
        encoder.model.encoder.layers[1].attention.q_proj.weight, inner.encoder.layers[1].attention.q_proj.weight
    )
    half = load_encoder(tmp_path, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and half.fingerprint == encoder.fingerprint


def test_loading_says_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="unknown encoder 'tiny-wavln'"):
        load_encoder("tiny-wavln")
    with pytest.raises(ConfigError, match="no config.json"):
        load_encoder(tmp_path)
    with pytest.raises(ConfigError, match="cannot be reached"):
        load_encoder("microsoft/wavlm-base-plus-that-is-not-cached")
    for name in (
        "my models/wavlm base",
        "models/größe",
        "runs/run--3",
        "a/.b",
        "microsoft/wavlm-base-plus@",
        "a" * 300,
        "~nobody/x",
    ):
        with pytest.raises(ConfigError, match="unknown encoder"):
            load_encoder(name)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="it holds an adapter of peft: load its base, then call load_adapter"):
        load_encoder(tmp_path)
    (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
    (tmp_path / "models--a--b" / "README.md").touch()
    with pytest.raises(ConfigError, match="one of the folders in snapshots/"):
        load_encoder(tmp_path / "models--a--b")
    with pytest.raises(ConfigError, match="a file; give the folder that it lies in"):
        load_encoder(tmp_path / "models--a--b" / "README.md")
    folder = tmp_path / "cut"
    stock_model("wavlm", "pre-norm").save_pretrained(folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        load_encoder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "wavlm", "quantization_config": {"bits": 8}}))
    with pytest.raises(ConfigError, match="its weights are quantised .*, and quantize= to hold"):
        load_encoder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="model_type 'bert'"):
        load_encoder(folder)


def without(folder, *parts):
    """Take the tensors whose names hold one of ``parts`` out of a folder's weights."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if not any(part in k for part in parts)}
    save_file(tensors, path, {"format": "pt"})


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    stock_model("wav2vec2", "post-norm").save_pretrained(tmp_path)
    without(tmp_path, "layers.2.attention.q_proj")
    with pytest.raises(CheckpointError, match="lacks 2 of the encoder's tensors.*q_proj"):
        load_encoder(tmp_path)
    without(tmp_path, "layers.2")
    with pytest.raises(CheckpointError, match="num_hidden_layers is 3, and the weights have 2"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 377607901\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page, not the file itself"),
        (b"", "is empty: download it again"),
        (b"\xff" * 100, "cut short, changed, or not a file that holds only tensors"),
        (pickle.dumps(Path), "cut short, changed, or not a file that holds only tensors"),
    ],
    ids=["pointer", "page", "empty", "noise", "pickle"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_lies_in_the_place_of_weights_is_named(name, content, message, tmp_path):
    stock_model("wavlm", "pre-norm").config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no model.safetensors or pytorch_model.bin"):
        load_encoder(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: {message}") as raised:
        load_encoder(tmp_path)
    assert "weights_only" not in str(raised.value)


def test_weights_under_the_others_name_are_called_what_they_are_and_old_pickles_load(tmp_path):
    model = stock_model("wavlm", "pre-norm")
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true}')
    wanted, right, wrong = load_encoder(tmp_path).fingerprint, tmp_path / "model.safetensors", "pytorch_model.bin"
    right.rename(tmp_path / wrong)
    with pytest.raises(CheckpointError, match=f"{wrong}: in the format of safetensors, .*rename it to {right.name}"):
        load_encoder(tmp_path)
    for zipped in (True, False):
        torch.save(model.state_dict(), tmp_path / wrong, _use_new_zipfile_serialization=zipped)
        assert load_encoder(tmp_path).fingerprint == wanted
        (tmp_path / wrong).rename(right)
        with pytest.raises(CheckpointError, match=f"{right.name}: written by torch.save, .*rename it to {wrong}"):
            load_encoder(tmp_path)
        right.unlink()


def test_no_name_is_not_the_current_folder(tmp_path, monkeypatch):
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="unknown encoder ''"):
        load_encoder("")


def test_adapters_of_the_adapters_library_are_not_pefts(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"config": {"architecture": "lora"}, "version": "adapters.1.2.0"}')
    (tmp_path / "pytorch_adapter.bin").touch()
    with pytest.raises(ConfigError, match="of the adapters library"):
        load_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="of the adapters library"):
        read_peft_folder(tmp_path)


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (
            lambda tensors: {"epoch": 3, "model": tensors, "optimizer": {}},
            "with parts 'model', 'optimizer'.* save only the mod",
        ),
        (
            lambda tensors: {f"module.{key}": tensors[key] for key in tensors},
            r"are called module.NAME: .*DataParallel",
        ),
        (
            lambda tensors: {f"base_model.model.{key}": tensors[key] for key in tensors},
            "peft.* save what is inside it",
        ),
    ],
)
def test_a_file_of_something_around_the_model_is_named(wrapped, message, tmp_path):
    model = stock_model("wavlm", "pre-norm")
    model.config.save_pretrained(tmp_path)
    torch.save(wrapped(model.state_dict()), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path)


def test_weights_in_pytorchs_format_and_in_shards_load_alike(tmp_path):
    stock = stock_model("wav2vec2", "pre-norm")
    stock.save_pretrained(tmp_path / "one")
    stock.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    stock.config.save_pretrained(tmp_path / "old")
    torch.save(stock.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    assert len({load_encoder(tmp_path / name).fingerprint for name in ("one", "shards", "old")}) == 1
    index = tmp_path / "shards" / "model.safetensors.index.json"
    placed = json.loads(index.read_text())
    del placed["weight_map"]["encoder.layer_norm.weight"]  # the shard has it, as transformers sees too
    index.write_text(json.dumps(placed))
    assert load_encoder(tmp_path / "shards").fingerprint == load_encoder(tmp_path / "one").fingerprint
    index.write_text(json.dumps({"weight_map": {"a": 3}}))
    with pytest.raises(CheckpointError, match="its weight_map gives no file for each tensor"):
        load_encoder(tmp_path / "shards")


@given(st.sets(st.sampled_from("abcd"), min_size=1), st.sets(st.sampled_from("abcde")))
def test_a_fingerprint_without_some_tensors_is_that_of_the_others(names, left_out):
    tensors = {name: torch.full((2,), float(ord(name))) for name in names}
    rest = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    both = [fingerprint(rest)] if len(rest) == len(tensors) else [fingerprint(rest), fingerprint(tensors)]
    assert list(fingerprints(tensors, left_out)) == both


def test_weights_saved_as_parameters_beside_other_keys_are_tensors(tmp_path):
    stock = stock_model("wav2vec2", "pre-norm")
    stock.config.save_pretrained(tmp_path)
    head = {"lm_head.weight": nn.Parameter(torch.ones(32, 64)), "lm_head.bias": nn.Parameter(torch.ones(32))}
    torch.save({**stock.state_dict(keep_vars=True), **head, 0: torch.ones(1)}, tmp_path / "pytorch_model.bin")
    encoder = load_encoder(tmp_path)
    assert not encoder.ctc.weight.requires_grad
    assert copy.deepcopy(encoder).fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.fp16.safetensors", "a variant: rename it to model.safetensors"),
        ("model.safetensors.index.fp32.json", "a variant's: rename it to model.safetensors.index.json"),
        ("model-00001-of-00004.safetensors", "it needs model.safetensors.index.json"),
        ("training_args.bin", "download the folder again"),
        ("adapter_model.safetensors", "download the folder again"),
        ("flax_model.msgpack", "Flax's: load it with transformers"),
        ("tf_model.h5", "TensorFlow's: load it with transformers"),
        ("adapter_config.json", "an adapter of peft: load its base"),
        ("global_step500", "DeepSpeed: consolidate them"),
    ],
)
def test_weights_of_another_name_are_named(name, remedy, tmp_path):
    stock_model("wavlm", "pre-norm").config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"no model.safetensors or pytorch_model.bin; .*{remedy}"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin.index.json"])
def test_a_checkpoint_that_lacks_its_configuration_alone_needs_no_conversion(weights, tmp_path):
    for name in (weights, "tf_model.h5", "flax_model.msgpack"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="no config.json in this folder; download the checkpoint whole, config.json"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("optimizer.pt", "the state of a training, not a model"),
        ("wav2vec_small.pt", r"fairseq's or OpenAI's, say\): convert it"),
        ("states-10000.ckpt", "save the model's part"),
        ("hyperparams.yaml", "SpeechBrain's: load it there"),
        ("model.nemo", "NeMo's, whose encoders are of no family here"),
        ("ggml-base.bin", "whisper.cpp's: give the checkpoint"),
        ("model.bin", "CTranslate2's .*: give the checkpoint"),
        ("weights.npz", "MLX's: give the checkpoint"),
        ("encoder_model.onnx", "give the checkpoint"),
    ],
)
def test_what_other_toolkits_save_is_named_wherever_it_is_met(name, remedy, tmp_path, capsys):
    from speech_adapters.cli import main

    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=f"no config.json in this folder; there is {name}, .*{remedy}"):
        load_encoder(tmp_path)
    with pytest.raises(ConfigError, match=f"{name}: a file; .*{remedy}"):
        load_encoder(tmp_path / name)
    with pytest.raises(SystemExit, match="2"):
        main(["info", str(tmp_path)])
    assert re.search(remedy, capsys.readouterr().err)
    (tmp_path / "config.json").write_text('{"n_mels": 80}')
    with pytest.raises(ConfigError, match=f"no model_type.* there is {name}, .*{remedy}"):
        load_encoder(tmp_path)
    with pytest.raises(ConfigError, match="a file; give the folder"):
        load_encoder(tmp_path / name)


def test_the_latest_of_several_checkpoints_is_named(tmp_path):
    for number, step in enumerate((500, 1000)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").touch()
        os.utime(tmp_path / f"checkpoint-{step}", (number, number))
    with pytest.raises(ConfigError, match=r"one of the folders in it .*checkpoint-1000\."):
        load_encoder(tmp_path)


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"model": {}, "args": Path("x")}], ids=["model", "training"])
def test_a_pickle_of_more_than_tensors_says_what_it_holds(content, tmp_path):
    stock_model("wavlm", "pre-norm").config.save_pretrained(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors \(.*(Linear|Path).*torch.save the model's state"
    ):
        load_encoder(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "vocab.json"])
def test_a_pointer_in_the_place_of_a_json_file_is_named(file, tmp_path):
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path)
    (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 377\n")
    with pytest.raises(CheckpointError, match=f"{file}: is a Git LFS pointer.* run git lfs pull"):
        load_encoder(tmp_path)


WRAPPED = {
    "compiled": (lambda name: name.replace("layers.0.", "layers.0._orig_mod."), "torch.compile"),
    "fsdp": (lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module."), "FSDP.*full state"),
    "checkpointing": (lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."), "checkpointing"),
    "lora": (lambda name: re.sub(r"(q_proj|linear_q)\.weight", r"\1.base_layer.weight", name), "merge_and_unload"),
    "inside": (lambda name: f"net.{name}", r"stand behind 'net\.': save what is inside"),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("family", ["wavlm", "whisper", "wav2vec2-bert"])
def test_what_was_saved_around_the_weights_is_named(family, kind, tmp_path):
    from safetensors.torch import load_file, save_file

    stock_model(family, "pre-norm").save_pretrained(tmp_path)
    rename, message = WRAPPED[kind]
    path = tmp_path / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path)


def test_tensors_of_other_shapes_or_kinds_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "encoder.layers.1.attention.k_proj.weight"
    tensors = load_file(path)
    for changed, message in (
        (tensors[name][:-1].contiguous(), r"k_proj.weight has the shape \(\d+, \d+\), and by config.json"),
        ((tensors[name] * 1000).to(torch.int8), "k_proj.weight holds int8, not weights"),
        (torch.zeros(0), "k_proj.weight is empty, as in a part that ZeRO-3 leaves"),
    ):
        save_file({**tensors, name: changed}, path, {"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            load_encoder(tmp_path)


def test_a_config_value_that_the_library_refuses_is_shown(tmp_path):
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mask_time_prob": "0.05"}))
    with pytest.raises(CheckpointError, match=r"config.json: cannot be used .*mask_time_prob.*'0.05'.*correct that"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_links_to_what_is_gone_are_named(file, tmp_path):
    model = stock_model("wavlm", "pre-norm")
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # older, perhaps: not what the link was to
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / file).symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=f"{file}: a link to a file that does not exist"):
        load_encoder(tmp_path)


@given(st.integers(0, 2**31), st.integers(1, 40), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_damaged_pickle_is_one_sentence(seed, count, at_end):
    """Whatever bytes of it are wrong: names, numbers, the archive's own."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pytorch_model.bin")
        torch.save({"a.weight": torch.ones(3, 3), "b.bias": torch.ones(3)}, path)
        content = bytearray(path.read_bytes())
        for place in rng.integers(0, min(len(content), 700), count):
            content[-place - 1 if at_end else place] = rng.integers(256)
        path.write_bytes(content)
        with suppress(CheckpointError), open_tensors(path) as tensors:
            assert all(tensors.get(name) is not None for name in tensors.shapes)


def test_another_models_weights_and_those_inside_something_are_told_apart(tmp_path):
    from safetensors.torch import load_file, save_file

    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    inside = {f"net.ssl.{name}": tensor for name, tensor in tensors.items()}
    save_file({**inside, "classifier.weight": torch.ones(2, 2)}, path, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match="none of the encoder's tensors.*stand behind 'net.ssl.': save what is in"
    ):
        load_encoder(tmp_path)


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "unispeech-sat", "data2vec-audio"])
def test_tensors_of_a_head_are_none_of_the_encoder_whatever_their_names(family, tmp_path):
    """XVector's embedding is called feature_extractor, as the encoder's CNN is."""
    from transformers import MODEL_FOR_AUDIO_XVECTOR_MAPPING

    stock = stock_model(family, "pre-norm", tdnn_dim=(16, 16), tdnn_kernel=(5, 1), tdnn_dilation=(1, 1))
    model = MODEL_FOR_AUDIO_XVECTOR_MAPPING[type(stock.config)](stock.config)
    getattr(model, model.base_model_prefix).load_state_dict(stock.state_dict())
    assert any(name.startswith("feature_extractor.") for name in model.state_dict())
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true}')
    model.save_pretrained(tmp_path)
    stock.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").write_text('{"do_normalize": true}')
    assert load_encoder(tmp_path).fingerprint == load_encoder(tmp_path / "bare").fingerprint


LEFT_OVER = {
    "conv_bias": ("wav2vec2", "pre-norm", {}, {"conv_bias": False}),
    "front-end": ("hubert", "pre-norm", {}, {"feat_extract_norm": "group"}),
    "positions": ("data2vec-audio", "pre-norm", {"num_conv_pos_embeddings": 5}, {"num_conv_pos_embeddings": 3}),
    "languages": ("wav2vec2", "pre-norm", {"adapter_attn_dim": 16}, {"adapter_attn_dim": None}),
    "output": ("wav2vec2", "pre-norm", {"add_adapter": True}, {"add_adapter": False}),
}


@pytest.mark.parametrize("case", LEFT_OVER)
def test_a_configuration_that_leaves_tensors_of_the_encoder_out_is_refused(case, tmp_path):
    family, style, true, said = LEFT_OVER[case]
    stock_model(family, style, **true).save_pretrained(tmp_path)
    load_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **said}))
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true}')
    with pytest.raises(CheckpointError, match=r"config.json builds an encoder without \d+ of the tensors"):
        load_encoder(tmp_path)


def test_a_revision_of_a_folder_and_a_path_like_a_packaged_name_are_no_other_encoder(tmp_path, monkeypatch):
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path / "tiny-wavlm")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tiny-wavlm"
    for name, revision in ((f"{folder}@2025", None), (f"{folder}@host/other", None), (folder, "main")):
        with pytest.raises(ConfigError, match="no such folder. There is .*tiny-wavlm', but revisions are those of a"):
            load_encoder(name, revision=revision)
    with pytest.raises(ConfigError, match="tiny-wavlm@main: no such folder"):
        load_encoder("tiny-wavlm@main")
    assert load_encoder(Path("tiny-wavlm")).fingerprint == load_encoder(folder).fingerprint
    assert load_encoder("tiny-wavlm").folder == PACKAGED / "tiny-wavlm"
    folder.rename(tmp_path / "tiny-wavlm@2025")
    assert load_encoder(f"{folder}@2025").folder == tmp_path / "tiny-wavlm@2025"


CONFIGS = [
    *[("num_hidden_layers", value) for value in (10**6, -1, "x", None)],
    *[("hidden_size", value) for value in (10**9, 65, 0)],
    *[("conv_kernel", value) for value in ([], "abc", [10, 8], [10, 8, 10**9], [0, 8, 4])],
    *[("conv_stride", value) for value in ([0, 0, 0], [10.5, 8, 4], [10, 8, 5], None)],
    *[("conv_dim", value) for value in ([32, 32, 10**9], [32], {})],
    *[("num_conv_pos_embeddings", value) for value in (10**9, 0)],
    *[("num_attention_heads", value) for value in (0, 3)],
    *[("layer_norm_eps", value) for value in (float("nan"), 0, "x")],
    ("num_conv_pos_embedding_groups", 0), ("intermediate_size", 10**12), ("num_buckets", 10**10),
    ("num_feat_extract_layers", 10**6), ("hidden_act", "nope"), ("hidden_dropout", 7), ("add_adapter", True),
    ("max_bucket_distance", 0), ("dtype", "float999"), ("feat_extract_norm", "x"),
]  # fmt: skip


def test_a_config_that_does_not_belong_to_the_weights_is_refused_at_once(tmp_path):
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    for key, value in CONFIGS:
        path.write_text(json.dumps({**whole, key: value}))
        start = time.perf_counter()
        with pytest.raises(CheckpointError, match=r"config|weights"):
            load_encoder(tmp_path)
        assert time.perf_counter() - start < 10, (key, value)
    for text in ("[]", "3", "", "[" * 100_000, "\x00"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="config.json"):
            load_encoder(tmp_path)


def test_a_ctc_head_without_its_bias_and_weights_that_are_not_finite_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCTC

    AutoModelForCTC.from_config(stock_model("hubert", "pre-norm", vocab_size=32).config).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if "layers.1.attention.q_proj.weight" in key)
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="tensor 'encoder.layers.1.attention.q_proj.weight' .* not finite"):
        load_encoder(tmp_path)
    save_file(tensors, path, {"format": "pt"})
    without(tmp_path, "lm_head.bias")
    with pytest.raises(CheckpointError, match=r"needs lm_head.weight \(V, D\) and lm_head.bias"):
        load_encoder(tmp_path)


def test_a_checkpoint_without_mask_embedding_is_the_same_encoder_in_each_process(tmp_path):
    """As facebook/wav2vec2-base-960h: transformers draws that one tensor at random."""
    stock_model("wav2vec2").save_pretrained(tmp_path)
    without(tmp_path, "masked_spec_embed")
    prints = []
    for seed in range(2):
        torch.manual_seed(seed)
        prints.append(load_encoder(tmp_path).fingerprint)
    assert prints[0] == prints[1]


@pytest.mark.parametrize(
    ("family", "style", "files", "expected"),
    [
        ("wavlm", "pre-norm", {"preprocessor_config.json": {"do_normalize": False}}, False),
        ("wavlm", "pre-norm", {"processor_config.json": {"feature_extractor": {"do_normalize": False}}}, False),
        ("wavlm", "pre-norm", {"processor_config.json": {"processor_class": "Wav2Vec2Processor"}}, True),
        ("wavlm", "pre-norm", {}, True),
        ("wavlm", "post-norm", {}, False),
        ("hubert", "pre-norm", {}, True),
        ("hubert", "post-norm", {}, "no do_normalize in preprocessor_config.json"),
        ("data2vec-audio", "pre-norm", {}, True),
        ("wav2vec2", "post-norm", {}, True),
        ("wav2vec2", "pre-norm", {}, True),
        ("unispeech-sat", "pre-norm", {"preprocessor_config.json": {"do_normalize": True}}, True),
        ("unispeech-sat", "pre-norm", {}, "no do_normalize in preprocessor_config.json"),
        ("wavlm", "pre-norm", {"preprocessor_config.json": {"do_normalize": "no"}}, "do_normalize is 'no'"),
        ("wavlm", "pre-norm", {"preprocessor_config.json": {"do_normalize": None}}, "do_normalize is None"),
        ("whisper", "pre-norm", {"preprocessor_config.json": {"do_normalize": None}}, False),
        ("wavlm", "post-norm", {"processor_config.json": {"audio_processor": {"do_normalize": True}}}, True),
        (
            "wavlm",
            "post-norm",
            {
                "preprocessor_config.json": {"do_normalize": False},
                "processor_config.json": {"do_normalize": True},
            },
            False,
        ),
        ("wavlm", "pre-norm", {"preprocessor_config.json": []}, "not a JSON object"),
        (
            "wavlm",
            "post-norm",
            {
                "preprocessor_config.json": {"do_normalize": False},
                "processor_config.json": {"feature_extractor": {"do_normalize": True}},
            },
            True,
        ),
        (
            "wavlm",
            "pre-norm",
            {
                "preprocessor_config.json": {"do_normalize": False},
                "processor_config.json": {"processor_class": "Wav2Vec2Processor"},
            },
            False,
        ),
    ],
)
def test_preprocessing_is_read_or_published_and_never_guessed(family, style, files, expected, tmp_path):
    stock_model(family, style).save_pretrained(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    if isinstance(expected, bool):
        assert load_encoder(tmp_path).normalize is expected
    else:
        with pytest.raises(CheckpointError, match=expected):
            load_encoder(tmp_path)


@pytest.mark.parametrize("said", [{"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, {"sampling_rate": 16000}])
def test_an_extractor_described_without_do_normalize_is_the_stock_one(said, tmp_path):
    stock_model("wavlm", "post-norm").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    from transformers import Wav2Vec2FeatureExtractor

    stock = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    assert load_encoder(tmp_path).normalize is stock.do_normalize is True  # without the file: False, as published


@pytest.mark.parametrize("file", ["preprocessor_config.json", "vocab.json"])
def test_a_dangling_link_is_no_absent_file(file, tmp_path):
    stock_model("wavlm", "pre-norm").save_pretrained(tmp_path)
    (tmp_path / file).symlink_to(tmp_path / "blobs" / "0")
    with pytest.raises(CheckpointError, match=f"{file}: a link to a file that does not exist"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("name", [name for name in packaged_encoders() if not name.startswith("whisper")])
@torch.no_grad()
def test_packaged_encoders_are_stock_checkpoints(name, batch):
    from transformers import AutoModel

    folder = PACKAGED / name
    stock, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    encoder = load_encoder(name, dtype=torch.float64)
    assert encoder.family == name.rpartition("-")[2] and encoder.pre_norm and not encoder.group_norm
    # In float64, since small-wavlm magnifies rounding: its logarithms are GELUs that saturate.
    waveforms, lengths = batch[0].double(), batch[1]
    together, stock = encoder(waveforms, lengths).last_hidden_state, stock.eval().double()
    for row, length in enumerate(lengths):
        one = waveforms[row : row + 1, :length]
        alone = encoder(one).last_hidden_state[0]
        theirs = stock(encoder.normalized(one)).last_hidden_state[0]
        torch.testing.assert_close(alone, theirs, atol=1e-9, rtol=0)
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", packaged_encoders())
@torch.no_grad()
def test_packaged_encoders_bear_single_precision(name, batch):
    precise, single = (load_encoder(name, dtype=dtype) for dtype in (torch.float64, torch.float32))
    expected = precise(batch[0].double(), batch[1])
    found = single(*batch).last_hidden_state.double()
    likeness = torch.nn.functional.cosine_similarity(found, expected.last_hidden_state, dim=-1)
    assert likeness[expected.mask].min() > 0.9999


def test_packaged_encoders_stay_small():
    sizes = {path.parent.name: path.stat().st_size for path in PACKAGED.glob("*/*.safetensors")}
    expected = {"small-wavlm", "tiny-wav2vec2", "tiny-wavlm", "whisper-tiny-en"}
    assert sizes.keys() == expected, "tiny-hubert shares a file"
    assert all(size < (46e6 if name == "small-wavlm" else 18e6) for name, size in sizes.items())
    package = [path for path in PACKAGED.parents[1].rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wheel = sum(len(zlib.compress(path.read_bytes(), 1)) for path in package)  # wheels are compressed
    assert wheel < 95e6, "package indexes take wheels of up to 100 MB"
    for name in ("small-wavlm", "tiny-wavlm"):
        assert load_encoder(name).model.encoder.layers[0].attention.rel_attn_embed.weight.std() > 0.01
    assert all((PACKAGED / name / "README.md").stat().st_size > 1000 for name in packaged_encoders())
