"""LoRA here is peft's: the same files, the same output, the same gradients; and it trains on WavLM too."""

from __future__ import annotations

import pytest
import torch
from small_encoders import STYLES, stock_model
from small_models import batch, shake, small_model

from speech_adapters.adapters import LoRA
from speech_adapters.errors import ConfigError
from speech_adapters.model import SpeechAdapterModel

LORAS = {
    "lora": LoRA(),
    "rslora": LoRA(variant="rslora", rank=4, alpha=16, targets=("k_proj", "output_dense")),
    "dora": LoRA(variant="dora", targets=("out_proj", "v_proj", "intermediate_dense"), layers=(1, 2)),
}


@pytest.mark.parametrize("variant", LORAS)
@pytest.mark.parametrize(("family", "style"), [("wav2vec2", "post-norm"), ("hubert", "pre-norm")])
def test_a_saved_lora_loads_with_peft_onto_the_stock_model(family, style, variant, tmp_path):
    from peft import PeftModel

    waveforms, _ = batch()
    model = small_model(family, style)
    model.add_adapter("a", LORAS[variant])
    ours = shake(model, 0.1)(waveforms).last_hidden_state
    model.save_adapter("a", tmp_path)
    stock = stock_model(family, style)
    base = stock(model.encoder.normalized(waveforms)).last_hidden_state
    theirs = PeftModel.from_pretrained(stock, tmp_path)(model.encoder.normalized(waveforms)).last_hidden_state
    assert (theirs - base).abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", LORAS)
@pytest.mark.parametrize("style", STYLES)
def test_folded_into_wavlm_it_is_a_stock_checkpoint(style, variant, tmp_path):
    from transformers import AutoModel

    waveforms, lengths = batch()
    model = small_model("wavlm", style)
    model.add_adapter("other", LoRA(rank=2))
    shake(model, 0.1)
    model.add_adapter("a", LORAS[variant])
    ours = shake(model, 0.1)(waveforms, lengths)
    model.set_active("other")
    model.save_folded("a", tmp_path)
    stock, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mask = (torch.arange(6400) < lengths[:, None]).long()
    theirs = stock.eval()(model.encoder.normalized(waveforms, lengths), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours.last_hidden_state[ours.mask], theirs[ours.mask], atol=1e-5, rtol=0)
    assert model.active_adapters == ("other",)
    model.set_active("a")
    assert torch.equal(model(waveforms, lengths).features, ours.features)


def test_plain_peft_on_wav2vec2_equals_ours():
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    waveforms, _ = batch()
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    theirs = get_peft_model(stock_model("wav2vec2"), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model = small_model("wav2vec2", "post-norm", "lora")
    model.adapters["a"].load_tensors(get_peft_model_state_dict(theirs))
    weights = torch.randn(64)
    stock_output = theirs(model.encoder.normalized(waveforms)).last_hidden_state
    output = model(waveforms).last_hidden_state
    torch.testing.assert_close(output, stock_output, atol=1e-5, rtol=0)
    (output @ weights).mean().backward()
    (stock_output @ weights).mean().backward()
    gradients = {k.replace(".default", ""): p.grad for k, p in theirs.named_parameters() if "lora" in k}
    ours = model.adapters["a"].tensors()
    assert gradients.keys() == ours.keys()
    named = {id(p): p.grad for p in model.parameters()}
    by_name = dict(zip(ours, (named[id(p)] for p in model.adapters["a"].parameters()), strict=True))
    torch.testing.assert_close(by_name, gradients, atol=1e-6, rtol=1e-4)


def test_lora_on_stock_wavlm_attention_is_dead_and_ours_alive():
    """Why this package calls the projections itself (transformers pull request 48773)."""
    from peft import LoraConfig, get_peft_model

    waveforms, _ = batch()
    stock = stock_model("wavlm")
    with torch.no_grad():
        base = stock(waveforms).last_hidden_state
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    output = get_peft_model(stock, config)(waveforms).last_hidden_state
    if output.requires_grad:
        pytest.skip("this transformers runs WavLM's projections as modules: LoRA trains on its stock attention too")
    torch.testing.assert_close(output, base, atol=1e-5, rtol=0)

    model = small_model("wavlm", "post-norm", "lora")
    base = model(waveforms).features
    model.train_adapter("a")
    ours = shake(model, 0.1)(waveforms).features
    assert (ours - base).abs().max() > 1e-2
    (ours @ torch.randn(64)).mean().backward()
    model.check_alive()


def test_loras_share_a_model(recwarn):
    waveforms, _ = batch()
    model = small_model(layers=12)  # enough targets for peft to shorten their list
    configs = {"a": LoRA(), "b": LoRA(targets=("q_proj", "k_proj"), rank=4), "c": LoRA(variant="dora")}
    alone = {}
    for name, config in configs.items():
        model.add_adapter(name, config)
        alone[name] = shake(model, 0.1)(waveforms).features
    for name in configs:
        model.set_active(name)
        assert torch.equal(model(waveforms).features, alone[name])
    assert model.parameter_groups()["lora"][0].shape == (8, 64)
    model.set_active("a", "b")
    both = model(waveforms).features
    assert not torch.allclose(both, alone["a"]) and not torch.allclose(both, alone["b"])
    model.delete_adapter("a")
    assert model.active_adapters == ("b",) and torch.equal(model(waveforms).features, alone["b"])
    model.add_adapter("a", LoRA(layers=(0,)))
    model.set_active("c")
    assert torch.equal(model(waveforms).features, alone["c"])
    assert not [warning for warning in recwarn if "peft" in str(warning.filename)]


def test_a_lora_that_comes_leaves_one_that_trains_as_it_is():
    model = shake(small_model(method="lora-all", head=True), 0.1)
    model.train()
    trains = {name for name, p in model.adapters["a"].named_parameters() if p.requires_grad}
    model.add_adapter("b", LoRA(dropout=0.5))
    assert {name for name, p in model.adapters["a"].named_parameters() if p.requires_grad} == trains != set()
    waveforms, _ = batch()
    model.set_active("a")
    first, second = (model(waveforms).features for _ in range(2))
    assert not torch.equal(first, second), "its dropout goes on"
    model.train_adapter("a", head="asr")
    model.train()
    dropouts = model.adapters["a"].layers[0].lora_dropout
    assert dropouts["a"].training and not dropouts["b"].training, "each adapter's is its own"
    other = SpeechAdapterModel(model.encoder)
    with pytest.raises(ConfigError, match="LoRA 'a': another model has one of this name on the same encoder"):
        other.add_adapter("a", "lora")
    assert not other.adapters and model.eval()(waveforms).features.isfinite().all()
    encoder = model.encoder
    del model, dropouts
    other.add_adapter("a", "lora")  # as a cell of a notebook that is run again
    assert other(waveforms).features.isfinite().all() and other.encoder is encoder


def test_copies_for_fine_tuning_hold_no_lora():
    waveforms, _ = batch()
    model = small_model("wavlm", "pre-norm")
    base = model(waveforms).features
    model.add_adapter("lora", LORAS["lora"])
    shake(model, 0.1)
    model.add_adapter("full", "full")
    assert not any("lora" in name for name in model.adapters["full"].tensors())
    assert torch.equal(model(waveforms).features, base)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["lora", "adalora", "vera", "pissa"])
def test_deleting_one_says_nothing_and_leaves_open_what_trains(method):
    model = small_model("wavlm", "pre-norm")
    for name in ("a", "b", "c"):
        model.add_adapter(name, method)
    model.train_adapter("b", head="asr" if "asr" in model.heads else None)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    model.delete_adapter("c")
    model.delete_adapter("a")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trains
