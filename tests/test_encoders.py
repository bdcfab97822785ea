"""The encoder forward equals transformers' own, from any start to any stop, and loading tells what is wrong."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from small_encoders import FAMILIES, STYLES, small_encoder, stock_model

from speech_adapters.encoders import encode, load_encoder, packaged_encoders
from speech_adapters.encoders.loading import PACKAGED
from speech_adapters.errors import CheckpointError, ConfigError

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


@pytest.mark.parametrize("padded", [False, True], ids=["one-length", "padded"])
@pytest.mark.parametrize(("family", "style"), EVERY + OTHERS)
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
    for checkpointing in (False, True):
        model = stock_model(family, "pre-norm").requires_grad_(True)
        encode(model, batch[0], gradient_checkpointing=checkpointing).last_hidden_state.square().mean().backward()
        gradients.append(model.encoder.layers[0].attention.q_proj.weight.grad)
    torch.testing.assert_close(*gradients)


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
    folder = tmp_path / "cut"
    stock_model("wavlm", "pre-norm").save_pretrained(folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        load_encoder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="model_type 'bert'"):
        load_encoder(folder)


def test_a_checkpoint_without_layers_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    stock_model("hubert", "post-norm").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "layers.2" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="lacks"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("name", packaged_encoders())
def test_packaged_encoders_are_stock_checkpoints(name, batch):
    from transformers import AutoModel

    folder = PACKAGED / name
    stock, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    encoder = load_encoder(name)
    assert encoder.family == name.removeprefix("tiny-") and encoder.pre_norm and not encoder.group_norm
    assert sum(p.numel() for p in encoder.parameters()) < 10_000_000
    waveforms, lengths = batch
    together = encoder(waveforms, lengths)
    theirs = stock.eval()(encoder.normalized(waveforms[:1])).last_hidden_state
    torch.testing.assert_close(together.last_hidden_state[:1], theirs, atol=1e-4, rtol=1e-4)
    for row, length in enumerate(lengths):
        alone = encoder(waveforms[row : row + 1, :length]).last_hidden_state[0]
        assert (together.last_hidden_state[row, : len(alone)] - alone).abs().max() < 1e-3


def test_packaged_encoders_stay_small():
    sizes = {path.parent.name: path.stat().st_size for path in PACKAGED.glob("*/*.safetensors")}
    assert max(sizes.values()) < 18e6 and sum(sizes.values()) < 36e6
    assert load_encoder("tiny-wavlm").model.encoder.layers[0].attention.rel_attn_embed.weight.std() > 0.01
    assert all((PACKAGED / name / "README.md").stat().st_size > 1000 for name in packaged_encoders())
