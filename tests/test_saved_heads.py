"""A head knows the features that it was trained on: another base or method is refused, other weights are said."""

from __future__ import annotations

import json
import warnings

import pytest
from small_models import shake, small_model

from speech_adapters.composition import Average, Parallel, Stack
from speech_adapters.errors import CheckpointError
from speech_adapters.saving.heads import features_of
from speech_adapters.saving.parts import load_part, save_part


@pytest.fixture
def saved(tmp_path):
    """A LoRA adapter "a" and the head "asr" that was trained with it, in one folder."""
    model = shake(small_model(method="lora", head=True))
    model.save_adapter("a", tmp_path)
    model.save_head("asr", tmp_path)
    return tmp_path


def load_silently(model, folder, name=None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model.load_head(folder, name)


def test_a_head_loads_in_silence_where_its_adapter_is_active(saved):
    model = small_model()
    model.load_adapter(saved, "renamed")
    load_silently(model, saved)
    model.add_adapter("fresh", "lora")
    for value in (Average("renamed", "fresh"), Stack("fresh", "renamed")):
        model.set_active(value)
        load_silently(model, saved, f"under-{value.kind}")


@pytest.mark.parametrize("method", ["houlsby", "lora+l", "pissa"])
def test_a_head_under_another_method_is_refused(method, saved):
    model = small_model(method=method)
    with pytest.raises(CheckpointError, match=r"trained on the features of adapter 'a' \(lora\).*cannot read"):
        model.load_head(saved)
    assert not model.heads


def test_a_head_on_another_base_or_other_preprocessing_is_refused(saved):
    with pytest.raises(CheckpointError, match="this head was trained on 'small-wavlm-pre-norm', whose frozen weights"):
        small_model("hubert").load_head(saved)
    model = small_model()
    model.encoder.normalize = False
    for load in (model.load_head, model.load_adapter):
        with pytest.raises(CheckpointError, match="trained on waveforms normalised, and .* hears them as they are"):
            load(saved)


def test_a_head_alone_or_beside_other_weights_is_said(saved, tmp_path):
    model = small_model()
    with pytest.warns(UserWarning, match=r"of adapter 'a' \(lora\), and those of the base without an adapter are"):
        model.load_head(saved, "alone")
    model.add_adapter("fresh", "lora")
    with pytest.warns(UserWarning, match=r"and those of adapter 'fresh' \(lora\) are active; .* until it has been"):
        model.load_head(saved, "beside")
    plain = small_model(head=True)
    plain.save_head("asr", tmp_path / "plain")
    load_silently(plain, tmp_path / "plain", "again")
    plain.add_adapter("nothing", "head-only")
    load_silently(plain, tmp_path / "plain", "beside-nothing")
    with pytest.warns(UserWarning, match="of the base without an adapter, and those of adapter 'fresh'"):
        model.load_head(tmp_path / "plain", "base-head")


def test_a_file_from_before_features_were_kept_loads_with_a_warning(saved):
    described, tensors = load_part(saved, "head")
    assert described["features"]["adapters"]["a"]["method"] == "lora"
    del described["features"]
    save_part(saved, "head", {key: described[key] for key in ("name", "config", "input_size")}, tensors)
    with pytest.warns(UserWarning, match="keeps no record of the features"):
        small_model("hubert").load_head(saved)


def test_an_adapter_from_before_preprocessing_was_kept_loads(saved):
    described, tensors = load_part(saved, "adapter")
    assert described["base"].pop("normalize") is True
    save_part(saved, "adapter", described, tensors)
    assert small_model().load_adapter(saved) == "a"


def test_branches_of_parallel_have_no_features_in_common():
    model = small_model(method="lora")
    model.add_adapter("b", "houlsby")
    assert features_of(model.encoder, Parallel("a", "b"), model.adapters) is None
    both = features_of(model.encoder, Stack("a", "b"), model.adapters)
    assert both.methods == {"lora", "bottleneck"} and json.dumps(both.composition)


def test_what_is_not_finite_is_not_saved(tmp_path):
    model = small_model(method="lora", head=True)
    for save, parameter in (
        (lambda: model.save_adapter("a", tmp_path / "new"), next(model.adapters["a"].parameters())),
        (lambda: model.save_head("asr", tmp_path / "new"), next(model.head.parameters())),
    ):
        parameter.data.view(-1)[1] = float("nan")
        with pytest.raises(CheckpointError, match="not saved: tensor '.*' holds values that are not finite"):
            save()
    assert not (tmp_path / "new").exists()
